"""The switch: takes the steps that lead from what is to what the facts demand.

Rule 1: nothing is remembered of a switch. `look` computes the plan anew (magrathea/core/plan.py) after every change
and starts the steps that may start; a claim in the middle only makes the next plan another one.
Rule 2: at most one step per domain and kind is under way. A newer wish for a job's order replaces an older one at
once (a stop never waits for a continuation); a newer wish for memory changes the target of the move that is under way
(memory.py), and one that is withdrawn ends it; calls to the driver are let end.
Rule 3: a step that failed is tried again after a pause, and meanwhile holds up only what would be wrong without it
(`_waits`). One that fails for FAULT_AFTER_S makes its domain faulty, which a human has to look at.
Rule 4: what the agent has confirmed is known only as long as its connection lasts: a new one is told all again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, assert_never

from magrathea import supervision
from magrathea.core import events as ev
from magrathea.core import plan
from magrathea.core.caps import UNANSWERED_S, Giving
from magrathea.core.model import Host, JobKey, MemoryComing, MemoryLack, MemoryShort
from magrathea.core.plan import Order, Orders, SetCpu, SetMemory, Step
from magrathea.core.refusals import RefusalCode
from magrathea.core.stopping import wanted_stopped
from magrathea.deadlines import ORDER_MARGIN_S, ORDER_S

from ..guest_channel.channel import AgentError, GuestChannel
from ..guest_channel.messages import Answer
from ..hypervisor.base import CPU, MEMORY, DomainReading, Driver, DriverError, Others
from ..retries import Retries, Slot, loop_time, told
from .bounds import SLACK_MIB
from .memory import Mover
from .paging import MemorySettings

log = logging.getLogger(__name__)

RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after the first, second, ... failure of a step."""
FAULT_AFTER_S = 60.0
REFRESH_S = 30.0
"""The hypervisor's truth is read again that often, beside after every event and failure."""


class DaemonForSwitch(Protocol):
    """What the switch needs of the daemon."""

    @property
    def host(self) -> Host: ...

    @property
    def memory_settings(self) -> MemorySettings: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        """The event is a fact from now on, and on disk."""

    def actual_changed(self) -> None:
        """What is so has changed: publish it."""

    def driver_lost(self, why: str) -> None:
        """The hypervisor cannot be asked: what was read last is all that is known."""

    def driver_read(self, others: Others) -> None:
        """The hypervisor was asked, and has answered."""

    def step_begins(self, step: Step) -> None: ...

    def step_done(self, step: Step) -> None: ...


AGENT_AWAY = (RefusalCode.NO_AGENT, RefusalCode.TIMEOUT)
"""Codes of an agent that is just coming back, or was slow to answer."""
NOT_NOW = (RefusalCode.DOMAIN_DOWN, RefusalCode.NO_DOMAIN, RefusalCode.MEMORY_SHORT, RefusalCode.LOST)
"""Codes of a driver's or mover's refusal that does not make a domain faulty, however long it goes on."""


def slot_of(step: Step) -> Slot:
    return type(step).__name__, step.domain


def described(step: Step) -> str:
    """For the log: demo and benchmarks read the parts of a switch there."""
    match step:
        case Orders():
            return f"{step.order.value} {', '.join(str(key) for key in step.keys) or 'nothing'}"
        case SetCpu(cap=cap):
            return f"cpu {'without a cap' if cap.percent is None else f'{cap.percent} %'}"
        case SetMemory():
            return f"memory {step.mib} MiB"
        case _:
            assert_never(step)


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
        self._driver = driver
        self._channels = channels
        self._observe = observe
        self.mover = Mover(self, driver, channels)
        self.read: dict[str, DomainReading] = {}
        """What the driver last said."""
        self.reads = 0
        """The number of the read that `read` is of, in the order in which they were begun."""
        self.reads_begun = 0
        self.told: dict[str, dict[JobKey, Order]] = {}
        """What each agent has confirmed on its present connection."""
        self._under_way: dict[Slot, tuple[Step, asyncio.Task[None]]] = {}
        self._retries = Retries(RETRY_S)
        self._greeted: set[str] = set()  # agents that were sent a whole set of orders
        self._stopped: set[tuple[str, JobKey]] = set()  # see `unconfirmed`
        self._wake: asyncio.TimerHandle | asyncio.Handle | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._refresh_task: asyncio.Task[None] | None = None
        self._refresh_again = False
        self._closed = False

    # What the mover needs

    @property
    def host(self) -> Host:
        return self._facts.host

    @property
    def memory_settings(self) -> MemorySettings:
        return self._facts.memory_settings

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        wanted = wanted_stopped(self._facts.host)
        told = self.told.get(domain, {})
        return tuple(key for key, order in told.items() if order is Order.STOP and (domain, key) in wanted)

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        wanted, found = wanted_stopped(self._facts.host), self._facts.host.domain(domain)
        told = self.told.get(domain, {})
        jobs = found.jobs if found is not None else ()
        return tuple(j.key for j in jobs if told.get(j.key) is Order.STOP and (domain, j.key) not in wanted)

    def memory_read(self, read: Mapping[str, DomainReading]) -> None:
        known = {name: domain for name, domain in read.items() if name in self.read and domain.known}
        changed = any(domain.memory_mib != self.read[name].memory_mib for name, domain in known.items())
        if any((domain.memory_mib or 0) < (self.read[name].memory_mib or 0) for name, domain in known.items()):
            self._retries.try_now("SetMemory", (RefusalCode.MEMORY_SHORT,))
        for name, domain in known.items():
            self._note(name, memory_mib=domain.memory_mib)
        if changed:
            self._facts.actual_changed()
            self.look_soon()

    def observe(self, name: str) -> None:
        self._observe(name)

    # What is so

    def actual(self) -> dict[str, plan.ActualDomain]:
        """What is so, as the plan takes it: caps in the core's figures where the driver can do no better."""
        host = self._facts.host
        wants = plan.desired(host)
        result = {}
        for domain in host.workers:
            read = self.read.get(domain.name)
            orders = self.told.get(domain.name, {})
            if read is None or not read.up:
                if read is None and domain.name in self._channels:  # no longer configured: only its agent is left
                    result[domain.name] = plan.ActualDomain(orders=orders, can_cap=False)
                continue
            want = wants.get(domain.name)
            cpu = self._in_core_figures(read.cpu_percent, want)
            memory = read.memory_mib if MEMORY in self._driver.capabilities else None
            wanted = want.memory_mib if want is not None else None
            if memory is not None and wanted is not None and self.mover.bounds.settled(domain.name, read, wanted):
                memory = wanted
            result[domain.name] = plan.ActualDomain(
                cpu, memory, orders, can_cap=self._can_cap(), giving=self._giving(domain.name)
            )
        return result

    def _can_cap(self) -> bool:
        """A driver that has whole CPUs only cannot cap anything on a host of one."""
        least = self._driver.nearest_cpu(self._facts.host.limits.preempted_cpu_percent)
        return CPU in self._driver.capabilities and least is not None

    def _in_core_figures(self, percent: int | None, want: plan.Want | None) -> int | None:
        """The figure of the core whose nearest one that the driver can set is `percent`, if there is one."""
        figures = (want.cap.percent if want is not None else None, self._facts.host.limits.preempted_cpu_percent)
        return next((figure for figure in figures if self._driver.nearest_cpu(figure) == percent), percent)

    def _giving(self, domain: str) -> Giving:
        failure = self._retries.of(("SetMemory", domain))
        return Giving(
            leaves=self.mover.leaves(domain),
            failed=failure is not None and not failure.away,
            unanswered_s=loop_time() - failure.since if failure is not None and failure.away else 0.0,
            relieved_s=self.mover.paging.relieved_s(domain),
        )

    async def refresh(self) -> None:
        """Read the driver's truth. A failure is logged; the next round reads again."""
        self.reads_begun = number = self.reads_begun + 1
        try:
            read = await self._driver.actual()
        except DriverError as error:
            self._facts.driver_lost(str(error))
            return
        if number < self.reads:
            return  # one that was begun later has been quicker
        self.read, self.reads = {name: self._as_known(name, one) for name, one in read.items()}, number
        self._facts.driver_read(self._driver.others())
        self.mover.note(read)
        self._facts.actual_changed()
        self.look_soon()

    def _as_known(self, name: str, now: DomainReading) -> DomainReading:
        """Of a domain that could not be read what was read last is all that is known, if it was up then, too."""
        before = self.read.get(name)
        return now if now.known or before is None or not before.up else before

    def refresh_soon(self) -> None:
        if self._refresh_task is not None and not self._refresh_task.done():
            self._refresh_again = True
            return
        self._refresh_task = supervision.start(self._refresh_all())

    async def _refresh_all(self) -> None:
        self._refresh_again = True
        while self._refresh_again:
            self._refresh_again = False
            await self.refresh()

    # Agents

    def agent_connected(self, domain: str) -> None:
        self.told[domain] = {}
        self._greeted.discard(domain)
        self._retries.succeeded(("Orders", domain))
        # Memory may move now: of this domain, or of one that waits for what this one gives.
        self._retries.try_now("SetMemory", (*AGENT_AWAY, RefusalCode.MEMORY_SHORT))
        self.look_soon()

    def agent_lost(self, domain: str) -> None:
        self.told.pop(domain, None)
        self._greeted.discard(domain)
        self.look_soon()

    def forget(self, domain: str, key: JobKey) -> None:
        """The job is gone, or runs again: there is no order about it any more."""
        self.told.get(domain, {}).pop(key, None)
        self._stopped.discard((domain, key))

    def use(self, driver: Driver) -> None:
        """From now on this driver: the configuration has changed."""
        self._driver = driver
        self.mover.use(driver)
        self.refresh_soon()

    def clear(self, domain: str) -> None:
        """Try at once what had failed."""
        self._retries.forget(lambda slot: slot[1] == domain)
        self.look_soon()

    # Looking and stepping

    def look_soon(self) -> None:
        """Compute the plan again, in this round of the event loop."""
        if self._closed:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_soon(self._look)

    def steps(self) -> list[Step]:
        """What is left to do."""
        return plan.steps(self._facts.host, self.actual())

    def _look(self) -> None:
        self._wake = None
        if self._closed:
            return
        earlier: list[Step] = []
        held: list[Step] = []
        steps = self.steps()
        self._withdraw_moves(steps)
        self._forget_failures(steps)
        for step in steps:
            slot = slot_of(step)
            under_way = self._under_way.get(slot)
            if under_way is not None:
                if self._replaces(step, under_way[0]):
                    self._cancel(slot)
                    self._start(step)
                elif isinstance(step, SetMemory) and step != under_way[0]:
                    self.mover.aim(step.domain, step.mib)
                    self._under_way[slot] = (step, under_way[1])
            elif self._retries.wait_s(slot):
                held.append(step)
                continue
            elif not any(_waits(step, e) for e in earlier) and not any(
                _waits(step, h, held=True) for h in held if not self._takes_memory(h)
            ):
                self._start(step)
            earlier.append(step)
        for name in self._to_greet():
            self._start(Orders(name, Order.LIFT, ()))
        if held:
            wait_s = min(self._retries.wait_s(slot_of(step)) for step in held)
            self._wake = asyncio.get_running_loop().call_later(wait_s + 0.001, self._look)
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_result(None)

    def _takes_memory(self, step: Step) -> bool:
        """What a domain would not give harms nobody in it: its jobs may go on."""
        read = self.read.get(step.domain)
        return isinstance(step, SetMemory) and read is not None and step.mib < (read.memory_mib or 0)

    def _withdraw_moves(self, steps: list[Step]) -> None:
        """What is being moved and is no longer wanted to be, stops where it is."""
        wanted = {s.domain for s in steps if isinstance(s, SetMemory)}
        for step, _ in self._under_way.values():
            if isinstance(step, SetMemory) and step.domain not in wanted:
                self.mover.aim(step.domain, None)

    def _forget_failures(self, steps: list[Step]) -> None:
        """What is no longer to be done does not fail: when it is to be done again, that is another time."""
        due = {slot_of(step) for step in steps} | set(self._under_way)
        if not self._facts.host.paused:
            self._retries.forget(lambda slot: slot[0] != "Orders" and slot not in due)

    def begins_to_give(self, domain: str) -> None:
        """Its agent has answered: if it falls silent again, that is another time; and a cap is in the way now."""
        failure = self._retries.of(("SetMemory", domain))
        if failure is not None and failure.away:
            failure.since = loop_time()
        self.look_soon()

    def _to_greet(self) -> list[str]:
        """An agent that has just connected hears all orders, even if there are none: it may stand by older ones."""
        return [
            name
            for name, channel in self._channels.items()
            if channel.connected and name not in self._greeted and ("Orders", name) not in self._under_way
            if not self._retries.wait_s(("Orders", name))
        ]

    @staticmethod
    def _replaces(new: Step, old: Step) -> bool:
        """Whether `new` makes `old`, which is under way, pointless: orders only."""
        if not isinstance(new, Orders) or not isinstance(old, Orders) or new == old or not new.keys:
            return False
        return new.order is Order.STOP and (old.order is not Order.STOP or not set(new.keys) <= set(old.keys))

    def _start(self, step: Step) -> None:
        slot = slot_of(step)
        self._facts.step_begins(step)
        task = asyncio.get_running_loop().create_task(self._step(step))
        self._under_way[slot] = (step, task)
        task.add_done_callback(lambda done: self._ended(slot, done))

    def _cancel(self, slot: Slot) -> None:
        step, task = self._under_way.pop(slot)
        task.cancel()
        if isinstance(step, Orders):  # it may have taken effect, or not
            for key in step.keys:
                self.forget(step.domain, key)

    def _ended(self, slot: Slot, task: asyncio.Task[None]) -> None:
        if (now := self._under_way.get(slot)) is not None and now[1] is task:
            del self._under_way[slot]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a step failed by a defect: %s", slot, exc_info=error)
            self._failed_step(slot, RefusalCode.FAILED, f"a defect: {error!r}", lasting=True)
        self.look_soon()

    async def _step(self, step: Step) -> None:
        slot = slot_of(step)
        began = loop_time()
        try:
            match step:
                case Orders():
                    await self._order(step)
                case SetCpu():
                    await self._driver.set_cpu(step.domain, step.cap.percent)
                    self._observe(f"cpu {step.domain}")
                    self._note(step.domain, cpu_percent=self._driver.nearest_cpu(step.cap.percent))
                case SetMemory():
                    await self.mover.move(step.domain, step.mib)
                    self.refresh_soon()
                case _:
                    assert_never(step)
        except AgentError as error:
            if isinstance(step, SetMemory):
                self.refresh_soon()
            away = error.code in AGENT_AWAY
            self._failed_step(slot, error.code, str(error), lasting=not away, away=away)
            return
        except DriverError as error:
            self.refresh_soon()
            self._failed_step(slot, error.code, str(error), lasting=error.code not in NOT_NOW)
            if error.code == RefusalCode.MEMORY_SHORT:
                self._learn(slot[1])
            return
        took_ms = 1000 * (loop_time() - began)
        log.debug("%s: %s after %.1f ms", step.domain, described(step), took_ms)
        self._retries.succeeded(slot)
        self._facts.step_done(step)
        self._facts.actual_changed()

    def _learn(self, domain: str) -> None:
        """What stopped jobs have shown to keep is a fact: it answers the next claim, so that nobody stops in vain."""
        found = self._facts.host.domain(domain)
        kept = self.mover.kept_mib(domain)
        if found is not None and kept > found.unreclaimable_mib:
            self._facts.apply(ev.MemoryReported(self._facts.now(), domain, kept))

    def _note(self, domain: str, **changes: int | None) -> None:
        if (read := self.read.get(domain)) is not None:
            self.read[domain] = replace(read, **changes)  # type: ignore[arg-type]

    async def _order(self, step: Orders) -> None:
        channel = self._channels.get(step.domain)
        if channel is None or not channel.connected:
            raise AgentError(RefusalCode.NO_AGENT, f"no agent of {step.domain} is connected")
        hello = channel.hello
        if step.order is not Order.STOP:
            await self.mover.fetch(step.domain, step.keys)
            if channel.hello is not hello:
                raise AgentError(
                    RefusalCode.NO_AGENT, f"the agent of {step.domain} went away while memory was brought back"
                )
            self._stopped -= {(step.domain, key) for key in step.keys}  # from here on somebody may continue it
        limits = self._facts.host.limits
        warning: dict[str, Any] = {}
        deadline_s = ORDER_S
        if limits.warn_signal and step.order is Order.STOP:
            warning = {"warn_signal": limits.warn_signal, "warn_s": limits.warn_s}
            deadline_s += limits.warn_s
        orders = [
            {"id": k.id, "run": k.run, "order": o.value, **(warning if o is Order.STOP else {})}
            for k, o in self._whole_set(step).items()
        ]
        answer = await channel.request("orders", deadline_s + ORDER_MARGIN_S, orders=orders, deadline_s=deadline_s)
        self._observe(f"{step.order.value} {step.domain}")
        if channel.hello is not hello:
            raise AgentError(RefusalCode.NO_AGENT, f"the agent of {step.domain} has connected anew")
        self._greeted.add(step.domain)
        self._confirmed(step, answer)

    def _whole_set(self, step: Orders) -> dict[JobKey, Order]:
        """All orders for the domain: the step's, what stands, and a stop for all that must not run."""
        host = self._facts.host
        domain = host.domain(step.domain)
        wanted = wanted_stopped(host)
        told = self.told.get(step.domain, {})
        orders: dict[JobKey, Order] = {}
        for job in domain.jobs if domain else ():
            if (step.domain, job.key) in wanted and job.stopped_by_us:
                orders[job.key] = Order.STOP
            elif job.key in step.keys:
                orders[job.key] = step.order
            elif job.key in told and told[job.key] is not Order.STOP:
                orders[job.key] = told[job.key]
        return orders

    def _confirmed(self, step: Orders, answer: Answer) -> None:
        told = self.told.setdefault(step.domain, {})
        done = {job.key: job for job in answer.jobs}
        for key in step.keys:
            if step.order is Order.STOP:
                seen = done.get(key)
                if seen is None or seen.order != Order.STOP.value or not seen.done:
                    how = (
                        f"{seen.stopped} of {seen.processes} processes stopped"
                        if seen
                        else "the agent does not know it"
                    )
                    raise AgentError(RefusalCode.NOT_STOPPED, f"{key} in {step.domain}: {how}")
                self._stopped.add((step.domain, key))
            told[key] = step.order
        moves = (s.domain for s in self.steps() if isinstance(s, SetMemory))
        if step.order is Order.STOP and not self._facts.host.paused and step.domain not in moves:
            self.mover.relieve(step.domain)  # a daemon or agent before may have been in the midst of it
        if step.order is Order.RUN:
            self.mover.paging.went_on(step.domain)
            for key in step.keys:
                self.forget(step.domain, key)  # it is a job like any other now
                self._facts.apply(ev.JobContinued(self._facts.now(), step.domain, key))

    def _failed_step(self, slot: Slot, code: str, text: str, lasting: bool, away: bool = False) -> None:
        failure = self._retries.failed(slot, code, text, lasting=lasting, away=away)
        if away and failure.times == 1:
            asyncio.get_running_loop().call_later(UNANSWERED_S, self.look_soon)  # it is capped then
        domain = self._facts.host.domain(slot[1])
        lasts_s = loop_time() - failure.lasting_since
        if lasting and lasts_s > FAULT_AFTER_S and domain is not None and not domain.fault:
            self._facts.apply(ev.Faulted(self._facts.now(), slot[1], told(slot, failure)))

    # Waiting for it

    def unconfirmed(self) -> frozenset[tuple[str, JobKey]]:
        """Jobs that must not run and of which no agent has confirmed yet that they do not.

        An agent that has confirmed it and went away since has left them stopped; one that is away and never has
        (killed in mid-preemption, or the daemon was) may have left them running. A job under an agent that is back
        counts again only when that one has found it stopped, too.
        """
        waiting = set()
        for domain, key in wanted_stopped(self._facts.host):
            present = (channel := self._channels.get(domain)) is not None and channel.connected
            told = self.told.get(domain, {}).get(key) is Order.STOP
            if not (told if present else (domain, key) in self._stopped):
                waiting.add((domain, key))
        return frozenset(waiting)

    def cpu_pending(self) -> bool:
        """CPU is still to be moved, and moving it has not failed."""
        return any(slot_of(s) not in self._retries for s in self.steps() if isinstance(s, SetCpu))

    def memory_lack(self, domain: str) -> MemoryLack | None:
        """What the domain lacks of the memory that its jobs asked for; None for nothing."""
        read = self.read.get(domain)
        moves = MEMORY in self._driver.capabilities
        if read is None or not read.known:  # a driver that has never been reached does not say what it can do
            return MemoryComing() if moves or self._facts.host.driver_lost_at is not None else None
        if not moves or read.memory_mib is None:
            return None
        needs, has = self.mover.needs(domain), read.memory_mib
        if has >= needs - SLACK_MIB:
            return None
        want = plan.desired(self._facts.host).get(domain, plan.Want()).memory_mib
        if want is not None and want < needs - SLACK_MIB:
            shorts = (self.mover.short(d.name) for d in self._facts.host.workers)
            whys = "; ".join(short.text for short in shorts if short is not None)
            return MemoryShort(f"{domain} needs {needs} MiB and can have {want}" + (f": {whys}" if whys else ""))
        givers = [s.domain for s in self.steps() if isinstance(s, SetMemory) and s.domain != domain]
        why = self._short(domain) if all(self._short(giver) for giver in givers) else None
        return MemoryShort(why) if why else MemoryComing()

    def _short(self, domain: str) -> str | None:
        """What it has told at the end of a move that fell short; None while it may still give, or take, more."""
        slot = ("SetMemory", domain)
        failure = self._retries.of(slot)
        return (
            failure.text
            if failure and failure.code == RefusalCode.MEMORY_SHORT and slot not in self._under_way
            else None
        )

    def memory_pending(self, domain: str | None = None) -> bool:
        """Memory is still to be moved, of this domain or of any, and moving it has not failed."""
        moves = (s for s in self.steps() if isinstance(s, SetMemory) and domain in (None, s.domain))
        return any(slot_of(s) not in self._retries for s in moves)

    async def changed(self) -> None:
        """Return after the next look."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def notes(self) -> list[str]:
        """What fails at present, for people."""
        wanted = {slot_of(step) for step in self.steps()}
        return [told(slot, f) for slot, f in self._retries.items() if f.times > 1 and slot in wanted]

    async def close(self) -> None:
        self._closed = True
        if self._wake is not None:
            self._wake.cancel()
        tasks = [task for _, task in self._under_way.values()]
        if self._refresh_task is not None:
            tasks.append(self._refresh_task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.mover.close()


def _waits(step: Step, other: Step, held: bool = False) -> bool:
    """Must `step` wait until `other`, which comes before it in the plan, is done? `held`: `other` has failed and
    waits for its next try; then only what would do harm waits."""
    same = step.domain == other.domain
    match other:
        case Orders():
            if other.order is not Order.STOP:
                return same and isinstance(step, Orders)
            # Stop before memory and CPUs go; nobody is given anything, or continued, while somebody is to be stopped.
            return same or not held
        case SetCpu():
            if isinstance(step, SetMemory):
                return False
            return same if isinstance(step, Orders) or held else True
        case SetMemory():
            # The mover gives no more than what is there, and that as soon as it is. Memory is back before a job
            # continues; CPU does not wait for it.
            return same and isinstance(step, Orders)
        case _:
            assert_never(other)
