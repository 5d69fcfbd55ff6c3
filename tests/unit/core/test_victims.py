"""Which domains are preempted on a counted host, and which resume first (docs/rules.md, "Victims", "Resuming")."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from magrathea.core.events import OthersSeen
from magrathea.core.model import Host, Limits

from .builders import (
    PROTECTED,
    T,
    after,
    claim,
    get,
    go_on,
    host,
    later,
    launch,
    release,
    run,
    set_domain,
    stop,
    stopped,
    wanted,
)


def full(*sizes: int, cpus: int = 0) -> Host:
    """A counted host without free CPUs: domains n1, n2, ... run one stoppable job each, of these sizes."""
    names: dict[str, Any] = {f"n{i}": "normal" for i in range(1, len(sizes) + 1)}
    h = host("counted", cpus=cpus or sum(sizes), p1="priority", p2="priority", **names)
    for i, size in enumerate(sizes, 1):
        h = run(h, f"n{i}", str(i), cpus=size)
    return h


def victims(h: Host, cpus: int, memory: int = 0) -> tuple[str, ...]:
    answer = claim(h, "p1", "9", cpus=cpus, memory=memory)
    assert answer.ok, answer.text
    return answer.victims


def test_the_smallest_excess_of_cpus_counts_first() -> None:
    assert victims(full(4, 3, 3), 6) == ("n2", "n3")  # the original stopped 4 + 3
    assert victims(full(8, 1, 1, 1), 3) == ("n2", "n3", "n4")
    assert victims(full(8, 2, 5), 5) == ("n3",)


def test_then_the_fewest_domains() -> None:
    assert victims(full(2, 2, 4), 4) == ("n3",)


def test_then_the_least_preempted_so_far() -> None:
    h = set_domain(full(4, 4), "n1", preempted_s=100.0)
    assert victims(h, 4) == ("n2",)
    h = set_domain(h, "n2", preempted_s=101.0)
    assert victims(h, 4) == ("n1",)


def test_then_the_smallest_excess_of_memory_counts() -> None:
    h = host("counted", cpus=4, memory=1_000, n1="normal swap=9999", n2="normal swap=9999", p1="priority")
    h = run(run(h, "n1", "1", cpus=2, memory=600), "n2", "2", cpus=2, memory=400)
    assert victims(h, 2, memory=300) == ("n2",)


def test_then_by_name() -> None:
    assert victims(full(4, 4, 4), 4) == ("n1",)
    assert victims(full(4, 4, 4), 8) == ("n1", "n2")


def test_free_cpus_are_used_before_anybody_is_stopped() -> None:
    assert victims(full(4, 2, cpus=8), 2) == ()
    assert victims(full(4, 2, cpus=8), 4) == ("n2",)
    assert victims(full(4, 2, cpus=8), 5) == ("n1",)


def test_whole_domains_are_stopped() -> None:
    h = run(full(2, 6, cpus=10), "n1", "1b", cpus=2)
    answer = claim(h, "p1", "9", cpus=4)
    assert answer.ok and answer.victims == ("n1",)
    assert stopped(answer.host) == {"1", "1b"}


def test_a_domain_that_cannot_be_stopped_is_no_victim() -> None:
    h = set_domain(full(4, 2, 2), "n1", agent_lost_at=1.0)
    assert victims(h, 4) == ("n2", "n3")
    assert claim(h, "p1", "9", cpus=5).code in ("cpus", "host-busy")


@pytest.mark.parametrize("need", range(1, 24))
def test_exact_up_to_a_dozen_domains(need: int) -> None:
    sizes = (7, 5, 3, 2, 2, 1, 1, 1, 1, 1)
    chosen = victims(full(*sizes), need)
    best = min(
        (sum(c) - need, len(c))
        for r in range(len(sizes) + 1)
        for c in itertools.combinations(sizes, r)
        if sum(c) >= need
    )
    taken = [sizes[int(name[1:]) - 1] for name in chosen]
    assert (sum(taken) - need, len(taken)) == best


def test_best_fit_beyond_a_dozen_gives_enough_quickly() -> None:
    h = full(*([3] * 40))
    chosen = victims(h, 50)
    assert len(chosen) * 3 >= 50
    assert len(chosen) == 17


def test_best_fit_stops_no_domain_that_a_later_choice_makes_unnecessary() -> None:
    """n1 is taken first for its CPUs. The memory that it lacks comes from n2 and n3, which also have enough CPUs."""
    names: dict[str, Any] = {f"n{i}": "normal swap=9999" for i in range(1, 15)}
    h = host("counted", cpus=20, memory=1_110, p1="priority", **names)
    for name, (cpus, memory) in zip(names, [(5, 0), (3, 600), (1, 400), *([(1, 10)] * 11)], strict=True):
        h = run(h, name, name, cpus=cpus, memory=memory)
    assert victims(h, 4, memory=1_000) == ("n2", "n3")


def test_a_domain_resumes_when_enough_cpus_are_free_again() -> None:
    h = stop(run(host("counted", n1="normal", p1="priority"), "n1", "1", cpus=4), "n1", "1")
    h = run(run(h, "p1", "8", cpus=3), "p1", "9", cpus=3)
    assert wanted(h) == {"1"}
    h = release(h, "p1", "8")
    assert wanted(h) == set()


def test_longest_preempted_first() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(run(h, "n1", "1", cpus=4), "n2", "2", cpus=4), "p1", "9", cpus=4)
    first = stop(stop(h, "n1", "1", since=50), "n2", "2", since=60)
    assert wanted(first) == {"1"}
    other = stop(stop(h, "n1", "1", since=60), "n2", "2", since=50)
    assert wanted(other) == {"2"}


def test_a_smaller_domain_may_go_before_one_that_does_not_fit_yet() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(run(h, "n1", "1", cpus=6), "n2", "2", cpus=2), "p1", "9", cpus=6)
    h = stop(stop(h, "n1", "1", since=60), "n2", "2", since=50)
    assert wanted(h) == {"1"}


def overtaking(limit_s: float) -> Host:
    """n1 (6 CPUs) is preempted longest, and passed over by n2 (2 CPUs), which fits beside the priority job."""
    h = host("counted", n1="normal", n2="normal", n3="normal", p1="priority", limits=Limits(overtaken_s=limit_s))
    h = run(run(run(h, "n1", "1", cpus=6), "n2", "2", cpus=2), "p1", "9", cpus=6)
    return later(stop(stop(h, "n1", "1", since=60), "n2", "2", since=50), 0)


def test_a_domain_passed_over_longer_than_a_limit_is_next() -> None:
    h = overtaking(limit_s=30)
    assert wanted(h) == {"1"}
    h = later(h, 31)
    assert wanted(h) == {"1", "2"}, "nobody goes before it any more"
    h = release(h, "p1", "9")
    assert wanted(h) == set()


def test_a_domain_that_continues_takes_its_cpus_at_once() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(run(h, "n1", "1", cpus=4), "n2", "2", cpus=4), "p1", "9", cpus=4)
    h = stop(stop(h, "n1", "1", since=60), "n2", "2", since=50)
    assert wanted(go_on(h, "n1", "1")) == {"2"}


def test_a_whole_domain_resumes_or_none_of_it() -> None:
    h = host("counted", n1="normal", p1="priority")
    h = run(run(run(h, "n1", "1", cpus=2), "n1", "2", cpus=4), "p1", "9", cpus=4)
    h = stop(stop(h, "n1", "1"), "n1", "2")
    assert wanted(h) == {"1", "2"}


def test_a_resumed_domain_may_borrow_the_reserve_like_any_preemptible_job() -> None:
    h = host("counted", n1="normal", p1="priority frozen cpus=4")
    h = stop(run(h, "n1", "1", cpus=8), "n1", "1")
    assert wanted(h) == set()


def test_a_claim_resumes_nobody() -> None:
    # n2 (3 CPUs) is preempted; a claim of 1 CPU must stop n1 (4 CPUs), which would leave room for n2
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(run(h, "n1", "1", cpus=4), "n2", "2", cpus=3), "p1", "9", cpus=4)
    h = stop(h, "n2", "2")
    answer = claim(h, "p1", "10", cpus=1)
    assert answer.ok and answer.victims == ("n1",)
    assert wanted(answer.host) == {"1", "2"}
    assert wanted(later(answer.host, 30)) == {"1", "2"}, "as long as it is provisional"


def test_a_claim_that_stops_nobody_does_not_keep_others_from_going_on() -> None:
    h = stop(run(host("counted", n1="normal", p1="priority"), "n1", "1", cpus=4), "n1", "1")
    assert wanted(claim(h, "p1", "9", cpus=4).host) == set()


def test_a_claim_that_leaves_less_room_lets_no_smaller_domain_pass() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(h, "n1", "1", cpus=6), "n2", "2", cpus=4)
    h = stop(stop(h, "n1", "1", since=60), "n2", "2", since=50)
    assert wanted(h) == {"2"}
    h = claim(h, "p1", "9", cpus=4).host
    assert wanted(h) == {"1", "2"}
    assert wanted(launch(h, "p1", "9")) == {"1"}, "later it may: that is not the claim's doing"


def test_victims_of_a_claim_stay_stopped_until_its_job_ends() -> None:
    h = claim(full(8), "p1", "9", cpus=2).host
    h = launch(h, "p1", "9")
    assert wanted(later(h, 1_000)) == {"1"}, "8 CPUs do not fit beside 2 of 8"
    assert wanted(release(h, "p1", "9")) == set()


def test_lingering_cpus_are_in_the_way_of_resuming() -> None:
    h = host("counted", n1="normal", p1="priority lingering=4")
    h = stop(run(h, "n1", "1", cpus=6), "n1", "1")
    assert wanted(h) == {"1"}
    assert wanted(later(h, 31)) == set()


def test_preempted_seconds_are_of_the_domain_for_good() -> None:
    h = claim(full(8), "p1", "9").host
    h = launch(h, "p1", "9")
    h = go_on(release(later(h, 40), "p1", "9"), "n1", "1")
    assert get(h, "n1").preempted_s == pytest.approx(40)


def test_memory_that_adopted_jobs_overbooked_is_not_made_good_by_a_job_that_asks_for_none() -> None:
    h = host("counted", memory=1_000, n1="normal", n2="normal", p1="priority")
    h = run(run(h, "n1", "1", cpus=2, memory=1_500, cls=PROTECTED), "n2", "2", cpus=4)
    assert claim(h, "p1", "9", cpus=2).victims == ()
    assert claim(h, "p1", "9", cpus=4).victims == ("n2",)
    assert claim(h, "p1", "9", cpus=2, memory=10).code == "memory"


def test_a_stopped_job_continues_although_new_services_leave_too_little_for_it() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(run(run(h, "n1", "1", cpus=4), "n1", "2", cpus=4), "n2", "3", cpus=8), "p1", "9", cpus=4)
    h = stop(stop(stop(h, "n1", "1", since=100), "n1", "2", since=100), "n2", "3", since=50)
    h = after(h, OthersSeen(T, 3, 0))
    assert wanted(h) == {"1", "2", "3"}, "of 8 CPUs 5 are left for jobs, and a priority job has 4"
    h = release(h, "p1", "9")
    assert wanted(h) == {"3"}, "the longest preempted domain goes on, and all of it"
    h = go_on(h, "n1", "1")
    assert wanted(h) == {"3"}, "half of it runs: it still has the host to itself"
    assert wanted(release(release(go_on(h, "n1", "2"), "n1", "1"), "n1", "2")) == set()
