"""A domain is put to sleep with its jobs, sleeps, and comes back (docs/rules.md, "Sleep")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import states, stopping
from magrathea.core.events import (
    AgentConnected,
    Booking,
    BootRequested,
    ConfiguredDomain,
    DefrostRequested,
    DomainBooting,
    DomainEvent,
    DomainStarted,
    DomainStopped,
    DrainEnded,
    DrainRequested,
    DriverLost,
    FaultCleared,
    Faulted,
    FreezeEnded,
    FreezeRequested,
    ImageLost,
    JobsContinued,
    JobsDenied,
    PauseEnded,
    PauseRequested,
    Reconfigured,
    ShutdownRequested,
    SleepEnded,
    SleepRequested,
)
from magrathea.core.life import Boot, GoOn, LifeStep, Register, Save, Seen, learned, step
from magrathea.core.machine import handle, next_deadline
from magrathea.core.model import Amount, Host, JobKey, Lifecycle, Limits, Patience, SleepCause, State, StoppedBy
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
    set_domain,
    share,
    state,
    stop,
    stopped,
    told,
    wanted,
    wished,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])
UP, DOWN = Seen(up=True, was_up=True, agent=True), Seen(up=False, was_up=False)
SAVED = replace(DOWN, saved=True)


def sleep_request(
    domain: str, *, cause: SleepCause = SleepCause.ADMIN, within_s: float | None = None
) -> SleepRequested:
    return SleepRequested(T, domain, "a new disk", cause, within_s)


def put_to_sleep(h: Host, domain: str) -> Host:
    """The domain falls asleep: its jobs are stopped, PBS suspends them, it is saved."""
    h = ask(h, sleep_request(domain)).host
    h = books(h, *(Booking(j.key, booked=True) for d in h.domains for j in d.stopped))
    return after(h, FreezeEnded(h.now, domain))


def woken(h: Host, domain: str) -> Host:
    return after(h, DomainStarted(h.now, domain), AgentConnected(h.now, domain))


def why(h: Host, domain: str) -> str:
    return states.why(h, get(h, domain))


def next_step(h: Host, domain: str, seen: Seen = UP) -> type[LifeStep] | None:
    due = step(h, get(h, domain), seen)
    return None if due is None else type(due)


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
