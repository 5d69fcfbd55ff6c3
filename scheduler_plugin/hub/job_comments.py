"""Comments that the owners of jobs see in `qstat`: why a start was refused, or what a job waits for.

If a job's prologue waits for memory, the job gets a comment when the wait begins, then at most every TOLD_AGAIN_S, and
when the wait is over. A refused start is explained once for each run.

A host may comment only on a job that PBS itself has on a vnode of that host, or had when it was refused.
job_actions.py checks this, because it reads the job in any case.

Each comment costs PBS a question and a call. So a host may cause PER_S of them in a second, and BURST at once. After
that each of its vnodes has a small share of its own (shares.py), so that no guest uses up its siblings' comments.
Further ones are left out; then the job keeps the comment that PBS gave it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from magrathea.core.model import JobKey
from magrathea.messages import DomainReport, Snapshot
from magrathea.text import one_line

from .shares import Shares

TOLD_AGAIN_S = 10.0
OVER = "its memory is there"
PER_S = 4.0
BURST = 64.0
OWN_BURST = 8.0
"""Of one vnode, when its host's share is used up."""
MOST = 250
"""Longest comment in characters; PBS's own are shorter."""


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment for a job on one of `vnodes`."""

    text: str
    vnodes: frozenset[str]


class JobComments:
    """The refused and the waiting jobs of all hosts, and when the comment of each was last set."""

    def __init__(self) -> None:
        self._refused: dict[str, frozenset[JobKey]] = {}
        self._waiting: dict[str, dict[JobKey, float]] = {}
        self._shares = Shares(PER_S, BURST, OWN_BURST)
        self._refused_due: dict[JobKey, Comment] = {}
        self._waiting_due: dict[JobKey, Comment] = {}

    def heard(self, snapshot: Snapshot, own: Container[str], now: float) -> None:
        """Note what a snapshot reports about refused and waiting jobs. `own`: the vnodes of PBS that the host may
        report."""
        domains = [domain for domain in snapshot.domains if domain.vnode in own]
        self._refusals(snapshot, {domain.name: domain.vnode for domain in domains}, now)
        self._waits(snapshot.host, domains, now)

    def _may(self, host: str, vnode: str, now: float) -> bool:
        return self._shares.take([(host, vnode)], now)

    def _refusals(self, snapshot: Snapshot, vnodes: Mapping[str, str], now: float) -> None:
        known = self._refused.get(snapshot.host, frozenset())
        for refused in snapshot.refused:
            key, vnode = JobKey(refused.id, refused.run), vnodes.get(refused.domain)
            if key not in known and vnode is not None and self._may(snapshot.host, vnode, now):
                text = f"{refused.code}: {refused.text}; tried again soon"
                self._refused_due[key] = comment(text, vnode)
        self._refused[snapshot.host] = frozenset(JobKey(r.id, r.run) for r in snapshot.refused)

    def _waits(self, host: str, domains: Iterable[DomainReport], now: float) -> None:
        told = self._waiting.get(host, {})
        waiting: dict[JobKey, float] = {}
        for vnode, job in ((domain.vnode, job) for domain in domains for job in domain.jobs):
            key = JobKey(job.id, job.run)
            if job.waits:
                if key in told and now - told[key] < TOLD_AGAIN_S:
                    waiting[key] = told[key]
                elif self._may(host, vnode, now):
                    waiting[key] = now
                    self._waiting_due[key] = comment(job.waits, vnode)
            elif key in told:
                if self._may(host, vnode, now):
                    self._waiting_due[key] = comment(OVER, vnode)
                else:
                    waiting[key] = told[key]  # try again with the host's next snapshot
        self._waiting[host] = waiting

    def refused_due(self) -> dict[JobKey, Comment]:
        """New comments of refused jobs, each returned once. Set them as soon as PBS has the job back from its MoM."""
        due, self._refused_due = self._refused_due, {}
        return due

    def waiting_due(self) -> dict[JobKey, Comment]:
        """New comments of started jobs, each returned once."""
        due, self._waiting_due = self._waiting_due, {}
        return due


def comment(text: str, vnode: str) -> Comment:
    return Comment(one_line(f"magrathea: {text}", MOST), frozenset({vnode}))
