"""The table of jobs: how they enter and leave it."""

import time
from collections import OrderedDict

from .jobs import Job
from .log import log
from .state_file import StateFile
from .sweeper import Sweeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Optional, Set

    from .values import Key

MISSING_AGE_S = 20.0  # MoM may have made its list before the claim
LIST_AGE_S = 5.0  # MoM's list may be this old, because its hook runs in the background
ENDED_S = 600.0  # for so long MoM may list a job that is over: its epilogue, copying output, a server that is away
MAX_ENDED = 4096


class Table:
    """The jobs of this domain's MoM."""

    def __init__(self, jobs: "Dict[Key, Job]", sweeper: Sweeper, state: StateFile) -> None:
        self.jobs = jobs
        self.sweeper = sweeper
        self.state = state
        self.ended: "OrderedDict[Key, float]" = OrderedDict()  # when jobs ended a short while ago

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
        self.ended.pop(key, None)
        job = self.jobs[key]
        job.listed = True
        job.missing = 0
        if owner:
            if uid is not None or owner != job.owner:  # else the directory of users is silent
                job.uid = uid
            job.owner = owner
        return job

    def end(self, job: Job) -> None:
        """The job is over. If it was stopped, kill its processes: MoM's kill may have missed some."""
        self.ended[job.key] = time.monotonic()
        self.ended.move_to_end(job.key)
        if len(self.ended) > MAX_ENDED:
            self.ended.popitem(last=False)
        if job.order == "stop":
            self.sweeper.bury(job)
        else:
            self.sweeper.forget(job)

    def has_ended(self, key: "Key", has_gone: bool, now: float) -> bool:
        """Whether a job of MoM's list is over, and the list is only late or shows what MoM does after a job's end.

        `has_gone`: the list itself shows it as ending, or its session's process does not exist. A job that still runs
        by a list made after its end has not ended.
        """
        at = self.ended.get(key)
        return at is not None and now - at < (ENDED_S if has_gone else LIST_AGE_S)

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
