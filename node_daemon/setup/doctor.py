"""What `magrathea doctor` checks on a host and in a guest."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from magrathea import client, files
from magrathea.configuration import ConfigurationError
from magrathea.core.model import Kind, Mode, State
from magrathea.doctor import (
    CONNECT_S,
    Check,
    Part,
    Paths,
    Status,
    endpoint,
    is_closed,
    of_pbs_conf,
    private,
    unseen,
    writable,
)
from magrathea.messages import Snapshot

from ..agent.configuration import Config
from ..agent.swaps import TELLING_BYTES, Swap
from ..agent.swaps import swap as swap_of_guest
from ..agent.values import Unusable
from ..configuration import DomainTable, NodedConfiguration, read
from ..hypervisor.base import FLOOR_ADVICE
from . import doctor_domains, doctor_reboot, oom_killers

HOST, GUEST = "host", "guest"
START = "systemctl start magrathea-noded, then journalctl -u magrathea-noded"
CLOCK_S = 1.0
"""Daemon and command run on the same machine. A larger difference of their times means that a clock jumps."""

MAX_ANSWER_BYTES = 65536
MAX_LOCK_BYTES = 100
MAX_MOM_CONFIG_BYTES = 1 << 20


# A host


def _host_here(paths: Paths) -> str:
    return f"{paths.noded} is here" if files.exists(paths.noded) else ""


def _host(paths: Paths) -> Iterator[Check]:
    try:
        configuration = read(paths.noded)
    except ConfigurationError as error:
        if _is_hidden(paths.noded):
            yield unseen(HOST, "configuration", paths.noded)
            return
        fix = f"fix {paths.noded}; magrathea-noded --check --config {paths.noded}"
        yield Check(HOST, "configuration", Status.FAIL, f"{paths.noded} cannot be used", str(error), fix)
        return
    yield Check(HOST, "configuration", Status.OK, f"{paths.noded}: {len(configuration.domain)} domains")
    yield from memory(configuration, psutil.virtual_memory().total // 2**20)
    if configuration.host.driver == "libvirt":  # the local driver moves no memory
        yield from swap(configuration)
        yield from doctor_domains.domains(configuration)
        yield from doctor_reboot.shutdown(configuration)
    yield writable(HOST, "state", Path(configuration.paths.state_dir))
    yield from _host_sockets(configuration)
    for number, address in enumerate(configuration.hub.endpoints):
        fix = "start magrathea-hub on the server, open its port (tcp 17017), or fix `endpoints` in [hub]"
        yield endpoint(HOST, f"hub-{number}" if number else "hub", address, fix)
    if not configuration.hub.endpoints:
        fix = "give `endpoints` in [hub]"
        cause = "`endpoints` in [hub] is empty"
        yield Check(HOST, "hub", Status.WARN, "there is no hub: nothing is preempted", cause, fix)
    elif any(address.startswith("tcp://") for address in configuration.hub.endpoints):
        yield private(HOST, "keys", Path(configuration.hub.key_file))
    yield from _daemon(configuration)
    yield from _evacuation(configuration)


def _host_sockets(configuration: NodedConfiguration) -> Iterator[Check]:
    directory = configuration.run_dir / "guest"
    try:
        is_there = stat.S_ISDIR(directory.stat().st_mode)
    except OSError as error:
        if is_closed(error):
            yield unseen(HOST, "guest-sockets", directory)
            return
        is_there = False
    if not is_there:
        cause = f"{directory} is no directory" if files.exists(directory) else f"{directory} does not exist"
        yield Check(HOST, "guest-sockets", Status.FAIL, "no guest can reach the daemon", cause, START)
        return
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        cause = f"other users can replace its sockets: mode {mode:04o}"
        yield Check(HOST, "guest-sockets", Status.FAIL, f"{directory} is not safe", cause, f"chmod 755 {directory}")
        return
    here = (n for n, t in configuration.domain.items() if t.kind is not Kind.SERVICE)
    lacking = [n for n in here if not _is_socket(configuration.guest_socket(n))]
    if lacking and (away := _away(configuration)):
        lacking = [n for n in lacking if n not in away]
    if lacking:
        cause = f"no socket for {', '.join(lacking)} in {directory}"
        yield Check(HOST, "guest-sockets", Status.FAIL, "guests cannot reach the daemon", cause, START)
    else:
        yield Check(HOST, "guest-sockets", Status.OK, f"{directory} has one for each domain")


def _away(configuration: NodedConfiguration) -> list[str]:
    """The domains of the configuration that have moved to other hosts, if the daemon says so."""
    try:
        away = client.status(configuration.control_socket).away
    except (client.Unreachable, client.RequestRefused):
        return []
    return [] if away is msgspec.UNSET else away


def _evacuation(configuration: NodedConfiguration) -> Iterator[Check]:
    """Nothing if the host is not evacuated."""
    try:
        known = client.status(configuration.control_socket).evacuation
    except (client.Unreachable, client.RequestRefused):
        return
    if known is not msgspec.UNSET:
        text = f"no job starts here: the host is evacuated, {known.over} of {known.of} domains are through"
        back = f"magrathea host return {configuration.host.name}"
        yield Check(HOST, "evacuation", Status.NOTE, text, f"magrathea host evacuate: {known.reason}", back)


def _is_hidden(file: Path) -> bool:
    """True if root could read the file and this user cannot."""
    return os.geteuid() != 0 and files.exists(file) and not os.access(file, os.R_OK)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _daemon(configuration: NodedConfiguration) -> Iterator[Check]:
    try:
        snapshot = client.status(configuration.control_socket)
    except client.Unreachable as error:
        yield Check(HOST, "daemon", Status.FAIL, "the node daemon does not answer", error.cause, error.fix)
        return
    except client.RequestRefused as error:
        yield Check(HOST, "daemon", Status.FAIL, "the node daemon refuses its status", f"{error.code}: {error}", START)
        return
    yield Check(HOST, "daemon", Status.OK, f"it answers at {configuration.control_socket}")
    if abs(skew_s := time.time() - snapshot.at) > CLOCK_S:
        fix = "find out what sets the clock in steps; it should be slewed"
        cause = f"they differ by {skew_s:.1f} s"
        yield Check(HOST, "daemon-clock", Status.WARN, "the daemon's time differs from this machine's", cause, fix)
    yield from of_snapshot(configuration, snapshot)


def of_snapshot(configuration: NodedConfiguration, snapshot: Snapshot) -> Iterator[Check]:
    """Checks of what the daemon reports."""
    if snapshot.hub_connected:
        yield Check(HOST, "hub-connected", Status.OK, "the daemon is connected to its hub")
    elif configuration.hub.endpoints:
        fix = f"is this host enrolled (magrathea keys enrol {snapshot.host}, on the server)? see both journals"
        cause = "no message from the hub for three heartbeats"
        yield Check(HOST, "hub-connected", Status.FAIL, "no connection to the hub: no preemption", cause, fix)
    away = [] if snapshot.away is msgspec.UNSET else snapshot.away
    if away:
        text = f"{', '.join(away)} have moved to other hosts: `magrathea hosts` shows where"
        yield Check(HOST, "away", Status.NOTE, text, "an admin has moved them", "nothing; they can move back")
    missing = sorted(set(configuration.domain) - {domain.name for domain in snapshot.domains} - set(away))
    if missing:
        cause = f"{', '.join(missing)} are in the file only"
        fix = "magrathea reload, or restart magrathea-noded"
        yield Check(HOST, "domains", Status.WARN, "the daemon has not read its file since the last change", cause, fix)
    for domain in snapshot.domains:
        if domain.kind is Kind.SERVICE:
            continue
        name = f"domain-{domain.name}"
        said = f"{domain.name} is {domain.state.value}"
        if domain.state is State.FAULT:
            fix = f"fix what failed, then: magrathea clear {domain.name}"
            yield Check(HOST, name, Status.FAIL, said, domain.why, fix)
        elif domain.state is State.UNKNOWN:
            fix = (
                f"in the guest: systemctl status magrathea-agent; magrathea doctor there; its channel for {domain.name}"
            )
            yield Check(HOST, name, Status.FAIL, said, domain.why, fix)
        elif domain.state is State.ASLEEP:
            fix = f"nothing; `magrathea domain defrost {domain.name}` brings it back with its jobs"
            yield Check(HOST, name, Status.NOTE, said, domain.why, fix)
        elif not domain.agent and domain.state not in (State.DOWN, State.BOOTING, State.FROZEN):
            fix = "in the guest: systemctl status magrathea-agent; magrathea doctor there"
            yield Check(HOST, name, Status.WARN, said, "its agent is not connected", fix)
        else:
            yield Check(HOST, name, Status.OK, said)
    for number, note in enumerate(snapshot.notes):
        if note in snapshot.limits:
            fix = "nothing; that is so with this driver"
            yield Check(HOST, f"note-{number}", Status.NOTE, f"the driver {snapshot.driver}:", note, fix)
        elif _is_advice_taken(configuration, note):
            fix = "nothing; its `floor_mib` is all of its memory"
            yield Check(HOST, f"note-{number}", Status.NOTE, "the daemon reports:", note, fix)
        else:
            yield Check(HOST, f"note-{number}", Status.WARN, "the daemon reports:", note, "fix it, or see the docs")


def _is_advice_taken(configuration: NodedConfiguration, note: str) -> bool:
    """True if the note says that a domain's memory cannot be moved, and the configuration counts on none of it."""
    tables = configuration.domain.items()
    whole = [name for name, table in tables if table.memory_mib and table.floor_mib >= table.memory_mib]
    return note.endswith(FLOOR_ADVICE) and any(note.startswith(f"domain {name}: ") for name in whole)


def _workers(configuration: NodedConfiguration) -> dict[str, DomainTable]:
    return {name: table for name, table in configuration.domain.items() if table.kind is not Kind.SERVICE}


def memory(c: NodedConfiguration, machine_mib: int) -> Iterator[Check]:
    """Checks that the sizes in the file fit each other and the machine (docs/rules.md, "Memory fit is arithmetic").

    memory(domain) = host - reserve - services - the sum over siblings of (floor + what does not fit into their swap)
    """
    workers = _workers(c)
    if c.host.memory_mib is not None and c.host.memory_mib > machine_mib:
        text = f"`memory_mib` in [host] is {c.host.memory_mib}"
        fix = f"give at most {machine_mib}, or leave it out"
        yield Check(HOST, "memory", Status.FAIL, text, f"the machine has {machine_mib} MiB", fix)
        return
    if all(table.memory_mib == 0 for table in workers.values()):
        yield Check(HOST, "memory", Status.OK, "no domain has `memory_mib`: memory is shared, and not counted")
        return
    total = c.memory_mib - sum(t.memory_mib for t in c.domain.values() if t.kind is Kind.SERVICE)
    for name, table in workers.items():
        siblings = [other for at, other in workers.items() if at != name]
        floors = sum(other.floor_mib for other in siblings)
        stuck = sum(max(0, other.memory_mib - other.floor_mib - other.swap_mib) for other in siblings)
        best, worst = total - floors, total - floors - (stuck if c.host.mode is Mode.EXCLUSIVE else 0)
        wanted = table.memory_mib
        where = f"memory-{name}"
        if wanted > best:
            cause = f"with its siblings' floors only {best} of {total} MiB are left"
            fix = f"lower `memory_mib` of {name} to {max(0, best)}, or the others' `floor_mib`"
            yield Check(HOST, where, Status.FAIL, f"{name} can never have its {wanted} MiB", cause, fix)
        elif wanted > worst:
            cause = f"{stuck} MiB of its siblings' jobs do not fit into their `swap_mib`, so only {worst} MiB are left"
            fix = f"more `swap_mib` for the others, or at most {max(0, worst)} MiB for {name}"
            yield Check(HOST, where, Status.WARN, f"{name} may get less than its {wanted} MiB", cause, fix)
        else:
            yield Check(HOST, where, Status.OK, f"{name} can have its {wanted} MiB")


def swap(c: NodedConfiguration) -> Iterator[Check]:
    """Checks that each guest has swap for the memory of its stopped jobs."""
    for name, table in _workers(c).items():
        if table.kind is Kind.NORMAL and table.memory_mib and not table.swap_mib:
            cause = f"`swap_mib` of {name} is 0, so the memory of its stopped jobs never leaves it"
            fix = f"give the guest a swap device, and set `swap_mib` in [domain.{name}] to its size"
            yield Check(HOST, f"swap-{name}", Status.WARN, f"{name} cannot give up its jobs' memory", cause, fix)


# A guest


def _guest_here(paths: Paths) -> str:
    return f"{paths.agent} is here" if files.exists(paths.agent) else ""


def _guest(paths: Paths) -> Iterator[Check]:
    try:
        config = Config(str(paths.agent))
    except Unusable as error:
        if _is_hidden(paths.agent):
            yield unseen(GUEST, "configuration", paths.agent)
            return
        fix = f"fix {paths.agent}; magrathea-agent --check --config {paths.agent}"
        yield Check(GUEST, "configuration", Status.FAIL, "the agent's file cannot be used", str(error), fix)
        return
    yield Check(GUEST, "configuration", Status.OK, f"{paths.agent} can be used")
    yield channel(config)
    yield from agent_socket(Path(config.socket))
    yield writable(GUEST, "state", Path(config.state).parent, least_mib=10)
    yield from _mom(paths)
    yield guest_swap(psutil.virtual_memory().total // 2**20, swap_of_guest())
    yield oom_killers.check()


def channel(config: Config) -> Check:
    path = Path(config.channel_path)
    if not files.exists(path):
        what = "socket" if config.channel_kind == "unix" else "port"
        fix = "is magrathea-noded up on the host?" if what == "socket" else "add the port to the domain's definition"
        return Check(GUEST, "channel", Status.FAIL, "there is no channel to the host", f"no {what} {path}", fix)
    if config.channel_kind == "unix" and not _is_socket(path):
        fix = (
            "remove it, then restart magrathea-noded on the host; for a container: is the host's directory bound there?"
        )
        return Check(GUEST, "channel", Status.FAIL, "there is no channel to the host", f"{path} is no socket", fix)
    if not os.access(path, os.R_OK | os.W_OK):
        if os.geteuid() != 0:
            return unseen(GUEST, "channel", path)
        fix = "run this as root, or fix its mode"
        return Check(
            GUEST, "channel", Status.FAIL, f"{path} cannot be used", f"not permitted for uid {os.geteuid()}", fix
        )
    return Check(GUEST, "channel", Status.OK, f"{config.channel} is there")


def agent_socket(path: Path) -> Iterator[Check]:
    """Checks that the agent answers, only to root and its own user, and that it is connected to the host."""
    start = "systemctl start magrathea-agent, then journalctl -u magrathea-agent"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        answer = _ping(path)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and is_closed(error):
            yield unseen(GUEST, "agent", path)
            return
        cause = "no answer" if isinstance(error, TimeoutError) else str(error)
        yield Check(GUEST, "agent", Status.FAIL, "the agent does not answer: jobs are refused here", cause, start)
        return
    yield Check(GUEST, "agent", Status.OK, f"it answers at {path}")
    if mode & 0o077:
        cause = f"its mode is {mode:04o}, so other users can use it"
        yield Check(GUEST, "agent-socket", Status.WARN, f"{path} is open", cause, "restart the agent; see its umask")
    else:
        yield Check(GUEST, "agent-socket", Status.OK, f"only root and the agent can use {path}")
    if answer.get("connected") is True:
        yield Check(GUEST, "connected", Status.OK, "the agent is connected to the node daemon")
    else:
        fix = "on the host: magrathea doctor; is this domain in noded.toml, by the name of its channel?"
        cause = "no hello from the daemon came through the channel"
        yield Check(GUEST, "connected", Status.FAIL, "no connection to the host: jobs are refused", cause, fix)


def _ping(path: Path) -> dict[str, Any]:
    """The agent's answer to a ping. Raises OSError, ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)
        connection.connect(str(path))
        connection.sendall(b'{"op":"ping"}\n')
        line = b""
        while not line.endswith(b"\n") and len(line) < MAX_ANSWER_BYTES:
            part = connection.recv(4096)
            if not part:
                break
            line += part
    answer = json.loads(line)
    if not isinstance(answer, dict) or answer.get("ok") is not True:
        raise ValueError(f"it says {line[:200]!r}")
    return answer


def _mom(paths: Paths) -> Iterator[Check]:
    conf = of_pbs_conf(paths.pbs)
    if conf.get("PBS_START_MOM") != "1":
        fix = f"PBS_START_MOM=1 in {paths.pbs}; or remove {paths.agent}, if this is no domain"
        yield Check(
            GUEST, "mom", Status.WARN, "this machine starts no MoM", f"{paths.pbs} disables it, or does not exist", fix
        )
        return
    home = Path(conf.get("PBS_HOME", "/var/spool/pbs")) / "mom_priv"
    if os.geteuid() != 0 and not os.access(home, os.R_OK | os.X_OK):
        yield unseen(GUEST, "mom", home)
        return
    try:
        pid = int(files.read_named(home / "mom.lock", MAX_LOCK_BYTES).strip())
        running = psutil.pid_exists(pid)
    except (OSError, ValueError, OverflowError):
        running = False
    if running:
        yield Check(GUEST, "mom", Status.OK, "pbs_mom runs")
    else:
        yield Check(GUEST, "mom", Status.FAIL, "pbs_mom does not run", f"{home}/mom.lock names no process", "start PBS")
    yield from suspend_signal(home / "config")
    if files.exists(home / "hooks/magrathea_mom.PY"):
        yield Check(GUEST, "mom-hook", Status.OK, "MoM has the hook")
    else:
        cause = f"{home}/hooks/magrathea_mom.PY does not exist"
        fix = "on the server: magrathea pbs check; a new hook comes within a minute"
        yield Check(GUEST, "mom-hook", Status.FAIL, "MoM has no hook: jobs start without a claim", cause, fix)


STOPS, CONTINUES = ("STOP", "TSTP", "TTIN", "TTOU"), ("CONT",)


def suspend_signal(path: Path) -> Iterator[Check]:
    """Whether MoM's own signals for suspend and resume go well with a job that the agent has stopped."""
    try:
        lines = files.read_named(path, MAX_MOM_CONFIG_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return  # MoM runs without one, and then suspends by SIGSTOP
    given = next((words[1:3] for line in reversed(lines) if (words := line.split())[:1] == ["$suspendsig"]), None)
    if given is None:
        return
    names = [_signal_name(word) for word in given]
    if names[:1] and names[0] in STOPS and all(name in CONTINUES for name in names[1:]):
        yield Check(GUEST, "suspendsig", Status.OK, f"MoM suspends by SIG{names[0]}")
        return
    cause = f"{path}: $suspendsig {' '.join(given)}. The agent has stopped the job already, so such a signal waits"
    cause += " behind the stop, and reaches the job when it continues; a program that does not handle it dies then"
    fix = f"remove $suspendsig from {path} and restart pbs_mom; a job asks for a signal by MAGRATHEA_SIGNAL"
    yield Check(GUEST, "suspendsig", Status.WARN, "MoM suspends by a signal that may end jobs", cause, fix)


def _signal_name(word: str) -> str:
    """A signal as MoM's configuration names it: with or without SIG, or a number."""
    try:
        return signal.Signals(int(word)).name[3:]
    except ValueError:
        return word.upper().removeprefix("SIG")


def guest_swap(memory_mib: int, found: Swap) -> Check:
    if found.real + found.zram == 0:
        cause = "this guest has no swap"
        fix = "a swap device on fast storage, and `swap_mib` in noded.toml; not needed if memory never moves"
        return Check(GUEST, "swap", Status.NOTE, "stopped jobs keep their memory", cause, fix)
    beside = f"beside {memory_mib} MiB of memory"
    if found.real == 0:
        share = f"{round(100 * found.share())} % of it stays in memory"
        known = "by what it holds now" if found.zram_holds << 20 >= TELLING_BYTES else "assumed, it is nearly empty"
        cause = f"all {found.zram} MiB of its swap are zram, in its own memory: {share} ({known}), more if jobs' data"
        cause = f"{cause} cannot be compressed"
        fix = f"a swap disk; with zram alone `swap_mib` of this domain in noded.toml is at most {found.takes()}"
        return Check(GUEST, "swap", Status.WARN, "stopped jobs keep a part of their memory", cause, fix)
    zram = f" and {found.zram} MiB of zram, of which at most {found.takes() - found.real} count" if found.zram else ""
    return Check(GUEST, "swap", Status.OK, f"{found.real} MiB of swap{zram} {beside}")


host = Part(HOST, _host_here, _host)
guest = Part(GUEST, _guest_here, _guest)
