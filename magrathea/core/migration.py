"""Moves of domains between hosts: changes a host's facts about them. No clock, no I/O. docs/moves.md explains it.

    source   asking -> preparing -> copying -> handed -> (the hub names the new owner) -> forgotten
    target             expected  -> ready   -> here, facts adopted                     -> an ordinary domain

Rule 1: one owner. Only the domain's owner in the hub's books lets it run, and a number that only grows names the
ownership. The hypervisor never lets an arrived copy run by itself: the owner does, after the source has let go.
Rule 2: what the hypervisors show decides after a crash. The source says what became of its copy. Only afterwards does
the target's look count, because an earlier look may be older than the copy.
Rule 3: one copy is tried under one number. If it fails, the number grows before the next: what a failed copy left at
the target can never be taken for the next one.
Rule 4: the facts of a domain are in one place. They leave the host's facts when the domain no longer runs there
(`sealed`), and the source forgets them when the target has adopted them.
Rule 5: there is no undo. A request changes where the domain is wanted; the move turns back, or goes elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import assert_never

from . import arrivals, departures, machine
from .events import ConfiguredDomain
from .events import TimerFired as Timer
from .move_events import (
    CopyOver,
    Decision,
    DomainFound,
    JobsMustRest,
    MoveDenied,
    MoveEvent,
    MoveNote,
    MoveNoted,
    MoveRequested,
    ParcelTold,
    RecordsTold,
    Restarted,
    Result,
    RoomMade,
    StandsStill,
    Ticked,
)
from .moves import (
    Arriving,
    HostWithMoves,
    Moves,
    MoveStage,
    Ownership,
    Parcel,
    Says,
    Visitor,
    Where,
    Word,
    with_domain,
    without_domain,
)
from .refusals import Refusal, RefusalCode


def handle(place: HostWithMoves, event: MoveEvent, rules: arrivals.Rules = arrivals.NO_VISITORS) -> Result:
    """The host with its moves after `event`, and what was decided. `rules`: which visitors it takes."""
    host = place.host
    said: tuple[Decision, ...] = ()
    if (due := machine.next_deadline(host)) is not None and due <= event.at:
        host, said = machine.handle(host, Timer(event.at))
    before = replace(place, host=replace(host, now=max(host.now, event.at)))
    place, answered = _handled(before, event)
    place, more = _settled(before, place, rules)
    return arrivals.with_room_kept(place), (*said, *answered, *more)


def _handled(place: HostWithMoves, event: MoveEvent) -> Result:
    match event:
        case MoveRequested():
            return departures.requested(place, event)
        case MoveDenied():
            return departures.with_change(place, event.domain, lambda x: departures.denied(x, event)), ()
        case RecordsTold():
            said: tuple[Decision, ...] = ()
            for record in event.records:
                place, more = _told(place, record)
                said += more
            return place, said
        case ParcelTold():
            return arrivals.parcel_told(place, event.parcel), ()
        case DomainFound():
            return _seen(place, event)
        case RoomMade():
            return arrivals.prepared(place, event), ()
        case CopyOver():
            return departures.with_change(place, event.domain, lambda x: departures.copy_over(x, event.failed)), ()
        case JobsMustRest():
            return departures.jobs_rest(place, event.domain), ()
        case StandsStill():
            return departures.stands_still(place, event.domain), ()
        case Restarted():
            for leaving in place.moves.leaving:
                place = departures.with_change(place, leaving.domain, departures.restarted)
            return place, ()
        case Ticked():
            return place, ()
        case _:
            assert_never(event)


def next_deadline(place: HostWithMoves) -> float | None:
    """When a `Ticked` may next change something, or None."""
    leaving = (x.until for x in place.moves.leaving if x.stage in (MoveStage.ASKING, MoveStage.PREPARING))
    over = (x.adopted or x.cancelled or (x.declined and not x.here) for x in place.moves.arriving)
    arriving = (x.until for x, ended in zip(place.moves.arriving, over, strict=True) if not ended)
    return min((t for t in (*leaving, *arriving) if t > place.host.now), default=None)


# What the hub says, and what the hypervisor shows.


def _told(place: HostWithMoves, record: Ownership) -> Result:
    known = place.moves.record(record.domain)
    if known is not None and known.revision >= record.revision:
        return place, ()
    place = replace(place, moves=place.moves.with_record(record))
    said: tuple[Decision, ...] = ()
    leaving = place.moves.leaving_of(record.domain)
    if leaving is not None and record.owner == place.name:
        follow = departures.kept if record.number > leaving.number else departures.granted
        place, said = follow(place, leaving, record)
    elif leaving is None and record.owner == place.name:
        place = departures.found(place, record)
    return arrivals.told(place, record), said


def _seen(place: HostWithMoves, event: DomainFound) -> Result:
    leaving = place.moves.leaving_of(event.domain)
    if leaving is not None:
        return departures.seen(place, leaving, event)
    arriving = place.moves.arriving_of(event.domain)
    if arriving is not None:
        return arrivals.seen(place, arriving, event.where), ()
    record = place.moves.record(event.domain)
    if record is None or record.owner == place.name or event.where not in (Where.ABSENT, Where.OFF):
        return place, ()
    if place.host.domain(event.domain) is None or _takes_back(place.moves, record):
        return place, ()
    # The hub has given it to another host, or nobody has it, and it does not run here: these facts are old.
    moves = place.moves.with_visitor(event.domain, None)
    place = HostWithMoves(without_domain(place.host, event.domain), moves)
    return place, (MoveNoted(event.domain, MoveNote.SUPERSEDED, record.owner),)


def _settled(before: HostWithMoves, place: HostWithMoves, rules: arrivals.Rules) -> Result:
    """What follows from the facts and the time, whatever has happened."""
    now, said = place.host.now, list[Decision]()
    place = departures.without_overtaken(place)
    for leaving in place.moves.leaving:
        early = leaving.stage in (MoveStage.ASKING, MoveStage.PREPARING)
        if early and leaving.until <= now and not leaving.turns_back:
            leaving = replace(leaving, wanted="", why=f"no answer in time from {leaving.to} or the hub")
        if early and leaving.wish and not leaving.turns_back and not departures.waits(place.host, leaving.domain):
            leaving = replace(leaving, wanted="", why="its jobs may go on here")
        if early and leaving.turns_back:
            leaving = replace(leaving, stage=MoveStage.STAYING)
        place = replace(place, moves=place.moves.with_leaving(leaving.domain, leaving))
    place = replace(place, host=departures.give_no_way(place))
    for name in [x.domain for x in place.moves.arriving]:
        place, more = _arrival_settled(place, name, before.moves.arriving_of(name), rules)
        said += more
    return arrivals.expected(place, rules), tuple(said)


def _arrival_settled(place: HostWithMoves, name: str, before: Arriving | None, rules: arrivals.Rules) -> Result:
    arriving, said = place.moves.arriving_of(name), list[Decision]()
    assert arriving
    arriving = arrivals.with_time_for_facts(before, arriving, place.host.now, rules)
    adopted = arrivals.adoptable(arriving, place.host.now)
    if adopted is not None:
        arriving = replace(arriving, adopted=True)
        host = with_domain(place.host, arrivals.as_arrived(adopted, place.host.now))
        papers = arriving.parcel.papers if arriving.parcel else ""
        place = HostWithMoves(host, place.moves.with_visitor(name, Visitor(name, papers)))
        note = MoveNote.ARRIVED if arriving.parcel and arriving.parcel.final else MoveNote.OLD_FACTS
        said.append(MoveNoted(name, note, arriving.source))
    place = replace(place, moves=place.moves.with_arriving(name, arriving))
    return arrivals.settled(place, name, rules), tuple(said)


# What the host says, and what it must do next.


def words(place: HostWithMoves) -> tuple[Word, ...]:
    """All that this host has to say to the hub about its domains now. It is said again until it is over."""
    own = (word for d in place.host.domains if (word := _owns(place, d.name)))
    leaving = (word for x in place.moves.leaving if (word := departures.says(x)))
    return (*own, *leaving, *(word for x in place.moves.arriving if (word := arrivals.says(x))))


def _owns(place: HostWithMoves, name: str) -> Word | None:
    moves, record = place.moves, place.moves.record(name)
    if moves.leaving_of(name) or moves.arriving_of(name):
        return None
    if record and record.owner != place.name and not _takes_back(moves, record):
        return None
    return Word(name, record.number if record else 0, Says.OWNS)


def _takes_back(moves: Moves, record: Ownership) -> bool:
    """True if the domain was given up, and is at home here: a visitor is in no configuration of this host."""
    return not record.owner and moves.visitor(record.domain) is None


def parcels(place: HostWithMoves) -> Iterator[Parcel]:
    """The newest facts of the domains that leave, for their targets."""
    for x in place.moves.leaving:
        facts = x.sealed or place.host.domain(x.domain)
        if x.stage in (MoveStage.PREPARING, MoveStage.COPYING, MoveStage.HANDED) and facts is not None:
            yield Parcel(x.granted, place.name, place.host.now, x.sealed is not None, facts, x.papers)


class MoveStep(StrEnum):
    """What the hypervisor is to do with the domain. Each may be asked for again.

    `PREPARE` what an arrival needs. `COPY` it to the target, where it arrives paused. `ABORT` the copy; if none was
    begun, only report `CopyOver`. `RUN` a copy that has arrived here. `GO_ON`: let the domain run here that was left by
    its copy. `DISCARD` what is here of it.
    """

    PREPARE = "prepare"
    COPY = "copy"
    ABORT = "abort"
    RUN = "run"
    GO_ON = "go-on"
    DISCARD = "discard"


def step(place: HostWithMoves, name: str, where: Where, *, copying: bool = False) -> MoveStep | None:
    """The next step for the domain, from the facts and from what the hypervisor shows now; None if there is none."""
    if leaving := place.moves.leaving_of(name):
        record = place.moves.record(name)
        elsewhere = record is not None and record.is_elsewhere(place.name) and record.number > leaving.number
        handed, copies = leaving.stage is MoveStage.HANDED, leaving.stage is MoveStage.COPYING
        return _first(
            (copies and leaving.turns_back and (copying or not leaving.tried), MoveStep.ABORT),
            (copies and not leaving.tried and not copying, MoveStep.COPY if where is Where.RUNNING else MoveStep.ABORT),
            (handed and elsewhere and where in (Where.LEFT, Where.OFF), MoveStep.DISCARD),
            (handed and departures.given_up(leaving, record) and where is Where.LEFT, MoveStep.DISCARD),
            (leaving.stage is MoveStage.RESUMING and where is Where.LEFT, MoveStep.GO_ON),
        )
    if arriving := place.moves.arriving_of(name):
        return _first(
            (arrivals.discards(arriving, where), MoveStep.DISCARD),
            (arriving.owner and where is Where.ARRIVED, MoveStep.RUN),
            (arrivals.prepares(arriving, where), MoveStep.PREPARE),
        )
    return None


def _first(*table: tuple[bool, MoveStep]) -> MoveStep | None:
    return next((what for holds, what in table if holds), None)


def refusal(place: HostWithMoves, name: str) -> Refusal | None:
    """Why claims for the domain, and requests about its life, are refused because it moves or another host has it; None
    if they are not."""
    moves = place.moves
    leaving, arriving, record = moves.leaving_of(name), moves.arriving_of(name), moves.record(name)
    if leaving is not None and leaving.stage is not MoveStage.STAYING:
        return Refusal(RefusalCode.DOMAIN_MOVING, f"{name} is on its way to {leaving.to}; wait until it is there")
    if arriving is not None and not arriving.adopted:
        return Refusal(RefusalCode.DOMAIN_MOVING, f"{name} is on its way from {arriving.source}; wait")
    if arriving is None and record is not None and record.owner != place.name:
        return Refusal(RefusalCode.DOMAIN_MOVING, record.whose)
    return None


def may_act(place: HostWithMoves, name: str) -> bool:
    """True if this host may act on the domain: it has its facts, and no newer ownership than its own is known."""
    arriving, record = place.moves.arriving_of(name), place.moves.record(name)
    if place.host.domain(name) is None:
        return False
    if arriving is not None:
        return arriving.adopted
    return record is None or record.owner == place.name


def life_rests(moves: Moves, name: str) -> bool:
    """True while a move decides about the domain's life, and what the hypervisor shows of it means only the move."""
    leaving, arriving = moves.leaving_of(name), moves.arriving_of(name)
    moving = leaving is not None and leaving.stage in (MoveStage.COPYING, MoveStage.HANDED, MoveStage.RESUMING)
    return moving or (arriving is not None and not (arriving.adopted and arriving.runs))


def configured(place: HostWithMoves, domains: tuple[ConfiguredDomain, ...]) -> tuple[ConfiguredDomain, ...]:
    """The domains that a configuration means for this host now: without those that are elsewhere or on their way, and
    with the visitors that it does not name."""
    moves, name = place.moves, place.name
    away = {r.domain for r in moves.records if r.is_elsewhere(name)} | {x.domain for x in moves.leaving if x.sealed}
    away |= {x.domain for x in moves.arriving}
    away -= {x.domain for x in moves.arriving if x.adopted}
    meant = {d.name: d for d in domains if d.name not in away}
    for domain in place.host.domains:
        if moves.visitor(domain.name) and domain.name not in meant:
            meant[domain.name] = ConfiguredDomain(
                domain.name,
                domain.kind,
                domain.cpus,
                domain.memory_mib,
                domain.floor_mib,
                domain.swap_mib,
                domain.boot_limit_s,
            )
    return tuple(meant.values())
