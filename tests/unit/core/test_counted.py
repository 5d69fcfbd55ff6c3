"""Counted hosts: shares and memory (docs/rules.md, "Counted hosts"). N is 8 unless stated otherwise."""

from __future__ import annotations

import pytest

from magrathea.core.model import Limits, State

from .builders import (
    HIGH,
    LOW,
    PROTECTED,
    accepts,
    claim,
    get,
    host,
    later,
    launch,
    release,
    run,
    share,
    state,
    stop,
    stopped,
    wanted,
)


def test_an_empty_host_is_shared_by_all() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    assert share(h, "n1", PROTECTED) == share(h, "n1", LOW) == share(h, "p1", HIGH) == 8


def test_services_are_subtracted_whether_they_are_up_or_not() -> None:
    h = host("counted", n1="normal", p1="priority", s1="service cpus=2", s2="service cpus=1 down")
    assert share(h, "n1", PROTECTED) == share(h, "p1", HIGH) == 5


def test_running_jobs_of_all_domains_are_subtracted() -> None:
    h = run(run(host("counted", n1="normal", n2="normal"), "n1", "1", cpus=3), "n2", "2", cpus=2, cls=PROTECTED)
    assert share(h, "n1", PROTECTED) == share(h, "n2", LOW) == 3


def test_several_domains_run_at_once() -> None:
    h = run(host("counted", n1="normal", n2="normal", p1="priority"), "n1", "1", cpus=3)
    h = claim(h, "n2", "2", cpus=3).host
    answer = claim(h, "p1", "9", cpus=2)
    assert answer.ok and answer.victims == ()
    assert stopped(answer.host) == set()


def test_protected_and_priority_jobs_do_not_get_the_reserve_of_a_frozen_domain_and_preemptible_ones_borrow_it() -> None:
    h = host("counted", n1="normal", p1="priority", p2="priority frozen cpus=3")
    assert share(h, "n1", PROTECTED) == 5
    assert share(h, "p1", HIGH) == 5
    assert share(h, "n1", LOW) == 8
    assert claim(h, "n1", "1", cpus=6, cls=PROTECTED).code == "cpus"
    assert claim(h, "n1", "1", cpus=8, cls=LOW).ok
    assert claim(h, "p1", "9", cpus=6).code == "cpus"


def test_no_share_is_negative() -> None:
    h = host("counted", n1="normal", p1="priority", p2="priority frozen cpus=6")
    h = run(h, "n1", "1", cpus=6, cls=PROTECTED)
    assert share(h, "n1", PROTECTED) == 0
    assert share(h, "p1", HIGH) == 0
    assert share(h, "n1", LOW) == 2


def test_priority_jobs_may_have_what_stoppable_domains_use() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority", p2="priority")
    h = run(run(run(h, "n1", "1", cpus=3), "n2", "2", cpus=2, cls=PROTECTED), "p1", "9", cpus=1)
    assert share(h, "p2", HIGH) == 5
    assert share(h, "n1", LOW) == 2


def test_while_any_domain_is_preempted_only_priority_jobs_have_a_share() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(stop(run(h, "n1", "1", cpus=4), "n1", "1"), "p1", "9", cpus=6)
    assert share(h, "n2", LOW) == share(h, "n2", PROTECTED) == 0
    assert share(h, "p1", HIGH) == 2
    assert state(h, "n2") is State.OCCUPIED
    assert claim(h, "n2", "2").code == "domain-preempted" or claim(h, "n2", "2").code == "cpus"
    assert claim(h, "p1", "8", cpus=2).ok


def test_running_domains_accept_by_share() -> None:
    h = run(host("counted", n1="normal", n2="normal"), "n1", "1", cpus=8)
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE
    assert accepts(h, "n1") == set()
    assert state(h, "n2") is State.OCCUPIED


def test_an_empty_domain_accepts_each_class_by_its_own_share() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority frozen cpus=4")
    h = run(h, "n2", "2", cpus=4)
    assert accepts(h, "n1") == {LOW}
    assert state(h, "n1") is State.FREE


def test_a_priority_domain_is_free_while_cpus_are_and_would_preempt_after_that() -> None:
    h = host("counted", n1="normal", p1="priority")
    assert state(run(h, "n1", "1", cpus=7), "p1") is State.FREE
    assert state(run(h, "n1", "1", cpus=8), "p1") is State.WOULD_PREEMPT
    assert state(run(h, "n1", "1", cpus=8, cls=PROTECTED), "p1") is State.OCCUPIED


def test_free_cpus_and_those_taken_by_preemption_are_used_first() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(stop(run(h, "n1", "1", cpus=4), "n1", "1"), "n2", "2", cpus=2)
    h = run(h, "p1", "9", cpus=4)
    answer = claim(h, "p1", "8", cpus=2)
    assert answer.ok and answer.victims == ()
    answer = claim(h, "p1", "8", cpus=3)
    assert answer.ok and answer.victims == ("n2",)


def test_a_lingering_domain_keeps_its_cpus_from_others_and_not_from_itself() -> None:
    h = host("counted", n1="normal", p1="priority lingering=6", p2="priority")
    assert share(h, "n1", LOW) == share(h, "n1", PROTECTED) == 2
    assert share(h, "p2", HIGH) == 2
    assert share(h, "p1", HIGH) == 8
    assert share(later(h, 31), "n1", LOW) == 8


def test_a_priority_domain_lingers_with_the_cpus_of_its_last_job() -> None:
    h = host("counted", n1="normal", p1="priority", limits=Limits(linger_s=20))
    h = run(run(h, "p1", "8", cpus=2), "p1", "9", cpus=5)
    h = release(h, "p1", "8")
    assert get(h, "p1").linger_until is None, "it still has a job"
    h = release(h, "p1", "9")
    assert share(h, "n1", LOW) == 3
    assert share(later(h, 21), "n1", LOW) == 8


def test_a_refusal_names_cpus_not_busy() -> None:
    h = run(host("counted", n1="normal", n2="normal"), "n1", "1", cpus=6)
    assert claim(h, "n2", "2", cpus=3).code == "cpus"
    assert claim(h, "n2", "2", cpus=2).ok


def test_memory_is_counted_like_cpus() -> None:
    h = host("counted", memory=10_000, n1="normal", n2="normal")
    h = run(h, "n1", "1", cpus=1, memory=7_000)
    assert claim(h, "n2", "2", memory=4_000).code == "memory"
    assert claim(h, "n2", "2", memory=3_000).ok


def test_a_priority_claim_may_preempt_for_memory_alone() -> None:
    h = host("counted", memory=10_000, n1="normal swap=10000", p1="priority")
    h = run(h, "n1", "1", cpus=1, memory=7_000)
    answer = claim(h, "p1", "9", memory=6_000)
    assert answer.ok and answer.victims == ("n1",)


def test_memory_of_a_stopped_job_that_cannot_be_swapped_is_not_given_away() -> None:
    h = host("counted", memory=10_000, n1="normal swap=0", p1="priority")
    h = run(h, "n1", "1", cpus=1, memory=7_000)
    refused = claim(h, "p1", "9", memory=6_000)
    assert refused.code == "memory"
    assert stopped(refused.host) == set()


def test_a_claim_takes_its_share_at_once_although_it_is_provisional() -> None:
    h = claim(host("counted", n1="normal", n2="normal"), "n1", "1", cpus=5).host
    assert claim(h, "n2", "2", cpus=4).code == "cpus"
    assert share(later(h, 61), "n2", LOW) == 8, "expired"


def test_a_just_launched_job_is_not_yet_stoppable() -> None:
    h = launch(claim(host("counted", n1="normal", p1="priority"), "n1", "1", cpus=6).host, "n1", "1")
    assert share(h, "p1", HIGH) == 2
    assert share(later(h, 6), "p1", HIGH) == 8


def test_an_unknown_domains_jobs_stay_counted_and_are_not_stoppable() -> None:
    h = run(host("counted", n1="normal unknown", p1="priority"), "n1", "1", cpus=6)
    assert share(h, "p1", HIGH) == 2
    assert claim(h, "p1", "9", cpus=3).code in ("cpus", "host-busy")


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1")])
def test_none_of_this_depends_on_the_order_in_which_things_came_about(order: tuple[str, str]) -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority frozen cpus=3")
    for domain in order:
        answer = claim(h, domain, domain, cpus=3, cls=LOW)
        assert answer.ok
        h = answer.host
    assert share(h, "n1", LOW) == 2
    assert share(h, "n1", PROTECTED) == 0
    assert wanted(h) == set()


def test_a_draining_domain_takes_nothing_but_its_jobs_stay_counted() -> None:
    h = run(host("counted", n1="normal draining", n2="normal"), "n1", "1", cpus=5)
    assert accepts(h, "n1") == set()
    assert share(h, "n2", LOW) == 3
