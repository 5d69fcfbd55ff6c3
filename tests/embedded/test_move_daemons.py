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
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, SIBLINGS
from tests.embedded.moving_hosts import MovingHosts, ShownHypervisors
from tests.embedded.real_hub import real_hub
from tests.fakes import mover

DOMAIN = '[domain.{own}]\nkind = "normal"\ncpus = 2\n'


class Site(MovingHosts):
    """h1 with n1, h2 with m2, and the hub."""

    async def start(self) -> None:
        self.hub.start()
        for host, own, other in (("h1", "n1", "h2"), ("h2", "m2", "h1")):
            await self.start_host(host, other, DOMAIN.format(own=own), [own], "n1")
        self.world.files["h1"] = {mover.DISK}

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
            hub = await stack.enter_async_context(real_hub(folder, "n1", "m2"))
            site = Site(folder, hub, ShownHypervisors())
            stack.push_async_callback(site.close)
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
