"""Boots, shuts down, saves and restores domains: compares them with the facts and takes the steps that are due.

The core decides what is learned and which step is next (magrathea/core/life.py). This module carries it out.

Rule 1: at most one step per domain is under way. Until it is done and the hypervisor has been read again, nothing is
learned about that domain: an old reading must not undo what was just done.
Rule 2: nothing is remembered that a restart may not forget. A step that was interrupted is computed and taken again;
every step may be repeated.
Rule 3: if a guest does not turn itself off within its time limit, its domain is ended. If a boot does not succeed
within its own, the core makes a fact of that (magrathea/core/machine.py).
Rule 4: a failed restore never loses the image.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import assert_never

from magrathea.core import events as ev
from magrathea.core import life
from magrathea.core.life import Boot, CatchUp, GoOn, LifeStep, PowerOff, Register, Save, Seen
from magrathea.core.model import Domain, Lifecycle
from magrathea.core.refusals import RefusalCode
from magrathea.core.sleeping import to_be_saved

from ..guest_channel.channel import AgentError
from ..hypervisor.base import CPU, LIFE, SAVE, DomainChange, DriverError
from ..retries import Retries, Slot, loop_time, sentence
from .needs import DaemonForLife
from .restored_moms import RestoredMoms

log = logging.getLogger(__name__)

RETRY_S = (0.5, 1.0, 2.0, 5.0)
"""Pauses after the first, second, ... failure of a step."""
AGENT_S = 3.0
"""An agent has that long to set its clock, or to confirm that it turns its guest off."""


def comes_from_image(domain: Domain) -> bool:
    """True if the domain's next start must be a restore: it was saved on request, without jobs or with them."""
    return domain.frozen or domain.sleep is not None


def _slot(name: str, kind: type[LifeStep]) -> Slot:
    return kind.__name__, name


class Life:
    """Leads the lives of one host's domains. Call `look_soon` after anything that may matter; it is cheap."""

    def __init__(self, daemon: DaemonForLife) -> None:
        self._daemon = daemon
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._was_up: dict[str, bool] = {}
        self._needs_read: dict[str, int] = {}
        self._went_down: set[str] = set()
        """Domains that went down since the last look, as the hypervisor reported."""
        self._asked_to_end: dict[str, float] = {}
        """Domains that were asked to turn themselves off, and when (the loop's time)."""
        self._asked_agents: set[str] = set()
        """Those of them whose agents were asked."""
        self._from_image: set[str] = set()
        """Domains booted from an image. Their clocks have stood still."""
        self._resting: set[str] = set()
        """Domains about which a move decides."""
        self._restored_moms = RestoredMoms(daemon.channels)
        self._retries = Retries(RETRY_S)
        self._wake: asyncio.Handle | None = None
        self._closed = False

    def noticed(self, event: DomainChange) -> None:
        """The hypervisor reports a change. If it needs no second look it is a fact at once, else after the look."""
        daemon = self._daemon
        domain = daemon.host.domain(event.name)
        if domain is None or daemon.life_rests(event.name):
            return
        can = daemon.driver.capabilities
        up = domain.lifecycle is Lifecycle.UP
        if up and not event.up and event.name not in self._under_way:
            self._was_up[event.name] = False
            if SAVE in can:
                self._went_down.add(event.name)  # it may have been saved: the next look shows
            else:
                self._learn(domain, ev.DomainStopped(daemon.now(), event.name))
        elif not up and event.up and LIFE not in can:
            self._learn(domain, ev.DomainStarted(daemon.now(), event.name))
        self._read_anew(event.name)

    def notes(self) -> list[str]:
        """What fails at present, for people."""
        return [sentence(slot, failure) for slot, failure in self._retries.items()]

    def look_soon(self) -> None:
        """Look at all domains, in this round of the event loop."""
        if not self._closed:
            if self._wake is not None:
                self._wake.cancel()
            self._wake = asyncio.get_running_loop().call_soon(self._look)

    async def close(self) -> None:
        self._closed = True
        if self._wake is not None:
            self._wake.cancel()
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._restored_moms.close()

    # Looking

    def _look(self) -> None:
        self._wake = None
        if self._closed:
            return
        here = [d for d in self._daemon.host.workers if not self._rests(d.name)]
        waits = [wait for d in here if (wait := self._look_at(d)) is not None]
        if waits and self._wake is None:
            self._wake = asyncio.get_running_loop().call_later(max(0.0, min(waits)) + 0.001, self._look)

    def _rests(self, name: str) -> bool:
        """True while a move decides about the domain. What was seen of it until then means nothing afterwards."""
        if self._daemon.life_rests(name):
            self._resting.add(name)
            return True
        if name in self._resting:
            self._resting.discard(name)
            self._went_down.discard(name)
            self._was_up.pop(name, None)
            self._read_anew(name)
        return False

    def _look_at(self, domain: Domain) -> float | None:
        """Learn something or take a step. Returns after how many seconds to look again; None: at the next event."""
        name = domain.name
        if name in self._under_way or self._needs_read.get(name, 0) > self._daemon.switch.readings.number:
            return None
        seen = self._seen(domain)
        if seen is None:
            return None
        if name in self._went_down:
            self._went_down.discard(name)
            if seen.up and domain.lifecycle is Lifecycle.UP:  # it went down and came up between two looks
                self._learn(domain, ev.DomainStopped(self._daemon.now(), name))
                return 0.0
        self._was_up[name] = seen.up
        if not seen.up:
            self._forget_asking(name)
        event = life.learned(self._daemon.host, domain, seen)
        if event is not None:
            self._learn(domain, self._with_image_fault(event))
            return 0.0
        step = life.step(self._daemon.host, domain, seen)
        self._retries.forget(lambda slot: slot[1] == name and (step is None or slot != _slot(name, type(step))))
        if not isinstance(step, PowerOff):
            self._forget_asking(name)
        if step is None:
            return None
        return self._retries.wait_s(_slot(name, type(step))) or self._take(domain, step, loop_time())

    def _seen(self, domain: Domain) -> Seen | None:
        """The domain as it is; None if that is not known."""
        read = self._daemon.switch.readings.of(domain.name)
        channel = self._daemon.channels.get(domain.name)
        if read is None or not read.known:
            return None
        return Seen(
            up=read.up,
            was_up=self._was_up.get(domain.name),
            agent=channel is not None and channel.connected,
            # a power cut in the midst of a save leaves half an image
            saved=read.saved and not (read.image_fault and domain.lifecycle is Lifecycle.UP),
            paused_externally=read.paused_externally,
            leads=LIFE in self._daemon.driver.capabilities,
        )

    def _with_image_fault(self, event: ev.DomainEvent) -> ev.DomainEvent:
        """The event; if the domain went down in the midst of a save, with that as the reason."""
        read = self._daemon.switch.readings.of(event.domain)
        if not isinstance(event, ev.DomainStopped) or read is None or not read.image_fault or event.reason:
            return event
        why = f"it went down before it was saved completely, so its image is of no use: {read.image_fault}"
        log.error("%s: %s", event.domain, why)
        return ev.DomainStopped(event.at, event.domain, why)

    def _learn(self, domain: Domain, event: ev.DomainEvent) -> None:
        log.info("%s: %s", domain.name, type(event).__name__)
        went_down = isinstance(event, ev.DomainStopped) and domain.closing is not None
        self._daemon.apply(event)
        if isinstance(event, ev.DomainStopped | ev.FreezeEnded) and domain.name in self._daemon.channels:
            self._daemon.channels[domain.name].drop()  # an old connection would look like a registration later
            self._restored_moms.withdraw(domain.name)
        if went_down:
            self._daemon.site_scripts.begin("after-shutdown", domain.name)
        if isinstance(event, ev.FreezeEnded):
            self._daemon.site_scripts.begin("after-freeze", domain.name)

    def _take(self, domain: Domain, step: LifeStep, now: float) -> float | None:
        """Start the step, unless it has to wait. Returns after how many seconds to look again; None: at the next
        event."""
        if isinstance(step, Boot | Save) and self._waits_for_memory(domain):
            return None
        if isinstance(step, Save) and (doubt_s := self._books_doubted_s(domain.name)) > 0:
            return doubt_s if doubt_s < math.inf else None
        if isinstance(step, Save) and not self._daemon.may_save(domain.name):
            return None
        match step:
            case PowerOff():
                asked_before = domain.name in self._asked_to_end
                asked_at = self._asked_to_end.setdefault(domain.name, now)
                left_s = asked_at + self._power_limit_s(domain.name) - now
                agent_asked = domain.name in self._asked_agents or not self._agent_can(domain.name, "power")
                if asked_before and left_s > 0 and agent_asked:
                    return left_s
                work = self._ask_to_end if left_s > 0 else self._pull_the_plug
            case Boot():
                work = self._boot
            case Register():
                work = self._register
            case GoOn():
                work = self._go_on
            case Save():
                work = self._save
            case CatchUp():
                work = self._catch_up
            case _:
                assert_never(step)
        self._start(domain.name, work, type(step))
        return None

    def _waits_for_memory(self, domain: Domain) -> bool:
        """Whether a boot or a save must wait for memory, or for jobs to stop.

        A restore waits until the jobs that borrowed its CPUs have stopped and its memory has been given back, if need
        be by domains that are put to sleep for it. A domain
        is made small before it is saved: saving is quicker then, and the restore needs no more than its floor.
        """
        progress = self._daemon.switch.progress
        if domain.lifecycle is Lifecycle.UP:
            return domain.name in progress.memory_moves()
        if domain.frozen and any(d.gives_way for d in self._daemon.host.workers):
            return True
        if domain.sleep is not None and not self._has_room(domain):
            return True
        return comes_from_image(domain) and (not progress.all_stopped() or bool(progress.memory_moves()))

    def _books_doubted_s(self, name: str) -> float:
        """For how long a save must wait because PBS may just be continuing the domain's jobs. Without the agent nobody
        lets them go on, and it could be away for good."""
        channel = self._daemon.channels.get(name)
        connected = channel is not None and channel.connected
        count_from = self._daemon.switch.progress.books_count_from(name)
        return count_from - self._daemon.now() if connected or count_from < math.inf else 0.0

    def _has_room(self, domain: Domain) -> bool:
        """Whether the host has the memory with which the domain was put to sleep. Without it the restore waits, until
        the boot's time limit: the host's own memory would run out."""
        switch = self._daemon.switch
        need_mib = domain.floor_mib + domain.stuck_mib(domain.jobs)
        return not switch.readings.has_movable_memory or switch.mover.bounds.room(domain.name) >= need_mib

    def _forget_asking(self, name: str) -> None:
        self._asked_to_end.pop(name, None)
        self._asked_agents.discard(name)

    def _agent_can(self, name: str, what: str) -> bool:
        channel = self._daemon.channels.get(name)
        return channel is not None and channel.hello is not None and what in channel.hello.can

    def _power_limit_s(self, name: str) -> float:
        table = self._daemon.configuration.domain.get(name)
        return table.shutdown_time_limit_s if table else 0.0

    # Stepping

    def _start(self, name: str, work: Callable[[str], Coroutine[None, None, None]], kind: type[LifeStep]) -> None:
        task = asyncio.get_running_loop().create_task(work(name))
        self._under_way[name] = task
        task.add_done_callback(lambda done: self._ended(name, kind, done))

    def _ended(self, name: str, kind: type[LifeStep], task: asyncio.Task[None]) -> None:
        self._under_way.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._retries.succeeded(_slot(name, kind))
        else:
            code = error.code if isinstance(error, DriverError | AgentError) else None
            if code is None:
                log.error("%s of %s failed by a defect", kind.__name__, name, exc_info=error)
            self._retries.failed(_slot(name, kind), code or RefusalCode.FAILED, str(error))
        self._read_anew(name)

    def _read_anew(self, name: str) -> None:
        """For this domain, only readings count that are begun from now on."""
        if not self._closed:
            self._needs_read[name] = self._daemon.switch.readings.begun + 1
            self._daemon.switch.readings.refresh_soon()

    def _domain(self, name: str) -> Domain | None:
        return self._daemon.host.domain(name)

    async def _boot(self, name: str) -> None:
        """Boot or restore the domain. Raises DriverError if another try may help."""
        domain = self._domain(name)
        restores = domain is not None and comes_from_image(domain)
        await self._daemon.site_scripts.run_and_wait("before-defrost" if restores else "before-boot", name, guest=False)
        domain = self._domain(name)
        if domain is None or domain.lifecycle is not Lifecycle.BOOTING:
            return  # the wish was withdrawn in the meantime
        read = self._daemon.switch.readings.of(name)
        if read is not None and read.saved:
            self._from_image.add(name)
        try:
            if restores and (fault := await self._daemon.driver.image_fault(name)):
                raise DriverError(RefusalCode.RESTORE_FAILED, f"domain {name}: its image cannot be used: {fault}")
            await self._daemon.driver.boot(name)
        except DriverError as error:
            if error.code in (RefusalCode.TIMEOUT, RefusalCode.LOST):
                raise
            why = f"it could not be booted: {error.text}"
            if restores or error.code == RefusalCode.RESTORE_FAILED:
                fix = f"fix that, then `magrathea domain {'defrost' if restores else 'boot'} {name}`"
                why = f"its restore failed, its image is kept: {error.text}; {fix}"
            log.error("%s: %s", name, why)
            self._daemon.apply(ev.DomainStopped(self._daemon.now(), name, why))
            return
        self._daemon.observe(f"boot {name}")
        if restores and CPU in self._daemon.driver.capabilities:
            await self._lift_cap(name)

    async def _lift_cap(self, name: str) -> None:
        """Lift the cap that an image keeps if its domain was preempted when it was saved: with a tenth of a CPU, a
        guest's agent and MoM take minutes to notice that they are back."""
        try:
            await self._daemon.driver.set_cpu(name, None)
        except DriverError as error:
            log.warning("%s: its CPU cap cannot be lifted before it is up: %s", name, error)

    async def _register(self, name: str) -> None:
        """The domain's agent is there, so it is up. If it comes from an image, its clock is set first: jobs must see
        the right time. And MoM's connections to PBS are ended, which have no other end any more."""
        domain = self._domain(name)
        restored = domain is not None and comes_from_image(domain)
        if restored or name in self._from_image:
            await self._set_clock(name)
            self._reconnect_mom(name)
        if domain is not None and domain.sleep is not None:
            await self._daemon.ask_before_wake(name)
        self._from_image.discard(name)
        self._daemon.observe(f"register {name}")
        self._daemon.apply(ev.DomainStarted(self._daemon.now(), name))
        self._daemon.site_scripts.begin("after-defrost" if restored else "after-boot", name)

    async def _catch_up(self, name: str) -> None:
        """The domain stood still in a move. If that was for long, it is like one that comes from an image."""
        domain = self._domain(name)
        if domain is not None and domain.still_since is not None:
            await self._set_clock(name)
            self._reconnect_mom(name)
        if domain is not None and domain.rests_for_move:
            await self._daemon.ask_before_wake(name)
        self._daemon.apply(ev.SleepEnded(self._daemon.now(), name))

    async def _set_clock(self, name: str) -> None:
        if not self._agent_can(name, "clock"):
            log.info("%s: its clock stood still and its agent cannot set it; the guest's time service has to", name)
            return
        try:
            await self._daemon.channels[name].request("clock", AGENT_S, unix_s=time.time())
        except AgentError as error:
            log.warning("%s: its clock stood still and could not be set yet: %s", name, error)
            self._restored_moms.set_clock_soon(name)

    def _reconnect_mom(self, name: str) -> None:
        if self._agent_can(name, "reconnect"):
            self._restored_moms.end_soon(name)
        else:
            log.info("%s: MoM notices by itself that its connection to PBS is dead; a newer agent would tell it", name)

    async def _go_on(self, name: str) -> None:
        await self._daemon.driver.resume(name)

    async def _ask_to_end(self, name: str) -> None:
        await self._daemon.site_scripts.run_and_wait("before-shutdown", name, guest=True)
        domain = self._domain(name)
        if domain is None or not domain.must_go_down:
            return  # the wish was withdrawn in the meantime
        self._daemon.observe(f"power-off {name}")
        if self._agent_can(name, "power"):
            self._asked_agents.add(name)
            try:
                await self._daemon.channels[name].request("power", AGENT_S, what="off")
                return
            except AgentError as error:
                log.info("%s: its agent does not turn it off, so the hypervisor asks it: %s", name, error)
        try:
            await self._daemon.driver.shutdown(name)
        except DriverError as error:
            left_s = self._power_limit_s(name)
            log.warning("%s cannot be asked to turn itself off; it is ended in %g s: %s", name, left_s, error)

    async def _pull_the_plug(self, name: str) -> None:
        log.warning("%s has not turned itself off within %g s; it is ended", name, self._power_limit_s(name))
        await self._daemon.driver.destroy(name)
        self._daemon.observe(f"destroy {name}")

    async def _save(self, name: str) -> None:
        await self._daemon.site_scripts.run_and_wait("before-freeze", name, guest=True)
        if not self._is_to_be_saved(name):
            return  # the wish was withdrawn in the meantime, or a job has come
        refusal = await self._daemon.saves.refusal(name)
        if not self._is_to_be_saved(name):
            return
        if refusal is not None:
            self._not_saved(name, f"{refusal.code}: {refusal.text}")
            return
        read, began = self._daemon.switch.readings.of(name), self._daemon.now()
        try:
            await self._daemon.driver.save(name)
        except DriverError as error:
            await self._daemon.switch.readings.refresh()
            read = self._daemon.switch.readings.of(name)
            if error.code in (RefusalCode.LOST, RefusalCode.TIMEOUT) or read is None or not read.up:
                raise  # it may be saved all the same, now or later: the next look shows
            self._not_saved(name, str(error))
            return
        size_mib = 0 if read is None else read.memory_mib or read.max_memory_mib or 0
        self._daemon.saves.took(name, size_mib, self._daemon.now() - began)
        self._daemon.observe(f"save {name}")

    def _is_to_be_saved(self, name: str) -> bool:
        domain = self._domain(name)
        return domain is not None and to_be_saved(self._daemon.host, domain)

    def _not_saved(self, name: str, why: str) -> None:
        log.error("%s could not be saved and goes on: %s", name, why)
        self._daemon.apply(ev.FreezeEnded(self._daemon.now(), name, why))
