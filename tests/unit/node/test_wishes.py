"""A node daemon and the hub's wishes: it follows them as it follows an admin, or tells the hub why not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from magrathea.control import ControlRequest, Denied
from magrathea.core import events as ev
from magrathea.core.model import Domain, Kind, Lifecycle
from magrathea.core.moves import with_domain
from magrathea.core.refusals import RefusalCode
from magrathea.messages import Message
from magrathea.move_messages import MoveWished, WishRefused
from magrathea_lab.waiting import eventually
from tests.unit.core.builders import run, stop
from tests.unit.node.moves_scene import KEY, N1, Scene, play

WHY = "preempted for 700 s"


def wish(number: int = 1, to: str = "b") -> MoveWished:
    return MoveWished(domain=N1, number=number, to=to, why=WHY)


def preempted(scene: Scene) -> None:
    """n1's job is stopped for a job that has all of a."""
    a = scene.hosts["a"]
    p1 = Domain("p1", Kind.PRIORITY, 8, lifecycle=Lifecycle.UP, agent_lost_at=None)
    a.facts.host = stop(run(with_domain(a.facts.host, p1), "p1", "9", cpus=8), N1, KEY.id)
    a.apply(ev.TimerFired(a.now()))


def played(test: Callable[[Scene, list[WishRefused]], Awaitable[None]], names: tuple[str, ...] = ("a", "b")) -> None:
    """Run `test` with the refusals that reach the hub."""

    async def with_refusals(scene: Scene) -> None:
        refused: list[WishRefused] = []
        hear = scene.send

        def send(host: object, message: Message) -> None:
            if isinstance(message, WishRefused):
                refused.append(message)
            hear(host, message)  # type: ignore[arg-type]

        scene.send = send  # type: ignore[method-assign]
        await test(scene, refused)

    play(with_refusals, names=names)


def test_a_preempted_domain_moves_where_the_hub_wishes() -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        preempted(scene)
        scene.deliver("a", wish())
        scene.deliver("a", wish())
        await scene.until(lambda: scene.hosts["a"].place.moves.leaving, "it leaves")
        report = await scene.hosts["a"].ask(scene.hosts["a"].requests.report, N1, "")
        move = report.move(N1)
        assert move is not None and f"to b (wished by the hub: {WHY})" in move.text
        assert await scene.home() == "b" and not refused
        job = next(iter(scene.hosts["b"].domain().jobs))  # type: ignore[union-attr]
        assert job.stopped_by_us, "it goes on when its agent is there"

    played(test)


def test_a_domain_that_is_not_preempted_stays_and_the_hub_learns_why() -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        scene.deliver("a", wish())
        await eventually(lambda: refused, "the hub is told")
        [no] = refused
        assert (no.sender, no.domain, no.number, no.to) == ("a", N1, 1, "b")
        assert no.code is RefusalCode.NOT_MOVABLE and "keeps no job of n1 stopped" in no.text
        assert scene.hosts["a"].place.moves.leaving == ()

    played(test)


@pytest.mark.parametrize(("number", "to"), [(2, "b"), (0, "b")])
def test_a_wish_about_another_ownership_means_nothing(number: int, to: str) -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        preempted(scene)
        scene.deliver("a", wish(number, to))
        scene.deliver("b", wish())
        scene.deliver("a", wish(1, "x"))
        await eventually(lambda: refused, "only the last one is answered")
        assert [no.to for no in refused] == ["x"] and scene.hosts["a"].place.moves.leaving == ()

    played(test)


def test_a_wish_leads_only_where_the_hosts_own_configuration_permits() -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        preempted(scene)
        for to in ("c", "a", "b.example.org"):
            scene.deliver("a", wish(to=to))
            await eventually(lambda to=to: refused and refused[-1].to == to, to)  # type: ignore[misc]
            assert refused[-1].code is RefusalCode.NO_VISITORS and "add " in refused[-1].text
        assert scene.hosts["a"].place.moves.leaving == ()

    played(test)


def test_a_domain_that_cannot_move_stays_and_the_hub_learns_why() -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        preempted(scene)
        scene.world.reasons.append("it has a passed-through device")
        scene.deliver("a", wish())
        await eventually(lambda: refused, "the hub is told")
        assert "passed-through" in refused[0].text

    played(test)


def test_a_move_that_an_admin_has_begun_is_not_changed_by_a_wish() -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        preempted(scene)
        await scene.hosts["a"].migrate("c")
        scene.deliver("a", wish())
        assert await scene.home() == "c" and not refused

    played(test, names=("a", "b", "c"))


def test_an_admin_may_call_off_what_the_hub_wishes_for() -> None:
    async def test(scene: Scene, refused: list[WishRefused]) -> None:
        preempted(scene)
        a = scene.hosts["a"]
        scene.deliver("a", wish())
        await scene.until(lambda: a.place.moves.leaving, "it leaves")
        await a.requests.migrate(ControlRequest(op="migrate", domain=N1, to="a"))
        assert await scene.home() == "a"
        with pytest.raises(Denied):
            await a.requests.migrate(ControlRequest(op="migrate", domain=N1, to="a"))
        assert replace(a.place.moves, records=()).leaving == ()

    played(test)
