"""The local driver and the fake pass the contract of drivers."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.rigs import virtual_time
from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, SAVE, Driver
from node_daemon.hypervisor.local.driver import AffinityCapper, Capper, GroupCapper, LocalDriver, choose_capper

from ..fakes.guest import FakeGuest
from ..fakes.hypervisor import FakeDriver, FakeHypervisor
from .driver import CASES, Case

ALL = frozenset({CPU, MEMORY, LIFE, SAVE})


class FakeSite:
    """See DriverSite."""

    less_mib = 512

    def __init__(self, capabilities: frozenset[str]) -> None:
        guests = FakeGuest("n1", 1024, most=1024), FakeGuest("p1", 1024, most=1024, up=False)
        self.world = FakeHypervisor(*guests, capabilities=capabilities)

    def driver(self) -> Driver:
        return FakeDriver(self.world)

    async def start(self, name: str) -> None:
        self.world.start(name)

    async def end(self, name: str) -> None:
        self.world.end(name)

    async def pause(self, name: str) -> None:
        self.world[name].paused = True
        self.world.tell(name)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        virtual_time.run(work)


@pytest.mark.parametrize(
    "capabilities", [ALL, ALL - {LIFE, SAVE}, ALL - {MEMORY}, frozenset()], ids=lambda some: "+".join(sorted(some))
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_fake(case: Case, capabilities: frozenset[str]) -> None:
    site = FakeSite(capabilities)
    site.run(case(site))


class LocalSite:
    """See DriverSite. `choose`: makes the capper."""

    less_mib = 100

    def __init__(self, folder: Path, choose: Callable[[str, list[str]], Capper]) -> None:
        self.host = f"contract-{os.getpid()}"
        self.folder = folder
        self.choose = choose
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._start("n1")

    def _start(self, name: str) -> None:
        self.processes[name] = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (self.folder / f"{name}.pid").write_text(f"{self.processes[name].pid}\n")

    def driver(self) -> Driver:
        return LocalDriver(self.host, {name: self.folder / f"{name}.pid" for name in ("n1", "p1")}, self.choose)

    async def start(self, name: str) -> None:
        self._start(name)

    async def end(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait(BOUND_S)

    async def pause(self, name: str) -> None:
        raise AssertionError("the local driver leads no lives")

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(work, 2 * BOUND_S))

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(BOUND_S)
        self.choose(self.host, ["n1", "p1"]).close()  # a driver that ends leaves the groups of running processes


def by_groups(host: str, domains: list[str]) -> Capper:
    capper = choose_capper(host, domains)
    if not isinstance(capper, GroupCapper):
        pytest.skip(f"NOT RUN: capping by control groups; {capper.notes[0]}")
    return capper


def by_affinity(host: str, domains: list[str]) -> Capper:
    return AffinityCapper(sorted(os.sched_getaffinity(0)), "the test wants it so")


@pytest.fixture(params=[by_groups, by_affinity], ids=lambda choose: choose.__name__)
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalSite]:
    site = LocalSite(tmp_path, request.param)
    try:
        yield site
    finally:
        site.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_local_driver(local: LocalSite, case: Case) -> None:
    local.run(case(local))
