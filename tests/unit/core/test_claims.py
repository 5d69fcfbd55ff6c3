"""Claims and releases: identity, repetition, impossible numbers, provisional claims."""

from __future__ import annotations

import pytest

from magrathea.core.changes import MOST_ENDED, MOST_ENDED_PER_CPU
from magrathea.core.events import Claimed, Refused, Released, ReportedJob, TimerFired
from magrathea.core.machine import FORGET_S, handle, next_deadline
from magrathea.core.model import Lifecycle, Limits

from .builders import (
    HIGH,
    LOW,
    OLD_S,
    PROTECTED,
    T,
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
    set_domain,
    stopped,
    told,
    wanted,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


@both
def test_an_accepted_claim_adds_the_job(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1", cpus=2, memory=300).host
    job = get_job(h, "n1", "1")
    assert (job.key, job.cls, job.cpus, job.memory_mib) == (key("1"), LOW, 2, 300)
    assert (job.claimed_at, job.run_since, job.confirmed, job.launched) == (T, T, False, False)


@both
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("normal down", "domain-down"),
        ("normal booting", "domain-booting"),
        ("normal unknown", "domain-unknown"),
        ("normal fault", "domain-fault"),
        ("normal draining", "domain-draining"),
        ("priority frozen", "domain-frozen"),
        ("priority saving", "domain-draining"),
    ],
)
def test_the_code_of_a_refusal_names_the_first_row_that_matches(mode: str, text: str, code: str) -> None:
    h = host(mode, n1=text, n2="normal")
    answer = claim(h, "n1", "1")
    assert answer.code == code
    assert answer.host == h
    assert "n1" in answer.text


@both
def test_a_preempted_domain_refuses(mode: str) -> None:
    h = claim(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4), "p1", "9").host
    assert claim(h, "n1", "2").code == "domain-preempted"


@both
@pytest.mark.parametrize(("cpus", "memory"), [(-1, 0), (-4, 100), (9, 0), (10**9, 0), (1, -1), (0, -1)])
def test_impossible_numbers_are_refused(mode: str, cpus: int, memory: int) -> None:
    h = host(mode, n1="normal", p1="priority")
    for domain in ("n1", "p1"):
        answer = claim(h, domain, "1", cpus=cpus, memory=memory)
        assert answer.code == "bad-request"
        assert answer.host == h


@both
def test_a_job_without_cpus_runs_and_takes_none(mode: str) -> None:
    h = host(mode, cpus=4, n1="normal", p1="priority")
    h = run(h, "n1", "1", cpus=4)
    answer = claim(h, "n1", "2", cpus=0)
    assert answer.ok
    assert get(answer.host, "n1").use.cpus == 4
    assert claim(answer.host, "n1", "3", cpus=0).ok
    assert claim(host(mode, n1="normal", p1="priority"), "p1", "4", cpus=0).ok


@both
def test_a_job_without_cpus_is_stopped_with_its_domain(mode: str) -> None:
    h = run(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4), "n1", "2", cpus=0)
    answer = claim(h, "p1", "9", cpus=4)
    assert answer.ok
    assert wanted(answer.host) == {"1", "2"}


def test_a_priority_job_without_cpus_stops_nobody_on_a_counted_host() -> None:
    """Not even if MoM's lists have brought more CPUs than the host has."""
    h = run(host("counted", cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4)
    overbooked = listed(h, "n1", "1", ReportedJob(key("2"), cpus=4))
    for full in (h, overbooked):
        answer = claim(full, "p1", "9", cpus=0)
        assert answer.ok
        assert wanted(answer.host) == set()


@both
def test_more_cpus_than_services_leave_are_refused(mode: str) -> None:
    h = host(mode, n1="normal", s1="service cpus=3")
    assert claim(h, "n1", "1", cpus=6).code in ("bad-request", "cpus")
    assert claim(h, "n1", "1", cpus=5).ok


@both
def test_more_memory_than_the_host_has_is_refused(mode: str) -> None:
    h = host(mode, n1="normal", memory=1_000)
    assert claim(h, "n1", "1", memory=1_001).code in ("bad-request", "memory")
    assert claim(h, "n1", "1", memory=1_000).ok


@both
@pytest.mark.parametrize(("domain", "cls"), [("n1", HIGH), ("p1", LOW), ("p1", PROTECTED), ("s1", LOW), ("s1", HIGH)])
def test_a_class_that_the_kind_does_not_take_is_refused(mode: str, domain: str, cls: object) -> None:
    h = host(mode, n1="normal", p1="priority", s1="service cpus=1")
    assert claim(h, domain, "1", cls=cls).code == "wrong-class"  # type: ignore[arg-type]


@both
def test_an_unknown_domain_is_refused(mode: str) -> None:
    h = host(mode, n1="normal")
    assert claim(h, "nowhere", "1").code == "unknown-domain"


@both
def test_a_repeated_claim_is_answered_like_the_first_and_changes_nothing(mode: str) -> None:
    first = claim(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4), "p1", "9")
    again = claim(first.host, "p1", "9")
    assert again.ok
    assert again.host == first.host
    much_later = claim(launch(first.host, "p1", "9"), "p1", "9", after_s=1_000)
    assert much_later.ok
    assert get_job(much_later.host, "p1", "9").claimed_at == T


@both
def test_a_repeated_claim_is_accepted_even_if_a_new_one_would_be_refused(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1").host
    assert claim(set_domain(h, "n1", draining="maintenance"), "n1", "1").ok


@both
def test_a_repeated_refused_claim_is_refused_again(mode: str) -> None:
    h = host(mode, n1="normal draining")
    assert claim(claim(h, "n1", "1").host, "n1", "1").code == "domain-draining"


@both
def test_a_repeated_release_succeeds_and_changes_nothing(mode: str) -> None:
    h = release(run(host(mode, n1="normal"), "n1", "1"), "n1", "1")
    assert release(h, "n1", "1") == h


@both
@pytest.mark.parametrize("domain", ["n1", "nowhere", "s1"])
def test_a_release_of_an_unknown_job_changes_nothing(mode: str, domain: str) -> None:
    h = host(mode, n1="normal", s1="service cpus=1")
    new, decisions = handle(h, Released(T, domain, key("77")))
    assert new.domains == h.domains
    assert not told(decisions, "released")


@both
def test_a_late_end_of_the_first_run_does_not_release_the_second(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1", run=2).host
    assert job_ids(release(h, "n1", "1", run=1), "n1") == {"1"}


@both
def test_a_claim_of_an_older_run_is_stale(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1", run=3).host
    answer = claim(h, "n1", "1", run=2)
    assert answer.code == "stale-run"
    assert answer.host == h


@both
def test_an_older_run_is_stale_even_when_the_newer_has_just_ended(mode: str) -> None:
    h = release(claim(host(mode, n1="normal"), "n1", "1", run=3).host, "n1", "1", run=3)
    assert claim(h, "n1", "1", run=2).code == "stale-run"
    assert job_ids(listed(h, "n1", ReportedJob(key("1", 2))), "n1") == set()
    assert claim(h, "n1", "1", run=4).ok


@both
def test_a_claim_of_a_newer_run_replaces_the_older(mode: str) -> None:
    h = claim(host(mode, cpus=4, n1="normal"), "n1", "1", cpus=4, run=1).host
    answer = claim(h, "n1", "1", cpus=4, run=2)
    assert answer.ok
    assert [j.key for j in get(answer.host, "n1").jobs] == [key("1", 2)]
    assert told(answer.decisions, "newer-run") == ["1"]


@both
def test_a_claim_of_a_run_that_has_just_ended_is_refused(mode: str) -> None:
    h = release(claim(host(mode, n1="normal"), "n1", "1").host, "n1", "1")
    assert claim(h, "n1", "1").code == "run-ended"
    assert claim(h, "n1", "1", run=2).ok


@both
def test_a_refused_newer_run_is_a_claim_that_changes_nothing(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1", run=1).host
    h = set_domain(h, "n1", draining="maintenance")
    answer = claim(h, "n1", "1", run=2)
    assert answer.code == "domain-draining"
    assert answer.host == h


@both
def test_the_same_job_id_in_two_domains_are_two_jobs(mode: str) -> None:
    h = run(run(host(mode, n1="normal", n2="normal"), "n1", "1"), "n2", "1")
    h = release(h, "n1", "1")
    assert job_ids(h, "n1") == set()
    assert job_ids(h, "n2") == {"1"}


@both
def test_a_claim_that_nothing_confirms_is_released_after_its_time(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1").host
    assert job_ids(later(h, 59), "n1") == {"1"}
    h, decisions = handle(h, TimerFired(T + 61))
    assert job_ids(h, "n1") == set()
    assert told(decisions, "expired") == ["1"]


@both
def test_a_launch_confirms_a_claim(mode: str) -> None:
    h = launch(claim(host(mode, n1="normal"), "n1", "1").host, "n1", "1")
    job = get_job(later(h, 600), "n1", "1")
    assert job.confirmed and job.launched


@both
def test_moms_list_confirms_a_claim(mode: str) -> None:
    h = listed(claim(host(mode, n1="normal"), "n1", "1").host, "n1", "1")
    assert get_job(later(h, 600), "n1", "1").confirmed


@both
def test_an_expired_priority_claim_leaves_no_lingering(mode: str) -> None:
    h = claim(host(mode, n1="normal", p1="priority", limits=Limits(linger_s=30)), "p1", "9").host
    assert get(later(h, 61), "p1").linger_until is None


@both
def test_the_job_of_an_expired_claim_that_starts_after_all_is_adopted_from_moms_list(mode: str) -> None:
    h = later(claim(host(mode, n1="normal"), "n1", "1").host, 61)
    h = later(h, OLD_S)
    assert job_ids(listed(h, "n1", "1"), "n1") == {"1"}


@both
def test_a_launch_of_an_unknown_job_changes_nothing(mode: str) -> None:
    h = host(mode, n1="normal")
    assert launch(h, "n1", "5") == h
    assert launch(h, "nowhere", "5") == h


@both
def test_a_refused_claim_changes_only_the_time(mode: str) -> None:
    h = host(mode, n1="normal draining", n2="normal")
    answer = claim(h, "n1", "1", after_s=3)
    assert answer.host == later(h, 3)


@both
def test_deadlines_up_to_the_events_time_take_effect_before_it(mode: str) -> None:
    h = claim(host(mode, cpus=4, n1="normal", n2="normal"), "n1", "1", cpus=4).host
    assert not claim(h, "n2", "2", cpus=4, after_s=50).ok
    assert claim(h, "n2", "2", cpus=4, after_s=61).ok


@both
def test_an_event_for_an_unknown_domain_is_refused(mode: str) -> None:
    _, decisions = handle(host(mode, n1="normal"), Released(T, "nowhere", key("1")))
    assert [d.code for d in decisions if isinstance(d, Refused)] == ["unknown-domain"]


@both
def test_hundreds_of_claims_and_releases_leave_nothing_behind(mode: str) -> None:
    h = host(mode, n1="normal")
    for i in range(300):
        at = T + i
        h = after(h, Claimed(at, "n1", key(str(i)), LOW, 1), Released(at + 0.5, "n1", key(str(i))))
    h = later(h, 3_600)
    assert get(h, "n1").jobs == () and get(h, "n1").ended == ()
    assert get(h, "n1").lifecycle is Lifecycle.UP
    assert stopped(h) == set()


@pytest.mark.long
def test_a_guest_that_ends_job_after_job_fills_no_facts() -> None:
    h = host("counted", n1="normal", cpus=8)
    for number in range(500):
        h = release(after(h, Claimed(h.now, "n1", key(f"{number}"), PROTECTED, 1)), "n1", f"{number}")
    assert len(get(h, "n1").ended) == MOST_ENDED + MOST_ENDED_PER_CPU * 8
    assert claim(h, "n1", "499").code == "run-ended", "the latest are remembered"


def test_ended_jobs_are_forgotten_together_however_many_there_are() -> None:
    """Each forgetting is a write to disk, and a guest decides how many of its jobs end."""
    h = host("counted", n1="normal", cpus=8)
    for number in range(60):
        h = after(h, Claimed(h.now + 0.5, "n1", key(f"{number}"), PROTECTED, 1))
        h = after(h, Released(h.now + 0.5, "n1", key(f"{number}")))
    began, last = h.now, h.limits.remember_s
    changes = 0
    while get(h, "n1").ended:
        due = next_deadline(h)
        assert due is not None
        before = get(h, "n1").ended
        h = after(h, TimerFired(due))
        changes += get(h, "n1").ended != before
        assert h.now >= began + last or get(h, "n1").ended, "none is forgotten before its time"
    assert changes <= 1 + 60 / FORGET_S
    assert h.now <= began + last + FORGET_S
