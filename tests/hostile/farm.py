"""A real hub on a PBS in memory, with its sockets, threads and files; and hosts with valid keys that attack it."""

from __future__ import annotations

import asyncio
import socket as sockets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import zmq
import zmq.asyncio

from magrathea.messages import Books, DomainReport, Heartbeat, ToHost, decode_to_host, encode
from magrathea_lab.waiting import BOUND_S, eventually, until
from scheduler_plugin.hub import configuration, keys
from scheduler_plugin.hub.hub import Hub
from tests.fakes.pbs import FakePbs, nothing_breaks
from tests.unit.hub.builders import snapshot

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Host:
    """A host with a valid key; what it sends is up to the test."""

    def __init__(self, farm: Farm, name: str, pair: Path) -> None:
        self.name = name
        self.revision = 0
        certificate = keys.read_secret(pair)
        self.socket: zmq.asyncio.Socket = farm.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, f"{name}/boot".encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.curve_publickey = certificate.public.encode()
        self.socket.curve_secretkey = certificate.secret.encode()
        self.socket.curve_serverkey = keys.read(farm.keys_dir / keys.HUB_PUBLIC).public.encode()
        self.socket.connect(farm.endpoint)

    async def sends(self, *frames: bytes) -> None:
        await self.socket.send_multipart(frames)

    async def says(self, *domains: DomainReport, at: float | None = None, revision: int = 0) -> None:
        self.revision = revision or self.revision + 1
        at = time.time() if at is None else at
        await self.sends(encode(snapshot(*domains, host=self.name, revision=self.revision, at=at)))

    async def beats(self) -> None:
        await self.sends(encode(Heartbeat(sender=self.name, boot_id="boot", revision=self.revision)))

    async def hears(self, right: Callable[[ToHost], bool]) -> ToHost:
        """The first message that is right."""
        async with asyncio.timeout(BOUND_S):
            while not right(message := decode_to_host(await self.socket.recv())):
                pass
        return message

    async def hears_books(self, *booked: str) -> Books:
        """The first books that name exactly these jobs as booked."""

        def right(message: ToHost) -> bool:
            return isinstance(message, Books) and tuple(j.id for j in message.jobs if j.booked) == booked

        books = await self.hears(right)
        assert isinstance(books, Books)
        return books


class Farm:
    def __init__(self, directory: Path, *vnodes: str) -> None:
        self.directory = directory
        self.pbs = FakePbs(*(vnodes or ("n1", "p1", "n2")))
        self.keys_dir = directory / "keys"
        keys.init(self.keys_dir)
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.heartbeat = directory / "heartbeat"
        self.control = directory / "control.sock"
        self.context = zmq.asyncio.Context()
        self.hosts: list[Host] = []
        (directory / "state").mkdir(exist_ok=True)
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def enrol(self, name: str, *vnodes: str) -> Path:
        return keys.enrol(self.keys_dir, name, vnodes)

    def host(self, name: str, *vnodes: str) -> Host:
        """A host that is enrolled, bound to these vnodes, if any are named."""
        enrolled = self.keys_dir / keys.TO_HOSTS / f"{name}.key_secret"
        host = Host(self, name, enrolled if enrolled.exists() else self.enrol(name, *vnodes))
        self.hosts.append(host)
        return host

    def start(self) -> None:
        settings = configuration.HubConfiguration(
            hub=configuration.HubTable(
                listen=[self.endpoint],
                state_dir=f"{self.directory}/state",
                keys_dir=str(self.keys_dir),
                heartbeat_file=str(self.heartbeat),
                control_socket=str(self.control),
            ),
            pbs=configuration.PbsTable(compare_s=3600, call_deadline_s=5),
        )
        self.hub = Hub(settings, self.pbs.connect)
        self.task = asyncio.create_task(self.hub.run(self.stop))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        def true() -> bool:
            assert self.task is not None
            if self.task.done():
                self.task.result()
                raise AssertionError("the hub has ended")
            return condition()

        await eventually(true, what)

    def shown(self, vnode: str, attribute: str) -> str | None:
        return self.pbs.vnodes[vnode].attributes.get(attribute)

    async def end(self) -> None:
        self.pbs.breaks = nothing_breaks
        self.stop.set()
        try:
            if self.task is not None:
                await asyncio.wait_for(self.task, BOUND_S)
        finally:
            for host in self.hosts:
                host.socket.close(linger=0)
            self.context.term()


@asynccontextmanager
async def farm(directory: Path, *vnodes: str) -> AsyncIterator[Farm]:
    made = Farm(directory, *vnodes)
    try:
        yield made
    finally:
        await made.end()


def run(directory: Path, test: Callable[[Farm], Awaitable[None]], *vnodes: str) -> None:
    """`test` on a farm whose hub it starts itself, after it has enrolled its hosts."""

    async def whole() -> None:
        async with farm(directory, *vnodes) as made:
            await test(made)

    asyncio.run(whole())


# The hub as a process of its own


class HubProcess:
    """A hub on a PBS that is away; `files`: the limit of open files, soft and hard."""

    def __init__(self, directory: Path, *, files: tuple[int, int], more: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.keys_dir = directory / "keys"
        keys.init(self.keys_dir)
        self.log_file = directory / "hub.log"
        config = directory / "hub.toml"
        config.write_text(
            f'[hub]\nlisten = ["tcp://127.0.0.1:{self.port}"]\nstate_dir = "{directory}/state"\n'
            f'keys_dir = "{directory}/keys"\nheartbeat_file = "{directory}/heartbeat"\n'
            f'control_socket = "{directory}/control.sock"\n{more}'
            f'[pbs]\nkind = "standin"\nsocket = "{directory}/pbs.sock"\n'
        )
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {files}); "
        program = f"{limited}from scheduler_plugin.hub.main import main; main()"
        with self.log_file.open("wb") as log:
            command = [sys.executable, "-c", program, "--config", str(config)]
            self.process = subprocess.Popen(command, stderr=log, cwd=ROOT)
        self.until(lambda: "listening at" in self.log, "it listens")

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def true() -> bool:
            assert self.process.poll() is None, f"the hub has ended with {self.process.returncode}: {self.log}"
            return condition()

        until(true, lambda: f"{what}; {self.log}")

    def connect(self, address: str = "127.0.0.1") -> sockets.socket:
        """A connection from that address, which says nothing."""
        return sockets.create_connection(("127.0.0.1", self.port), BOUND_S, (address, 0))

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(BOUND_S)
        finally:
            self.process.kill()
            self.process.wait()
