"""The loop with virtual time, which passes only when all tasks wait."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

import pytest

from magrathea_lab.rigs import virtual_time
from magrathea_lab.rigs.virtual_time import run

HOUR_S = 3600.0


def test_an_hour_passes_at_once_and_timers_fire_in_order() -> None:
    async def work() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), []

        async def after(seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((f"{seconds:g}", loop.time()))

        await asyncio.gather(after(2 * HOUR_S), after(HOUR_S), after(1.5))
        return seen

    began = time.monotonic()
    seen = run(work())
    assert [name for name, _ in seen] == ["1.5", "3600", "7200"]
    assert [at for _, at in seen] == pytest.approx([1.5, HOUR_S, 2 * HOUR_S])
    assert time.monotonic() - began < HOUR_S


def test_time_stands_still_while_somebody_can_work() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, lambda: None)
        for _ in range(1000):
            await asyncio.sleep(0)
        return loop.time()

    assert run(work()) == 0.0


def test_messages_arrive_before_time_moves() -> None:
    async def work() -> float:
        ours, theirs = socket.socketpair()
        reader, one = await asyncio.open_connection(sock=ours)
        _, other = await asyncio.open_connection(sock=theirs)
        async with asyncio.timeout(1e-6):
            other.write(b"word\n")
            assert await reader.readline() == b"word\n"
        one.close()
        other.close()
        return asyncio.get_running_loop().time()

    assert run(work()) == 0.0


def test_a_thread_is_waited_for_in_real_time() -> None:
    def slow() -> str:
        time.sleep(0.05)
        return "done"

    async def work() -> tuple[str, float]:
        async with asyncio.timeout(HOUR_S):
            said = await asyncio.to_thread(slow)
        return said, asyncio.get_running_loop().time()

    said, took_s = run(work())
    assert said == "done" and took_s < HOUR_S


def test_a_process_is_waited_for_in_real_time() -> None:
    async def work() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import os; os._exit(3)")
        async with asyncio.timeout(HOUR_S):
            code = await process.wait()
        real_s = loop.time()
        await asyncio.sleep(HOUR_S)
        assert loop.time() >= real_s + HOUR_S
        return code, real_s

    code, real_s = run(work())
    assert code == 3 and real_s < HOUR_S


def test_a_deadlock_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "DEADLOCK_S", 0.01)

    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        run(work())


def test_tasks_that_are_left_running_are_cancelled() -> None:
    ended = []

    async def for_ever() -> None:
        try:
            while True:
                await asyncio.sleep(HOUR_S)
        finally:
            ended.append(os.getpid())

    async def work() -> None:
        task = asyncio.get_running_loop().create_task(for_ever())
        await asyncio.sleep(1)
        assert not task.done()

    run(work())
    assert ended == [os.getpid()]
