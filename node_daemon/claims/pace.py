"""How often what a guest says is entered.

Entering it costs the host's one loop, and a write to disk that claims of siblings wait for. A guest decides how much it
says, so that has a bound.

Rule 1: of lists and reports only the newest counts (`Pace`).
Rule 2: claims, launches and ends change facts one after the other, and after each one other guests get their turn
(`Turns`). A guest that has used up its changes waits for the next one; nobody else waits for it. Its changes suffice
for what an honest guest does: end and start a job on each CPU of its host at once, and then five jobs a second and one
more in 30 s on each CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from magrathea.budget import Budget
from magrathea.logs import RationedLog

log = logging.getLogger(__name__)
defects = RationedLog(log)

LISTS_S = 2.0
"""For MoM's list, which comes every 15 s. It must not grow much older here than MoM's own hook lets it (LIST_AGE_S)."""
REPORTS_S = 1.0
"""For a report about memory, which comes every 10 s."""
CHANGES_PER_S, CHANGES_PER_CPU_S = 15.0, 0.1
"""Changes of facts by claims, launches and ends of one guest, for ever. A job makes three. The first is enough for five
jobs a second, the second, for each CPU of the host, for jobs of 30 s on all CPUs."""
CHANGES_BURST, CHANGES_PER_CPU = 100.0, 4.0
"""And so many at once: each CPU may end a job and start another one, which makes three changes."""
UNCHANGED = 0.1
"""What a request counts that changes no fact: it costs no write."""
JOBS_PER_CHANGE = 512
"""With more jobs than this in its domain, a change counts as several: each writes them all, 600 bytes for each job."""


class Turns:
    """Lets each guest change facts when its turn comes. `cpus`: of the host."""

    def __init__(self, cpus: Callable[[], int]) -> None:
        self._cpus = cpus
        self._guests: dict[str, tuple[asyncio.Lock, Budget]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, domain: str) -> AsyncIterator[Callable[[float], None]]:
        """Wait for the domain's turn. The caller gets a function, and calls it with the number of its changes.

        The turns of one domain come in the order in which they were asked for. After the wait nothing is awaited here:
        a time limit either ends the wait, or comes too late.
        """
        lock, budget = self._of(domain)
        loop = asyncio.get_running_loop()
        async with lock:
            while wait_s := budget.wait_s(loop.time()):
                await asyncio.sleep(wait_s + 0.001)  # rounded up: a sleep may end a little early
            await asyncio.sleep(0)  # what others have asked in the meantime comes first
            yield budget.spend

    def spend(self, domain: str, changes: float) -> None:
        """Count changes that waited for no turn."""
        self._of(domain)[1].spend(changes)

    def _of(self, domain: str) -> tuple[asyncio.Lock, Budget]:
        if domain not in self._guests:
            per_s = CHANGES_PER_S + CHANGES_PER_CPU_S * self._cpus()
            burst = CHANGES_BURST + CHANGES_PER_CPU * self._cpus()
            budget = Budget(per_s, burst, asyncio.get_running_loop().time())
            self._guests[domain] = asyncio.Lock(), budget
        return self._guests[domain]


class Pace:
    """Enters one report of each domain in `every_s`: the first one at once, of the others the newest when it may.

    A report is a function that returns False if it changed nothing; then the next one may be entered at once.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._newest: dict[str, Callable[[], bool]] = {}

    def enter(self, domain: str, report: Callable[[], bool]) -> None:
        """Call `report` now, or later if it is the newest then."""
        if domain in self._timers:
            self._newest[domain] = report
            return
        changed = True
        try:
            changed = report()
        finally:
            if changed:
                self._timers[domain] = asyncio.get_running_loop().call_later(self._every_s, self._due, domain)

    def lost(self, domain: str) -> None:
        """The guest is gone. What it has reported and was not entered no longer counts."""
        self._newest.pop(domain, None)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._newest.clear()

    def _due(self, domain: str) -> None:
        del self._timers[domain]
        if (report := self._newest.pop(domain, None)) is None:
            return
        try:
            self.enter(domain, report)
        except Exception as defect:  # noqa: BLE001  a door (supervision.py)
            defects.say(domain, f"{domain}: a report of its agent met a defect", defect, logging.ERROR)
