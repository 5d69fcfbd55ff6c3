"""The source's side of a move: asking, copying, letting go, turning back. Called by migration.py; the rules are there.

Rule 1: a move is begun as a fact before the hypervisor is asked to copy. After a crash the copy is over as soon as the
hypervisor shows none, and what it shows of the domain decides.
Rule 2: once the domain has ceased to run here, nothing here lets it run again until the hub has said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from . import events as ev
from .arrivals import after_standstill, as_arrived
from .model import NOT_ASKED, Domain, GiveWay, Host, Lifecycle, Sleep, SleepCause
from .move_events import DomainFound, MoveDenied, MoveNote, MoveNoted, MoveRequested, Result
from .moves import HostWithMoves, Leaving, Letting, MoveStage, Ownership, Says, Where, Word, with_domain, without_domain
from .refusals import Refusal, RefusalCode
from .stopping import wanted_here

MOST_ATTEMPTS = 3
"""Copies that may fail before the domain stays where it is."""


def with_change(place: HostWithMoves, domain: str, change: Callable[[Leaving], Leaving]) -> HostWithMoves:
    leaving = place.moves.leaving_of(domain)
    if leaving is None:
        return place
    return replace(place, moves=place.moves.with_leaving(domain, change(leaving)))


def requested(place: HostWithMoves, event: MoveRequested) -> Result:
    wanted = "" if event.to == place.name else event.to
    leaving = place.moves.leaving_of(event.domain)
    if event.wish and (no := no_wish(place, event.domain)):
        return place, (ev.Refused(event.domain, no.code, no.text),)
    if leaving is None and (no := no_move(place, event.domain, wanted)):
        return place, (ev.Refused(event.domain, no.code, no.text),)
    if leaving and leaving.stage in (MoveStage.HANDED, MoveStage.RESUMING):
        text = f"{event.domain} no longer runs here; wait until the hub has said which host has it"
        return place, (ev.Refused(event.domain, RefusalCode.DOMAIN_MOVING, text),)
    accepted = (ev.Accepted(event.domain),)
    if leaving:
        why = "somebody asked for it"
        changed = replace(leaving, wanted=wanted, until=event.until, attempts=0, why=why, called_off=not wanted)
        return replace(place, moves=place.moves.with_leaving(event.domain, changed)), accepted
    if not wanted:
        return place, accepted
    record = place.moves.record(event.domain)
    assert record
    new = Leaving(event.domain, record.number, wanted, wanted, place.host.now, event.until, papers=event.papers)
    new = replace(new, wish=event.wish)
    noted = (MoveNoted(event.domain, MoveNote.WISHED, f"to {wanted}: {event.wish}"),) if event.wish else ()
    return replace(place, moves=place.moves.with_leaving(event.domain, new)), (*accepted, *noted)


def no_wish(place: HostWithMoves, name: str) -> Refusal | None:
    """Why this host does not follow the hub's wish to move the domain; None if it may."""
    if leaving := place.moves.leaving_of(name):
        return Refusal(RefusalCode.DOMAIN_MOVING, f"{name} is on its way to {leaving.to} already")
    if place.host.domain(name) is not None and not waits(place.host, name):
        text = f"the hub moves only domains that are preempted, and {place.host.name} keeps no job of {name} stopped"
        return Refusal(RefusalCode.NOT_MOVABLE, text)
    return None


def waits(host: Host, name: str) -> bool:
    """True if jobs of the domain are stopped by us, and this host still wants it so."""
    domain, wanted = host.domain(name), wanted_here(host)
    return domain is not None and any((name, job.key) in wanted for job in domain.stopped)


def no_move(place: HostWithMoves, name: str, wanted: str) -> Refusal | None:
    """Why no move of the domain may begin now; None if it may."""
    host, record = place.host, place.moves.record(name)
    domain = host.domain(name)
    if record is not None and record.owner != host.name and place.moves.arriving_of(name) is None:
        return Refusal(RefusalCode.NOT_MOVABLE, record.whose)
    if domain is None:
        return Refusal(RefusalCode.UNKNOWN_DOMAIN, f"{host.name} has no domain {name}")
    if not wanted:
        return None
    up = domain.lifecycle is Lifecycle.UP and not (domain.frozen or domain.saving or domain.sleep)
    gates = (
        (place.moves.arriving_of(name) is not None, RefusalCode.DOMAIN_MOVING, f"{name} is just arriving; wait"),
        (host.paused is not None, RefusalCode.PAUSED, f"{host.name} is paused; `magrathea unpause` there first"),
        (domain.closing is not None, RefusalCode.DOMAIN_CLOSING, f"{name} is to go down; wait, or undrain it"),
        (not up, RefusalCode.NOT_MOVABLE, f"only a domain that is up can be moved, and {name} is not"),
        (
            host.hub_lost or record is None or record.owner != host.name,
            RefusalCode.HUB_LOST,
            f"no hub has confirmed that {name} is {host.name}'s; without the hub's books no domain moves",
        ),
    )
    return next((Refusal(code, text) for holds, code, text in gates if holds), None)


def denied(leaving: Leaving, event: MoveDenied) -> Leaving:
    if leaving.stage is not MoveStage.ASKING or event.number != leaving.number:
        return leaving
    return replace(leaving, wanted="", why=event.why)


def copy_over(leaving: Leaving, failed: str) -> Leaving:
    if leaving.stage is not MoveStage.COPYING or leaving.tried:
        return leaving
    why = leaving.why if leaving.turns_back and leaving.why else failed  # a copy that was given up has its reason
    return replace(leaving, tried=True, letting=None if failed else Letting.GONE, why=why)


def restarted(leaving: Leaving) -> Leaving:
    return copy_over(leaving, "the daemon was restarted while it copied")


BOOKED_WITHIN_S = 10.0
"""PBS suspends stopped jobs within seconds. A copy does not wait longer for that: it would only get longer itself."""


def _copied(place: HostWithMoves, name: str) -> Domain | None:
    """The domain, if a copy of it is under way."""
    leaving = place.moves.leaving_of(name)
    copies = leaving is not None and leaving.stage is MoveStage.COPYING and not leaving.tried
    return place.host.domain(name) if copies else None


def jobs_rest(place: HostWithMoves, name: str) -> HostWithMoves:
    """The domain's jobs stand still from now on, in PBS's books, too, as those of a domain that falls asleep. They go
    on where the domain is when its move is over."""
    domain, leaving, now = _copied(place, name), place.moves.leaving_of(name), place.host.now
    if domain is None or leaving is None or domain.sleep is not None or not domain.running:
        return place
    reason = f"its jobs stand still for the rest of its way to {leaving.to}"
    rest = Sleep(now, reason, SleepCause.MOVE, books_until=now + BOOKED_WITHIN_S)
    return replace(place, host=with_domain(place.host, replace(domain, sleep=rest, linger_until=None, woken_at=None)))


def stands_still(place: HostWithMoves, name: str) -> HostWithMoves:
    domain = _copied(place, name)
    if domain is None or domain.still_since is not None:
        return place
    return replace(place, host=with_domain(place.host, replace(domain, still_since=place.host.now)))


def granted(place: HostWithMoves, leaving: Leaving, record: Ownership) -> Result:
    """The hub's record still has this host as owner under the number of the move."""
    transfer = record.transfer
    if transfer is None or leaving.stage not in (MoveStage.ASKING, MoveStage.PREPARING, MoveStage.COPYING):
        return place, ()
    if leaving.stage is MoveStage.ASKING:
        leaving = replace(leaving, stage=MoveStage.PREPARING, granted=transfer.number, to=transfer.target)
    if transfer.declined and not leaving.turns_back:
        leaving = replace(leaving, wanted="", why=f"{transfer.target}: {transfer.declined}")
    if transfer.letting is not None and not leaving.turns_back:
        leaving = replace(leaving, wanted="", why="an admin has told the hub that this host is lost")
    if leaving.stage is MoveStage.PREPARING and transfer.ready and not leaving.turns_back:
        leaving = replace(leaving, stage=MoveStage.COPYING)
    return replace(place, moves=place.moves.with_leaving(leaving.domain, leaving)), ()


def found(place: HostWithMoves, record: Ownership) -> HostWithMoves:
    """The hub has granted a move of which this host knows nothing: its journal was lost. What the hypervisor shows
    decides how far it is, as after any crash."""
    transfer = record.transfer
    if transfer is None or transfer.source != place.name or place.moves.arriving_of(record.domain):
        return place
    now, to = place.host.now, transfer.target
    lost = Leaving(record.domain, record.number, to, "", now, now, granted=transfer.number, why="the journal was lost")
    stage = MoveStage.COPYING if transfer.letting is None else MoveStage.HANDED
    lost = replace(lost, stage=stage, tried=True, letting=transfer.letting)
    return replace(place, moves=place.moves.with_leaving(record.domain, lost))


def kept(place: HostWithMoves, leaving: Leaving, record: Ownership) -> Result:
    """The hub says that the domain stays this host's. Its facts are the host's again, if they were not."""
    name, moves = leaving.domain, place.moves
    if leaving.stage is MoveStage.HANDED:
        back = as_arrived(leaving.sealed, place.host.now) if leaving.sealed else None
        host = with_domain(place.host, back) if back else place.host
        resuming = replace(leaving, stage=MoveStage.RESUMING, number=record.number, granted=0, sealed=None, wanted="")
        return HostWithMoves(host, moves.with_leaving(name, resuming)), ()
    if leaving.stage is MoveStage.RESUMING:
        return place, ()
    domain = place.host.domain(name)
    up = domain is not None and domain.lifecycle is Lifecycle.UP
    if not (leaving.wanted and leaving.attempts < MOST_ATTEMPTS and up):
        noted = _stayed(leaving)
        host = place.host
        if domain is not None and domain.disk_obstacle == _on_its_way(leaving):
            host = with_domain(host, replace(domain, disk_obstacle=NOT_ASKED))
        return HostWithMoves(host, moves.with_leaving(name, None)), (noted,)
    to, attempts = leaving.wanted, leaving.attempts
    asks = Leaving(name, record.number, to, to, leaving.since, leaving.until, attempts=attempts, why=leaving.why)
    asks = replace(asks, papers=leaving.papers, wish=leaving.wish)
    return replace(place, moves=moves.with_leaving(name, asks)), ()


def _stayed(leaving: Leaving, why: str = "") -> MoveNoted:
    """The move is over, and the domain is here. `why`: if nothing else is known."""
    if leaving.called_off:
        return MoveNoted(leaving.domain, MoveNote.CALLED_OFF)
    return MoveNoted(leaving.domain, MoveNote.STAYED, leaving.why or why)


def seen(place: HostWithMoves, leaving: Leaving, event: DomainFound) -> Result:
    """The hypervisor shows the domain while it leaves."""
    moves, name, where = place.moves, leaving.domain, event.where
    if leaving.stage is MoveStage.COPYING and leaving.tried and not event.copying:
        if where is Where.RUNNING:  # the copy failed: it goes on here
            back = replace(leaving, stage=MoveStage.STAYING, letting=None, attempts=leaving.attempts + 1)
            domain = place.host.domain(name)
            host = place.host if domain is None else with_domain(place.host, after_standstill(domain, place.host.now))
            return HostWithMoves(host, moves.with_leaving(name, back)), ()
        gone = leaving.letting is Letting.GONE or where in (Where.ABSENT, Where.LEFT)
        letting = Letting.GONE if gone else Letting.ENDED
        sealed = place.host.domain(name)
        if sealed is not None and sealed.still_since is None:
            sealed = replace(sealed, still_since=place.host.now)
        handed = replace(leaving, stage=MoveStage.HANDED, letting=letting, sealed=sealed)
        return HostWithMoves(without_domain(place.host, name), moves.with_leaving(name, handed)), ()
    if leaving.stage in (MoveStage.ASKING, MoveStage.PREPARING) and where is not Where.RUNNING:
        ended = replace(leaving, wanted="", why="it ended here")
        return replace(place, moves=moves.with_leaving(name, ended)), ()
    if leaving.stage is MoveStage.RESUMING and where is not Where.LEFT:
        noted = _stayed(leaving, "its copy did not arrive")
        return replace(place, moves=moves.with_leaving(name, None)), (noted,)
    record = moves.record(name)
    over = where is Where.ABSENT or (where is Where.OFF and given_up(leaving, record))
    if leaving.stage is MoveStage.HANDED and over and record and closed(place, leaving, record):
        noted = MoveNoted(name, MoveNote.LEFT, record.owner)
        return replace(place, moves=moves.with_leaving(name, None).with_visitor(name, None)), (noted,)
    return place, ()


def give_no_way(place: HostWithMoves) -> Host:
    """The host, in which nobody counts on the memory of domains that leave: while they do, none is put to sleep."""
    host = place.host
    for leaving in place.moves.leaving if host.limits.give_way is not GiveWay.SWAP else ():
        domain, why = host.domain(leaving.domain), _on_its_way(leaving)
        leaves = leaving.stage in (MoveStage.ASKING, MoveStage.PREPARING, MoveStage.COPYING)
        if leaves and domain is not None and domain.disk_obstacle != why:
            host = with_domain(host, replace(domain, disk_obstacle=why))
    return host


def _on_its_way(leaving: Leaving) -> str:
    return f"it is on its way to {leaving.to}"


def without_overtaken(place: HostWithMoves) -> HostWithMoves:
    """Without the moves of domains that this host still has in use, and the hub has given up or given to another host:
    it was told that this host is lost."""
    moves = place.moves
    for leaving in moves.leaving:
        record = moves.record(leaving.domain)
        in_use = leaving.stage not in (MoveStage.COPYING, MoveStage.HANDED)
        if in_use and record is not None and record.owner != place.name and record.number > leaving.number:
            moves = moves.with_leaving(leaving.domain, None)
    return replace(place, moves=moves)


def given_up(leaving: Leaving, record: Ownership | None) -> bool:
    """True if the domain was given up after it had left: its target is lost. Its definition and its files here stay."""
    return record is not None and not record.owner and record.number > leaving.number


def closed(place: HostWithMoves, leaving: Leaving, record: Ownership) -> bool:
    """True if another host owns the domain and has its facts, or it was given up. It may be on its way from there
    already."""
    owed = record.transfer is not None and record.transfer.number <= record.number
    return record.number > leaving.number and record.owner != place.name and not owed


def says(leaving: Leaving) -> Word | None:
    """What the source says of the move; None if nothing."""
    name, number = leaving.domain, leaving.number
    match leaving.stage:
        case MoveStage.ASKING | MoveStage.PREPARING:  # also when it is granted: the hub's books may have been lost
            return Word(name, number, Says.ASKS, leaving.to)
        case MoveStage.STAYING:
            return Word(name, number, Says.STAYS)
        case MoveStage.HANDED:
            gone = leaving.letting is Letting.GONE
            return Word(name, leaving.granted, Says.GONE if gone else Says.ENDED, leaving.to)
        case MoveStage.COPYING:
            return None
        case MoveStage.RESUMING:
            return Word(name, number, Says.OWNS)
        case _:
            assert_never(leaving.stage)
