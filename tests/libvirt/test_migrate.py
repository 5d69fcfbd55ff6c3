"""Two real node daemons and a real hub move a guest with a running job between two real libvirtds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea.pbs_text.states import RUNNING_SUBSTATE
from magrathea_lab.rigs.guest import Job
from magrathea_lab.rigs.guest_host import Size
from magrathea_lab.rigs.two_daemons import TwoDaemons
from magrathea_lab.rigs.two_hosts import TwoHosts
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST
from scheduler_plugin.pbs.base import PbsJob
from tests.embedded.real_hub import RealHub

N1 = "n1"
COUNTS = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


class HubInThread:
    """A real hub on a PBS in memory, in a thread with its own event loop."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._thread.start()
        self.hub = self._do(self._make(folder))

    async def _make(self, folder: Path) -> RealHub:
        hub = RealHub(folder, N1, "n2")
        hub.start()
        return hub

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(BOUND_S)

    def runs(self, job: Job) -> Job:
        """PBS has given the job to n1."""
        self.hub.pbs.put(PbsJob(job.id, "R", RUNNING_SUBSTATE, 0, "low", (N1,)))
        return job

    def shows(self, attribute: str) -> str:
        """What n1's vnode shows."""
        return str(self.hub.shown(N1, attribute) or "")

    def close(self) -> None:
        self._do(self.hub.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(BOUND_S)
        self._loop.close()


@pytest.fixture(scope="module")
def hypervisors() -> Iterator[TwoHosts]:
    with TwoHosts({N1: Size(memory_mib=192)}, disks=[N1]) as made:
        yield made


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubInThread]:
    made = HubInThread(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def farm(hypervisors: TwoHosts, hub: HubInThread) -> Iterator[TwoDaemons]:
    """n1 is at h1, and its agent is connected."""
    hypervisors.restore()
    hypervisors.bring(N1, hypervisors.first)
    with TwoDaemons(hypervisors, hub.hub.endpoint, {"h1": N1, "h2": "n2"}) as made:
        made.until(lambda: (made.report("h1", N1) or {}).get("agent"), "the agent is connected")
        yield made


def count(farm: TwoDaemons, host: str, job: Job) -> int:
    """How far the job has counted."""
    lines = str(farm.guest(host, N1).jobs()[job.id]["output"]).split()
    return int(lines[-1]) if lines else 0


def counts_on(farm: TwoDaemons, host: str, job: Job) -> None:
    before = count(farm, host, job)
    farm.until(lambda: count(farm, host, job) > before, f"{job.id} counts on from {before}")


def is_at(farm: TwoDaemons, host: str, job: Job) -> None:
    """The domain is at that host only, with its agent and its job, which goes on."""
    (other,) = {"h1", "h2"} - {host}
    farm.until(lambda: (farm.report(host, N1) or {}).get("agent"), f"the agent is connected to {host}")
    farm.until(lambda: farm.report(other, N1) is None, f"{other} has forgotten it")
    farm.until(lambda: [one["id"] for one in (farm.report(host, N1) or {"jobs": []})["jobs"]] == [job.id], "its job")
    assert farm.hosts.running(N1) == [farm.at[host]]
    farm.until(lambda: "travel" not in (farm.report(host, N1) or {"travel": 1}), "the move is over")
    counts_on(farm, host, job)


def test_a_guest_moves_with_its_running_job_there_and_back(farm: TwoDaemons, hub: HubInThread) -> None:
    job = hub.runs(Job("1.srv", script=COUNTS))
    farm.guest("h1", N1).qsub(job)
    counts_on(farm, "h1", job)
    dry = farm.until(lambda: farm.ask("h1", op="migrate-plan", domain=N1, to="h2").get("plan"), "n1 may move")
    assert dry["jobs"] == 1 and len(dry["disks"]) == 1
    farm.migrate("h1", N1, "h2")
    is_at(farm, "h2", job)
    farm.until(lambda: hub.shows(HOST) == "h2" and "preemptible" in hub.shows(ACCEPTS), "PBS shows it at h2")
    command = [sys.executable, "-m", "magrathea.cli", "domain", "migrate", N1, "--socket", str(farm.control("h2"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0 and f"{N1}: it is at h1 now" in done.stdout, done
    is_at(farm, "h1", job)
    farm.guest("h1", N1).qdel(job)
