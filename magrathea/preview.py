"""What a submission would find now, and what it would preempt: the core's own answers, without a claim.

The daemon has all facts: it gives the answer that a claim would get at this moment. The hub has only snapshots. If a
domain does not publish the class, it refuses, because its own daemon has computed that. For the rest, a host is rebuilt
from its snapshot, which lacks floors, swap, locked memory, how long jobs have run, and lingering. So the hub knows
exactly who accepts and, by CPUs, who is preempted. Only the daemon knows about memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from magrathea.core.allocation import verdict
from magrathea.core.events import Accepted, Claimed
from magrathea.core.machine import handle
from magrathea.core.model import (
    Amount,
    Domain,
    GiveWay,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Limits,
    Pause,
    Sleep,
    State,
)
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.core.states import rank
from magrathea.messages import (
    Chunk,
    ChunkPreview,
    DomainReport,
    HostView,
    JobReport,
    Outlook,
    Placement,
    Preview,
    Road,
    SleepReport,
    Snapshot,
)

_LIFECYCLES = {
    State.DOWN: Lifecycle.DOWN,
    State.FROZEN: Lifecycle.DOWN,
    State.ASLEEP: Lifecycle.DOWN,
    State.BOOTING: Lifecycle.BOOTING,
}


class TooLong(Exception):
    """The caller does not want to wait any longer."""


Ended = Callable[[], bool]
"""Returns True if the caller has stopped waiting."""
Takes = Callable[[GiveWay, str, int], float | None]
"""How many seconds it takes until so much memory of a domain is in its swap, or on disk; None if nobody knows."""


def outlook(
    host: Host,
    vnodes: Mapping[str, str],
    cls: JobClass,
    chunks: Sequence[Chunk],
    ended: Ended = lambda: False,
    takes: Takes = lambda road, domain, mib: None,
) -> Outlook:
    """The answer of the host itself: what a submission of these chunks would find and do now. Raises TooLong as soon as
    `ended` returns True."""
    names = {domain.name for domain in host.workers}
    answers: list[list[Preview]] = [[] for _ in chunks]
    for answered, chunk in zip(answers, chunks, strict=True):
        for domain in host.workers:
            if ended():
                raise TooLong
            answer = _of(host, domain, vnodes.get(domain.name, domain.name), cls, _asked(chunk))
            roads = [] if answer.code else _roads(host, domain, cls, _asked(chunk), takes)
            answered.append(structs.replace(answer, roads=roads))
    return _outlook(cls, chunks, answers, {host.name: _Open(host, names)}, ended)


def outlook_farm(views: Iterable[HostView], cls: JobClass, chunks: Sequence[Chunk]) -> Outlook:
    """The answer for all hosts, as far as the hub's snapshots go."""
    known = [(view, host_of(view.snapshot)) for view in views]
    asked = [_asked(chunk) for chunk in chunks]
    answers = [[a for view, host in known for a in _of_view(view, host, cls, size)] for size in asked]
    inviting = {
        host.name: _Open(host, {report.name for report in view.snapshot.domains if cls in report.accepts})
        for view, host in known
        if view.live
    }
    return _outlook(cls, chunks, answers, inviting, lambda: False)


def _asked(chunk: Chunk) -> Amount:
    return Amount(chunk.cpus, chunk.memory_mib)


def _outlook(
    cls: JobClass, chunks: Sequence[Chunk], answers: Sequence[list[Preview]], hosts: dict[str, _Open], ended: Ended
) -> Outlook:
    parts = [ChunkPreview(chunk=chunk, answers=given) for chunk, given in zip(chunks, answers, strict=True)]
    return Outlook(cls=cls, chunks=parts, placed=list(_placed(hosts, cls, chunks, ended)))


# Adding up chunk after chunk, as PBS's scheduler does: each on a host as the chunks before would leave it


@dataclass(frozen=True, slots=True)
class _Open:
    """A host, and those of its domains that may take a chunk."""

    host: Host
    domains: Collection[str]


@dataclass(frozen=True, slots=True)
class _Offer:
    """A place for one chunk: its quality (smallest first), and the host as it would be then."""

    order: tuple[int, str, str]
    after: Host
    placement: Placement


def _placed(hosts: dict[str, _Open], cls: JobClass, chunks: Sequence[Chunk], ended: Ended) -> Iterator[Placement]:
    taken = 0
    for kind, chunk in enumerate(chunks):
        offers = {name: _offer(there, kind, taken, cls, chunk) for name, there in hosts.items()}
        for _ in range(chunk.number):
            best = min((offer for offer in offers.values() if offer), key=lambda offer: offer.order, default=None)
            if best is None:
                return
            if ended():
                raise TooLong
            yield best.placement
            taken += 1
            name = best.placement.host
            hosts[name] = replace(hosts[name], host=best.after)
            offers[name] = _offer(hosts[name], kind, taken, cls, chunk)


def _offer(there: _Open, kind: int, taken: int, cls: JobClass, chunk: Chunk) -> _Offer | None:
    """The best place on one host, by its published rank."""
    host = there.host
    offers = []
    for domain in (d for d in host.workers if d.name in there.domains):
        claim = Claimed(host.now, domain.name, JobKey(f"chunk {taken}", 1), cls, chunk.cpus, chunk.memory_mib)
        after, said = handle(host, claim)
        answer = next((d for d in said if isinstance(d, Accepted)), None)
        if answer is not None:
            jobs = [job.key.id for d in host.domains if d.name in answer.victims for job in d.running]
            placement = Placement(
                chunk=kind, host=host.name, domain=domain.name, preempts=list(answer.victims), jobs=jobs
            )
            offers.append(_Offer((-rank(host, domain), host.name, domain.name), after, placement))
    return min(offers, key=lambda offer: offer.order, default=None)


# One domain's answer to one chunk


def _of_view(view: HostView, host: Host, cls: JobClass, size: Amount) -> Iterator[Preview]:
    snapshot = view.snapshot
    for report in snapshot.domains:
        if report.kind is Kind.SERVICE:
            continue
        name, domain = report.name, host.domain(report.name)
        assert domain is not None
        code, text = "", ""
        answer = _of(host, domain, report.vnode, cls, size)
        if not view.live:
            code, text = RefusalCode.HOST_UNKNOWN, f"{snapshot.host} has been silent for three heartbeats"
        elif cls not in report.accepts and not answer.code:
            code, text = report.state.value, report.why  # the domain's own daemon knows more
        if code:
            yield Preview(host=snapshot.host, domain=name, vnode=report.vnode, code=code, text=text)
        else:
            yield answer


def _of(host: Host, domain: Domain, vnode: str, cls: JobClass, size: Amount) -> Preview:
    answer = verdict(host, domain, cls, size)
    if isinstance(answer, Refusal):
        return Preview(host=host.name, domain=domain.name, vnode=vnode, code=answer.code, text=answer.text[:4096])
    jobs = [job.key.id for d in host.domains if d.name in answer for job in d.running]
    return Preview(host=host.name, domain=domain.name, vnode=vnode, preempts=list(answer), jobs=jobs)


def _roads(host: Host, domain: Domain, cls: JobClass, size: Amount, takes: Takes) -> list[Road]:
    """Where the memory of others goes if such a job is let in, in the order of the domains' names."""
    after, _ = handle(host, Claimed(host.now, domain.name, JobKey("chunk", 1), cls, size.cpus, size.mib))
    roads = []
    for then in after.domains:
        before = host.domain(then.name) or then
        if then.gives_way and not before.gives_way:
            road, mib = GiveWay.DISK, then.floor_mib + then.use.mib
        else:
            road, mib = GiveWay.SWAP, before.use.mib - then.use.mib if then.name != domain.name else 0
        if mib > 0:
            roads.append(Road(domain=then.name, road=road, mib=mib, expected_s=takes(road, then.name, mib)))
    return roads


def host_of(snapshot: Snapshot) -> Host:
    """A host as far as its snapshot goes; the module's docstring lists what is missing."""
    return Host(
        name=snapshot.host,
        mode=snapshot.mode,
        cpus=snapshot.cpus,
        memory_mib=snapshot.memory_mib,
        domains=tuple(sorted((_domain(report) for report in snapshot.domains), key=lambda domain: domain.name)),
        limits=Limits(min_run_s=0.0),
        hub_lost=not snapshot.hub_connected,
        paused=Pause(snapshot.paused_since, snapshot.paused) if snapshot.paused_since is not None else None,
        now=snapshot.at,
    )


def _domain(report: DomainReport) -> Domain:
    return Domain(
        name=report.name,
        kind=report.kind,
        cpus=report.ncpus,
        lifecycle=_LIFECYCLES.get(report.state, Lifecycle.UP),
        agent_lost_at=None if report.agent else 0.0,
        frozen=report.state is State.FROZEN,
        draining=report.why if report.state is State.DRAINING else "",
        sleep=_sleep(report.sleep) if isinstance(report.sleep, SleepReport) else None,
        fault=report.why if report.state is State.FAULT else "",
        preempted_s=report.preempted_s,
        jobs=tuple(_job(job) for job in sorted(report.jobs, key=lambda job: (job.id, job.run))),
    )


def _sleep(report: SleepReport) -> Sleep:
    return Sleep(since=report.since, reason=report.reason, cause=report.cause, wakes=report.wakes)


def _job(report: JobReport) -> Job:
    return Job(
        key=JobKey(report.id, report.run),
        cls=report.cls,
        cpus=report.cpus,
        memory_mib=report.memory_mib,
        claimed_at=report.claimed_at,
        run_since=report.claimed_at,
        confirmed=report.confirmed,
        launched=report.confirmed,
        stopped_since=report.stopped_since,
        stopper=report.stopper,
        booked=report.booked,
        held_elsewhere=report.held_elsewhere,
        preemptions=report.preemptions,
        preempted_s=report.preempted_s,
        rerunnable=report.rerunnable,
        keeps=report.keeps,
        given=True,
    )
