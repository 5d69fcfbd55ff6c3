"""Agents go away and daemons are killed while memory moves: everything continues afterwards."""

from __future__ import annotations

import asyncio

import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobKey
from node_daemon.guest_channel.channel import AgentError
from node_daemon.guest_channel.messages import Hello
from tests.fakes.guest import FakeGuest
from tests.tables import some

from .switch_world import CAPACITY_MIB, FLOOR_MIB, HIGH, busy_guest, come_back, leave, played, world


def test_memory_that_an_agent_could_not_be_asked_for_moves_as_soon_as_it_is_back() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        leave(w)
        await w.renew()
        await asyncio.sleep(30)
        come_back(w)
        assert await w.until(lambda: w.has("p1") >= 1192) < 6, "1,000 MiB at 250 a second, and no pause before it"

    played(w, work)


def test_a_claim_that_waited_in_vain_for_an_agent_is_not_refused_once_it_is_back() -> None:
    w = world(busy_guest(push_rate=2000), FakeGuest("p1", 384, used=60, rate=100))  # it takes memory slowly

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        leave(w)
        await w.renew()
        await asyncio.sleep(30)
        come_back(w)
        while not (answer := await w.prepared()).get("ready"):
            assert answer["ok"], answer
            await asyncio.sleep(0.01)

    played(w, work)


def test_an_agent_lost_in_mid_move_is_waited_for_and_all_continues() -> None:
    w = world(busy_guest(push_rate=100))
    n1 = w.model.world.guests["n1"]

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") > 700)
        n1.connected = False
        w.switch.agent_lost("n1")
        w.apply(ev.AgentLost(w.now(), "n1"))
        await asyncio.sleep(10)
        answer = await w.prepared()
        assert (answer["ok"], answer["ready"]) == (True, False), "an agent that is away may come back: no refusal"
        kept = w.has("n1")
        assert n1.target == pytest.approx(kept, abs=3), "nobody presses what nobody can ask"
        come_back(w)
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)

    played(w, work)


@pytest.mark.parametrize("nth", some(range(1, 70)))
def test_a_daemon_killed_after_any_step_is_followed_by_one_that_continues(nth: int) -> None:
    w = world(busy_guest(push_rate=400))
    seen = [0]

    async def work() -> None:
        restarts: list[asyncio.Task[None]] = []

        def kill(name: str) -> None:
            seen[0] += 1
            if seen[0] == nth:
                restarts.append(asyncio.get_running_loop().create_task(w.renew()))

        w.on_observe = kill
        w.log.clear()
        answer = await w.claim(1000)
        assert answer["ok"] or answer["code"] == "stop-timeout"
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        assert not w.low_runs()
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.model.world.guests["n1"].swapped == 0
        await asyncio.gather(*restarts)

    played(w, work)


def test_two_moves_and_back_leave_nothing_under_way() -> None:
    w = world(busy_guest())

    async def work() -> None:
        for number in (1, 2):
            key = JobKey("9.srv", number)
            assert (await w.claim(1000, key))["ok"]
            await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
            w.apply(ev.Released(w.now(), "p1", key))
            await w.until(w.low_runs)
            await asyncio.sleep(70)
        assert w.switch.progress.moves() == {}
        assert w.switch.progress.notes() == []

    played(w, work)


def test_an_agent_that_reconnects_during_a_fetch_does_not_continue_the_job_before_its_end() -> None:
    w = world(busy_guest(push_rate=100))
    n1 = w.model.world.guests["n1"]

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(lambda: w.has("n1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        await asyncio.sleep(0.5)
        assert n1.swapped > 200
        w.switch.agent_lost("n1")
        w.apply(ev.AgentLost(w.now(), "n1"))
        n1._hello = Hello(session="1" * 16, protocol=1, agent="model", can=["push-out", "fetch"])
        w.apply(ev.AgentConnected(w.now(), "n1"))
        w.switch.agent_connected("n1")
        left = [1]

        def void(op: str) -> None:
            if op == "fetch" and left[0]:
                left[0] = 0
                raise AgentError("superseded", "the agent has connected anew")

        n1.on_ask = void
        missing: list[float] = []
        w.on_observe = lambda name: missing.append(n1.swapped) if name in ("lift n1", "run n1") else None
        await w.until(w.low_runs)
        assert not left[0]
        assert not any(missing)

    played(w, work)


@pytest.mark.parametrize("restart", [False, True])
def test_a_guest_that_was_just_being_relieved_is_relieved_on_after_daemon_or_agent_were_away(restart: bool) -> None:
    w = world(busy_guest())
    n1 = w.model.world.guests["n1"]

    def away(op: str) -> None:
        if op == "push-out" and w.has("n1") <= FLOOR_MIB + 2:
            raise AgentError("no-agent", "n1: it has just gone")

    n1.on_ask = away

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2)
        assert n1.available < FLOOR_MIB // 2
        if restart:
            await w.renew()
        else:
            n1.connected = False
            w.switch.agent_lost("n1")
            w.apply(ev.AgentLost(w.now(), "n1"))
            await asyncio.sleep(20)
            n1.connected = True
            w.apply(ev.AgentConnected(w.now(), "n1"))
            w.switch.agent_connected("n1")
        n1.on_ask = lambda op: None
        await asyncio.sleep(30)
        assert n1.available >= FLOOR_MIB // 2
        assert w.model.world["n1"].cpu_percent == 10

    played(w, work)
