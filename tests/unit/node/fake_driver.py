"""A hypervisor in memory, whose guests are as quick or as stubborn as a test wants; and their agents.

It outlives the daemons that use it, as a real one does: `FakeDriver` is one daemon's view of a `FakeHypervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magrathea.core.refusals import RefusalCode
from node_daemon.hypervisor.base import CPU, LIFE, SAVE, DomainChange, DomainReading, DriverError, OnChange, Others


@dataclass
class FakeDomain:
    """`heeds`: it turns itself off when it is asked. `registers`: its agent comes up with it. `fails`: by the name of
    a call, the code that it fails with."""

    name: str
    up: bool = True
    saved: bool = False
    paused: bool = False
    heeds: bool = True
    registers: bool = True
    can: tuple[str, ...] = ("power", "clock")
    cpu_percent: int | None = None
    fails: dict[str, str] = field(default_factory=dict)
    agent: FakeAgent | None = None


class FakeHypervisor:
    """`run_dir`: the daemon's. `calls`: what was asked of it and of agents, in order."""

    def __init__(self, run_dir: Path, *names: str) -> None:
        self.run_dir = run_dir
        self.domains = {name: FakeDomain(name) for name in names}
        self.calls: list[str] = []
        self.listeners: list[OnChange] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> FakeDomain:
        return self.domains[name]

    def asked(self, what: str) -> int:
        return self.calls.count(what)

    def tell(self, name: str) -> None:
        for listener in list(self.listeners):
            listener(DomainChange(name, self[name].up))

    def start(self, name: str) -> None:
        """It comes up, and its agent with it."""
        domain = self[name]
        domain.up, domain.saved = True, False
        self.tell(name)
        self.agent(name)

    def agent(self, name: str) -> None:
        """Its agent comes up, if it does at all."""
        domain = self[name]
        if domain.registers and not domain.paused and (domain.agent is None or domain.agent.ended):
            domain.agent = FakeAgent(self, domain)
            self.later(domain.agent.live())

    def end(self, name: str, *, saved: bool = False) -> None:
        """It goes down, whoever wanted that."""
        domain = self[name]
        domain.up, domain.saved, domain.paused = False, saved, False
        if domain.agent is not None:
            domain.agent.ended = True
            domain.agent = None
        self.tell(name)

    def later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for domain in self.domains.values():
            if domain.agent is not None:
                domain.agent.ended = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FakeAgent:
    """Greets, answers everything, turns its guest off when it is asked; comes back when the daemon does."""

    def __init__(self, world: FakeHypervisor, domain: FakeDomain) -> None:
        self.world = world
        self.domain = domain
        self.ended = False
        self.writer: asyncio.StreamWriter | None = None

    async def live(self) -> None:
        path = self.world.run_dir / "guest" / f"{self.domain.name}.sock"
        while not self.ended:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, self.writer = await asyncio.open_unix_connection(path)
                try:
                    await self._serve(reader, self.writer)
                finally:
                    self.writer.close()
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = {"type": "hello", "protocol": 1, "session": secrets.token_hex(8), "agent": "0.1.0"}
        writer.write(b"\n" + json.dumps({**hello, "can": list(self.domain.can)}).encode() + b"\n")
        while not self.ended:
            with contextlib.suppress(TimeoutError):
                line = await asyncio.wait_for(reader.readuntil(b"\n"), 0.02)
                message = json.loads(line) if line.strip() else {}
                if message.get("type") == "request":
                    self._answer(message, writer)

    def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        what = message["op"] if message["op"] != "script" else f"script {message['name']}"
        self.world.calls.append(f"{what} {self.domain.name}")
        answer = {"type": "answer", "id": message["id"], "session": message["session"], "ok": True}
        if message["op"] == "orders":
            stopped = [{**order, "processes": 1, "stopped": 1, "pending": 0} for order in message["orders"]]
            answer["jobs"] = stopped
        writer.write(json.dumps(answer).encode() + b"\n")
        if message["op"] == "power" and self.domain.heeds:
            self.world.end(self.domain.name)


class FakeDriver:
    """See node_daemon.hypervisor.base.Driver."""

    capabilities = frozenset({CPU, LIFE, SAVE})

    def __init__(self, world: FakeHypervisor) -> None:
        self.world = world
        self._on_event: OnChange | None = None

    def notes(self) -> list[str]:
        return []

    def others(self) -> Others:
        return Others()

    async def start(self, on_event: OnChange) -> None:
        self._on_event = on_event
        self.world.listeners.append(on_event)
        for domain in self.world.domains.values():
            on_event(DomainChange(domain.name, domain.up))
            if domain.up:
                self.world.agent(domain.name)

    async def actual(self) -> dict[str, DomainReading]:
        await asyncio.sleep(0)
        return {
            d.name: DomainReading(d.up, d.cpu_percent, saved=d.saved, paused_externally=d.paused)
            for d in self.world.domains.values()
        }

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        self._call("cpu", domain).cpu_percent = percent

    def nearest_cpu(self, percent: int | None) -> int | None:
        return percent

    async def set_memory(self, domain: str, mib: int) -> None:
        raise DriverError(RefusalCode.NOT_SUPPORTED, "no memory here")

    async def boot(self, domain: str) -> None:
        if not self._call("boot", domain).up:
            self.world.start(domain)

    async def shutdown(self, domain: str) -> None:
        if self._call("shutdown", domain).heeds:
            self.world.end(domain)

    async def destroy(self, domain: str) -> None:
        if self._call("destroy", domain).up:
            self.world.end(domain)

    async def save(self, domain: str) -> None:
        if not self._call("save", domain).up:
            raise DriverError(RefusalCode.DOMAIN_DOWN, f"{domain} is down")
        self.world.end(domain, saved=True)

    async def resume(self, domain: str) -> None:
        self._call("resume", domain).paused = False
        self.world.agent(domain)

    async def close(self) -> None:
        if self._on_event in self.world.listeners:
            self.world.listeners.remove(self._on_event)

    def _call(self, what: str, name: str) -> FakeDomain:
        self.world.calls.append(f"{what} {name}")
        domain = self.world[name]
        if code := domain.fails.get(what):
            raise DriverError(RefusalCode(code), f"{what} of {name} fails, as the test wants")
        return domain
