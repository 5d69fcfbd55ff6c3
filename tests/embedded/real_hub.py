"""A whole hub in this process, with its sockets, threads and files, on a PBS in memory; the test plays the hosts."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import zmq.asyncio

from magrathea_lab.waiting import BOUND_S, eventually
from scheduler_plugin.hub import configuration, keys
from scheduler_plugin.hub.hub import Hub
from scheduler_plugin.pbs.base import Connect
from tests.fakes.host import FakeHost
from tests.fakes.pbs import FakePbs, nothing_breaks


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RealHub:
    """`tcp`: it listens on the loopback, for enrolled hosts; else on a unix socket. `connect`: to another PBS."""

    def __init__(self, directory: Path, *vnodes: str, tcp: bool = False) -> None:
        self.directory = directory
        self.pbs = FakePbs(*(vnodes or ("n1", "p1")))
        self.connect: Connect = self.pbs.connect
        self.keys_dir = directory / "keys"
        self.endpoint = f"tcp://127.0.0.1:{free_port()}" if tcp else f"ipc://{directory}/hub.ipc"
        self.tcp = tcp
        self.elsewhere = configuration.ElsewhereTable()
        self.heartbeat = directory / "heartbeat"
        self.control = directory / "control.sock"
        self.context = zmq.asyncio.Context()
        self.hosts: list[FakeHost] = []
        self.hub: Hub | None = None
        self.task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        (directory / "state").mkdir(exist_ok=True)
        if tcp:
            keys.init(self.keys_dir)

    def start(self) -> None:
        self._stop.clear()
        settings = configuration.HubConfiguration(
            hub=configuration.HubTable(
                listen=[self.endpoint],
                state_dir=f"{self.directory}/state",
                keys_dir=str(self.keys_dir),
                heartbeat_file=str(self.heartbeat),
                control_socket=str(self.control),
            ),
            pbs=configuration.PbsTable(compare_s=3600, call_deadline_s=5),
            elsewhere=self.elsewhere,
        )
        self.hub = Hub(settings, self.connect)
        self.task = asyncio.create_task(self.hub.run(self._stop))

    async def end(self) -> None:
        """End the hub; `start` starts another."""
        self._stop.set()
        if self.task is not None:
            async with asyncio.timeout(BOUND_S):
                await self.task

    async def close(self) -> None:
        self.pbs.breaks = nothing_breaks
        try:
            await self.end()
        finally:
            for host in self.hosts:
                host.close()
            self.context.term()

    def enrol(self, name: str, *vnodes: str) -> Path:
        return keys.enrol(self.keys_dir, name, vnodes)

    def host(self, name: str = "h1", *vnodes: str) -> FakeHost:
        """A host. With TCP it is enrolled first if necessary; if vnodes are given, only for these."""
        if self.tcp:
            pair = self.keys_dir / keys.TO_HOSTS / f"{name}.key_secret"
            if not pair.exists():
                pair = self.enrol(name, *vnodes)
            host = FakeHost(self.context, self.endpoint, name, pair, self.keys_dir / keys.HUB_PUBLIC)
        else:
            host = FakeHost(self.context, self.endpoint, name)
        self.hosts.append(host)
        return host

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        def so() -> bool:
            assert self.task is not None
            if self.task.done():
                self.task.result()
                raise AssertionError(f"the hub has ended before {what}")
            return condition()

        await eventually(so, what)

    def shown(self, vnode: str, attribute: str) -> str | None:
        return self.pbs.vnodes[vnode].attributes.get(attribute)


@asynccontextmanager
async def real_hub(directory: Path, *vnodes: str, tcp: bool = False) -> AsyncIterator[RealHub]:
    """A hub that is not started yet, and is ended whatever happens."""
    made = RealHub(directory, *vnodes, tcp=tcp)
    try:
        yield made
    finally:
        await made.close()


def run(directory: Path, test: Callable[[RealHub], Awaitable[None]], *vnodes: str, tcp: bool = False) -> None:
    """Run `test` with a hub that the test itself starts, after it has enrolled its hosts."""

    async def whole() -> None:
        async with real_hub(directory, *vnodes, tcp=tcp) as made:
            await test(made)

    asyncio.run(whole())
