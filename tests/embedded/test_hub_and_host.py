"""The node daemon's client and the hub's channel, as they are, over TCP with the keys that `magrathea keys` makes."""

from __future__ import annotations

import asyncio
import socket as sockets
import time
from pathlib import Path

from magrathea import __version__
from magrathea.client import farm as ask_farm
from magrathea.core.events import Booking
from magrathea.core.model import JobKey
from magrathea.messages import Snapshot
from magrathea_lab.waiting import BOUND_S
from node_daemon.hub_client import HubClient
from scheduler_plugin.hub import configuration, keys
from scheduler_plugin.hub.hub import Hub
from scheduler_plugin.hub.vnode_attributes import STATE
from tests.fakes.pbs import FakePbs
from tests.unit.hub.builders import domain, job, snapshot, stopped


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_daemon_with_its_key_is_published_and_told_its_books(tmp_path: Path) -> None:
    keys.init(tmp_path / "keys")
    pair = keys.enrol(tmp_path / "keys", "h1", ["n1"])
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    settings = configuration.HubConfiguration(
        hub=configuration.HubTable(
            listen=[endpoint],
            state_dir=str(tmp_path),
            keys_dir=str(tmp_path / "keys"),
            heartbeat_file=str(tmp_path / "heartbeat"),
            control_socket=str(tmp_path / "hub-control.sock"),
        )
    )
    pbs = FakePbs("n1")
    pbs.put(job())
    booked: list[tuple[Booking, ...]] = []

    def build(revision: int) -> Snapshot:
        return snapshot(domain("n1", [stopped(since=time.time())]), revision=revision, boot_id="daemon", at=time.time())

    async def run() -> None:
        stop = asyncio.Event()
        hub = asyncio.create_task(Hub(settings, pbs.connect).run(stop))
        client = HubClient(
            "h1",
            "daemon",
            [endpoint],
            build,
            booked.append,
            lambda: None,
            lambda: None,
            key_file=str(pair),
            hub_key_file=str(tmp_path / "keys" / keys.HUB_PUBLIC),
        )
        client.start()
        try:
            async with asyncio.timeout(BOUND_S):
                client.publish()
                while not booked or not booked[-1]:
                    await asyncio.sleep(0.01)
                while True:  # the next heartbeat brings its clock and version
                    farm = await asyncio.to_thread(ask_farm, tmp_path / "hub-control.sock")
                    if farm.hosts[0].version:
                        break
                    await asyncio.sleep(0.05)
            assert farm.hosts[0].version == __version__
            assert farm.hosts[0].ahead_s is not None and abs(farm.hosts[0].ahead_s) < BOUND_S
            assert [(view.live, view.snapshot.host) for view in farm.hosts] == [(True, "h1")]
            assert (farm.knows_pbs, farm.booked) == (True, ["1.srv"])
            assert booked[-1] == (Booking(JobKey("1.srv", 1), True, False),)
            assert pbs.jobs["1.srv"].state == "S"
            assert pbs.vnodes["n1"].attributes[STATE] == "free"
        finally:
            await client.close()
            stop.set()
            async with asyncio.timeout(BOUND_S):
                await hub

    asyncio.run(run())
