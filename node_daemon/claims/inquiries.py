"""Which jobs of a host PBS is asked about although no claim waits for it, and what follows from the answers.

A guest claims and lists what it likes. Claims that cost a sibling something wait for PBS (confirmation.py). All other
jobs count at once, and PBS is asked afterwards: whether it has given them to the domain, and with which size.

Rule 1: no clock and no I/O. The caller (inquirer.py) asks, and makes the answers facts.
Rule 2: a job that PBS has not given is asked about soon, one that it has given from time to time, because it may have
ended there. While jobs of siblings are stopped, that is more often. So it is for a domain that sleeps: nothing of its
own tells that its job was deleted, and what was deleted must not continue when it wakes.
Rule 3: only two noes in a row count, and no answer is no no. A job that starts or ends at this moment is not lost.
Rule 4: a guest that was caught is not believed for a while. Its claims wait for PBS, and so do the jobs of its lists,
also those that count already but that PBS has not given. Otherwise it could always take CPUs with the next job that
does not exist.
Rule 5: domains take turns, so that the jobs of one do not delay the answers about those of others.
Rule 6: while no hub answers, nothing is asked and everybody is believed. What PBS has denied stays out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from magrathea.core.model import Domain, Host, Job, JobClass, JobKey

from .confirmation import Mark

YOUNG_S = 1.0
"""A job that has just been claimed is not asked about yet: many end soon. One of a priority domain is, because its
domain may linger after it."""
AGAIN_S, GIVEN_AGAIN_S = 3.0, 5.0
"""After the first no: for a job that PBS has never given, and for one that it had given."""
UNKNOWN_S, UNKNOWN_MOST_S = 5.0, 60.0
"""If no hub could say: doubled each time, up to the second."""
CHECK_S, CHECK_STOPPED_S = 300.0, 10.0
"""A job that PBS has given is asked about again after this time, the second while jobs of siblings are stopped, or the
domain sleeps."""
DENIED_S = 300.0
"""A job that PBS has denied and that is still listed is asked about again after this time."""
DISTRUST_S = 600.0
"""For so long a guest is not believed after PBS has denied a job that it had claimed or listed."""
MOST_DENIED = 8192
"""Denied jobs of one domain that are remembered: more than a list can have."""
REMEMBER_S = 60.0
"""A denied job that is not listed is forgotten after this time. The core remembers it as long by itself."""


class Verdict(Enum):
    """What follows from an answer."""

    NOTHING = auto()
    GIVEN = auto()
    DENIED = auto()


@dataclass(slots=True)
class _Asked:
    """The questions about one job. `last`: when it was asked about. `noes`: in a row. `unknown`: the last time no hub
    could say; then `pause_s` is the pause after it."""

    last: float
    pause_s: float = UNKNOWN_S
    noes: int = 0
    unknown: bool = False


@dataclass(slots=True)
class _Guest:
    """`denied`: what PBS has denied, and when. `doubted`: listed jobs that wait for an answer. `vouched`: those among
    them that PBS has given. `listed_at`: when the guest has listed jobs last. `turn`: when it was asked about last."""

    denied: dict[JobKey, float] = field(default_factory=dict)
    doubted: frozenset[JobKey] = frozenset()
    vouched: set[JobKey] = field(default_factory=set)
    distrusted_until: float = -math.inf
    listed_at: float = -math.inf
    turn: float = -math.inf


def _runs(job: Job) -> bool:
    """True if the guest says so: it has seen a process of the job, or its MoM lists it."""
    return job.launched or job.confirmed


class Inquiries:
    def __init__(self) -> None:
        self._guests: dict[str, _Guest] = {}
        self._asked: dict[Mark, _Asked] = {}

    def is_trusted(self, host: Host, domain: str, now: float) -> bool:
        """False if PBS must be asked before anything counts that this guest says about a new job."""
        guest = self._guests.get(domain)
        return host.hub_lost or guest is None or now >= guest.distrusted_until

    def left_out(self, host: Host, domain: str, listed: Collection[JobKey], now: float) -> frozenset[JobKey]:
        """Those of the listed jobs that do not count: PBS has denied them, or is asked first."""
        guest, found = self._guests.get(domain), host.domain(domain)
        if guest is None or found is None:
            return frozenset()
        here = frozenset(listed)
        old = now - REMEMBER_S
        guest.denied = {key: at for key, at in guest.denied.items() if key in here or at > old}
        guest.vouched &= here
        new = frozenset(key for key in here if found.job(key) is None)
        doubted = new & (guest.denied.keys() | guest.doubted) if self.is_trusted(host, domain, now) else new
        guest.doubted, guest.listed_at = doubted - guest.vouched, now
        return guest.doubted

    def due(self, host: Host, now: float, most: int) -> list[Mark]:
        """The jobs to ask about now, at most so many; domains take turns."""
        if host.hub_lost:
            return []
        self._forget(host)
        for guest in self._guests.values():
            if now > guest.listed_at + REMEMBER_S:
                guest.doubted = frozenset()
        lines = {d.name: iter(self._line(host, d, now)) for d in host.workers}
        chosen: list[Mark] = []
        while lines and len(chosen) < most:
            name = min(lines, key=lambda n: (self._guest(n).turn, n))
            if (key := next(lines[name], None)) is None:
                del lines[name]
                continue
            self._guest(name).turn = now + len(chosen) * 1e-6  # so that each has its turn in this round, too
            chosen.append((name, key))
        return chosen

    def next_at(self, host: Host) -> float:
        """When something is due; infinite if nothing will be until the facts change."""
        if host.hub_lost:
            return math.inf
        self._forget(host)
        return min((at for d in host.workers for at, _ in self._times(host, d)), default=math.inf)

    def _line(self, host: Host, domain: Domain, now: float) -> list[JobKey]:
        """The domain's jobs that are due, in their order.

        First those that PBS has denied once, so that a guest is caught soon, and last those that PBS has given before:
        on a big host they are always more than may be asked about.
        """
        due = []
        for at, key in self._times(host, domain):
            if at <= now:
                asked, job = self._asked.get((domain.name, key)), domain.job(key)
                denied_once = asked is not None and asked.noes > 0
                due.append((not denied_once, job is not None and job.given, at, key))
        return [key for *_, key in sorted(due)]

    def _times(self, host: Host, domain: Domain) -> Iterator[tuple[float, JobKey]]:
        """For each job: when to ask about it."""
        others = any(d.stopped for d in host.workers if d.name != domain.name)
        often = others or domain.sleep is not None
        for job in domain.jobs:
            yield self._at(domain.name, job, CHECK_STOPPED_S if often else CHECK_S), job.key
        guest = self._guests.get(domain.name)
        for key in guest.doubted if guest else ():
            if domain.job(key) is None:
                yield self._at_doubted(domain.name, key), key

    def _at(self, domain: str, job: Job, check_s: float) -> float:
        asked = self._asked.get((domain, job.key))
        if asked is None:
            young_s = YOUNG_S if job.cls is not JobClass.PRIORITY else 0.0
            return job.claimed_at + (check_s if job.given else young_s)
        if asked.unknown:
            return asked.last + asked.pause_s
        if asked.noes:
            return asked.last + (GIVEN_AGAIN_S if job.given else AGAIN_S)
        return asked.last + (check_s if job.given else YOUNG_S)

    def _at_doubted(self, domain: str, key: JobKey) -> float:
        asked = self._asked.get((domain, key))
        if asked is None:
            return -math.inf
        return asked.last + (asked.pause_s if asked.unknown else DENIED_S)

    def answered(self, host: Host, mark: Mark, given: bool | None, now: float) -> Verdict:
        """Take PBS's answer about the job; None if no hub could say."""
        asked = self._asked.setdefault(mark, _Asked(now))
        asked.last = now
        if given is None:
            asked.pause_s = min(UNKNOWN_MOST_S, 2 * asked.pause_s) if asked.unknown else UNKNOWN_S
            asked.unknown = True
            return Verdict.NOTHING
        asked.unknown = False
        domain, key = mark
        found = host.domain(domain)
        job = found.job(key) if found else None
        if given:
            asked.noes = 0
            self._vouch(domain, key)
            return Verdict.GIVEN  # also of a job that was removed: then it may come back
        asked.noes += 1
        if asked.noes < 2 and job is not None:
            return Verdict.NOTHING
        asked.noes = 0
        self._deny(mark, now, was_given=job is not None and job.given)
        return Verdict.NOTHING if job is None else Verdict.DENIED

    def to_remove(self, host: Host, domain: str, denied: Collection[JobKey], now: float) -> tuple[JobKey, ...]:
        """All of the domain's jobs that count no longer, now that PBS has denied these. `Inquiries` asks about them.

        A list can have thousands of them. A claim of a priority or preemptible job found room, so there are few. Nor
        does a claim take others away as long as nobody has said that its job runs: PBS takes a job back if another hook
        rejects it, or if MoM cannot start it, and no event may tell.
        """
        found = host.domain(domain)
        if found is None or self.is_trusted(host, domain, now):
            return tuple(denied)
        ran = any(_runs(job) for job in found.jobs if job.key in denied)
        young = (j for j in found.jobs if not j.given and j.cls is JobClass.PROTECTED)
        doubtful = {j.key for j in young if ran or not _runs(j)}
        guest = self._guest(domain)
        guest.doubted, guest.listed_at = guest.doubted | (doubtful - frozenset(denied)), now
        return tuple(sorted(doubtful | frozenset(denied)))

    def _vouch(self, domain: str, key: JobKey) -> None:
        guest = self._guest(domain)
        guest.denied.pop(key, None)
        if key in guest.doubted:
            guest.vouched.add(key)
            guest.doubted -= {key}

    def _deny(self, mark: Mark, now: float, *, was_given: bool) -> None:
        domain, key = mark
        guest = self._guest(domain)
        guest.denied[key] = now
        if len(guest.denied) > MOST_DENIED:
            del guest.denied[next(iter(guest.denied))]
        if not was_given:  # a job that has ended may be listed by a MoM that has not heard of it
            guest.distrusted_until = now + DISTRUST_S

    def _forget(self, host: Host) -> None:
        """Forget the questions about jobs that are gone."""
        names = {d.name for d in host.workers}
        self._guests = {name: guest for name, guest in self._guests.items() if name in names}
        there = {(d.name, job.key) for d in host.workers for job in d.jobs}
        there |= {(name, key) for name, guest in self._guests.items() for key in guest.doubted}
        self._asked = {mark: asked for mark, asked in self._asked.items() if mark in there}

    def _guest(self, domain: str) -> _Guest:
        return self._guests.setdefault(domain, _Guest())
