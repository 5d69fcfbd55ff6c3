"""The real node daemon's client and the real hub's channel, over TCP with the keys that `magrathea keys` makes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from magrathea import __version__
from magrathea.client import farm as ask_farm
from magrathea.core.events import Booking
from magrathea.core.model import JobKey
from magrathea.messages import Snapshot
from magrathea_lab.waiting import BOUND_S
from node_daemon.hub_client import HubClient
from scheduler_plugin.hub import keys
from scheduler_plugin.hub.vnode_attributes import STATE
from tests.embedded.real_hub import RealHub, run
from tests.fakes.reports import domain, job, snapshot, stopped


def test_a_daemon_with_its_key_is_published_and_gets_its_books(tmp_path: Path) -> None:
    booked: list[tuple[Booking, ...]] = []

    def build(revision: int) -> Snapshot:
        return snapshot(domain("n1", [stopped(since=time.time())]), revision=revision, boot_id="daemon", at=time.time())

    async def test(hub: RealHub) -> None:
        hub.pbs.put(job())
        pair = hub.enrol("h1", "n1")
        hub.start()
        client = HubClient(
            "h1",
            "daemon",
            [hub.endpoint],
            build,
            booked.append,
            lambda: None,
            lambda: None,
            key_file=str(pair),
            hub_key_file=str(hub.keys_dir / keys.HUB_PUBLIC),
        )
        client.start()
        try:
            async with asyncio.timeout(BOUND_S):
                client.publish()
                while not booked or not booked[-1]:
                    await asyncio.sleep(0.01)
                while True:  # the next heartbeat brings its clock and version
                    farm = await asyncio.to_thread(ask_farm, hub.control)
                    if farm.hosts[0].version:
                        break
                    await asyncio.sleep(0.05)
            assert farm.hosts[0].version == __version__
            assert farm.hosts[0].ahead_s is not None and abs(farm.hosts[0].ahead_s) < BOUND_S
            assert [(view.live, view.snapshot.host) for view in farm.hosts] == [(True, "h1")]
            assert (farm.knows_pbs, farm.booked) == (True, ["1.srv"])
            assert booked[-1] == (Booking(JobKey("1.srv", 1), True, False),)
            assert hub.pbs.jobs["1.srv"].state == "S"
            await hub.until(lambda: hub.shown("n1", STATE) == "free", "publication")
        finally:
            await client.close()

    run(tmp_path, test, "n1", tcp=True)
