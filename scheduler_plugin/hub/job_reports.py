"""Decides which reports about a job count: PBS itself must have that run of the job on a vnode of the reporting host.

Rule 1: no clock and no I/O.
Rule 2: hosts, and guests through them, can name any job. Their report changes nothing until PBS has been asked about
the job. The farm (farm.py) brings PBS's answer and decides which host owns a vnode.
Rule 3: PBS is asked only if a report would change something. Each question is taken from the share of the host and the
vnode that cause it (shares.py). The same holds for the suspensions that a host may cause: each is a call to MoM,
followed by a resume and two comments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from magrathea.core.model import JobClass, JobKey, State
from magrathea.messages import JobReport, Snapshot
from scheduler_plugin.pbs.base import PbsJob

from .due_times import DueTimes
from .shares import Cause, Shares

PER_S = 20.0
BURST = 4096.0
"""The most jobs that a domain can have (MAX_JOBS of the agent's parts.py). When the domain is preempted, each needs one
question and one suspension. A host that lies can cause as much work once, then PER_S on average."""
OWN_BURST = 64.0
"""The questions and suspensions that are left for a domain after its siblings have used up their host's share."""
AGAIN_FIRST_S, AGAIN_MOST_S = 0.5, 60.0
"""Pauses between questions about one job. Another question may help: PBS had failed, or a vnode has a new owner."""
MOST_DARK = 8192
"""How many jobs of switched-off domains are remembered for each host until PBS is asked. The hub forgets further ones;
PBS itself notices that their MoMs are gone."""

Speaks = Callable[[str, str], bool]
"""True if this host may speak of that vnode."""


def _is(job: PbsJob, key: JobKey) -> bool:
    """True if PBS's answer is about this run of this job. PBS also answers to other names of a job."""
    return job.id == key.id and job.is_run(key.run)


def is_given(key: JobKey, vnode: str, job: PbsJob | None) -> bool:
    """True if PBS has given this run of the job to the vnode. `job`: PBS's answer to the job's id."""
    return job is not None and _is(job, key) and vnode in job.vnodes


@dataclass(frozen=True)
class SeenJob:
    """What PBS had under a job's id at that time."""

    job: PbsJob | None
    at: float

    @cached_property
    def vnodes(self) -> frozenset[str]:
        return frozenset(self.job.vnodes) if self.job else frozenset()


class JobReports:
    """The job reports of the hosts' last snapshots, by job, host and vnode."""

    def __init__(self) -> None:
        self._reports: dict[JobKey, dict[str, dict[str, JobReport]]] = {}
        self._dark: dict[JobKey, dict[str, tuple[str, float]]] = {}
        """For each job and host: the vnode, and when its domain was reported as off."""
        self._dark_of: Counter[str] = Counter()

    def take(self, before: Snapshot | None, after: Snapshot, now: float) -> set[JobKey]:
        """Replace a host's reports. Returns the jobs that it reported before or reports now.

        A host has one run of a job: if it reports several, only the newest is taken.
        """
        host = after.host
        off = {domain.name for domain in after.domains if domain.state is State.DOWN}
        concerned: set[JobKey] = set()
        for domain in before.domains if before else ():
            for job in domain.jobs:
                key = JobKey(job.id, job.run)
                concerned.add(key)
                if (by_host := self._reports.get(key)) is not None:
                    by_host.pop(host, None)
                    if not by_host:
                        del self._reports[key]
                if domain.name in off:
                    self._goes_dark(host, key, domain.vnode, now)
        newest: dict[str, int] = {}
        for domain in after.domains:
            for job in domain.jobs:
                newest[job.id] = max(job.run, newest.get(job.id, job.run))
        for domain in after.domains:
            for job in domain.jobs:
                if job.run < newest[job.id]:
                    continue
                key = JobKey(job.id, job.run)
                concerned.add(key)
                self._reports.setdefault(key, {}).setdefault(host, {})[domain.vnode] = job
        return concerned

    def __contains__(self, key: JobKey) -> bool:
        return key in self._reports

    def __iter__(self) -> Iterator[JobKey]:
        return iter(self._reports)

    def hosts(self, key: JobKey) -> Collection[str]:
        """The hosts that report the job, even if their reports do not count."""
        return self._reports.get(key, {}).keys()

    def vnodes(self, key: JobKey, host: str) -> Collection[str]:
        """The vnodes on which this host reports the job, even if its reports do not count."""
        return self._reports.get(key, {}).get(host, {}).keys()

    def known(self, keys: set[JobKey]) -> set[JobKey]:
        """Those of `keys` that a host reports, or has reported in a domain that went off."""
        return {key for key in keys if key in self._reports or key in self._dark}

    def counted(self, key: JobKey, job: PbsJob | None, speaks: Speaks) -> dict[str, JobReport]:
        """The reports that count, by host. If a host has several parts of the job: the one with the strongest demand.

        `job`: what PBS has.
        """
        if job is None or not _is(job, key):
            return {}
        found: dict[str, JobReport] = {}
        here = frozenset(job.vnodes)
        for host, parts in self._reports.get(key, {}).items():
            own = [report for vnode, report in parts.items() if vnode in here and speaks(host, vnode)]
            if own:
                found[host] = min(own, key=lambda report: (not report.stop, report.ready))
        return found

    def asking(self, key: JobKey, counted: Collection[str]) -> set[Cause]:
        """Hosts whose report would change something but does not count yet, and the vnodes on which they report it.

        `counted`: hosts whose report counts.
        """
        parts = self._reports.get(key, {}).items()
        wanting = {
            (host, vnode)
            for host, found in parts
            if host not in counted
            for vnode, report in found.items()
            if report.stop or report.booked or report.requeue
        }
        return wanting | {(host, vnode) for host, (vnode, _) in self._dark.get(key, {}).items()}

    def by_id(self) -> dict[str, list[JobKey]]:
        """All reported jobs by their ids."""
        found: dict[str, list[JobKey]] = {}
        for key in self._reports:
            found.setdefault(key.id, []).append(key)
        return found

    def is_preemptible(self, key: JobKey, job: PbsJob, speaks: Speaks) -> bool:
        return any(report.cls is JobClass.PREEMPTIBLE for report in self.counted(key, job, speaks).values())

    def touchable(
        self, job: PbsJob, keys: Iterable[JobKey], speaks: Speaks, entries: Container[JobKey]
    ) -> JobKey | None:
        """The job's key if the hub may suspend it for a moment: it is preemptible, keeps nothing and has no entry."""
        for key in keys:
            reports = self.counted(key, job, speaks).values()
            if reports and key not in entries:
                return key if all(r.cls is JobClass.PREEMPTIBLE and not (r.stop or r.keeps) for r in reports) else None
        return None

    # Jobs of domains that went off. When their MoM comes back without such a job, it reports nothing about it to PBS.

    def _goes_dark(self, host: str, key: JobKey, vnode: str, now: float) -> None:
        if self._dark_of[host] < MOST_DARK:
            by_host = self._dark.setdefault(key, {})
            self._dark_of[host] += host not in by_host
            by_host[host] = (vnode, now)

    def went_dark(self, key: JobKey, job: PbsJob | None, seen_at: float, speaks: Speaks) -> bool:
        """True if PBS has that run on a vnode of a host that reported its domain as off. Uses up that report.

        `seen_at`: when PBS was asked. If that was after the report and PBS has no such run there, the report goes.
        """
        true = False
        by_host = self._dark.get(key, {})
        for host, (vnode, at) in list(by_host.items()):
            here = job is not None and _is(job, key) and vnode in job.vnodes and speaks(host, vnode)
            if here or seen_at >= at:
                del by_host[host]
                self._dark_of[host] -= 1
            true = true or here
        if not by_host:
            self._dark.pop(key, None)
        return true


class Questions:
    """Decides when to ask PBS about a job whose reports do not count yet."""

    def __init__(self) -> None:
        self._shares = Shares(PER_S, BURST, OWN_BURST)
        self.due = DueTimes()
        """When to ask again about which job."""
        self._next: dict[JobKey, tuple[float, float]] = {}
        """For each job the same, and the pause after that."""

    def ask(self, key: JobKey, causes: Collection[Cause], now: float) -> bool:
        """True if PBS should be asked now because of these; without causes there is nothing to ask."""
        if not causes:
            self._next.pop(key, None)
            self.due.drop(key)
            return False
        at, pause_s = self._next.get(key, (now, AGAIN_FIRST_S))
        if now < at:
            return False
        asked = self._shares.take(causes, now)
        self._next[key] = (
            (now + pause_s, min(AGAIN_MOST_S, 2 * pause_s)) if asked else (now + AGAIN_MOST_S / 10, pause_s)
        )
        self.due.set(key, self._next[key][0])
        return asked
