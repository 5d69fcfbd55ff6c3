"""A host of model guests with balloons, agents and swap, in a time that passes only when somebody waits for it.

The model is what a move must never harm: a guest whose balloon is told to take more than it can give kills its job
(`killed`), and a host that gives more than it has is `overbooked`. Both are kept for the test to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from magrathea.core.refusals import RefusalCode
from node_daemon.claims.channel import AgentError
from node_daemon.claims.guest_messages import Answer, GuestMemory, Hello, OrderedJob
from node_daemon.hypervisor.base import CPU, MEMORY, DomainReading, DriverError, OnChange, Others

SESSION = "0" * 16


@dataclass
class ModelGuest:
    """`used`: what nothing can take. `job`: what its stopped job has in memory, `swapped`: in swap. `rate` and
    `push_rate`: MiB a second of its balloon and of its swap. `lie_mib`: said to be available beyond the truth.
    `cached`: what is pushed out stays in memory until the balloon asks for it, as with a swap that is a disk."""

    name: str
    actual: float
    most: int = 4096
    used: float = 60
    job: float = 0
    swapped: float = 0
    swap_mib: int = 0
    rate: float = 1000
    push_rate: float = 500
    lie_mib: int = 0
    cached: bool = False
    stopped: bool = True
    connected: bool = True
    up: bool = True
    can: tuple[str, ...] = ("push-out", "fetch")
    target: float | None = None
    killed: bool = False
    asked: list[str] = field(default_factory=list)
    orders: dict[tuple[str, int], str] = field(default_factory=dict)
    on_ask: Callable[[str], None] = lambda op: None
    order_s: float = 0.002

    @property
    def hello(self) -> Hello | None:
        return self._hello if self.connected else None

    def __post_init__(self) -> None:
        self._hello = Hello(session=SESSION, protocol=1, agent="model", can=list(self.can))
        self._at = 0.0

    @property
    def _cached_mib(self) -> float:
        return min(self.available, self.swapped) if self.cached else 0.0

    @property
    def available(self) -> float:
        return max(0.0, self.actual - self.used - self.job)

    def pass_time(self) -> None:
        """The balloon moves."""
        now = asyncio.get_running_loop().time()
        spent, self._at = now - self._at, now
        if self.target is None or not self.up:
            return
        step = self.rate * spent
        if self.target > self.actual:
            self.actual = min(self.target, self.actual + step)
        elif self.target < self.actual:
            self.actual = max(self.target, self.actual - step, self.used + self.job)

    def set_target(self, mib: int) -> None:
        self.pass_time()
        if mib < self.actual and mib < self.used + self.job:
            self.killed = True  # the kernel looks for somebody to take, and finds the job
        self.target = mib

    def memory(self) -> GuestMemory:
        self.pass_time()
        return GuestMemory(
            total_mib=self.most - 40,
            available_mib=int(self.available - self._cached_mib) + self.lie_mib,
            swap_cached_mib=int(self._cached_mib),
            swap_free_mib=int(self.swap_mib - self.swapped),
            swap_total_mib=self.swap_mib,
            free_mib=int(self.available - self._cached_mib),
        )

    async def request(self, op: str, within_s: float, **fields: Any) -> Answer:
        self.asked.append(op)
        self.on_ask(op)
        if not self.connected:
            raise AgentError("no-agent", f"{self.name}: no agent")
        await asyncio.sleep(self.order_s)
        answer = await self._serve(op, fields)
        if not self.connected:
            raise AgentError("no-agent", f"{self.name}: gone in the midst of it")
        return answer

    async def _serve(self, op: str, fields: Mapping[str, Any]) -> Answer:
        if op == "memory":
            row = OrderedJob("1", 1, resident_mib=int(self.job), swapped_mib=int(self.swapped), stopped=self.stopped)
            return Answer(0, SESSION, True, memory=self.memory(), jobs=[row])
        if op == "push-out":
            if not self.stopped:
                raise AgentError("not-stopped", "1 (run 1): only the memory of stopped jobs is pushed out")
            mib = min(fields["mib"], self.job, self.swap_mib - self.swapped, self.push_rate * fields["deadline_s"])
            mib = max(0.0, mib)
            await asyncio.sleep(mib / self.push_rate if mib else 0)
            self.pass_time()
            mib = min(mib, self.job)
            self.job -= mib
            self.swapped += mib
            return Answer(0, SESSION, True, memory=self.memory(), pushed_mib=int(mib), left_mib=int(self.job))
        if op == "fetch":
            mib = min(fields["mib"], self.swapped, self.available)
            await asyncio.sleep(mib / self.push_rate)
            self.pass_time()
            self.swapped -= mib
            self.job += mib
            return Answer(0, SESSION, True, fetched_mib=int(mib), left_mib=int(self.swapped))
        if op == "orders":
            self.orders = {(o["id"], o["run"]): o["order"] for o in fields["orders"]}
            self.stopped = "stop" in self.orders.values() or (self.stopped and "run" not in self.orders.values())
            rows = [OrderedJob(o["id"], o["run"], order=o["order"], processes=1, stopped=1) for o in fields["orders"]]
            return Answer(0, SESSION, True, jobs=rows)
        return Answer(0, SESSION, True)


class ModelDriver:
    """Its calls take a moment. `fail`: the next so many calls time out. `kept`: every target that was set."""

    capabilities = frozenset({CPU, MEMORY})

    def __init__(self, capacity_mib: int, *guests: ModelGuest) -> None:
        self.capacity_mib = capacity_mib
        self.guests = {guest.name: guest for guest in guests}
        self.cpu: dict[str, int | None] = {guest.name: None for guest in guests}
        self.fail = 0
        self.kept: list[tuple[str, int]] = []
        self.log: list[str] = []
        self.overbooked = 0.0
        self.tolerated = max(0.0, self._booked() - capacity_mib)

    def _booked(self) -> float:
        up = [g for g in self.guests.values() if g.up]
        return sum(max(g.actual, g.target or 0) for g in up)

    async def _call(self) -> None:
        await asyncio.sleep(0.001)
        if self.fail > 0:
            self.fail -= 1
            raise DriverError(RefusalCode.TIMEOUT, "the hypervisor does not answer")

    async def actual(self) -> dict[str, DomainReading]:
        await self._call()
        for guest in self.guests.values():
            guest.pass_time()
        return {
            g.name: DomainReading(g.up, self.cpu[g.name], int(g.actual) if g.up else None, max_memory_mib=g.most)
            for g in self.guests.values()
        }

    async def set_memory(self, domain: str, mib: int) -> None:
        await self._call()
        guest = self.guests[domain]
        if not guest.up:
            raise DriverError(RefusalCode.DOMAIN_DOWN, f"{domain} is down")
        self.kept.append((domain, mib))
        self.log.append(f"memory {domain} {mib}")
        grows = mib > guest.actual
        guest.set_target(mib)
        booked = self._booked()
        if grows:
            self.overbooked = max(self.overbooked, booked - max(self.capacity_mib, self.tolerated))

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        await self._call()
        self.cpu[domain] = percent
        self.log.append(f"cpu {domain} {percent}")

    def nearest_cpu(self, percent: int | None) -> int | None:
        return percent

    def notes(self) -> list[str]:
        return []

    async def start(self, on_event: OnChange) -> None:
        return

    async def close(self) -> None:
        return

    def others(self) -> Others:
        return Others()

    async def _cannot(self, domain: str) -> None:
        raise DriverError(RefusalCode.NOT_SUPPORTED, f"the model does not lead the life of {domain}")

    boot = shutdown = reboot = destroy = save = resume = _cannot


@contextmanager
def harmless(driver: ModelDriver) -> Iterator[None]:
    """Whatever happens within: no job was killed by a balloon, and never more was given than there is (whole MiB)."""
    yield
    assert not [g.name for g in driver.guests.values() if g.killed], f"a balloon has killed a job: {driver.kept}"
    assert driver.overbooked <= 2, f"{driver.overbooked} MiB more were given than there are: {driver.kept}"
