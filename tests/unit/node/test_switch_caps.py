"""When a preempted domain is capped: after its memory is out, and how long the cap waits for that."""

from __future__ import annotations

import asyncio

import pytest

from magrathea.core import events as ev
from magrathea.core.caps import UNANSWERED_S
from magrathea.core.model import JobKey
from tests.fakes.guest import FakeGuest
from tests.tables import some

from .switch_world import (
    CAPACITY_MIB,
    FLOOR_MIB,
    HIGH,
    busy_guest,
    caps,
    come_back,
    leave,
    played,
    slow_at_first,
    world,
)


def test_the_cap_is_set_when_the_memory_has_left() -> None:
    """With a tenth of a CPU it would be pushed out ten times as slowly."""
    w = world(busy_guest())

    async def work() -> None:
        w.log.clear()
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.model.world["n1"].cpu_percent is None

    played(w, work)


@pytest.mark.parametrize("seconds", [0.05, 0.5, UNANSWERED_S - 6])
def test_an_agent_that_is_slow_for_a_moment_does_not_bring_the_cap_early(seconds: float) -> None:
    w = world(busy_guest())

    async def work() -> None:
        slow_at_first(w, seconds)
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


def test_an_agent_that_is_slow_twice_does_not_bring_the_cap_early() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        slow_at_first(w, UNANSWERED_S - 4, again=(UNANSWERED_S, UNANSWERED_S + 3))
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2
        assert len(caps(w)) == 1

    played(w, work)


def test_a_domain_that_was_capped_because_its_agent_was_slow_has_its_cpu_as_soon_as_it_gives() -> None:
    w = world(busy_guest())

    async def work() -> None:
        slow_at_first(w, 60)
        assert (await w.claim(1000))["ok"]
        assert UNANSWERED_S - 1 < await w.until(lambda: w.model.world["n1"].cpu_percent == 10) < UNANSWERED_S + 2
        await w.until(lambda: w.model.world["n1"].cpu_percent is None)
        assert w.has("n1") > 1000
        assert w.model.world.guests["n1"].asked[-1] in ("push-out", "memory"), "it answers"
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


def test_a_preemption_does_not_remember_that_one_before_it_failed() -> None:
    w = world(busy_guest(actual=CAPACITY_MIB - FLOOR_MIB), FakeGuest("p1", FLOOR_MIB, used=60))

    async def work() -> None:
        slow_at_first(w, 5)
        assert (await w.claim(1000))["ok"]
        await asyncio.sleep(3)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        await asyncio.sleep(600)
        w.apply(ev.TimerFired(w.now()))
        w.log.clear()
        assert (await w.claim(1000, JobKey("10.srv", 1)))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2
        assert len(caps(w)) == 1

    played(w, work)


def test_a_capped_domain_keeps_its_cap_while_its_agent_is_away() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        leave(w)
        w.model.world["n1"].cpu_percent = 10
        w.log.clear()
        await w.renew()
        await asyncio.sleep(3 * UNANSWERED_S)
        assert caps(w) == []

    played(w, work)


def test_the_cap_waits_for_an_agent_that_was_just_lost() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        leave(w)
        await w.renew()
        await asyncio.sleep(UNANSWERED_S / 2)
        assert w.model.world["n1"].cpu_percent is None
        come_back(w)
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


def test_a_domain_is_capped_even_if_its_agent_stays_away() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        leave(w)
        await w.renew()
        assert UNANSWERED_S - 1 < await w.until(lambda: w.model.world["n1"].cpu_percent == 10) < UNANSWERED_S + 6
        assert w.has("n1") > 1000, "its memory stays with it"

    played(w, work)


def test_a_capped_domain_that_must_give_memory_gets_its_cpu_for_that() -> None:
    """Another daemon had capped it, or it gave little before."""
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        w.model.world["n1"].cpu_percent = 10
        await w.renew()
        await w.until(lambda: w.model.world["n1"].cpu_percent is None)
        assert w.has("n1") > 1000, "from the beginning"
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


@pytest.mark.parametrize("nth", some(range(1, 30)))
def test_a_daemon_killed_after_any_step_of_a_move_out_of_a_capped_domain_is_followed_by_one_that_continues(
    nth: int,
) -> None:
    """Lifting the cap for the move is an ordinary step of the plan."""
    w = world(busy_guest())
    steps: list[str] = []

    async def work() -> None:
        restarts: list[asyncio.Task[None]] = []

        def kill(name: str) -> None:
            steps.append(name)
            if len(steps) == nth:
                restarts.append(asyncio.get_running_loop().create_task(w.renew()))

        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        w.model.world["n1"].cpu_percent = 10
        w.log.clear()
        w.on_observe = kill
        await w.renew()
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2 and w.model.world["n1"].cpu_percent == 10)
        assert caps(w)[0] == "cpu n1 None", "lifted first"
        assert "cpu n1" in steps[: steps.index("memory n1")], "and that was a step, before the balloon took anything"
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.model.world["n1"].cpu_percent is None
        await asyncio.gather(*restarts)

    played(w, work)


def test_a_capped_domain_that_has_shown_that_it_cannot_give_keeps_its_cap() -> None:
    w = world(busy_guest(swap_mib=0), swap_mib=0)

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        w.log.clear()
        await asyncio.sleep(60)
        assert caps(w) == []

    played(w, work)
