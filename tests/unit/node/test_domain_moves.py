"""The moves of node daemons: two daemons' rooms and the hub's books move a domain, and any of them may die."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from magrathea.core.model import Lifecycle
from node_daemon.hypervisor.moving import Presence
from tests.fakes.mover import DISK, NOTHING, Copy
from tests.unit.node.moves_scene import N1, Scene, play


async def moved(scene: Scene) -> str:
    """Let n1 move from a to b, and return where it is in the end."""
    a = scene.hosts["a"]
    try:
        answer = await a.migrate("b")
        assert answer.plan is not None and answer.plan.jobs == 1
    except asyncio.CancelledError:
        assert not a.alive
    return await scene.home()


def test_a_domain_moves_with_its_jobs_and_its_files() -> None:
    async def test(scene: Scene) -> None:
        a, b = scene.hosts["a"], scene.hosts["b"]
        assert await moved(scene) == "b"
        end = await a.end()
        assert end.moved and "b" in end.text
        domain = b.domain()
        assert domain is not None and domain.lifecycle is Lifecycle.UP and domain.cpus == 2
        assert N1 in b.configuration.domain
        assert (scene.world.files["a"], scene.world.files["b"]) == (set(), {DISK})

    play(test)


def test_it_comes_back_and_goes_again() -> None:
    async def test(scene: Scene) -> None:
        for here, there in (("a", "b"), ("b", "a"), ("a", "b")):
            await scene.hosts[here].migrate(there)
            assert await scene.home() == there
            assert scene.world.files[there] == {DISK} and not scene.world.files[here]

    play(test)


def steps_of_a_move() -> list[str]:
    return play(moved)[1]


def test_whoever_dies_after_any_step_the_domain_runs_once_and_all_agree() -> None:
    steps = steps_of_a_move()
    assert {step.split(":")[0] for step in steps} == {"a", "b", "hub"}
    homes = {step: play(moved, kill=step)[0] for step in steps}
    assert set(homes.values()) <= {"a", "b"} and "b" in homes.values()
    last = {step: home for step, home in homes.items() if "hub" in step}
    assert set(last.values()) == {"b"}, f"the hub's death only delays a move: {last}"


@pytest.mark.parametrize(
    ("phase", "source", "target", "ends_at"),
    [
        ("copying", Presence.RUNNING, None, {"b"}),
        ("performed", Presence.RUNNING, None, {"b"}),
        ("performed", Presence.HELD, None, {"a"}),
        ("performed", Presence.HELD, Presence.ARRIVED, {"b"}),
        ("performed", Presence.RUNNING, Presence.ARRIVED, {"b"}),
        ("finished", Presence.HELD, Presence.ARRIVED, {"b"}),
    ],
    ids=lambda value: str(value),
)
def test_whatever_a_copy_that_fails_leaves_the_domain_runs_once(
    phase: str, source: Presence, target: Presence | None, ends_at: set[str]
) -> None:
    async def test(scene: Scene) -> str:
        left = ["the network is down"]

        def fails(now: str) -> str:
            if now != phase or not left:
                return ""
            world = scene.world
            here = world.at("a", N1)
            world.put("b", N1, Copy(target, True, here.age) if target else NOTHING)
            if here.presence is not Presence.LEAVING:
                world.put("a", N1, replace(here, presence=source, age=world.ran))
            return left.pop()

        scene.world.fails = fails
        return await moved(scene)

    assert play(test)[0] in ends_at


def test_a_copy_that_always_fails_leaves_the_domain_where_it_is() -> None:
    async def test(scene: Scene) -> None:
        scene.world.fails = lambda phase: "the network is down"
        assert await moved(scene) == "a"
        end = await scene.hosts["a"].end()
        assert not end.moved and "the network is down" in end.text
        assert scene.world.files["b"] == set(), "what was made for it is removed"

    play(test)


def test_a_host_that_lacks_something_declines_and_the_reason_comes_back() -> None:
    async def test(scene: Scene) -> None:
        scene.world.unwelcome = "the bridge br7 is missing here"
        assert await moved(scene) == "a"
        assert "br7" in (await scene.hosts["a"].end()).text

    play(test)


def test_a_host_that_takes_nobody_from_there_is_refused_by_the_hub() -> None:
    async def test(scene: Scene) -> None:
        b = scene.hosts["b"]
        nobody = msgspec.structs.replace(b.configuration.visitors, hosts=[])
        b.configuration = msgspec.structs.replace(b.configuration, visitors=nobody)
        await asyncio.sleep(5)
        assert await moved(scene) == "a"
        assert "takes no domains from a" in (await scene.hosts["a"].end()).text

    play(test)
