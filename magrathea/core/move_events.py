"""What can happen to a host's moves, and what is answered and noted. See migration.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from . import events as ev
from .moves import HostWithMoves, Ownership, Parcel, Where


@dataclass(frozen=True, slots=True)
class TimedMoveEvent:
    """`at`: the time on the host's clock."""

    at: float


@dataclass(frozen=True, slots=True)
class MoveRequested(TimedMoveEvent):
    """An admin wants the domain on host `to`; empty: here. Answered by `Accepted` or `Refused`.

    `until`: a move that is not granted and prepared by then turns back. `papers`: see `moves.Parcel`. `wish`: the hub
    wants it, not an admin, and this is why; only a domain that is preempted moves so.
    """

    domain: str
    to: str
    until: float
    papers: str = ""
    wish: str = ""


@dataclass(frozen=True, slots=True)
class MoveDenied(TimedMoveEvent):
    """The hub does not grant the move that was asked for under this `number`."""

    domain: str
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class RecordsTold(TimedMoveEvent):
    """What the hub's books have of this host's domains. A domain that is not named is as before."""

    records: tuple[Ownership, ...]


@dataclass(frozen=True, slots=True)
class ParcelTold(TimedMoveEvent):
    """The source's facts of a domain that arrives here."""

    parcel: Parcel


@dataclass(frozen=True, slots=True)
class DomainFound(TimedMoveEvent):
    """What the hypervisor shows of the domain now. `copying`: a copy from here has not ended yet."""

    domain: str
    where: Where
    copying: bool = False


@dataclass(frozen=True, slots=True)
class RoomMade(TimedMoveEvent):
    """The target has prepared the arrival under this `number`. `failed`: why it could not; empty if it could. `room`:
    what it has prepared."""

    domain: str
    number: int
    failed: str = ""
    room: str = ""


@dataclass(frozen=True, slots=True)
class CopyOver(TimedMoveEvent):
    """The copy's call has returned. `failed`: why; empty if the hypervisor reported success."""

    domain: str
    failed: str = ""


@dataclass(frozen=True, slots=True)
class JobsMustRest(TimedMoveEvent):
    """The copy does not end while the domain's jobs run, and pausing the domain for the rest would take too long."""

    domain: str


@dataclass(frozen=True, slots=True)
class StandsStill(TimedMoveEvent):
    """The hypervisor has paused the domain for the rest of its copy."""

    domain: str


class Restarted(TimedMoveEvent):
    """The daemon has started. Copies that it had begun are over as soon as the hypervisor shows none."""


class Ticked(TimedMoveEvent):
    """It is now `at`: deadlines take effect."""


MoveEvent = (
    MoveRequested
    | MoveDenied
    | RecordsTold
    | ParcelTold
    | DomainFound
    | RoomMade
    | CopyOver
    | JobsMustRest
    | StandsStill
    | Restarted
    | Ticked
)


class MoveNote(StrEnum):
    """For the history. The words are in journals, so none of them ever changes."""

    LEFT = "moved-away"
    STAYED = "move-ended"
    CALLED_OFF = "move-called-off"
    ARRIVED = "moved-here"
    OLD_FACTS = "moved-here-with-old-facts"
    SUPERSEDED = "owned-elsewhere"
    WISHED = "move-wished"


@dataclass(frozen=True, slots=True)
class MoveNoted:
    domain: str
    what: MoveNote
    text: str = ""


Decision = ev.Decision | MoveNoted
Result = tuple[HostWithMoves, tuple[Decision, ...]]
