"""The messages about moves between hosts and hub (docs/moves.md), with their types and bounds.

They are among those that messages.py decodes. A word, a record and a parcel are values of the core (core/moves.py);
here they get the bounds of what comes from another machine.

Rule 1: a parcel goes through the hub unread: only its target reads the facts in it, and believes none before it has
checked all of them. A fact that the target does not know is refused, not left out: it would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Annotated, Any

import msgspec

from .core.model import Amount, Domain, Job, Mode
from .core.moves import Letting, Ownership, Parcel, Says, Transfer
from .core.moves import Word as Said
from .core.placement import HostRoom
from .core.refusals import RefusalCode
from .job_ids import is_job_id
from .message_base import MOST_COUNT, MOST_DOMAINS, MOST_JOBS, BadMessage, Count, Message, Sentence, Time, Word, decode

MOST_NUMBER = 2**53
"""Of an ownership: larger ones are not exact in every reader of JSON."""
MOST_TIME = 2.0**36
MOST_TEXT = 4096
MOST_PAPERS = 65_536
"""Letters of a domain's papers. They name each of its disks and devices."""

MOST_HOSTS = 4096
"""That a host may take domains from, or ask about."""

Number = Annotated[int, msgspec.Meta(ge=0, le=MOST_NUMBER)]
Signed = Annotated[int, msgspec.Meta(ge=-MOST_COUNT, le=MOST_COUNT)]


class WordTold(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """See `core.moves.Word`."""

    domain: Word
    number: Number
    says: Says
    about: Sentence = ""

    @property
    def word(self) -> Said:
        return Said(self.domain, self.number, self.says, self.about)


class MoveWords(Message, frozen=True, tag="move-words"):
    """Host to hub: all that it has to say about its domains. `welcome`: the hosts that it takes domains from; `most`:
    how many may be on their way to or from it at once."""

    sender: Word
    words: Annotated[list[WordTold], msgspec.Meta(max_length=MOST_DOMAINS)]
    welcome: Annotated[list[Word], msgspec.Meta(max_length=MOST_HOSTS)] = []
    most: Count = 1


class TransferTold(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """See `core.moves.Transfer`."""

    number: Number
    source: Word
    target: Word
    ready: bool = False
    declined: Sentence = ""
    letting: Letting | None = None
    owed: bool = False
    room: Sentence = ""


class OwnershipTold(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """See `core.moves.Ownership`."""

    domain: Word
    number: Number
    owner: Annotated[str, msgspec.Meta(max_length=255)]
    revision: Number
    transfer: TransferTold | None = None

    @property
    def record(self) -> Ownership:
        t = self.transfer
        transfer = t and Transfer(t.number, t.source, t.target, t.ready, t.declined, t.letting, t.owed, t.room)
        return Ownership(self.domain, self.number, self.owner, self.revision, transfer or None)


class Ownerships(Message, frozen=True, tag="ownerships"):
    """Hub to host: the records of its domains, of their moves, and of those that it spoke about."""

    records: Annotated[list[OwnershipTold], msgspec.Meta(max_length=2 * MOST_DOMAINS)]


class MoveRefused(Message, frozen=True, tag="move-refused"):
    """Hub to host: the move that it asked for under this number is not granted. `busy`: it is granted later."""

    domain: Word
    number: Number
    code: RefusalCode
    text: Sentence


class RoomTold(Message, frozen=True, tag="room"):
    """Host to hub: its room for one more domain, and whose domains it takes. See `core.placement.HostRoom`. Only a hub
    that knows it gets it (messages.py, `knows`)."""

    sender: Word
    mode: Mode
    cpus: Signed
    mib: Signed
    whole_cpus: Signed
    with_jobs: Annotated[str, msgspec.Meta(max_length=255)] = ""
    welcome: Annotated[list[Word], msgspec.Meta(max_length=MOST_HOSTS)] = []
    closed: Sentence = ""

    @property
    def room(self) -> HostRoom:
        free = Amount(self.cpus, self.mib)
        return HostRoom(
            self.sender, self.mode, free, self.whole_cpus, self.with_jobs, frozenset(self.welcome), self.closed
        )


class RoomsAsked(Message, frozen=True, tag="rooms-asked"):
    """Host to hub: what room do these hosts have for domains of mine? `id`: also the answer's."""

    sender: Word
    id: Count
    hosts: Annotated[list[Word], msgspec.Meta(max_length=MOST_HOSTS)]


class RoomOf(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A host's room. `closed`: why it takes no domain of the one that asks."""

    host: Word
    mode: Mode = Mode.COUNTED
    cpus: Signed = 0
    mib: Signed = 0
    whole_cpus: Signed = 0
    with_jobs: Annotated[str, msgspec.Meta(max_length=255)] = ""
    closed: Sentence = ""


class RoomsTold(Message, frozen=True, tag="rooms-told"):
    """Hub to host: the rooms of those that it asked about, in that order."""

    id: Count
    rooms: Annotated[list[RoomOf], msgspec.Meta(max_length=MOST_HOSTS)]

    def rooms_for(self, source: str) -> tuple[HostRoom, ...]:
        """As rooms that take domains from the host that asked."""
        return tuple(
            HostRoom(r.host, r.mode, Amount(r.cpus, r.mib), r.whole_cpus, r.with_jobs, frozenset({source}), r.closed)
            for r in self.rooms
        )


class MoveWished(Message, frozen=True, tag="move-wished"):
    """Hub to host: the domain, which is preempted at yours, should go on at host `to`. `number`: of your ownership.
    `why`: for people. It is said again as long as it is so. The host may refuse. Only those get it that know it
    (messages.py, `knows`)."""

    domain: Word
    number: Number
    to: Word
    why: Sentence


class WishRefused(Message, frozen=True, tag="wish-refused"):
    """Host to hub: it does not begin the move that the hub wished for."""

    sender: Word
    domain: Word
    number: Number
    to: Word
    code: RefusalCode
    text: Sentence


class ParcelSent(Message, frozen=True, tag="parcel"):
    """Source to hub, and hub to target: a domain's facts. See `core.moves.Parcel`."""

    sender: Word
    to: Word
    number: Number
    at: Time
    final: bool
    domain: Word
    facts: msgspec.Raw
    papers: Annotated[str, msgspec.Meta(max_length=MOST_PAPERS)] = ""

    @property
    def parcel(self) -> Parcel:
        """The facts, checked. Raises BadMessage."""
        facts = _facts(bytes(self.facts))
        if facts.name != self.domain:
            raise BadMessage(f"facts of {facts.name!r} in a parcel of {self.domain!r}")
        return Parcel(self.number, self.sender, self.at, self.final, facts, self.papers)


def room_of(room: HostRoom) -> RoomTold:
    """Figures are brought into the bounds of the message."""
    return RoomTold(
        sender=room.host,
        mode=room.mode,
        cpus=_bounded(room.free.cpus),
        mib=_bounded(room.free.mib),
        whole_cpus=_bounded(room.whole_cpus),
        with_jobs=room.with_jobs,
        welcome=sorted(room.welcome)[:MOST_HOSTS],
        closed=room.closed[:MOST_TEXT],
    )


def _bounded(figure: int) -> int:
    return max(-MOST_COUNT, min(MOST_COUNT, figure))


def words_of(sender: str, words: tuple[Said, ...], welcome: frozenset[str], most: int) -> MoveWords:
    told = [WordTold(domain=w.domain, number=w.number, says=w.says, about=w.about[:MOST_TEXT]) for w in words]
    return MoveWords(sender=sender, words=told, welcome=sorted(welcome), most=most)


def ownerships_of(records: tuple[Ownership, ...]) -> Ownerships:
    return Ownerships(records=[_ownership(record) for record in records])


def _ownership(record: Ownership) -> OwnershipTold:
    told = None
    if (t := record.transfer) is not None:
        told = TransferTold(
            number=t.number,
            source=t.source,
            target=t.target,
            ready=t.ready,
            declined=t.declined,
            letting=t.letting,
            owed=t.owed,
            room=t.room,
        )
    r = record
    return OwnershipTold(domain=r.domain, number=r.number, owner=r.owner, revision=r.revision, transfer=told)


def parcel_of(parcel: Parcel, to: str) -> ParcelSent:
    return ParcelSent(
        sender=parcel.source,
        to=to,
        number=parcel.number,
        at=parcel.at,
        final=parcel.final,
        domain=parcel.facts.name,
        facts=msgspec.Raw(msgspec.json.encode(parcel.facts)),
        papers=parcel.papers,
    )


_domain = msgspec.json.Decoder(Domain)
_object = msgspec.json.Decoder(dict[str, Any])


def _facts(data: bytes) -> Domain:
    facts: Domain = decode(_domain, data)
    unknown = sorted(_unknown(decode(_object, data), facts))
    if unknown:
        raise BadMessage(f"facts that are not known here: {', '.join(unknown)}; upgrade this host first")
    if not 1 <= len(facts.name) <= 255 or len(facts.jobs) > MOST_JOBS or len(facts.ended) > MOST_JOBS:
        raise BadMessage("a name or a number of jobs beyond all bounds")
    ids = [*(job.key.id for job in facts.jobs), *(ended.key.id for ended in facts.ended)]
    if bad := next((id for id in ids if not is_job_id(id)), None):
        raise BadMessage(f"a job with an id that PBS never makes: {bad[:80]!r}")
    if len({job.key for job in facts.jobs}) != len(facts.jobs):
        raise BadMessage("a job that is there twice")
    for where, value in _values(facts):
        if not _sound(value):
            raise BadMessage(f"{where} is {str(value)[:80]!r}")
    return facts


def _unknown(given: dict[str, Any], facts: Domain) -> Iterator[str]:
    """Facts of the domain, or of its jobs, for which there is no field."""
    yield from given.keys() - {f.name for f in fields(facts)}
    known = {f.name for f in fields(Job)}
    for job in given.get("jobs", ()):
        yield from job.keys() - known


def _values(value: object, where: str = "") -> Iterator[tuple[str, object]]:
    """All numbers and texts in a fact, each with its place."""
    if isinstance(value, tuple):
        for one in value:
            yield from _values(one, where)
    elif is_dataclass(value):
        for f in fields(value):
            yield from _values(getattr(value, f.name), f"{where}.{f.name}" if where else f.name)
    elif value is not None and not isinstance(value, bool | Enum):
        yield where, value


def _sound(value: object) -> bool:
    if isinstance(value, int):
        return 0 <= value <= MOST_COUNT
    if isinstance(value, float):
        return abs(value) <= MOST_TIME
    return isinstance(value, str) and len(value) <= MOST_TEXT
