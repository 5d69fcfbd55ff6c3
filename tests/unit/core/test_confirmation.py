"""A guest's claim costs its siblings nothing until PBS has been asked whether the job is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core.events import Claimed
from magrathea.core.model import Host

from .builders import HIGH, LOW, PROTECTED, Answer, ask, claim, get_job, host, job_ids, key, later, run, stop, stopped


def unasked(h: Host, domain: str, id: str, *, cls: object = HIGH, cpus: int = 1) -> Answer:
    """The answer to a claim about which PBS has not been asked."""
    return ask(h, Claimed(h.now, domain, key(id), cls, cpus, given=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_nobody_is_stopped_for_a_job_that_pbs_was_not_asked_about(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1", cpus=8)
    answer = unasked(h, "p1", "9")
    assert answer.code == "unconfirmed" and "9 (run 1)" in answer.text
    assert answer.host == h
    assert claim(h, "p1", "9").victims == ("n1",), "once PBS has said so, it counts"


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_nobody_stays_stopped_for_a_job_that_pbs_was_not_asked_about(mode: str) -> None:
    """It would outlive the priority job that preempted the sibling."""
    h = host(mode, n1="normal", p1="priority", p2="priority")
    h = stop(run(run(h, "n1", "1", cpus=4), "p1", "8", cpus=4), "n1", "1")
    assert unasked(h, "p1", "9").code == "unconfirmed"
    assert claim(h, "p1", "9").ok


def test_a_claim_that_costs_nobody_anything_needs_no_question() -> None:
    counted = run(host("counted", n1="normal", n2="normal", p1="priority"), "n1", "1", cpus=4)
    assert unasked(counted, "p1", "9", cpus=4).ok
    assert unasked(counted, "p1", "9", cpus=5).code == "unconfirmed"
    for cls in (LOW, PROTECTED):
        assert unasked(counted, "n2", "9", cls=cls, cpus=4).ok
    exclusive = host("exclusive", n1="normal", p1="priority")
    assert unasked(exclusive, "p1", "9", cpus=8).ok
    assert unasked(run(exclusive, "p1", "8", cpus=4), "p1", "9").ok, "it joins its own domain's job"


def test_what_would_be_refused_anyway_needs_no_question() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1", cls=PROTECTED)
    assert unasked(h, "p1", "9").code == "host-busy"
    assert unasked(run(host("exclusive", hub=False, n1="normal", p1="priority"), "n1", "1"), "p1", "9").code == (
        "hub-lost"
    )


def test_a_repeated_claim_is_not_asked_about_again() -> None:
    first = claim(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "p1", "9")
    assert unasked(first.host, "p1", "9").ok
    assert get_job(first.host, "p1", "9").given


def test_an_older_run_in_the_way_makes_no_difference() -> None:
    h = run(run(host("counted", n1="normal", p1="priority"), "n1", "1", cpus=6), "p1", "9", cpus=2)
    newer = Claimed(h.now, "p1", key("9", 2), HIGH, 4, given=False)
    answer = ask(h, newer)
    assert answer.code == "unconfirmed" and answer.host == h
    assert ask(h, replace(newer, given=True)).victims == ("n1",)


def test_an_unconfirmed_claim_is_no_job() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1")
    assert job_ids(later(unasked(h, "p1", "9").host, 61), "p1") == set()
    assert stopped(unasked(h, "p1", "9").host) == set()
