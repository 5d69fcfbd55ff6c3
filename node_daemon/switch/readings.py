"""What the driver has said about each domain.

Rule 1: readings count in the order in which they were begun. An older one that arrives late is thrown away.
Rule 2: if a domain cannot be read, its last reading stands, provided that it was up then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from magrathea import supervision

from ..hypervisor.base import MEMORY, DomainReading, Driver, DriverError, Others


class DaemonForReadings(Protocol):
    """What the readings need of the daemon."""

    def driver_lost(self, why: str) -> None:
        """The hypervisor does not answer; the last readings are all that is known."""

    def driver_read(self, others: Others) -> None:
        """The hypervisor has answered."""


class Readings:
    """Asks the driver and keeps its last answer. `on_read` is called with each answer that counts."""

    def __init__(
        self, driver: Driver, daemon: DaemonForReadings, on_read: Callable[[Mapping[str, DomainReading]], None]
    ) -> None:
        self.driver = driver
        self._daemon = daemon
        self._on_read = on_read
        self.domains: dict[str, DomainReading] = {}
        self.number = 0
        """Which reading `domains` comes from. Readings are numbered as they are begun."""
        self.begun = 0
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def of(self, domain: str) -> DomainReading | None:
        return self.domains.get(domain)

    @property
    def has_movable_memory(self) -> bool:
        return MEMORY in self.driver.capabilities

    async def refresh(self) -> None:
        """Ask the driver. If it does not answer, report that to the daemon; the next refresh asks again."""
        self.begun = number = self.begun + 1
        try:
            read = await self.driver.actual()
        except DriverError as error:
            self._daemon.driver_lost(str(error))
            return
        if number < self.number:
            return
        self.domains, self.number = {name: self._as_known(name, one) for name, one in read.items()}, number
        self._daemon.driver_read(self.driver.others())
        self._on_read(read)

    def _as_known(self, name: str, now: DomainReading) -> DomainReading:
        before = self.domains.get(name)
        return now if now.known or before is None or not before.up else before

    def refresh_soon(self) -> None:
        """Ask the driver in the background; once more if it is just being asked."""
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = supervision.start(self._refresh_all())

    async def _refresh_all(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            await self.refresh()

    def note(self, domain: str, **changes: int | None) -> None:
        """A step has changed this, and the driver has confirmed it."""
        if (read := self.domains.get(domain)) is not None:
            self.domains[domain] = replace(read, **changes)  # type: ignore[arg-type]

    def note_memory(self, read: Mapping[str, DomainReading]) -> tuple[bool, bool]:
        """Take over what the driver has just said about memory. Returns whether any domain's memory has changed, and
        whether any domain has less than before."""
        known = {name: domain for name, domain in read.items() if name in self.domains and domain.known}
        changed = any(domain.memory_mib != self.domains[name].memory_mib for name, domain in known.items())
        shrunk = any((domain.memory_mib or 0) < (self.domains[name].memory_mib or 0) for name, domain in known.items())
        for name, domain in known.items():
            self.note(name, memory_mib=domain.memory_mib)
        return changed, shrunk

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
