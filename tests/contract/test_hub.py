"""The real hub and the one of the rigs pass the contract of hubs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq.asyncio

from magrathea_lab.rigs.hub_rig import HubRig
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import hub as shell

from ..embedded.real_hub import RealHub, run
from ..fakes.host import FakeHost
from ..fakes.reports import job
from .hub import CASES, Case

BEAT_S = 0.1


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HEARTBEAT_S", BEAT_S)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_real_hub(tmp_path: Path, case: Case) -> None:
    async def test(hub: RealHub) -> None:
        for id in ("1.srv", "2.srv"):
            hub.pbs.put(job(id))
        hub.start()
        await case(hub)

    run(tmp_path, test)


class RigSite:
    """See HubSite."""

    def __init__(self, endpoint: str) -> None:
        self.hub = HubRig(endpoint)
        self.context = zmq.asyncio.Context()
        self.hosts: list[FakeHost] = []

    def host(self) -> FakeHost:
        self.hosts.append(FakeHost(self.context, self.hub.endpoint))
        return self.hosts[-1]

    async def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.context.term()
        await self.hub.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_hub_of_the_rigs(tmp_path: Path, case: Case) -> None:
    async def test() -> None:
        site = RigSite(f"ipc://{tmp_path}/hub.ipc")
        site.hub.start()
        try:
            await asyncio.wait_for(case(site), 2 * BOUND_S)
        finally:
            await site.close()

    asyncio.run(test())
