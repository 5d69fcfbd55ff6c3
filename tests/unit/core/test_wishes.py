"""Moves that the hub wishes for: only domains that are preempted move so, and only as long as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import events as ev
from magrathea.core import migration as mg
from magrathea.core import move_events as me
from magrathea.core.model import Host, Mode, Pause
from magrathea.core.moves import HostWithMoves, Moves, MoveStage, Ownership, Says, Transfer, Where, Word
from magrathea.core.refusals import RefusalCode

from .builders import T, host, release, run, stop

WHY = "preempted for 100 s"


def preempted(mode: str = "exclusive") -> Host:
    """n1's job is stopped for p1's."""
    here = host(mode, n1="normal", p1="priority", cpus=4)
    here = stop(run(here, "n1", "1", cpus=4), "n1", "1")
    return replace(run(here, "p1", "9", cpus=4), name="a")


def owned(here: Host) -> HostWithMoves:
    return HostWithMoves(here, Moves((Ownership("n1", 1, "a", 1),)))


def wished(place: HostWithMoves, to: str = "b") -> tuple[HostWithMoves, tuple[me.Decision, ...]]:
    return mg.handle(place, me.MoveRequested(T, "n1", to, T + 100, "papers", WHY))


@pytest.mark.parametrize("mode", Mode)
def test_a_preempted_domain_asks_to_move_and_the_history_has_why(mode: Mode) -> None:
    place, said = wished(owned(preempted(mode)))
    assert said == (ev.Accepted("n1"), me.MoveNoted("n1", me.MoveNote.WISHED, f"to b: {WHY}"))
    leaving = place.moves.leaving_of("n1")
    assert leaving is not None and (leaving.wish, leaving.papers) == (WHY, "papers")
    assert mg.words(place)[-1] == Word("n1", 1, Says.ASKS, "b")


@pytest.mark.parametrize(
    ("here", "code"),
    [
        (replace(host("exclusive", n1="normal"), name="a"), RefusalCode.NOT_MOVABLE),
        (replace(run(host("exclusive", n1="normal"), "n1", "1"), name="a"), RefusalCode.NOT_MOVABLE),
        (release(preempted(), "p1", "9"), RefusalCode.NOT_MOVABLE),
        (replace(host("exclusive", m1="normal"), name="a"), RefusalCode.UNKNOWN_DOMAIN),
        (replace(preempted(), paused=Pause(T, "a test")), RefusalCode.PAUSED),
        (replace(preempted(), hub_lost=True), RefusalCode.HUB_LOST),
    ],
    ids=["no jobs", "it runs", "its jobs may go on", "unknown", "paused", "hub lost"],
)
def test_a_wish_is_refused(here: Host, code: RefusalCode) -> None:
    place, (said,) = wished(owned(here))
    assert isinstance(said, ev.Refused) and said.code is code
    assert place.moves.leaving == ()


def test_a_wish_never_changes_a_move_that_is_under_way() -> None:
    place, _ = mg.handle(owned(preempted()), me.MoveRequested(T, "n1", "c", T + 100))
    after, (said,) = wished(place)
    assert isinstance(said, ev.Refused) and said.code is RefusalCode.DOMAIN_MOVING
    assert after.moves == place.moves


@pytest.mark.parametrize("stage", [MoveStage.ASKING, MoveStage.PREPARING])
def test_a_domain_that_may_go_on_before_it_is_copied_stays(stage: MoveStage) -> None:
    place, _ = wished(owned(preempted()))
    if stage is MoveStage.PREPARING:
        granted = Ownership("n1", 1, "a", 2, Transfer(2, "a", "b"))
        place, _ = mg.handle(place, me.RecordsTold(T, (granted,)))
    place = replace(place, host=release(place.host, "p1", "9"))
    place, _ = mg.handle(place, me.Ticked(T))
    leaving = place.moves.leaving_of("n1")
    assert leaving is not None and (leaving.stage, leaving.wanted) == (MoveStage.STAYING, "")
    assert leaving.why == "its jobs may go on here"


def test_a_copy_that_has_begun_goes_on_even_if_the_jobs_could() -> None:
    place, _ = wished(owned(preempted()))
    granted = Ownership("n1", 1, "a", 2, Transfer(2, "a", "b", ready=True))
    place, _ = mg.handle(place, me.RecordsTold(T, (granted,)))
    place = replace(place, host=release(place.host, "p1", "9"))
    place, _ = mg.handle(place, me.Ticked(T))
    leaving = place.moves.leaving_of("n1")
    assert leaving is not None and (leaving.stage, leaving.wanted) == (MoveStage.COPYING, "b")


def test_an_admins_move_goes_on_whatever_the_jobs_do() -> None:
    place, _ = mg.handle(owned(preempted()), me.MoveRequested(T, "n1", "b", T + 100))
    place = replace(place, host=release(place.host, "p1", "9"))
    place, _ = mg.handle(place, me.Ticked(T))
    leaving = place.moves.leaving_of("n1")
    assert leaving is not None and leaving.wanted == "b"


def test_a_wish_outlives_a_copy_that_failed() -> None:
    place, _ = wished(owned(preempted()))
    for event in (
        me.RecordsTold(T, (Ownership("n1", 1, "a", 2, Transfer(2, "a", "b", ready=True)),)),
        me.CopyOver(T, "n1", "the network fails"),
        me.DomainFound(T, "n1", Where.RUNNING),
        me.RecordsTold(T, (Ownership("n1", 3, "a", 3),)),
    ):
        place, _ = mg.handle(place, event)
    leaving = place.moves.leaving_of("n1")
    assert leaving is not None and (leaving.stage, leaving.wish, leaving.attempts) == (MoveStage.ASKING, WHY, 1)
