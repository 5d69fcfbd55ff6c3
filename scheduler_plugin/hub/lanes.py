"""What one host may send to the hub, and in which order its messages wait.

Rule 1: each host may use a share of the hub's one loop. Work that follows from its messages later is charged, too.
Rule 2: each kind of message has a lane of its own, with its own rate and share. A guest that asks about parts of its
jobs all the time uses up the lane of such questions, not that of the host's snapshots.
Rule 3: a heartbeat never waits: it must not be late because its host sends many snapshots.
Rule 4: when a lane has used its share, its messages wait. A newer snapshot replaces a waiting one: it holds everything.
So do a host's newer words about moves, and a newer parcel of the same domain. A newer question about a job replaces
that job's older one, so each job has one place in the line.
Rule 5: what waits is bounded, for each host and for all together. What finds no place is refused. Nothing is lost
for ever by that: the hub asks for the snapshot, and the guest asks again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from magrathea.budget import Budget
from magrathea.messages import MAX_BYTES, BadMessage, GivenAsked, Heartbeat, HistoryTold, PartsAsked, Snapshot, ToHub
from magrathea.move_messages import MoveWords, ParcelSent, RoomsAsked, RoomTold, WishRefused

RATE_PER_S = 200
"""Messages of one host in one lane, averaged over `RATE_OVER_S`; a daemon sends 50 snapshots a second at most."""
RATE_OVER_S = 5.0
LOOP_SHARE, LOOP_BURST_S = 0.1, 0.5
"""The share of the loop's time for one host, and how much of it a host can save up. A snapshot of 2,000 jobs takes
some 20 ms."""
PARTS_SHARE, PARTS_BURST_S = 0.05, 0.25
"""The same for questions, about parts of jobs and about claimed jobs: the largest takes less than 1 ms. And for what a
host says about moves: all its words take some milliseconds."""
SHORT_BYTES = 4096
"""No heartbeat is longer."""
QUESTION_BYTES = 64 * 1024
"""No question about parts is longer: 200 vnodes with names of 255 characters."""
ROOM_BYTES = 2 * 1024 * 1024
"""No room is longer, and no question about rooms: 4,096 hosts with the longest names."""
MOST_DEBT_S = 1.0
"""A message waits no longer than this for work that others have caused as well: bookings, books, answers. One job on
two hosts makes both pay for it."""
MOST_QUESTIONS = 64
"""Questions of one host that wait; the daemon of a host asks one for each guest at a time."""
MOST_WAITING_BYTES = 256 * 1024 * 1024
"""Messages of all hosts that wait."""

T = TypeVar("T")


class Lane(Enum):
    BEATS = "heartbeats"
    PARTS = "questions about parts of jobs"
    CLAIMS = "questions about claimed jobs"
    MOVES = "words and parcels about moves"
    REST = "snapshots"


_KINDS: dict[bytes, tuple[type[ToHub], Lane, int]] = {
    b"heartbeat": (Heartbeat, Lane.BEATS, SHORT_BYTES),
    b"parts-asked": (PartsAsked, Lane.PARTS, QUESTION_BYTES),
    b"given-asked": (GivenAsked, Lane.CLAIMS, SHORT_BYTES),
    b"snapshot": (Snapshot, Lane.REST, MAX_BYTES),
    b"history-told": (HistoryTold, Lane.REST, MAX_BYTES),
    b"move-words": (MoveWords, Lane.MOVES, MAX_BYTES),
    b"parcel": (ParcelSent, Lane.MOVES, MAX_BYTES),
    b"room": (RoomTold, Lane.MOVES, ROOM_BYTES),
    b"rooms-asked": (RoomsAsked, Lane.MOVES, ROOM_BYTES),
    b"wish-refused": (WishRefused, Lane.MOVES, QUESTION_BYTES),
}
"""The type of each kind of message, its lane, and its largest size."""

_KIND = re.compile(rb'\{"type":"([a-z-]{1,20})"')
_JOB = re.compile(rb'"job":"([^"]{1,255})"')
_DOMAIN = re.compile(rb'"domain":"([^"]{1,255})"')
_ABOUT = {PartsAsked: _JOB, ParcelSent: _DOMAIN, WishRefused: _DOMAIN}
"""What each of these is about: those about other things do not replace it."""
_HEAD = 1024
"""The fields before `vnodes` are shorter; so are those before `facts`."""


@dataclass(frozen=True, slots=True)
class MessageKind:
    """What a message is, by its first bytes; the channel compares `type` with what it really is.

    `place`: a message that waits in the same place is replaced.
    """

    type: type[ToHub]
    lane: Lane
    place: Hashable


def kind_of(data: memoryview) -> MessageKind:
    """Raises BadMessage: it does not begin like a message, or is too large for one of its kind.

    Daemons write the type first, so the hub need not decode a message in order to let it wait.
    """
    head = bytes(data[:_HEAD])
    found = _KIND.match(head)
    if found is None or found[1] not in _KINDS:
        raise BadMessage("it does not begin with the type of a message to the hub")
    made, lane, largest = _KINDS[found[1]]
    if len(data) > largest:
        raise BadMessage(f"{len(data)} bytes; the limit for its type is {largest}")
    if lane is Lane.CLAIMS:  # each waits for itself: guests that claim the same job are no obstacle to another
        return MessageKind(made, lane, head)
    about = _ABOUT[made].search(head) if made in _ABOUT else None
    return MessageKind(made, lane, (made, about[1] if about else b""))


class _Rate:
    """Counts messages."""

    def __init__(self) -> None:
        self.since = 0.0
        self.count = 0

    def too_many(self, now: float) -> bool:
        if now - self.since > RATE_OVER_S:
            self.since, self.count = now, 0
        self.count += 1
        return self.count > RATE_PER_S * RATE_OVER_S


@dataclass
class _LaneOfHost(Generic[T]):
    budget: Budget
    rate: _Rate = field(default_factory=_Rate)
    waiting: dict[Hashable, tuple[T, int]] = field(default_factory=dict)
    """Messages with their sizes, in the order in which they will be handled."""


class Lanes(Generic[T]):
    """The lanes of all hosts. `handle` is called with the host, the lane and a message when its turn has come; `later`
    is the event loop's `call_later`."""

    def __init__(
        self,
        handle: Callable[[str, Lane, T], None],
        later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self._handle = handle
        self._later = later
        self._clock = clock
        self._lanes: dict[tuple[str, Lane], _LaneOfHost[T]] = {}
        self._closed = False
        self.waiting_bytes = 0

    def _lane(self, host: str, lane: Lane) -> _LaneOfHost[T]:
        if (host, lane) not in self._lanes:
            small = lane in (Lane.PARTS, Lane.CLAIMS, Lane.MOVES)
            share, burst_s = (PARTS_SHARE, PARTS_BURST_S) if small else (LOOP_SHARE, LOOP_BURST_S)
            self._lanes[host, lane] = _LaneOfHost(Budget(share, burst_s, self._clock()))
        return self._lanes[host, lane]

    def count(self, host: str, lane: Lane) -> None:
        """Count a message. Raises BadMessage if the host sends too many."""
        if self._lane(host, lane).rate.too_many(self._clock()):
            raise BadMessage(f"more than {RATE_PER_S} {lane.value} a second")

    def charge(self, host: str, seconds: float, lane: Lane = Lane.REST) -> None:
        """Charge the host with the time that a message of its own has taken. Heartbeats have no share of their own."""
        self._lane(host, Lane.REST if lane is Lane.BEATS else lane).budget.spend(seconds)

    def charge_later(self, host: str, seconds: float, lane: Lane = Lane.REST) -> None:
        """Charge the host with time that work took which followed from its messages, as far as MOST_DEBT_S allows."""
        self._lane(host, lane).budget.spend_for(seconds, self._clock(), MOST_DEBT_S)

    def take(self, host: str, kind: MessageKind, message: T, size: int) -> None:
        """Handle the message now or when its turn comes. Raises BadMessage if it finds no place."""
        lane = self._lane(host, kind.lane)
        wait_s = lane.budget.wait_s(self._clock())
        if kind.lane is Lane.BEATS or not (wait_s or lane.waiting):
            self._handle(host, kind.lane, message)
            return
        _, before = lane.waiting.get(kind.place, (None, 0))
        if self.waiting_bytes - before + size > MOST_WAITING_BYTES:
            raise BadMessage(f"{self.waiting_bytes} bytes of all hosts wait already")
        if not before and len(lane.waiting) >= MOST_QUESTIONS:
            raise BadMessage(f"{len(lane.waiting)} {kind.lane.value} wait already")
        if not lane.waiting:
            self._later(wait_s, lambda: self._turn(host, kind.lane))
        lane.waiting[kind.place] = message, size
        self.waiting_bytes += size - before

    def _turn(self, host: str, lane: Lane) -> None:
        """Handle the first message that waits in the lane."""
        if self._closed:
            return
        waits = self._lane(host, lane)
        first = next(iter(waits.waiting))
        message, size = waits.waiting.pop(first)
        self.waiting_bytes -= size
        try:
            self._handle(host, lane, message)
        finally:
            if waits.waiting:
                self._later(waits.budget.wait_s(self._clock()), lambda: self._turn(host, lane))

    def close(self) -> None:
        self._closed = True
        self._lanes.clear()
        self.waiting_bytes = 0
