"""The node daemon's configuration: one strict TOML file (deploy/noded.toml shows it whole).

`read` returns a `NodedConfiguration` or raises ConfigurationError with every mistake. `changes` tells what a reload may
take over while jobs run, and what needs a restart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import psutil

from magrathea import places
from magrathea.configuration import AbsolutePath, Problem, configuration_error, parse, read_text, spelled
from magrathea.core import events as ev
from magrathea.core.model import GiveWay, Host, Kind, Limits, Mode
from magrathea.stop_warnings import LONGEST_S, WITHOUT_PROLOGUE_S
from magrathea.surroundings import SOCKET_PATH_BYTES

from .move_tables import MovesTable as MovesTable
from .move_tables import VisitorsTable as VisitorsTable
from .move_tables import mistakes as mistakes_of_moves
from .switch.paging import MemorySettings

DEFAULT_PATH = Path(places.NODED_CONFIGURATION)

MIN_RUN_S = 5.0
"""With less, a stream of claims could keep a job from ever running (docs/rules.md, "Protection from thrashing")."""

Cpus = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Mib = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=10 * 365 * 86400)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=10 * 365 * 86400)]
Name = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="a name in quotes: at most 64 letters, digits, `_`, `.`, `-`, first a letter or digit",
    ),
]
OptionalPath = Annotated[
    str, msgspec.Meta(pattern=r"^(/|$)", max_length=4096, description='a path in quotes that begins with /, or ""')
]
Endpoint = Annotated[
    str,
    msgspec.Meta(pattern=r"^(ipc://.+|tcp://.+:[0-9]+)$", description='"ipc:///PATH" or "tcp://HOST:PORT" of a hub'),
]
Uri = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(qemu|lxc|xen|test)(\+[a-z]+)?://",
        max_length=4096,
        description="libvirt's URI in quotes, which begins with qemu://, xen:// or lxc://",
    ),
]


class HostTable(msgspec.Struct, kw_only=True, frozen=True):
    """[host]. `cpus`, `memory_mib`: None for all that the machine has. `preempted_cpu_percent`: 100 is one CPU.

    For the libvirt driver: `uri`, and `qemu_user`, name or number of the user that QEMU runs as, who must reach the
    guest channels. If it is empty, that is libvirt-qemu or qemu if one of them exists, else the daemon's own user.

    Memory moves in steps of `memory_step_mib`. A guest that gives keeps `memory_margin_mib` available for its MoM and
    agent. A move takes at most `memory_time_limit_s`.
    """

    name: Name
    mode: Mode
    cpus: Cpus | None = None
    memory_mib: Mib | None = None
    reserve_mib: Mib = 512
    driver: Literal["local", "libvirt"] = "local"
    uri: Uri = "qemu:///system"
    qemu_user: Annotated[str, msgspec.Meta(max_length=64)] = ""
    preempted_cpu_percent: Annotated[int, msgspec.Meta(ge=1, le=100 * 65536)] = 10
    memory_step_mib: Annotated[int, msgspec.Meta(ge=16, le=65536)] = 256
    memory_margin_mib: Annotated[int, msgspec.Meta(ge=8, le=65536)] = 32
    memory_time_limit_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0


class LimitsTable(msgspec.Struct, kw_only=True, frozen=True):
    """[limits]: see magrathea.core.model.Limits. `allow_short_min_run` is meant for tests and the demo.
    `FORMER`: keys of earlier snapshots, and what to do about each.
    """

    FORMER: ClassVar[dict[str, str]] = {
        "warn_signal": "it killed jobs that had not asked for a signal. Remove it; a job asks by MAGRATHEA_SIGNAL",
        "warn_s": "a job itself asks how long it wants to be warned. Remove it, or grant more by `longest_warning_s`",
    }

    agent_silent_s: PositiveSeconds = 30.0
    claim_s: PositiveSeconds = 60.0
    min_run_s: Seconds = 5.0
    young_s: Seconds = 60.0
    linger_s: Seconds = 0.0
    max_preemptions: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    max_preempted_s: Seconds = 0.0
    overtaken_s: PositiveSeconds = 600.0
    longest_warning_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_S)] = WITHOUT_PROLOGUE_S
    give_way: GiveWay = GiveWay.SWAP
    allow_short_min_run: bool = False


class HubEndpointsTable(msgspec.Struct, kw_only=True, frozen=True):
    """[hub]. Without endpoints there is no hub, and so no preemption."""

    endpoints: list[Endpoint] = []
    key_file: OptionalPath = ""
    hub_key_file: OptionalPath = ""


class PathsTable(msgspec.Struct, kw_only=True, frozen=True):
    """[paths]. `scripts`: the folder of the site's own scripts (docs/site-scripts.md)."""

    run_dir: AbsolutePath = places.NODED_RUN_DIR
    state_dir: AbsolutePath = places.NODED_STATE_DIR
    scripts: OptionalPath = "/etc/magrathea/hooks.d/host"
    script_time_limit_s: PositiveSeconds = 30.0


class JournalTable(msgspec.Struct, kw_only=True, frozen=True):
    """[journal]. History older than `keep_days` is pruned. Facts and preempted seconds are kept for good."""

    keep_days: Annotated[float, msgspec.Meta(gt=0, le=36500)] = 30.0


class ControlTable(msgspec.Struct, kw_only=True, frozen=True):
    """[control]. Besides root and the daemon's own user, members of `group` may send commands that change something."""

    group: Annotated[str, msgspec.Meta(max_length=64)] = ""


AtShutdown = Literal["sleep", "leave"]
"""What becomes of a domain when the machine shuts down: it is saved to disk with its jobs, or nothing is done."""


class ShutdownTable(msgspec.Struct, kw_only=True, frozen=True):
    """[shutdown]: what is put to sleep when the machine shuts down. `domains`: those that take jobs. `services`: those
    of kind service. No save begins later than `time_s` after the shutdown has begun. Domains are saved
    although PBS has not suspended all of their jobs if that takes longer than `unbooked_after_s`. `at_once` domains are
    saved, and later restored, at the same time.
    """

    domains: AtShutdown = "leave"
    services: AtShutdown = "leave"
    time_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0
    unbooked_after_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    at_once: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1


class LocalTable(msgspec.Struct, kw_only=True, frozen=True):
    """[domain.NAME.local], for the local driver. `pid_file` holds the pid of the process that is the domain."""

    pid_file: AbsolutePath


class LibvirtTable(msgspec.Struct, kw_only=True, frozen=True):
    """[domain.NAME.libvirt], for the libvirt driver. `name`: libvirt's name of the domain, default NAME."""

    name: Annotated[str, msgspec.Meta(max_length=255)] = ""


class DomainTable(msgspec.Struct, kw_only=True, frozen=True):
    """[domain.NAME]. `vnode`: its name in PBS, default NAME. `cpus`: default the host's. A boot has failed if the agent
    has not registered within `boot_time_limit_s`. A guest that has not turned itself off within
    `shutdown_time_limit_s` is ended. `at_shutdown`: for this domain instead of what [shutdown] has for its kind.
    """

    kind: Kind
    vnode: Annotated[str, msgspec.Meta(max_length=255)] = ""
    cpus: Cpus | None = None
    memory_mib: Mib = 0
    floor_mib: Mib = 0
    swap_mib: Mib = 0
    boot_time_limit_s: PositiveSeconds = 300.0
    shutdown_time_limit_s: PositiveSeconds = 300.0
    at_shutdown: AtShutdown | None = None
    local: LocalTable | None = None
    libvirt: LibvirtTable | None = None


class NodedConfiguration(msgspec.Struct, kw_only=True, frozen=True):
    """The whole file."""

    host: HostTable
    limits: LimitsTable = LimitsTable()
    hub: HubEndpointsTable = HubEndpointsTable()
    paths: PathsTable = PathsTable()
    journal: JournalTable = JournalTable()
    control: ControlTable = ControlTable()
    shutdown: ShutdownTable = ShutdownTable()
    visitors: VisitorsTable = VisitorsTable()
    moves: MovesTable = MovesTable()
    domain: dict[str, DomainTable] = {}

    @property
    def run_dir(self) -> Path:
        return Path(self.paths.run_dir)

    @property
    def journal_path(self) -> Path:
        return Path(self.paths.state_dir) / places.JOURNAL

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    @property
    def cpus(self) -> int:
        return self.host.cpus if self.host.cpus is not None else (psutil.cpu_count() or 1)

    @property
    def memory_mib(self) -> int:
        """What all domains together may have: the host's memory without the reserve."""
        total = self.host.memory_mib if self.host.memory_mib is not None else psutil.virtual_memory().total // 2**20
        return max(0, total - self.host.reserve_mib)

    def guest_socket(self, domain: str) -> Path:
        """The socket to which the domain's agent connects, or QEMU in its place.

        A container gets a folder of its own, which is bound into it. A bound socket would not survive a restart of the
        daemon, and a common folder would let the container speak for others.
        """
        if self.host.driver == "libvirt" and self.host.uri.startswith("lxc"):
            return self.run_dir / "guest" / domain / "agent.sock"
        return self.run_dir / "guest" / f"{domain}.sock"

    def libvirt_name(self, domain: str) -> str:
        table = self.domain[domain]
        return table.libvirt.name if table.libvirt is not None and table.libvirt.name else domain

    def sleeps_at_shutdown(self, domain: str) -> bool:
        """Whether the domain is put to sleep when the machine shuts down."""
        table = self.domain[domain]
        of_kind = self.shutdown.services if table.kind is Kind.SERVICE else self.shutdown.domains
        return (table.at_shutdown or of_kind) == "sleep"

    def drives(self) -> object:
        """What a driver is made from."""
        return [
            (name, table.kind, table.local, table.libvirt, table.kind is Kind.SERVICE and self.sleeps_at_shutdown(name))
            for name, table in sorted(self.domain.items())
        ]

    def vnode(self, domain: str) -> str:
        table = self.domain.get(domain)
        return table.vnode if table and table.vnode else domain

    def core_limits(self) -> Limits:
        values = msgspec.structs.asdict(self.limits)
        del values["allow_short_min_run"]
        return Limits(**values, preempted_cpu_percent=self.host.preempted_cpu_percent)

    def memory_settings(self) -> MemorySettings:
        host = self.host
        return MemorySettings(host.memory_step_mib, host.memory_margin_mib, host.memory_time_limit_s)

    def reconfigured(self, now: float) -> ev.Reconfigured:
        """All that the core needs to know of this configuration, as an event."""
        domains = tuple(
            ev.ConfiguredDomain(
                name=name,
                kind=table.kind,
                cpus=self.cpus if table.cpus is None else table.cpus,
                memory_mib=table.memory_mib,
                floor_mib=table.floor_mib,
                swap_mib=table.swap_mib,
                boot_limit_s=table.boot_time_limit_s,
            )
            for name, table in sorted(self.domain.items())
        )
        return ev.Reconfigured(
            now, self.host.name, self.host.mode, self.cpus, self.memory_mib, self.core_limits(), domains
        )


def read(path: Path) -> NodedConfiguration:
    """The configuration in `path`. Raises ConfigurationError with every mistake in it."""
    text = read_text(path)
    configuration, tables = parse(text, NodedConfiguration, str(path))
    problems = list(_check(configuration, tables))
    if problems:
        raise configuration_error(problems, text, str(path))
    return configuration


def _check(c: NodedConfiguration, tables: dict[str, Any]) -> Iterable[Problem]:
    """Mistakes that no type can express."""
    yield from _check_host(c)
    yield from _check_hub(c)
    yield from _check_own(c)
    driver = c.host.uri if c.host.driver == "libvirt" else c.host.driver
    yield from mistakes_of_moves(c, c.host.name, driver, len(c.hub.endpoints))
    for name, table in c.domain.items():
        where = ("domain", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            yield Problem(where, f"domain name {name!r}: at most 64 letters, digits, `_`, `.`, `-`; rename it")
        if len(path := str(c.guest_socket(name)).encode()) > SOCKET_PATH_BYTES:
            text = f"the socket path of {name} has {len(path)} bytes, {SOCKET_PATH_BYTES} are possible"
            yield Problem(where, f"{text}; shorten `run_dir`")
        if table.cpus is not None and table.cpus > c.cpus:
            text = f"{spelled((*where, 'cpus'))} = {table.cpus}: the host has {c.cpus}; give at most that"
            yield Problem((*where, "cpus"), text)
        for key, value in (("memory_mib", table.memory_mib), ("floor_mib", table.floor_mib)):
            if value > c.memory_mib:
                text = f"{spelled((*where, key))} = {value}: domains have {c.memory_mib} MiB together"
                yield Problem((*where, key), f"{text}; give at most that")
        if table.memory_mib and table.floor_mib > table.memory_mib:
            text = f"{spelled((*where, 'floor_mib'))} = {table.floor_mib} is above its `memory_mib` {table.memory_mib}"
            yield Problem((*where, "floor_mib"), text)
        if c.host.driver == "local" and table.local is None and table.kind is not Kind.SERVICE:
            text = f"{spelled((*where, 'local.pid_file'))} is missing; the local driver finds the domain by it"
            yield Problem(where, text)


def _check_own(c: NodedConfiguration) -> Iterable[Problem]:
    """What belongs to one domain must not be another's, in whichever way it is written."""
    owners: dict[tuple[str, str], str] = {}
    for name, table in c.domain.items():
        own = [
            ("vnode", "have the same vnode", c.vnode(name), c.vnode(name).lower())
        ]  # MoMs' hosts, so case is ignored
        if c.host.driver == "libvirt":
            own.append(("libvirt.name", "both are libvirt's", c.libvirt_name(name), c.libvirt_name(name)))
        elif table.local is not None:
            path = table.local.pid_file
            own.append(("local.pid_file", "have the same pid file", path, os.path.realpath(path)))
        for key, words, shown, compared in own:
            if (other := owners.setdefault((key, compared), name)) != name:
                text = f"domains {other} and {name} {words} {shown!r}; give each its own"
                yield Problem(("domain", name, *key.split(".")), text)


def _check_host(c: NodedConfiguration) -> Iterable[Problem]:
    workers = [t for t in c.domain.values() if t.kind is not Kind.SERVICE]
    services = [t for t in c.domain.values() if t.kind is Kind.SERVICE]
    if not workers:
        yield Problem(("domain",), "no domain takes jobs; add a [domain.NAME] of kind normal or priority")
    if any(t.cpus is None for t in services):
        text = "a service domain needs its own `cpus`: they are taken from the host's"
        yield Problem(("domain",), text)
    elif services and sum(t.cpus or 0 for t in services) >= c.cpus:
        yield Problem(("host", "cpus"), f"the services take all of the host's {c.cpus} CPUs; give them fewer")
    if sum(t.memory_mib for t in services) + sum(t.floor_mib for t in workers) > c.memory_mib:
        text = f"floors and services' memory together exceed the {c.memory_mib} MiB that domains may have"
        yield Problem(("host",), f"{text}; lower `floor_mib` or `reserve_mib`")
    containers = c.host.driver == "libvirt" and c.host.uri.startswith("lxc")
    saves = c.host.driver == "libvirt" and not containers
    what = "libvirt does not save containers" if containers else "the local driver does not save domains"
    if not saves and (names := list(filter(c.sleeps_at_shutdown, c.domain))):
        text = f"{', '.join(names)} cannot sleep when the machine shuts down: {what} to disk"
        yield Problem(("shutdown",), f"{text}; remove `domains`, `services` and `at_shutdown`")
    if not saves and c.limits.give_way is not GiveWay.SWAP:
        text = f'`give_way` in [limits] = "{c.limits.give_way}": {what} to disk'
        yield Problem(("limits", "give_way"), f'{text}; only "swap" is possible here')
    if c.limits.min_run_s < MIN_RUN_S and not c.limits.allow_short_min_run:
        text = f"`min_run_s` in [limits] = {c.limits.min_run_s:g}: at least {MIN_RUN_S:g}"
        yield Problem(("limits", "min_run_s"), f"{text} (tests and demo: `allow_short_min_run = true`)")
    if len(path := str(c.control_socket).encode()) > SOCKET_PATH_BYTES:
        text = f"the control socket's path has {len(path)} bytes, {SOCKET_PATH_BYTES} are possible; shorten `run_dir`"
        yield Problem(("paths", "run_dir"), text)


def _check_hub(c: NodedConfiguration) -> Iterable[Problem]:
    tcp = [e for e in c.hub.endpoints if e.startswith("tcp://")]
    for key, value in (("key_file", c.hub.key_file), ("hub_key_file", c.hub.hub_key_file)):
        if tcp and not value:
            text = f"{spelled(('hub', key))} is missing: {tcp[0]} is never used without keys"
            yield Problem(("hub", "endpoints"), f"{text}; `magrathea keys` makes them")
    if c.hub.key_file and c.hub.key_file == c.hub.hub_key_file:
        text = (
            "`key_file` and `hub_key_file` in [hub] are the same file; the first is this host's, the second the hub's"
        )
        yield Problem(("hub", "hub_key_file"), text)
    if len(set(c.hub.endpoints)) < len(c.hub.endpoints):
        yield Problem(("hub", "endpoints"), "`endpoints` in [hub] names one twice; remove it")


FIXED: dict[str, tuple[str, ...]] = {
    "host": ("name", "mode", "driver", "uri", "qemu_user"),
    "hub": ("endpoints", "key_file", "hub_key_file"),
    "paths": ("run_dir", "state_dir"),
}
"""What needs a restart: sockets, files and connections in use, and the mode by which jobs were placed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload takes over (`configuration`), and a sentence for each thing that it keeps (`kept`)."""

    configuration: NodedConfiguration
    kept: tuple[str, ...]


def changes(old: NodedConfiguration, new: NodedConfiguration, host: Host) -> Changes:
    """What of `new` may replace `old` while `host` works."""
    kept: list[str] = []
    for section, keys in FIXED.items():
        before = getattr(old, section)
        after = getattr(new, section)
        for key in keys:
            if getattr(before, key) != getattr(after, key):
                value = getattr(before, key)
                kept.append(f"{spelled((section, key))} stays {value!r} until magrathea-noded is restarted")
                after = msgspec.structs.replace(after, **{key: value})
        new = msgspec.structs.replace(new, **{section: after})
    domains = dict(new.domain)
    for name, table in old.domain.items():
        present = host.domain(name)
        if present is None or not (present.jobs or present.sleep):
            continue
        why = f"it has {len(present.jobs)} job(s); drain it first"
        if present.sleep is not None:
            why = "it sleeps on disk; `magrathea domain defrost` it first"
        if name not in domains:
            kept.append(f"[domain.{name}] stays: {why}")
            domains[name] = table
        elif domains[name].kind is not table.kind:
            kept.append(f"`kind` in [domain.{name}] stays {table.kind.value}: {why}")
            domains[name] = msgspec.structs.replace(domains[name], kind=table.kind)
    return Changes(msgspec.structs.replace(new, domain=domains), tuple(kept))
