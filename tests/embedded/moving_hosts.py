"""Real node daemons of hosts between which domains move, with a real hub. PBS, the hypervisors and what copies between
them are in memory."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from node_daemon.configuration import read
from node_daemon.daemon import Daemon
from node_daemon.hypervisor.moving import Presence
from tests.embedded.real_hub import RealHub
from tests.fakes import mover
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, FakeHypervisor
from tests.fakes.mover import Copy, FakeMover, Hypervisors

CONFIGURATION = """
[host]
name = "{host}"
mode = "{mode}"
cpus = {cpus}
memory_mib = {memory_mib}
reserve_mib = {reserve_mib}
driver = "libvirt"
[hub]
endpoints = ["{endpoint}"]
[paths]
run_dir = "{folder}/run"
state_dir = "{folder}/state"
scripts = ""
[visitors]
hosts = ["{other}"]
address = "qemu+tls://{host}/system"
[moves]
hosts = ["{other}"]
copy_disks = true
"""


class ShownHypervisors(Hypervisors):
    """The drivers of the hosts show a domain where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, FakeHypervisor] = {}

    def put(self, host: str, domain: str, copy: Copy) -> None:
        super().put(host, domain, copy)
        self.show(self.shown[host], domain, copy.presence in mover.RUNNING)

    def show(self, shown: FakeHypervisor, domain: str, runs: bool) -> None:
        if domain in shown.guests:
            shown.guests[domain].up = runs


class MovingHosts:
    """`world`: where each domain is, whatever the daemons think."""

    def __init__(self, folder: Path, hub: RealHub, world: ShownHypervisors) -> None:
        self.folder, self.hub, self.world = folder, hub, world
        self.daemons: dict[str, Daemon] = {}

    async def start_host(
        self,
        host: str,
        other: str,
        domains: str,
        own: Collection[str],
        visitor: str,
        *,
        mode: str = "counted",
        cpus: int = 8,
        memory_mib: int = 8192,
        capacity_mib: int = 4096,
        reserve_mib: int = 512,
    ) -> None:
        """`domains`: the tables of its `own` domains, which are up. `visitor`: may come from `other`, or is its own."""
        folder = self.folder / host
        (folder / "run").mkdir(parents=True)
        text = CONFIGURATION.format(
            host=host,
            other=other,
            folder=folder,
            endpoint=self.hub.endpoint,
            mode=mode,
            cpus=cpus,
            memory_mib=memory_mib,
            reserve_mib=reserve_mib,
        )
        (folder / "noded.toml").write_text(text + domains, encoding="utf-8")
        guests = [FakeGuest(name, up=name in own) for name in {*own, visitor}]
        self.world.shown[host] = FakeHypervisor(*guests, run_dir=folder / "run", capacity_mib=capacity_mib)
        for name in own:
            self.world.copies[host, name] = Copy(Presence.RUNNING, True, self.world.ran)
        await self.start_daemon(host)

    async def start_daemon(self, host: str) -> None:
        path = self.folder / host / "noded.toml"
        self.daemons[host] = Daemon(
            read(path),
            path,
            lambda _: FakeDriver(self.world.shown[host]),
            make_mover=lambda _: FakeMover(self.world, host),
        )
        await self.daemons[host].start()

    async def close(self) -> None:
        for daemon in self.daemons.values():
            await daemon.close()
