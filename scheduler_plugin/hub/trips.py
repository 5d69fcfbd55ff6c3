"""What moves have cost so far, and when each domain moved last; kept in the hub's state directory.

Rule 1: it follows the records of owners that are on disk (owners.py). If the hub dies between the two writes, or this
file is lost, a domain whose number has grown counts as moved at the hub's start: it rests once too often, never once
too little.
Rule 2: a move costs the time from its grant until the new host has the domain with its facts, or until it came to
nothing. A move that was declined before anything was copied costs nothing, and the domain does not rest for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from magrathea import files
from magrathea.core.moves import Ownership
from magrathea.decoding import UNDECODABLE
from magrathea.text import one_line

from .ownership import MOST_DOMAINS, MOST_NAME, MOST_NUMBER

log = logging.getLogger(__name__)

NAME = "trips.json"
MAX_BYTES = 512 * 1024 * 1024
KEPT_OF_A_PAIR = 8
"""Moves between two hosts that are remembered."""
MOST_COSTS = 4096
REFUSED_S = 600.0
"""A host that has refused a domain is not asked again before."""
UNMEASURED_S_PER_GIB = 10.0
"""As for a network of 1 Gbit/s."""
LEAST_S = 2.0
"""Granting and preparing takes about as long."""
GIB = 1024.0
MOST_TEXT = 300

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=MOST_NUMBER)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=2.0**36)]
_Mib = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Begun(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A move under way. `number`, `source`, `target`: of its transfer. `at`: its grant. `ready`: the target expected
    the domain; `declined`: it did not want it."""

    number: _Number
    source: _Name
    target: _Name
    at: _Seconds
    mib: _Mib
    ready: bool = False
    declined: str = ""


class Trip(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain's last move. `number`: of the ownership afterwards. `at`: when it ended; 0: it never moved, as far as
    the hub knows. `moved`: False if it came to nothing."""

    number: _Number
    at: _Seconds = 0.0
    moved: bool = True


NEVER = Trip(number=1)


class Cost(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How long a move of so much memory took."""

    source: _Name
    target: _Name
    mib: _Mib
    seconds: _Seconds

    @property
    def pair(self) -> tuple[str, str]:
        return self.source, self.target


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    last: Annotated[dict[_Name, Trip], msgspec.Meta(max_length=MOST_DOMAINS)] = {}
    under_way: Annotated[dict[_Name, Begun], msgspec.Meta(max_length=MOST_DOMAINS)] = {}
    costs: Annotated[list[Cost], msgspec.Meta(max_length=MOST_COSTS)] = []


class Trips:
    """`directory`: the hub's own. `records`: those on disk. `now`: Unix seconds."""

    def __init__(self, directory: Path, records: Mapping[str, Ownership], now: Callable[[], float]) -> None:
        self._path = directory / NAME
        self._now = now
        file = _load(self._path)
        self._last, self._under_way, self._costs = file.last, file.under_way, file.costs
        self._refused: dict[tuple[str, str], tuple[float, str]] = {}
        """By domain and host: when, and why. Lost with a restart of the hub: the host is asked once more."""
        self._changed = False
        for name, record in records.items():
            self._follow(name, record, 0, unseen=True)

    def follow(self, domain: str, record: Ownership | None, mib: int) -> None:
        """A record is on disk; None: its domain was given up. `mib`: the domain's memory, if it is about to move."""
        if record is not None:
            self._follow(domain, record, mib, unseen=False)
        elif domain in self._last or domain in self._under_way:
            self._last.pop(domain, None)
            self._under_way.pop(domain, None)
            self._changed = True

    def _follow(self, domain: str, record: Ownership, mib: int, *, unseen: bool) -> None:
        """`unseen`: the hub has just started, and does not know what happened before."""
        begun, transfer = self._under_way.get(domain), record.transfer
        if begun is not None and (transfer is None or transfer.number != begun.number):
            del self._under_way[domain]
            self._ended(domain, begun, record, unseen=unseen)
            begun = None
        elif transfer is None and record.number != self._last.get(domain, NEVER).number:
            # without a grant the number grows if a host has given up what it was refused
            self._rested(domain, record.number, Trip(number=1, at=self._now()) if unseen else None)
        if transfer is not None:
            number, source, target = transfer.number, transfer.source, transfer.target
            now = begun or Begun(number=number, source=source, target=target, at=self._now(), mib=mib)
            declined = one_line(transfer.declined, MOST_TEXT)
            now = msgspec.structs.replace(now, ready=now.ready or transfer.ready, declined=declined)
            self._changed |= now != begun
            self._under_way[domain] = now

    def _rested(self, domain: str, number: int, trip: Trip | None) -> None:
        """The domain has this number now. `trip`: its last move, if that has just ended."""
        last = trip or self._last.get(domain, NEVER)
        self._last[domain] = msgspec.structs.replace(last, number=number)
        self._changed = True

    def _ended(self, domain: str, begun: Begun, record: Ownership, *, unseen: bool) -> None:
        now, moved = self._now(), record.owner == begun.target
        if begun.declined and not moved:
            self.refuse(domain, begun.target, begun.declined)
            self._rested(domain, record.number, None)
            return
        self._rested(domain, record.number, Trip(number=1, at=now, moved=moved))
        if (moved or begun.ready) and not unseen:
            cost = Cost(source=begun.source, target=begun.target, mib=begun.mib, seconds=max(0.0, now - begun.at))
            of_pair = [one for one in self._costs if one.pair == cost.pair][1 - KEPT_OF_A_PAIR :]
            others = [one for one in self._costs if one.pair != cost.pair]
            self._costs = [*others, *of_pair, cost][-MOST_COSTS:]

    def refuse(self, domain: str, host: str, why: str) -> None:
        """Either end has refused this move."""
        now = self._now()
        self._refused = {key: one for key, one in self._refused.items() if now < one[0] + REFUSED_S}
        self._refused[domain, host] = now, one_line(why, MOST_TEXT)

    # What follows: see elsewhere.Past

    def rests(self, domain: str, rest_s: float, now: float) -> str:
        last = self._last.get(domain, NEVER)
        if not last.at or now >= last.at + rest_s:
            return ""
        what = "it moved" if last.moved else "a move of it came to nothing"
        return f"{what} {max(0.0, now - last.at):.0f} s ago; it rests for {rest_s:g} s"

    def refused(self, domain: str, host: str, now: float) -> str:
        at, why = self._refused.get((domain, host), (-REFUSED_S, ""))
        return f"refused lately ({why})" if now < at + REFUSED_S else ""

    def cost_s(self, source: str, target: str, mib: int) -> float:
        """By the slowest of the last moves between the two hosts, else of all; by the memory if none was measured. More
        memory takes longer in proportion; less memory does not count as cheaper, because much of a move is not copying.
        """
        known = [one for one in self._costs if one.pair == (source, target)] or self._costs
        if not known:
            return max(LEAST_S, UNMEASURED_S_PER_GIB * mib / GIB)
        return max(one.seconds * max(1.0, mib / one.mib if one.mib else 1.0) for one in known)

    # On disk

    def unwritten(self) -> bytes | None:
        """What must be written now; None if nothing has changed."""
        if not self._changed:
            return None
        self._changed = False
        return msgspec.json.encode(_File(last=self._last, under_way=self._under_way, costs=self._costs))

    def write(self, data: bytes) -> None:
        """Write it. May run in a thread, one at a time. If the disk fails, the next change writes all of it."""
        try:
            files.replace(self._path, data, sync=True)
        except OSError as error:
            self._changed = True
            log.error(
                "ALERT %s cannot be written: %s; after a restart of the hub domains may rest too long",
                self._path,
                error,
            )


def _load(path: Path) -> _File:
    """What was kept; nothing at the first start, or if it is damaged."""
    try:
        data = files.read(path, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise msgspec.DecodeError(f"more than {MAX_BYTES} bytes")
        return msgspec.json.decode(data, type=_File)
    except FileNotFoundError:
        return _File()
    except UNDECODABLE as error:
        log.error("%s is damaged (%s) and counts as absent: domains that have moved rest once more", path, error)
        return _File()
