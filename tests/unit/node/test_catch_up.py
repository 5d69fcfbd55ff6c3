"""A domain that stood still in a move catches up as after a sleep; and its jobs are stopped for the rest of a copy."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from magrathea.core import events as ev
from magrathea.core.model import Sleep, SleepCause
from node_daemon.hypervisor.moving import MoveProgress
from node_daemon.moves.copies import PAUSE_S
from tests.fakes.mover import FakeMover
from tests.unit.node import moves_scene
from tests.unit.node.life_scene import Scene, play

MIB = 2**20


def came(s: Scene, *, still: bool, rests: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """n1 has come by a move. Returns its calls from now on, with the question to PBS among them."""
    calls = s.world.calls
    calls.clear()

    async def asks(name: str) -> None:
        calls.append(f"ask {name}")

    monkeypatch.setattr(s.daemon, "ask_before_wake", asks)
    now = s.daemon.now()
    sleep = Sleep(now, "its move", SleepCause.MOVE) if rests else None
    facts = replace(s.domain("n1"), still_since=now - 60 if still else None, sleep=sleep)
    s.daemon.facts.host = s.daemon.host.having(facts)
    s.daemon.life.look_soon()
    return calls


@pytest.mark.parametrize(("still", "rests"), [(True, False), (False, True), (True, True)])
def test_it_is_caught_up_before_its_jobs_go_on(still: bool, rests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(s: Scene) -> None:
        calls = came(s, still=still, rests=rests, monkeypatch=monkeypatch)
        await s.until(lambda: s.domain("n1").still_since is None and s.domain("n1").sleep is None, "it has caught up")
        await asyncio.sleep(1)
        seen = [call for call in calls if call in ("clock n1", "reconnect n1", "ask n1")]
        assert sorted(seen) == sorted(still * ["clock n1", "reconnect n1"] + rests * ["ask n1"])
        assert s.domain("n1").agent_lost_at is None

    play(test)


class Slow(FakeMover):
    """Its copies need help: the jobs are to be stopped with so much left, at 10 MiB/s."""

    left_s = 0.0

    async def move(self, domain: str, departure: Any, arrival: Any, destination: Any, watcher: Any) -> Any:
        progress = MoveProgress(1.0, 100 * MIB, round(self.left_s * 10) * MIB, 2, 10 * MIB)
        await asyncio.wait_for(watcher.stop_jobs(progress), 60)
        return await super().move(domain, departure, arrival, destination, watcher)


@pytest.mark.parametrize("left_s", [PAUSE_S - 1, PAUSE_S + 1])
def test_jobs_are_stopped_and_booked_for_a_long_rest_only(left_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "left_s", left_s)
    monkeypatch.setattr(moves_scene, "FakeMover", Slow)

    async def test(scene: moves_scene.Scene) -> None:
        a = scene.hosts["a"]
        await a.migrate("b")
        if left_s > PAUSE_S:
            await scene.until(lambda: (d := a.domain()) is not None and d.stopped, "its job is stopped")
            assert scene.world.running("n1") == ["a"], "the copy waits"
            a.apply(ev.BooksReported(a.now(), (ev.Booking(moves_scene.KEY, booked=True),)))
        assert await scene.home() == "b"
        domain = scene.hosts["b"].domain()
        assert domain is not None and domain.rests_for_move is (left_s > PAUSE_S)
        assert bool(domain.stopped) is (left_s > PAUSE_S) and all(job.booked for job in domain.stopped)

    moves_scene.play(test)
