"""What hosts say of jobs that their owners should see in `qstat`: why a start was refused, and for what one waits.

A job whose prologue waits for memory gets its comment when it begins to wait, then at most every TOLD_AGAIN_S, and when
it is over. A refused start is explained once for each run.

Each comment is a question and a call to PBS, so a host may cause PER_S of them, and BURST at once. What is over that is
left out: then the job keeps the comment that PBS gave it.
"""

from __future__ import annotations

from magrathea.budget import Budget
from magrathea.core.model import JobKey
from magrathea.messages import Snapshot
from magrathea.text import printable

TOLD_AGAIN_S = 10.0
OVER = "magrathea: its memory is there"
PER_S = 4.0
BURST = 64.0
MOST = 250
"""Characters of a comment; PBS's own are shorter."""


class JobComments:
    """The refused and the waiting jobs of all hosts, and when the comment of each was last set."""

    def __init__(self) -> None:
        self._refused: dict[str, frozenset[JobKey]] = {}
        self._waiting: dict[str, dict[JobKey, float]] = {}
        self._budgets: dict[str, Budget] = {}
        self._refused_due: dict[JobKey, str] = {}
        self._waiting_due: dict[JobKey, str] = {}

    def heard(self, snapshot: Snapshot, now: float) -> None:
        budget = self._budgets.setdefault(snapshot.host, Budget(PER_S, BURST, now))
        self._refusals(snapshot, now, budget)
        self._waits(snapshot, now, budget)

    def _refusals(self, snapshot: Snapshot, now: float, budget: Budget) -> None:
        known = self._refused.get(snapshot.host, frozenset())
        for refused in snapshot.refused:
            key = JobKey(refused.id, refused.run)
            if key not in known and budget.take(now):
                self._refused_due[key] = comment(f"{refused.code}: {refused.text}; tried again soon")
        self._refused[snapshot.host] = frozenset(JobKey(r.id, r.run) for r in snapshot.refused)

    def _waits(self, snapshot: Snapshot, now: float, budget: Budget) -> None:
        told = self._waiting.get(snapshot.host, {})
        waiting: dict[JobKey, float] = {}
        for job in (job for domain in snapshot.domains for job in domain.jobs):
            key = JobKey(job.id, job.run)
            if job.waits:
                if key in told and now - told[key] < TOLD_AGAIN_S:
                    waiting[key] = told[key]
                elif budget.take(now):
                    waiting[key] = now
                    self._waiting_due[key] = comment(job.waits)
            elif key in told:
                if budget.take(now):
                    self._waiting_due[key] = OVER
                else:
                    waiting[key] = told[key]  # tried again with the host's next snapshot
        self._waiting[snapshot.host] = waiting

    def refused_due(self) -> dict[JobKey, str]:
        """Comments of jobs that were refused, each once: to be set as soon as PBS has the job back from its MoM."""
        due, self._refused_due = self._refused_due, {}
        return due

    def waiting_due(self) -> dict[JobKey, str]:
        """Comments of jobs that have been started, each once."""
        due, self._waiting_due = self._waiting_due, {}
        return due


def comment(text: str) -> str:
    """A comment with a host's words in it: one line of ASCII."""
    line = f"magrathea: {' '.join(text.split())}"
    return printable(line).encode("ascii", "backslashreplace").decode()[:MOST]
