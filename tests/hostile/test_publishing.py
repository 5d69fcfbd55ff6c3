"""A host that changes its state all the time uses up the PBS server's time for publishing: other hosts come before
it. Nothing that a host changes makes the hub read all of PBS."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea.budget import Budget
from magrathea.core.model import State
from magrathea_lab.waiting import BOUND_S, until
from scheduler_plugin.hub import publisher as publisher_module
from scheduler_plugin.hub.publisher import Publisher
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, NCPUS, OFFLINE, OURS, RANK, STATE
from scheduler_plugin.pbs.base import Code, PbsError
from tests.embedded.real_hub import RealHub, run
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, job

CALL_S = 0.002
HOSTILE = [f"a{n:02}" for n in range(40)]


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs(*HOSTILE, "z1")

    def slow(operation: str, subject: str) -> None:
        if operation == "set_vnode":
            time.sleep(CALL_S)

    pbs.breaks = slow
    return pbs


@pytest.fixture
def publisher(pbs: FakePbs) -> Iterator[Publisher]:
    budget = Budget(share=0.05, burst=10 * CALL_S, now=time.monotonic())
    made = Publisher(pbs.connect, lambda read: None, lambda error: None, budget, compare_s=3600)
    made.start()
    yield made
    made.close(BOUND_S)


def test_an_honest_hosts_change_is_published_next_though_another_changes_all_the_time(
    publisher: Publisher, pbs: FakePbs
) -> None:
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.wait(0.001):
            number += 1
            publisher.want({name: {HOST: "hostile", NCPUS: str(number)} for name in HOSTILE})

    attack = threading.Thread(target=change)
    attack.start()
    try:
        until(lambda: pbs.count("set_vnode") > 30, "the budget is used up")
        before = pbs.count("set_vnode")
        publisher.want({"z1": {HOST: "honest", ACCEPTS: "priority"}})
        until(lambda: ("set_vnode", "z1") in pbs.calls, "the honest host's change")
        assert pbs.count("set_vnode") - before <= 12, "one batch that was under way"
    finally:
        over.set()
        attack.join()


def test_a_host_that_freezes_and_defrosts_all_the_time_does_not_make_the_hub_read_all_of_pbs(
    publisher: Publisher, pbs: FakePbs
) -> None:
    until(lambda: pbs.count("vnodes") == 1, "the first comparison")
    for number in range(20):
        wanted = f"{OURS}saved to disk" if number % 2 == 0 else ""
        publisher.want({"a00": {HOST: "hostile", OFFLINE: wanted, RANK: str(number)}})
        until(lambda done=number + 1: pbs.count("set_offline") == done, "the change")  # type: ignore[misc]
    publisher.want({"z1": {HOST: "honest", ACCEPTS: "priority"}})
    until(lambda: ("set_vnode", "z1") in pbs.calls, "the honest host's change")
    assert pbs.count("vnodes") == 1
    assert pbs.count("vnode") <= 2 * 20


def test_connections_that_break_all_the_time_cause_no_comparison_each(
    pbs: FakePbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "LEAST_PAUSE_S", 3600.0)
    monkeypatch.setattr(publisher_module, "RETRY_FIRST_S", 0.001)
    reads: list[object] = []
    budget = Budget(share=1.0, burst=10.0, now=time.monotonic())
    made = Publisher(pbs.connect, reads.append, lambda error: None, budget, compare_s=7200)
    made.start()
    try:
        until(lambda: bool(reads), "the first comparison")

        def broken(operation: str, subject: str) -> None:
            if (operation, subject) == ("set_vnode", "a00"):
                raise PbsError(Code.SYSTEM, "the connection breaks", transient=True)

        pbs.breaks = broken
        made.want({"a00": {NCPUS: "1"}})
        until(lambda: pbs.connections >= 6, "it connects again and again")
        assert len(reads) == 1
        made.compare()
        until(lambda: len(reads) == 2, "an admin's comparison")
    finally:
        made.close(BOUND_S)


def test_jobs_are_read_once_at_a_time_and_a_host_that_toggles_causes_no_reading(tmp_path: Path) -> None:
    held, go = threading.Event(), threading.Event()
    reading = [0, 0]

    def slow(operation: str, subject: str) -> None:
        if operation == "jobs":
            reading[0] += 1
            reading[1] = max(reading)
            held.set()
            go.wait(BOUND_S)
            reading[0] -= 1

    async def test(hub: RealHub) -> None:
        hub.pbs.put(job("7.srv", vnodes=("n2",)))
        hub.pbs.breaks = slow
        hub.start()
        await hub.until(held.is_set, "jobs are being read")
        assert hub.hub is not None
        before = hub.pbs.count("vnodes")
        for number in range(1, 6):
            hub.hub.compare()
            await hub.until(lambda n=number: hub.pbs.count("vnodes") == before + n, "comparison")  # type: ignore[misc]
            await asyncio.sleep(0)
        go.set()
        host = hub.host("h1")
        for number in range(10):
            state = State.FROZEN if number % 2 else State.FREE
            await host.says(domain("n1", state=state))
            await hub.until(lambda state=state: hub.shown("n1", STATE) == state.value, "publication")  # type: ignore[misc]
        await hub.until(lambda: hub.pbs.count("jobs") == 2, "once more for all that asked meanwhile")
        assert reading == [0, 1]
        assert hub.pbs.count("vnodes") == before + 5

    run(tmp_path, test, "n1", "n2")
