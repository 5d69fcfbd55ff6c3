"""A guest in memory with a balloon, a swap and an agent, as quick, as stubborn or as broken as a test wants.

A move of memory must never harm it: if a balloon is told to take more than its guest can give, the guest kills its job
(`killed`). Its time is the event loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from magrathea.core.refusals import RefusalCode
from node_daemon.guest_channel.channel import AgentError
from node_daemon.guest_channel.messages import Answer, GuestMemory, Hello

SESSION = "0" * 16
LOOK_S = 0.05


@dataclass
class FakeGuest:
    """`actual`: MiB that its balloon leaves it. `used`: MiB that nothing can take.

    `job`, `swapped`: MiB of its stopped job in memory and in swap. `rate`, `push_rate`: MiB a second of its balloon and
    of its swap. `lie_mib`: MiB that it reports as available beyond the truth. `cached`: memory that is pushed out stays
    until the balloon needs it, as with swap on a disk. `heeds`: it powers off on request. `registers`: its agent starts
    with it.
    `obstacle`: why it cannot be saved. `image_fault`: what is wrong with its image.
    `readable`: the hypervisor can report more than that it is up. `pinned`: its memory cannot be moved. `fails`:
    driver's call, or one of its agent's plain requests -> the code with which it fails. `slow_s`: one of its agent's
    plain requests -> for how long it works on it. `save_s`: how long its save takes.
    """

    name: str
    actual: float = 1024
    most: int = 4096
    used: float = 60
    job: float = 0
    swapped: float = 0
    swap_mib: int = 0
    rate: float = 1000
    push_rate: float = 500
    lie_mib: int = 0
    cached: bool = False
    up: bool = True
    saved: bool = False
    obstacle: str = ""
    image_fault: str = ""
    paused: bool = False
    readable: bool = True
    pinned: bool = False
    heeds: bool = True
    cpu_percent: int | None = None
    target: float | None = None
    killed: bool = False
    fails: dict[str, str] = field(default_factory=dict)
    slow_s: dict[str, float] = field(default_factory=dict)
    registers: bool = True
    connected: bool = True
    can: tuple[str, ...] = ("clock", "fetch", "power", "push-out", "reconnect")
    stopped: bool = True
    asked: list[str] = field(default_factory=list)
    orders: dict[tuple[str, int], str] = field(default_factory=dict)
    on_ask: Callable[[str], None] = lambda op: None
    order_s: float = 0.002
    save_s: float = 0.0

    def __post_init__(self) -> None:
        self._hello = Hello(session=SESSION, protocol=1, agent="fake", can=list(self.can))
        self._at = 0.0

    # Its memory

    @property
    def available(self) -> float:
        return max(0.0, self.actual - self.used - self.job)

    @property
    def _cached_mib(self) -> float:
        return min(self.available, self.swapped) if self.cached else 0.0

    def pass_time(self) -> None:
        """Let the balloon move."""
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
            self.killed = True  # the kernel needs memory, and kills the job
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

    # Its agent, as seen through the daemon's end of the channel

    @property
    def hello(self) -> Hello | None:
        return self._hello if self.connected else None

    async def request(self, op: str, within_s: float, **fields: Any) -> Answer:
        self.asked.append(op)
        self.on_ask(op)
        if not self.connected:
            raise AgentError(RefusalCode.NO_AGENT, f"{self.name}: no agent")
        try:
            async with asyncio.timeout(within_s):
                await self._takes_its_time()
                answer = await self.answer(op, fields)
        except TimeoutError as error:
            raise AgentError(RefusalCode.TIMEOUT, f"{self.name}: no answer to {op} within {within_s:g} s") from error
        if not self.connected:
            raise AgentError(RefusalCode.NO_AGENT, f"{self.name}: gone in the midst of it")
        return msgspec.convert({"id": 0, "session": SESSION, "ok": True, **answer}, Answer)

    async def _takes_its_time(self) -> None:
        left_s = self.order_s
        while left_s > 0:
            await asyncio.sleep(min(left_s, LOOK_S))
            left_s -= LOOK_S
            if not self.connected:
                raise AgentError(RefusalCode.NO_AGENT, f"{self.name}: gone in the midst of it")

    async def answer(self, op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The agent's answer without its head. Raises AgentError."""
        if op == "memory":
            row = {"id": "1.srv", "run": 1, "resident_mib": int(self.job), "swapped_mib": int(self.swapped)}
            return {"memory": msgspec.to_builtins(self.memory()), "jobs": [{**row, "stopped": self.stopped}]}
        if op == "push-out":
            return await self._push_out(fields["mib"], fields["deadline_s"])
        if op == "fetch":
            return await self._fetch(fields["mib"])
        if op == "orders":
            self.orders = {(o["id"], o["run"]): o["order"] for o in fields["orders"]}
            self.stopped = "stop" in self.orders.values() or (self.stopped and "run" not in self.orders.values())
            return {"jobs": [{**o, "processes": 1, "stopped": 1, "pending": 0} for o in fields["orders"]]}
        if op in ("clock", "power", "reconnect", "script"):
            await asyncio.sleep(self.slow_s.get(op, 0.0))
            if code := self.fails.get(op):
                raise AgentError(RefusalCode(code), f"{self.name}: {op} fails, as the test wants")
            return {}
        raise AgentError(RefusalCode.UNKNOWN_OP, f"this agent does not know {op}")

    async def _push_out(self, mib: float, deadline_s: float) -> dict[str, Any]:
        if not self.stopped:
            text = "1 (run 1): only the memory of stopped jobs is pushed out"
            raise AgentError(RefusalCode.NOT_STOPPED, text)
        mib = max(0.0, min(mib, self.job, self.swap_mib - self.swapped, self.push_rate * deadline_s))
        await asyncio.sleep(mib / self.push_rate if mib else 0)
        self.pass_time()
        mib = min(mib, self.job)
        self.job -= mib
        self.swapped += mib
        return {"memory": msgspec.to_builtins(self.memory()), "pushed_mib": int(mib), "left_mib": int(self.job)}

    async def _fetch(self, mib: float) -> dict[str, Any]:
        mib = min(mib, self.swapped, self.available)
        await asyncio.sleep(mib / self.push_rate)
        self.pass_time()
        self.swapped -= mib
        self.job += mib
        return {"fetched_mib": int(mib), "left_mib": int(self.swapped)}
