"""A host whose guests' memory is moved, for tests of the mover alone. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, Kind, Lifecycle, Mode, StoppedBy
from magrathea_lab.rigs.virtual_time import run
from node_daemon.hypervisor.base import DomainReading, DriverError
from node_daemon.switch.memory import Mover
from node_daemon.switch.paging import MemorySettings
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, balloons, harmless

KEY = JobKey("1.srv", 1)
CAPACITY_MIB = 4096


class Owner:
    """Plays the switch for the mover."""

    def __init__(self, driver: FakeDriver, limits: MemorySettings, needs_mib: int = 0, runs: bool = False) -> None:
        self.memory_settings = limits
        self.driver = driver
        low = Job(KEY, JobClass.PREEMPTIBLE, 1, 0, 0.0, 0.0, True, True)
        if not runs:
            low = replace(low, stopped_since=0.0, stopper=StoppedBy.US)
        high = Job(JobKey("9.srv", 1), JobClass.PRIORITY, 1, needs_mib, 0.0, 0.0, True, True)
        kinds = {"n1": (Kind.NORMAL, (low,)), "p1": (Kind.PRIORITY, (high,))}
        domains = tuple(
            Domain(name, kinds[name][0], 4, floor_mib=128, lifecycle=Lifecycle.UP, jobs=kinds[name][1])
            for name in sorted(driver.world.guests)
        )
        self.host = Host("h1", Mode.EXCLUSIVE, 4, driver.world.capacity_mib, domains)
        self.seen: list[str] = []
        self.mover = Mover(self, driver, driver.world.guests)
        self.reads = 0

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        return (KEY,) if domain == "n1" and self.driver.world.guests["n1"].stopped else ()

    def memory_read(self, read: Mapping[str, DomainReading]) -> None:
        self.reads += 1

    def begins_to_give(self, domain: str) -> None:
        self.seen.append(f"gives {domain}")

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        return ()

    def look_soon(self) -> None:
        self.seen.append("look")

    def observe(self, name: str) -> None:
        self.seen.append(name)


def owner(
    *guests: FakeGuest, capacity_mib: int = CAPACITY_MIB, needs_mib: int = 0, runs: bool = False, **changes: Any
) -> Owner:
    return Owner(balloons(capacity_mib, *guests), replace(MemorySettings(), **changes), needs_mib, runs)


def moved(o: Owner, domain: str, mib: int) -> float:
    """Move it, and nothing else; return the virtual seconds that it took."""

    async def work() -> float:
        try:
            await o.mover.move(domain, mib)
            return asyncio.get_running_loop().time()
        finally:
            await o.mover.close()

    with harmless(o.driver.world):
        return run(work())


def refused(o: Owner, domain: str, mib: int) -> DriverError:
    with pytest.raises(DriverError) as caught:
        moved(o, domain, mib)
    return caught.value
