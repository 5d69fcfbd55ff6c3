"""Lines of guests and requests of users against a whole node daemon, with a hypervisor in memory and virtual time.

Lines of guests: each line goes to the guest channel of n1; after `p1 ` to that of p1; a line `@N` lets N seconds pass.
An input that begins with a line `counted` is for the daemon of a counted host, any other for that of an exclusive one.
Both live through all inputs, as in reality. A domain that has jobs or is down starts anew before each input.

To be quick, a guest connects anew only if its connection has ended or owes something, and after NEW_INPUTS inputs.
Otherwise its connection forgets what it has answered. Of the journal's commits one in WRITTEN reaches the database; all
are encoded. (The journal has targets of its own.)
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from magrathea.core import events as ev
from magrathea.core.model import Amount, Host, JobClass, JobKey, Lifecycle, Mode
from magrathea.core.moves import Moves
from magrathea.core.refusals import RefusalCode
from magrathea.core.stopping import wanted_stopped
from magrathea.history import Recorded
from magrathea.messages import BadMessage, Snapshot, decode_to_hub, encode
from magrathea_lab.rigs.virtual_time import LoopClock, VirtualTimeLoop
from node_daemon.agent.sessions import Allowance
from node_daemon.claims.pbs_says import PbsSays
from node_daemon.configuration import read as read_configuration
from node_daemon.daemon import Daemon
from node_daemon.guest_channel.channel import _Link
from node_daemon.hypervisor.base import CPU, LIFE, SAVE
from node_daemon.journal import Journal
from node_daemon.journal_store import JournalStore, Since
from node_daemon.snapshot import fitting
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, FakeHypervisor

from .driver import Reader
from .guest_targets import FIRST, GREETING, GUEST, HOST, MOST_ANSWERED, _Stream

T = TypeVar("T")
ENCODER = msgspec.json.Encoder()

DOMAINS = {"n1": "normal", "n2": "normal", "p1": "priority"}
TEXT = """
[host]
name = "h1"
mode = "{mode}"
cpus = 4
memory_mib = 4096
[limits]
min_run_s = 0.0
allow_short_min_run = true
[paths]
run_dir = "{folder}/run"
state_dir = "{folder}/state"
"""
DOMAIN = """
[domain.{name}]
kind = "{kind}"
local.pid_file = "/none/{name}"
"""
COUNTED = b"counted"
MOST_LINES = 32
"""Of one input; more only repeat."""
NEW_INPUTS = 50
"""A connection is used for so many inputs."""
WRITTEN = 50
TIDY_INPUTS = 500
"""The journal's history is emptied that often."""


async def _given(domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
    """The answer of a hub whose PBS has given each job of its own to the domain that asks.

    What is called `N.large` has an absurd size, and about `N.unknown` PBS cannot be asked.
    """
    match key.id.partition(".")[2]:
        case "srv":
            return PbsSays(True)
        case "large":
            return PbsSays(True, Amount(2**40, 2**40))
        case "unknown":
            return PbsSays(None)
    return PbsSays(False)


class _RunningDaemon:
    def __init__(self, folder: Path, mode: Mode = Mode.EXCLUSIVE) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / "noded.toml"
        text = TEXT.format(folder=folder, mode=mode)
        path.write_text(text + "".join(DOMAIN.format(name=name, kind=kind) for name, kind in DOMAINS.items()))
        configuration = read_configuration(path)
        guests = [FakeGuest(name, registers=False) for name in DOMAINS]
        world = FakeHypervisor(*guests, run_dir=None, capabilities=frozenset({CPU, LIFE, SAVE}))
        self.loop = VirtualTimeLoop()
        self.loop.set_exception_handler(self._defect)
        self.defects: list[BaseException] = []
        self.world = world
        self.inputs = self.commits = 0
        self.daemon = self.do(self._start(configuration, path))

    async def _start(self, configuration: Any, path: Path) -> Daemon:
        daemon = Daemon(configuration, path, lambda _: FakeDriver(self.world), make_clock=LoopClock)
        daemon.given = _given  # type: ignore[method-assign]
        await daemon.start()
        self._write_rarely(daemon.journal)
        return daemon

    def _write_rarely(self, journal: JournalStore) -> None:
        assert isinstance(journal, Journal)
        write = journal.commit

        def commit(
            host: Host,
            event: ev.Event | None,
            decisions: Sequence[Recorded],
            states: dict[str, Since] | None = None,
            moves: Moves | None = None,
        ) -> None:
            self.commits += 1
            if self.commits % WRITTEN == 0:
                write(host, event, decisions, states, moves)
            else:
                ENCODER.encode(host)
                journal._waiting.extend(journal._rationed(host.now, event, decisions))

        journal.commit = commit  # type: ignore[method-assign]

    def _defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.defects.append(context.get("exception") or AssertionError(context["message"]))

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def begin(self) -> None:
        daemon, now = self.daemon, self.daemon.now()
        for name, guest in self.world.guests.items():
            guest.up, guest.paused, guest.saved = True, False, False
            domain = daemon.host.domain(name)
            if domain is None or domain.jobs or domain.lifecycle is not Lifecycle.UP:
                daemon.apply(ev.DomainStopped(now, name))
                daemon.apply(ev.DomainStarted(now, name))
        if daemon.host.hub_lost:
            daemon.apply(ev.HubFound(now))
        self.inputs += 1
        if self.inputs % TIDY_INPUTS == 0:
            daemon.facts.tidy(0.0)

    def check(self) -> None:
        """The hub can read what this daemon reports, and nothing met a defect."""
        decode_to_hub(encode(fitting(self.do(self._snapshot()))))
        if self.defects:
            raise self.defects.pop()
        assert not self.daemon.facts.trouble, self.daemon.facts.trouble

    async def _snapshot(self) -> Snapshot:
        """As the daemon makes it: in its loop, because some notes depend on the loop's time."""
        return self.daemon.snapshot(1)

    def close(self) -> None:
        self.daemon.journal.tidy(-math.inf)
        self.do(self.daemon.close())
        self.do(self.loop.shutdown_default_executor())
        self.loop.close()


class _Guest:
    """A guest's connection. Each input finds it as if it were new: no request was heard or asked before."""

    def __init__(self, here: _RunningDaemon, name: str) -> None:
        self._here, self._name = here, name
        self._link: _Link | None = None
        self._inputs = 0
        self.stream = _Stream()

    def open(self) -> None:
        channel = self._here.daemon.channels[self._name]
        channel.allowance = Allowance()
        self._inputs += 1
        if self._link is not None and self._inputs % NEW_INPUTS and self._is_as_new(self._link):
            self._link.end.allowance = channel.allowance
            self._link.end.answers.clear()
            self._link.end.ids = self._link.end.bad_lines = 0
            return
        if self._link is not None:
            self._link.connection_lost(None)
        self._link, self.stream = _Link(channel), _Stream()
        self._link.end.make_session = lambda: HOST
        self._link.end.on_defect = self._here.defects.append
        self._link.connection_made(self.stream)
        self._link.data_received(GREETING % GUEST.encode())

    def _is_as_new(self, link: _Link) -> bool:
        """Apart from what it has answered, and from the numbers of its requests."""
        end = link.end
        owes = end.pending or end.at_work or end.parts.size or end.paused
        return not (self.stream.closed or owes) and (end.session, end.peer) == (HOST, GUEST)

    def send(self, line: bytes) -> None:
        if self._link is not None and not self.stream.closed:
            self._link.data_received(line + b"\n")


def lines_to_daemon(folder: Path) -> Reader:
    hosts = {mode: _lines_to(_RunningDaemon(folder / mode, mode)) for mode in Mode}

    def read(data: bytes) -> None:
        first, end, rest = data.partition(b"\n")
        counted = bool(end) and first == COUNTED
        hosts[Mode.COUNTED if counted else Mode.EXCLUSIVE](rest if counted else data)

    def close() -> None:
        for host in hosts.values():
            host.close()  # type: ignore[attr-defined]

    read.close = close  # type: ignore[attr-defined]
    return read


def _lines_to(here: _RunningDaemon) -> Reader:
    guests = {name: _Guest(here, name) for name in ("n1", "p1")}

    async def lines(data: bytes) -> None:
        here.begin()
        for guest in guests.values():
            guest.open()
            greeted = guest.stream.written
            guest.send((FIRST % GUEST.encode()).rstrip())
            await asyncio.sleep(0.1)
            assert guest.stream.written > greeted, "nobody listens to this guest"
        for line in data.split(b"\n")[:MOST_LINES]:
            if line.startswith(b"@") and line[1:].isdigit():
                await asyncio.sleep(min(60, int(line[1:3])))
                continue
            guests["p1" if line.startswith(b"p1 ") else "n1"].send(line.removeprefix(b"p1 "))
            await asyncio.sleep(0.01)
        await asyncio.sleep(3)
        host = here.daemon.host
        silent = host.domain("n2")
        assert silent is not None and not silent.jobs, "a guest has spoken for its sibling"
        preempting = [job for domain in host.domains for job in domain.running if job.cls is JobClass.PRIORITY]
        believed = host.hub_lost or any(job.given for job in preempting)
        assert host.mode is Mode.COUNTED or believed or not wanted_stopped(host), "stopped for none that PBS has given"
        for guest in guests.values():
            assert guest.stream.written < MOST_ANSWERED, f"{guest.stream.written} bytes in answer"

    def read(data: bytes) -> None:
        here.do(lines(data))
        here.check()

    read.close = here.close  # type: ignore[attr-defined]
    return read


def requests_to_daemon(folder: Path) -> Reader:
    """Each line is a request of a user to the control socket, and then the same of an admin."""
    here = _RunningDaemon(folder)
    control = here.daemon.admin._control

    def say(kind: object, text: str, error: BaseException | None = None, level: int = 0) -> None:
        here.defects.append(error or AssertionError(text))

    control._complaints.say = say  # type: ignore[method-assign]

    async def user(data: bytes) -> int:
        refused = 0
        here.begin()
        before = here.daemon.host
        for is_entitled in (False, True):
            for line in data.split(b"\n")[:MOST_LINES]:
                _, answer = await control._answer(line, os.getuid(), entitled=is_entitled)
                assert b"\n" not in answer and len(answer) < MOST_ANSWERED
                refused += f'"code":"{RefusalCode.BAD_REQUEST}"'.encode() in answer
            if not is_entitled:
                assert here.daemon.host.domains == before.domains, "a user has changed something"
                assert here.daemon.host.paused == before.paused, "a user has paused the host"
        await asyncio.sleep(5)
        return refused

    def read(data: bytes) -> None:
        refused = here.do(user(data))
        here.check()
        if refused:
            raise BadMessage(f"{refused} lines")

    read.close = here.close  # type: ignore[attr-defined]
    return read
