"""Hosts with the moves of a node daemon, a hub with the real books of owners, and hypervisors in memory. Virtual time.

Each host keeps its facts in a real journal. What a host or the hub says goes through the real messages. A host or the
hub can be killed right after any of its steps, and comes back with what it had written.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from magrathea.control import ControlRequest
from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.model import Domain, JobClass, JobKey
from magrathea.core.moves import HostWithMoves
from magrathea.messages import MOVES, BadMessage, Message, decode_to_host, decode_to_hub, encode
from magrathea.move_messages import MoveRefused, MoveWords, ParcelSent, ownerships_of
from magrathea.move_reports import MoveEnd, MovesAnswer
from magrathea_lab.rigs.virtual_time import LoopClock, run
from magrathea_lab.waiting import eventually
from node_daemon.configuration import read
from node_daemon.facts import Facts, differs
from node_daemon.hypervisor.moving import Presence
from node_daemon.move_tables import rules
from node_daemon.moves.domain_moves import DomainMoves
from node_daemon.moves.papers import with_visitors
from node_daemon.moves.requests import MoveRequests
from scheduler_plugin.hub.ownership import Ledger, Visits, decoded, encoded
from tests.fakes.mover import Copy, FakeMover, Hypervisors

N1 = "n1"
KEY = JobKey("7.srv", 1)
AWAY_S = 1.0
"""For so long a host or the hub is away after it was killed."""
TEXT = """
[host]
name = "{name}"
mode = "counted"
cpus = 8
memory_mib = 8192
driver = "libvirt"
[hub]
endpoints = ["ipc:///run/hub.ipc"]
[paths]
run_dir = "{folder}/run"
state_dir = "{folder}"
[visitors]
hosts = {others}
address = "qemu+tls://{name}/system"
[moves]
hosts = {others}
copy_disks = true
[domain.{own}]
kind = "normal"
cpus = 2
"""
OWN = {"a": N1, "b": "m1", "c": "k1"}
"""The domain that each host's configuration names."""


class Hub:
    """The hub with its books of owners, and the way to all hosts."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.disk = encoded(Ledger())
        self.up = True
        self.welcome: dict[str, frozenset[str]] = {}
        self.most: dict[str, int] = {}

    def hear(self, host: str, data: bytes) -> None:
        if not self.up:
            return
        message = decode_to_hub(data)
        if isinstance(message, MoveWords):
            self.welcome[host], self.most[host] = frozenset(message.welcome), message.most
            for told in message.words:
                self._word(host, told.word)
        if isinstance(message, ParcelSent):
            record = decoded(self.disk).records.get(message.domain)
            ends = record and record.transfer and (record.transfer.source, record.transfer.target)
            if ends == (host, message.to):
                self.scene.deliver(message.to, message)

    def _word(self, host: str, word: Any) -> None:
        if not self.up:
            return
        ledger = decoded(self.disk)
        heard = ledger.heard(host, word, Visits(self.welcome, self.most))
        if heard.changed:
            self.disk = encoded(ledger)
            self.scene.observe("hub", f"{word.says} of {host}")
            if not self.up:
                return
        if heard.refused is not None:
            no = heard.refused
            refused = MoveRefused(domain=word.domain, number=word.number, code=no.code, text=no.text)
            self.scene.deliver(host, refused)
        for name in self.scene.hosts:
            self.scene.deliver(name, ownerships_of(ledger.told(name, {word.domain})))

    def owner(self, domain: str) -> str:
        return decoded(self.disk).records[domain].owner


class Host:
    """What `DomainMoves` needs of a node daemon."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        self.alive = True
        folder = scene.folder / name
        folder.mkdir(exist_ok=True)
        others = [host for host in scene.names if host != name]
        path = folder / "noded.toml"
        path.write_text(TEXT.format(name=name, folder=folder, others=others, own=OWN[name]))
        self.file = read(path)
        self.facts = Facts(self.file.journal_path, LoopClock, lambda step: self.observe(step), lambda: None)
        self.configuration = with_visitors(self.file, self.facts.moves)
        progress = SimpleNamespace(memory_moves=lambda: scene.memory_moves)
        self.switch: Any = SimpleNamespace(
            progress=progress, readings=SimpleNamespace(of=lambda name: None), uncap=self._uncap
        )
        self.left_out: tuple[Any, Any] = ({}, frozenset())
        """What the driver was told last."""
        self.driver: Any = SimpleNamespace(leave_out=lambda *names: setattr(self, "left_out", names))
        self.closed = ""
        self.hub = SimpleNamespace(
            connected=True, publish=lambda: None, tell_of_moves=lambda message, what=MOVES: scene.send(self, message)
        )
        self.moves = DomainMoves(self, FakeMover(scene.world, name))
        self.requests = MoveRequests(self, self.moves)
        self.apply(self.configuration.reconfigured(self.now()))
        self.apply(ev.DaemonStarted(self.now()))
        self.apply(ev.HubFound(self.now()))
        self.moves.start()

    async def _uncap(self, domain: str) -> None:
        self.scene.world.story.append(f"{self.name}: {domain} has no cap")

    @property
    def place(self) -> HostWithMoves:
        return self.facts.place

    def closed_to_visitors(self) -> str:
        return self.closed

    def domain(self, name: str = N1) -> Domain | None:
        return self.place.host.domain(name)

    def now(self) -> float:
        return self.facts.now()

    def apply(self, event: ev.Event) -> None:
        self.facts.apply(event)
        self.moves.look_soon()

    def apply_move(self, event: me.MoveEvent) -> tuple[me.Decision, ...] | None:
        host, moves = self.facts.host, self.facts.moves
        decisions = self.facts.apply_move(event, rules(self.configuration))
        for decision in decisions or ():
            if isinstance(decision, me.MoveNoted):
                self.requests.noted(decision)
        if self.facts.moves != moves or differs(host, self.facts.host):
            self.moves.look_soon()
        return decisions

    def observe(self, step: str) -> None:
        if not self.scene.quiet:
            self.scene.observe(self.name, step)
        if not self.alive:
            raise asyncio.CancelledError

    async def domains_changed(self) -> None:
        self.configuration = with_visitors(self.file, self.facts.moves)

    def receive(self, message: Any) -> None:
        if self.alive:
            try:
                with contextlib.suppress(BadMessage):
                    self.requests.heard(message)
            except asyncio.CancelledError:
                assert not self.alive

    def die(self) -> None:
        """At once, without anything more being done."""
        self.alive = False
        self.scene.ends(self)

    async def ask(self, operation: Callable[[ControlRequest], Awaitable[bytes]], domain: str, to: str) -> MovesAnswer:
        answer = await operation(ControlRequest(op="", domain=domain, to=to))
        return msgspec.json.decode(answer, type=MovesAnswer)

    async def migrate(self, to: str, domain: str = N1) -> MovesAnswer:
        return await self.ask(self.requests.migrate, domain, to)

    async def end(self, domain: str = N1) -> MoveEnd:
        """Wait for the end of the domain's move."""

        async def found() -> MoveEnd | None:
            return (await self.ask(self.requests.report, domain, "")).end(domain, 0.0)

        while (end := await found()) is None:
            await asyncio.sleep(0.1)
        return end


class Scene:
    """`kill`: the step after which its author is killed, as "NAME: STEP#NUMBER"."""

    def __init__(self, folder: Path, names: tuple[str, ...], kill: str = "") -> None:
        self.folder = folder
        self.names = names
        self.world = Hypervisors()
        self.hub = Hub(self)
        self.hosts: dict[str, Host] = {}
        self.kill = kill
        self.quiet = True
        self.steps: list[str] = []
        self.seen: Counter[str] = Counter()
        self.memory_moves: set[str] = set()
        self.lost: Callable[[str, Message], bool] = lambda to, message: False
        """Which messages of the hub are lost."""
        self.spoilt: Callable[[Message], Message] = lambda message: message
        """What becomes of a message of the hub."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """n1 runs at a with an old job, and the hub knows that it is a's."""
        self.world.put("a", N1, Copy(Presence.RUNNING, True, self.world.ran))
        self.world.files["a"] = {"/disks/n1.qcow2"}
        for name in self.names:
            self.hosts[name] = Host(self, name)
        a = self.hosts["a"]
        for event in (
            ev.DomainStarted(a.now(), N1),
            ev.AgentConnected(a.now(), N1),
            ev.Claimed(a.now(), N1, KEY, JobClass.PREEMPTIBLE, 1, 0),
            ev.JobLaunched(a.now(), N1, KEY),
        ):
            a.apply(event)
        await self.until(lambda: self.hosts["a"].place.moves.record(N1), "a is told that n1 is its own")
        self.quiet = False

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        await eventually(condition, lambda: f"{what}; {self.picture()}", 2_000.0)

    def picture(self) -> str:
        moves = [(name, h.place.moves, h.moves.notes()) for name, h in self.hosts.items()]
        return f"{moves}; {self.hub.disk!r}; {self.world.story}; {self.steps}"

    # Messages

    def send(self, host: Host, message: Message) -> None:
        if host.alive:
            asyncio.get_running_loop().call_soon(self.hub.hear, host.name, encode(message))

    def deliver(self, to: str, message: Message) -> None:
        if to in self.hosts and not self.lost(to, message):
            read = decode_to_host(encode(self.spoilt(message)))
            asyncio.get_running_loop().call_soon(lambda: self.hosts[to].receive(read))

    # Faults

    def observe(self, who: str, step: str) -> None:
        if self.quiet:
            return
        self.seen[f"{who}: {step}"] += 1
        name = f"{who}: {step}#{self.seen[f'{who}: {step}']}"
        self.steps.append(name)
        if name == self.kill:
            if who == "hub":
                self.hub.up = False
                asyncio.get_running_loop().call_later(AWAY_S, lambda: setattr(self.hub, "up", True))
            else:
                self.hosts[who].die()

    def ends(self, host: Host) -> None:
        async def again() -> None:
            await host.requests.close()
            await host.moves.close()
            host.facts.close()
            await asyncio.sleep(AWAY_S)
            self.hosts[host.name] = Host(self, host.name)

        task = asyncio.get_running_loop().create_task(again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What must be so

    def settled(self) -> bool:
        """True if nothing moves any more, and every host and the hub agree."""
        if not self.hub.up or not all(host.alive for host in self.hosts.values()):
            return False
        moves = [host.place.moves for host in self.hosts.values()]
        record = decoded(self.hub.disk).records[N1]
        known = all(m.record(N1) in (None, record) for m in moves)
        return known and record.transfer is None and not any(m.leaving or m.arriving for m in moves)

    async def home(self) -> str:
        """The host of n1, once everything has settled: its only copy runs there, with all its facts."""
        await self.until(self.settled, "everything settles")
        owner = self.hub.owner(N1)
        assert self.world.running(N1) == [owner], self.picture()
        assert [name for name, host in self.hosts.items() if host.domain()] == [owner], self.picture()
        domain = self.hosts[owner].domain()
        assert domain is not None and [job.key for job in domain.jobs] == [KEY], self.picture()
        rest = {name: self.world.at(name, N1) for name in self.hosts if name != owner}
        assert all(copy.presence is Presence.ABSENT and not copy.defined for copy in rest.values()), self.picture()
        return owner


def play(
    test: Callable[[Scene], Awaitable[Any]], *, names: tuple[str, ...] = ("a", "b"), kill: str = ""
) -> tuple[Any, list[str]]:
    """The test's result, and the steps that hosts and hub have taken."""

    async def all_of_it() -> tuple[Any, list[str]]:
        with tempfile.TemporaryDirectory(prefix="mrm-") as folder:
            scene = Scene(Path(folder), names, kill)
            try:
                await scene.start()
                return await test(scene), scene.steps
            finally:
                for host in scene.hosts.values():
                    await host.requests.close()
                    await host.moves.close()
                    host.facts.close()

    return run(all_of_it())
