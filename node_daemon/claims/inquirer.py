"""Asks hubs about jobs for which no claim waits (inquiries.py), and makes the answers facts.

Rule 1: questions have a rate. A guest decides how many jobs it lists.
Rule 2: answers are entered together, because each event is a write to disk that claims of siblings may wait for.
Rule 3: if no hub can say about one job of a domain, it is not asked about the next one. If none even answers, about no
other.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from magrathea import supervision
from magrathea.budget import Budget
from magrathea.core import events as ev
from magrathea.core.model import Host, JobKey
from magrathea.logs import RationedLog

from .confirmation import Mark
from .inquiries import Inquiries, Verdict
from .pbs_says import PbsSays

log = logging.getLogger(__name__)
limited_log = RationedLog(log)

PER_S, BURST = 4.0, 96.0
"""Questions of this host, on average and at once: a little less than a hub takes (the hub's placements.py)."""
TOGETHER, TOGETHER_S = 32, 2.0
"""So many answers are entered at once, and those of this time."""
ANSWER_S = 5.0
"""A hub has that long to answer."""
BEFORE_WAKE_S = 5.0
"""A domain that wakes waits so long for the answers about its jobs."""
LOOK_S = 0.2
"""Shortest time between two looks at what is due."""
IDLE_S = 600.0


class DaemonForInquiries(Protocol):
    """What the inquirer needs of the daemon."""

    @property
    def host(self) -> Host: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        """Whether PBS has given the job to the domain. It has if all hubs are too old to be asked."""
        ...


class Inquirer:
    def __init__(self, daemon: DaemonForInquiries, inquiries: Inquiries) -> None:
        self._daemon = daemon
        self._inquiries = inquiries
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = supervision.start(self._run())

    def look_soon(self) -> None:
        """A fact has changed: there may be something to ask."""
        self._changed.set()

    async def ask_before_wake(self, name: str) -> None:
        """Ask about all jobs of a domain that comes back from its sleep, and remove those that PBS no longer has there:
        nobody has told, and they would continue for a moment before MoM kills them.

        A suspended job neither starts nor ends by itself, so one no is enough. No answer is no no.
        """
        daemon = self._daemon
        domain = daemon.host.domain(name)
        until = asyncio.get_running_loop().time() + BEFORE_WAKE_S
        denied: list[JobKey] = []
        for job in domain.jobs if domain is not None else ():
            left_s = until - asyncio.get_running_loop().time()
            said = await daemon.given(name, job.key, left_s) if left_s > 0 else None
            if said is None or said.given is None:
                log.warning("%s wakes, and no hub could ask PBS about %s: it continues in any case", name, job.key)
                break
            if not said.given:
                denied.append(job.key)
        if denied:
            log.info("%s wakes: PBS no longer has there: %s", name, ", ".join(map(str, denied)))
            daemon.apply(ev.JobsDenied(daemon.now(), name, tuple(denied)))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop, daemon = asyncio.get_running_loop(), self._daemon
        budget = Budget(PER_S, BURST, loop.time())
        while True:
            self._changed.clear()
            marks = self._inquiries.due(daemon.host, daemon.now(), TOGETHER)
            if marks:
                await self._ask(marks, budget)
                await asyncio.sleep(LOOK_S)
                continue
            wait_s = max(LOOK_S, min(IDLE_S, self._inquiries.next_at(daemon.host) - daemon.now()))
            await asyncio.sleep(LOOK_S)
            try:
                async with asyncio.timeout(wait_s - LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _ask(self, marks: list[Mark], budget: Budget) -> None:
        """Ask about these jobs, and enter what is said."""
        loop, daemon = asyncio.get_running_loop(), self._daemon
        given: dict[str, list[ev.GivenJob]] = {}
        denied: dict[str, list[JobKey]] = {}
        unknown: set[str] = set()
        began = loop.time()
        for mark in marks:
            domain, key = mark
            if domain in unknown:
                continue
            if loop.time() > began + TOGETHER_S:
                break
            while not budget.take(loop.time()):
                await asyncio.sleep(1.0 / PER_S)
            asked_at = loop.time()
            said = await daemon.given(domain, key, ANSWER_S, claim=False)
            match self._inquiries.answered(daemon.host, mark, said.given, daemon.now()):
                case Verdict.GIVEN:
                    size = (said.size.cpus, said.size.mib) if said.size is not None else (None, None)
                    given.setdefault(domain, []).append(ev.GivenJob(key, *size))
                case Verdict.DENIED:
                    denied.setdefault(domain, []).append(key)
            if said.given is None:
                limited_log.say("hub", f"{domain}: no hub could ask PBS about {key}; it counts until one can")
                unknown.add(domain)
                if loop.time() - asked_at > ANSWER_S / 2:
                    break
        for domain, jobs in given.items():
            daemon.apply(ev.JobsGiven(daemon.now(), domain, tuple(jobs)))
        for domain, noes in denied.items():
            keys = self._inquiries.to_remove(daemon.host, domain, noes, daemon.now())
            named = ", ".join(map(str, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            limited_log.say(domain, f"{domain}: PBS does not have there: {named}; these jobs count no longer")
            daemon.apply(ev.JobsDenied(daemon.now(), domain, keys))
