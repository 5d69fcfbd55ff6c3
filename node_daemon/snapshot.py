"""The host as others see it: one message with the facts and what follows from them, for hubs and `magrathea status`.

What concerns more than one domain or job is computed once for a snapshot (`_Whole`); the reports only look it up.
Guests influence figures and the number of jobs. So figures are brought into the bounds of the message (`_figure`), and
`fitting` leaves out jobs: a snapshot that the hub refuses would cost the whole host.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import structs

from magrathea.core import plan
from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, MemoryLack, MemoryShort, State
from magrathea.core.states import accepts, published, rank, state_of, why
from magrathea.core.stopping import to_requeue, wanted_here, wanted_stopped
from magrathea.messages import (
    MAX_BYTES,
    MOST_COUNT,
    MOST_JOBS,
    MOST_NOTES,
    DomainReport,
    DomainTravel,
    EvacuationView,
    JobReport,
    MemoryMove,
    RefusedClaim,
    SleepReport,
    Snapshot,
    encode,
)

from .hypervisor import base
from .journal_store import Since
from .switch.paging import Progress

NOTE_BYTES = 200
"""Room for the note that something was left out."""
REFUSED_S = 60.0
"""A refused claim is reported to the hub for that long. PBS tries the job again before it is over."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a snapshot holds beside the facts. `actual`: the actual state in the plan's figures; `read`: the
    same in the driver's figures, which may be coarser; `by`: what each stopped job was preempted for."""

    boot_id: str
    actual: Mapping[str, plan.ActualDomain] = field(default_factory=dict)
    read: Mapping[str, base.DomainReading] = field(default_factory=dict)
    since: Mapping[str, Since] = field(default_factory=dict)
    vnodes: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[tuple[str, JobKey], str] = field(default_factory=dict)
    moves: Mapping[str, Progress] = field(default_factory=dict)
    waits: Mapping[tuple[str, JobKey], str] = field(default_factory=dict)
    lacks: Mapping[str, MemoryLack | None] = field(default_factory=dict)
    stopped_at: Mapping[tuple[str, JobKey], float] = field(default_factory=dict)
    driver: str = "local"
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    refused: tuple[RefusedClaim, ...] = ()
    closed: Mapping[str, frozenset[JobClass]] = field(default_factory=dict)
    """By domain, classes that it takes no jobs of for a moment, whatever the facts say (claims/closures.py)."""
    travels: Mapping[str, DomainTravel] = field(default_factory=dict)
    """Domains that take no jobs because they move between hosts."""
    away: tuple[str, ...] = ()
    evacuation: EvacuationView | None = None
    """Configured domains that are at other hosts."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """What follows from the facts of the whole host: jobs that it wants stopped, that PBS may resume, that PBS is to
    requeue. `where`: each job with its domain, for people, by the key that the history has of it; empty if no job was
    stopped for another."""

    host: Host
    beside: Beside
    stop: frozenset[tuple[str, JobKey]]
    ready: frozenset[tuple[str, JobKey]]
    requeue: frozenset[tuple[str, JobKey]]
    where: Mapping[str, str]


def _whole(host: Host, beside: Beside) -> _Whole:
    jobs = ((domain, job) for domain in host.domains for job in domain.jobs if beside.by)
    where = {str(job.key): f"{job.key.id} in {domain.name}" for domain, job in jobs}
    return _Whole(host, beside, wanted_here(host), plan.ready(host, beside.actual), to_requeue(host), where)


def snapshot(host: Host, beside: Beside, revision: int = 0) -> Snapshot:
    """Everything about the host. Only `at` and `revision` differ between two snapshots of the same facts."""
    whole = _whole(host, beside)
    return Snapshot(
        host=host.name,
        boot_id=beside.boot_id,
        revision=revision,
        at=host.now,
        mode=host.mode,
        cpus=host.cpus,
        memory_mib=host.memory_mib,
        services_cpus=min(host.cpus, host.cpus - host.without_services.cpus),
        domains=[_domain(whole, d) for d in host.domains],
        driver=beside.driver,
        hub_connected=not host.hub_lost,
        paused=host.paused.reason[:4096] if host.paused else "",
        paused_since=host.paused.since if host.paused else None,
        notes=[note[:4096] for note in (*_pause_notes(host), *beside.notes)],
        limits=[note[:4096] for note in beside.limits],
        refused=[claim for claim in beside.refused if host.now - claim.at < REFUSED_S],
        away=list(beside.away) or msgspec.UNSET,
        evacuation=beside.evacuation or msgspec.UNSET,
    )


def _pause_notes(host: Host) -> list[str]:
    if not host.paused:
        return []
    stopped = sum(len(d.stopped) for d in host.domains)
    stay = f"; {stopped} stopped {'job stays' if stopped == 1 else 'jobs stay'} so" if stopped else ""
    return [f"paused: nobody is stopped or continued, nothing is moved, until `magrathea unpause`{stay}"]


def _stopped_for(whole: _Whole, domain: Domain, job: Job) -> str:
    """What a job was stopped for, as the history has it, and in which domain that is."""
    by = whole.beside.by.get((domain.name, job.key), "")
    return whole.where.get(by) or by.removesuffix(" (run 1)")


def _preempted_why(whole: _Whole, domain: Domain) -> str:
    """For whom the domain is preempted, and how many of its jobs are stopped. For how long is not in the sentence: it
    would change with every snapshot."""
    wanted = wanted_stopped(whole.host)
    by = {_stopped_for(whole, domain, job) for job in domain.stopped} - {""}
    back = sum((domain.name, job.key) not in wanted for job in domain.stopped)
    of = f"{len(domain.stopped)} of {len(domain.jobs)} jobs" if len(domain.jobs) > 1 else "its job"
    return f"{of} stopped for {', '.join(sorted(by)) or 'a priority job'}{', on the way back' if back else ''}"


def same(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots differ in nothing but their time and number."""
    return msgspec.structs.replace(one, at=0, revision=0) == msgspec.structs.replace(other, at=0, revision=0)


def fitting(snapshot: Snapshot) -> Snapshot:
    """The snapshot, shortened to what a hub accepts: domains that exceed their share lose their last jobs.

    A guest influences how much its jobs take up. So each domain has the same share of the message, and whatever
    exceeds it costs only that domain's jobs.
    """
    few = all(len(domain.jobs) <= MOST_JOBS for domain in snapshot.domains)
    if few and len(encode(snapshot)) <= MAX_BYTES:
        return snapshot
    bare = [structs.replace(domain, jobs=[]) for domain in snapshot.domains]
    rest = MAX_BYTES - NOTE_BYTES - len(encode(structs.replace(snapshot, domains=bare)))
    share = rest // max(1, len(bare))
    domains = [structs.replace(domain, jobs=_first(domain.jobs[:MOST_JOBS], share)) for domain in snapshot.domains]
    left_out = sum(len(d.jobs) for d in snapshot.domains) - sum(len(d.jobs) for d in domains)
    note = f"{left_out} jobs are not reported to the hub: there are too many for one message"
    return structs.replace(snapshot, domains=domains, notes=[*snapshot.notes, note][:MOST_NOTES])


def _first(jobs: list[JobReport], most_bytes: int) -> list[JobReport]:
    """As many of the first jobs as fit."""
    ends = itertools.accumulate(len(encode(job)) + 1 for job in jobs)
    return [job for job, end in zip(jobs, ends, strict=True) if end <= most_bytes]


def _figure(value: int) -> int:
    """The value within the bounds of a message."""
    return max(0, min(value, MOST_COUNT))


def _known(value: int | None) -> int | None:
    return None if value is None else _figure(value)


def _domain(whole: _Whole, domain: Domain) -> DomainReport:
    host, beside = whole.host, whole.beside
    want = plan.desired(host).get(domain.name)
    size = published(host, domain)
    read = beside.read.get(domain.name)
    state = state_of(host, domain)
    since = beside.since.get(domain.name)
    closed = beside.closed.get(domain.name, frozenset())
    travel = beside.travels.get(domain.name)
    return DomainReport(
        name=domain.name,
        vnode=beside.vnodes.get(domain.name, domain.name),
        kind=domain.kind,
        state=state,
        since=since.since if since else host.now,
        why=(travel.text if travel else _why(whole, domain, state, closed))[:4096],
        accepts=[] if travel else [cls for cls in accepts(host, domain) if cls not in closed],
        rank=rank(host, domain),
        ncpus=_figure(size.cpus),
        mem_mib=_figure(size.mib),
        jobs=[_job(whole, domain, job) for job in domain.jobs],
        cpu_percent=_known(read.cpu_percent) if read else None,
        want_cpu_percent=_known(want.cap.percent) if want else None,
        memory_mib=_known(read.memory_mib) if read else None,
        want_memory_mib=_known(want.memory_mib) if want else None,
        move=_move(beside.moves.get(domain.name)),
        preempted_s=domain.preempted_s,
        agent=domain.agent_lost_at is None,
        lacks=_lacks(beside.lacks.get(domain.name)),
        sleep=_sleep(domain),
        travel=travel or msgspec.UNSET,
    )


def _sleep(domain: Domain) -> SleepReport | msgspec.UnsetType:
    sleep = domain.sleep
    if sleep is None or domain.rests_for_move:  # what moves does not sleep for the hub; older ones do not know the word
        return msgspec.UNSET
    return SleepReport(since=sleep.since, reason=sleep.reason[:4096], cause=sleep.cause, wakes=sleep.wakes)


def _why(whole: _Whole, domain: Domain, state: State, closed: Collection[JobClass]) -> str:
    text = _preempted_why(whole, domain) if state is State.PREEMPTED else why(whole.host, domain)
    if not closed:
        return text
    note = f"it has refused a subjob, so it takes no {' or '.join(sorted(closed))} jobs for a moment"
    return f"{text}; {note}" if text else note


def _lacks(lack: MemoryLack | None) -> str | None:
    """The lack in the form that `DomainReport.lack` reads."""
    return lack.why[:4096] if isinstance(lack, MemoryShort) else None if lack is None else ""


def _move(progress: Progress | None) -> MemoryMove | None:
    if progress is None:
        return None
    return MemoryMove(what=progress.what, done_mib=_figure(progress.done_mib), of_mib=_figure(progress.of_mib))


def _warned_until(whole: _Whole, domain: Domain, job: Job) -> float | None:
    """A job whose processes did not handle the signal, or have ended, has stopped earlier."""
    until = plan.warned_until(whole.host, job)
    if until is None:
        return None
    return min(until, whole.beside.stopped_at.get((domain.name, job.key), until))


def _job(whole: _Whole, domain: Domain, job: Job) -> JobReport:
    this = (domain.name, job.key)
    return JobReport(
        id=job.key.id,
        run=job.key.run,
        cls=job.cls,
        cpus=_figure(job.cpus),
        memory_mib=_figure(job.memory_mib),
        claimed_at=job.claimed_at,
        confirmed=job.confirmed,
        stop=this in whole.stop,
        ready=this in whole.ready,
        requeue=this in whole.requeue,
        stopped_since=job.stopped_since,
        warned_until=_warned_until(whole, domain, job),
        stopper=job.stopper,
        preempted_by=_stopped_for(whole, domain, job)[:4096],
        preempted_s=job.preempted_s,
        preemptions=job.preemptions,
        booked=job.booked,
        held_elsewhere=job.held_elsewhere,
        rerunnable=job.rerunnable,
        waits=whole.beside.waits.get(this, "")[:4096],
        keeps=job.keeps,
    )
