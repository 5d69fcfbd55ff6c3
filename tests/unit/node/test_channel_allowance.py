"""The allowance of lines belongs to the guest: neither connections nor sessions nor bytes without lines evade it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from magrathea.logs import RationedLog
from node_daemon.agent.sessions import LONG_BYTES, MAX_LINES_PER_S, RATE_WINDOW_S
from node_daemon.guest_channel import channel as channels
from node_daemon.guest_channel.channel import CONNECTION_LINES, HELLO_LINES
from node_daemon.guest_channel.messages import AnyRequest

from .test_channel import SESSION, Scene, hello, release, run, until

BURST = int(MAX_LINES_PER_S * RATE_WINDOW_S)
MIB = 2**20
ANSWER = b'{"type":"answer","session":"%s","id":1,"ok":true}\n' % SESSION.encode()


def lasts(lines: float, attack: Callable[[Scene], Awaitable[None]]) -> None:
    """Check that the attack takes as long as so many lines do."""

    async def test(s: Scene) -> None:
        began = asyncio.get_running_loop().time()
        await attack(s)
        lasted_s = asyncio.get_running_loop().time() - began
        assert lasted_s > 0.9 * (lines - BURST) / MAX_LINES_PER_S - 1.0

    run(test)


def test_a_guest_that_connects_anew_gets_no_new_allowance() -> None:
    async def attack(s: Scene) -> None:
        for _ in range(5):
            agent = await s.agent()
            agent.send(*[ANSWER] * (BURST - 100), release(1))
            assert (await agent.hear())["id"] == 1
            agent.writer.close()

    lasts(5 * (BURST - 100), attack)


def test_several_connections_share_the_allowance() -> None:
    async def test(s: Scene) -> None:
        for _ in range(3):
            (await s.agent(greeting=False)).send(b"\n", *[ANSWER] * BURST)
        began = asyncio.get_running_loop().time()
        agent = await s.agent()
        agent.send(release(1))
        assert (await agent.hear())["ok"]
        assert asyncio.get_running_loop().time() > began, "nothing is left of it at first"

    run(test)


def test_agents_that_greet_anew_are_bounded() -> None:
    async def attack(s: Scene) -> None:
        for _ in range(100):
            (await s.agent()).writer.close()

    lasts(100 * (CONNECTION_LINES + HELLO_LINES), attack)


def test_connections_without_a_hello_are_bounded() -> None:
    async def attack(s: Scene) -> None:
        for _ in range(500):
            agent = await s.agent(greeting=False)
            await agent.hear()
            agent.writer.close()

    lasts(500 * CONNECTION_LINES, attack)


def test_new_sessions_on_one_connection_are_bounded() -> None:
    async def attack(s: Scene) -> None:
        agent = await s.agent()
        for number in range(100):
            agent.send(hello(f"{number:016x}"))
        agent.send(hello("f" * 16))
        await until(lambda: s.listener.events[-1] == "connected ff")

    lasts(100 * HELLO_LINES, attack)


def test_bytes_without_a_line_count_too() -> None:
    async def attack(s: Scene) -> None:
        agent = await s.agent()
        for _ in range(32):
            agent.send(b"x" * MIB)
            await agent.writer.drain()
        agent.send(b"\n", release(1))
        assert (await agent.hear())["id"] == 1

    lasts(32 * MIB / LONG_BYTES, attack)


def test_a_long_line_counts_as_several() -> None:
    async def attack(s: Scene) -> None:
        agent = await s.agent()
        for _ in range(500):
            agent.send({"type": "answer", "session": SESSION, "id": 1, "ok": True, "x": "x" * 8 * (LONG_BYTES - 100)})
            await agent.writer.drain()
        agent.send(release(1))
        assert (await agent.hear())["id"] == 1

    lasts(500 * 7, attack)


def test_requests_that_meet_a_defect_do_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channels, "defects", RationedLog(channels.log))

    async def broken(request: AnyRequest) -> dict[str, Any]:
        raise ZeroDivisionError("of ours")

    async def test(s: Scene) -> None:
        s.listener.answer = broken
        agent = await s.agent()
        for number in range(50):
            agent.send(release(number))
            assert (await agent.hear())["code"] == "internal"

    with caplog.at_level(logging.WARNING):
        run(test)
    assert len(caplog.records) == 1
