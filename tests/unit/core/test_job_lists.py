"""MoM's own list is the truth about jobs (docs/rules.md)."""

from __future__ import annotations

from functools import partial

import pytest

from magrathea.core.events import Claimed, JobsReported, Note, Noted, ReportedJob
from magrathea.core.job_events import jobs_reported
from magrathea.core.machine import handle
from magrathea.core.model import JobClass, State, StoppedBy
from magrathea.core.shares import MOST_JOBS, MOST_JOBS_PER_CPU
from tests.steps import lines_run

from .builders import (
    LOW,
    PROTECTED,
    T,
    accepts,
    after,
    claim,
    get,
    get_job,
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
    told,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


@both
def test_a_job_missing_from_one_list_stays(mode: str) -> None:
    h = listed(run(host(mode, n1="normal"), "n1", "1"), "n1")
    assert job_ids(h, "n1") == {"1"}
    assert get_job(h, "n1", "1").missing == 1


@both
def test_a_job_missing_from_two_lists_is_released(mode: str) -> None:
    h = listed(run(host(mode, n1="normal"), "n1", "1"), "n1")
    h, decisions = handle(h, JobsReported(T + 15, "n1", ()))
    assert job_ids(h, "n1") == set()
    assert told(decisions, "missing") == ["1"]


@both
def test_a_list_that_has_the_job_again_restarts_the_count(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1")
    h = listed(listed(listed(h, "n1"), "n1", "1"), "n1")
    assert job_ids(h, "n1") == {"1"}


@both
def test_a_job_that_nobody_claimed_is_added_as_protected(mode: str) -> None:
    h = host(mode, n1="normal", p1="priority")
    h, decisions = handle(h, JobsReported(T, "n1", (ReportedJob(key("7", 3), cpus=2, memory_mib=50),)))
    job = get_job(h, "n1", "7")
    assert (job.key.run, job.cls, job.cpus, job.memory_mib, job.confirmed) == (3, JobClass.PROTECTED, 2, 50, True)
    assert told(decisions, "adopted") == ["7"]
    assert state(h, "n1") is State.RUNNING
    assert claim(h, "p1", "9", cpus=8).code in ("host-busy", "cpus")


@both
def test_a_job_that_is_only_ending_is_not_added(mode: str) -> None:
    """If a sister's answer was lost, a MoM lists the ended job for ever."""
    h = listed(host(mode, n1="normal", p1="priority"), "n1", ReportedJob(key("7"), ending=True))
    assert state(h, "n1") is State.FREE
    claim(h, "p1", "9")


@both
def test_an_adopted_job_is_never_stopped(mode: str) -> None:
    h = later(launch(listed(host(mode, n1="normal", p1="priority"), "n1", "7"), "n1", "7"), 600)
    assert state(h, "n1") is State.RUNNING


@both
def test_an_adopted_job_is_protected_in_a_priority_domain_too(mode: str) -> None:
    h = listed(host(mode, p1="priority"), "p1", "7")
    assert get_job(h, "p1", "7").cls is PROTECTED
    assert state(h, "p1") is State.RUNNING_PRIORITY


@both
def test_a_late_list_does_not_bring_back_a_released_job(mode: str) -> None:
    h = release(run(host(mode, n1="normal"), "n1", "1"), "n1", "1")
    assert job_ids(listed(h, "n1", "1"), "n1") == set()


@both
def test_a_job_that_is_still_listed_long_after_its_release_is_there(mode: str) -> None:
    h = release(run(host(mode, n1="normal"), "n1", "1"), "n1", "1")
    assert job_ids(listed(later(h, 120), "n1", "1"), "n1") == {"1"}


@both
def test_a_newer_run_in_the_list_replaces_the_older_one(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1")
    h = listed(h, "n1", ReportedJob(key("1", 2)))
    assert [j.key for j in get(h, "n1").jobs] == [key("1", 2)]


@both
def test_an_older_run_in_the_list_is_not_adopted(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1", run=2).host
    h = listed(h, "n1", ReportedJob(key("1", 1)), ReportedJob(key("1", 2)))
    assert [j.key for j in get(h, "n1").jobs] == [key("1", 2)]


@both
def test_a_job_that_pbs_suspended_counts_as_running_and_is_not_stoppable(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1")
    h = listed(h, "n1", ReportedJob(key("1"), suspended=True))
    assert get_job(h, "n1", "1").stopper is StoppedBy.PBS
    assert state(h, "n1") is State.RUNNING
    h = later(listed(h, "n1", "1"), 10)
    assert get_job(h, "n1", "1").stopper is None
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE


@both
def test_a_job_that_pbs_continued_is_young_again(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1", stopped_since=T - 100, stopper=StoppedBy.PBS)
    h = listed(h, "n1", "1")
    assert get_job(h, "n1", "1").run_since == T
    assert get_job(h, "n1", "1").preempted_s == 0, "not ours"


@both
def test_a_job_that_we_stopped_stays_ours_when_pbs_lists_it_as_suspended(mode: str) -> None:
    h = stop(run(host(mode, n1="normal"), "n1", "1"), "n1", "1")
    h = listed(h, "n1", ReportedJob(key("1"), suspended=True))
    assert get_job(h, "n1", "1").stopper is StoppedBy.US
    assert get_job(h, "n1", "1").stopped_since == T - 100


@both
def test_a_job_that_we_stopped_stays_stopped_when_the_list_is_older_than_the_suspend(mode: str) -> None:
    h = stop(run(host(mode, n1="normal"), "n1", "1"), "n1", "1", since=0.1, booked=False)
    assert get_job(listed(h, "n1", "1"), "n1", "1").stopper is StoppedBy.US


@both
def test_an_ending_job_is_not_stoppable(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1")
    h = listed(h, "n1", ReportedJob(key("1"), ending=True))
    assert get_job(h, "n1", "1").ending
    assert state(h, "n1") is State.RUNNING


@both
@pytest.mark.parametrize("text", ["normal down", "priority frozen", "service cpus=1"])
def test_a_domain_that_cannot_have_jobs_gets_none_from_a_list(mode: str, text: str) -> None:
    h = host(mode, n1=text)
    assert listed(h, "n1", "1").domains == h.domains


@both
def test_impossible_numbers_in_a_list_change_nothing_for_the_worse(mode: str) -> None:
    h = host(mode, n1="normal")
    h = listed(h, "n1", ReportedJob(key("1"), cpus=-5, memory_mib=-7))
    assert [(j.cpus >= 0, j.memory_mib >= 0) for j in get(h, "n1").jobs] == [(True, True)]


@both
def test_whether_it_may_be_requeued_is_taken_from_the_list(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1")
    h = listed(h, "n1", ReportedJob(key("1"), rerunnable=False))
    assert not get_job(h, "n1", "1").rerunnable


@both
def test_the_list_of_one_domain_does_not_affect_another(mode: str) -> None:
    h = run(run(host(mode, n1="normal", n2="normal"), "n1", "1"), "n2", "2")
    h = after(h, JobsReported(T, "n1", ()), JobsReported(T + 15, "n1", ()))
    assert job_ids(h, "n2") == {"2"}


def test_a_list_of_very_many_jobs_is_entered_in_one_pass() -> None:
    jobs = tuple(ReportedJob(key(str(number))) for number in range(2000))
    h = host("counted", cpus=512, n1="normal")
    for at in (T, T + 15):
        (h, _), lines = lines_run(partial(jobs_reported, h, get(h, "n1"), JobsReported(at, "n1", jobs)))
        assert lines < len(jobs) * 500  # each entry compared with all others: 2,000 comparisons
    assert len(get(h, "n1").jobs) == len(jobs)


@pytest.mark.long
@both
def test_a_domain_has_no_more_jobs_than_its_host_could_run(mode: str) -> None:
    h = host(mode, cpus=8, n1="normal", n2="normal")
    most = MOST_JOBS + MOST_JOBS_PER_CPU * 8
    for number in range(3):
        jobs = tuple(ReportedJob(key(f"{number}{n:04}"), 0) for n in range(5000))
        h, decisions = handle(h, JobsReported(h.now + 15, "n1", jobs))
        assert len(get(h, "n1").jobs) <= most
        assert any(d.what is Note.LEFT_OUT for d in decisions if isinstance(d, Noted))
    h, decisions = handle(h, JobsReported(h.now + 15, "n1", tuple(ReportedJob(j.key) for j in get(h, "n1").jobs)))
    assert decisions == (), "those that it has are not left out"
    assert len(get(h, "n1").jobs) == most
    assert claim(h, "n1", "9").code == "cpus"
    assert accepts(h, "n1") == set()
    h = listed(listed(h, "n1"), "n1")
    assert accepts(h, "n1") == {LOW, PROTECTED}


@both
def test_claims_make_no_more_jobs_than_cpus(mode: str) -> None:
    h = host(mode, cpus=8, n1="normal", n2="normal")
    for number in range(20):
        h = after(h, Claimed(h.now, "n1", key(f"{number}"), PROTECTED, 1))
    assert len(get(h, "n1").jobs) == 8


def test_a_domain_whose_list_has_a_new_job_lingers_no_longer() -> None:
    h = listed(host("counted", n1="normal", p1="priority lingering=6"), "p1", "1")
    assert job_ids(h, "p1") == {"1"} and get(h, "p1").linger_until is None
    assert get(listed(host("counted", p1="priority lingering=6"), "p1"), "p1").linger_until is not None
