"""Messages of hosts against the whole hub, with a PBS in memory.

An input is a line for each message, in the name of the host that the message itself names. A line after `? ` is a
user's request to the control socket. A line `@N` lets N seconds pass. One hub lives through all inputs, as in reality;
PBS's jobs are the same at the start of each, and nobody has said who owns which domain.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from magrathea import control
from magrathea.core.refusals import RefusalCode
from magrathea.messages import BadMessage, Message, Snapshot, ToHub, decode_to_hub, encode
from magrathea_lab.rigs.virtual_time import SOME_DAY, VirtualTimeLoop
from scheduler_plugin.hub import configuration, hub, job_actions
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.hub.lanes import Lane, kind_of
from scheduler_plugin.hub.publisher import Read
from scheduler_plugin.hub.vnode_attributes import OFFLINE
from scheduler_plugin.pbs.base import Attributes, Code, PbsError, PbsJob
from tests.fakes.pbs import FakePbs

from .driver import Reader

BOUND = Bindings({"h1": frozenset({"n1", "p1"}), "h2": frozenset({"n2"})})
FOREIGN = "66.srv"
"""It runs on a vnode that is bound to no host, so nothing that a host sends may have an effect on it."""
CHANGES = frozenset({"admin_suspend", "admin_resume", "resume", "rerun", "set_walltime", "set_comment"})
MOST_LINES = 64
"""Of one input; more only repeat."""
MOST_CALLS = 2000
"""To PBS, for one input: a host has shares of questions and suspensions."""
MOST_SENT = 4000
"""Messages to hosts, for one input."""


def jobs() -> dict[str, PbsJob]:
    where = {"7.srv": "n1", "8.srv": "p1", "5.srv": "n2", "7[1].srv": "n1", FOREIGN: "x1"}
    started = SOME_DAY - 100
    return {id: PbsJob(id, "R", 42, 0, "low", (vnode,), True, 3600, "", started) for id, vnode in where.items()}


class _Channel:
    """The hub's channel behind its decoder. Hosts read everything."""

    def __init__(self, ipc: Any, tcp: Any, keys: Any, on_message: Callable[[str, ToHub, bool], None], *_: int) -> None:
        self.on_message = on_message
        self.bindings = BOUND
        self.hosts: list[str] = []
        self.sent = 0

    def start(self) -> None: ...

    def reload_keys(self) -> None: ...

    async def close(self) -> None: ...

    def send(self, host: str, message: Message) -> bool:
        encode(message)
        self.sent += 1
        return host in self.hosts

    def charge(self, host: str, seconds: float, lane: Lane) -> None: ...

    def receive(self, data: bytes) -> None:
        """Raises BadMessage."""
        kind = kind_of(memoryview(data))
        message = decode_to_hub(data)
        if type(message) is not kind.type:
            raise BadMessage("it begins with another type than its own")
        host = message.host if isinstance(message, Snapshot) else message.sender
        if host not in ("h1", "h2"):
            raise BadMessage("no such host has a key")
        new = host not in self.hosts
        if new:
            self.hosts.append(host)
        self.on_message(host, message, new)


class _Pool:
    """Calls PBS at once, without threads."""

    exhausted = False

    def __init__(self, connect: Callable[[], Any], size: int, deadline_s: float, asks_server: bool = False) -> None:
        self._connect = connect

    async def run(self, task: Callable[[Any], Any], hosts: Collection[str] = ()) -> Any:
        await asyncio.sleep(0.001)
        return task(self._connect())

    def close(self) -> None: ...


class _Publisher:
    """Publishes at once. What PBS refuses is a failure, except a vnode that it does not have."""

    def __init__(self, connect: Callable[[], Any], on_read: Callable[[Read], None], *_: Any) -> None:
        self._pbs, self._on_read = connect(), on_read
        self.offline: frozenset[str] = frozenset()

    def start(self) -> None:
        self.compare()

    def healthy(self, within_s: float) -> bool:
        return True

    def compare(self) -> None:
        self._on_read(Read(tuple(self._pbs.vnodes()), self._pbs.server()))

    def want(self, wanted: Mapping[str, Attributes]) -> None:
        for name, attributes in wanted.items():
            assert all(value.isprintable() for value in attributes.values()), f"{name}: {attributes}"
            try:
                self._pbs.set_vnode(name, {key: value for key, value in attributes.items() if key != OFFLINE})
            except PbsError as error:
                if error.code != Code.UNKNOWN_VNODE:
                    raise

    def close(self, timeout_s: float) -> None: ...


class _Control(control.Control):
    """Its requests come without a socket. `newest`: the hub's, as long as a hub is being started."""

    newest: _Control

    async def start(self) -> None:
        _Control.newest = self

    async def close(self) -> None: ...


class _RunningHub:
    """A hub in virtual time. Its modules have that time only while the loop runs."""

    def __init__(self, folder: Path) -> None:
        self.pbs = FakePbs("n1", "p1", "n2", "x1")
        self.loop = VirtualTimeLoop()
        self.loop.set_exception_handler(self._defect)
        self.defects: list[BaseException] = []
        table = configuration.HubTable(
            state_dir=str(folder), heartbeat_file=str(folder / "heartbeat"), control_socket=str(folder / "sock")
        )
        self.hub = hub.Hub(configuration.HubConfiguration(hub=table), self.pbs.connect)
        self.task = self.do(self._start())
        self.control = _Control.newest
        self.control._complaints.say = self._complained  # type: ignore[method-assign]

    def _defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.defects.append(context.get("exception") or AssertionError(context["message"]))

    def _complained(self, kind: object, text: str, error: BaseException | None = None, level: int = 0) -> None:
        self.defects.append(error or AssertionError(text))

    async def _start(self) -> asyncio.Task[None]:
        self.stop = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self.hub.run(self.stop))
        await asyncio.sleep(10)
        return task

    def close(self) -> None:
        self.stop.set()
        if not self.task.done():
            self.do(self.task)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def do(self, work: Any) -> Any:
        clock = SimpleNamespace(
            time=lambda: SOME_DAY + self.loop.time(), monotonic=time.monotonic, perf_counter=time.perf_counter
        )
        parts: dict[str, Any] = {
            "HubChannel": _Channel,
            "CallPool": _Pool,
            "Publisher": _Publisher,
            "Control": _Control,
        }
        with patch.multiple(hub, **parts, time=clock), patch.object(job_actions, "time", clock):
            return self.loop.run_until_complete(work)


def messages_to_hub(folder: Path) -> Reader:
    here = _RunningHub(folder)
    channel: Any = here.hub._channel
    publisher: Any = here.hub._publisher
    owners = here.hub._movers._owners

    async def host(data: bytes) -> int:
        here.pbs.jobs = jobs()
        here.pbs.admin.clear()
        here.pbs.calls.clear()
        owners.give_up(owners.written.records)
        publisher.compare()
        await asyncio.sleep(0.1)
        channel.sent = refused = 0
        lines = data.split(b"\n")[:MOST_LINES]
        for line in lines:
            if line.startswith(b"@") and line[1:].isdigit():
                await asyncio.sleep(min(60, int(line[1:3])))
                continue
            if line.startswith(b"? "):
                _, answer = await here.control._answer(line[2:], os.getuid(), entitled=False)
                assert b"\n" not in answer
                refused += f'"code":"{RefusalCode.BAD_REQUEST}"'.encode() in answer
                continue
            try:
                channel.receive(line)
            except BadMessage:
                refused += 1
            await asyncio.sleep(0.01)
        await asyncio.sleep(5)
        encode(here.hub.farm.view(SOME_DAY))
        return refused

    def read(data: bytes) -> None:
        refused = here.do(host(data))
        if here.defects:
            raise here.defects.pop()
        if here.task.done():
            here.task.result()
            raise AssertionError("the hub has ended")
        touched = [(what, id) for what, id in here.pbs.calls if what in CHANGES and id == FOREIGN]
        assert not touched, f"a host's message has changed a job that is not its own: {touched}"
        assert len(here.pbs.calls) < MOST_CALLS, f"{len(here.pbs.calls)} calls to PBS"
        assert channel.sent < MOST_SENT, f"{channel.sent} messages to hosts"
        if refused:
            raise BadMessage(f"{refused} lines")

    read.close = here.close  # type: ignore[attr-defined]
    return read
