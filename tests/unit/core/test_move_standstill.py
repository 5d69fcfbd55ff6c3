"""A move that does not end while jobs run: they stand still for the rest, and go on where the domain is then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import arrivals, shares
from magrathea.core import move_events as me
from magrathea.core.events import Booking, DrainEnded, DrainRequested, SleepEnded, TimerFired
from magrathea.core.life import CatchUp
from magrathea.core.model import Amount, Host, JobClass, SleepCause
from magrathea.core.moves import HostWithMoves, MoveStage, Where
from magrathea.core.plan import Want, desired
from magrathea.core.refusals import RefusalCode
from magrathea.core.sleeping import jobs_can_be_saved
from magrathea.core.stopping import wanted_stopped

from .builders import HIGH, LOW, PROTECTED, T, after, ask, books, get, host, run, stop
from .sleepers import next_step, sleep_request
from .test_moves import asked, do, expecting, granted, named, owned, parcel, told


def copying(here: Host) -> HostWithMoves:
    return told(asked(owned(here)), granted(ready=True))


def resting(cls: JobClass = LOW) -> HostWithMoves:
    """n1 is copied from a, and its job stands still."""
    kind = "priority" if cls is HIGH else "normal"
    place = do(copying(run(named("a", n1=kind), "n1", "1", cls=cls, cpus=2)), me.JobsMustRest(T, "n1"))
    return replace(place, host=after(place.host, TimerFired(T)))


@pytest.mark.parametrize("cls", [LOW, PROTECTED, HIGH])
def test_all_jobs_stand_still_for_the_rest_whatever_their_class_and_their_place_is_kept(cls: JobClass) -> None:
    here = resting(cls).host
    (job,) = get(here, "n1").jobs
    assert job.stopped_by_us and get(here, "n1").rests_for_move
    assert shares.unused(here) == Amount(6, 16_000)
    assert (
        isinstance(desired(here)["n1"], Want) and desired(here)["n1"].cap.percent != here.limits.preempted_cpu_percent
    )


def test_they_rest_when_each_is_suspended_in_pbs_or_nobody_could_be_told_in_time() -> None:
    here = resting().host
    assert not jobs_can_be_saved(here, get(here, "n1"))
    booked = books(here, *(Booking(j.key, booked=True) for j in get(here, "n1").jobs))
    assert jobs_can_be_saved(booked, get(booked, "n1"))
    late = after(here, TimerFired(T + 10))
    assert jobs_can_be_saved(late, get(late, "n1"))


def test_such_a_domain_is_never_saved() -> None:
    here = books(resting().host, *(Booking(j.key, booked=True) for j in get(resting().host, "n1").jobs))
    assert next_step(here, "n1") is CatchUp
    assert ask(here, sleep_request("n1")).code == RefusalCode.DOMAIN_MOVING
    assert (
        ask(host("counted", n1="normal"), sleep_request("n1", cause=SleepCause.MOVE)).code == RefusalCode.DOMAIN_MOVING
    )
    assert get(after(here, DrainEnded(T, "n1")), "n1").rests_for_move


def test_nothing_stands_still_before_the_copy_or_without_a_running_job() -> None:
    a = run(named("a", n1="normal"), "n1", "1")
    before = told(asked(owned(a)), granted())
    assert before.moves.leaving[0].stage is MoveStage.PREPARING
    for place in (before, copying(named("a", n1="normal")), copying(stop(a, "n1", "1"))):
        after_it = do(do(place, me.JobsMustRest(T, "n1")), me.StandsStill(T, "n2"))
        assert get(after_it.host, "n1").sleep is None


def test_they_go_on_where_they_were_if_the_copy_fails() -> None:
    place = do(do(resting(), me.CopyOver(T, "n1", "no network")), me.DomainFound(T, "n1", Where.RUNNING))
    assert place.moves.leaving[0].stage is MoveStage.STAYING
    assert next_step(place.host, "n1") is CatchUp
    here = after(place.host, SleepEnded(T, "n1"))
    assert get(here, "n1").sleep is None and not wanted_stopped(here) and get(here, "n1").keeps_its_place


def arrived(still_s: float) -> Host:
    """n1 has come to b with a stopped job, and had stood still for so long."""
    source = resting().host
    source = source.having(replace(get(source, "n1"), still_since=T - still_s))
    place = expecting(named("b", n2="normal"), source)
    return do(do(place, parcel(source, final=True)), me.DomainFound(T, "n1", Where.RUNNING)).host


@pytest.mark.parametrize("still_s", [0.3, 60.0])
def test_at_their_new_host_they_wait_until_pbs_has_been_asked(still_s: float) -> None:
    here = arrived(still_s)
    assert wanted_stopped(here) and next_step(here, "n1") is CatchUp
    assert (get(here, "n1").still_since is None) is (still_s < arrivals.STILL_S)
    here = after(here, SleepEnded(T, "n1"))
    assert not wanted_stopped(here) and next_step(here, "n1") is None and get(here, "n1").still_since is None


def test_how_long_it_stood_still_counts_from_its_pause_and_else_from_the_end_of_the_copy() -> None:
    place = copying(run(named("a", n1="normal"), "n1", "1"))
    paused = do(do(place, me.StandsStill(T + 1, "n1")), me.StandsStill(T + 2, "n1"))
    for before, since in ((paused, T + 1), (place, T + 5)):
        gone = do(do(before, me.CopyOver(T + 5, "n1")), me.DomainFound(T + 5, "n1", Where.LEFT))
        sealed = gone.moves.leaving[0].sealed
        assert sealed is not None and sealed.still_since == since


def test_a_short_standstill_is_forgotten_and_a_long_one_needs_no_sleep() -> None:
    here = run(host("counted", n1="normal"), "n1", "1")
    assert arrivals.after_standstill(replace(get(here, "n1"), still_since=T - 1), T).still_since is None
    long = here.having(replace(get(here, "n1"), still_since=T - 2))
    assert arrivals.after_standstill(get(long, "n1"), T).still_since == T - 2
    assert next_step(long, "n1") is CatchUp and not wanted_stopped(long)
    assert get(after(long, SleepEnded(T, "n1")), "n1") == replace(get(here, "n1"))
    assert next_step(after(long, DrainRequested(T, "n1", "x"), SleepEnded(T, "n1")), "n1") is None
