"""Three sites pass the contract of guests: the channel with a real agent, with the fake agent, and the fake guest."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import pytest

from magrathea_lab.rigs import virtual_time
from magrathea_lab.rigs.agent_rig import MARK
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.guest_channel.channel import GuestChannel

from ..fakes.guest import FakeGuest
from ..fakes.hypervisor import FakeHypervisor
from ..fakes.listener import Listener
from .guest_channel import CASES, Case

FOREVER_S = 1e6


def fake_guest() -> FakeGuest:
    return FakeGuest("n1", swap_mib=100, stopped=False)


class FakeSite:
    """See GuestSite."""

    def __init__(self) -> None:
        self.guest = fake_guest()

    async def hang(self) -> None:
        self.guest.order_s = FOREVER_S

    async def lose(self) -> None:
        self.guest.connected = False

    async def until(self, condition: Callable[[], bool]) -> None:
        assert condition()

    def run(self, case: Case) -> None:
        virtual_time.run(case(self))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_fake_guest(case: Case) -> None:
    FakeSite().run(case)


class ChannelSite(ABC):
    """See GuestSite: the daemon's end of the channel, with some agent at the other end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guest = GuestChannel("h1", "n1", folder / "run" / "guest" / "n1.sock", Listener())

    async def until(self, condition: Callable[[], bool]) -> None:
        await eventually(condition, "the daemon sees it")

    def run(self, case: Case) -> None:
        async def whole() -> None:
            await self.guest.start()
            try:
                await self.start_agent()
                await self.until(lambda: self.guest.hello is not None)
                await case(self)
            finally:
                await self.lose()
                await self.guest.close()

        asyncio.run(asyncio.wait_for(whole(), 2 * BOUND_S))

    @abstractmethod
    async def start_agent(self) -> None: ...

    @abstractmethod
    async def hang(self) -> None: ...

    @abstractmethod
    async def lose(self) -> None: ...


class FakeAgentSite(ChannelSite):
    async def start_agent(self) -> None:
        self.world = FakeHypervisor(fake_guest(), run_dir=self.folder / "run")
        self.world.agent("n1")

    async def hang(self) -> None:
        self.world["n1"].order_s = FOREVER_S

    async def lose(self) -> None:
        await self.world.close()


class RealAgentSite(ChannelSite):
    async def start_agent(self) -> None:
        names = {"socket": "agent.sock", "state": "state.json", "scripts": "scripts"}
        config = {key: str(self.folder / name) for key, name in names.items()}
        more = {"channel": f"unix:{self.guest.path}", "environment": {MARK: str(self.folder)}}
        (self.folder / "agent.json").write_text(json.dumps({**config, **more}))
        argv = [sys.executable, "-m", "node_daemon.agent", "--config", str(self.folder / "agent.json")]
        self.process = await asyncio.create_subprocess_exec(*argv)

    async def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    async def lose(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.mark.parametrize("site", [FakeAgentSite, RealAgentSite], ids=["with the fake agent", "with a real agent"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_guest_channel(tmp_path: Path, site: Callable[[Path], ChannelSite], case: Case) -> None:
    site(tmp_path).run(case)
