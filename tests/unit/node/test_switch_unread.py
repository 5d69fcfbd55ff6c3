"""Unknown readings of the hypervisor, for one domain or for all, never count.

No domain gets memory, is told that memory has arrived, or is taken for down because of something unknown. The worlds
are those of the memory tests: the real core, switch, mover and claims.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from magrathea.core import events as ev
from node_daemon.hypervisor.base import DomainReading
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, balloons

from .memory_owner import owner
from .switch_world import CAPACITY_MIB, FLOOR_MIB, HIGH, World, busy_guest, played

MINE_MIB = 512


def world(p1_mib: int = MINE_MIB) -> tuple[World, FakeDriver]:
    n1 = busy_guest(actual=CAPACITY_MIB - p1_mib)
    n1.stopped = False
    driver = balloons(CAPACITY_MIB, n1, FakeGuest("p1", p1_mib, used=60))
    return World(driver, swap_mib=4096, low_mib=0), driver


def test_memory_of_a_domain_that_cannot_be_read_is_given_to_nobody_until_it_can() -> None:
    w, driver = world()

    async def work() -> None:
        driver.world["n1"].readable = False
        await w.switch.readings.refresh()
        assert w.switch.readings.domains["n1"].memory_mib == 2048, "what was read last is all that is known"
        assert (await w.claim(1000))["ok"]
        await asyncio.sleep(20)
        assert not (await w.prepared()).get("ready")
        assert w.has("p1") == MINE_MIB
        driver.world["n1"].readable = True
        await w.switch.readings.refresh()
        await w.until(lambda: w.has("p1") >= FLOOR_MIB + 1000)
        assert (await w.prepared())["ready"]

    played(w, work)


def test_a_daemon_that_cannot_read_a_domain_at_its_start_counts_all_that_it_may_have() -> None:
    w, driver = world()

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") > MINE_MIB + 200)
        driver.world["n1"].readable = False
        await asyncio.sleep(5)  # memory that was given until then has arrived
        await w.renew()
        has = w.has("p1")
        assert has < FLOOR_MIB + 1000
        await asyncio.sleep(30)
        assert w.has("p1") <= has + 2, "n1 may have all the rest"
        driver.world["n1"].readable = True
        await w.switch.readings.refresh()
        await w.until(lambda: w.has("p1") >= FLOOR_MIB + 1000)

    played(w, work)


def test_a_daemon_that_has_never_reached_its_hypervisor_calls_no_memory_ready() -> None:
    w, driver = world()

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        can, driver.world.capabilities = driver.capabilities, frozenset()
        driver.world.unanswered = 1000
        w.apply(ev.DriverLost(w.now()))
        await w.renew()
        assert w.switch.readings.domains == {}
        assert (await w.prepared())["ready"] is False
        driver.world.unanswered, driver.world.capabilities = 0, can
        w.apply(ev.DriverFound(w.now()))
        await w.switch.readings.refresh()
        await w.until(lambda: w.has("p1") >= FLOOR_MIB + 1000)
        assert (await w.prepared())["ready"]
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)

    played(w, work)


def test_a_domain_without_a_balloon_keeps_what_it_has() -> None:
    o = owner(FakeGuest("n1", 2048), FakeGuest("p1", 512))
    fixed = DomainReading(up=True, max_memory_mib=3000)
    movable = DomainReading(up=True, memory_mib=512, max_memory_mib=4096)
    o.mover.note({"n1": fixed, "p1": movable})
    assert o.mover.bounds.room("p1") == o.host.memory_mib - 3000
    o.mover.note({"n1": replace(fixed, up=False), "p1": movable})
    assert o.mover.bounds.room("p1") == o.host.memory_mib


def test_without_its_hypervisor_a_job_continues_if_nothing_has_to_be_given_back() -> None:
    """libvirtd died before memory moved and a cap was set, so only the agent is needed."""
    w, driver = world(p1_mib=FLOOR_MIB)

    async def work() -> None:
        driver.world.unanswered = 10**9
        assert (await w.claim(0))["ok"]
        assert not w.low_runs()
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs, 5)
        assert driver.world["n1"].cpu_percent is None

    played(w, work)


def test_without_its_hypervisor_a_job_stays_stopped_as_long_as_its_cpu_and_memory_are_away() -> None:
    """The job would run with its domain's cap and in swap, and use up its walltime; stopped, it loses nothing."""
    w, driver = world()

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: driver.world["n1"].cpu_percent == 10)
        driver.world.unanswered = 10**9
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await asyncio.sleep(120)
        assert not w.low_runs()
        assert any("SetCpu of n1 fails" in note for note in w.switch.progress.notes())
        driver.world.unanswered = 0
        await w.until(w.low_runs, 60)
        assert driver.world["n1"].cpu_percent is None and driver.world.guests["n1"].swapped == 0

    played(w, work)
