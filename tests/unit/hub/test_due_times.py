"""Which jobs are due, and that one job's event does not make the hub look at all others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magrathea.core.model import JobKey
from scheduler_plugin.hub.books import LedgerEntry
from scheduler_plugin.hub.due_times import DueTimes
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, domain, job, stopped
from tests.steps import lines_run
from tests.unit.hub.simulated_hub import SimHub

A, B, C = (JobKey(f"{number}.srv", 1) for number in range(3))


def test_a_job_is_due_from_its_time_on_until_it_gets_another() -> None:
    times = DueTimes()
    times.set(A, 5)
    times.set(B, 7)
    assert times.due(4) == frozenset()
    assert times.next() == 5
    assert times.due(6) == {A}
    assert times.next() == 5
    assert times.due(8) == {A, B}
    times.set(A, 20)
    times.drop(B)
    assert times.due(8) == frozenset()
    assert times.next() == 20


def test_a_held_job_is_not_due_and_keeps_its_time() -> None:
    times = DueTimes()
    times.set(A, 5)
    times.hold(A)
    times.set(A, 6)
    assert times.due(9) == frozenset()
    assert times.next() is None
    times.release(A)
    assert times.next() == 6
    assert times.due(9) == {A}


changes = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "hold", "release", "due"]), st.sampled_from([A, B, C]), st.integers(1, 9))
)


@given(changes)
def test_it_says_what_a_look_at_all_jobs_would(changes: list[tuple[str, JobKey, int]]) -> None:
    times, plain, held = DueTimes(), dict[JobKey, int](), set[JobKey]()
    for what, key, at in changes:
        if what == "set":
            times.set(key, at)
            plain[key] = at
        elif what == "drop":
            times.drop(key)
            plain.pop(key, None)
        elif what == "hold":
            times.hold(key)
            held.add(key)
        elif what == "release":
            times.release(key)
            held.discard(key)
        free = {one: time for one, time in plain.items() if one not in held}
        assert times.due(at if what == "due" else 0) >= {one for one in free if what == "due" and free[one] <= at}
        assert times.due(0) <= set(free)
        assert times.next() == min(free.values(), default=None)


def test_its_memory_is_bounded_by_its_jobs() -> None:
    times = DueTimes()
    for at in range(1, 10_000):
        times.set(A, at)
    assert len(times._heap) < 200


@pytest.mark.long
@pytest.mark.parametrize("booked", [20, 2000])
def test_one_jobs_outcome_costs_the_same_beside_any_number_of_booked_jobs(booked: int) -> None:
    pbs = FakePbs("n1")
    pbs.put(job("1.srv"))
    entries = [
        LedgerEntry(id=f"{number}.srv", run=1, asked_at=NOW, booked=True, seen_at=NOW, commented=True)
        for number in range(2, booked + 2)
    ]
    for entry in entries:
        pbs.put(job(entry.id, "S"))
    hub = SimHub(pbs, entries)
    hub.settle()
    hub.says("h1", domain("n1", [stopped("1.srv"), *(stopped(entry.id, booked=True) for entry in entries)]))
    suspend = next(action for action in hub.actions() if action.key.id == "1.srv")
    outcome = hub.carry_out(suspend)

    def turn() -> None:
        hub.tell(outcome)
        hub.farm.actions(hub.at)
        hub.farm.next_due()

    _, lines = lines_run(turn)
    assert lines < 1000
