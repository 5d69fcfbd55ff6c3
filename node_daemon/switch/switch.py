"""The switch: takes the steps that lead from the actual state to the state that the facts demand.

Rule 1: nothing is remembered of a switch. Each look computes the plan anew (magrathea/core/plan.py) and starts the
steps that may start. A claim in the middle of a switch only changes the next plan.
Rule 2: at most one step per domain and kind is under way (steps.py). Newer orders for jobs replace older ones at once:
a stop never waits for a continuation. A newer wish for memory changes the target of the move that is under way
(memory.py); a wish that is withdrawn ends the move. Calls to the driver are never interrupted.
Rule 3: a step that failed is tried again after a pause. Until then other steps wait only if they would do harm without
it (`steps.waits`). A step that fails for FAULT_AFTER_S makes its domain faulty, and a human has to look at it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol, assert_never

from magrathea.core import events as ev
from magrathea.core import plan
from magrathea.core.caps import UNANSWERED_S
from magrathea.core.model import Host, JobKey
from magrathea.core.plan import Order, Orders, SetCpu, SetMemory, Step
from magrathea.core.refusals import RefusalCode

from ..guest_channel.channel import AgentError, GuestChannel
from ..hypervisor.base import CPU, DomainReading, Driver, DriverError, GuestFails
from ..retries import Slot, loop_time, sentence
from .actual import actual_domains
from .bounds import immovable_mib, lockable_mib
from .memory import Mover
from .orders import AgentOrders
from .paging import MemorySettings
from .progress import SwitchProgress
from .readings import DaemonForReadings, Readings
from .steps import Steps, described, replaces, slot_of, waits

log = logging.getLogger(__name__)

FAULT_AFTER_S = 60.0
REFRESH_S = 30.0
"""The daemon has the hypervisor read again that often. It is also read after each event and each failure."""


class DaemonForSwitch(DaemonForReadings, Protocol):
    """What the switch needs of the daemon."""

    @property
    def host(self) -> Host: ...

    @property
    def memory_settings(self) -> MemorySettings: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        """The event is a fact from now on, and on disk."""

    def actual_changed(self) -> None:
        """The actual state has changed: publish it."""

    def step_begins(self, step: Step) -> None: ...

    def step_done(self, step: Step) -> None: ...

    def life_rests(self, name: str) -> bool:
        """True while the domain moves between hosts: its CPU and memory stay as they are."""
        ...

    def pushed_out(self, domain: str, mib: int, seconds: float) -> None:
        """So much memory of the domain's stopped jobs has gone to its guest's swap, in that time."""


AGENT_AWAY = (RefusalCode.NO_AGENT, RefusalCode.TIMEOUT)
"""Codes of an agent that is reconnecting, or was slow to answer."""
NOT_NOW = (RefusalCode.DOMAIN_DOWN, RefusalCode.NO_DOMAIN, RefusalCode.MEMORY_SHORT, RefusalCode.LOST)
"""Codes of refusals by the driver or the mover that never make a domain faulty, however long they last."""


class Switch:
    """Takes steps. `observe` is called with a step's name right after it took effect, before anything is noted."""

    def __init__(
        self,
        facts: DaemonForSwitch,
        driver: Driver,
        channels: Mapping[str, GuestChannel],
        observe: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._facts = facts
        self._observe = observe
        self.readings = Readings(driver, facts, self._was_read)
        self.mover = Mover(self, driver, channels)
        self.interference = self.mover.interference
        self._orders = AgentOrders(facts, channels, observe)
        self._steps = Steps()
        self.progress = SwitchProgress(facts, self.readings, self._orders, self._steps, self.mover, self.steps)
        self._wake: asyncio.TimerHandle | asyncio.Handle | None = None
        self._closed = False

    def actual(self) -> dict[str, plan.ActualDomain]:
        """The actual state, in the plan's terms."""
        return actual_domains(self._facts.host, self.readings, self._orders, self._steps, self.mover)

    def steps(self) -> list[Step]:
        """What is left to do."""
        return plan.steps(self._facts.host, self.actual())

    # What the mover needs

    @property
    def host(self) -> Host:
        return self._facts.host

    @property
    def memory_settings(self) -> MemorySettings:
        return self._facts.memory_settings

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        """What a domain has that gives way to disk is not pushed out to its swap."""
        found = self._facts.host.domain(domain)
        return () if found is not None and found.ignores_swap else self._orders.held_stopped(domain)

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        return self._orders.to_continue(domain)

    def memory_read(self, read: Mapping[str, DomainReading]) -> None:
        changed, shrunk = self.readings.note_memory(read)
        if shrunk:
            self._steps.retries.try_now("SetMemory", (RefusalCode.MEMORY_SHORT,))
        if changed:
            self._facts.actual_changed()
            self.look_soon()

    def begins_to_give(self, domain: str) -> None:
        """Its agent has answered. A later silence counts from its own beginning; a cap would slow the move down now."""
        failure = self._steps.retries.of(("SetMemory", domain))
        if failure is not None and failure.away:
            failure.since = loop_time()
        self.look_soon()

    def observe(self, name: str) -> None:
        self._observe(name)

    def immovable_mib(self, domain: str) -> int:
        """See `bounds.immovable_mib`. 0 also if no memory moves on this host, or the domain's is not counted."""
        found = self._facts.host.domain(domain)
        if not self.readings.has_movable_memory or found is None:
            return 0
        contested = self.interference.contested_mib(domain)
        kept = immovable_mib(self._facts.host, domain, self.readings.of(domain), contested)
        return min(kept, max(0, found.memory_mib - found.floor_mib))

    def stays_mib(self, domain: str, said_mib: int) -> int:
        """What stays in the domain, of what its guest says that cannot leave it (`said_mib`).

        No guest has more locked than it has. What cannot be moved counts, even if it is not there now: another may
        bring it back.
        """
        most = lockable_mib(self._facts.host, domain, self.readings.of(domain))
        return max(said_mib if most is None else min(said_mib, most), self.immovable_mib(domain))

    # What happens

    def _was_read(self, read: Mapping[str, DomainReading]) -> None:
        self.interference.note(read, self.readings.number)
        with_memory = self.mover.bounds.known()
        self.mover.note(read)
        if with_memory - self.mover.bounds.known():  # a domain has gone, and others may have its memory now
            self._steps.forget_shortages()
        for d in self._facts.host.workers:  # what is no longer there is not locked, whatever its guest has said
            mib = self.stays_mib(d.name, d.unreclaimable_mib)
            if mib != d.unreclaimable_mib:
                self._facts.apply(ev.MemoryReported(self._facts.now(), d.name, mib))
        self._facts.actual_changed()
        self.look_soon()

    def agent_connected(self, domain: str) -> None:
        self._orders.connected(domain)
        self._steps.retries.succeeded(("Orders", domain))
        # Memory may move now: of this domain, or of one that waits for what this one gives.
        self._steps.retries.try_now("SetMemory", (*AGENT_AWAY, RefusalCode.MEMORY_SHORT))
        self.look_soon()

    def agent_lost(self, domain: str) -> None:
        self._orders.lost(domain)
        self.look_soon()

    def forget(self, domain: str, key: JobKey) -> None:
        """There is no order about this job any more: it is gone, or it runs again."""
        self._orders.forget(domain, key)

    def use_driver(self, driver: Driver) -> None:
        """Use this driver from now on: the configuration has changed."""
        self.readings.driver = driver
        self.mover.use_driver(driver)
        self.readings.refresh_soon()

    def clear(self, domain: str) -> None:
        """Try what has failed again at once."""
        self._steps.retries.forget(lambda slot: slot[1] == domain)
        self.look_soon()

    # Looking

    def look_soon(self) -> None:
        """Compute the plan again, in this round of the event loop."""
        if self._closed:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._wake = None
        if self._closed:
            return
        earlier: list[Step] = []
        held: list[Step] = []
        resting: list[Step] = []
        retries, steps = self._steps.retries, self.steps()
        self._withdraw_moves(steps)
        if not self._facts.host.paused:
            self._steps.forget_failures(steps)
        for step in steps:
            slot = slot_of(step)
            under_way = self._steps.under_way(slot)
            if under_way is not None:
                if replaces(step, under_way):
                    self._cancel(under_way)
                    self._start(step)
                elif isinstance(step, SetMemory) and step != under_way:
                    self.mover.aim(step.domain, step.mib)
                    self._steps.retarget(step)
            elif not isinstance(step, Orders) and self._facts.life_rests(step.domain):
                resting.append(step)
                continue
            elif retries.wait_s(slot):
                held.append(step)
                continue
            elif not any(waits(step, e) for e in earlier) and not any(
                waits(step, h, held=True) for h in (*held, *resting) if not self._takes_memory(h)
            ):
                self._start(step)
            earlier.append(step)
        for name in self._orders.needs_full_orders():
            slot = ("Orders", name)
            if self._steps.under_way(slot) is None and not retries.wait_s(slot):
                self._start(Orders(name, Order.LIFT, ()))
        if held:
            wait_s = min(retries.wait_s(slot_of(step)) for step in held)
            self._wake = asyncio.get_running_loop().call_later(wait_s + 0.001, self._look)
        self.progress.looked()

    def _takes_memory(self, step: Step) -> bool:
        """Whether the step takes memory away. If the domain does not give it, its own jobs may still be continued."""
        read = self.readings.of(step.domain)
        return isinstance(step, SetMemory) and read is not None and step.mib < (read.memory_mib or 0)

    def _withdraw_moves(self, steps: list[Step]) -> None:
        """Let moves that are no longer wanted end where they are."""
        wanted = {s.domain for s in steps if isinstance(s, SetMemory)}
        for step in self._steps.moves():
            if step.domain not in wanted:
                self.mover.aim(step.domain, None)

    # Stepping

    def _start(self, step: Step) -> None:
        self._facts.step_begins(step)
        self._steps.start(step, self._take(step), self._ended)

    def _cancel(self, step: Step) -> None:
        self._steps.cancel(slot_of(step))
        if isinstance(step, Orders):  # it may have taken effect, or not
            for key in step.keys:
                self.forget(step.domain, key)

    def _ended(self, slot: Slot, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a step failed by a defect: %s", slot, exc_info=error)
            self._failed(slot, RefusalCode.FAILED, f"a defect: {error!r}", lasting=True)
        self.look_soon()

    async def _take(self, step: Step) -> None:
        slot = slot_of(step)
        began = loop_time()
        try:
            match step:
                case Orders():
                    await self._order(step)
                case SetCpu():
                    await self._cap(step.domain, step.cap.percent)
                case SetMemory():
                    await self._move(step)
                    self.readings.refresh_soon()
                case _:
                    assert_never(step)
        except AgentError as error:
            if isinstance(step, SetMemory):
                self.readings.refresh_soon()
            # Never lasting: root in the guest lets its agent answer as it likes, and a fault keeps jobs out of the
            # whole host. If an agent does not do its part, the claims that need it are refused.
            self._failed(slot, error.code, str(error), lasting=False, away=error.code in AGENT_AWAY)
            return
        except DriverError as error:
            self.readings.refresh_soon()
            lasting = error.code not in NOT_NOW and not isinstance(error, GuestFails)
            self._failed(slot, error.code, str(error), lasting=lasting)
            if error.code in (RefusalCode.MEMORY_SHORT, RefusalCode.BAD_FIGURES):
                self._learn(slot[1])
            return
        took_ms = 1000 * (loop_time() - began)
        log.debug("%s: %s after %.1f ms", step.domain, described(step), took_ms)
        self._steps.retries.succeeded(slot)
        self._facts.step_done(step)
        self._facts.actual_changed()

    async def _cap(self, domain: str, percent: int | None) -> None:
        driver = self.readings.driver
        await driver.set_cpu(domain, percent)
        self._observe(f"cpu {domain}")
        nearest = driver.nearest_cpu(percent)
        self.readings.note(domain, cpu_percent=nearest)
        self.interference.cpu_set(domain, nearest, self.readings.begun)

    async def uncap(self, domain: str) -> None:
        """Take off the domain's cap, for as long as its life rests. Raises DriverError."""
        if CPU in self.readings.driver.capabilities:
            await self._cap(domain, None)

    async def _move(self, step: SetMemory) -> None:
        self.interference.memory_moves(step.domain)
        try:
            await self.mover.move(step.domain, step.mib)
        finally:
            self.interference.memory_rests(step.domain, self.readings.begun)
            if pushed := self.mover.paging.take_pushed(step.domain):
                self._facts.pushed_out(step.domain, *pushed)

    async def _order(self, step: Orders) -> None:
        connection = self._orders.connection(step.domain)
        if step.order is not Order.STOP:
            await self.mover.fetch(step.domain, step.keys)
            self._orders.check_same(step.domain, connection, "went away while memory was brought back")
        await self._orders.send(step, connection)
        moves = (s.domain for s in self.steps() if isinstance(s, SetMemory))
        if step.order is Order.STOP and not self._facts.host.paused and step.domain not in moves:
            self.mover.relieve(step.domain)  # an earlier daemon or agent may have been interrupted at it
        if step.order is Order.RUN:
            self.mover.paging.jobs_run_again(step.domain)
            for key in step.keys:
                self.forget(step.domain, key)  # it is a job like any other now
            self._facts.apply(ev.JobsContinued(self._facts.now(), step.domain, tuple(step.keys)))

    def _learn(self, domain: str) -> None:
        """Make a fact of what stopped jobs have kept in memory: the next claim is refused before anybody is stopped."""
        found = self._facts.host.domain(domain)
        kept = self.mover.kept_mib(domain)
        if found is not None and kept > found.unreclaimable_mib:
            self._facts.apply(ev.MemoryReported(self._facts.now(), domain, kept))

    def _failed(self, slot: Slot, code: str, text: str, lasting: bool, away: bool = False) -> None:
        failure = self._steps.retries.failed(slot, code, text, lasting=lasting, away=away)
        if away and failure.times == 1:
            asyncio.get_running_loop().call_later(UNANSWERED_S, self.look_soon)  # it is capped then
        domain = self._facts.host.domain(slot[1])
        lasts_s = loop_time() - failure.lasting_since
        if lasting and lasts_s > FAULT_AFTER_S and domain is not None and not domain.fault:
            self._facts.apply(ev.Faulted(self._facts.now(), slot[1], sentence(slot, failure)))

    async def close(self) -> None:
        self._closed = True
        if self._wake is not None:
            self._wake.cancel()
        await self._steps.close()
        await self.readings.close()
        await self.mover.close()
