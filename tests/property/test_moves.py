"""Moves between hosts, with any part failing after any step: one owner, one running copy, no fact lost or doubled.

`move_world` says what the parts can do and how they fail, `move_checks` what must be true. Short histories with one
fault are all tried, long ones with many faults at random. After each step the world is checked as it is, and it is
checked that it settles by itself once everything works again: then the domain runs on its owner, if any copy could.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magrathea.core import arrivals
from magrathea.core import migration as mg
from magrathea.core.moves import HostWithMoves, MoveStage, Where

from . import move_checks as checks
from . import move_world as mw

LANDINGS = pytest.mark.parametrize("paused", [True, False], ids=["arrives-paused", "arrives-running"])


def begun(*, paused: bool) -> mw.World:
    """An admin has just asked for a move from a to b."""
    return mw.requested(mw.new_world(paused=paused), "a", "b")


def explored(
    first: mw.World, most: int, faults: Callable[[mw.World], Iterator[checks.Step]] = checks.faults
) -> tuple[Counter[str], bool]:
    """Where the domain ends after every order of steps and messages with at most one fault, and if all were tried.

    Raises AssertionError, with the history that leads there.
    """
    known: dict[mw.World, str] = {}
    outcomes: Counter[str] = Counter()
    story = {(first, 1): ""}
    todo = [(first, 1)]
    for world, left in todo:
        told = story[world, left]
        try:
            checks.check(world)
            outcomes[checks.outcome(world, known)] += 1
        except AssertionError as error:
            raise AssertionError(f"{error}\n{told}") from error
        for cost, steps in ((0, checks.ordinary(world)), (1, faults(world) if left else ())):
            for label, step in steps:
                after = step(), left - cost
                if after[0] != world and after not in story:
                    story[after] = f"{told}\n{label}"
                    todo.append(after)
        if len(todo) > most:
            return outcomes, False
    return outcomes, True


@LANDINGS
@pytest.mark.timeout(1800)  # some 10,000 worlds, each checked to its end; a minute on a busy machine
def test_a_move_with_any_one_fault_at_any_step(paused: bool) -> None:
    outcomes, complete = explored(begun(paused=paused), 80 * settings().max_examples)
    assert complete or settings().max_examples < 200, "the limit is too low: not all histories were tried"
    assert outcomes["b"], "no move has succeeded"
    assert not complete or outcomes["a"], "no move has failed"


@pytest.mark.timeout(1800)
def test_a_move_with_a_machine_that_is_switched_off_at_any_step_and_may_come_back_at_any_time() -> None:
    """An admin may say that it is lost, at any time, and give up what rested there. It settles if the machine stays
    off, and if it comes back at any moment. No second copy ever runs."""
    outcomes, complete = explored(begun(paused=True), 150 * settings().max_examples, checks.losses)
    assert complete or settings().max_examples < 200, "the limit is too low: not all histories were tried"
    assert outcomes["b"] and outcomes["a"] and outcomes[""]


def copied(world: mw.World) -> mw.World:
    """Until the hypervisors have begun the copy."""
    while world.copy is None:
        world = checks.one_round(world)
    return world


def test_a_copy_that_may_be_too_old_never_runs() -> None:
    """The target's answer is lost, so its source runs on, and ends before anybody looks. What arrived is older."""
    world = mw.progressed(copied(begun(paused=True)))
    world = mw.failed(world, Where.RUNNING, Where.ARRIVED)
    (world,) = mw.died(world, "a")
    assert world.at("b").stale
    assert checks.outcome(world, {}) == "", "it has ended"


def test_what_changes_during_the_copy_arrives_with_the_domain() -> None:
    world = mw.changed(mw.changed(copied(begun(paused=True)), "a"), "a")
    while world.node("b").place.host.domain(mw.NAME) is None:
        world = checks.one_round(world)
    domain = world.node("b").place.host.domain(mw.NAME)
    assert domain and domain.jobs[0].key.run == 3


def test_a_host_that_is_lost_for_good_does_not_keep_the_domain_from_its_new_host() -> None:
    """It runs there, and counts with the facts that came before, as soon as their time is over."""
    world = mw.progressed(mw.progressed(copied(begun(paused=False))))
    assert world.at("b").where is Where.RUNNING
    world = mw.expired(mw.looked(mw.crashed(world, "a"), "b"), "b")
    assert mg.may_act(world.node("b").place, mw.NAME)


def run_at_once(place: HostWithMoves, name: str, where: Where, *, copying: bool = False) -> mg.MoveStep | None:
    """Runs what has arrived without asking whose it is."""
    arriving = place.moves.arriving_of(name)
    if arriving is not None and where is Where.ARRIVED and not arriving.cancelled:
        return mg.MoveStep.RUN
    return STEP(place, name, where, copying=copying)


def go_on_at_once(place: HostWithMoves, name: str, where: Where, *, copying: bool = False) -> mg.MoveStep | None:
    """Lets the source go on without asking whether the target runs."""
    leaving = place.moves.leaving_of(name)
    if leaving is not None and leaving.stage is MoveStage.HANDED and where is Where.LEFT:
        return mg.MoveStep.GO_ON
    return STEP(place, name, where, copying=copying)


STEP = mg.step


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (mg, "step", run_at_once),
        (mg, "step", go_on_at_once),
        (arrivals, "discards", lambda arriving, where: False),
    ],
    ids=["run-at-once", "go-on-at-once", "discard-nothing"],
)
def test_the_world_shows_a_rule_that_is_broken(
    where: ModuleType, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError):
        explored(begun(paused=True), 2_000)


def a_history(
    world: mw.World,
    choices: list[int],
    steps_of: Callable[[int, mw.World], list[checks.Step]],
    check: Callable[[mw.World], object],
) -> None:
    """One step after the other: a choice says of which of 16 kinds it is, and which one of those that are possible."""
    told: list[str] = []
    for choice in choices:
        kind, index = choice % 16, choice // 16
        steps = steps_of(kind, world)
        if not steps:
            continue
        label, step = steps[index % len(steps)]
        told.append(label)
        world = step()
        try:
            checks.check(world)
            check(world)
        except AssertionError as error:
            raise AssertionError("\n".join((str(error), *told))) from error


@settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@given(
    hosts=st.sampled_from((2, 3)),
    paused=st.booleans(),
    choices=st.lists(st.integers(0, 2**16), min_size=20, max_size=120),
)
def test_long_histories_with_many_faults_and_wishes(hosts: int, paused: bool, choices: list[int]) -> None:
    world = mw.requested(mw.new_world(hosts, paused=paused), "a", "b")
    known: dict[mw.World, str] = {}

    def steps(kind: int, world: mw.World) -> list[checks.Step]:
        source = {0: checks.faults, 1: checks.wishes, 2: checks.losses}.get(kind, checks.ordinary)
        return list(source(world))

    a_history(world, choices, steps, lambda world: checks.outcome(world, known))


@settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@given(paused=st.booleans(), choices=st.lists(st.integers(0, 2**16), min_size=20, max_size=120))
def test_room_is_never_given_twice(paused: bool, choices: list[int]) -> None:
    """Jobs start and end at both hosts while the domain moves, with many faults and wishes."""
    world = mw.requested(mw.new_world(paused=paused, siblings=True), "a", "b")

    def steps(kind: int, world: mw.World) -> list[checks.Step]:
        if kind >= 10:
            return [("all works for a while", partial(checks.one_round, world))]
        source = {0: checks.faults, 1: checks.wishes}.get(kind, checks.jobs_beside if kind < 7 else checks.ordinary)
        return list(source(world))

    a_history(world, choices, steps, checks.nothing_given_twice)
