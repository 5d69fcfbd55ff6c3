"""A paused host is only watched: stopped jobs stay stopped, nothing else is stopped or continued, and nothing moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import stopping
from magrathea.core.events import Booking, FreezeRequested, JobsReported, PauseEnded, PauseRequested, ReportedJob
from magrathea.core.machine import handle
from magrathea.core.model import Host, Lifecycle, Limits, Pause, State
from magrathea.core.plan import ActualDomain, Order, Orders, lacks, steps

from .builders import (
    accepts,
    after,
    ask,
    books,
    claim,
    defrost,
    get,
    get_job,
    go_on,
    host,
    job_ids,
    key,
    later,
    launch,
    listed,
    release,
    run,
    state,
    stop,
    stopped,
    told,
    wanted,
    wished,
)

HIGH, LOW = "priority", "normal"


def paused(h: Host, reason: str = "new switch") -> Host:
    return after(h, PauseRequested(h.now, reason))


def unpaused(h: Host) -> Host:
    return after(h, PauseEnded(h.now))


def preempted(mode: str = "exclusive") -> Host:
    """`13` runs in p1, and `12` in n1 is stopped for it."""
    return stop(run(run(host(mode, n1=LOW, p1=HIGH), "n1", "12", cpus=4), "p1", "13", cpus=6), "n1", "12")


def test_since_when_and_why_are_facts_and_a_second_word_changes_the_reason_only() -> None:
    h = paused(host("exclusive", n1=LOW))
    assert h.paused == Pause(h.now, "new switch")
    again = paused(later(h, 60), "new cable")
    assert again.paused == Pause(h.now, "new cable")
    assert unpaused(again).paused is None


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_a_claim_that_would_preempt_is_refused_and_not_invited(mode: str) -> None:
    h = paused(run(host(mode, n1=LOW, p1=HIGH), "n1", "12", cpus=8))
    answer = claim(h, "p1", "13")
    assert answer.code == "paused"
    assert "new switch" in answer.text
    assert stopped(answer.host) == set()
    assert (state(h, "p1"), accepts(h, "p1")) == (State.OCCUPIED, set())
    assert claim(unpaused(h), "p1", "13").victims == ("n1",)


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_a_claim_that_stops_nobody_is_granted(mode: str) -> None:
    h = paused(host(mode, n1=LOW, p1=HIGH))
    assert claim(h, "n1", "12").ok
    assert claim(h, "p1", "13").ok
    assert claim(paused(preempted()), "p1", "14").ok, "beside the job for which n1 is stopped already"


def test_a_host_that_lost_its_hub_in_a_pause_reports_it_when_the_pause_is_over() -> None:
    h = paused(run(host("exclusive", hub=False, n1=LOW, p1=HIGH), "n1", "12"))
    assert claim(h, "p1", "13").code == "paused"
    assert claim(unpaused(h), "p1", "13").code == "hub-lost"


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_paused_in_mid_preemption_the_stopped_jobs_stay_stopped_until_unpaused(mode: str) -> None:
    h = release(paused(preempted(mode)), "p1", "13")
    assert (stopped(h), wanted(h), wished(h)) == ({"12"}, {"12"}, {"12"})
    assert state(h, "n1") is State.PREEMPTED
    assert wanted(later(h, 10_000)) == {"12"}, "no deadline ends it"
    assert wanted(unpaused(h)) == set()


def test_the_end_of_a_linger_or_of_another_hosts_wish_continues_nobody_either() -> None:
    h = stop(run(host("exclusive", n1=LOW, p1=f"{HIGH} lingering=8"), "n1", "12"), "n1", "12")
    assert wanted(later(paused(h), 60)) == {"12"}
    held = books(preempted(), Booking(key("12"), booked=True, held=True))
    assert wanted(books(paused(release(held, "p1", "13")), Booking(key("12"), booked=True))) == {"12"}


def test_another_hosts_wish_stops_nobody_here_before_the_pause_is_over() -> None:
    h = books(paused(run(host("exclusive", n1=LOW), "n1", "12")), Booking(key("12"), booked=True, held=True))
    assert (stopped(h), wanted(h)) == (set(), set())
    assert stopped(unpaused(h)) == {"12"}


def test_events_are_noted_as_usual() -> None:
    h = paused(preempted())
    assert job_ids(release(h, "n1", "12"), "n1") == set()
    assert get_job(launch(claim(h, "p1", "14").host, "p1", "14"), "p1", "14").confirmed
    assert job_ids(listed(h, "n1", "12", "99"), "n1") == {"12", "99"}


def test_a_job_that_an_agent_continued_before_the_pause_reached_it_runs_and_is_stopped_afterwards() -> None:
    h = paused(preempted())
    runs = go_on(h, "n1", "12")
    assert stopped(runs) == set(), "it was seen to run: a fact"
    assert stopped(unpaused(runs)) == {"12"}, "13 still has the host"


def test_nothing_is_requeued_while_paused() -> None:
    h = replace(preempted(), limits=Limits(max_preempted_s=10))
    assert stopping.to_requeue(h)
    assert not stopping.to_requeue(paused(h))


def test_nothing_is_saved_or_restored_while_paused() -> None:
    frozen = paused(host("exclusive", n1=LOW, p1=f"{HIGH} frozen"))
    assert defrost(frozen, "p1").code == "paused"
    assert defrost(unpaused(frozen), "p1").ok
    up = paused(host("exclusive", n1=LOW, p1=HIGH))
    assert ask(up, FreezeRequested(up.now, "p1")).code == "paused"
    assert get(up, "p1").lifecycle is Lifecycle.UP


# Steps

STOP_12 = Orders("n1", Order.STOP, (key("12"),))


def test_the_only_steps_are_the_stops_that_stand() -> None:
    h = preempted()
    new_agent = {"n1": ActualDomain(cpu_percent=None), "p1": ActualDomain(cpu_percent=100)}
    assert len(steps(h, new_agent)) > 1
    assert steps(paused(h), new_agent) == [STOP_12]
    told_so = {"n1": ActualDomain(orders={key("12"): Order.STOP}), "p1": ActualDomain()}
    assert steps(paused(h), told_so) == []


def test_a_job_on_its_way_back_stays_stopped_when_the_pause_begins() -> None:
    h = release(preempted(), "p1", "13")
    lifted = {"n1": ActualDomain(orders={key("12"): Order.LIFT}), "p1": ActualDomain()}
    assert STOP_12 not in steps(h, lifted)
    assert steps(paused(h), lifted) == [STOP_12]


def test_a_domain_that_needs_more_than_it_has_lacks_it() -> None:
    h = run(host("counted", n1=LOW, n2=LOW), "n1", "12", cpus=4)
    assert lacks(paused(h), {"n1": ActualDomain(cpu_percent=200)}, "n1")
    assert not lacks(paused(h), {"n1": ActualDomain(cpu_percent=400)}, "n1")
    assert not lacks(paused(h), {"n1": ActualDomain(cpu_percent=None)}, "n1"), "to be taken from is no lack"
    small = run(host("exclusive", n1=LOW, n2=LOW), "n1", "12", memory=100)
    assert lacks(paused(small), {"n1": ActualDomain(memory_mib=1_000), "n2": ActualDomain(memory_mib=0)}, "n1")


def test_an_unpaused_host_notes_the_jobs_that_it_stops() -> None:
    h = go_on(paused(preempted()), "n1", "12")
    _, decisions = handle(h, PauseEnded(h.now))
    assert told(decisions, "preempted") == ["12"]


def test_a_list_is_no_command() -> None:
    h = after(paused(preempted()), JobsReported(0.0, "n1", (ReportedJob(key("12"), suspended=False),)))
    assert stopped(h) == {"12"}
