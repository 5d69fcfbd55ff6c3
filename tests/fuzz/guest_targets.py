"""What a guest sends, and what reaches the agent: both ends of the guest channel, MoM's socket, the agent's files.

What would act on the machine (signals, the clock, scripts, power) is replaced by parts that do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from magrathea import supervision
from node_daemon.agent.configuration import Config
from node_daemon.agent.daemon_requests import DaemonRequests
from node_daemon.agent.environments import Environments
from node_daemon.agent.jobs import Job
from node_daemon.agent.lines import BadValue, encode
from node_daemon.agent.mom_requests import MomRequests
from node_daemon.agent.mom_server import Client, MomServer
from node_daemon.agent.refusals import refusal
from node_daemon.agent.sessions import Allowance
from node_daemon.agent.state_file import StateFile
from node_daemon.agent.table import Table
from node_daemon.agent.wire import GuestEnd
from node_daemon.guest_channel.channel import AgentError, GuestChannel, _Link
from node_daemon.guest_channel.messages import AnyRequest, Hello

from .driver import Reader

Doc = dict[str, Any]

HOST, GUEST = "0123456789abcdef", "fedcba9876543210"
"""The ends' sessions: samples name them."""
GREETING = b'\n{"type":"hello","protocol":1,"session":"%s","parts":true,"host":"h1","domain":"n1","agent":"1"}\n'
FIRST = b'{"type":"request","id":9007199254740992,"session":"%s","op":"report"}\n'
"""A request that must be answered before each input: it shows that the daemon still listens to this guest."""
BOOT = "a-boot-of-the-corpus"
MOST_ANSWERED = 16 * 1024 * 1024
"""Of one input; MAX_ANSWERS repetitions of a short answer are far less."""


def _raised(error: Exception) -> None:
    raise error


# The daemon's end


class _Stream(asyncio.Transport):
    """The daemon's connection to a guest that reads everything."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = self.paused = False
        self.written = 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def is_reading(self) -> bool:
        return not self.paused

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class _Handler:
    def connected(self, domain: str, hello: Hello) -> None: ...

    def lost(self, domain: str) -> None: ...

    async def request(self, domain: str, request: AnyRequest) -> Doc:
        return {"ok": True}


def guest_to_daemon(folder: Path) -> Reader:
    """The daemon's end of the guest channel, from the stream's bytes to the handler of requests."""
    loop = asyncio.new_event_loop()
    channel = GuestChannel("h1", "n1", folder / "n1.sock", _Handler())

    async def connection(data: bytes) -> None:
        defects: list[Exception] = []
        channel.allowance = Allowance()  # else only the first thousand lines of all inputs would be read
        link, stream = _Link(channel), _Stream()
        link.end.make_session = lambda: HOST
        link.end.on_defect = defects.append
        link.connection_made(stream)
        link.data_received(GREETING % GUEST.encode())
        asked = supervision.start(_asks(channel))
        await asyncio.sleep(0)
        before = stream.written
        link.data_received(FIRST % GUEST.encode())
        await asyncio.sleep(0)
        assert stream.written > before, "nobody listens to this guest"
        link.data_received(data)
        for _ in range(3):
            await asyncio.sleep(0)
        link.connection_lost(None)
        await asyncio.gather(asked, return_exceptions=True)
        assert stream.written < MOST_ANSWERED, f"{stream.written} bytes in answer"
        assert not channel._links
        for error in defects:
            raise error

    return lambda data: loop.run_until_complete(connection(data))


async def _asks(channel: GuestChannel) -> None:
    with contextlib.suppress(AgentError):
        await channel.request("memory", 5.0)


# The agent's end


class _Idle:
    """Stands for a part of the agent that would act: each call does nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given, **named: None


class _Sweeper(_Idle):
    def __init__(self, jobs: dict[tuple[str, int], Job]) -> None:
        self.jobs = jobs
        self.finder = SimpleNamespace(environments=Environments([]))

    def order(self, wanted: Any, deadline_s: float, reply: Callable[[Doc], None], warnings: Any) -> None:
        reply({"ok": True, "jobs": [{"id": key[0], "run": key[1], "order": word} for key, word in wanted]})

    def row(self, job: Job) -> Doc:
        return job.name()

    def forget(self, job: Job) -> None:
        self.jobs.pop(job.key, None)

    bury = forget


class _Actions(_Idle):
    """Pager, scripts and machine."""

    def sum_of(self, job: Job) -> tuple[int, int]:
        return 1, 1

    def set_clock(self, unix_s: float) -> Doc:
        return {"ok": True}

    def power_off(self) -> Doc:
        return {"ok": True}

    def start(self, op: str, jobs: Any, mib: int, deadline_s: float, reply: Callable[[Doc], None]) -> None:
        reply({"ok": True})


def daemon_to_agent(folder: Path) -> Reader:
    """The agent's end of the guest channel, from the stream's bytes to each of its operations."""

    def stream(data: bytes) -> None:
        stopped = Job(("7.srv", 1), 0.0)
        stopped.order = "stop"
        jobs = {stopped.key: stopped}
        parts = cast(Any, _Actions())
        requests = DaemonRequests(jobs, cast(Any, _Sweeper(jobs)), parts, parts, parts, parts)
        end = GuestEnd({"agent": "1", "can": ["pidfd"]}, make_session=lambda: GUEST)

        def asked(mark: tuple[str, int], op: str, doc: Doc) -> None:
            try:
                requests.serve(op, doc, lambda answer: end.answer(mark, answer, 100.0))
            except BadValue as error:
                end.answer(mark, refusal("bad-request", str(error)), 100.0)

        end.on_asked = asked
        end.on_defect = _raised
        end.opened(100.0)
        end.receive(GREETING % HOST.encode(), 100.0)
        end.ask("claim", {"job": {}}, 105.0, lambda answer: None, 100.0)
        end.receive(data, 100.1)
        end.tick(101.0)
        end.next_at()
        assert len(end.take_output()) < MOST_ANSWERED

    return stream


# MoM's socket


class _Loop:
    def after(self, delay: float, action: Callable[[], None]) -> _Idle:
        return _Idle()

    def watch(self, fd: int, events: int, action: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class _Socket:
    """A hook's connection: what it sends, and how much it was answered."""

    def __init__(self, data: bytes) -> None:
        self.left = data
        self.open = True
        self.answered = 0

    def fileno(self) -> int:
        return 5 if self.open else -1

    def recv(self, most: int) -> bytes:
        data, self.left = self.left[:most], self.left[most:]
        return data

    def send(self, data: bytes) -> int:
        self.answered += len(data)
        return len(data)

    def close(self) -> None:
        self.open = False


class _Channel(_Idle):
    """The agent's way to a daemon that accepts everything."""

    ready, host, domain = True, "h1", "n1"

    def ask(self, op: str, body: Doc, deadline_s: float, on_answer: Callable[[Doc], object]) -> bool:
        encode(body)
        on_answer({"ok": True, "type": "answer"})
        return True


def mom_to_agent(folder: Path) -> Reader:
    """The agent's socket for MoM's hooks: each line is a connection of its own."""
    loop, channel = cast(Any, _Loop()), cast(Any, _Channel())
    state = StateFile(str(folder / "state"))

    def connections(data: bytes) -> None:
        jobs: dict[tuple[str, int], Job] = {}
        sweeper = cast(Any, _Sweeper(jobs))
        requests = MomRequests(
            loop, channel, Table(jobs, sweeper, state), sweeper, cast(Any, _Idle()), cast(Any, _Idle())
        )
        server = MomServer(loop, str(folder / "sock"), requests.serve, lambda pid: None)
        for line in data.split(b"\n"):
            hook = _Socket(line + b"\n")
            client = Client(loop, cast(Any, hook), lambda client: None)
            while hook.open and hook.left:
                server._readable(client)
            assert not hook.open and hook.answered, "a request without an answer"

    return connections


# Files of the agent


def agent_state(folder: Path) -> Reader:
    """The agent's state file, which is never refused: a damaged one is put aside."""
    path = folder / "state"

    def load(data: bytes) -> None:
        path.write_bytes(data)
        state = StateFile(str(path))
        state.boot = BOOT
        jobs = state.load()
        assert path.exists() or not jobs, "put aside, and used"
        if not path.exists():
            raise BadValue("put aside")
        state.save(jobs)  # and what was read can be written again

    return load


def agent_configuration(folder: Path) -> Reader:
    path = folder / "agent.json"

    def load(data: bytes) -> None:
        path.write_bytes(data)
        Config(str(path))

    return load
