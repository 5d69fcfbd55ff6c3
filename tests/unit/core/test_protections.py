"""Protection from thrashing, several hosts, preempted time (docs/rules.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from magrathea.core.caps import preempted_cap
from magrathea.core.events import Booking, JobsContinued, Noted, ReportedJob
from magrathea.core.machine import handle, next_deadline
from magrathea.core.model import Host, Limits, State, StoppedBy
from magrathea.core.plan import desired

from .builders import (
    LOW,
    Answer,
    T,
    books,
    claim,
    get,
    get_job,
    go_on,
    host,
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

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


def busy(mode: str, limits: Limits | None = None, **facts: object) -> Host:
    """One normal domain with a job that takes all four CPUs, and one priority domain."""
    h = host(mode, cpus=4, n1="normal", p1="priority", limits=limits)
    return run(h, "n1", "1", cpus=4, **facts)  # type: ignore[arg-type]


def refused(answer: Answer) -> bool:
    return answer.code in ("host-busy", "cpus") and not stopped(answer.host)


@both
def test_a_job_younger_than_the_minimum_run_is_not_stopped(mode: str) -> None:
    h = busy(mode, age=3.0)
    assert refused(claim(h, "p1", "9"))
    assert claim(h, "p1", "9", after_s=2.1).ok


@both
def test_a_job_just_continued_is_young_again(mode: str) -> None:
    h = go_on(release(claim(busy(mode), "p1", "9").host, "p1", "9"), "n1", "1")
    assert refused(claim(h, "p1", "10"))
    assert claim(h, "p1", "10", after_s=5.1).ok


@both
def test_a_job_that_is_not_launched_is_not_stopped(mode: str) -> None:
    h = claim(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4).host
    h = later(h, 30)
    assert refused(claim(h, "p1", "9"))
    assert claim(later(launch(h, "n1", "1"), 5.1), "p1", "9").ok


@both
def test_young_jobs_protect_a_domain_for_a_limited_time_in_a_row(mode: str) -> None:
    """A stream of jobs of 4 s each: some job is always younger than the minimum run, until 60 s have passed."""
    h = host(mode, cpus=4, n1="normal", p1="priority")
    for i in range(20):
        id = str(i)
        h = launch(claim(h, "n1", id, cpus=1).host, "n1", id)
        if i > 0:
            h = release(h, "n1", str(i - 1))
        answer = claim(h, "p1", "9", cpus=4)
        if h.now - T < 60:
            assert refused(answer), f"after {h.now - T} s"
        else:
            assert answer.ok, f"after {h.now - T} s"
        h = later(h, 4)


@both
def test_a_gap_in_the_young_jobs_restarts_the_time(mode: str) -> None:
    h = host(mode, cpus=4, n1="normal", p1="priority")
    for i in range(20):
        id = str(i)
        h = launch(claim(h, "n1", id, cpus=1).host, "n1", id)
        assert refused(claim(h, "p1", "9", cpus=4))
        h = release(later(h, 4), "n1", id)
        h = later(h, 1)


@both
def test_a_job_stopped_as_often_as_the_cap_allows_is_not_stopped_again(mode: str) -> None:
    limits = Limits(max_preemptions=3)
    assert claim(busy(mode, limits, preemptions=2), "p1", "9").ok
    assert refused(claim(busy(mode, limits, preemptions=3), "p1", "9"))
    assert claim(busy(mode, Limits(), preemptions=3_000), "p1", "9").ok


@both
def test_an_ending_job_is_neither_stopped_nor_waited_for(mode: str) -> None:
    assert refused(claim(busy(mode, ending=True), "p1", "9"))


@both
def test_a_stopped_job_that_is_deleted_is_not_continued_to_die(mode: str) -> None:
    """Its end needs no CPU, and a priority job has all of them."""
    h = launch(claim(busy(mode), "p1", "9").host, "p1", "9")
    h = listed(h, "n1", ReportedJob(key("1"), cpus=4, suspended=True, ending=True))
    assert wanted(h) == {"1"}
    wants = desired(h)
    assert wants["n1"].cap == preempted_cap(h.limits)


@both
def test_a_job_that_must_not_run_is_not_continued_for_anybody(mode: str) -> None:
    h = launch(claim(busy(mode), "p1", "9").host, "p1", "9")
    assert go_on(h, "n1", "1") == h
    assert stopped(h) == {"1"}


@both
def test_the_end_of_a_protection_by_young_jobs_is_a_deadline(mode: str) -> None:
    h = host(mode, cpus=4, n1="normal", p1="priority", limits=Limits(min_run_s=100.0, young_s=60.0))
    h = launch(claim(h, "n1", "1", cpus=4).host, "n1", "1")
    assert T + 60 in list(deadlines(h))
    assert state(later(h, 59), "p1") is State.OCCUPIED
    assert state(later(h, 60), "p1") is State.WOULD_PREEMPT


def deadlines(h: Host) -> Iterator[float]:
    for _ in range(20):
        due = next_deadline(h)
        if due is None:
            return
        yield due
        h = later(h, due - h.now)


@both
def test_a_linger_follows_a_priority_jobs_end(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority", limits=Limits(linger_s=20)), "p1", "9", cpus=8)
    h = release(h, "p1", "9")
    assert state(h, "n1") is State.OCCUPIED
    assert claim(h, "n1", "1").code == ("host-lingers" if mode == "exclusive" else claim(h, "n1", "1").code)
    assert state(h, "p1") is State.FREE
    assert claim(h, "p1", "10", cpus=8).ok
    assert state(later(h, 21), "n1") is State.FREE


@both
def test_a_normal_domain_does_not_linger(mode: str) -> None:
    h = run(host(mode, n1="normal", n2="normal", limits=Limits(linger_s=20)), "n1", "1", cpus=8)
    assert state(release(h, "n1", "1"), "n2") is State.FREE


@both
def test_a_new_claim_ends_the_lingering_of_its_domain(mode: str) -> None:
    h = claim(host(mode, n1="normal", p1="priority lingering"), "p1", "9").host
    h = launch(h, "p1", "9")
    assert get(later(h, 31), "p1").linger_until is None


@both
def test_seconds_are_kept_per_job_and_domain(mode: str) -> None:
    h = launch(claim(busy(mode), "p1", "9").host, "p1", "9")
    h = release(later(h, 30), "p1", "9")
    h, decisions = handle(h, JobsContinued(T + 31, "n1", (key("1"),)))
    assert get_job(h, "n1", "1").preempted_s == pytest.approx(31)
    assert get_job(h, "n1", "1").stopped_since is None
    assert get(h, "n1").preempted_s == pytest.approx(31)
    assert [d.preempted_s for d in decisions if isinstance(d, Noted) and d.what == "continued"] == [pytest.approx(31)]


@both
def test_the_domain_keeps_the_seconds_of_a_job_that_ends_while_stopped(mode: str) -> None:
    h = launch(claim(busy(mode), "p1", "9").host, "p1", "9")
    h = release(later(h, 30), "n1", "1")
    assert get(h, "n1").preempted_s == pytest.approx(30)
    h = later(release(h, "p1", "9"), 1_000)
    assert get(h, "n1").preempted_s == pytest.approx(30)


@both
def test_a_preemption_is_noted_once_for_each_job(mode: str) -> None:
    h = run(busy(mode), "n1", "2", cpus=1)
    answer = claim(h, "p1", "9")
    assert sorted(told(answer.decisions, "preempted")) == ["1", "2"]


@both
def test_continuing_a_job_that_runs_changes_nothing(mode: str) -> None:
    h = busy(mode)
    assert go_on(h, "n1", "1") == h
    assert go_on(h, "n1", "77") == h


@both
def test_a_job_that_pbs_suspended_is_never_continued_by_us(mode: str) -> None:
    h = busy(mode, stopped_since=T - 9, stopper=StoppedBy.PBS)
    assert go_on(h, "n1", "1") == h
    assert wanted(h) == set()


@both
def test_the_hubs_books_are_facts_of_the_jobs(mode: str) -> None:
    h = claim(busy(mode), "p1", "9").host
    h = books(h, Booking(key("1"), booked=True))
    assert get_job(h, "n1", "1").booked
    assert not get_job(books(h), "n1", "1").booked, "not named: neither booked nor held"


@both
def test_books_about_a_job_of_another_run_or_an_unknown_one_change_nothing(mode: str) -> None:
    h = busy(mode)
    assert books(h, Booking(key("1", 2), booked=True), Booking(key("5"), booked=True)) == h


@both
def test_a_job_that_another_host_wants_stopped_is_preempted_here_too(mode: str) -> None:
    h = books(busy(mode), Booking(key("1"), booked=True, held=True))
    assert state(h, "n1") is State.PREEMPTED
    assert get_job(h, "n1", "1").held_elsewhere
    assert claim(h, "n1", "2").code == "domain-preempted"


@both
def test_another_hosts_wish_is_not_this_hosts_own(mode: str) -> None:
    """Otherwise two hosts would hold the job for each other for ever."""
    h = books(busy(mode), Booking(key("1"), booked=True, held=True))
    assert wanted(h) == {"1"}
    assert wished(h) == set()
    h = books(h, Booking(key("1"), booked=True))
    assert wanted(h) == set()


@both
def test_two_hosts_that_wanted_it_stopped_lift_that_one_after_the_other(mode: str) -> None:
    h = books(claim(busy(mode), "p1", "9").host, Booking(key("1"), booked=True, held=True))
    assert wished(h) == wanted(h) == {"1"}
    h = release(h, "p1", "9")
    assert wished(h) == set(), "told to the other host, which then lets go, too"
    assert wanted(h) == {"1"}
    assert wanted(books(h, Booking(key("1"), booked=True))) == set()


def test_a_held_job_keeps_no_cpus_from_other_preempted_domains() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = stop(stop(run(run(h, "n1", "1", cpus=6), "n2", "2", cpus=6), "n1", "1", since=90), "n2", "2", since=50)
    assert wanted(h) == {"2"}
    h = books(h, Booking(key("1"), booked=True, held=True), Booking(key("2"), booked=True))
    assert wanted(h) == {"1"}, "2 goes on while 1 has to wait for its other host"
    h = go_on(books(h, Booking(key("1"), booked=True, held=True)), "n2", "2")
    assert wished(h) == {"1"}, "and now it does not fit here either"


@both
def test_a_job_stopped_longer_than_the_limit_is_still_stopped_and_the_rest_of_the_host_continues(mode: str) -> None:
    h = launch(claim(busy(mode, Limits(max_preempted_s=60)), "p1", "9").host, "p1", "9")
    h = later(h, 61)
    assert wanted(h) == {"1"}


@both
def test_interactive_and_not_rerunnable_jobs_may_be_stopped_like_others(mode: str) -> None:
    assert claim(busy(mode, rerunnable=False), "p1", "9").ok


@both
def test_an_admins_own_resume_is_met_by_the_standing_stop(mode: str) -> None:
    h = launch(claim(busy(mode), "p1", "9").host, "p1", "9")
    h = books(h, Booking(key("1"), booked=True))
    h = books(later(h, 10))  # PBS has resumed it, but the priority job still runs
    assert wanted(h) == {"1"}
    assert "1" in stopped(h)


@both
def test_a_claim_of_class_preemptible_takes_part_like_any_other(mode: str) -> None:
    h = claim(busy(mode), "n1", "2", cls=LOW, cpus=4)
    assert h.code in ("accepted", "cpus"), "exclusive hosts may join within their CPUs"


def test_a_domain_continues_the_jobs_that_are_not_held_and_reports_it() -> None:
    h = host("counted", cpus=4, n1="normal", n2="normal", p1="priority")
    h = run(run(run(run(h, "n1", "1"), "n1", "2", cpus=3), "n2", "3"), "p1", "9", cpus=3)
    h = stop(stop(stop(h, "n1", "1", since=90), "n1", "2", since=90, held_elsewhere=True), "n2", "3", since=50)
    assert wanted(h) == {"2", "3"}, "1 fits beside 9, 2 would not"
    assert wished(h) == {"2", "3"}, "and this is what the hub is told: 1 may go on"


def test_two_hosts_do_not_block_each_other() -> None:
    """Either host has room for one of two jobs, and each host would take another job first."""

    def one(first: str, second: str) -> Host:
        h = host("counted", cpus=4, n1="normal", n2="normal", p1="priority")
        h = run(run(run(h, "n1", first, cpus=2), "n2", second, cpus=2), "p1", "9", cpus=2)
        return stop(stop(h, "n1", first, since=90), "n2", second, since=50)

    here, there = one("1", "2"), one("2", "1")
    assert (wished(here), wished(there)) == ({"2"}, {"1"})
    here = books(here, Booking(key("1"), booked=True, held=True), Booking(key("2"), booked=True))
    assert wished(here) == set(), "2 may go on here while 1 is held"
    there = books(there, Booking(key("1"), booked=True), Booking(key("2"), booked=True))
    assert wished(there) == {"1"}, "so 2 goes on on both hosts"
