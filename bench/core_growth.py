"""What one event costs a host of many domains and jobs, and how that grows.

Four kinds of host: exclusive and counted, each with all jobs running and with half of the domains preempted. Each is
built with 1 to 64 domains and 1 to 2,000 jobs. The daemon's one thread does three things after every event, which are
measured: the event itself (the most expensive of several kinds counts), the plan, the snapshot. One list of MoM is
measured too.

Rule 1: every measurement begins with facts that nobody has looked at yet, so that nothing is computed beforehand.
Rule 2: CPU time is measured, because nothing here waits; so other work on the machine disturbs little.
Rule 3: the run time is bounded. If one size takes longer than ENOUGH_S, the larger ones are not measured.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from magrathea.core import events as ev
from magrathea.core.machine import handle
from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, Kind, Lifecycle, Limits, Mode, StoppedBy
from magrathea.core.plan import ActualDomain, Order, steps
from node_daemon.snapshot import Beside, snapshot

from .figure import Figure, at_most, missing, progress, run

DOMAINS = (1, 2, 8, 16, 32, 64)
"""With 16, a dozen domains have jobs: the most of which every set is compared for a preemption."""
JOBS = (1, 16, 125, 500, 2_000)
ROUNDS, QUICK_ROUNDS = 5, 3
"""Odd numbers, so that the median is one of them and not the larger of two."""
ENOUGH_S = 0.4
TOGETHER_MS = 50.0
"""Goal for 64 domains and 2,000 jobs: event, plan and snapshot together."""
CLAIM_MORE_MS = 20.0
"""Goal: a claim on 64 domains costs that much more than one on 2 domains, at most."""
START = 10_000.0


@dataclass(frozen=True, slots=True)
class Shape:
    mode: Mode
    half_preempted: bool

    def __str__(self) -> str:
        return f"{self.mode}{', half preempted' if self.half_preempted else ''}"


SHAPES = tuple(Shape(mode, half) for mode in Mode for half in (False, True))


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds, the median of some rounds."""

    event: float
    dearest: str
    claim: float
    plan: float
    snapshot: float
    list: float

    @property
    def together(self) -> float:
        return self.event + self.plan + self.snapshot


def a_host(shape: Shape, domains: int, jobs: int) -> Host:
    """A quarter of the domains is of kind priority. The others have the jobs, preemptible and of one CPU each."""
    normals = domains - domains // 4 if domains > 2 else 1
    built = []
    for number in range(domains):
        kind = Kind.NORMAL if number < normals else Kind.PRIORITY
        size = 4 * jobs
        name = f"d{number:02d}"
        domain = Domain(name, kind, size, 0, 100, 10**6, lifecycle=Lifecycle.UP, agent_lost_at=None)
        count = jobs // normals + (number < jobs % normals) if kind is Kind.NORMAL else 0
        stopped = shape.half_preempted and number % 2 == 0
        built.append(replace(domain, jobs=tuple(_job(number, index, stopped) for index in range(count))))
    if shape.half_preempted and domains > 1:
        first = Job(JobKey("9999999", 1), JobClass.PRIORITY, jobs, 10, START - 50, START - 50, True, True)
        built[-1] = replace(built[-1], jobs=(first,))
    # Full, so that a priority job preempts; or too small for the stopped jobs to go on beside the priority job.
    cpus = 2 * jobs if shape.half_preempted else jobs
    limits = Limits(max_preempted_s=10**6, linger_s=30.0)
    return Host("h1", shape.mode, cpus, 10**7, tuple(built), limits, now=START)


def _job(number: int, index: int, stopped: bool) -> Job:
    key = JobKey(f"{number * 10_000 + index}.server", 1)
    job = Job(key, JobClass.PREEMPTIBLE, 1, 10, START - 100, START - 100, True, True)
    if not stopped:
        return job
    return replace(job, stopped_since=START - 50, stopper=StoppedBy.US, booked=True, preemptions=1)


def unseen(host: Host) -> Host:
    """The same facts as new objects, so that nothing that was computed for the old ones is at hand."""
    return replace(host, domains=tuple(replace(d) for d in host.domains))


def _events(host: Host) -> dict[str, ev.Event]:
    at = host.now + 0.001
    first, last = host.domains[0], host.domains[-1]
    running = next((d for d in host.domains if d.running), first)
    key = running.jobs[0].key if running.jobs else JobKey("0", 1)
    cls = JobClass.PRIORITY if last.kind is Kind.PRIORITY else JobClass.PREEMPTIBLE
    books = tuple(
        ev.Booking(j.key, j.stopped_by_us, held=i % 2 == 0) for d in host.domains for i, j in enumerate(d.jobs)
    )
    return {
        "claim": ev.Claimed(at, last.name, JobKey("10000000", 1), cls, 1, 1),
        "release": ev.Released(at, running.name, key),
        "launch": ev.JobLaunched(at, running.name, key),
        "timer": ev.TimerFired(at),
        "memory": ev.MemoryReported(at, first.name, 1),
        "books": ev.BooksReported(at, books),
        "domain down": ev.DomainStopped(at, running.name),
        "hub lost": ev.HubLost(at),
        "agent lost": ev.AgentLost(at, first.name),
    }


def _list(host: Host) -> ev.JobsReported:
    """MoM's list of the first domain: as many jobs as it has, the first and last one missing or new."""
    first = host.domains[0]
    listed = tuple(ev.ReportedJob(j.key, j.cpus, j.memory_mib, suspended=j.booked) for j in first.jobs[1:])
    return ev.JobsReported(host.now + 10, first.name, (*listed, ev.ReportedJob(JobKey("99999999", 1), 1, 1)))


def _actual(host: Host) -> dict[str, ActualDomain]:
    """Every step is still to be done."""
    told = Order.STOP, Order.LIFT
    return {
        d.name: ActualDomain(50, 1, {j.key: told[i % 2] for i, j in enumerate(d.stopped)})
        for d in host.domains
        if d.kind is not Kind.SERVICE
    }


def _ms(work: Callable[[Host], object], host: Host, rounds: int) -> float:
    """The median of some rounds, fewer if one takes long. CPU time: none of this waits for anything."""
    spent: list[float] = []
    gc.collect()
    while len(spent) < rounds and sum(spent) < ENOUGH_S * 1_000:
        fresh = unseen(host)
        begin = time.thread_time()
        work(fresh)
        spent.append((time.thread_time() - begin) * 1_000)
    return sorted(spent)[len(spent) // 2]


def cost(host: Host, rounds: int) -> Cost:
    actual = _actual(host)
    beside = Beside("boot", actual, by={(d.name, j.key): "9999999 (run 1)" for d in host.domains for j in d.stopped})
    events = {name: _ms(lambda h, e=event: handle(h, e), host, rounds) for name, event in _events(host).items()}  # type: ignore[misc]
    dearest = max(events, key=lambda name: events[name])
    return Cost(
        event=events[dearest],
        dearest=dearest,
        claim=events["claim"],
        plan=_ms(lambda h: steps(h, actual), host, rounds),
        snapshot=_ms(lambda h: snapshot(h, beside), host, rounds),
        list=_ms(lambda h: handle(h, _list(h)), host, rounds),
    )


def growth(before: float, after: float, factor: float) -> float:
    """By how much the cost is multiplied each time that the size doubles."""
    return math.pow(after / before, 1 / math.log2(factor))


def series(shape: Shape, domains: int, rounds: int) -> dict[int, Cost]:
    """The cost for each number of jobs; it ends where one takes too long."""
    costs: dict[int, Cost] = {}
    for jobs in JOBS:
        costs[jobs] = cost(a_host(shape, domains, jobs), rounds)
        if max(costs[jobs].together, costs[jobs].list) > ENOUGH_S * 1_000:
            break
    return costs


def figures(quick: bool) -> list[Figure]:
    found: list[Figure] = []
    for shape in SHAPES:
        progress(f"a host that is {shape}")
        costs = {n: series(shape, n, QUICK_ROUNDS if quick else ROUNDS) for n in DOMAINS}
        found += [_row(shape, n, costs[n]) for n in DOMAINS]
        found += _goals(shape, costs)
    return found


def _row(shape: Shape, domains: int, costs: dict[int, Cost]) -> Figure:
    most = max(costs)
    last = costs[most]
    earlier = ", ".join(f"{jobs}: {cost.together:.3g}" for jobs, cost in costs.items() if jobs != most)
    parts = f"event {last.event:.3g} ({last.dearest}), plan {last.plan:.3g}, snapshot {last.snapshot:.3g}"
    grows = _growth_by_jobs(costs)
    note = f"{parts}; MoM's list {last.list:.3g}; fewer jobs: {earlier}; {grows}"
    name = f"core, {shape}, {domains} domains, {most} jobs: event, plan, snapshot"
    if most != JOBS[-1]:
        note += f"; too slow to measure {JOBS[-1]} jobs"
    return Figure(name, last.together, "ms", note=note)


def _growth_by_jobs(costs: dict[int, Cost]) -> str:
    *_, before, most = costs
    return f"x{growth(costs[before].together, costs[most].together, most / before):.1f} per doubling of jobs"


def _goals(shape: Shape, costs: dict[int, dict[int, Cost]]) -> Iterable[Figure]:
    (few, many), most = (2, DOMAINS[-1]), JOBS[-1]
    together, claim = f"core, {shape}: all three, the largest host", f"core, {shape}: a claim there, more than on {few}"
    largest, small = costs[many].get(most), costs[few].get(most)
    if largest is None or small is None:
        why = f"{many} domains with {most} jobs take too long"
        return [
            Figure(together, None, "ms", f"<= {TOGETHER_MS:g}", False, why),
            missing(claim, "ms", f"<= {CLAIM_MORE_MS:g}", why),
        ]
    per_doubling = growth(costs[8][most].together, largest.together, many / 8) if most in costs[8] else math.nan
    return [
        at_most(together, largest.together, "ms", TOGETHER_MS, f"x{per_doubling:.1f} per doubling of domains"),
        at_most(claim, largest.claim - small.claim, "ms", CLAIM_MORE_MS, f"{largest.claim:.3g} and {small.claim:.3g}"),
    ]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
