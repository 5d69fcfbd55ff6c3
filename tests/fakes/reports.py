"""Reports of hosts, and PBS's view, in one line each."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from magrathea.core.model import JobClass, Kind, Mode, SleepCause, State, StoppedBy
from magrathea.messages import DomainReport, JobReport, SleepReport, Snapshot
from scheduler_plugin.pbs.base import PbsJob, Vnode

NOW = 1_800_000_000.0


def report(
    id: str = "1.srv",
    run: int = 1,
    *,
    stop: bool = False,
    ready: bool = False,
    stopped_since: float | None = None,
    booked: bool = False,
    requeue: bool = False,
    stopper: StoppedBy | None = None,
    held_elsewhere: bool = False,
    warned_until: float | None = None,
) -> JobReport:
    if stopper is None and stopped_since is not None:
        stopper = StoppedBy.US
    return JobReport(
        id=id,
        run=run,
        cls=JobClass.PREEMPTIBLE,
        cpus=1,
        memory_mib=0,
        claimed_at=NOW - 100,
        confirmed=True,
        stop=stop,
        ready=ready,
        requeue=requeue,
        stopped_since=stopped_since,
        stopper=stopper,
        preempted_by="9.srv" if stop else "",
        booked=booked,
        held_elsewhere=held_elsewhere,
        warned_until=warned_until,
    )


def stopped(id: str = "1.srv", run: int = 1, *, since: float = NOW, booked: bool = False) -> JobReport:
    """A job that its host wants stopped and has stopped."""
    return report(id, run, stop=True, stopped_since=since, booked=booked)


def given_back(id: str = "1.srv", run: int = 1) -> JobReport:
    """A job that its host has stopped, no longer wants stopped, and can continue."""
    return report(id, run, ready=True, stopped_since=NOW, booked=True)


def domain(
    name: str = "n1",
    jobs: Sequence[JobReport] = (),
    *,
    kind: Kind = Kind.NORMAL,
    state: State = State.FREE,
    accepts: Sequence[JobClass] = (JobClass.PREEMPTIBLE, JobClass.PROTECTED),
    rank: int = 0,
    ncpus: int = 4,
    mem_mib: int = 2048,
    vnode: str = "",
    sleep: SleepReport | msgspec.UnsetType = msgspec.UNSET,
) -> DomainReport:
    return DomainReport(
        name=name,
        vnode=vnode or name,
        kind=kind,
        state=state,
        since=NOW,
        why="",
        accepts=list(accepts),
        rank=rank,
        ncpus=ncpus,
        mem_mib=mem_mib,
        jobs=list(jobs),
        sleep=sleep,
    )


def asleep(
    name: str = "n1",
    jobs: Sequence[JobReport] = (),
    *,
    since: float = NOW,
    reason: str = "a new disk",
    wakes: bool = False,
    state: State = State.ASLEEP,
) -> DomainReport:
    """A domain that sleeps on disk with these jobs."""
    sleep = SleepReport(since=since, reason=reason, cause=SleepCause.ADMIN, wakes=wakes)
    return domain(name, jobs, state=state, accepts=[], sleep=sleep)


def snapshot(
    *domains: DomainReport,
    host: str = "h1",
    revision: int = 1,
    boot_id: str = "boot",
    at: float = NOW,
    mode: Mode = Mode.EXCLUSIVE,
    cpus: int = 4,
    services_cpus: int = 0,
) -> Snapshot:
    return Snapshot(
        host=host,
        boot_id=boot_id,
        revision=revision,
        at=at,
        mode=mode,
        cpus=cpus,
        memory_mib=4096,
        services_cpus=services_cpus,
        domains=list(domains),
    )


def job(
    id: str = "1.srv",
    state: str = "R",
    *,
    substate: int | None = None,
    run: int = 1,
    vnodes: Sequence[str] = ("n1",),
    rerunnable: bool = True,
    walltime_s: int | None = None,
    comment: str = "Job run at Thu",
    started_at: float = NOW - 100,
) -> PbsJob:
    if substate is None:
        substate = {"R": 42, "S": 43, "E": 51, "Q": 10}[state]
    return PbsJob(id, state, substate, run, "low", tuple(vnodes), rerunnable, walltime_s, comment, started_at)


def vnode(name: str = "n1", *state: str, **resources: str) -> Vnode:
    attributes = {f"resources_available.{key}": value for key, value in resources.items()}
    return Vnode(name, attributes, frozenset(state or ("free",)))
