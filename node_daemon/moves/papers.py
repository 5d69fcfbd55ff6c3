"""What both hosts of a move tell each other through the core, which does not read it: a domain's papers, and its room.

Rule 1: the other host is not trusted. Papers are refused if they name what belongs to another domain of this host. A
room is refused if its addresses are not of the kinds that this host's configuration permits.
Rule 2: a text that cannot be read is a reason to refuse, never an error.
"""

from __future__ import annotations

import logging

import msgspec

from magrathea.core.model import Domain
from magrathea.core.moves import Moves
from magrathea.decoding import UNDECODABLE
from magrathea.move_messages import MOST_PAPERS, MOST_TEXT
from magrathea.surroundings import SOCKET_PATH_BYTES

from ..configuration import DomainTable, LibvirtTable, NodedConfiguration
from ..hypervisor.moving import Arrival, Departure, Destination, Premises
from ..move_tables import VisitorsTable, unreachable

log = logging.getLogger(__name__)


class PapersRefused(Exception):
    """The other host's text cannot be read, or is refused; the text says why."""


class Papers(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """From the source. `departure`: what the domain needs. `table`: its configuration there, whole."""

    departure: Departure
    table: DomainTable

    def encoded(self) -> str:
        """Raises PapersRefused: it is longer than a message may be."""
        text = msgspec.json.encode(self).decode()
        if len(text) > MOST_PAPERS:
            raise PapersRefused(f"its disks and devices need {len(text)} letters; {MOST_PAPERS} are possible")
        return text


class Room(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """From the target. `paths`, `made`: see `moving.Arrival`. The rest: how the source reaches it."""

    uri: str
    memory_uri: str = ""
    disks_uri: str = ""
    paths: dict[str, str] = {}
    made: list[str] = []

    @property
    def arrival(self) -> Arrival:
        return Arrival(self.paths, tuple(self.made))

    def encoded(self) -> str:
        """Raises PapersRefused: it is longer than a word may be."""
        text = msgspec.json.encode(self).decode()
        if len(text) > MOST_TEXT:
            raise PapersRefused(f"its paths here need {len(text)} letters; {MOST_TEXT} are possible; use shorter names")
        return text


_papers = msgspec.json.Decoder(Papers)
_room = msgspec.json.Decoder(Room)


def papers_of(c: NodedConfiguration, domain: str, departure: Departure) -> Papers:
    """The papers of a domain that leaves this host."""
    table = c.domain[domain]
    whole = msgspec.structs.replace(
        table,
        vnode=c.vnode(domain),
        cpus=c.cpus if table.cpus is None else table.cpus,
        local=None,
        libvirt=LibvirtTable(name=departure.name),
    )
    return Papers(departure=departure, table=whole)


def read_papers(text: str) -> Papers:
    """Raises PapersRefused."""
    try:
        return _papers.decode(text)
    except UNDECODABLE as error:
        raise PapersRefused(f"its papers cannot be read: {error}") from error


def read_room(text: str) -> Room:
    """Raises PapersRefused."""
    try:
        return _room.decode(text)
    except UNDECODABLE as error:
        raise PapersRefused(f"what its new host has prepared cannot be read: {error}") from error


def room_of(visitors: VisitorsTable, arrival: Arrival) -> Room:
    """What this host tells the source of an arrival that it has prepared."""
    return Room(
        uri=visitors.address,
        memory_uri=visitors.memory_address,
        disks_uri=visitors.disks_address,
        paths=dict(arrival.paths),
        made=list(arrival.made),
    )


def destination(c: NodedConfiguration, room: Room) -> Destination:
    """The way to the domain's new host. Raises PapersRefused: this host does not go by it."""
    moves = c.moves
    if why := unreachable(room.uri, (room.memory_uri, room.disks_uri), moves.transports):
        raise PapersRefused(why)
    return Destination(
        room.uri,
        room.memory_uri,
        room.disks_uri,
        encrypted=moves.encrypted,
        bandwidth_mib_s=moves.bandwidth_mib_s or None,
        waits=True,
    )


def premises(c: NodedConfiguration, domain: str) -> Premises:
    """How this host arranges its files for a domain that comes."""
    visitors = c.visitors
    renamed = dict(one.split("=", 1) for one in visitors.renamed)
    return Premises(str(c.guest_socket(domain)), tuple(visitors.disks), tuple(visitors.images), renamed)


def unlike_facts(papers: Papers, facts: Domain) -> str:
    """How the papers differ from the facts, by which the domain was found to fit; empty if they do not."""
    table = papers.table
    compared = (
        ("kind", table.kind, facts.kind),
        ("cpus", table.cpus, facts.cpus),
        ("memory_mib", table.memory_mib, facts.memory_mib),
        ("floor_mib", table.floor_mib, facts.floor_mib),
    )
    what = [
        f"`{name}` is {said} in its papers and {is_so} in its facts" for name, said, is_so in compared if said != is_so
    ]
    return ", ".join(what)


def unacceptable(c: NodedConfiguration, domain: str, papers: Papers) -> str:
    """Why this host refuses a domain with these papers; empty if it does not."""
    name, vnode = papers.departure.name, papers.table.vnode or domain
    others = [other for other in c.domain if other != domain]
    for other in others:
        if c.libvirt_name(other) == name:
            return f"its name in libvirt, {name}, is that of this host's domain {other}"
        if c.vnode(other).lower() == vnode.lower():
            return f"its vnode {vnode} is that of this host's domain {other}"
    if vnode.lower() != domain.lower():
        return f"its vnode is {vnode}; only a domain whose vnode has its name moves"
    if domain in c.domain and c.libvirt_name(domain) != name:
        return f"its name in libvirt is {name}, and this host's configuration says {c.libvirt_name(domain)}"
    if not papers.departure.uuid:
        return "its papers name no UUID"
    if len(path := str(c.guest_socket(domain)).encode()) > SOCKET_PATH_BYTES:
        return f"its socket's path would have {len(path)} bytes, {SOCKET_PATH_BYTES} are possible; shorten `run_dir`"
    return ""


def with_visitors(c: NodedConfiguration, moves: Moves) -> NodedConfiguration:
    """The configuration, with a table for each visitor that it does not name."""
    found: dict[str, DomainTable] = {}
    for visitor in moves.visitors:
        if visitor.name in c.domain or not visitor.papers:
            continue
        try:
            table = read_papers(visitor.papers).table
        except PapersRefused as error:
            log.error("%s came here from another host, and is not watched: %s", visitor.name, error)
            continue
        found[visitor.name] = table
    return msgspec.structs.replace(c, domain={**c.domain, **found}) if found else c
