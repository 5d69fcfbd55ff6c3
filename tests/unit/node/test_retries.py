"""Failed work is tried again after growing pauses, and forgotten when it succeeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from magrathea_lab.rigs.virtual_time import run
from node_daemon.retries import LOGGED_EVERY, Retries, sentence

CPU, OTHER = ("SetCpu", "n1"), ("SetMemory", "n2")


def play(test: Callable[[Retries], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test(Retries((1.0, 5.0)))

    run(whole())


def test_the_pause_grows_with_each_failure_and_then_stays() -> None:
    async def test(r: Retries) -> None:
        assert r.wait_s(CPU) == 0
        for pause_s in (1.0, 5.0, 5.0):
            r.failed(CPU, "lost", "no answer")
            assert r.wait_s(CPU) == pause_s
            await asyncio.sleep(pause_s)
            assert r.wait_s(CPU) == 0
            assert CPU in r, "it may be tried, and has still failed"
        r.succeeded(CPU)
        assert CPU not in r
        r.failed(CPU, "lost", "no answer")
        assert r.wait_s(CPU) == 1.0

    play(test)


def test_since_when_it_fails_and_since_when_for_reasons_that_last() -> None:
    async def test(r: Retries) -> None:
        first = r.failed(CPU, "timeout", "slow", lasting=False, away=True)
        await asyncio.sleep(10)
        second = r.failed(CPU, "failed", "broken")
        assert (second.since, second.lasting_since, second.times, second.away) == (first.since, first.since, 2, False)
        await asyncio.sleep(10)
        third = r.failed(CPU, "timeout", "slow", lasting=False)
        assert (third.since, third.lasting_since) == (first.since, first.since + 20)

    play(test)


def test_finished_work_is_forgotten_and_promising_work_is_tried_at_once() -> None:
    async def test(r: Retries) -> None:
        r.failed(CPU, "memory-short", "too little")
        r.failed(OTHER, "memory-short", "too little")
        r.try_now("SetMemory", ("lost",))
        assert r.wait_s(OTHER) == 1.0
        r.try_now("SetMemory", ("lost", "memory-short"))
        assert (r.wait_s(CPU), r.wait_s(OTHER)) == (1.0, 0.0)
        r.forget(lambda slot: slot[1] == "n1")
        assert [sentence(slot, failure) for slot, failure in r.items()] == ["SetMemory of n2 fails: too little"]

    play(test)


def test_a_failure_that_continues_is_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    async def test(r: Retries) -> None:
        for _ in range(LOGGED_EVERY):
            r.failed(CPU, "lost", "no answer")

    with caplog.at_level(logging.WARNING):
        play(test)
    times = [record.getMessage().split("(")[1].split(" times")[0] for record in caplog.records]
    assert times == ["1", "2", str(LOGGED_EVERY)]
