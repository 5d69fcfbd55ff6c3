"""What PBS and people see of a domain besides its state: size, rank, and the reason as a sentence."""

from __future__ import annotations

import pytest

from magrathea.core import states
from magrathea.core.model import Amount, Host, Limits
from magrathea.core.states import RANK_FREE, RANK_NONE, RANK_RUNNING, RANK_WOULD_PREEMPT

from .builders import T, accepts, get, host, release, run, set_domain, stop


def size(h: Host, name: str) -> Amount:
    return states.published(h, get(h, name))


def rank(h: Host, name: str) -> int:
    return states.rank(h, get(h, name))


def why(h: Host, name: str) -> str:
    return states.why(h, get(h, name))


# Size


def test_a_domain_shows_what_its_jobs_have_and_what_one_more_may_have() -> None:
    h = run(host("counted", n1="normal", n2="normal"), "n1", "1", cpus=3)
    assert (size(h, "n1").cpus, size(h, "n2").cpus) == (8, 5)


def test_the_smallest_share_of_several_classes_is_shown() -> None:
    """Protected jobs must not use p1's reserve; preemptible ones may borrow it."""
    h = run(host("counted", n1="normal", n2="normal", p1="priority cpus=4 frozen"), "n1", "1", cpus=3)
    assert size(h, "n2").cpus == 8 - 4 - 3
    assert size(h, "n1").cpus == 3 + 8 - 4 - 3


def test_a_domain_that_accepts_nothing_shows_its_own_size() -> None:
    """Otherwise PBS would call a waiting job impossible."""
    h = host("counted", memory=4_000, n1="normal down cpus=6 memory=3000", n2="normal down", s1="service cpus=3")
    assert size(h, "n1") == Amount(5, 3_000), "no more CPUs than services leave"
    assert size(h, "n2") == Amount(5, 4_000)


# Rank


def test_running_domains_come_first_then_free_ones_then_those_that_would_preempt() -> None:
    h = host("counted", cpus=4, n1="normal", n2="normal", p1="priority")
    h = run(h, "n1", "1", cpus=2)
    assert (rank(h, "n1"), rank(h, "n2"), rank(h, "p1")) == (RANK_RUNNING, RANK_FREE, RANK_FREE)
    h = run(h, "n1", "2", cpus=2)
    assert not accepts(h, "n2")
    assert (rank(h, "n1"), rank(h, "n2"), rank(h, "p1")) == (RANK_NONE, RANK_NONE, RANK_WOULD_PREEMPT)


def test_each_minute_that_its_victims_were_preempted_puts_a_domain_further_back() -> None:
    h = host("counted", cpus=4, n1="normal preempted=600", n2="normal preempted=90000", p1="priority")
    h = run(run(h, "n1", "1", cpus=2), "n2", "2", cpus=2)
    assert rank(h, "p1") == RANK_WOULD_PREEMPT - 10, "n1 would be stopped, n2 would not"
    assert rank(set_domain(h, "n1", preempted_s=89_999.0), "p1") == RANK_WOULD_PREEMPT - 1_000, "no further back"


# The sentence: its words may change, but not what it names


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("service", "service"),
        ("priority frozen", "saved to disk"),
        ("normal fault", "cannot set CPUs"),
        ("normal draining", "maintenance"),
        ("priority saving", "frozen"),
    ],
)
def test_the_reason_of_a_domain_alone(text: str, named: str) -> None:
    assert named in why(host("exclusive", n1=text), "n1")


def test_a_domain_that_was_paused_by_others_reports_it() -> None:
    h = set_domain(host("exclusive", n1="normal"), "n1", paused_externally=True)
    assert "paused" in why(h, "n1")


def test_a_domain_with_jobs_names_those_that_cannot_be_stopped_or_counts_them() -> None:
    h = run(run(host("counted", n1="normal", p1="priority"), "n1", "1"), "n1", "2", ending=True)
    assert "2 (run 1)" in why(h, "n1") and "1 (run 1)" not in why(h, "n1").replace("2 (run 1)", "")
    assert why(run(host("counted", p1="priority"), "p1", "9"), "p1") == "1 running"
    assert why(run(host("counted", n1="normal"), "n1", "1"), "n1") == "1 running"


def test_a_domain_with_stopped_jobs_names_what_is_in_its_way() -> None:
    h = stop(run(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "p1", "9"), "n1", "1")
    assert "n1 is preempted" in why(h, "n1")


def test_a_lingering_domain_reports_that_it_keeps_its_cpus() -> None:
    h = host("exclusive", n1="normal", p1="priority", limits=Limits(linger_s=30.0))
    h = release(run(h, "p1", "9"), "p1", "9")
    assert "its last job" in why(h, "p1")
    assert "p1" in why(h, "n1")


def test_an_idle_domain_names_its_victims_or_what_is_in_the_way() -> None:
    h = host("exclusive", n1="normal", p1="priority", p2="priority")
    assert why(h, "p1") == why(h, "n1") == "nothing in the way"
    assert "n1" in why(run(h, "n1", "1"), "p1")
    assert "p2" in why(run(h, "p2", "9"), "n1")
    assert h.now == T
