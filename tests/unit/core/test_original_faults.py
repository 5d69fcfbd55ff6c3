"""The original Magrathea's faults by their numbers in the project's list of facts, if they concern the core.

Each test states what ours does instead. (1, 3, 7, 15, 16, 23-25 belong to the daemon, the agent and the driver; the
core's part in 1 and 3 is tested in test_lifecycle.py and test_claims.py.)
"""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace

import pytest

from magrathea.core import states
from magrathea.core.events import (
    AgentConnected,
    BooksReported,
    DomainBooting,
    DomainStarted,
    DomainStopped,
    Faulted,
    ImageLost,
)
from magrathea.core.machine import handle
from magrathea.core.model import Lifecycle, Limits, State
from magrathea.core.shares import share

from .builders import (
    HIGH,
    LOW,
    PROTECTED,
    T,
    accepts,
    after,
    claim,
    defrost,
    get,
    get_job,
    go_on,
    host,
    job_ids,
    later,
    launch,
    listed,
    release,
    run,
    set_domain,
    state,
    stop,
    stopped,
    told,
    wanted,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


@both
def test_fault_02_a_claim_for_a_domain_that_is_down_is_refused(mode: str) -> None:
    h = after(host(mode, n1="normal", n2="normal"), DomainStopped(T, "n1"))
    assert claim(h, "n1", "7").code == "domain-down"
    assert claim(run(h, "n2", "1"), "n1", "7").code == "domain-down"


@both
def test_fault_04_free_with_a_frozen_sibling_accepts_what_it_publishes(mode: str) -> None:
    h = host(mode, n1="normal", p1="priority frozen cpus=4")
    assert state(h, "n1") is State.FREE
    assert accepts(h, "n1")
    for cls in accepts(h, "n1"):
        assert claim(h, "n1", "1", cls=cls).ok


def test_fault_05_with_a_frozen_domain_the_same_facts_in_another_order_give_the_same_answer() -> None:
    jobs = [("n1", "1", LOW, 3), ("n2", "2", LOW, 2), ("p2", "9", HIGH, 1)]
    ends = set()
    for order in itertools.permutations(jobs):
        h = host("counted", n1="normal", n2="normal", p1="priority frozen cpus=4", p2="priority")
        for domain, id, cls, cpus in order:
            answer = claim(h, domain, id, cls=cls, cpus=cpus)
            assert answer.ok
            h = later(launch(answer.host, domain, id), 10)
        left = tuple(share(h, d, cls) for d in h.workers for cls in states.accepts(h, d))
        defrosted = defrost(h, "p1")
        ends.add((tuple(state(h, d.name) for d in h.domains), left, defrosted.code, defrosted.victims))
    assert len(ends) == 1


def test_fault_06_a_restart_works_with_cpus_borrowed_from_the_reserve() -> None:
    h = claim(host("counted", n1="normal", n2="normal", p1="priority frozen cpus=4"), "n1", "1", cpus=8).host
    again = pickle.loads(pickle.dumps(h))
    assert again == h
    assert wanted(later(again, 1)) == set()
    assert accepts(again, "n2") == set()
    assert claim(again, "n2", "2").code == "cpus"
    assert accepts(release(again, "n1", "1"), "n2") == {LOW, PROTECTED}


@both
def test_fault_08_a_domain_lost_while_the_daemon_was_down_is_simply_down(mode: str) -> None:
    h = run(host(mode, n1="normal", n2="normal"), "n1", "1")
    h = after(pickle.loads(pickle.dumps(h)), DomainStopped(T + 60, "n1"))
    assert state(h, "n1") is State.DOWN
    assert job_ids(h, "n1") == set()
    assert claim(h, "n2", "2").ok


@both
def test_fault_09_a_lost_image_frees_its_reserve_and_overbooks_nothing(mode: str) -> None:
    h = run(host(mode, n1="normal", n2="normal", p1="priority frozen cpus=4"), "n1", "1", cpus=6)
    h = after(h, ImageLost(T, "p1"))
    assert state(h, "p1") is State.DOWN
    assert claim(h, "n1", "2", cls=PROTECTED, cpus=2).ok
    assert not claim(claim(h, "n1", "2", cls=PROTECTED, cpus=2).host, "n2", "3").ok


@both
@pytest.mark.parametrize("cpus", [-1, -8])
def test_fault_10_negative_cpus_are_refused(mode: str, cpus: int) -> None:
    h = host(mode, n1="normal", p1="priority")
    assert claim(h, "n1", "1", cpus=cpus).code == "bad-request"
    assert claim(h, "p1", "1", cpus=cpus).code == "bad-request"


@both
def test_fault_11_a_boot_of_a_domain_that_is_up_forgets_no_jobs(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1")
    new, decisions = handle(h, DomainBooting(T, "n1", T + 300))
    assert job_ids(new, "n1") | set(told(decisions, "domain-down")) == {"1"}, "never lost without a word"
    assert job_ids(after(h, DomainStarted(T, "n1")), "n1") == {"1"}


@both
def test_fault_12_victims_stay_stopped_as_long_as_the_job_that_stopped_them_is_there(mode: str) -> None:
    """A job on several hosts starts late here: its claim is older than any of its processes."""
    h = run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4)
    h = claim(h, "p1", "9[1]", cpus=2).host
    for seconds in (0.1, 1, 10):
        h = later(h, seconds)
        assert wanted(h) == {"1"}
    h = after(listed(launch(h, "p1", "9[1]"), "p1", "9[1]"), BooksReported(h.now, ()))
    assert wanted(later(h, 3_600)) == {"1"}
    assert wanted(release(h, "p1", "9[1]")) == set()


@both
def test_fault_13_a_preemptible_job_makes_no_other_job_preemptible(mode: str) -> None:
    h = run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cls=PROTECTED, cpus=2)
    h = launch(claim(h, "n1", "2", cls=LOW, cpus=2).host, "n1", "2")
    h = later(h, 100)
    assert get_job(h, "n1", "1").cls is PROTECTED
    assert state(h, "n1") is State.RUNNING
    assert claim(h, "p1", "9").code in ("host-busy", "cpus")


@both
def test_fault_14_a_repeated_claim_is_answered_like_the_first(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1", cpus=8).host
    again = claim(h, "n1", "1", cpus=8)
    assert again.ok
    assert again.host == h


@both
def test_fault_17_a_domain_told_to_be_down_claims_nothing_even_if_its_agent_lives(mode: str) -> None:
    h = after(host(mode, n1="normal"), DomainStopped(T, "n1"), AgentConnected(T + 1, "n1"))
    assert get(h, "n1").lifecycle is Lifecycle.DOWN
    assert claim(h, "n1", "1").code == "domain-down"
    assert job_ids(listed(h, "n1", "1"), "n1") == set()


def test_fault_18_a_claim_for_a_frozen_domain_is_refused() -> None:
    h = run(host("counted", n1="normal", p1="priority frozen cpus=4"), "n1", "1", cpus=8)
    answer = claim(h, "p1", "9", cpus=4)
    assert answer.code == "domain-frozen"
    assert sum(d.use.cpus for d in answer.host.domains) == 8
    assert claim(host("exclusive", n1="normal", p1="priority frozen"), "p1", "9").code == "domain-frozen"


@both
def test_fault_19_preempted_seconds_are_those_of_all_jobs_ended_ones_too(mode: str) -> None:
    h = run(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=2), "n1", "2", cpus=2)
    h = launch(claim(h, "p1", "9").host, "p1", "9")
    h = release(later(h, 10), "n1", "1")
    h = release(later(h, 10), "p1", "9")
    h = go_on(h, "n1", "2")
    assert get(h, "n1").preempted_s == pytest.approx(30)
    h = release(h, "n1", "2")
    assert get(h, "n1").preempted_s == pytest.approx(30)


def test_fault_20_small_domains_do_not_overtake_a_big_one_for_ever() -> None:
    """Priority jobs that leave room only for the small domain, again and again."""
    h = host("counted", n1="normal", n2="normal", p1="priority", p2="priority", limits=Limits(overtaken_s=60))
    h = run(run(run(h, "n1", "1", cpus=6), "n2", "2", cpus=2), "p1", "9", cpus=6)
    h = later(stop(stop(h, "n1", "1", since=60), "n2", "2", since=50), 0)
    assert wanted(h) == {"1"}
    h = later(h, 61)
    assert "2" in wanted(h)
    assert wanted(release(h, "p1", "9")) == set()


def test_fault_21_one_claim_does_not_resume_a_victim_while_taking_another() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(run(h, "n1", "1", cpus=4), "n2", "2", cpus=3), "p1", "9", cpus=4)
    h = stop(h, "n2", "2")
    answer = claim(h, "p1", "10", cpus=1)
    assert answer.victims == ("n1",)
    assert stopped(answer.host) == wanted(answer.host) == {"1", "2"}
    assert wanted(launch(answer.host, "p1", "10")) == {"1"}, "what it did not need is given back once it has started"


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_fault_22_a_boot_stops_nobody_and_a_restore_only_what_it_needs(mode: str) -> None:
    h = run(run(host(mode, n1="normal", n2="normal", p1="priority down"), "n1", "1", cpus=2), "n2", "2", cpus=2)
    assert stopped(after(h, DomainBooting(T, "p1", T + 300))) == set()
    assert stopped(after(h, DomainBooting(T, "p1", T + 300), DomainStarted(T + 9, "p1"))) == set()


def test_fault_22_a_restore_with_enough_free_cpus_stops_nobody() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority frozen cpus=4")
    h = run(run(h, "n1", "1", cpus=2), "n2", "2", cpus=2)
    answer = defrost(h, "p1")
    assert answer.ok and answer.victims == ()
    assert stopped(answer.host) == set()
    answer = defrost(run(h, "n2", "3", cpus=1), "p1")
    assert answer.ok and answer.victims == ("n1",)


def test_fault_26_lack_of_cpus_is_called_so() -> None:
    h = run(host("counted", n1="normal", n2="normal", p1="priority"), "n1", "1", cpus=7, cls=PROTECTED)
    assert claim(h, "n2", "2", cpus=2).code == "cpus"
    assert claim(h, "p1", "9", cpus=2).code == "cpus"


@both
def test_facts_alone_decide_so_a_copy_of_them_answers_the_same(mode: str) -> None:
    h = set_domain(run(host(mode, n1="normal", p1="priority"), "n1", "1"), "n1", preempted_s=5.0)
    twin = copy.deepcopy(h)
    assert claim(h, "p1", "9") == claim(twin, "p1", "9")
    assert replace(h) == twin
    assert after(h, Faulted(T, "n1", "x")) == after(twin, Faulted(T, "n1", "x"))
