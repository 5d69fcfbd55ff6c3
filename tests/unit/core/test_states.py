"""The state table (docs/states.md), row by row; the first row that matches wins."""

from __future__ import annotations

import pytest

from magrathea.core.model import State, StoppedBy

from .builders import (
    HIGH,
    LOW,
    PROTECTED,
    T,
    accepts,
    after,
    claim,
    host,
    later,
    run,
    set_domain,
    state,
    stop,
)

MODES = ["exclusive", "counted"]
both = pytest.mark.parametrize("mode", MODES)


@both
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("priority frozen", State.FROZEN),
        ("priority restoring", State.BOOTING),
        ("normal down", State.DOWN),
        ("priority down", State.DOWN),
        ("normal booting", State.BOOTING),
        ("normal unknown", State.UNKNOWN),
        ("normal fault", State.FAULT),
        ("normal draining", State.DRAINING),
        ("priority saving", State.DRAINING),
        ("normal", State.FREE),
        ("priority", State.FREE),
    ],
)
def test_an_empty_domain_alone(mode: str, text: str, expected: State) -> None:
    assert state(host(mode, n1=text), "n1") is expected


@both
@pytest.mark.parametrize(
    ("earlier", "later_row", "expected"),
    [
        ("down", "fault", State.DOWN),
        ("down", "unknown", State.DOWN),
        ("booting", "unknown", State.BOOTING),
        ("booting", "fault", State.BOOTING),
        ("unknown", "fault", State.UNKNOWN),
        ("unknown", "draining", State.UNKNOWN),
        ("fault", "draining", State.FAULT),
    ],
)
def test_the_first_row_that_matches_wins(mode: str, earlier: str, later_row: str, expected: State) -> None:
    assert state(host(mode, n1=f"normal {later_row} {earlier}"), "n1") is expected


@both
def test_preempted_comes_before_draining_and_after_fault(mode: str) -> None:
    h = run(run(host(mode, n1="normal draining", p1="priority"), "n1", "1"), "p1", "9")
    h = stop(h, "n1", "1")
    assert state(h, "n1") is State.PREEMPTED
    assert state(set_domain(h, "n1", fault="broken"), "n1") is State.FAULT


@both
@pytest.mark.parametrize("text", ["frozen", "down", "booting", "unknown", "fault", "draining", "saving"])
def test_rows_1_to_7_accept_nothing(mode: str, text: str) -> None:
    assert accepts(host(mode, p1=f"priority {text}", p2="priority"), "p1") == set()


@both
def test_a_preempted_domain_accepts_nothing(mode: str) -> None:
    h = stop(run(run(host(mode, n1="normal", p1="priority"), "n1", "1"), "p1", "9"), "n1", "1")
    assert state(h, "n1") is State.PREEMPTED
    assert accepts(h, "n1") == set()


@both
def test_a_domain_is_preempted_although_some_of_its_jobs_run(mode: str) -> None:
    h = run(run(run(host(mode, n1="normal", p1="priority"), "n1", "1"), "n1", "2"), "p1", "9")
    assert state(stop(h, "n1", "1"), "n1") is State.PREEMPTED


@both
def test_a_job_suspended_by_pbs_itself_does_not_make_a_domain_preempted(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1", stopped_since=T - 10, stopper=StoppedBy.PBS)
    assert state(h, "n1") is State.RUNNING


@both
def test_running_priority(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "p1", "9")
    assert state(h, "p1") is State.RUNNING_PRIORITY
    assert accepts(h, "p1") == {HIGH}


@both
def test_running_preemptible(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1")
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE
    assert accepts(h, "n1") == {LOW, PROTECTED}


@both
@pytest.mark.parametrize("contact", ["hub", "agent"])
def test_running_preemptible_depends_on_the_jobs_alone(mode: str, contact: str) -> None:
    """Whether hub and agent answer decides what a priority sibling may do, but not what this domain is."""
    h = run(host(mode, cpus=4, hub=contact == "agent", n1="normal", p1="priority"), "n1", "1", cpus=4)
    h = set_domain(h, "n1", agent_lost_at=None if contact == "hub" else T)
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE
    assert state(h, "p1") is State.OCCUPIED


@both
def test_running(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1", cls=PROTECTED)
    assert state(h, "n1") is State.RUNNING
    assert accepts(h, "n1") == {LOW, PROTECTED}


@both
@pytest.mark.parametrize("mode_kind", [("normal", {LOW, PROTECTED}), ("priority", {HIGH}), ("service", set())])
def test_a_free_domain_accepts_the_classes_of_its_kind(mode: str, mode_kind: tuple[str, set[str]]) -> None:
    kind, classes = mode_kind
    assert accepts(host(mode, cpus=8, d1=f"{kind} cpus=4", d2="normal"), "d1") == classes


@both
def test_a_silent_domain_becomes_unknown_only_after_its_grace_time(mode: str) -> None:
    h = host(mode, n1="normal away")
    assert state(later(h, 29), "n1") is State.FREE
    assert state(later(h, 31), "n1") is State.UNKNOWN


@both
def test_while_a_domain_boots_nobody_on_the_host_accepts(mode: str) -> None:
    h = run(host(mode, n1="normal", n2="normal booting", p1="priority"), "n1", "1")
    assert accepts(h, "n1") == accepts(h, "p1") == set()
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE
    assert claim(h, "n1", "2").code == "host-booting"
    assert claim(h, "p1", "9").code == "host-booting"


@both
def test_while_a_domain_is_restored_nobody_on_the_host_accepts(mode: str) -> None:
    h = host(mode, n1="normal", p1="priority restoring cpus=2")
    assert accepts(h, "n1") == set()
    assert claim(h, "n1", "2").code == "host-booting"


@both
def test_while_a_domain_is_in_fault_nobody_on_the_host_accepts(mode: str) -> None:
    h = host(mode, n1="normal", n2="normal fault", p1="priority")
    assert accepts(h, "n1") == accepts(h, "p1") == set()
    assert claim(h, "n1", "2").code == "host-fault"


@both
def test_a_state_is_never_stored_so_clearing_the_fact_ends_it(mode: str) -> None:
    h = host(mode, n1="normal", n2="normal fault")
    assert accepts(set_domain(h, "n2", fault=""), "n1") == {LOW, PROTECTED}


@both
def test_a_host_without_domains_accepts_nothing_and_reports_it(mode: str) -> None:
    assert claim(host(mode), "n1", "1").code == "unknown-domain"
    assert after(host(mode)) == host(mode)
