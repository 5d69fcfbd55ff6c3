"""The machine's decisions: a refusal has its code and names the domain; a note names domain and job."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from magrathea.core import events as ev
from magrathea.core.events import Note
from magrathea.core.machine import handle
from magrathea.core.model import Host, JobKey, Limits, StoppedBy
from magrathea.core.refusals import RefusalCode
from tests.steps import lines_run

from .builders import T, ask, defrost, get, get_job, host, key, later, listed, run, set_domain, stop

HOST = host(
    "counted", n1="normal", n2="normal down", n3="normal booting", p1="priority", p2="priority frozen", s1="service"
)
QUIET = host("counted", n1="normal", p1="priority", p2="priority frozen")
STOPPED = stop(run(run(QUIET, "n1", "1", cpus=8), "p1", "9", cpus=8), "n1", "1")


@pytest.mark.parametrize(
    ("before", "event", "code"),
    [
        (HOST, ev.JobLaunched(T, "n1", key("7")), RefusalCode.UNKNOWN_JOB),
        (HOST, ev.JobsContinued(T, "n1", (key("7"),)), RefusalCode.NOT_STOPPED),
        (STOPPED, ev.JobsContinued(T, "n1", (key("1"),)), RefusalCode.WANTED_STOPPED),
        (HOST, ev.JobsReported(T, "n2", ()), RefusalCode.NO_JOBS_HERE),
        (HOST, ev.JobsReported(T, "s1", ()), RefusalCode.NO_JOBS_HERE),
        (HOST, ev.DomainHalted(T, "n2"), RefusalCode.DOMAIN_DOWN),
        (HOST, ev.DomainBooting(T, "n2", T), RefusalCode.BAD_REQUEST),
        (HOST, ev.MemoryReported(T, "n1", -1), RefusalCode.BAD_REQUEST),
        (HOST, ev.DrainRequested(T, "s1", "x"), RefusalCode.WRONG_KIND),
        (HOST, ev.BootRequested(T, "s1"), RefusalCode.WRONG_KIND),
        (HOST, ev.BootRequested(T, "p2"), RefusalCode.DOMAIN_FROZEN),
        (HOST, ev.ShutdownRequested(T, "p2"), RefusalCode.DOMAIN_FROZEN),
        (HOST, ev.FreezeRequested(T, "n1"), RefusalCode.NOT_FREEZABLE),
        (HOST, ev.FreezeEnded(T, "p1"), RefusalCode.NOT_SAVING),
        (HOST, ev.DefrostRequested(T, "p1", T + 300), RefusalCode.NOT_FROZEN),
        (QUIET, ev.DefrostRequested(T, "p2", T), RefusalCode.NOT_FROZEN),
        (HOST, ev.DefrostRequested(T, "p2", T + 300), RefusalCode.HOST_BOOTING),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ev.TimedEvent) else str(value)[:20],
)
def test_impossible_requests_are_refused_with_code_and_sentence(
    before: Host, event: ev.DomainEvent, code: RefusalCode
) -> None:
    after, said = handle(before, event)
    refused = [d for d in said if isinstance(d, ev.Refused)]
    assert [(d.domain, d.code) for d in refused] == [(event.domain, code)]
    assert refused[0].text
    keys = event.keys if isinstance(event, ev.JobsContinued) else (getattr(event, "key", None),)
    assert [one.key for one in refused] == list(keys)
    assert after == before


@pytest.mark.parametrize("event", [ev.BootRequested(T, "n1"), ev.ShutdownRequested(T, "n1")])
def test_a_request_that_is_accepted_names_its_domain(event: ev.Event) -> None:
    said = handle(host("exclusive", n1="normal"), event)[1]
    assert said == (ev.Accepted("n1"),)


def test_a_restore_names_its_domain_and_its_victims() -> None:
    h = run(host("counted", n1="normal", p1="priority frozen"), "n1", "1", cpus=8)
    answer = defrost(h, "p1")
    assert (answer.code, answer.victims) == ("accepted", ("n1",))
    assert [d.domain for d in answer.decisions if isinstance(d, ev.Accepted)] == ["p1"]
    repeated = ask(answer.host, ev.DefrostRequested(T, "p1", T + 300))
    assert [d.domain for d in repeated.decisions if isinstance(d, ev.Accepted)] == ["p1"]


def test_a_paused_host_refuses_an_admins_order_for_a_domain_with_the_reason() -> None:
    h = handle(host("exclusive", n1="normal"), ev.PauseRequested(T, "new disk"))[0]
    answer = ask(h, ev.ShutdownRequested(T, "n1"))
    assert answer.code == RefusalCode.PAUSED and "new disk" in answer.text


def test_a_second_shutdown_keeps_the_time_of_the_first() -> None:
    h = handle(run(host("exclusive", n1="normal"), "n1", "1"), ev.ShutdownRequested(T, "n1"))[0]
    closing = get(handle(h, ev.ShutdownRequested(T + 50, "n1", reboot=True))[0], "n1").closing
    assert closing and (closing.reboot, closing.since) == (True, T)


# Notes


def notes(said: tuple[ev.Decision, ...]) -> list[tuple[Note, str, JobKey | None]]:
    return [(d.what, d.domain, d.key) for d in said if isinstance(d, ev.Noted)]


def test_each_change_about_jobs_is_noted_with_domain_and_job() -> None:
    h = run(run(host("counted", n1="normal"), "n1", "1", missing=1), "n1", "2", missing=1)
    newer = ev.ReportedJob(key("2", run=2))
    said = handle(h, ev.JobsReported(T, "n1", (newer, ev.ReportedJob(key("3")))))[1]
    assert notes(said) == [
        (Note.MISSING, "n1", key("1")),
        (Note.NEWER_RUN, "n1", key("2")),
        (Note.ADOPTED, "n1", key("2", run=2)),
        (Note.ADOPTED, "n1", key("3")),
    ]


def test_a_continuation_is_noted_with_its_seconds() -> None:
    h = stop(run(host("counted", n1="normal"), "n1", "1"), "n1", "1", since=70.0)
    said = handle(h, ev.JobsContinued(T, "n1", (key("1"),)))[1]
    assert said == (ev.Noted("n1", Note.CONTINUED, key("1"), "", 70.0),)


def test_each_job_of_a_continuation_is_judged_by_itself() -> None:
    h = host("counted", n1="normal")
    for id, since in (("1", 70.0), ("3", 20.0)):
        h = stop(run(h, "n1", id), "n1", id, since=since)
    h, said = handle(h, ev.JobsContinued(T, "n1", (key("1"), key("2"), key("3"), key("1"))))
    assert [(type(one), one.key) for one in said] == [
        (ev.Noted, key("1")),
        (ev.Refused, key("2")),
        (ev.Noted, key("3")),
    ]
    assert not get(h, "n1").stopped
    assert get(h, "n1").preempted_s == 90.0


@pytest.mark.long
def test_very_many_jobs_continue_in_one_pass() -> None:
    most = 1000
    h = host("counted", n1="normal")
    ids = [str(number) for number in range(most)]
    for id in ids:
        h = run(h, "n1", id, cpus=0)
    stopped = h.having(
        replace(get(h, "n1"), jobs=tuple(replace(j, stopped_since=T, stopper=StoppedBy.US) for j in get(h, "n1").jobs))
    )
    (h, said), lines = lines_run(partial(handle, stopped, ev.JobsContinued(T, "n1", tuple(map(key, ids)))))
    assert len(said) == most
    assert lines < most * 400  # each with an event of its own: half a million for each


def test_the_end_of_a_job_is_noted_with_all_its_preempted_seconds() -> None:
    h = stop(run(host("counted", n1="normal"), "n1", "1", preempted_s=500.0), "n1", "1", since=70.0)
    said = handle(h, ev.Released(T, "n1", key("1")))[1]
    assert said == (ev.Noted("n1", Note.RELEASED, key("1"), "", 570.0),)


def test_all_that_ends_at_one_moment_is_noted() -> None:
    h = host("counted", n1="normal booting", n2="normal booting", n3="normal", limits=Limits(claim_s=300.0))
    for id in ("1", "2"):
        h = run(h, "n3", id, confirmed=False, launched=False, claimed_at=T, run_since=T)
    said = handle(h, ev.TimerFired(T + 300))[1]
    assert notes(said) == [
        (Note.BOOT_FAILED, "n1", None),
        (Note.BOOT_FAILED, "n2", None),
        (Note.EXPIRED, "n3", key("1")),
        (Note.EXPIRED, "n3", key("2")),
    ]
    assert all(d.text for d in said if isinstance(d, ev.Noted) and d.what is Note.BOOT_FAILED)


def test_a_saving_that_failed_is_noted_with_its_reason() -> None:
    h = host("exclusive", p1="priority saving")
    after, said = handle(h, ev.FreezeEnded(T, "p1", failed="no space"))
    assert said == (ev.Noted("p1", Note.FREEZE_FAILED, None, "no space"),)
    assert not get(after, "p1").saving and not get(after, "p1").frozen


# Facts that only later events use


def test_a_launch_starts_the_minimum_run_once() -> None:
    h = run(host("exclusive", n1="normal"), "n1", "1", launched=False, confirmed=False)
    h = handle(h, ev.JobLaunched(T, "n1", key("1")))[0]
    assert get_job(h, "n1", "1").run_since == T
    h = handle(h, ev.JobLaunched(T + 9, "n1", key("1")))[0]
    assert get_job(h, "n1", "1").run_since == T


def test_a_job_that_mom_lists_as_running_stays_as_it_is() -> None:
    h = run(host("exclusive", n1="normal"), "n1", "1")
    assert get_job(listed(h, "n1", "1"), "n1", "1") == get_job(h, "n1", "1")


def test_a_job_suspended_by_pbs_counts_from_the_list_and_its_run_restarts_afterwards() -> None:
    h = listed(run(host("exclusive", n1="normal"), "n1", "1"), "n1", ev.ReportedJob(key("1"), suspended=True))
    assert get_job(h, "n1", "1").stopped_since == T
    h = listed(later(h, 60), "n1", "1")
    job = get_job(h, "n1", "1")
    assert (job.stopped_since, job.stopper, job.run_since) == (None, None, T + 60)


@pytest.mark.parametrize(("age", "believed"), [(4.9, False), (5.0, True)])
def test_a_list_may_be_some_seconds_old(age: float, believed: bool) -> None:
    h = run(host("exclusive", n1="normal"), "n1", "1", age=age)
    h = listed(h, "n1", ev.ReportedJob(key("1"), suspended=True))
    assert (get_job(h, "n1", "1").stopped_since is not None) is believed


def test_an_adopted_job_equals_one_that_was_claimed_and_launched() -> None:
    report = ev.ReportedJob(key("1"), cpus=2, memory_mib=300, rerunnable=False)
    job = get_job(listed(host("exclusive", n1="normal"), "n1", report), "n1", "1")
    assert (job.confirmed, job.launched, job.rerunnable) == (True, True, False)
    assert (job.claimed_at, job.run_since, job.cpus, job.memory_mib) == (T, T, 2, 300)


def test_ending_jobs_do_not_hide_the_rest_of_the_list() -> None:
    h = listed(host("exclusive", n1="normal"), "n1", ev.ReportedJob(key("1"), ending=True), "2")
    assert [j.key for j in get(h, "n1").jobs] == [key("2")]


def test_a_linger_leaves_nothing_behind() -> None:
    h = host("exclusive", p1="priority", limits=Limits(linger_s=30.0))
    h = handle(run(h, "p1", "9", cpus=3), ev.Released(T, "p1", key("9")))[0]
    assert (get(h, "p1").linger_until, get(h, "p1").linger_size.cpus) == (T + 30, 3)
    h = later(later(h, 30), 1)
    assert (get(h, "p1").linger_until, get(h, "p1").linger_size.cpus) == (None, 0)


def test_a_domain_that_is_up_again_has_nothing_left_of_its_absence() -> None:
    h = set_domain(host("exclusive", n1="normal booting"), "n1", down_why="power cut", paused_externally=True)
    up = get(handle(h, ev.DomainStarted(T, "n1"))[0], "n1")
    assert (up.boot_until, up.down_why, up.paused_externally, up.linger_until) == (None, "", False, None)


def test_why_a_domain_is_down_is_kept() -> None:
    h = handle(host("exclusive", n1="normal"), ev.DomainStopped(T, "n1", "power cut"))[0]
    assert get(h, "n1").down_why == "power cut"
    assert get(handle(h, ev.DomainStopped(T, "n1"))[0], "n1").down_why == "power cut", "said again without a reason"
    assert get(handle(host("exclusive", n1="normal"), ev.DomainStopped(T, "n1"))[0], "n1").down_why
    lost = handle(host("exclusive", p1="priority frozen"), ev.ImageLost(T, "p1"))[0]
    assert get(lost, "p1").down_why and get(lost, "p1").frozen is False
