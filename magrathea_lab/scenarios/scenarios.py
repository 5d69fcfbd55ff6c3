"""What must happen on a cluster. The same scenarios run on the PBS stand-in and on OpenPBS.

If the two differ, the stand-in is wrong.

Rule 1: a scenario uses only `Cluster`. It checks what users and admins see (job states, vnode states, the jobs' own
counters and outputs), never the internals of a part.
Rule 2: it waits for conditions with a bound. It waits for a fixed time only to check that a counter stands still.
Rule 3: if a job must still run at a check, the scenario ends it; it does not end after a number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from ..cluster import Cluster, Failed, JobView
from ..fleet import ANOTHER, COUNTED, EXCLUSIVE, HostSpec
from ..waiting import BOUND_S, NotInTime, until
from ..work import STARTED_ONCE, result

T = TypeVar("T")

LONG = 100_000
"""Steps of a job that the scenario itself ends: more than an hour."""
LIMIT_S = 20
"""Walltime of a job that is preempted as soon as possible, and ends soon after it continues."""
STILL_S = 1.0
"""A counter that does not move for this time (20 steps) stands still."""


class Site(Cluster, Protocol):
    """A cluster whose jobs a scenario can end."""

    def finish(self, job: str) -> None:
        """Let the job end after its current step, as if its work were done."""
        ...


def wait(cluster: Cluster, what: str, condition: Callable[[], T | None], bound_s: float = BOUND_S) -> T:
    """Wait until `condition` returns something true, and return that. Raises Failed."""
    try:
        return until(condition, lambda: f"{what}\n{cluster.picture()}", bound_s)
    except NotInTime as late:
        raise Failed(str(late)) from late


def require(cluster: Cluster, holds: bool, what: str) -> None:
    if not holds:
        raise Failed(f"{what}\n{cluster.picture()}")


def wait_state(cluster: Cluster, job: str, states: str, bound_s: float = BOUND_S) -> JobView:
    """Wait until the job's state is one of the letters in `states`; return the job."""

    def there() -> JobView | None:
        view = cluster.jobs().get(job)
        return view if view is not None and view.state in states else None

    found = wait(cluster, f"job {job} in one of the states {states}", there, bound_s)
    assert found is not None
    return found


def wait_running(cluster: Cluster, *jobs: str) -> None:
    """Wait until every job is in state R and has done a step."""
    for job in jobs:
        wait_state(cluster, job, "R")
        wait(cluster, f"job {job} computes", lambda job=job: cluster.counter(job) > 0)  # type: ignore[misc]


def wait_domain(cluster: Cluster, domain: str, *words: str) -> None:
    wait(cluster, f"domain {domain} is {' or '.join(words)}", lambda: cluster.vnodes()[domain].magrathea in words)


def wait_stoppable(cluster: Cluster, *domains: str) -> None:
    """Wait until the domains' jobs have run long enough to be stopped."""
    for domain in domains:
        wait_domain(cluster, domain, "running-preemptible")


def stands_still(cluster: Cluster, job: str) -> int:
    """Require that the job's counter does not move; return its value."""
    before = cluster.counter(job)
    time.sleep(STILL_S)
    after = cluster.counter(job)
    require(cluster, before == after, f"job {job} is preempted, but its counter went from {before} to {after}")
    return after


def goes_on(cluster: Cluster, job: str, from_step: int) -> None:
    wait(cluster, f"job {job} goes on from step {from_step}", lambda: cluster.counter(job) > from_step)


def finish(cluster: Site, job: str) -> None:
    """End the job, and check its result."""
    cluster.finish(job)
    wait_right_end(cluster, job)


def wait_right_end(cluster: Cluster, job: str, steps: int | None = None) -> None:
    """Wait for the job's end; require a correct result and no step computed twice. `steps`: None if a scenario ended
    it."""
    view = wait_state(cluster, job, "F")
    steps = cluster.counter(job) if steps is None else steps
    require(cluster, view.exit_status == 0, f"job {job} ended with {view.exit_status}: {cluster.output(job)!r}")
    wait(cluster, f"the output of {job}", lambda: "longest pause" in cluster.output(job))
    output = cluster.output(job)
    require(cluster, result(steps) in output, f"job {job} printed {output!r}, not {result(steps)!r}")
    require(cluster, STARTED_ONCE in output, f"job {job} was requeued while it ran: {output!r}")


def wait_all_free(cluster: Cluster, host: HostSpec) -> None:
    for domain in host.domains:
        wait_domain(cluster, domain.name, "free")


# Scenarios. Each starts and ends with free domains.


def one_job_is_preempted_and_goes_on(cluster: Site) -> None:
    low = cluster.submit("low", LONG)
    wait_running(cluster, low)
    wait_stoppable(cluster, "n1")
    high = cluster.submit("high", LONG)
    wait_running(cluster, high)
    require(cluster, cluster.jobs()[high].vnodes[0] in ("p1", "p2"), "the priority job is in a priority domain")
    wait_state(cluster, low, "S")
    wait_domain(cluster, "n1", "preempted")
    step = stands_still(cluster, low)
    finish(cluster, high)
    goes_on(cluster, low, step)
    wait_state(cluster, low, "R")
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def two_preemptible_jobs_are_stopped_together(cluster: Site) -> None:
    lows = [cluster.submit("low", LONG), cluster.submit("low", LONG)]
    wait_running(cluster, *lows)
    wait_stoppable(cluster, "n1")
    high = cluster.submit("high", LONG)
    wait_running(cluster, high)
    for low in lows:
        wait_state(cluster, low, "S")
    steps = [stands_still(cluster, low) for low in lows]
    cluster.delete(high)
    for low, step in zip(lows, steps, strict=True):
        goes_on(cluster, low, step)
        finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def priority_jobs_one_after_another(cluster: Site) -> None:
    low = cluster.submit("low", LONG)
    wait_running(cluster, low)
    for _ in range(3):
        wait_state(cluster, low, "R")
        wait_stoppable(cluster, "n1")
        high = cluster.submit("high", LONG)
        wait_state(cluster, low, "S")
        step = cluster.counter(low)
        wait_running(cluster, high)
        finish(cluster, high)
        goes_on(cluster, low, step)
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def a_second_priority_job_joins(cluster: Site) -> None:
    low = cluster.submit("low", LONG)
    wait_running(cluster, low)
    wait_stoppable(cluster, "n1")
    first = cluster.submit("high", LONG)
    wait_running(cluster, first)
    second = cluster.submit("high", LONG)
    wait_running(cluster, second)
    places = [cluster.jobs()[job].vnodes for job in (first, second)]
    require(cluster, places[0] == places[1], f"the second priority job joined the first: {places}")
    wait_state(cluster, low, "S")
    for job in (first, second, low):
        finish(cluster, job)
    wait_all_free(cluster, EXCLUSIVE)


def a_job_of_another_class_waits(cluster: Site) -> None:
    """Nobody is preempted for a protected job, and a protected job is preempted for nobody."""
    protected = cluster.submit("normal", LONG)
    wait_running(cluster, protected)
    wait_domain(cluster, "n1", "running")
    high = cluster.submit("high", 10)
    time.sleep(STILL_S)
    require(cluster, cluster.jobs()[high].state == "Q", "the priority job waits for the protected one")
    require(cluster, cluster.jobs()[protected].state == "R", "the protected job runs on")
    finish(cluster, protected)
    wait_right_end(cluster, high, 10)
    wait_all_free(cluster, EXCLUSIVE)


def a_preempted_job_is_deleted(cluster: Site) -> None:
    low, other = cluster.submit("low", LONG), cluster.submit("low", LONG)
    wait_running(cluster, low, other)
    wait_stoppable(cluster, "n1")
    high = cluster.submit("high", LONG)
    wait_state(cluster, low, "S")
    wait_running(cluster, high)
    cluster.delete(low)  # PBS needs 10 to 25 s for a suspended job, because its SIGTERM stays pending
    wait_state(cluster, low, "F")
    step = stands_still(cluster, other)
    cluster.delete(high)
    goes_on(cluster, other, step)
    finish(cluster, other)
    wait_all_free(cluster, EXCLUSIVE)


def a_priority_job_comes_as_a_low_one_starts(cluster: Site) -> None:
    """The priority job waits until the low job can be stopped. The low job loses nothing."""
    low = cluster.submit("low", LONG)
    wait_state(cluster, low, "R")
    high = cluster.submit("high", 20)
    wait_right_end(cluster, high, 20)
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def two_priority_jobs_at_the_same_moment(cluster: Site) -> None:
    """Both fit into one domain together, or run one after the other. The low job is stopped, and loses nothing."""
    low = cluster.submit("low", LONG)
    wait_running(cluster, low)
    wait_stoppable(cluster, "n1")
    highs = [cluster.submit("high", LONG, cpus=2), cluster.submit("high", LONG, cpus=2)]
    wait_state(cluster, low, "S")
    for high in highs:
        cluster.finish(high)
    for high in highs:
        wait_state(cluster, high, "F")
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def walltime_stands_still(cluster: Site) -> None:
    """A job that was stopped for longer than its walltime still finishes."""
    low = cluster.submit("low", LONG, walltime_s=LIMIT_S)
    wait_running(cluster, low)
    wait_stoppable(cluster, "n1")
    high = cluster.submit("high", LONG)
    wait_state(cluster, low, "S")
    time.sleep(LIMIT_S + STILL_S)
    finish(cluster, high)
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def counted_free_cpus_are_used_first(cluster: Site) -> None:
    low = cluster.submit("low", LONG, cpus=2)
    wait_running(cluster, low)
    high = cluster.submit("high", 20, cpus=2)
    wait_right_end(cluster, high, 20)
    require(cluster, cluster.jobs()[low].state == "R", "nobody was stopped")
    finish(cluster, low)
    wait_all_free(cluster, COUNTED)


def counted_victims_are_the_best_fitting(cluster: Site) -> None:
    """Four CPUs: one domain has a job of 1 CPU, another a job of 2. A priority job of 2 stops only one of them."""
    lows = [cluster.submit("low", LONG, cpus=cpus) for cpus in (2, 1, 1)]
    wait_running(cluster, *lows)
    domains = {cluster.jobs()[low].vnodes[0] for low in lows}
    wait_stoppable(cluster, *domains)
    high = cluster.submit("high", LONG, cpus=2)
    wait_running(cluster, high)
    wait(cluster, "a low job is preempted", lambda: any(cluster.jobs()[low].state == "S" for low in lows))
    stopped = {view.vnodes[0] for low in lows if (view := cluster.jobs()[low]).state == "S"}
    require(cluster, len(stopped) == 1, f"one domain of {sorted(domains)} suffices, stopped: {sorted(stopped)}")
    for job in (high, *lows):
        finish(cluster, job)
    wait_all_free(cluster, COUNTED)


def counted_a_third_takes_the_rest(cluster: Site) -> None:
    """Priority jobs of 2 and 1 CPUs on a full host of 4: both normal domains are stopped, then both continue."""
    lows = [cluster.submit("low", LONG, cpus=2), cluster.submit("low", LONG, cpus=2)]
    wait_running(cluster, *lows)
    wait_stoppable(cluster, "n2", "n3")
    first = cluster.submit("high", LONG, cpus=2)
    wait_running(cluster, first)
    second = cluster.submit("high", LONG, cpus=1)
    wait_running(cluster, second)
    for low in lows:
        wait_state(cluster, low, "S")
    steps = [stands_still(cluster, low) for low in lows]
    for high in (first, second):
        cluster.delete(high)
    for low, step in zip(lows, steps, strict=True):
        goes_on(cluster, low, step)
        finish(cluster, low)
    wait_all_free(cluster, COUNTED)


def every_part_crashes_while_a_job_is_preempted(cluster: Site) -> None:
    """Each part is killed and started again, one after the other. The job stays stopped, and is not lost."""
    low = cluster.submit("low", LONG)
    wait_running(cluster, low)
    wait_stoppable(cluster, "n1")
    high = cluster.submit("high", LONG)
    wait_running(cluster, high)
    wait_state(cluster, low, "S")
    step = cluster.counter(low)
    for part in ("hub", "agent-n1", "noded-h1"):
        cluster.crash(part)
        require(cluster, stands_still(cluster, low) == step, f"job {low} stood still when {part} crashed")
    finish(cluster, high)
    goes_on(cluster, low, step)
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def the_hub_crashes_as_it_should_suspend_a_job(cluster: Site) -> None:
    """The new hub learns from the host that the job must be suspended. Nothing is lost, and no job stays stopped."""
    low = cluster.submit("low", LONG)
    wait_running(cluster, low)
    wait_stoppable(cluster, "n1")
    high = cluster.submit("high", LONG)
    wait_state(cluster, high, "R")
    cluster.crash("hub")
    wait_state(cluster, low, "S")
    step = stands_still(cluster, low)
    finish(cluster, high)
    goes_on(cluster, low, step)
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)


def a_job_on_two_hosts_is_stopped_as_a_whole(cluster: Site) -> None:
    """A job on two hosts is preempted on one, so it is suspended on both. It continues when the priority job has
    ended."""
    low = cluster.submit("low", LONG, select="2:ncpus=2")
    wait_running(cluster, low)
    vnodes = set(cluster.jobs()[low].vnodes)
    require(cluster, vnodes == {"n1", "n4"}, f"the job runs on both hosts: {sorted(vnodes)}")
    wait(cluster, "one of them may be preempted", lambda: _words(cluster) & {"running-preemptible"})
    high = cluster.submit("high", LONG, cpus=2)
    wait_running(cluster, high)
    wait_state(cluster, low, "S")
    for name in sorted(vnodes):
        wait_domain(cluster, name, "preempted")
        require(cluster, "maintenance" in cluster.vnodes()[name].state, f"{name} takes no other jobs meanwhile")
    step = stands_still(cluster, low)
    finish(cluster, high)
    goes_on(cluster, low, step)
    finish(cluster, low)
    wait_all_free(cluster, EXCLUSIVE)
    wait_all_free(cluster, ANOTHER)


def _words(cluster: Cluster) -> set[str]:
    return {vnode.magrathea for vnode in cluster.vnodes().values()}


Scenario = Callable[[Site], None]

SCENARIOS: dict[Scenario, tuple[HostSpec, ...]] = {
    one_job_is_preempted_and_goes_on: (EXCLUSIVE,),
    two_preemptible_jobs_are_stopped_together: (EXCLUSIVE,),
    priority_jobs_one_after_another: (EXCLUSIVE,),
    a_second_priority_job_joins: (EXCLUSIVE,),
    a_job_of_another_class_waits: (EXCLUSIVE,),
    a_preempted_job_is_deleted: (EXCLUSIVE,),
    a_priority_job_comes_as_a_low_one_starts: (EXCLUSIVE,),
    two_priority_jobs_at_the_same_moment: (EXCLUSIVE,),
    walltime_stands_still: (EXCLUSIVE,),
    every_part_crashes_while_a_job_is_preempted: (EXCLUSIVE,),
    the_hub_crashes_as_it_should_suspend_a_job: (EXCLUSIVE,),
    a_job_on_two_hosts_is_stopped_as_a_whole: (EXCLUSIVE, ANOTHER),
    counted_free_cpus_are_used_first: (COUNTED,),
    counted_victims_are_the_best_fitting: (COUNTED,),
    counted_a_third_takes_the_rest: (COUNTED,),
}
"""Every scenario with the hosts that its cluster must have; the cluster has no others."""
