"""The target's side of a move: what it expects, has, and lacks. Called by migration.py, which states the rules.

Rule 1: nothing here trusts the source. It must be named in the configuration, the hub must have granted the move under
this number, and the domain must fit. Else the move is declined, which binds nobody: what runs here anyway is here.
Later facts and papers are compared with the first ones, which were checked (`unlike_first`).
Rule 2: an arrived copy runs only when the hub says that this host owns the domain. So a copy that is left over from a
failed attempt never runs; it is discarded when the hub has cancelled its number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from . import placement
from .model import NOT_ASKED, Amount, Closing, Coming, Domain, Ended, Host, Job, Kind, Lifecycle, Sleep
from .move_events import RoomMade
from .moves import Arriving, HostWithMoves, Ownership, Parcel, Says, Where, Word
from .shares import place_kept


@dataclass(frozen=True, slots=True)
class Rules:
    """Which visitors a host takes. `welcome`: the hosts they may come from. `most`: at once.

    `patience_s`: how long room is kept for a domain that does not come. `facts_s`: how long a domain that is here waits
    for the last facts; then those count that came before, because its source may be lost for good.
    """

    welcome: frozenset[str] = frozenset()
    most: int = 2
    patience_s: float = 600.0
    facts_s: float = 120.0


NO_VISITORS = Rules()


Fact = TypeVar("Fact", Domain, Job, Ended, Closing, Sleep)


def told(place: HostWithMoves, record: Ownership) -> HostWithMoves:
    """Follow the hub's record of a domain that arrives."""
    arriving = place.moves.arriving_of(record.domain)
    if arriving is None:
        return place
    transfer, mine = record.transfer, record.owner == place.name
    changed: Arriving | None
    if transfer is not None and transfer.number == arriving.number:
        changed = replace(arriving, owner=mine)
        if transfer.letting is not arriving.letting:  # what was seen before may be older than the copy
            changed = replace(changed, letting=transfer.letting, where=None)
    elif mine and record.number >= arriving.number:
        changed = replace(arriving, owner=True)
    elif record.number > arriving.number and arriving.owner:  # it was given up after it had come here
        changed = None if arriving.adopted else replace(arriving, cancelled=True)
    elif record.number > arriving.number:
        changed = replace(arriving, cancelled=not arriving.ran)
    else:
        changed = arriving
    return replace(place, moves=place.moves.with_arriving(record.domain, changed))


def expected(place: HostWithMoves, rules: Rules) -> HostWithMoves:
    """Expect the domains that the hub's records send here, once nothing is left of their earlier moves."""
    moves = place.moves
    for record in moves.records:
        transfer, name = record.transfer, record.domain
        if transfer is None or transfer.target != place.name or moves.arriving_of(name) or moves.leaving_of(name):
            continue
        until = place.host.now + rules.patience_s
        new = Arriving(name, transfer.number, transfer.source, until, owner=record.owner == place.name)
        awaited = sum(not (x.adopted or x.cancelled or x.declined) for x in moves.arriving)
        new = replace(
            new, letting=transfer.letting, room=transfer.room, declined=_unwelcome(place.host, new, awaited, rules)
        )
        moves = moves.with_arriving(name, new)
    return replace(place, moves=moves)


def _unwelcome(host: Host, arriving: Arriving, awaited: int, rules: Rules) -> str:
    """Why the domain is not taken, before anything is known of it; empty if it is welcome."""
    own = host.domain(arriving.domain)
    if arriving.source not in rules.welcome:
        return f"it takes no domains from {arriving.source}"
    if own is not None and (own.lifecycle is not Lifecycle.DOWN or own.jobs or own.frozen):
        return "it has a domain of this name that is not down and empty"
    return "as many domains as may move at once are arriving already" if awaited >= rules.most else ""


def parcel_told(place: HostWithMoves, parcel: Parcel) -> HostWithMoves:
    """Keep the newest facts of a domain that is expected, with their times by this host's clock."""
    arriving = place.moves.arriving_of(parcel.facts.name)
    if arriving is None or arriving.adopted or arriving.cancelled:
        return place
    if (parcel.number, parcel.source) != (arriving.number, arriving.source):
        return place
    old = arriving.parcel
    if old is not None and (old.final, old.at) >= (parcel.final, parcel.at):
        return place
    here = replace(parcel, facts=shifted(parcel.facts, place.host.now - parcel.at))
    if old is not None and not parcel.papers:
        here = replace(here, papers=old.papers)
    why = "" if old is None else unlike_first(old, here)
    if old is not None and why and arriving.here:  # it cannot be refused any more, so what was checked counts
        here = replace(here, facts=replace(here.facts, **_checked(old.facts)), papers=old.papers)
    elif why:
        refused = replace(arriving, declined=arriving.declined or why)
        return replace(place, moves=place.moves.with_arriving(arriving.domain, refused))
    changed = replace(arriving, parcel=here)
    if not (arriving.declined or arriving.here):
        rest = tuple(c for c in place.host.coming if c.name != arriving.domain)
        changed = replace(changed, declined=no_room(replace(place.host, coming=rest), here.facts))
    return replace(place, moves=place.moves.with_arriving(arriving.domain, changed))


CHECKED = ("kind", "cpus", "memory_mib", "floor_mib")
"""What a domain is for the arithmetic, whatever its jobs do. It must not change after the first facts were checked."""


def _checked(domain: Domain) -> dict[str, Any]:
    return {name: getattr(domain, name) for name in CHECKED}


def unlike_first(first: Parcel, later: Parcel) -> str:
    """How a later parcel differs from the first, which was checked, for people; empty if it does not."""
    was, now = _checked(first.facts), _checked(later.facts)
    what = [f"{name} was {was[name]} and is {now[name]}" for name in CHECKED if was[name] != now[name]]
    if first.papers and later.papers != first.papers:
        what.append("its papers are others")
    return f"it is not what was checked: {', '.join(what)}; ask for the move again" if what else ""


def no_room(host: Host, domain: Domain) -> str:
    """Why the domain does not fit now, without stopping anybody; empty if it fits. What is expected already counts."""
    return placement.why_not(placement.room(host, frozenset()), placement.traveller(domain))


def _size(host: Host, domain: Domain) -> Amount:
    """What is kept for a domain that is not among the host's. A domain of its name that is down has its floor here."""
    if domain.kind is Kind.SERVICE:
        return Amount(domain.cpus, domain.memory_mib)
    own = host.domain(domain.name)
    floor_mib = max(0, domain.floor_mib - (own.floor_mib if own is not None else 0))
    return domain.use + place_kept(domain) + Amount(0, floor_mib)


def with_room_kept(place: HostWithMoves) -> HostWithMoves:
    """The host, which counts what its moves keep: for a domain from its first facts until it is among the host's own or
    does not come; and for one that has gone until another host has its facts, because it may come back."""
    moves = place.moves
    awaited = (x.parcel for x in moves.arriving if x.here or not x.declined if not (x.adopted or x.cancelled))
    facts = [parcel.facts for parcel in awaited if parcel is not None]
    facts += [x.sealed for x in moves.leaving if x.sealed is not None]
    coming = tuple(Coming(d.name, _size(place.host, d), bool(d.jobs)) for d in facts)
    return place if coming == place.host.coming else replace(place, host=replace(place.host, coming=coming))


def prepared(place: HostWithMoves, event: RoomMade) -> HostWithMoves:
    name, arriving = event.domain, place.moves.arriving_of(event.domain)
    if arriving is None or arriving.number != event.number or arriving.cancelled or arriving.declined:
        return place
    if event.failed:
        changed = replace(arriving, declined=event.failed)
    else:
        # What an earlier copy has left would pass for this one. Only a look since then says that there is nothing.
        changed = replace(arriving, ready=arriving.ready or arriving.where is Where.ABSENT, room=event.room)
    return replace(place, moves=place.moves.with_arriving(name, changed))


def seen(place: HostWithMoves, arriving: Arriving, where: Where) -> HostWithMoves:
    """The hypervisor shows the domain. A cancelled arrival ends as soon as nothing is left of it."""
    name = arriving.domain
    if arriving.cancelled and where is Where.ABSENT:
        return replace(place, moves=place.moves.with_arriving(name, None))
    changed = replace(arriving, where=where, ran=arriving.ran or where is Where.RUNNING)
    foreign = where is not Where.ABSENT and not (changed.ready or changed.here or changed.cancelled)
    if foreign and not changed.declined:
        changed = replace(changed, declined="its hypervisor has a domain of this name already")
    return replace(place, moves=place.moves.with_arriving(name, changed))


def settled(place: HostWithMoves, name: str, rules: Rules) -> HostWithMoves:
    """What follows for an arrival from its facts and the time."""
    arriving, record, now = place.moves.arriving_of(name), place.moves.record(name), place.host.now
    if arriving is None:
        return place
    mine = record is not None and record.owner == place.name and record.number >= arriving.number
    if arriving.adopted and arriving.runs and record is not None and mine:
        owed = record.transfer is not None and record.transfer.number == arriving.number
        return place if owed else replace(place, moves=place.moves.with_arriving(name, None))
    waits = not (arriving.here or arriving.cancelled or arriving.declined)
    if waits and arriving.until <= now and arriving.where not in (Where.INCOMING, Where.ARRIVED):
        late = replace(arriving, declined=f"it did not come within {rules.patience_s:g} s")
        return replace(place, moves=place.moves.with_arriving(name, late))
    return place


def with_time_for_facts(before: Arriving | None, now: Arriving, at: float, rules: Rules) -> Arriving:
    """`now`; if the domain is here only since now, its last facts have `facts_s` to come."""
    came = now.here and not (before is not None and before.here)
    return replace(now, until=at + rules.facts_s) if came else now


def adoptable(arriving: Arriving, now: float) -> Domain | None:
    """The facts that become the host's own now; None if they do not.

    Not while the copy has neither run nor been given to this host: it could still be lost, and the source go on.
    """
    parcel = arriving.parcel
    if arriving.adopted or arriving.cancelled or parcel is None or not (arriving.ran or arriving.owner):
        return None
    return parcel.facts if parcel.final or arriving.until <= now else None


def as_arrived(domain: Domain, now: float) -> Domain:
    """The domain's facts at its new host: it is up, and its agent gets the time of grace to connect.

    Claims get their time again: nobody could confirm them meanwhile.
    """
    return replace(
        after_standstill(domain, now),
        jobs=tuple(job if job.confirmed else replace(job, claimed_at=now) for job in domain.jobs),
        lifecycle=Lifecycle.UP,
        agent_lost_at=now,
        boot_until=None,
        saving=False,
        paused_externally=False,
        configured=True,
        disk_obstacle=NOT_ASKED,
        stays_awake="",
    )


STILL_S = 1.5
"""A standstill that is longer is one that a guest's clock and MoM's connections notice."""


def after_standstill(domain: Domain, now: float) -> Domain:
    """The domain, which runs again after it stood still in its move: if that was short, nobody needs to know."""
    since = domain.still_since
    return domain if since is None or now - since > STILL_S else replace(domain, still_since=None)


def says(arriving: Arriving) -> Word | None:
    """What the target says of the arrival; None if nothing."""
    table = (
        (arriving.cancelled, None, ""),
        (arriving.adopted, Says.ADOPTED, ""),
        (arriving.here, Says.HERE, ""),
        (arriving.lacks, Says.LACKS, ""),
        (bool(arriving.declined), Says.DECLINES, arriving.declined),
        (arriving.ready, Says.READY, arriving.room),
    )
    what, about = next(((what, about) for holds, what, about in table if holds), (None, ""))
    return Word(arriving.domain, arriving.number, what, about) if what else None


def how(arriving: Arriving) -> str:
    """How far the arrival is, for people."""
    table = (
        (arriving.cancelled, "it does not come; what is left of it is removed"),
        (arriving.adopted, "it is here"),
        (arriving.here, "it is here, and its last facts are awaited"),
        (bool(arriving.declined), f"it is not taken: {arriving.declined}"),
        (arriving.ready, "it is awaited"),
    )
    return next((text for holds, text in table if holds), "it is being prepared")


def discards(arriving: Arriving, where: Where) -> bool:
    """True if what is here of the domain must go: its move is off, and it never ran here."""
    return arriving.cancelled and where in (Where.INCOMING, Where.ARRIVED, Where.OFF)


def prepares(arriving: Arriving, where: Where) -> bool:
    """True if the arrival must be prepared."""
    over = arriving.ready or arriving.declined or arriving.cancelled or arriving.here or arriving.letting is not None
    return not over and arriving.parcel is not None and where is Where.ABSENT


# Times are those of a host's own clock.

TIMES = {
    Domain: (
        "boot_until",
        "agent_lost_at",
        "linger_until",
        "young_since",
        "overtaken_since",
        "woken_at",
        "still_since",
    ),
    Job: ("claimed_at", "run_since", "stopped_since"),
    Ended: ("at",),
    Closing: ("since",),
    Sleep: ("since", "books_until"),
}
"""The facts that are times. All other numbers are the same on every clock."""


def shifted(domain: Domain, by: float) -> Domain:
    """The domain's facts by a clock that is `by` seconds ahead."""
    moved = _shifted(domain, by)
    return replace(
        moved,
        jobs=tuple(_shifted(job, by) for job in domain.jobs),
        ended=tuple(_shifted(ended, by) for ended in domain.ended),
        closing=None if domain.closing is None else _shifted(domain.closing, by),
        sleep=None if domain.sleep is None else _shifted(domain.sleep, by),
    )


def _shifted(fact: Fact, by: float) -> Fact:
    times = {name: at + by for name in TIMES[type(fact)] if (at := getattr(fact, name)) is not None}
    return replace(fact, **times)
