"""Thousands of preempted jobs: the hub does not write all its books, nor tell a host all its jobs, at each outcome."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from magrathea.messages import HEARTBEAT_S, Books, decode_to_host
from scheduler_plugin.hub import hub as shell
from scheduler_plugin.hub import ledger
from tests.embedded import real_hub
from tests.embedded.real_hub import RealHub
from tests.fakes.host import FakeHost
from tests.fakes.pbs import nothing_breaks
from tests.fakes.reports import domain, job, stopped

JOBS = 200
PAUSE_S = 1.0
MOM_S = 0.02
"""A MoM's answer, so that the outcomes come one by one: a real one takes 50 ms."""
FIRST = 20
"""While PBS is still asked about the jobs, few are in the books, and the pauses are shorter."""


def ids(count: int) -> list[str]:
    return [f"{number}.srv" for number in range(1, count + 1)]


async def books_until(host: FakeHost, booked: int) -> int:
    """How many books the host hears until so many of its jobs are booked."""
    heard = 0
    while True:
        message = decode_to_host(await host.socket.recv())
        if isinstance(message, Books):
            heard += 1
            if sum(entry.booked for entry in message.jobs) == booked:
                return heard


def test_savings_and_books_of_many_jobs_have_pauses_that_grow_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "SAVE_PER_ENTRY_S", PAUSE_S / JOBS)
    monkeypatch.setattr(shell, "TELL_PER_JOB_S", PAUSE_S / JOBS)
    saved: list[int] = []
    save = ledger.save

    def counted(directory: Path, kept: ledger.Kept) -> None:
        saved.append(len(kept.entries))
        save(directory, kept)

    monkeypatch.setattr(ledger, "save", counted)

    def takes_its_time(operation: str, id: str) -> None:
        if operation == "admin_suspend":
            time.sleep(MOM_S)

    async def test(world: RealHub) -> None:
        for id in ids(JOBS):
            world.pbs.put(job(id))
        world.pbs.breaks = takes_its_time
        world.start()
        host = world.host()
        began = time.monotonic()
        await host.says(domain("n1", [stopped(id, since=time.time()) for id in ids(JOBS)], accepts=[]))
        async with asyncio.timeout(60):
            heard = await books_until(host, JOBS)
        took_s = time.monotonic() - began
        beats = took_s / HEARTBEAT_S
        assert heard <= FIRST + took_s / PAUSE_S + beats
        assert len(saved) <= FIRST + took_s / PAUSE_S
        assert max(saved) == JOBS

    real_hub.run(tmp_path, test)


def test_no_job_is_suspended_before_that_is_on_disk_however_many_come_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "SAVE_PER_ENTRY_S", 0.01)
    unbooked: list[str] = []

    def suspends(operation: str, id: str) -> None:
        if operation == "admin_suspend":
            written = json.loads((tmp_path / "state" / ledger.NAME).read_bytes())["entries"]
            unbooked.extend([id] * all(entry["id"] != id or entry["asked_at"] is None for entry in written))

    async def test(world: RealHub) -> None:
        for id in ids(20):
            world.pbs.put(job(id))
        world.pbs.breaks = suspends
        world.start()
        host = world.host()
        for count in range(1, 21):
            await host.says(domain("n1", [stopped(id, since=time.time()) for id in ids(count)], accepts=[]))
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await books_until(host, 20)
        world.pbs.breaks = nothing_breaks
        assert unbooked == []
        assert world.pbs.count("admin_suspend") == 20

    real_hub.run(tmp_path, test)


def test_no_walltime_is_given_back_before_that_is_on_disk_however_many_jobs_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a hub that dies then is followed by one that gives it back once more."""
    monkeypatch.setattr(shell, "SAVE_PER_ENTRY_S", 0.01)
    unwritten: list[str] = []

    def gives(operation: str, id: str) -> None:
        if operation == "set_walltime":
            written = json.loads((tmp_path / "state" / ledger.NAME).read_bytes())["entries"]
            unwritten.extend([id] * all(entry["id"] != id or entry["walltime_s"] is None for entry in written))

    async def test(world: RealHub) -> None:
        began = time.time() - 100
        for id in ids(20):
            world.pbs.put(replace(job(id), walltime_s=3600, started_at=began))
        world.pbs.breaks = gives
        world.start()
        host = world.host()
        await host.says(domain("n1", [stopped(id, since=began + 50) for id in ids(20)], accepts=[]))
        await world.until(lambda: world.pbs.count("set_walltime") == 20, "all have their time back")
        world.pbs.breaks = nothing_breaks
        assert unwritten == []

    real_hub.run(tmp_path, test)
