"""A domain comes back from its image: its agent ends MoM's dead connections, and sets its clock if it could not at
once. Nothing waits for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from magrathea.core.model import State
from node_daemon.life import life
from node_daemon.life.restored_moms import AGAIN_S, NOTICED_S

from .life_scene import Scene, play

MANY = 3


async def restored(s: Scene, before: Callable[[], None] = lambda: None) -> None:
    s.freeze("p1")
    await s.until_state("p1", State.FROZEN)
    before()
    s.defrost("p1")
    await s.until_state("p1", State.FREE)


async def counted_later(s: Scene) -> int:
    """How often the agent has been asked, when MoM must have noticed by itself."""
    await asyncio.sleep(2 * NOTICED_S)
    return s.world.asked("reconnect p1")


def test_a_slow_agent_holds_nothing_up_and_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].slow_s = {"reconnect": NOTICED_S - 5}
        loop, began = asyncio.get_running_loop(), 0.0

        def now() -> None:
            nonlocal began
            began = loop.time()

        await restored(s, now)
        assert loop.time() - began < life.AGENT_S, "the domain registers meanwhile"
        await s.until(lambda: "p1: MoM connects to PBS again" in caplog.text, "the agent's answer")
        assert await counted_later(s) == 1
        assert "notices by itself" not in caplog.text

    with caplog.at_level(logging.INFO):
        play(test)


@pytest.mark.parametrize("code", ["timeout", "busy"])
def test_an_agent_that_could_not_yet_is_asked_again(code: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].fails = {"reconnect": code}
        await restored(s)
        await s.until(lambda: s.world.asked("reconnect p1") >= MANY, "asked again")
        s.world["p1"].fails.clear()
        await s.until(lambda: "p1: MoM connects to PBS again" in caplog.text, "the agent's answer")
        count = s.world.asked("reconnect p1")
        assert await counted_later(s) == count, "it has done it"

    with caplog.at_level(logging.INFO):
        play(test)


def test_an_agent_that_connects_anew_is_asked_again() -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].slow_s = {"reconnect": 5.0}
        await restored(s)
        await s.until(lambda: s.world.asked("reconnect p1") == 1, "it is asked")
        s.world["p1"].slow_s.clear()
        s.daemon.channels["p1"].drop()
        await s.until(lambda: s.world.asked("reconnect p1") == 2, "the next connection is asked")
        assert await counted_later(s) == 2

    play(test)


@pytest.mark.parametrize(("code", "most"), [("failed", 1), ("timeout", NOTICED_S / AGAIN_S)])
def test_an_agent_that_cannot_is_not_asked_for_ever(code: str, most: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].fails = {"reconnect": code}
        await restored(s)
        count = await counted_later(s)
        assert 1 <= count <= most and await counted_later(s) == count
        assert caplog.text.count("p1: MoM notices by itself") == 1

    play(test)


def test_an_old_agent_is_not_asked() -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].can = ("power", "clock")
        await restored(s)
        assert await counted_later(s) == 0

    play(test)


def test_the_next_life_of_the_guest_is_left_alone() -> None:
    """Its MoM has good connections."""

    async def test(s: Scene) -> None:
        s.world["p1"].fails = {"reconnect": "timeout"}
        await restored(s)
        await s.until(lambda: s.world.asked("reconnect p1") >= MANY, "asked again")
        s.world.end("p1")
        await s.until_state("p1", State.DOWN)
        count = s.world.asked("reconnect p1")
        s.boot("p1")
        await s.until_state("p1", State.FREE)
        assert await counted_later(s) == count

    play(test)


def test_a_clock_that_a_busy_guest_cannot_set_in_time_is_set_later_and_holds_nothing_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].fails = {"clock": "timeout"}
        await restored(s)
        await asyncio.sleep(2 * NOTICED_S)
        s.world["p1"].fails.clear()
        await s.until(lambda: "p1: its clock is set" in caplog.text, "the agent's answer")
        count = s.world.asked("clock p1")
        await counted_later(s)
        assert s.world.asked("clock p1") == count, "it has done it"

    with caplog.at_level(logging.INFO):
        play(test)


def test_a_clock_that_cannot_be_set_is_not_tried_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].fails = {"clock": "failed"}
        await restored(s)
        await counted_later(s)
        assert s.world.asked("clock p1") == 2 and "could not be set: " in caplog.text

    play(test)
