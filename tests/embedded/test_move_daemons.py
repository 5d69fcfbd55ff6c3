"""Two real node daemons move a domain through the real hub, with its sockets and files. PBS, the hypervisors and what
copies between them are in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from magrathea.control import ControlRequest
from magrathea_lab.waiting import eventually
from node_daemon.configuration import read
from node_daemon.daemon import Daemon
from node_daemon.hypervisor.moving import Presence
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, SIBLINGS
from tests.embedded.real_hub import RealHub, real_hub
from tests.fakes import mover
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, FakeHypervisor
from tests.fakes.mover import Copy, FakeMover, Hypervisors

CONFIGURATION = """
[host]
name = "{host}"
mode = "counted"
cpus = 8
memory_mib = 8192
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
[domain.{own}]
kind = "normal"
cpus = 2
"""


class World(Hypervisors):
    """The drivers of the hosts show a domain where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, FakeHypervisor] = {}

    def put(self, host: str, domain: str, copy: Copy) -> None:
        super().put(host, domain, copy)
        guests = self.shown[host].guests
        if domain in guests:
            guests[domain].up = copy.presence in mover.RUNNING


class Site:
    """h1 with n1, h2 with m2, and the hub."""

    def __init__(self, folder: Path, hub: RealHub) -> None:
        self.folder, self.hub = folder, hub
        self.world = World()
        self.daemons: dict[str, Daemon] = {}

    async def start(self) -> None:
        self.hub.start()
        for host, own, other in (("h1", "n1", "h2"), ("h2", "m2", "h1")):
            folder = self.folder / host
            (folder / "run").mkdir(parents=True)
            path = folder / "noded.toml"
            text = CONFIGURATION.format(host=host, own=own, other=other, folder=folder, endpoint=self.hub.endpoint)
            path.write_text(text, encoding="utf-8")
            guests = [FakeGuest(name, up=name == own) for name in (own, "n1")]
            self.world.shown[host] = FakeHypervisor(*guests, run_dir=folder / "run")
            self.world.copies[host, own] = Copy(Presence.RUNNING, True, self.world.ran)
            await self.start_daemon(host)
        self.world.files["h1"] = {mover.DISK}

    async def start_daemon(self, host: str) -> None:
        path = self.folder / host / "noded.toml"
        self.daemons[host] = Daemon(
            read(path),
            path,
            lambda _: FakeDriver(self.world.shown[host]),
            make_mover=lambda _: FakeMover(self.world, host),
        )
        await self.daemons[host].start()

    async def migrate(self, here: str, there: str) -> None:
        await self.daemons[here].move_requests.migrate(ControlRequest(op="migrate", domain="n1", to=there))

    async def published(self, host: str, siblings: dict[str, str]) -> None:
        """Wait until n1 accepts jobs as a domain of this host, and the vnodes have these siblings."""

        def so() -> bool:
            here = {name: self.hub.shown(name, SIBLINGS) for name in siblings} == siblings
            return here and self.hub.shown("n1", HOST) == host and self.hub.shown("n1", ACCEPTS) not in (None, "none")

        def picture() -> str:
            vnodes = {name: vnode.attributes for name, vnode in self.hub.pbs.vnodes.items()}
            return f"{vnodes}; {self.world.story}; {[daemon.place.moves for daemon in self.daemons.values()]}"

        await eventually(so, picture)


def play(folder: Path, test: Callable[[Site], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "COPY_S", 0.5)

    async def whole() -> None:
        async with AsyncExitStack() as stack:
            site = Site(folder, await stack.enter_async_context(real_hub(folder, "n1", "m2")))

            async def close() -> None:
                for daemon in site.daemons.values():
                    await daemon.close()

            stack.push_async_callback(close)
            await site.start()
            await test(site)

    asyncio.run(whole())


def test_a_domain_goes_to_another_host_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(site: Site) -> None:
        await site.published("h1", {"n1": "none", "m2": "none"})
        h1 = site.daemons["h1"]
        await eventually(lambda: h1.place.moves.record("n1") is not None, "h1 is told that n1 is its own")
        await site.migrate("h1", "h2")
        await site.published("h2", {"n1": "m2", "m2": "n1"})
        assert h1.host.domain("n1") is None and site.world.running("n1") == ["h2"]
        await site.migrate("h2", "h1")
        await site.published("h1", {"n1": "none", "m2": "none"})
        assert site.daemons["h2"].host.domain("n1") is None and site.world.running("n1") == ["h1"]

    play(tmp_path, test, monkeypatch)


def test_a_hub_that_is_started_anew_in_the_midst_delays_the_move_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(site: Site) -> None:
        await site.published("h1", {"n1": "none", "m2": "none"})
        await eventually(lambda: site.daemons["h1"].place.moves.record("n1") is not None, "h1 is told what it owns")
        await site.migrate("h1", "h2")
        await eventually(lambda: any("arriving" in line for line in site.world.story), "it is copied")
        await site.hub.end()
        site.hub.start()
        await site.published("h2", {"n1": "m2", "m2": "n1"})

    play(tmp_path, test, monkeypatch)
