"""The hub's signs of life end when the work that they stand for ends."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from magrathea import supervision
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import call_pool
from scheduler_plugin.hub import hub as shell
from tests.embedded.real_hub import RealHub, run
from tests.fakes.reports import domain, job, stopped

BEAT_S = 0.1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HEARTBEAT_S", BEAT_S)


def age_s(hub: RealHub) -> float:
    return time.time() - hub.heartbeat.stat().st_mtime


def test_a_defect_in_a_call_to_pbs_ends_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(shell, "perform", broken)
    hub = RealHub(tmp_path)
    hub.pbs.put(job())

    async def whole() -> None:
        host = hub.host("h1", "n1")
        hub.start()
        await host.says(domain("n1", [stopped(since=time.time())]))
        assert hub.task is not None
        try:
            await asyncio.wait_for(hub.task, BOUND_S)
        finally:
            host.socket.close(linger=0)
            hub.context.term()

    with pytest.raises(supervision.Defect):
        supervision.run(whole())


def test_the_heartbeat_file_grows_old_while_no_call_to_pbs_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "GRACE_S", -4.9)  # calls time out after 0.1 s
    monkeypatch.setattr(call_pool, "SPARE", 0)
    go = threading.Event()

    def hangs(operation: str, subject: str) -> None:
        if operation == "admin_suspend":
            go.wait(BOUND_S)

    async def test(hub: RealHub) -> None:
        """Of two hosts, because one alone cannot take all threads."""
        hosts = {"n1": hub.host("h1", "n1"), "n2": hub.host("h2", "n2")}
        jobs = {vnode: [f"{n}.{vnode}" for n in range(8)] for vnode in hosts}
        for vnode, ids in jobs.items():
            for id in ids:
                hub.pbs.put(job(id, vnodes=(vnode,)))
        hub.pbs.breaks = hangs
        hub.start()
        await hub.until(lambda: hub.heartbeat.exists() and age_s(hub) < BEAT_S, "a fresh file")
        for vnode, host in hosts.items():
            await host.says(domain(vnode, [stopped(id, since=time.time()) for id in jobs[vnode]]))
        await hub.until(lambda: age_s(hub) > 10 * BEAT_S, "an old file")
        go.set()
        await hub.until(lambda: age_s(hub) < BEAT_S, "a fresh file again")

    try:
        run(tmp_path, test)
    finally:
        go.set()
