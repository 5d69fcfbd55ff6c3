"""Brings back what a planned sleep of the host has put to sleep.

Rule 1: services come first, then domains with jobs, then those without; each of them in the reverse order of the saves
(plan.py). As many are restored at the same time as the configuration says.
Rule 2: the core decides when a domain has its turn; here it is only put into the line. One that waits there keeps
nobody else from being restored.
Rule 3: each domain is asked for once in each boot of the machine. If its restore fails, its image is kept, and an admin
must look. A service is tried again if another try may help.
Rule 4: what an admin has put to sleep stays asleep.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from msgspec.structs import replace

from magrathea.core import events as ev
from magrathea.core.model import Domain, Host, SleepCause
from magrathea.core.refusals import RefusalCode

from ..configuration import NodedConfiguration
from ..hypervisor.base import Driver, DriverError
from . import records
from .records import NOTHING_SLEPT, Records

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Longest time between two looks; a change of a fact brings an earlier one."""
AGAIN_S = 10.0
"""A service that could not be restored is tried again after this."""
LASTING = (RefusalCode.NO_DOMAIN, RefusalCode.NOT_PERMITTED, RefusalCode.NOT_SUPPORTED, RefusalCode.RESTORE_FAILED)
"""Another try changes nothing: an admin must look, and ask for it."""


class DaemonForWaking(Protocol):
    """What bringing back needs of the daemon."""

    configuration: NodedConfiguration
    driver: Driver

    @property
    def host(self) -> Host: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...


def defrost(daemon: DaemonForWaking, name: str) -> None:
    """Put the domain into the line of those that wake; if it is not saved yet, let it stay awake."""
    domain = daemon.host.domain(name)
    if domain is None:
        return
    now = daemon.now()
    for decision in daemon.apply(ev.DefrostRequested(now, name, now + domain.boot_limit_s)):
        if isinstance(decision, ev.Refused) and decision.domain == name:
            log.warning("%s is not woken: %s", name, decision.text)


def is_of_shutdown(domain: Domain) -> bool:
    return domain.sleep is not None and domain.sleep.cause is SleepCause.SHUTDOWN


class Waking:
    """Call `work` once for each planned sleep, in a task. `changed` is set whenever a fact has changed."""

    def __init__(self, daemon: DaemonForWaking, records: Records, changed: asyncio.Event) -> None:
        self._daemon = daemon
        self._records = records
        self._changed = changed
        self.not_back: dict[str, DriverError] = {}
        """Services that could not be restored, and why."""

    def begun_in_this_boot(self) -> bool:
        """True if `work` was begun in this boot of the machine, also by an earlier daemon, and has not brought back
        everything."""
        record = self._records.sleep()
        return record is not None and record.woken_in == records.boot_id()

    def sleepers(self) -> list[Domain]:
        """What sleeps since a shutdown and is not in the line yet, in the order in which it comes back."""
        record = self._records.sleep()
        places = {name: place for place, name in enumerate(record.order if record is not None else ())}
        found = [d for d in self._daemon.host.workers if d.asleep and is_of_shutdown(d) and not d.in_line_to_wake]
        return sorted(found, key=lambda d: (not d.jobs, -places.get(d.name, len(places)), d.name))

    def services(self) -> list[str]:
        """Services that were put to sleep, in the order in which they come back."""
        record = self._records.sleep()
        configured = self._daemon.configuration.domain
        return [name for name in reversed(record.services) if name in configured] if record is not None else []

    async def work(self, failed_too: bool = True) -> None:
        """Bring everything back. `failed_too`: also domains whose last restore has failed."""
        self._keep((self._records.sleep() or NOTHING_SLEPT).services)
        while self._daemon.host.driver_lost_at is not None:
            await self.wait(LOOK_S)
        places = asyncio.Semaphore(self._daemon.configuration.shutdown.at_once)
        await self._restore_services(self.services(), places)
        await self._wake_domains(failed_too)
        while again := [name for name, error in self.not_back.items() if error.code not in LASTING]:
            await asyncio.sleep(AGAIN_S)
            await self._restore_services(again, places)
        while any(is_of_shutdown(d) and (d.in_line_to_wake or d.waking) for d in self._daemon.host.workers):
            await self.wait(LOOK_S)  # each may still fail
        if self.not_back or self.sleepers():
            self._keep(list(self.not_back))
        else:
            self._records.forget()

    def _keep(self, services: list[str]) -> None:
        """Write down that everything is brought back in this boot, and which services are still to come."""
        record = replace(self._records.sleep() or NOTHING_SLEPT, services=services, woken_in=records.boot_id())
        try:
            self._records.keep(record)
        except OSError as error:
            log.error("a daemon that starts later tries again whatever cannot be restored now: %s", error)

    async def wait(self, longest_s: float) -> None:
        """Until a fact has changed, but not longer than `longest_s` and LOOK_S."""
        self._changed.clear()
        try:
            async with asyncio.timeout(min(LOOK_S, max(0.01, longest_s))):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _wake_domains(self, failed_too: bool) -> None:
        asked: set[str] = set() if failed_too else {d.name for d in self.sleepers() if d.down_why}
        while True:
            sleepers = [d for d in self.sleepers() if d.name not in asked]
            workers = self._daemon.host.workers
            if sleepers and sum(d.waking for d in workers) < self._daemon.configuration.shutdown.at_once:
                asked.add(sleepers[0].name)
                defrost(self._daemon, sleepers[0].name)
            elif sleepers or any(d.falls_asleep and is_of_shutdown(d) for d in workers):
                await self.wait(LOOK_S)
            else:
                return

    async def _restore_services(self, names: list[str], places: asyncio.Semaphore) -> None:
        await asyncio.gather(*(self._restore_service(name, places) for name in names))

    async def _restore_service(self, name: str, places: asyncio.Semaphore) -> None:
        """Try to bring a service back. A service that is up stays as it is."""
        async with places:
            try:
                await self._daemon.driver.boot(name)
            except DriverError as error:
                if name not in self.not_back:
                    log.error("service %s does not come back: %s", name, error)
                self.not_back[name] = error
            else:
                self.not_back.pop(name, None)
