"""What becomes of a host's domains when it is evacuated: a function of what is there, without clock or I/O.

Rule 1: each domain has exactly one fate. It moves if another host takes it, else it is put to sleep, else it finishes
its jobs. `--to-disk` and `--drain` begin with a later one of these. A domain that is down or asleep is left as it is;
so is a service that can neither move nor sleep: nobody knows what it is for, so nobody ends it.
Rule 2: the order is that of `LeavingTurn`. Room at other hosts is given out in this order, and never twice.
Rule 3: a fate that does not come about (a host that refuses after all, a save that fails) is decided anew for that
domain alone, with what is known since then. It never goes back to what was tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from . import placement
from .model import Domain, Kind
from .occupation import occupation
from .placement import HostRoom, Traveller


class Fate(StrEnum):
    """What becomes of a domain. The words are in files and in answers to programs, so none of them ever changes."""

    MOVE = "move"
    SLEEP = "sleep"
    DRAIN = "drain"
    LEAVE = "leave"


WAYS: dict[Fate, tuple[Fate, ...]] = {
    Fate.MOVE: (Fate.MOVE, Fate.SLEEP, Fate.DRAIN),
    Fate.SLEEP: (Fate.SLEEP, Fate.DRAIN),
    Fate.DRAIN: (Fate.DRAIN,),
}
"""What is tried, one after the other, by what an admin has asked for."""


class LeavingTurn(IntEnum):
    """When a domain leaves, by its occupation: first those with jobs that wait least gladly, services last, because
    others need them."""

    PRIORITY = 0
    PROTECTED = 1
    PREEMPTIBLE = 2
    PREEMPTED = 3
    IDLE = 4
    SERVICE = 5


@dataclass(frozen=True, slots=True)
class Resident:
    """A domain of the host. `rests`: why nothing has to become of it; empty if something has. `no_move`, `no_sleep`:
    why it can do neither here; empty if it can. `tried`: hosts that have not taken it.
    """

    traveller: Traveller
    turn: LeavingTurn
    rests: str = ""
    no_move: str = ""
    no_sleep: str = ""
    tried: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.traveller.name


@dataclass(frozen=True, slots=True)
class DecidedFate:
    """`to`: the host to which it moves; else empty. `why`: for people, why it is nothing better; empty if it is the
    first that was wished."""

    domain: str
    fate: Fate
    to: str = ""
    why: str = ""


def turn_of(domain: Domain) -> LeavingTurn:
    return LeavingTurn[occupation(domain).name]


def plan(residents: Iterable[Resident], source: str, rooms: Sequence[HostRoom], wish: Fate) -> tuple[DecidedFate, ...]:
    """The fate of each, in the order in which they leave."""
    found: list[DecidedFate] = []
    for resident in sorted(residents, key=lambda r: (bool(r.rests), r.turn, r.name)):
        decided = decide(resident, source, rooms, wish)
        rooms = with_guest(rooms, decided.to, resident.traveller)
        found.append(decided)
    return tuple(found)


def decide(resident: Resident, source: str, rooms: Sequence[HostRoom], wish: Fate) -> DecidedFate:
    """The fate of one. `rooms`: less what others have been promised."""
    if resident.rests:
        return DecidedFate(resident.name, Fate.LEAVE, why=resident.rests)
    reasons: list[str] = []
    for way in WAYS[wish]:
        to, why = _possible(resident, way, source, rooms)
        if not why:
            return DecidedFate(resident.name, way, to, "; ".join(reasons))
        reasons.append(why)
    return DecidedFate(resident.name, Fate.LEAVE, why="; ".join(reasons))


def _possible(resident: Resident, way: Fate, source: str, rooms: Sequence[HostRoom]) -> tuple[str, str]:
    """The host to which it would move, and why it cannot go this way; empty if it can."""
    if way is Fate.SLEEP:
        return "", resident.no_sleep
    if way is Fate.DRAIN:
        return "", "it has no jobs to finish" if resident.traveller.kind is Kind.SERVICE else ""
    if resident.no_move:
        return "", resident.no_move
    left = [room for room in rooms if room.host not in resident.tried]
    choice = placement.choose(resident.traveller, source, left)
    if choice.host:
        return choice.host, ""
    return "", f"no host takes it ({choice.text})" if choice.text else "no other host is left"


def with_guest(rooms: Sequence[HostRoom], host: str, guest: Traveller) -> tuple[HostRoom, ...]:
    """The rooms after the guest has been promised its own."""
    return tuple(placement.after(room, guest) if room.host == host else room for room in rooms)
