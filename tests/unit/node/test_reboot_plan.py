"""Which domains are put to sleep when the machine shuts down, and in which order."""

from __future__ import annotations

import pytest

from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, Kind, Lifecycle, Mode, StoppedBy
from node_daemon.measured import UNMEASURED_S_PER_GIB, Measured, expected_s
from node_daemon.reboot.plan import Candidate, Turn, candidates, computed_cpu_s, duration_s, plan

NOW = 1000.0


def job(id: str, cls: JobClass, cpus: int = 1, since: float = 0.0, stopped_since: float | None = None) -> Job:
    stopper = StoppedBy.US if stopped_since is not None else None
    return Job(JobKey(id, 1), cls, cpus, 0, since, since, stopped_since=stopped_since, stopper=stopper)


def domain(name: str, *jobs: Job, kind: Kind = Kind.NORMAL, lifecycle: Lifecycle = Lifecycle.UP) -> Domain:
    return Domain(name, kind, 4, 1024, lifecycle=lifecycle, jobs=jobs)


HOST = Host(
    "h1",
    Mode.EXCLUSIVE,
    16,
    65536,
    domains=(
        domain("idle"),
        domain("low", job("1", JobClass.PREEMPTIBLE)),
        domain("off", lifecycle=Lifecycle.DOWN),
        domain("prio", job("2", JobClass.PRIORITY), kind=Kind.PRIORITY),
        domain("prot", job("3", JobClass.PREEMPTIBLE), job("4", JobClass.PROTECTED)),
        domain("serv", kind=Kind.SERVICE),
        domain("stop", job("5", JobClass.PREEMPTIBLE, stopped_since=10.0)),
    ),
)
ALL = [d.name for d in HOST.domains]


def test_who_stands_still_is_saved_first_and_services_last() -> None:
    found = candidates(HOST, ALL, {}, {}, NOW)
    assert [c.name for c in found] == ["stop", "low", "prot", "prio", "idle", "serv"]


def test_a_domain_that_is_down_is_not_put_to_sleep() -> None:
    assert "off" not in [c.name for c in candidates(HOST, ALL, {}, {}, NOW)]


def test_what_would_be_lost_are_the_cpu_seconds_computed_without_stops() -> None:
    three = domain("n1", job("1", JobClass.PREEMPTIBLE, cpus=3, since=900.0))
    stopped = domain("n1", job("1", JobClass.PREEMPTIBLE, cpus=2, since=100.0, stopped_since=400.0))
    assert computed_cpu_s(three, NOW) == 300.0
    assert computed_cpu_s(stopped, NOW) == 600.0


def test_a_save_is_expected_to_take_as_long_as_the_last_one_here() -> None:
    measured = {"n1": Measured(1024, 4.0), "n2": Measured(2048, 30.0)}
    assert expected_s("n1", 2048, measured) == 8.0
    assert expected_s("n3", 1024, measured) == 15.0, "as the slowest of the others"
    assert expected_s("n1", 4096, {}) == 4 * UNMEASURED_S_PER_GIB


def one(name: str, seconds: float, loses: float, turn: Turn = Turn.PREEMPTIBLE) -> Candidate:
    return Candidate(name, turn, 1024, 1, loses, seconds)


def test_without_time_for_all_those_that_would_lose_most_are_chosen_in_the_order_of_saves() -> None:
    found = [one("a", 10, 5), one("b", 10, 500), one("c", 25, 50), one("d", 10, 1)]
    made = plan(found, time_s=36.0, at_once=1)
    assert [c.name for c in made.chosen] == ["b", "c"]
    assert [c.name for c in made.left] == ["a", "d"]
    assert made.expected_s == 35.0


def test_a_smaller_one_takes_the_time_that_does_not_suffice_for_a_bigger_one() -> None:
    made = plan([one("big", 50, 900), one("small", 10, 1)], time_s=20.0, at_once=1)
    assert [c.name for c in made.chosen] == ["small"]


def test_a_service_that_the_admin_named_is_chosen_before_any_job() -> None:
    made = plan([one("n1", 10, 900), one("s1", 10, 0, Turn.SERVICE)], time_s=15.0, at_once=1)
    assert [c.name for c in made.chosen] == ["s1"]


@pytest.mark.parametrize(("at_once", "seconds"), [(1, 60.0), (2, 40.0), (3, 30.0)])
def test_several_are_saved_at_once_if_the_admin_lets_them(at_once: int, seconds: float) -> None:
    assert duration_s([one("a", 10, 1), one("b", 20, 1), one("c", 30, 1)], at_once) == seconds


def test_nothing_to_save_takes_no_time() -> None:
    assert plan([], 10.0, 1).expected_s == 0.0
