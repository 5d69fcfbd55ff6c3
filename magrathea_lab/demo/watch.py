"""Watches a cluster while the demo runs: what every job did, when it stood still, and the proof of that.

Rule 1: all observations come from outside, through cluster.Cluster. The parts' own reports are not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..cluster import Cluster, Failed, JobView, VnodeView
from ..work import STARTED_ONCE, held, result

LOOK_S = 0.1
RESUMING_S = 0.3
"""A job continues shortly before PBS reports it. Observations in this time before a stop's end prove nothing."""


@dataclass
class Stop:
    """A period in which PBS had a job suspended. `seen`: (time, counter) pairs; `end`: None while it lasts."""

    domain: str
    begin: float
    seen: list[tuple[float, int]]
    end: float | None = None
    next_counter: int = 0

    @property
    def at_step(self) -> int:
        return self.seen[0][1]

    @property
    def seconds(self) -> float:
        return (self.end if self.end is not None else self.seen[-1][0]) - self.begin

    def flaw(self) -> str:
        """Why this stop does not prove "it stood still and then continued"; empty if it does."""
        if self.end is None:
            return "was never continued"
        moved = [count for at, count in self.seen if at < self.end - RESUMING_S and count != self.at_step]
        if moved:
            return f"was preempted at step {self.at_step} but went on to {moved[-1]}"
        if self.next_counter <= self.at_step:
            return f"did not go on from step {self.at_step}"
        return ""


@dataclass
class Watched:
    """A job of the demo. `holds_mib`: memory that it holds. Times are of time.monotonic()."""

    id: str
    name: str
    queue: str
    cpus: int
    steps: int
    submitted: float
    state: str = "?"
    domain: str = ""
    counter: int = 0
    exit_status: int | None = None
    comment: str = ""
    first_step: float | None = None
    output: str = ""
    holds_mib: int = 0
    stops: list[Stop] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        return bool(self.stops) and self.stops[-1].end is None

    def flaw(self) -> str:
        """Why the job's work is not complete and correct; empty if it is."""
        if self.state != "F":
            return f"has not finished (state {self.state}: {self.comment})"
        if self.exit_status != 0 or result(self.steps) not in self.output:
            return f"ended with code {self.exit_status} and printed {self.output!r}"
        if STARTED_ONCE not in self.output:
            return f"was requeued while it ran, so its work was lost: {self.output!r}"
        if self.holds_mib and held(self.holds_mib) not in self.output:
            return f"did not find its memory unchanged: {self.output!r}"
        return ""


class Watch:
    """Looks at the cluster again and again. `tell` gets a sentence for each change; `draw` is called after each one."""

    def __init__(self, cluster: Cluster, tell: Callable[[str], None], draw: Callable[[Watch], None]) -> None:
        self.cluster, self._tell, self._draw = cluster, tell, draw
        self.jobs: dict[str, Watched] = {}
        self.vnodes: Mapping[str, VnodeView] = {}

    def submit(
        self, queue: str, name: str, steps: int, cpus: int, select: str = "", holds_mib: int = 0
    ) -> Watched:  # fmt: skip
        """Submit a job. `select` replaces `cpus`; `holds_mib`: how much of its memory the job then really holds."""
        before = time.monotonic()
        id = self.cluster.submit(queue, steps, cpus=cpus, select=select, name=name)
        self.jobs[id] = Watched(id, name, queue, cpus, steps, before, holds_mib=holds_mib)
        return self.jobs[id]

    @property
    def holding(self) -> bool:
        """True if any of the jobs holds memory."""
        return any(job.holds_mib for job in self.jobs.values())

    def look(self) -> None:
        now = time.monotonic()
        living = [id for id, job in self.jobs.items() if job.state != "F"]
        # read before asking PBS, which takes a while to answer
        counters = {id: self.cluster.counter(id) for id in living}
        views = self.cluster.jobs()
        for id in living:
            if id in views:
                self._job(self.jobs[id], views[id], counters[id], now)
        vnodes = self.cluster.vnodes()
        for name, vnode in vnodes.items():
            if name in self.vnodes and self.vnodes[name].magrathea != vnode.magrathea:
                self._tell(f"domain {name}: {self.vnodes[name].magrathea} -> {vnode.magrathea}")
        self.vnodes = vnodes
        self._draw(self)

    def _job(self, job: Watched, view: JobView, counter: int, now: float) -> None:
        before, job.state = job.state, view.state
        job.domain = view.vnodes[0] if view.vnodes else job.domain
        job.exit_status, job.comment = view.exit_status, view.comment
        job.counter = counter
        if counter and job.first_step is None:
            job.first_step = now
        if view.state == "S":
            if not job.stopped:
                # read again: the value read before PBS reported S may be older than the stop
                counter = self.cluster.counter(job.id)
                job.stops.append(Stop(job.domain, time.monotonic(), []))
                self._tell(f"{job.name} on {job.domain}: preempted, it stands still at step {counter}")
            job.stops[-1].seen.append((now, counter))
        elif job.stopped:
            stop = job.stops[-1]
            stop.end, stop.next_counter = now, counter
            self._tell(f"{job.name} on {job.domain}: goes on from step {stop.at_step} after {stop.seconds:.1f} s")
        if job.stops and not job.stopped:
            job.stops[-1].next_counter = max(job.stops[-1].next_counter, counter)
        if view.state == "R" and before in ("?", "Q", "W"):
            self._tell(f"{job.name}: starts on {job.domain}")
        if view.state == "F":
            self._tell(f"{job.name} on {job.domain}: has ended")

    def until(self, what: str, condition: Callable[[], bool], patience_s: float) -> None:
        """Look until `condition` is true. Raises Failed."""
        deadline = time.monotonic() + patience_s
        while True:
            self.look()
            if condition():
                return
            if time.monotonic() > deadline:
                raise Failed(f"not within {patience_s:.0f} s: {what}")
            time.sleep(LOOK_S)

    def look_for(self, seconds: float) -> None:
        """Keep looking for a while, whatever happens."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(LOOK_S)
            self.look()

    def collect_outputs(self) -> None:
        """Read the jobs' outputs. PBS delivers them a moment after the jobs end."""
        for job in self.jobs.values():
            job.output = self.cluster.output(job.id)
