"""Who owns each domain: the arbiter of moves (docs/moves.md). No clock, no I/O.

Rule 1: one record a domain. Its number only grows: with each new owner, and with each move that came to nothing, so
that no late message about an old one means anything. Its revision grows with every change.
Rule 2: every change is on disk before a host is told of it. A repeated word changes nothing.
Rule 3: a host may speak only about domains that it owns, or that its owner has asked to move there. So a host that was
taken over can neither fetch a domain nor hand one to a host that does not expect it.
Rule 4: a domain without a record gets one from the host that speaks of it first. The caller lets only hosts speak that
may report the domain's vnode.
Rule 5: a domain that an admin gives up keeps its record, without an owner. The host at home takes it back, under the
next number. The hosts that had it are told, so that none of them goes on with an old copy.
Rule 6: while a move is under way, the hub believes what the hypervisors show. The target has the domain when it says
so. The source has it again only when the target, asked after the source had let go, lacks it.

    any host says       owns -> owner, if there is none
    owner says          asks -> granted; stays -> cancelled; gone or ended -> the target must say what it has
    target says         ready or declines -> noted; here -> owner; adopted -> over; lacks -> the source remains owner
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from magrathea.core.moves import Letting, Ownership, Says, Transfer, Word
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.decoding import UNDECODABLE

from .lost_hosts import Ending, ending

MOST_NUMBER = 2**53
"""Larger ones are not exact in every reader of JSON. A domain that moves each second reaches it never."""
MOST_NAME = 255
"""Longest name of a host or domain. What could not be read from the disk is not taken: the whole file would be lost."""
MOST_DOMAINS = 1_000_000
MOST_FORMER = 8
MAX_BYTES = 512 * 1024 * 1024
"""Larger files are refused: a million records need less."""


@dataclass(frozen=True, slots=True)
class Visits:
    """Which moves hosts permit, as they report it. `welcome`: the hosts that a host takes domains from; `most`: how
    many may be on their way to or from a host at once (a host that does not say: one)."""

    welcome: Mapping[str, frozenset[str]] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)


class WordOutcome(NamedTuple):
    """What a word led to. `changed`: the books must be saved. `refused`: why a move is not granted; None if it was not
    asked for, or is granted. A `BUSY` one is granted later: the host keeps asking."""

    changed: bool = False
    refused: Refusal | None = None


class Ledger:
    """All records, by domain. `base`: where revisions of new records begin. It must be higher than in any ledger that
    was lost, else hosts would take the new records for old ones. `former`: the last hosts that had a domain, or
    expected it, the newest last; they must learn that it is elsewhere, whenever they come back."""

    def __init__(
        self,
        records: Iterable[Ownership] = (),
        base: int = 0,
        former: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        self.records: dict[str, Ownership] = {}
        self.base = base
        self.former = dict(former)
        self._of: dict[str, set[str]] = {}
        """The domains that concern each host."""
        self._concerned: dict[str, set[str]] = {}
        """The hosts that each domain concerns."""
        for record in records:
            self._put(record.domain, record)

    def told(self, host: str, about: Iterable[str] = ()) -> tuple[Ownership, ...]:
        """What the host must know: the records of its domains, of their moves, of those that were its own before they
        moved or that it expected, and of those that it spoke `about`."""
        names = self._of.get(host, set()).union(about)
        return tuple(self.records[name] for name in sorted(names) if name in self.records)

    def heard(self, host: str, word: Word, visits: Visits) -> WordOutcome:
        """Change the books by what `host` says. What it may not say, or what is over, changes nothing."""
        record = self.records.get(word.domain)
        if record is None:
            record = _founded(host, word, visits) if len(self.records) < MOST_DOMAINS else None
            if record is None:
                return WordOutcome()
            self._set(replace(record, revision=self.base))
            return self.heard(host, word, visits)._replace(changed=True)
        if word.says is Says.ASKS:
            return self._asked(record, host, word, visits)
        changed = _changed(record, host, word)
        return WordOutcome(changed is not None and changed != record and self._set(changed))

    def _asked(self, record: Ownership, host: str, word: Word, visits: Visits) -> WordOutcome:
        if record.owner != host or record.number != word.number or record.transfer is not None:
            return WordOutcome()
        target = word.about
        if host == target or host not in visits.welcome.get(target, frozenset()):
            return WordOutcome(refused=Refusal(RefusalCode.NO_VISITORS, f"{target} takes no domains from {host}"))
        for end in (host, target):
            if self.moving(end) >= visits.most.get(end, 1):
                text = f"as many domains move to or from {end} as it permits at once"
                return WordOutcome(refused=Refusal(RefusalCode.BUSY, text))
        if record.number >= MOST_NUMBER - 1:
            return WordOutcome()
        return WordOutcome(self._set(replace(record, transfer=Transfer(record.number + 1, host, target))))

    def give_up(self, domain: str) -> None:
        """Let nobody own the domain; the host at home takes it back. If there is no record, the books were lost: the
        new one is newer than all old ones."""
        record = self.records.get(domain) or Ownership(domain, self.base, "", self.base)
        self._set(replace(record, number=record.number + 1, owner="", transfer=None))

    def endings(self, lost: str, *, run_copies: bool) -> list[Ending]:
        """What would follow for each domain on its way to or from the host if that were lost (lost_hosts.py)."""
        records = (self.records[name] for name in sorted(self._of.get(lost, ())))
        found = (ending(record, lost, run_copies=run_copies) for record in records)
        return [one for one in found if one is not None]

    def host_lost(self, lost: str, *, run_copies: bool) -> list[Ending]:
        """Book that the host is lost. Returns what follows."""
        endings = self.endings(lost, run_copies=run_copies)
        for one in endings:
            if one.record is not None:
                self._set(one.record)
        return endings

    def follow(self, records: Mapping[str, Ownership], former: Mapping[str, tuple[str, ...]]) -> None:
        """Take these records of another ledger. `former`: of these."""
        for domain, record in records.items():
            self.former.pop(domain, None)
            if domain in former:
                self.former[domain] = former[domain]
            self._put(domain, record)

    def moving(self, host: str) -> int:
        """How many domains are on their way to or from the host."""
        return sum(self._moves(self.records[name], host) for name in self._of.get(host, ()))

    @staticmethod
    def _moves(record: Ownership, host: str) -> bool:
        return record.transfer is not None and host in parties(record)

    def _set(self, record: Ownership) -> bool:
        before = self.records.get(record.domain)
        if before is not None:
            knew = dict.fromkeys((*self.former.get(record.domain, ()), *reversed(parties(before))))
            former = tuple(host for host in knew if host not in parties(record))
            self.former.pop(record.domain, None)
            if former:
                self.former[record.domain] = former[-MOST_FORMER:]
        self._put(record.domain, replace(record, revision=record.revision + 1))
        return True

    def _put(self, domain: str, record: Ownership) -> None:
        for host in self._concerned.pop(domain, ()):
            self._of[host].discard(domain)
            if not self._of[host]:
                del self._of[host]
        self.records[domain] = record
        self._concerned[domain] = {*parties(record), *self.former.get(domain, ())}
        for host in self._concerned[domain]:
            self._of.setdefault(host, set()).add(domain)


def _founded(host: str, word: Word, visits: Visits) -> Ownership | None:
    """The record of a domain of which the books have none: it is new, or the books were lost. None if the word does not
    tell who has it, or if the domain is on its way to a host that does not take it."""
    number = word.number
    if not 0 <= number < MOST_NUMBER - 1:
        return None
    match word.says:
        case Says.OWNS | Says.ASKS | Says.STAYS | Says.ADOPTED:
            return Ownership(word.domain, max(1, number), host, 0)
        case Says.GONE | Says.ENDED if number > 1 and word.about != host and host in visits.welcome.get(word.about, ()):
            transfer = Transfer(number, host, word.about, letting=_LETTING[word.says])
            return Ownership(word.domain, number - 1, host, 0, transfer)
        case _:
            return None


def parties(record: Ownership) -> tuple[str, ...]:
    """The hosts that a record concerns: the owner, and both ends of a move."""
    ends = (record.transfer.source, record.transfer.target) if record.transfer else ()
    return (record.owner, *ends) if record.owner else ends


def _changed(record: Ownership, host: str, word: Word) -> Ownership | None:
    """The record after the word; None if the host may not say it, or it is about something that is over."""
    transfer = record.transfer
    if not record.owner:
        takes = word.says is Says.OWNS and word.number == record.number < MOST_NUMBER
        return replace(record, owner=host, number=record.number + 1) if takes else None
    if word.says is Says.STAYS:
        if record.owner != host or record.number != word.number or (transfer and transfer.letting):
            return None
        number = (transfer.number if transfer else record.number) + 1
        return replace(record, number=number, transfer=None) if number <= MOST_NUMBER else None
    if transfer is None or transfer.number != word.number:
        return None
    under_way = record.owner == transfer.source
    if host == transfer.source and under_way and transfer.letting is None and word.says in _LETTING:
        return replace(record, transfer=replace(transfer, letting=_LETTING[word.says]))
    if host != transfer.target:
        return None
    match word.says:
        case Says.READY if under_way and not transfer.declined:
            return replace(record, transfer=replace(transfer, ready=True, room=word.about[:MOST_ROOM]))
        case Says.DECLINES if under_way and not transfer.declined:
            return replace(record, transfer=replace(transfer, declined=word.about[:MOST_TEXT] or "no reason given"))
        case Says.HERE if under_way:
            return replace(record, number=transfer.number, owner=host, transfer=replace(transfer, owed=True))
        case Says.ADOPTED:
            return replace(record, number=transfer.number, owner=host, transfer=None)
        case Says.LACKS if under_way and transfer.letting is not None:
            return replace(record, number=transfer.number + 1, transfer=None)
        case _:
            return None


_LETTING = {Says.GONE: Letting.GONE, Says.ENDED: Letting.ENDED}


# On disk.

MOST_TEXT = 1000
MOST_ROOM = 4096
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=MOST_NUMBER)]


class _Transfer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    number: _Number
    source: _Name
    target: _Name
    ready: bool = False
    declined: Annotated[str, msgspec.Meta(max_length=MOST_TEXT)] = ""
    letting: Letting | None = None
    owed: bool = False
    room: Annotated[str, msgspec.Meta(max_length=MOST_ROOM)] = ""


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    domain: _Name
    number: _Number
    owner: Annotated[str, msgspec.Meta(max_length=MOST_NAME)]
    revision: _Number
    transfer: _Transfer | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    base: Annotated[int, msgspec.Meta(ge=0, le=MOST_NUMBER)] = 0
    records: Annotated[list[_Record], msgspec.Meta(max_length=MOST_DOMAINS)] = []
    former: Annotated[dict[_Name, _Name | list[_Name]], msgspec.Meta(max_length=MOST_DOMAINS)] = {}
    """An older hub wrote one name."""


class BadLedger(Exception):
    """A file does not hold a ledger; the text says why."""


def encoded(ledger: Ledger) -> bytes:
    """The ledger as it is kept on disk."""
    records = [_kept(record) for record in ledger.records.values()]
    former: dict[str, str | list[str]] = {name: list(hosts) for name, hosts in ledger.former.items()}
    return msgspec.json.encode(_File(base=ledger.base, records=records, former=former))


def _kept(record: Ownership) -> _Record:
    kept = None
    if (t := record.transfer) is not None:
        kept = _Transfer(
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
    return _Record(domain=r.domain, number=r.number, owner=r.owner, revision=r.revision, transfer=kept)


def decoded(data: bytes) -> Ledger:
    """The ledger that `encoded` wrote. Raises BadLedger: it is no such file, or contradicts itself."""
    if len(data) > MAX_BYTES:
        raise BadLedger(f"more than {MAX_BYTES} bytes")
    try:
        file = msgspec.json.decode(data, type=_File)
    except UNDECODABLE as error:  # ValidationError is one of them
        raise BadLedger(str(error)) from error
    records: dict[str, Ownership] = {}
    for kept in file.records:
        if kept.domain in records:
            raise BadLedger(f"two records of {kept.domain!r}")
        records[kept.domain] = _record(kept)
    former = {name: (had,) if isinstance(had, str) else tuple(had) for name, had in file.former.items()}
    return Ledger(records.values(), file.base, former)


def _record(kept: _Record) -> Ownership:
    t = kept.transfer
    if t is None:
        return Ownership(kept.domain, kept.number, kept.owner, kept.revision)
    source_owns, target_owns = kept.number == t.number - 1, kept.number == t.number
    owner = t.target if t.owed else t.source
    if t.source == t.target or kept.owner != owner or not (target_owns if t.owed else source_owns):
        raise BadLedger(f"the move of {kept.domain!r} does not fit its owner and number")
    transfer = Transfer(t.number, t.source, t.target, t.ready, t.declined, t.letting, t.owed, t.room)
    return Ownership(kept.domain, kept.number, kept.owner, kept.revision, transfer)
