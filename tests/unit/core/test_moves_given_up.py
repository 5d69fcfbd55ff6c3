"""Hosts follow an admin who gives a domain up, or says that a host is lost; also a host that comes back after all.

The same with parts that fail at any step is in tests/property/test_moves.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import departures, machine
from magrathea.core import migration as mg
from magrathea.core import move_events as me
from magrathea.core.events import ConfiguredDomain, Reconfigured
from magrathea.core.model import Kind, Limits
from magrathea.core.moves import HostWithMoves, Letting, MoveStage, Ownership, Says, Where, Word
from magrathea.core.refusals import RefusalCode

from .builders import T, run
from .test_moves import asked, do, expecting, granted, named, owned, parcel, told

N1 = ConfiguredDomain("n1", Kind.NORMAL, 4)
GIVEN_UP = Ownership("n1", 3, "", 9)
"""n1 had gone from a to b, under number 2."""
AT_HOME = Ownership("n1", 4, "a", 10)


def look(place: HostWithMoves, where: Where) -> HostWithMoves:
    return do(place, me.DomainFound(T, "n1", where))


def configured(place: HostWithMoves) -> HostWithMoves:
    """The host reads its configuration, which names n1."""
    event = Reconfigured(T, place.name, place.host.mode, 8, 4000, Limits(), domains=mg.configured(place, (N1,)))
    return replace(place, host=machine.handle(place.host, event)[0])


def handed() -> HostWithMoves:
    """The source, whose domain runs there no more."""
    place = told(asked(owned(run(named("a", n1="normal"), "n1", "1", cpus=2))), granted(ready=True))
    place = look(do(place, me.CopyOver(T, "n1")), Where.OFF)
    assert place.moves.leaving[0].stage is MoveStage.HANDED
    return place


def arrived() -> HostWithMoves:
    """The target, where the domain runs with its facts; the hub has not said yet that the move is over."""
    place = do(expecting(named("b"), named("a", n1="normal")), me.RoomMade(T, "n1", 2, room="made"))
    place = told(place, Ownership("n1", 2, "b", 4, replace(granted().transfer, owed=True)))  # type: ignore[type-var]
    place = do(look(place, Where.RUNNING), parcel(named("a", n1="normal"), final=True))
    assert place.moves.arriving[0].adopted and place.host.domain("n1")
    return place


def test_the_host_at_home_takes_back_what_was_given_up_and_acts_when_the_hub_has_agreed() -> None:
    place = told(owned(named("a", p1="priority"), number=2, owner="b"), GIVEN_UP)
    assert mg.configured(owned(named("a"), number=2, owner="b"), (N1,)) == ()
    place = configured(place)
    assert mg.words(place) == (Word("n1", 3, Says.OWNS),)
    assert not mg.may_act(place, "n1")
    refused = mg.refusal(place, "n1")
    assert refused and refused.code is RefusalCode.DOMAIN_MOVING and "given up" in refused.text
    for where in (Where.ABSENT, Where.OFF):
        assert look(place, where).host.domain("n1"), "it need not be defined there"
    place = told(place, AT_HOME)
    assert mg.may_act(place, "n1") and mg.refusal(place, "n1") is None


@pytest.mark.parametrize("where", [Where.OFF, Where.ABSENT])
@pytest.mark.parametrize("record", [GIVEN_UP, AT_HOME])
def test_a_lost_host_that_comes_back_forgets_the_domain_and_does_not_take_it_back(
    record: Ownership, where: Where
) -> None:
    place = told(arrived(), Ownership("n1", 2, "b", 5))
    assert not place.moves.arriving and place.moves.visitor("n1")
    place = told(place, record)
    assert not mg.may_act(place, "n1") and [w for w in mg.words(place) if w.domain == "n1"] == []
    place = look(place, where)
    assert place.host.domain("n1") is None and place.moves.visitor("n1") is None


def test_what_runs_there_after_all_is_left_to_people() -> None:
    place = look(told(told(arrived(), Ownership("n1", 2, "b", 5)), AT_HOME), Where.RUNNING)
    assert place.host.domain("n1") and not mg.may_act(place, "n1")
    assert mg.step(place, "n1", Where.RUNNING) is None


@pytest.mark.parametrize("record", [GIVEN_UP, AT_HOME])
def test_a_target_that_was_lost_before_its_move_was_over_does_not_run_what_it_has(record: Ownership) -> None:
    place = told(arrived(), record)
    assert not place.moves.arriving and not mg.may_act(place, "n1")
    early = do(expecting(named("b"), named("a", n1="normal")), me.RoomMade(T, "n1", 2, room="made"))
    early = told(early, Ownership("n1", 2, "b", 4, replace(granted().transfer, owed=True)))  # type: ignore[type-var]
    assert mg.step(early, "n1", Where.ARRIVED) is mg.MoveStep.RUN
    early = told(early, record)
    assert mg.step(early, "n1", Where.ARRIVED) is mg.MoveStep.DISCARD
    assert not look(early, Where.ABSENT).moves.arriving


@pytest.mark.parametrize("where", [Where.OFF, Where.ABSENT])
def test_the_source_of_a_domain_that_was_given_up_forgets_it_and_keeps_its_definition(where: Where) -> None:
    place = told(handed(), GIVEN_UP)
    assert mg.step(place, "n1", Where.OFF) is None
    assert mg.step(place, "n1", Where.LEFT) is mg.MoveStep.DISCARD, "another copy may have run since"
    assert mg.step(told(handed(), replace(GIVEN_UP, owner="b")), "n1", Where.OFF) is mg.MoveStep.DISCARD
    place = look(place, where)
    assert not place.moves.leaving and place.host.domain("n1") is None
    assert mg.words(configured(place)) == (Word("n1", 3, Says.OWNS),)


def test_if_the_target_is_lost_before_it_owned_the_domain_it_goes_on_where_it_was_left() -> None:
    place = do(
        told(asked(owned(named("a", n1="normal"))), granted(ready=True)), me.CopyOver(T, "n1", "the network failed")
    )
    place = told(look(place, Where.LEFT), granted(revision=3, ready=True, letting=Letting.GONE))
    place = told(place, Ownership("n1", 3, "a", 4))
    assert mg.step(place, "n1", Where.LEFT) is mg.MoveStep.GO_ON and place.host.domain("n1")


@pytest.mark.parametrize("letting", Letting)
def test_a_source_that_was_said_to_be_lost_begins_no_copy_when_it_comes_back(letting: Letting) -> None:
    for before in (granted(), granted(revision=3, ready=True)):
        place = told(asked(owned(named("a", n1="normal"))), before)
        place = told(place, granted(revision=4, ready=True, letting=letting))
        assert mg.step(place, "n1", Where.RUNNING) in (None, mg.MoveStep.ABORT)
        place = look(do(place, me.CopyOver(T, "n1", "nothing was begun")), Where.RUNNING)
        assert place.moves.leaving[0].stage is MoveStage.STAYING


def test_moves_of_a_host_whose_domain_is_elsewhere_by_now_are_forgotten() -> None:
    for stage in (MoveStage.ASKING, MoveStage.PREPARING, MoveStage.STAYING, MoveStage.RESUMING):
        place = asked(owned(named("b", n1="normal"), number=2), to="c")
        leaving = replace(place.moves.leaving[0], stage=stage)
        place = replace(place, moves=place.moves.with_leaving("n1", leaving))
        place = told(place, AT_HOME)
        assert not place.moves.leaving and not mg.may_act(place, "n1"), stage


def test_files_of_a_domain_that_was_given_up_are_nobodys_to_remove() -> None:
    place = told(handed(), GIVEN_UP)
    leaving, record = place.moves.leaving[0], place.moves.record("n1")
    assert record and departures.closed(place, leaving, record) and departures.given_up(leaving, record)
