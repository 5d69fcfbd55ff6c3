"""Whether PBS has given a job to the domain whose guest claims it.

Rule 1: what a guest says about a job costs its siblings nothing until a hub has asked PBS. Which claims need that is
decided in the core (`allocation.costs_siblings`); all others are granted, and PBS is asked afterwards (inquiries.py).
Rule 2: half of the questions that the hubs answer to this host are for all domains, half are divided among them. A
guest that claims jobs that are not there leaves each sibling its share, and an honest one may start many jobs at once.
Rule 3: a hub of the release before this one cannot be asked. Then claims are granted as that release granted them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple, Protocol

from magrathea.budget import Budget
from magrathea.core.model import Amount, Host, JobKey
from magrathea.deadlines import CONFIRM_S
from magrathea.logs import RationedLog

from .pbs_says import PbsSays

log = logging.getLogger(__name__)
limited_log = RationedLog(log)

QUESTIONS_PER_S, QUESTIONS_BURST = 20.0, 256.0
"""How many questions about jobs a hub asks PBS for one host: on average, and at once (the hub's job_parts.py). The
domains divide half of them."""

Mark = tuple[str, JobKey]


class Given(Enum):
    """The answer about a claimed job."""

    YES = auto()
    NO = auto()
    UNKNOWN = auto()
    """No hub could ask PBS in time."""
    TOO_MANY = auto()
    """The domain has used up its questions, and those that are for all."""
    WITHDRAWN = auto()
    """The claim was taken back meanwhile."""


class Confirmed(NamedTuple):
    """An answer, and if it is YES what PBS has given the job; None if that is unknown."""

    answer: Given
    size: Amount | None = None


class DaemonForQuestions(Protocol):
    """What questions need of the daemon."""

    @property
    def host(self) -> Host: ...

    async def given(self, domain: str, key: JobKey, within_s: float) -> PbsSays:
        """Whether PBS has given the job to the domain. It has if all hubs are too old to be asked."""
        ...


class Confirmation:
    """Asks for claims that wait for the answer."""

    def __init__(self, daemon: DaemonForQuestions) -> None:
        self._daemon = daemon
        self._budgets: dict[str, tuple[int, Budget]] = {}
        self._for_all: Budget | None = None
        self._waiting: Counter[Mark] = Counter()
        self._withdrawn: set[Mark] = set()

    def withdraw(self, mark: Mark) -> None:
        """The claim is taken back. If it waits for an answer, it is not granted any more."""
        if mark in self._waiting:
            self._withdrawn.add(mark)

    async def given(self, mark: Mark) -> Confirmed:
        domain, key = mark
        if not self._may_ask(domain):
            return Confirmed(Given.TOO_MANY)
        with self._wait(mark):
            said = await self._daemon.given(domain, key, CONFIRM_S)
            if mark in self._withdrawn:
                return Confirmed(Given.WITHDRAWN)
        if said.given is None:
            return Confirmed(Given.UNKNOWN)
        return Confirmed(Given.YES, said.size) if said.given else Confirmed(Given.NO)

    @contextlib.contextmanager
    def _wait(self, mark: Mark) -> Iterator[None]:
        self._waiting[mark] += 1
        try:
            yield
        finally:
            self._waiting[mark] -= 1
            if not self._waiting[mark]:
                del self._waiting[mark]
                self._withdrawn.discard(mark)

    def _may_ask(self, domain: str) -> bool:
        """Take one of the domain's questions, or one of those for all. False if none is left."""
        now, shares = asyncio.get_running_loop().time(), 2 * len(self._daemon.host.workers)
        if self._for_all is None:
            self._for_all = Budget(QUESTIONS_PER_S / 2, QUESTIONS_BURST / 2, now)
        known = self._budgets.get(domain)
        if known is None or known[0] != shares:
            share = Budget(QUESTIONS_PER_S / shares, max(1.0, QUESTIONS_BURST / shares), now)
            known = self._budgets[domain] = (shares, share)
        return known[1].take(now) or self._for_all.take(now)
