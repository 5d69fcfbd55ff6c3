"""The table of jobs: how they enter and leave it."""

import time

from .jobs import Job
from .log import log
from .state_file import StateFile
from .sweeper import Sweeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Optional, Set

    from .values import Key

MISSING_AGE_S = 20.0  # MoM may have made its list before the claim


class Table:
    """The jobs of this domain's MoM."""

    def __init__(self, jobs: "Dict[Key, Job]", sweeper: Sweeper, state: StateFile) -> None:
        self.jobs = jobs
        self.sweeper = sweeper
        self.state = state

    def load(self) -> None:
        """Enter the jobs of the earlier agent."""
        for job in self.state.load():
            self.jobs[job.key] = job

    def save(self) -> None:
        """Write the state file if its content has changed."""
        self.state.save(self.jobs.values())

    def know(self, key: "Key", owner: str, uid: "Optional[int]") -> Job:
        """The job of this key in the table. Earlier runs of it are ended."""
        self.end_earlier([key])
        return self.enter(key, owner, uid)

    def end_earlier(self, keys: "Iterable[Key]") -> None:
        """End every job of which one of `keys` is a later run."""
        newest: "Dict[str, int]" = {}
        for id, run in keys:
            newest[id] = max(run, newest.get(id, run))
        for job in list(self.jobs.values()):
            if job.run < newest.get(job.id, 0):
                self.end(job)

    def enter(self, key: "Key", owner: str, uid: "Optional[int]") -> Job:
        """The job of this key in the table; a new one is entered."""
        if key not in self.jobs:
            self.jobs[key] = Job(key, time.monotonic())
        job = self.jobs[key]
        job.listed = True
        job.missing = 0
        if owner:
            job.owner, job.uid = owner, uid
        return job

    def end(self, job: Job) -> None:
        """The job is over. If it was stopped, kill its processes: MoM's kill may have missed some."""
        if job.order == "stop":
            self.sweeper.bury(job)
        else:
            self.sweeper.forget(job)

    def miss(self, present: "Set[Key]", now: float) -> None:
        """Forget jobs that are missing from two of MoM's lists, unless the daemon still has an order for them."""
        for job in list(self.jobs.values()):
            if job.key in present or not job.listed:
                continue
            job.missing += 1
            if job.missing < 2 or now - job.known_at < MISSING_AGE_S or job.order is not None:
                continue
            log.info("job %s: not in MoM's list any more" % job)
            if job.struck:
                self.sweeper.bury(job)
            else:
                self.sweeper.forget(job)
