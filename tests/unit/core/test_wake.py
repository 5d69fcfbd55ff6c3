"""A sleeping domain comes back, or is not put to sleep after all (docs/rules.md, "Sleep")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core.events import (
    Booking,
    DefrostRequested,
    DomainBooting,
    DomainEvent,
    DomainStopped,
    DrainEnded,
    DriverLost,
    FreezeEnded,
    FreezeRequested,
    HubFound,
    HubLost,
    ImageLost,
    PauseEnded,
    PauseRequested,
    SleepEnded,
)
from magrathea.core.life import Boot, GoOn, LifeStep, Register, Save, Seen, learned
from magrathea.core.machine import handle
from magrathea.core.model import JobKey, Lifecycle, Limits, SleepCause, State
from magrathea.core.plan import desired

from .builders import (
    LOW,
    PROTECTED,
    T,
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
    listed,
    release,
    run,
    set_domain,
    share,
    state,
    stop,
    stopped,
    told,
    wanted,
    wished,
)
from .sleepers import DOWN, SAVED, UP, both, next_step, put_to_sleep, sleep_request, why, woken

# It comes back


@both
def test_it_comes_back_at_once_if_there_is_room_and_its_jobs_go_on(mode: str) -> None:
    h = put_to_sleep(run(host(mode, n1="normal", n2="normal"), "n1", "1", cpus=4), "n1")
    h, said = handle(h, DefrostRequested(T, "n1", T + 60))
    assert told(said, "wakes") == ["n1"] and state(h, "n1") is State.BOOTING
    assert get(h, "n1").boot_until == T + get(h, "n1").boot_limit_s
    assert accepts(h, "n2") == set(), "while a domain boots nobody on its host accepts"
    h = woken(h, "n1")
    assert state(h, "n1") is State.PREEMPTED and get(h, "n1").sleep is None and wanted(h) == set()
    h = go_on(h, "n1", "1")
    assert state(h, "n1") is State.RUNNING and get_job(h, "n1", "1").preempted_s == 0


def test_while_it_comes_back_idle_siblings_give_up_what_they_keep() -> None:
    h = put_to_sleep(run(host("exclusive", n1="normal", p1="priority", p2="priority"), "n1", "1"), "n1")
    assert not desired(h)["p1"].shrink
    h = ask(h, DefrostRequested(T, "n1", T + 60)).host
    assert get(h, "n1").waking and [desired(h)[name].shrink for name in ("p1", "p2")] == [True, True]
    assert not desired(woken(h, "n1"))["p1"].shrink


def test_on_an_exclusive_host_it_comes_back_when_no_sibling_has_jobs() -> None:
    h = put_to_sleep(run(host("exclusive", n1="normal", n2="normal"), "n1", "1"), "n1")
    h = run(h, "n2", "2")
    h = ask(h, DefrostRequested(T, "n1", T)).host
    assert state(h, "n1") is State.ASLEEP and "waits for n2" in why(h, "n1")
    assert claim(h, "n2", "3").code == "host-busy", "small jobs must not keep it away for ever"
    assert wanted(h) == {"1"}, "it preempts nobody"
    assert state(release(h, "n2", "2"), "n1") is State.BOOTING


def test_on_a_counted_host_it_comes_back_when_its_jobs_fit() -> None:
    h = put_to_sleep(run(host("counted", n1="normal", n2="normal", n3="normal"), "n1", "1", cpus=4), "n1")
    h = run(run(h, "n2", "2", cpus=6), "n3", "3", cpus=1)
    h = ask(h, DefrostRequested(T, "n1", T)).host
    assert state(h, "n1") is State.ASLEEP and "4 CPUs; free are 1 CPUs" in why(h, "n1")
    assert (share(h, "n2", LOW), share(h, "n2", PROTECTED)) == (0, 0)
    assert state(release(h, "n3", "3"), "n1") is State.ASLEEP
    h = release(h, "n2", "2")
    assert state(h, "n1") is State.BOOTING and share(h, "n3", LOW) == 0


def test_its_memory_must_fit_too() -> None:
    h = host("counted", memory=10_000, n1="normal floor=500 swap=9000", n2="normal floor=500")
    h = put_to_sleep(run(h, "n1", "1", memory=6_000), "n1")
    h = ask(run(h, "n2", "2", memory=4_000), DefrostRequested(T, "n1", T)).host
    assert state(h, "n1") is State.ASLEEP and "6000 MiB; free are" in why(h, "n1")
    assert state(release(h, "n2", "2"), "n1") is State.BOOTING


def test_protected_jobs_of_a_sleeper_do_not_borrow_what_is_reserved_for_a_frozen_domain() -> None:
    h = host("counted", cpus=8, n1="normal", n2="normal", p1="priority cpus=4")
    h = put_to_sleep(run(h, "n1", "1", cls=PROTECTED, cpus=4), "n1")
    h = run(set_domain(h, "p1", frozen=True, lifecycle=Lifecycle.DOWN), "n2", "2", cpus=2)
    h = ask(h, DefrostRequested(T, "n1", T)).host
    assert state(h, "n1") is State.ASLEEP
    assert state(release(h, "n2", "2"), "n1") is State.BOOTING


@both
def test_its_place_is_kept_until_its_jobs_go_on(mode: str) -> None:
    h = host(mode, n1="normal", n2="normal", p1="priority", p2="priority")
    h = put_to_sleep(run(h, "n1", "1", cls=PROTECTED, cpus=8), "n1")
    h = woken(after(h, DefrostRequested(T, "n1", T)), "n1")
    assert claim(h, "p1", "9").code in ("host-busy", "cpus"), "a protected job is not pushed aside on its way back"
    assert state(h, "p1") is State.OCCUPIED


def test_sleepers_come_back_in_the_order_in_which_their_jobs_were_stopped() -> None:
    h = run(run(host("exclusive", n1="normal", n2="normal", n3="normal"), "n2", "2"), "n3", "3")
    h = later(put_to_sleep(h, "n2"), 5)
    h = put_to_sleep(release(run(h, "n1", "1"), "n1", "1"), "n3")
    h = run(h, "n1", "1")
    h = after(h, DefrostRequested(h.now, "n3", T), DefrostRequested(h.now, "n2", T))
    h = release(h, "n1", "1")
    assert (state(h, "n2"), state(h, "n3")) == (State.BOOTING, State.ASLEEP)


def test_a_job_that_another_host_holds_does_not_keep_its_domain_asleep() -> None:
    """Its other part may sleep, too, on a host that waits for this one."""
    h = put_to_sleep(run(host("exclusive", n1="normal", n2="normal"), "n1", "1"), "n1")
    h = books(h, Booking(key("1"), True, held=True))
    assert wished(h) == {"1"}, "asleep: we want it stopped ourselves"
    h = woken(ask(h, DefrostRequested(T, "n1", T)).host, "n1")
    assert wanted(h) == {"1"} and wished(h) == set(), "back: only the other host holds it"
    h = run(h, "n2", "2")
    assert claim(h, "n2", "3").code == "host-busy"


def test_two_domains_with_a_place_do_not_wait_for_each_other_on_a_host_that_was_made_smaller() -> None:
    h = host("counted", cpus=8, n1="normal", n2="normal")
    for name, id in (("n1", "1"), ("n2", "2")):
        h = put_to_sleep(run(h, name, id, cpus=4), name)
    h = woken(woken(after(h, DefrostRequested(T, "n1", T), DefrostRequested(T, "n2", T)), "n1"), "n2")
    h = replace(h, cpus=2)
    assert wanted(h) == {"2"}
    assert wanted(release(go_on(h, "n1", "1"), "n1", "1")) == set()


def test_an_overdue_domain_does_not_wait_for_room_that_is_kept_for_one_behind_it() -> None:
    h = host("counted", limits=Limits(overtaken_s=30), n1="normal", n2="normal")
    h = stop(run(h, "n1", "1", cpus=6), "n1", "1", since=500.0)
    h = set_domain(h, "n1", overtaken_since=T - 60)
    h = set_domain(stop(run(h, "n2", "2", cpus=4), "n2", "2", since=100.0), "n2", woken_at=T)
    assert wanted(h) == {"1"}


@both
def test_a_wake_waits_for_the_end_of_a_pause_and_for_the_hypervisor(mode: str) -> None:
    h = put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1")
    paused = ask(after(h, PauseRequested(T, "wait")), DefrostRequested(T, "n1", T))
    assert paused.ok and state(paused.host, "n1") is State.ASLEEP and "is paused" in why(paused.host, "n1")
    assert state(after(paused.host, PauseEnded(T)), "n1") is State.BOOTING
    lost = ask(after(h, DriverLost(T)), DefrostRequested(T, "n1", T)).host
    assert state(lost, "n1") is State.ASLEEP and "hypervisor" in why(lost, "n1")


@both
def test_jobs_that_pbs_takes_for_running_wait_for_a_hub_because_they_may_run_elsewhere(mode: str) -> None:
    h = ask(run(host(mode, n1="normal"), "n1", "1"), sleep_request("n1", within_s=0.0)).host
    h = after(h, HubLost(T), FreezeEnded(T, "n1"))
    h = ask(h, DefrostRequested(T, "n1", T)).host
    assert state(h, "n1") is State.ASLEEP and "waits for a hub" in why(h, "n1")
    assert state(after(h, HubFound(T)), "n1") is State.BOOTING


@both
def test_a_repeated_wish_to_come_back_changes_nothing(mode: str) -> None:
    h = put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1")
    once = ask(h, DefrostRequested(T, "n1", T)).host
    assert ask(once, DefrostRequested(T, "n1", T)).host == once


def test_one_that_waits_to_come_back_may_be_told_to_sleep_on() -> None:
    h = run(put_to_sleep(run(host("exclusive", n1="normal", n2="normal"), "n1", "1"), "n1"), "n2", "2")
    h = ask(h, DefrostRequested(T, "n1", T)).host
    h = ask(h, sleep_request("n1", cause=SleepCause.SHUTDOWN)).host
    sleep = get(h, "n1").sleep
    assert sleep is not None and not sleep.wakes and sleep.cause is SleepCause.SHUTDOWN
    assert state(release(h, "n2", "2"), "n1") is State.ASLEEP and claim(h, "n2", "3").ok


@both
@pytest.mark.parametrize("how", ["stopped", "too late"])
def test_a_failed_restore_leaves_it_asleep_and_says_why(mode: str, how: str) -> None:
    h = ask(put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1"), DefrostRequested(T, "n1", T)).host
    h = (
        later(h, 301)
        if how == "too late"
        else after(h, DomainStopped(T, "n1", "its restore failed; its image is kept"))
    )
    assert state(h, "n1") is State.ASLEEP and job_ids(h, "n1") == {"1"} == stopped(h)
    assert "its image is kept" in why(h, "n1")
    assert state(later(h, 1_000), "n1") is State.ASLEEP, "nobody tries again unasked"
    assert state(ask(h, DefrostRequested(h.now, "n1", T)).host, "n1") is State.BOOTING


@both
def test_somebody_elses_start_wakes_it(mode: str) -> None:
    h = put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1")
    h = after(h, DomainBooting(T, "n1", T + 60))
    assert state(h, "n1") is State.BOOTING and job_ids(h, "n1") == {"1"}
    assert job_ids(woken(h, "n1"), "n1") == {"1"}
    assert job_ids(listed(listed(woken(h, "n1"), "n1"), "n1"), "n1") == set(), "from now on MoM's list is the truth"


def test_started_by_somebody_else_beside_a_sibling_at_work_it_waits_on_an_exclusive_host() -> None:
    h = put_to_sleep(run(host("exclusive", n1="normal", n2="normal", n3="normal"), "n1", "1"), "n1")
    h = put_to_sleep(run(h, "n2", "2"), "n2")
    h = run(h, "n3", "3")
    for name in ("n1", "n2"):
        h = woken(after(h, DomainBooting(T, name, T + 60)), name)
    assert wanted(h) == {"1", "2"}, "one domain runs jobs at a time"
    h = release(h, "n3", "3")
    assert wanted(h) == {"2"}
    h = go_on(h, "n1", "1")
    assert wanted(h) == {"2"}
    assert wanted(release(h, "n1", "1")) == set()


def test_priority_jobs_that_are_back_go_on_before_an_earlier_sleeper_that_they_push_aside() -> None:
    """Both are started by somebody else. n1 is first in line, and waits for p1's job; p1 must not wait for n1."""
    h = put_to_sleep(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "n1")
    h = put_to_sleep(run(later(h, 10), "p1", "2"), "p1")
    for name in ("n1", "p1"):
        h = woken(after(h, DomainBooting(h.now, name, h.now + 60)), name)
    assert wanted(h) == {"1"}
    assert wanted(release(go_on(h, "p1", "2"), "p1", "2")) == set()


# It is given up


@both
def test_given_up_before_all_is_stopped_its_jobs_go_on_at_once(mode: str) -> None:
    h = ask(run(host(mode, n1="normal"), "n1", "1"), sleep_request("n1")).host
    for event in (DefrostRequested(T, "n1", T), DrainEnded(T, "n1")):
        given_up = after(h, event)
        assert get(given_up, "n1").sleep is None and wanted(given_up) == set()


@both
@pytest.mark.parametrize("event", [DefrostRequested(T, "n1", T), DrainEnded(T, "n1")])
def test_given_up_while_it_may_be_being_saved_the_hypervisor_tells_what_became_of_it(
    mode: str, event: DomainEvent
) -> None:
    h = ask(run(host(mode, n1="normal"), "n1", "1"), sleep_request("n1")).host
    h = after(books(h, Booking(key("1"), True)), event)
    assert wanted(h) == {"1"} and next_step(h, "n1") is None
    assert learned(h, get(h, "n1"), replace(UP, paused_externally=True)) is None, "it is being saved"
    awake = learned(h, get(h, "n1"), UP)
    assert isinstance(awake, SleepEnded)
    assert wanted(after(h, awake)) == set() and get(after(h, awake), "n1").sleep is None
    was_saved = learned(h, get(h, "n1"), SAVED)
    assert isinstance(was_saved, FreezeEnded)
    assert state(after(h, was_saved), "n1") is State.BOOTING, "it was saved after all, and comes back at once"


# What the hypervisor reports, and the next step


@pytest.mark.parametrize(
    ("text", "seen", "expected"),
    [
        ("normal falling", SAVED, FreezeEnded),
        ("normal falling", DOWN, DomainStopped),
        ("normal falling", replace(UP, paused_externally=True), None),
        ("normal asleep", SAVED, None),
        ("normal asleep", DOWN, ImageLost),
        ("normal asleep", replace(UP, was_up=False, agent=False), DomainBooting),
        ("normal asleep", replace(UP, was_up=None), None),
        ("normal asleep", replace(UP, was_up=None, agent=False), DomainBooting),
        ("normal asleep", replace(UP, agent=False), None),
        ("normal waking", SAVED, None),
        ("normal waking", DOWN, ImageLost),
        ("normal waking", replace(SAVED, was_up=True), DomainStopped),
    ],
)
def test_what_is_learned_about_sleepers(text: str, seen: Seen, expected: type[DomainEvent] | None) -> None:
    h = stop(run(host("exclusive", n1=text), "n1", "1"), "n1", "1")
    assert type(learned(h, get(h, "n1"), seen)) is (expected or type(None))


@pytest.mark.parametrize(
    ("text", "seen", "expected"),
    [
        ("normal falling", UP, Save),
        ("normal asleep", SAVED, None),
        ("normal waking", SAVED, Boot),
        ("normal waking", replace(UP, agent=False, paused_externally=True), GoOn),
        ("normal waking", UP, Register),
        ("normal asleep", UP, Register),
    ],
)
def test_the_next_step_of_sleepers(text: str, seen: Seen, expected: type[LifeStep] | None) -> None:
    h = stop(run(host("exclusive", n1=text), "n1", "1"), "n1", "1")
    assert next_step(h, "n1", seen) is expected


@both
def test_a_preempted_domain_that_somebody_else_saves_sleeps_if_pbs_has_its_jobs_suspended(mode: str) -> None:
    h = stop(run(host(mode, n1="normal", p1="priority"), "n1", "1"), "n1", "1")
    event = learned(h, get(h, "n1"), SAVED)
    assert isinstance(event, FreezeEnded)
    assert state(after(h, event), "n1") is State.ASLEEP and "somebody else" in why(after(h, event), "n1")
    running = run(host(mode, n1="normal"), "n1", "1")
    assert isinstance(learned(running, get(running, "n1"), SAVED), DomainStopped)


@both
def test_what_is_found_saved_sleeps_even_if_pbs_has_a_job_running(mode: str) -> None:
    """Whatever the books say by now: the jobs are in the image."""
    h = ask(run(host(mode, n1="normal"), "n1", "1", ending=True), sleep_request("n1")).host
    h = after(h, FreezeEnded(T, "n1"))
    assert state(h, "n1") is State.ASLEEP and stopped(h) == {"1"}


@both
def test_a_frozen_priority_domain_is_as_before(mode: str) -> None:
    h = after(host(mode, p1="priority"), FreezeRequested(T, "p1"), FreezeEnded(T, "p1"))
    assert state(h, "p1") is State.FROZEN and get(h, "p1").sleep is None
    assert state(defrost(h, "p1").host, "p1") is State.BOOTING


def test_the_identity_of_a_job_stays_over_a_sleep() -> None:
    h = run(host("counted", n1="normal"), "n1", "1")
    before = get_job(h, "n1", "1")
    h = woken(after(put_to_sleep(h, "n1"), DefrostRequested(T, "n1", T)), "n1")
    after_it = get_job(go_on(h, "n1", "1"), "n1", "1")
    assert after_it.key == JobKey("1", 1) and replace(after_it, preemptions=0, booked=False, run_since=0.0) == replace(
        before, run_since=0.0
    )
