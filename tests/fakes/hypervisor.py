"""A hypervisor in memory, its driver, and the agents of its guests on their channels.

Like a real one it outlives the daemons that use it: a `FakeDriver` is one daemon's view of a `FakeHypervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from magrathea.core.refusals import RefusalCode
from node_daemon.agent.reports import REPORT_S
from node_daemon.agent.wire import GuestEnd
from node_daemon.guest_channel.channel import AgentError
from node_daemon.hypervisor.base import (
    CPU,
    LIFE,
    MEMORY,
    SAVE,
    DomainChange,
    DomainReading,
    DriverError,
    OnChange,
    Others,
    SaveNeeds,
)

from .guest import FakeGuest

CALL_S = 0.001


class FakeHypervisor:
    """A hypervisor with guests.

    `capacity_mib`: its memory for guests; a guest that gets more is `overbooked`. `run_dir`: the daemon's, where agents
    find their channels; None: no agents come, and the test asks the guests directly. `calls`: requests to it and to
    agents, in order. `image_room_mib`: for images of saved guests. `unanswered`: so many further calls time out.
    `targets`: every amount of memory that was set.
    """

    def __init__(
        self,
        *guests: FakeGuest,
        capacity_mib: int = 4096,
        capabilities: frozenset[str] = frozenset({CPU, MEMORY, LIFE, SAVE}),
        run_dir: Path | None = None,
    ) -> None:
        self.guests = {guest.name: guest for guest in guests}
        self.capacity_mib = capacity_mib
        self.capabilities = capabilities
        self.run_dir = run_dir
        self.calls: list[str] = []
        self.targets: list[tuple[str, int]] = []
        self.unanswered = 0
        self.image_room_mib: int | None = 1 << 20
        self.listeners: list[OnChange] = []
        self.overbooked = 0.0
        self._tolerated = max(0.0, self._booked() - capacity_mib)
        self._agents: dict[str, FakeAgent] = {}
        self._saves: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> FakeGuest:
        return self.guests[name]

    def asked(self, what: str) -> int:
        return self.calls.count(what)

    # Events of its guests, whatever causes them

    def tell(self, name: str) -> None:
        for listener in list(self.listeners):
            listener(DomainChange(name, self[name].up))

    def start(self, name: str) -> None:
        """The guest starts, and its agent with it."""
        guest = self[name]
        guest.up, guest.saved = True, False
        self.tell(name)
        self.agent(name)

    def end(self, name: str, *, saved: bool = False) -> None:
        """The guest ends, and its agent with it."""
        guest = self[name]
        guest.up, guest.saved, guest.paused = False, saved, False
        guest.target = None  # the old balloon's target; the next life begins with the guest's present memory
        if name in self._agents:
            self._agents.pop(name).end()
        self.tell(name)

    def save(self, guest: FakeGuest) -> asyncio.Task[None]:
        """Save the guest. That ends whether or not its daemon still waits for it."""

        async def work() -> None:
            await asyncio.sleep(guest.save_s)
            if guest.up:
                self.end(guest.name, saved=True)

        task = asyncio.get_running_loop().create_task(work())
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        return task

    def agent(self, name: str) -> None:
        """The guest's agent starts, if it starts at all."""
        guest = self[name]
        if self.run_dir is None or not guest.registers or guest.paused or name in self._agents:
            return
        self._agents[name] = FakeAgent(self, guest, self.run_dir / "guest" / f"{name}.sock")

    async def close(self) -> None:
        for agent in self._agents.values():
            await agent.ended()

    # Its memory

    def _booked(self) -> float:
        return sum(max(guest.actual, guest.target or 0) for guest in self.guests.values() if guest.up)

    def set_memory(self, name: str, mib: int) -> None:
        guest = self[name]
        self.targets.append((name, mib))
        grows = mib > guest.actual
        guest.set_target(mib)
        if grows:
            self.overbooked = max(self.overbooked, self._booked() - max(self.capacity_mib, self._tolerated))


class FakeAgent:
    """A guest's agent on its channel: answers as the guest does, powers it off on request, and reconnects to a new
    daemon."""

    def __init__(self, world: FakeHypervisor, guest: FakeGuest, channel: Path) -> None:
        self.world = world
        self.guest = guest
        self.channel = channel
        self._tasks = {asyncio.get_running_loop().create_task(self._live())}

    async def _live(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(self.channel)
                try:
                    await self._serve(reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        end = GuestEnd({"agent": "fake", "can": list(self.guest.can)})

        def asked(mark: tuple[str, int], op: str, doc: dict[str, Any]) -> None:
            task = asyncio.get_running_loop().create_task(work(mark, op, doc))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        async def work(mark: tuple[str, int], op: str, doc: dict[str, Any]) -> None:
            what = f"script {doc['name']}" if op == "script" else op
            self.world.calls.append(f"{what} {self.guest.name}")
            await asyncio.sleep(self.guest.order_s)
            try:
                answer = {"ok": True, **await self.guest.answer(op, doc)}
            except AgentError as error:
                answer = {"ok": False, "code": error.code, "text": error.text}
            end.answer(mark, answer, now())
            writer.write(end.take_output())
            if op == "power" and self.guest.heeds:
                self.world.end(self.guest.name)

        async def report() -> None:
            """An agent that never reports counts as gone."""
            while True:
                await asyncio.sleep(REPORT_S)
                end.ask("report", {}, now() + REPORT_S, lambda answer: None, now())
                writer.write(end.take_output())

        end.on_asked = asked
        end.opened(now())
        writer.write(end.take_output())
        reports = asyncio.get_running_loop().create_task(report())
        try:
            while data := await reader.read(65536):
                end.receive(data, now())
                writer.write(end.take_output())
        finally:
            reports.cancel()

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        self.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FakeDriver:
    """See node_daemon.hypervisor.base.Driver."""

    def __init__(self, world: FakeHypervisor) -> None:
        self.world = world
        self._on_event: OnChange | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        return self.world.capabilities

    def limits(self) -> list[str]:
        return []

    def notes(self) -> list[str]:
        lacking = {
            CPU: "CPU is not capped",
            MEMORY: "memory is not moved",
            LIFE: "domains are not led",
            SAVE: "nothing is saved",
        }
        return [f"{text} here" for capability, text in lacking.items() if capability not in self.capabilities]

    def others(self) -> Others:
        return Others()

    def leave_out(self, away: Collection[str], moving: Collection[str]) -> None:
        return

    async def start(self, on_event: OnChange) -> None:
        self._on_event = on_event
        self.world.listeners.append(on_event)
        for guest in self.world.guests.values():
            on_event(DomainChange(guest.name, guest.up))
            if guest.up:
                self.world.agent(guest.name)

    async def close(self) -> None:
        if self._on_event in self.world.listeners:
            self.world.listeners.remove(self._on_event)

    async def actual(self) -> dict[str, DomainReading]:
        await self._answered()
        return {name: self._reading(guest) for name, guest in self.world.guests.items()}

    def _reading(self, guest: FakeGuest) -> DomainReading:
        guest.pass_time()
        if guest.up and not guest.readable:
            return DomainReading(up=True, known=False)
        fault = guest.image_fault if guest.saved and not guest.up else ""
        found = DomainReading(
            guest.up, guest.cpu_percent, saved=guest.saved, paused_externally=guest.paused, image_fault=fault
        )
        if MEMORY not in self.capabilities:
            return found
        mib = int(guest.actual) if guest.up and not guest.pinned else None
        return replace(found, memory_mib=mib, max_memory_mib=guest.most)

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        guest = await self._call(CPU, f"cpu {domain} {percent}", domain)
        if percent is not None and percent < 1:
            raise DriverError(RefusalCode.BAD_VALUE, f"{domain}: {percent} % of a CPU would stop it")
        self._up(guest).cpu_percent = percent

    def nearest_cpu(self, percent: int | None) -> int | None:
        return percent

    async def set_memory(self, domain: str, mib: int) -> None:
        guest = self._up(await self._call(MEMORY, f"memory {domain} {mib}", domain))
        if not 1 <= mib <= guest.most:
            raise DriverError(RefusalCode.BAD_VALUE, f"{domain}: {mib} MiB asked; it can have 1 to {guest.most}")
        self.world.set_memory(domain, mib)

    async def boot(self, domain: str) -> None:
        if not (await self._call(LIFE, f"boot {domain}", domain)).up:
            self.world.start(domain)

    async def shutdown(self, domain: str) -> None:
        if self._up(await self._call(LIFE, f"shutdown {domain}", domain)).heeds:
            self.world.end(domain)

    async def destroy(self, domain: str) -> None:
        if (await self._call(None, f"destroy {domain}", domain)).up:
            self.world.end(domain)

    async def save(self, domain: str) -> None:
        guest = self._up(await self._call(SAVE, f"save {domain}", domain))
        await asyncio.shield(self.world.save(guest))

    async def save_needs(self, domain: str) -> SaveNeeds:
        guest = self._up(await self._call(SAVE, f"save-needs {domain}", domain))
        return SaveNeeds(int(guest.actual), guest.obstacle, "/images", self.world.image_room_mib)

    async def image_fault(self, domain: str) -> str:
        guest = await self._call(SAVE, f"image-fault {domain}", domain)
        return "" if guest.up else guest.image_fault if guest.saved else "there is none"

    async def resume(self, domain: str) -> None:
        self._up(await self._call(LIFE, f"resume {domain}", domain)).paused = False
        self.world.agent(domain)

    # Each call takes a moment, and fails if a test wants that

    async def _answered(self) -> None:
        await asyncio.sleep(CALL_S)
        if self.world.unanswered > 0:
            self.world.unanswered -= 1
            raise DriverError(RefusalCode.TIMEOUT, "the hypervisor does not answer")

    async def _call(self, capability: str | None, what: str, name: str) -> FakeGuest:
        if name not in self.world.guests:
            raise DriverError(RefusalCode.NO_DOMAIN, f"there is no domain {name}")
        if capability is not None and capability not in self.capabilities:
            raise DriverError(RefusalCode.NOT_SUPPORTED, f"{what}: this hypervisor cannot")
        await self._answered()
        self.world.calls.append(what)
        guest = self.world[name]
        if code := guest.fails.get(what.partition(" ")[0]):
            raise DriverError(RefusalCode(code), f"{what} fails, as the test wants")
        return guest

    @staticmethod
    def _up(guest: FakeGuest) -> FakeGuest:
        if not guest.up:
            raise DriverError(RefusalCode.DOMAIN_DOWN, f"{guest.name} is down")
        return guest


def balloons(capacity_mib: int, *guests: FakeGuest) -> FakeDriver:
    """The driver of a hypervisor that moves memory and caps CPU, but does not boot or shut down guests."""
    return FakeDriver(FakeHypervisor(*guests, capacity_mib=capacity_mib, capabilities=frozenset({CPU, MEMORY})))


@contextmanager
def harmless(world: FakeHypervisor) -> Iterator[None]:
    """Require that inside the `with` no balloon kills a job, and guests never get more memory than there is (whole
    MiB)."""
    yield
    assert not [name for name, guest in world.guests.items() if guest.killed], f"a balloon has killed: {world.targets}"
    assert world.overbooked <= 2, f"{world.overbooked} MiB more were given than there are: {world.targets}"
