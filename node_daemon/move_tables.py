"""[visitors] and [moves] of noded.toml: whose domains come here, and how domains leave."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal, Protocol

import msgspec

from magrathea.configuration import AbsolutePath, Problem
from magrathea.core.arrivals import Rules

Transport = Literal["tls", "ssh", "tcp", "unix"]

_MACHINE = r"[A-Za-z0-9\[][A-Za-z0-9\[\]:._-]*"
_BY_NETWORK = rf"qemu\+(tls|ssh|tcp)://([a-z_][a-z0-9_-]*@)?{_MACHINE}/(system|session)"
_BY_SOCKET = r"qemu\+unix:///(system|session)\?socket=/[A-Za-z0-9_./-]+"
LIBVIRT = rf"^({_BY_NETWORK}|{_BY_SOCKET})$"
"""A URI has no other parameters: some of libvirt's run a program on the machine that connects."""
MEMORY = rf"^(tcp://{_MACHINE}|unix:///[A-Za-z0-9_./-]+)$"
_EMPTY = "(^$)|"

Host = Annotated[str, msgspec.Meta(min_length=1, max_length=64, description="a host's `name` in quotes")]
LibvirtAddress = Annotated[
    str,
    msgspec.Meta(
        pattern=_EMPTY + LIBVIRT,
        max_length=255,
        description='"qemu+tls://NAME/system", or the same with ssh or tcp; for a socket "qemu+unix:///system?socket=/PATH"',
    ),
]
MemoryAddress = Annotated[
    str, msgspec.Meta(pattern=_EMPTY + MEMORY, max_length=255, description='"tcp://ADDRESS", or "unix:///PATH"')
]
Renamed = Annotated[
    str, msgspec.Meta(pattern=r"^/[^=]*=/[^=]*$", max_length=4096, description='"/FOLDER-THERE=/FOLDER-HERE"')
]


class VisitorsTable(msgspec.Struct, kw_only=True, frozen=True):
    """[visitors]. `hosts`: whose domains may come here; without any nobody comes. `address`: this host's libvirt, as
    the libvirtds of those hosts reach it. `memory_address`, `disks_address`: where QEMU receives memory and disks;
    empty: the machine of `address`. `disks`: folders in which visitors' disks may be made. `images`: folders with the
    images of which these may be overlays. `renamed`: folders that have another name here than where they come from.
    """

    hosts: list[Host] = []
    address: LibvirtAddress = ""
    memory_address: MemoryAddress = ""
    disks_address: MemoryAddress = ""
    disks: list[AbsolutePath] = []
    images: list[AbsolutePath] = []
    renamed: list[Renamed] = []


class MovesTable(msgspec.Struct, kw_only=True, frozen=True):
    """[moves]. `hosts`: where domains of this host may move to; without any none does. `at_once`: how many may be on
    their way, from here or to here. `shared`: folders that all hosts see under the same path. Disks elsewhere are
    copied with the domain if `copy_disks`. `same_cpus`: all hosts have the same CPUs. `transports`: by which of
    libvirt's ways this host reaches others. `encrypted`: QEMU encrypts what it sends. `bandwidth_mib_s`: at most; 0: no
    limit. A move that is not granted and prepared within `patience_s` is given up.
    """

    hosts: list[Host] = []
    at_once: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    shared: list[AbsolutePath] = []
    copy_disks: bool = False
    same_cpus: bool = False
    transports: list[Transport] = msgspec.field(default_factory=lambda: ["tls", "ssh"])
    encrypted: bool = False
    bandwidth_mib_s: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 0
    patience_s: Annotated[float, msgspec.Meta(ge=5, le=86400)] = 300.0


class HasMoves(Protocol):
    """What this file needs of a configuration."""

    @property
    def visitors(self) -> VisitorsTable: ...

    @property
    def moves(self) -> MovesTable: ...


def rules(c: HasMoves) -> Rules:
    """Which visitors this host takes, for the core."""
    return Rules(welcome=frozenset(c.visitors.hosts), most=c.moves.at_once, patience_s=c.moves.patience_s)


def mistakes(c: HasMoves, host: str, driver: str, hubs: int) -> Iterable[Problem]:
    """What no type can express. `driver`: the driver's name, with libvirt's its URI. `hubs`: the number of hubs."""
    for section, hosts in (("visitors", c.visitors.hosts), ("moves", c.moves.hosts)):
        where = (section, "hosts")
        if not hosts:
            continue
        if not driver.startswith("qemu"):
            text = f"only virtual machines of libvirt's QEMU move between hosts, and this host's driver is {driver}"
            yield Problem(where, f"{text}; remove `hosts` in [{section}]")
        if hubs != 1:
            text = f"moves need one hub, whose books say which host owns a domain; `endpoints` in [hub] names {hubs}"
            yield Problem(where, f"{text}; name one, or remove `hosts` in [{section}]")
        if host in hosts:
            yield Problem(where, f"`hosts` in [{section}] names this host itself, {host}; remove it")
    if c.visitors.hosts and not c.visitors.address:
        text = "`address` in [visitors] is missing: by it the other hosts' libvirtds reach this one"
        yield Problem(("visitors", "address"), f'{text}; for example "qemu+tls://{host}/system"')


def unreachable(uri: str, memory_uris: Iterable[str], transports: Iterable[str]) -> str:
    """Why this host does not go by these addresses of another one; empty if it does."""
    found = re.fullmatch(LIBVIRT, uri)
    ways = {found[0].removeprefix("qemu+").split(":")[0]} if found else {""}
    for memory in filter(None, memory_uris):
        if not re.fullmatch(MEMORY, memory):
            return f"its address for memory is {memory[:80]!r}"
        ways |= {"unix"} if memory.startswith("unix") else set()
    if wrong := ways - set(transports):
        return f"its address is {uri[:80]!r}, and `transports` in [moves] has no {' or '.join(sorted(wrong)) or 'such'}"
    return ""
