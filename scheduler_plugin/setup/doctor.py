"""What `magrathea doctor` checks on the PBS server's machine."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

from magrathea import __version__, client, files
from magrathea.configuration import ConfigurationError
from magrathea.doctor import Check, Part, Paths, Status, endpoint, of_pbs_conf, private, unseen, writable
from magrathea.messages import FarmView
from magrathea.pbs_text.words import is_true, user_of, words

from ..hub import configuration as hub_configuration
from ..hub import keys
from ..pbs.base import Attributes
from . import checks, pbs_commands, records
from .sched_config import InstallError
from .setup_model import HOST as HOST_RESOURCE
from .setup_model import InstallOptions, Present

SERVER = "server"
STATUS = {
    checks.OK: Status.OK,
    checks.WARNING: Status.WARN,
    checks.MISSING: Status.FAIL,
    checks.DIFFERENT: Status.FAIL,
}
START_HUB = "systemctl start magrathea-hub, then journalctl -u magrathea-hub"
BAD_WORDS = ("unknown", "fault")
CLOCKS_S = 2.0
"""Hosts and hub write times into the same comments, histories and walltimes, so their clocks must agree."""


def _here(paths: Paths) -> str:
    if files.exists(paths.hub):
        return f"{paths.hub} is here"
    return f"{paths.pbs} starts a PBS server" if of_pbs_conf(paths.pbs).get("PBS_START_SERVER") == "1" else ""


def _checks(paths: Paths) -> Iterator[Check]:
    record, now = None, None
    try:
        if os.geteuid() != 0:
            raise PermissionError
        place = pbs_commands.find_pbs(paths.pbs)
        record = records.load(place.home)
        now = pbs_commands.present(place)
    except PermissionError:
        yield unseen(SERVER, "pbs", "PBS's hooks, sched_config and the record of the installation")
    except InstallError as error:
        fix = "run this as root on the PBS server's machine; is pbs_server up (qstat -B)?"
        yield Check(SERVER, "pbs", Status.FAIL, "PBS does not answer", str(error), fix)
    if now is not None:
        yield from of_pbs(now)
        options = record.options() if record else InstallOptions()
        unfinished = record.unfinished if record else ""
        yield from of_installation(now, options, installed=record is not None, unfinished=unfinished)
    yield from _hub(paths, record, now)


def of_pbs(now: Present) -> Iterator[Check]:
    """Checks of the server: its version, whether it schedules, and vnodes of hosts in trouble."""
    yield Check(SERVER, "pbs", Status.OK, f"OpenPBS {now.server.get('pbs_version', 'of unknown version')} answers")
    if is_true(now.server.get("scheduling", "True")):
        yield Check(SERVER, "scheduling", Status.OK, "PBS starts jobs")
    else:
        fix = "qmgr -c 'set server scheduling = True', when the person who disabled it has finished"
        yield Check(SERVER, "scheduling", Status.WARN, "PBS starts no jobs", "scheduling = False on the server", fix)
    bad = {
        name: vnode["resources_available.magrathea"]
        for name, vnode in now.vnodes.items()
        if vnode.get("resources_available.magrathea") in BAD_WORDS
    }
    for name, word in bad.items():
        host = now.vnodes[name].get(HOST_RESOURCE, "its host")
        fix = f"magrathea doctor on {host}"
        yield Check(
            SERVER, f"vnode-{name}", Status.FAIL, f"{name} is {word}", f"{host} reports that, or is silent", fix
        )
    if now.managed and not bad:
        yield Check(SERVER, "vnodes", Status.OK, f"{len(now.managed)} managed vnodes, none unknown or in fault")
    elif not now.managed:
        fix = "start magrathea-hub here and magrathea-noded on the hosts"
        cause = "no host has reported one yet"
        yield Check(SERVER, "vnodes", Status.WARN, "no vnode is managed by Magrathea", cause, fix)


def of_installation(now: Present, options: InstallOptions, *, installed: bool, unfinished: str = "") -> Iterator[Check]:
    """The items of `magrathea pbs check`: resources, sched_config, hooks and their order, classes, warnings."""
    if not installed:
        fix = "magrathea pbs install --priority QUEUE --preemptible QUEUE"
        cause = "there is no record of an installation"
        yield Check(SERVER, "install", Status.FAIL, "PBS is not set up for Magrathea", cause, fix)
        return
    for item in checks.check(now, options, unfinished):
        kind = "site-" if item.status == checks.WARNING else ""
        name = kind + item.name.replace(" ", "-")
        text = f"{item.name} is correct" if item.status == checks.OK else f"{item.name}: {item.status}"
        yield Check(SERVER, name, STATUS[item.status], text, item.text, item.fix)


def _hub(paths: Paths, record: records.Record | None, now: Present | None) -> Iterator[Check]:
    try:
        configuration = hub_configuration.load_alone(paths.hub)
    except ConfigurationError as error:
        if os.geteuid() != 0 and files.exists(paths.hub) and not os.access(paths.hub, os.R_OK):
            yield unseen(SERVER, "hub-configuration", paths.hub)
            return
        fix = f"fix {paths.hub}; magrathea-hub --check --config {paths.hub}"
        yield Check(SERVER, "hub-configuration", Status.FAIL, "the hub's file cannot be used", str(error), fix)
        return
    yield Check(SERVER, "hub-configuration", Status.OK, f"{paths.hub} can be used")
    heartbeat = Path(configuration.hub.heartbeat_file)
    if record is not None and record.heartbeat != str(heartbeat):
        cause = f"the server's hook reads {record.heartbeat}, the hub touches {heartbeat}"
        fix = f"magrathea pbs install --hub-config {paths.hub}"
        yield Check(SERVER, "heartbeat-file", Status.FAIL, "jobs that would preempt are always refused", cause, fix)
    try:
        yield beat(heartbeat, pbs_commands.age_s(heartbeat), record.heartbeat_max_age_s if record else 30.0)
    except PermissionError:
        yield unseen(SERVER, "heartbeat", heartbeat)
    yield writable(SERVER, "hub-state", configuration.state_dir)
    try:
        farm = client.farm(Path(configuration.hub.control_socket))
        yield from of_hosts(farm)
        yield from of_elsewhere(configuration.elsewhere.after_s, farm)
    except (client.Unreachable, client.RequestRefused) as error:
        cause, fix = getattr(error, "cause", str(error)), getattr(error, "fix", START_HUB)
        yield Check(SERVER, "hub-answers", Status.FAIL, "the hub does not answer", cause, fix)
    for address in configuration.ipc:
        yield endpoint(SERVER, "hub-ipc", address, START_HUB)
    for address in configuration.tcp:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        yield endpoint(
            SERVER, "hub-tcp", f"tcp://{'127.0.0.1' if host in ('*', '0.0.0.0') else host}:{port}", START_HUB
        )
    if configuration.tcp:
        yield private(SERVER, "hub-key", configuration.keys_dir / keys.HUB_SECRET)
        yield _enrolled(now, configuration.keys_dir)
    if now is not None and files.exists(configuration.state_dir):
        yield operator(_user(configuration.state_dir.stat().st_uid), now.server)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _enrolled(now: Present | None, keys_dir: Path) -> Check:
    if os.geteuid() != 0 and not os.access(keys_dir / keys.HOSTS, os.R_OK | os.X_OK):
        return unseen(SERVER, "hosts-keys", keys_dir)
    try:
        return enrolled(now, keys.enrolled(keys_dir))
    except keys.KeysError as error:
        fix = f"magrathea keys --dir {keys_dir} list"
        return Check(SERVER, "hosts-keys", Status.FAIL, "the hub cannot use its keys", str(error), fix)


def of_hosts(farm: FarmView) -> Iterator[Check]:
    """Checks of what the hub receives from hosts: their connections, clocks and versions."""
    for view in farm.hosts:
        name = view.snapshot.host
        if not view.live:
            cause = "no heartbeat for three periods; its vnodes are unknown and accept nothing"
            fix = f"on {name}: systemctl status magrathea-noded; magrathea doctor"
            yield Check(SERVER, f"host-{name}", Status.FAIL, f"{name} is silent", cause, fix)
            continue
        yield Check(SERVER, f"host-{name}", Status.OK, f"{name} sends heartbeats")
        if view.ahead_s is not None and abs(view.ahead_s) > CLOCKS_S:
            cause = f"it is {abs(view.ahead_s):.1f} s {'ahead of' if view.ahead_s > 0 else 'behind'} this machine's"
            fix = f"run chrony or systemd-timesyncd on {name} and here, with the same servers"
            yield Check(SERVER, f"clock-{name}", Status.WARN, f"the clock of {name} differs", cause, fix)
        elif view.ahead_s is not None:
            yield Check(SERVER, f"clock-{name}", Status.OK, f"the clock of {name} agrees with this machine's")
        if view.version and view.version != __version__:
            cause = f"its daemon is {view.version}, this is {__version__}"
            fix = "install the same package on both; first here, then magrathea pbs install, then on hosts"
            yield Check(SERVER, f"version-{name}", Status.WARN, f"{name} has another version", cause, fix)


def of_elsewhere(after_s: float, farm: FarmView) -> Iterator[Check]:
    """Checks of preempted domains that are to go on elsewhere: what keeps them from moving by configuration."""
    if not after_s:
        return
    kept = [one for one in farm.elsewhere if one.fix]
    for one in kept:
        name = f"elsewhere-{one.domain}"
        yield Check(SERVER, name, Status.WARN, f"{one.domain} stays preempted on {one.host}", one.text, one.fix)
    if not kept:
        text = f"preempted domains go on elsewhere after {after_s:g} s; preempted now: {len(farm.elsewhere)}"
        yield Check(SERVER, "elsewhere", Status.OK, text)


def beat(file: Path, age_s: float | None, max_age_s: float) -> Check:
    """Checks that the hub is alive and PBS answers it, by the same file as the server's hook."""
    if age_s is None:
        cause = f"{file} does not exist"
        return Check(
            SERVER, "heartbeat", Status.FAIL, "the hub has not run, or PBS does not answer it", cause, START_HUB
        )
    if age_s > max_age_s:
        cause = f"{file} was touched {age_s:.0f} s ago, {max_age_s:.0f} are allowed"
        return Check(SERVER, "heartbeat", Status.FAIL, "the hub is silent: nothing is preempted", cause, START_HUB)
    return Check(SERVER, "heartbeat", Status.OK, f"{file} is {age_s:.0f} s old")


def enrolled(now: Present | None, known: list[keys.Enrolled]) -> Check:
    """Checks that each host named by PBS's vnodes can still connect."""
    hosts = {one.host for one in known}
    named = {now.vnodes[name][HOST_RESOURCE] for name in now.managed} if now else set()
    if lacking := sorted(named - hosts):
        cause = f"vnodes belong to {', '.join(lacking)}, which have no key here"
        fix = f"magrathea keys enrol {lacking[0]}; unless they use the hub's ipc socket on this machine"
        return Check(SERVER, "hosts-keys", Status.WARN, "some hosts cannot connect by tcp", cause, fix)
    return Check(SERVER, "hosts-keys", Status.OK, f"{len(hosts)} hosts are enrolled")


def is_listed(user: str, hosts: set[str], entries: list[str]) -> bool:
    """True if PBS takes the user of one of these hosts for one of the entries (user_match in attr_fn_acl.c).

    An entry without a host is of every host, `*` at the beginning of a host stands for anything, case counts in users.
    """
    for entry in entries:
        name, at, where = entry.rpartition("@") if "@" in entry else (entry, "", "")
        tail = where.removeprefix("*").lower()
        for host in map(str.lower, hosts):
            matches = host.endswith(tail) if where.startswith("*") else host == tail
            if name == user and (not at or matches):
                return True
    return False


def operator(user: str, server: Attributes, hosts: set[str] | None = None) -> Check:
    """Checks that the hub's user is an operator (or manager) of PBS, from this machine.

    `hosts`: the names that PBS may know this machine by.
    """
    if hosts is None:
        hosts = {socket.gethostname(), socket.getfqdn(), server.get("server_host", "")} - {""}
    entries = [entry for key in ("operators", "managers") for entry in words(server.get(key, ""))]
    if user == "root" or is_listed(user, hosts, entries):
        return Check(SERVER, "operator", Status.OK, f"the hub's user {user} has the rights that it needs")
    fix = f'qmgr -c "set server operators += {user}@{socket.gethostname()}"'
    elsewhere = [entry for entry in entries if user_of(entry) == user]
    only = f" from here, only {', '.join(elsewhere)}" if elsewhere else ""
    cause = f"{user}, the owner of the hub's state, is neither operator nor manager of PBS{only}"
    return Check(SERVER, "operator", Status.FAIL, "the hub cannot publish or suspend", cause, fix)


part = Part(SERVER, _here, _checks)
