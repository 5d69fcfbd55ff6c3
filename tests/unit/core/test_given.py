"""What PBS says about jobs that guests have claimed or listed: it has given them to the domain, or it has not."""

from __future__ import annotations

import pytest

from magrathea.core.events import (
    Claimed,
    Event,
    GivenJob,
    JobLaunched,
    JobsDenied,
    JobsGiven,
    JobsReported,
    Note,
    Noted,
    ReportedJob,
)
from magrathea.core.machine import handle
from magrathea.core.model import Host, JobClass, Limits

from .builders import (
    HIGH,
    LOW,
    T,
    after,
    claim,
    get,
    get_job,
    go_on,
    host,
    job_ids,
    key,
    launch,
    release,
    run,
    share,
    stop,
)

LINGER = Limits(linger_s=20)


def lists(*ids: str, domain: str = "p1", cpus: int = 4) -> JobsReported:
    return JobsReported(T, domain, tuple(ReportedJob(key(id), cpus) for id in ids))


def denies(*ids: str, domain: str = "p1") -> JobsDenied:
    return JobsDenied(T, domain, tuple(key(id) for id in ids))


def gives(id: str, domain: str = "p1", cpus: int | None = None, mib: int | None = None) -> JobsGiven:
    return JobsGiven(T, domain, (GivenJob(key(id), cpus, mib),))


def notes(h: Host, event: Event) -> list[Note]:
    return [said.what for said in handle(h, event)[1] if isinstance(said, Noted)]


def test_a_listed_job_is_believed_until_pbs_has_said_that_it_is_not_there() -> None:
    h = after(host("counted", n1="normal", p1="priority"), lists("9"))
    assert share(h, "n1", LOW) == 4 and not get_job(h, "p1", "9").given
    assert notes(h, denies("9", "9", "8")) == [Note.NOT_GIVEN]
    h = after(h, denies("9"))
    assert share(h, "n1", LOW) == 8 and job_ids(h, "p1") == set()


def test_the_same_list_does_not_bring_back_what_pbs_has_denied_nor_does_a_claim() -> None:
    h = after(host("counted", n1="normal", p1="priority"), lists("9"), denies("9"), lists("9"))
    assert job_ids(h, "p1") == set()
    assert claim(h, "p1", "9").code == "run-ended"


def test_what_pbs_gives_after_it_was_denied_comes_back_with_the_next_list_or_claim() -> None:
    free = host("counted", n1="normal", p1="priority")
    h = after(free, lists("9"), denies("9"), gives("9"))
    assert job_ids(after(h, lists("9")), "p1") == {"9"}
    assert claim(h, "p1", "9").ok


def test_what_has_ended_does_not_come_back_because_pbs_has_not_heard_of_its_end() -> None:
    h = release(run(host("counted", n1="normal", p1="priority"), "p1", "9", cpus=4), "p1", "9")
    assert after(h, gives("9")) == h
    assert job_ids(after(h, gives("9"), lists("9")), "p1") == set()


def test_what_pbs_has_given_has_the_size_that_pbs_says_and_no_more_than_the_host() -> None:
    h = after(host("counted", memory=1_000, n1="normal", p1="priority"), lists("9", cpus=1))
    for cpus, mib, expected in ((None, None, (1, 0)), (3, 100, (3, 100)), (99, 9_999, (8, 1_000)), (None, 5, (8, 5))):
        h = after(h, gives("9", cpus=cpus, mib=mib))
        job = get_job(h, "p1", "9")
        assert (job.given, job.cpus, job.memory_mib) == (True, *expected)


def test_an_answer_about_a_job_that_is_gone_changes_nothing() -> None:
    h = host("counted", n1="normal", p1="priority")
    assert after(h, gives("9"), denies("9")) == h


def test_a_job_that_pbs_had_given_and_no_longer_has_is_over() -> None:
    h = run(host("counted", n1="normal", p1="priority"), "p1", "9", cpus=4)
    assert notes(h, denies("9")) == [Note.OVER]


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_only_a_job_that_pbs_has_given_makes_its_domain_linger(mode: str) -> None:
    for was_given in (True, False):
        h = run(host(mode, n1="normal", p1="priority", limits=LINGER), "p1", "9", given=was_given)
        assert (get(release(h, "p1", "9"), "p1").linger_until is not None) is was_given
        assert (get(after(h, denies("9")), "p1").linger_until is not None) is was_given


def test_without_a_hub_a_domain_lingers_after_a_job_about_which_nobody_could_be_asked() -> None:
    h = run(host("exclusive", hub=False, n1="normal", p1="priority", limits=LINGER), "p1", "9", given=False)
    assert get(release(h, "p1", "9"), "p1").linger_until is not None


def preempted() -> Host:
    """n1 with 8 CPUs is preempted by a job of p1, and p2 lists a job that PBS may not have given to it."""
    h = host("counted", n1="normal", p1="priority", p2="priority")
    h = stop(run(h, "n1", "1", cpus=8), "n1", "1")
    return after(run(h, "p1", "2", cpus=6), lists("9", domain="p2", cpus=2))


def test_a_job_keeps_siblings_stopped_until_pbs_has_denied_it() -> None:
    """Else a victim would go on beside honest jobs that have just been claimed."""
    h = release(preempted(), "p1", "2")
    assert get_job(go_on(h, "n1", "1"), "n1", "1").stopped_by_us
    h = after(h, denies("9", domain="p2"))
    assert get_job(go_on(h, "n1", "1"), "n1", "1").stopper is None


def test_a_victim_stays_stopped_beside_a_job_about_which_pbs_has_not_been_asked_yet() -> None:
    h = run(host("counted", n1="normal", n2="normal", p1="priority"), "n1", "1", cpus=6)
    h = after(h, Claimed(T, "p1", key("2"), HIGH, 2, given=False))
    h = claim(h, "p1", "3", cpus=1).host
    for running in ("2", "3"):
        h = launch(h, "p1", running)
    assert get_job(go_on(h, "n1", "1"), "n1", "1").stopped_by_us


def test_a_claimed_job_is_denied_like_a_listed_one() -> None:
    h = host("exclusive", n1="normal", p1="priority")
    h = after(h, Claimed(T, "p1", key("9"), JobClass.PRIORITY, 1, given=False), JobLaunched(T, "p1", key("9")))
    h = after(h, denies("9"))
    assert claim(h, "n1", "1").ok
