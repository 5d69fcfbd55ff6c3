"""A domain is put to sleep with its jobs, and sleeps (docs/rules.md, "Sleep")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import stopping
from magrathea.core.events import (
    Booking,
    BootRequested,
    ConfiguredDomain,
    DefrostRequested,
    DomainEvent,
    DomainStopped,
    DrainRequested,
    FaultCleared,
    Faulted,
    FreezeEnded,
    FreezeRequested,
    ImageLost,
    JobsContinued,
    JobsDenied,
    PauseRequested,
    Reconfigured,
    ShutdownRequested,
)
from magrathea.core.life import Save
from magrathea.core.machine import handle, next_deadline
from magrathea.core.model import Amount, Host, Limits, Patience, SleepCause, State, StoppedBy
from magrathea.core.plan import desired

from .builders import (
    HIGH,
    LOW,
    PROTECTED,
    T,
    accepts,
    after,
    ask,
    books,
    claim,
    get,
    go_on,
    host,
    job_ids,
    key,
    later,
    launch,
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
from .sleepers import both, next_step, put_to_sleep, sleep_request, why, woken

# It falls asleep


@both
def test_all_its_jobs_are_stopped_of_every_class_and_old_or_young(mode: str) -> None:
    h = run(run(host(mode, n1="normal"), "n1", "1", cls=PROTECTED), "n1", "2", keeps="lic_a")
    h = launch(claim(h, "n1", "3").host, "n1", "3")
    h = ask(h, sleep_request("n1")).host
    assert wanted(h) == stopped(h) == {"1", "2", "3"} == wished(h)
    assert state(h, "n1") is State.DRAINING and "to be put to sleep: a new disk" in why(h, "n1")
    assert claim(h, "n1", "4").code == "domain-draining"


@both
def test_the_jobs_of_a_priority_domain_are_stopped_too(mode: str) -> None:
    h = ask(run(host(mode, p1="priority"), "p1", "9"), sleep_request("p1")).host
    assert stopped(h) == {"9"}


@both
def test_it_is_saved_when_each_job_is_stopped_and_suspended_in_pbs(mode: str) -> None:
    h = run(run(host(mode, n1="normal"), "n1", "1"), "n1", "2", stopper=StoppedBy.PBS, stopped_since=T - 5)
    h = ask(h, sleep_request("n1")).host
    assert stopped(h) == {"1"}, "PBS itself has suspended the other one"
    assert next_step(h, "n1") is None and "1 (run 1) is not suspended in PBS yet" in why(h, "n1")
    h = books(h, Booking(key("1"), booked=True))
    assert next_step(h, "n1") is Save
    assert next_step(after(h, PauseRequested(T, "wait")), "n1") is None


@both
def test_a_job_that_ends_is_waited_for(mode: str) -> None:
    h = ask(run(host(mode, n1="normal"), "n1", "1", ending=True), sleep_request("n1")).host
    assert stopped(h) == set() and next_step(h, "n1") is None and "is ending" in why(h, "n1")
    assert next_step(release(h, "n1", "1"), "n1") is Save


@both
def test_a_job_that_is_just_starting_is_waited_for(mode: str) -> None:
    h = ask(claim(host(mode, n1="normal"), "n1", "1").host, sleep_request("n1")).host
    h = books(h, Booking(key("1"), booked=True))
    assert stopped(h) == {"1"} and next_step(h, "n1") is None and "has not started yet" in why(h, "n1")
    assert next_step(launch(h, "n1", "1"), "n1") is Save


@both
def test_a_domain_without_jobs_is_saved_at_once_and_made_small_first(mode: str) -> None:
    h = ask(host(mode, n1="normal floor=100"), sleep_request("n1")).host
    assert next_step(h, "n1") is Save
    assert desired(h)["n1"].shrink
    h = after(h, FreezeEnded(T, "n1"))
    assert state(h, "n1") is State.ASLEEP
    assert state(after(h, DefrostRequested(T, "n1", T)), "n1") is State.BOOTING, "it needs no room"


def test_its_place_is_kept_until_it_is_saved() -> None:
    h = run(host("counted", cpus=8, n1="normal", n2="normal", p1="priority"), "n1", "1", cls=PROTECTED, cpus=6)
    h = ask(h, sleep_request("n1")).host
    assert (share(h, "n2", LOW), share(h, "p1", HIGH)) == (2, 2), "nothing of it is given away before it is saved"
    h = after(books(h, Booking(key("1"), booked=True)), FreezeEnded(T, "n1", failed="disk full"))
    assert state(h, "n1") is State.PREEMPTED and wanted(h) == set(), "the save failed: its job goes on"
    assert share(h, "p1", HIGH) == 2
    h = go_on(h, "n1", "1")
    assert state(h, "n1") is State.RUNNING and get(h, "n1").woken_at is None


def test_a_preempted_sibling_goes_on_when_the_priority_domain_is_saved_and_not_before() -> None:
    h = stop(run(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "p1", "9"), "n1", "1")
    h = ask(h, sleep_request("p1")).host
    assert wanted(h) == {"1", "9"}
    h = after(books(h, *(Booking(key(id), True) for id in ("1", "9"))), FreezeEnded(T, "p1"))
    assert wanted(h) == {"9"}


@both
def test_a_failed_save_is_noted_and_the_jobs_go_on(mode: str) -> None:
    h = ask(run(host(mode, n1="normal"), "n1", "1"), sleep_request("n1")).host
    h, said = handle(books(h, Booking(key("1"), True)), FreezeEnded(T, "n1", failed="disk full"))
    assert told(said, "freeze-failed") == ["n1"] and get(h, "n1").sleep is None and wanted(h) == set()


def test_a_claim_that_is_not_confirmed_yet_goes_on_too_if_its_domain_is_not_saved() -> None:
    h = run(host("counted", cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4)
    h = ask(claim(h, "p1", "9", cpus=4).host, sleep_request("p1")).host
    h = after(h, FreezeEnded(T, "p1", failed="disk full"))
    assert wanted(h) == {"1"}, "its job goes on, not that of its victim"


@both
def test_a_shutdown_of_the_host_waits_only_so_long_for_pbs(mode: str) -> None:
    h = run(host(mode, hub=False, n1="normal"), "n1", "1")
    h = ask(h, sleep_request("n1", cause=SleepCause.SHUTDOWN, within_s=20.0)).host
    assert next_step(h, "n1") is None and next_deadline(h) == T + 20
    assert next_step(later(h, 20), "n1") is Save


# Who does not


@both
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("service cpus=1", "wrong-kind"),
        ("priority frozen", "domain-frozen"),
        ("priority saving", "domain-frozen"),
        ("normal down", "domain-down"),
        ("normal booting", "domain-booting"),
        ("normal waking", "domain-booting"),
    ],
)
def test_what_cannot_be_put_to_sleep_is_refused(mode: str, text: str, code: str) -> None:
    h = host(mode, d1=text, n1="normal")
    assert ask(h, sleep_request("d1")).code == code and ask(h, sleep_request("d1")).host == h


@both
def test_without_a_hub_nobody_is_put_to_sleep(mode: str) -> None:
    assert ask(run(host(mode, hub=False, n1="normal"), "n1", "1"), sleep_request("n1")).code == "hub-lost"


@both
def test_other_reasons_for_a_refusal(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1")
    assert ask(after(h, PauseRequested(T, "wait")), sleep_request("n1")).code == "paused"
    assert ask(after(h, ShutdownRequested(T, "n1")), sleep_request("n1")).code == "domain-closing"
    assert ask(set_domain(h, "n1", paused_externally=True), sleep_request("n1")).code == "domain-unknown"
    assert ask(set_domain(h, "n1", configured=False), sleep_request("n1")).code == "not-freezable"


@both
def test_a_repeated_request_changes_nothing(mode: str) -> None:
    h = ask(run(host(mode, n1="normal"), "n1", "1"), sleep_request("n1")).host
    assert ask(h, sleep_request("n1")).ok and ask(h, sleep_request("n1")).host == h
    asleep = put_to_sleep(h, "n1")
    assert ask(asleep, sleep_request("n1")).ok and ask(asleep, sleep_request("n1")).host == asleep


# It sleeps


@both
def test_a_sleeper_blocks_nobody_and_holds_nothing(mode: str) -> None:
    h = put_to_sleep(run(host(mode, n1="normal", n2="normal", p1="priority"), "n1", "1", cpus=8, memory=9_000), "n1")
    assert state(h, "n1") is State.ASLEEP and job_ids(h, "n1") == {"1"} == stopped(h) == wished(h)
    assert "1 job: a new disk" in why(h, "n1") and "defrost n1" in why(h, "n1")
    assert get(h, "n1").use == Amount(0, 0) == get(h, "n1").use_when_stopped
    assert state(h, "n2") is State.FREE and accepts(h, "n2") == {LOW, PROTECTED}
    assert claim(h, "n2", "2", cpus=8, memory=16_000).ok
    assert claim(h, "p1", "9", cpus=8).victims == ()
    assert ask(h, replace(DefrostRequested(T, "n1", T), domain="n2")).code == "not-frozen"


@both
def test_nothing_releases_a_sleepers_jobs(mode: str) -> None:
    limits = Limits(max_preempted_s=60, agent_silent_s=10)
    h = put_to_sleep(run(host(mode, limits=limits, n1="normal", n2="normal"), "n1", "1"), "n1")
    h = later(listed(h, "n1"), 10_000_000)
    h = after(h, DomainStopped(h.now, "n1"), FreezeEnded(h.now, "n1"), JobsContinued(h.now, "n1", (key("1"),)))
    assert job_ids(h, "n1") == {"1"} == stopped(h) and state(h, "n1") is State.ASLEEP
    assert stopping.to_requeue(h) == frozenset()
    paused = after(h, PauseRequested(h.now, "wait"), JobsContinued(h.now, "n1", (key("1"),)))
    assert stopped(paused) == {"1"}


@both
def test_a_sleep_does_not_count_for_the_longest_time_preempted(mode: str) -> None:
    h = put_to_sleep(run(host(mode, limits=Limits(max_preempted_s=60), n1="normal"), "n1", "1"), "n1")
    h = woken(after(later(h, 10_000), DefrostRequested(T, "n1", T)), "n1")
    assert stopping.to_requeue(h) == frozenset()
    assert stopping.to_requeue(later(h, 61)) == {("n1", key("1"))}, "the time since it is back counts"


@both
def test_a_job_that_pbs_no_longer_has_is_released_in_its_sleep(mode: str) -> None:
    h = put_to_sleep(run(run(host(mode, n1="normal"), "n1", "1"), "n1", "2"), "n1")
    h, said = handle(h, JobsDenied(T, "n1", (key("1"),)))
    assert told(said, "over") == ["1"] and job_ids(h, "n1") == {"2"} and state(h, "n1") is State.ASLEEP


def test_a_priority_domain_does_not_linger_for_a_job_that_ended_in_its_sleep() -> None:
    h = put_to_sleep(run(host("counted", limits=Limits(linger_s=30), n1="normal", p1="priority"), "p1", "9"), "p1")
    assert share(after(h, JobsDenied(T, "p1", (key("9"),))), "n1", LOW) == 8


@both
def test_the_fault_of_a_sleeper_is_in_nobodys_way(mode: str) -> None:
    h = after(put_to_sleep(run(host(mode, n1="normal", n2="normal"), "n1", "1"), "n1"), Faulted(T, "n1", "broken"))
    assert state(h, "n1") is State.ASLEEP and accepts(h, "n2") == {LOW, PROTECTED}
    h = woken(after(h, DefrostRequested(T, "n1", T)), "n1")
    assert state(h, "n1") is State.FAULT and state(after(h, FaultCleared(T, "n1")), "n1") is State.PREEMPTED


@both
def test_a_lost_image_releases_its_jobs_and_says_so(mode: str) -> None:
    h = put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1")
    h, said = handle(h, ImageLost(T, "n1"))
    assert told(said, "domain-down") == ["1"] and state(h, "n1") is State.DOWN
    assert why(h, "n1") == "n1 is down: its image on disk is gone" and get(h, "n1").sleep is None


# Admins' requests about a sleeper


@both
@pytest.mark.parametrize(
    "event", [BootRequested(T, "n1"), ShutdownRequested(T, "n1"), ShutdownRequested(T, "n1", True)]
)
def test_a_boot_or_shutdown_of_a_sleeper_is_refused_with_the_fix(mode: str, event: DomainEvent) -> None:
    h = put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1")
    answer = ask(h, event)
    assert answer.code == "domain-asleep" and "domain defrost n1" in answer.text and answer.host == h


@both
@pytest.mark.parametrize(("text", "word"), [("priority falling", "undrain p1"), ("priority waking", "wait")])
def test_no_shutdown_and_no_freeze_comes_in_between(mode: str, text: str, word: str) -> None:
    h = host(mode, p1=text)
    answer = ask(h, ShutdownRequested(T, "p1", patience=Patience.NOW))
    assert answer.code == "domain-asleep" and word in answer.text
    assert not ask(h, FreezeRequested(T, "p1")).ok


@both
def test_a_sleeper_drains_when_it_is_back_if_it_was_to(mode: str) -> None:
    h = after(put_to_sleep(run(host(mode, n1="normal"), "n1", "1"), "n1"), DrainRequested(T, "n1", "repair"))
    assert state(h, "n1") is State.ASLEEP
    h = go_on(woken(after(h, DefrostRequested(T, "n1", T)), "n1"), "n1", "1")
    assert state(h, "n1") is State.DRAINING and why(h, "n1") == "repair"


def reload(h: Host, **kinds: str) -> Host:
    domains = tuple(
        ConfiguredDomain(name, get(h, name).kind.__class__(kind), 8) for name, kind in sorted(kinds.items())
    )
    return after(h, Reconfigured(h.now, h.name, h.mode, h.cpus, h.memory_mib, h.limits, domains))


@both
@pytest.mark.parametrize("jobs", [0, 1])
def test_a_sleeper_that_is_no_longer_configured_stays_until_it_is_woken(mode: str, jobs: int) -> None:
    h = host(mode, n1="normal", n2="normal")
    h = put_to_sleep(run(h, "n1", "1") if jobs else h, "n1")
    gone = later(reload(h, n2="normal"), 1_000)
    assert state(gone, "n1") is State.ASLEEP and not get(gone, "n1").configured
    refused = ask(gone, DefrostRequested(gone.now, "n1", T))
    assert refused.code == "not-freezable" and state(refused.host, "n1") is State.ASLEEP, "nothing could restore it"
    back = woken(after(reload(gone, n1="normal", n2="normal"), DefrostRequested(gone.now, "n1", T)), "n1")
    assert get(back, "n1").sleep is None and get(back, "n1").configured


@both
def test_a_sleeper_keeps_its_kind(mode: str) -> None:
    h = put_to_sleep(host(mode, n1="normal", n2="normal"), "n1")
    assert get(reload(h, n1="priority", n2="normal"), "n1").kind.value == "normal"
