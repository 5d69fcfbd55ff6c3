"""What the comment of a job says whose prologue waits for its memory, so that `qstat` shows why it has not begun.

Told when it begins to wait, then at most every TOLD_AGAIN_S (each comment is a call to PBS), and when it is over.
"""

from __future__ import annotations

from magrathea.core.model import JobKey
from magrathea.messages import Snapshot

TOLD_AGAIN_S = 10.0
OVER = "magrathea: its memory is there"


class WaitingComments:
    """The waiting jobs of all hosts, and when the comment of each was last set."""

    def __init__(self) -> None:
        self._told: dict[str, dict[JobKey, float]] = {}
        self._due: dict[JobKey, str] = {}

    def heard(self, snapshot: Snapshot, now: float) -> None:
        told = self._told.get(snapshot.host, {})
        waiting: dict[JobKey, float] = {}
        for job in (job for domain in snapshot.domains for job in domain.jobs):
            key = JobKey(job.id, job.run)
            if job.waits:
                waiting[key] = told.get(key, now)
                if key not in told or now - told[key] >= TOLD_AGAIN_S:
                    waiting[key] = now
                    self._due[key] = f"magrathea: {job.waits}"
            elif key in told:
                self._due[key] = OVER
        self._told[snapshot.host] = waiting

    def due(self) -> dict[JobKey, str]:
        """Comments to set, each once."""
        due, self._due = self._due, {}
        return due
