"""The steps from the present state to the wanted one: ordered, idempotent, never more than the host has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core.caps import NO_CAP, preempted_cap, share_cap
from magrathea.core.events import ReportedJob
from magrathea.core.model import Host, JobKey, Limits, StoppedBy, StopWarning
from magrathea.core.plan import (
    ActualDomain,
    Order,
    Orders,
    SetCpu,
    SetMemory,
    Step,
    desired,
    lacks,
    ready,
    steps,
    warned_until,
)

from .builders import claim, go_on, host, key, later, launch, listed, release, run, set_domain, stop

Actual = dict[str, ActualDomain]


def applied(actual: Actual, step: Step) -> Actual:
    """The reading after a step that worked."""
    was = actual[step.domain]
    if isinstance(step, SetCpu):
        new = ActualDomain(step.cap.percent, was.memory_mib, was.orders)
    elif isinstance(step, SetMemory):
        new = ActualDomain(was.cpu_percent, step.mib, was.orders)
    else:
        new = ActualDomain(was.cpu_percent, was.memory_mib, {**was.orders, **dict.fromkeys(step.keys, step.order)})
    return {**actual, step.domain: new}


def carried_out(h: Host, actual: Actual) -> tuple[Actual, list[Step]]:
    """All steps, one at a time, computed anew after each, as the daemon does. Memory is never given twice."""
    done: list[Step] = []
    while todo := steps(h, actual):
        actual = applied(actual, todo[0])
        done.append(todo[0])
        assert len(done) < 50, f"no end: {done}"
        given = sum(a.memory_mib or 0 for a in actual.values())
        assert given <= h.memory_mib, f"{given} MiB given of {h.memory_mib} after {done}"
    return actual, done


def kinds(done: list[Step]) -> list[str]:
    return [f"{s.order} {s.domain}" if isinstance(s, Orders) else f"{type(s).__name__} {s.domain}" for s in done]


def pair(mode: str = "exclusive") -> Host:
    h = host(mode, cpus=4, memory=4_000, n1="normal floor=200 swap=4000", p1="priority floor=200")
    return run(h, "n1", "1", cpus=4, memory=1_000)


BEFORE: Actual = {"n1": ActualDomain(None, 3_800), "p1": ActualDomain(None, 200)}


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_nothing_to_do_is_nothing(mode: str) -> None:
    actual, _ = carried_out(pair(mode), BEFORE)
    assert steps(pair(mode), actual) == []


def test_jobs_are_stopped_before_their_cpus_and_memory_go_and_those_before_others_get_them() -> None:
    h = claim(pair(), "p1", "9", cpus=4, memory=500).host
    _, done = carried_out(h, BEFORE)
    assert kinds(done) == ["stop n1", "SetMemory n1", "SetCpu n1", "SetMemory p1"]
    assert SetCpu("n1", preempted_cap(h.limits)) in done
    assert SetMemory("p1", 3_800) in done, "nearly all goes to the priority domain"


def test_the_way_back_gives_memory_before_it_continues_jobs() -> None:
    h = claim(pair(), "p1", "9", cpus=4, memory=500).host
    actual, _ = carried_out(h, BEFORE)
    h = release(later(launch(h, "p1", "9"), 60), "p1", "9")
    actual, done = carried_out(h, actual)
    assert kinds(done) == ["SetMemory p1", "SetMemory n1", "SetCpu n1", "run n1"]
    assert actual["n1"] == ActualDomain(None, 3_800, {key("1"): Order.RUN})
    assert steps(go_on(h, "n1", "1"), actual) == []


def test_the_stop_of_a_booked_job_is_lifted_and_only_pbs_continues_it() -> None:
    h = stop(pair(), "n1", "1", booked=True)
    actual: Actual = {"n1": ActualDomain(10, 200, {key("1"): Order.STOP}), "p1": ActualDomain(None, 3_800)}
    assert ("n1", key("1")) not in ready(h, actual), "its memory is not back"
    actual, done = carried_out(h, actual)
    assert kinds(done)[-1] == "lift n1"
    assert "run n1" not in kinds(done)
    assert ("n1", key("1")) in ready(h, actual)


def test_no_job_is_ready_while_it_is_wanted_stopped() -> None:
    h = run(stop(pair(), "n1", "1"), "p1", "9")
    assert not ready(h, {"n1": ActualDomain(None, 3_800, {key("1"): Order.LIFT})})


def test_a_domain_that_becomes_free_keeps_cpu_and_memory_until_somebody_needs_them() -> None:
    h = release(pair(), "n1", "1")
    assert steps(h, BEFORE) == []
    h = claim(h, "n1", "2", cpus=4, memory=1_000).host
    assert steps(h, BEFORE) == [], "the next job of the same domain starts without a switch"
    h = claim(release(h, "n1", "2"), "p1", "9", cpus=4).host
    _, done = carried_out(h, BEFORE)
    assert kinds(done) == ["SetMemory n1", "SetMemory p1"]


def test_an_idle_domain_does_not_keep_the_cap_of_a_preempted_one() -> None:
    h = release(pair(), "n1", "1")
    assert SetCpu("n1", NO_CAP) in steps(h, {"n1": ActualDomain(10, 200), "p1": ActualDomain(None, 200)})


def test_every_interrupted_switch_continues_to_the_same_end() -> None:
    h = claim(pair(), "p1", "9", cpus=4, memory=500).host
    end, done = carried_out(h, BEFORE)
    actual = BEFORE
    for step in done:
        assert carried_out(h, actual)[0] == end
        actual = applied(actual, step)


def test_a_claim_during_a_switch_changes_the_target() -> None:
    h = claim(pair(), "p1", "9", cpus=4, memory=500).host
    half = BEFORE
    for step in steps(h, half)[:2]:
        half = applied(half, step)
    back = release(h, "p1", "9")
    end, done = carried_out(back, half)
    assert "run n1" in kinds(done)
    assert end["n1"].cpu_percent is None


def test_a_domain_without_an_agent_gets_no_orders() -> None:
    h = set_domain(claim(pair(), "p1", "9", cpus=4).host, "n1", agent_lost_at=1.0)
    assert not [s for s in steps(h, BEFORE) if isinstance(s, Orders)]


def test_there_are_no_steps_for_what_the_driver_cannot_do() -> None:
    h = claim(pair(), "p1", "9", cpus=4).host
    done = steps(h, {"n1": ActualDomain(None, None), "p1": ActualDomain(None, None)})
    assert not [s for s in done if isinstance(s, SetMemory)]
    assert steps(h, {}) == []


def test_counted_domains_get_the_cpus_of_their_jobs() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(h, "n1", "1", cpus=3), "n2", "2", cpus=2)
    wants = desired(h)
    assert (wants["n1"].cap, wants["n2"].cap, wants["p1"].idle) == (share_cap(3), share_cap(2), True)
    assert share_cap(3).percent == 300


def test_a_counted_domain_whose_jobs_have_no_cpus_can_still_move() -> None:
    """From a claim or from MoM's list: with a share of 0 % neither the job nor MoM could end."""
    h = host("counted", n1="normal", n2="normal")
    h = listed(run(h, "n1", "1", cpus=0), "n2", ReportedJob(key("2"), cpus=0))
    wants = desired(h)
    assert (wants["n1"].cap, wants["n2"].cap) == (share_cap(1), share_cap(1))
    assert desired(run(h, "n1", "3", cpus=2))["n1"].cap == share_cap(2)


def test_memory_that_cannot_leave_stays_with_its_domain() -> None:
    h = host("exclusive", cpus=4, memory=4_000, n1="normal floor=200 swap=300", p1="priority floor=200")
    h = claim(run(h, "n1", "1", cpus=4, memory=1_000), "p1", "9", cpus=4).host
    wants = desired(h)
    assert wants["n1"].memory_mib == 200 + 700
    assert wants["p1"].memory_mib == 4_000 - 900


def beside_a_stuck_domain(unreclaimable: int, needs: int = 0, memory: int = 4_000, **has: int) -> list[Step]:
    """The steps for memory while p1's job, which asked for `needs`, has preempted n1's; of n1 so much is stuck."""
    h = host("exclusive", cpus=4, memory=4_000, n1="normal floor=200 swap=4000", p1="priority floor=200")
    h = claim(run(h, "n1", "1", cpus=4, memory=1_000), "p1", "9", cpus=4, memory=needs).host
    h = replace(set_domain(h, "n1", unreclaimable_mib=unreclaimable), memory_mib=memory)
    actual = {name: ActualDomain(10 if name == "n1" else None, mib) for name, mib in has.items()}
    return [step for step in steps(h, actual) if isinstance(step, SetMemory)]


def test_a_domain_with_a_running_job_loses_no_memory_for_what_is_stuck_in_a_preempted_one() -> None:
    assert beside_a_stuck_domain(3_000, n1=200, p1=3_800) == []
    assert beside_a_stuck_domain(10**12, n1=200, p1=3_800) == []


def test_a_preempted_domain_is_given_no_memory_beyond_its_floor() -> None:
    assert beside_a_stuck_domain(1_000, n1=200, p1=2_000) == [SetMemory("p1", 2_800)]
    assert beside_a_stuck_domain(1_000, n1=150, p1=2_800) == [SetMemory("n1", 200)]
    assert beside_a_stuck_domain(1_000, n1=2_000, p1=2_000) == [SetMemory("n1", 1_200), SetMemory("p1", 2_800)]


def test_memory_that_the_host_no_longer_has_is_taken_but_never_what_the_running_job_needs() -> None:
    assert beside_a_stuck_domain(0, memory=3_000, n1=200, p1=3_800) == [SetMemory("p1", 2_800)]
    assert beside_a_stuck_domain(10**12, needs=700, memory=3_000, n1=200, p1=3_800) == [SetMemory("p1", 900)]


def test_orders_name_each_job_once_with_its_run() -> None:
    h = run(pair(), "n1", "2", cpus=1)
    h = claim(set_domain(h, "p1"), "p1", "9", cpus=4).host
    orders = [s for s in steps(h, BEFORE) if isinstance(s, Orders)]
    assert orders == [Orders("n1", Order.STOP, (JobKey("1", 1), JobKey("2", 1)))]
    assert h.limits == Limits()


def warned(warning: StopWarning | None, granted_s: float = 1.0) -> float | None:
    """The end of the warning of n1's stopped job, in seconds from its stop."""
    h = host("exclusive", cpus=4, limits=Limits(longest_warning_s=granted_s), n1="normal", p1="priority")
    h = claim(asking(run(h, "n1", "1", cpus=4), warning), "p1", "9", cpus=4).host
    domain = h.domain("n1")
    assert domain
    (job,) = domain.stopped
    until = warned_until(h, job)
    assert job.stopped_since is not None
    return None if until is None else until - job.stopped_since


def asking(h: Host, warning: StopWarning | None) -> Host:
    """The host, with n1's jobs asking for this warning."""
    domain = h.domain("n1")
    assert domain
    return h.having(domain.having(*(replace(job, warning=warning) for job in domain.jobs)))


def test_a_job_that_asked_for_a_warning_is_booked_after_its_time() -> None:
    assert warned(StopWarning("SIGUSR1", 0.5)) == 0.5
    assert warned(None) is None


def test_a_job_has_the_time_that_it_asked_for_as_far_as_the_site_grants_it() -> None:
    assert warned(StopWarning("SIGUSR1", 60), granted_s=120) == 60
    assert warned(StopWarning("SIGUSR1", 600), granted_s=120) == 120
    assert warned(StopWarning("SIGUSR1", 60), granted_s=0) == 0


def test_a_running_job_is_not_warned() -> None:
    h = asking(run(host("exclusive", n1="normal"), "n1", "1"), StopWarning("SIGUSR1", 1))
    domain = h.domain("n1")
    assert domain
    assert warned_until(h, domain.jobs[0]) is None


def test_only_a_domain_that_will_be_saved_is_made_small_first() -> None:
    h = host("exclusive", memory=4_000, n1="normal floor=200", p1="priority floor=300 saving")
    actual = {"n1": ActualDomain(None, 2_000), "p1": ActualDomain(None, 2_000)}
    assert carried_out(h, actual)[1] == [SetMemory("p1", 300)]
    assert steps(h, {**actual, "p1": ActualDomain(None, 100)}) == [], "nothing is given to it"
    busy = {"n1": ActualDomain(None, 200), "p1": ActualDomain(None, 3_800)}
    assert steps(run(h, "p1", "9"), busy) == [], "not while it has jobs"


def test_counted_domains_get_their_floor_and_the_memory_of_their_jobs() -> None:
    h = host("counted", n1="normal floor=300", n2="normal floor=200")
    wants = desired(run(h, "n1", "1", cpus=3, memory=1_000))
    assert (wants["n1"].memory_mib, wants["n2"].memory_mib) == (1_300, 200)


def test_the_floor_of_a_domain_that_is_down_stays_set_aside() -> None:
    h = host("exclusive", memory=4_000, n1="normal floor=200", n2="normal floor=500 down")
    assert desired(run(h, "n1", "1"))["n1"].memory_mib == 3_500


def test_a_domain_gets_no_more_memory_than_its_ceiling() -> None:
    h = host("exclusive", memory=4_000, n1="normal floor=200 memory=1500", p1="priority floor=200")
    assert desired(run(h, "n1", "1"))["n1"].memory_mib == 1_500


def test_two_domains_with_jobs_on_an_exclusive_host_get_what_their_jobs_have() -> None:
    """MoM's list may show jobs in two domains, although only one should have any."""
    h = host("exclusive", memory=4_000, n1="normal floor=200", n2="normal floor=300")
    wants = desired(run(run(h, "n1", "1", memory=1_000), "n2", "2", memory=500))
    assert (wants["n1"].memory_mib, wants["n2"].memory_mib) == (1_200, 800)


def test_a_domain_without_an_agent_does_not_keep_orders_from_the_next() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = claim(run(run(h, "n1", "1", cpus=4), "n2", "2", cpus=4), "p1", "9", cpus=8).host
    h = set_domain(h, "n1", agent_lost_at=h.now)
    actual = {name: ActualDomain(None, None) for name in ("n1", "n2", "p1")}
    assert [s for s in steps(h, actual) if isinstance(s, Orders)] == [Orders("n2", Order.STOP, (key("2"),))]


def test_an_idle_domain_does_not_keep_a_cap_from_the_next() -> None:
    h = run(host("counted", n1="normal", n2="normal"), "n2", "2", cpus=2)
    actual: Actual = {"n1": ActualDomain(400, None), "n2": ActualDomain(400, None)}
    assert steps(h, actual) == [SetCpu("n2", share_cap(2))]


def test_a_share_does_not_reach_into_the_cpus_of_services() -> None:
    """MoM's list may hold more than the host has: nobody claimed those jobs."""
    h = run(host("counted", cpus=8, n1="normal", s1="service cpus=3"), "n1", "1", cpus=4)
    h = listed(h, "n1", ReportedJob(key("1"), cpus=4), ReportedJob(key("2"), cpus=4))
    assert desired(h)["n1"].cap == share_cap(5)


def test_cpus_are_taken_before_others_get_them() -> None:
    h = run(run(host("counted", n1="normal", n2="normal"), "n1", "1", cpus=6), "n2", "2", cpus=2)
    actual: Actual = {"n1": ActualDomain(200, None), "n2": ActualDomain(600, None)}
    assert steps(h, actual) == [SetCpu("n2", share_cap(2)), SetCpu("n1", share_cap(6))]


@pytest.mark.parametrize(
    ("has", "lacking"),
    [
        (ActualDomain(200, 1_100), False),
        (ActualDomain(100, 1_100), True),
        (ActualDomain(300, 1_100), False),
        (ActualDomain(200, 1_000), True),
        (ActualDomain(200, 1_200), False),
        (ActualDomain(None, None), False),
    ],
)
def test_a_domain_lacks_only_what_it_still_has_to_be_given(has: ActualDomain, lacking: bool) -> None:
    h = run(host("counted", n1="normal floor=100"), "n1", "1", cpus=2, memory=1_000)
    assert lacks(h, {"n1": has}, "n1") is lacking
    assert not lacks(h, {"n1": has}, "n2")


def let_go(memory_mib: int = 3_800, order: Order = Order.LIFT, percent: int | None = None) -> bool:
    """True if the booked job of n1, which may run again, is ready to be resumed."""
    h = stop(pair(), "n1", "1", booked=True)
    actual: Actual = {"n1": ActualDomain(percent, memory_mib, {key("1"): order}), "p1": ActualDomain(None, 200)}
    return ("n1", key("1")) in ready(h, actual)


def test_a_booked_job_is_ready_when_its_domain_has_everything_back_and_its_stop_is_lifted() -> None:
    assert let_go()
    assert not let_go(memory_mib=3_000)
    assert not let_go(percent=10)
    assert not let_go(order=Order.STOP)


def test_a_job_can_be_ready_while_a_sibling_still_waits_for_memory() -> None:
    h = host("counted", n1="normal", n2="normal")
    h = run(stop(run(h, "n1", "1", cpus=2), "n1", "1", booked=True), "n2", "2", cpus=2)
    actual: Actual = {"n1": ActualDomain(200, None, {key("1"): Order.LIFT}), "n2": ActualDomain(100, None)}
    assert ("n1", key("1")) in ready(h, actual)


def test_no_job_is_ready_in_a_domain_that_has_not_been_read() -> None:
    h = stop(pair(), "n1", "1", booked=True)
    assert not ready(h, {})


def test_a_job_that_pbs_has_suspended_for_its_own_reasons_is_not_warned() -> None:
    h = host("exclusive", n1="normal")
    h = asking(run(h, "n1", "1", stopper=StoppedBy.PBS, stopped_since=9_000.0), StopWarning("SIGUSR1", 1))
    domain = h.domain("n1")
    assert domain
    assert warned_until(h, domain.jobs[0]) is None
