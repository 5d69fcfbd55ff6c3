"""How far a switch is: what claims, snapshots and the lives of domains ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from magrathea.core import plan
from magrathea.core.model import Domain, Host, JobKey, MemoryComing, MemoryLack, MemoryShort
from magrathea.core.plan import SetCpu, SetMemory, Step
from magrathea.core.shares import disk_obstacles
from magrathea.core.sleeping import why_awake

from ..retries import sentence
from .bounds import SLACK_MIB
from .memory import Mover
from .orders import AgentOrders, HasHost
from .paging import Progress
from .readings import Readings
from .steps import Steps, slot_of


@dataclass(frozen=True, slots=True)
class Unstopped:
    """Jobs that must not run, while no agent has confirmed that they do not."""

    jobs: frozenset[tuple[str, JobKey]]


@dataclass(frozen=True, slots=True)
class CpuComing:
    """CPU is still to be moved, and moving it has not failed."""


Pending = Unstopped | CpuComing | MemoryLack
"""What a domain's jobs still wait for: first for other jobs to stop, then for CPU, then for memory."""


class SwitchProgress:
    """Answers from the actual state at the moment of the question. `due`: the steps that are left to do."""

    def __init__(
        self,
        daemon: HasHost,
        readings: Readings,
        orders: AgentOrders,
        steps: Steps,
        mover: Mover,
        due: Callable[[], list[Step]],
    ) -> None:
        self._daemon = daemon
        self._readings = readings
        self._orders = orders
        self._steps = steps
        self._mover = mover
        self._due = due
        self._waiters: set[asyncio.Future[None]] = set()

    def pending(self, domain: str) -> Pending | None:
        """The first thing that the domain's jobs still wait for; None if they have all that they need."""
        if jobs := self._orders.unconfirmed_stops():
            return Unstopped(jobs)
        if any(isinstance(step, SetCpu) for step in self._moving()):
            return CpuComing()
        return self.lack(domain)

    def memory_moves(self) -> frozenset[str]:
        """Domains whose memory is still to be moved. One whose move has failed is not among them: nobody knows when it
        will succeed."""
        return frozenset(step.domain for step in self._moving() if isinstance(step, SetMemory))

    def unstopped(self) -> Unstopped:
        """Jobs that must not run, while no agent has confirmed that they do not."""
        return Unstopped(self._orders.unconfirmed_stops())

    def stopped_at(self) -> Mapping[tuple[str, JobKey], float]:
        """When agents confirmed that jobs are stopped."""
        return self._orders.stopped_at()

    def all_stopped(self) -> bool:
        """Whether agents have confirmed that no job runs that must not."""
        return not self._orders.unconfirmed_stops()

    def books_count_from(self, domain: str) -> float:
        """From when on the books say what PBS has of the domain's stopped jobs."""
        return self._orders.books_count_from(domain)

    def _moving(self) -> list[Step]:
        return [step for step in self._due() if slot_of(step) not in self._steps.retries]

    def lack(self, domain: str) -> MemoryLack | None:
        """What the domain lacks of the memory that its jobs asked for; None if it lacks nothing."""
        host, read = self._daemon.host, self._readings.of(domain)
        moves = self._readings.has_movable_memory
        if read is None or not read.known:  # a driver that has never answered has not said what it can do
            return MemoryComing() if moves or host.driver_lost_at is not None else None
        if not moves or read.memory_mib is None:
            return None
        needs, has = self._mover.needs(domain), read.memory_mib
        if has >= needs - SLACK_MIB:
            return None
        if any(d.name != domain for d in _givers(host)):
            return MemoryComing()
        want = plan.desired(host).get(domain, plan.Want()).memory_mib
        if want is not None and want < needs - SLACK_MIB:
            shorts = (self._mover.short(d.name) for d in host.workers)
            whys = "; ".join((*(short.text for short in shorts if short is not None), *_stay_awake(host)))
            return MemoryShort(f"{domain} needs {needs} MiB and can have {want}" + (f": {whys}" if whys else ""))
        givers = [s.domain for s in self._due() if isinstance(s, SetMemory) and s.domain != domain]
        shortages = [self._steps.memory_shortage(name, self._mover.time_limit_s) for name in (domain, *givers)]
        said = (*(shortage for shortage in shortages if shortage), *_stay_awake(host))
        why = "; ".join(said) if all(shortages) else ""
        return MemoryShort(why) if why else MemoryComing()

    def how_far(self) -> str:
        """For people: how far the moves are, and who is put to sleep because its memory is needed; empty if nothing
        goes on."""
        moves = (f"{name} {p.what} {p.done_mib} of {p.of_mib} MiB" for name, p in sorted(self.moves().items()))
        return ", ".join((*moves, *(_falls_asleep(self._daemon.host, d) for d in _givers(self._daemon.host))))

    def moves(self) -> Mapping[str, Progress]:
        """By domain, how far its memory's move is."""
        return self._mover.progress

    async def changed(self) -> None:
        """Return after the switch has looked again."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def looked(self) -> None:
        """The switch has looked: wake those who wait for it."""
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_result(None)

    def notes(self) -> list[str]:
        """What fails at present, for people."""
        due = {slot_of(step) for step in self._due()}
        return [sentence(slot, f) for slot, f in self._steps.retries.items() if f.times > 1 and slot in due]


def _givers(host: Host) -> list[Domain]:
    return [d for d in host.workers if d.gives_way]


def _falls_asleep(host: Host, domain: Domain) -> str:
    waits = why_awake(host, domain)
    return f"{domain.name} is put to sleep for it" + (f" ({waits})" if waits else "")


def _stay_awake(host: Host) -> tuple[str, ...]:
    obstacles = disk_obstacles(host)
    return (obstacles,) if obstacles else ()
