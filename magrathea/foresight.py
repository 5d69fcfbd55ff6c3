"""What a claim would be answered now, and what it would preempt: the core's verdict, asked without a claim.

The daemon has the facts: its answer is the one that a claim at this moment would get. The hub has snapshots: a domain
that does not publish the class refuses (its own daemon has worked that out); for the rest the host is put together
again from its snapshot. Not in a snapshot: floors, swap, locked memory, how long jobs have run, lingering. So the hub's
word is exact about who accepts and, by CPUs, about who is preempted; about memory only the daemon knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from magrathea.core.allocation import Refusal, verdict
from magrathea.core.model import (
    Amount,
    Domain,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Limits,
    Pause,
    State,
    Stopper,
)
from magrathea.messages import DomainReport, HostView, JobReport, Preview, Snapshot

_LIFECYCLES = {State.DOWN: Lifecycle.DOWN, State.FROZEN: Lifecycle.DOWN, State.BOOTING: Lifecycle.BOOTING}


def preview(host: Host, vnodes: Mapping[str, str], cls: JobClass, size: Amount) -> list[Preview]:
    """Each working domain's answer to a claim of a job of `cls`."""
    return [_of(host, domain, vnodes.get(domain.name, domain.name), cls, size) for domain in host.workers]


def preview_farm(hosts: Iterable[HostView], cls: JobClass, size: Amount) -> list[Preview]:
    """The same for all hosts, as far as the hub's snapshots tell."""
    return [answer for view in hosts for answer in _of_view(view, cls, size)]


def _of_view(view: HostView, cls: JobClass, size: Amount) -> Iterable[Preview]:
    snapshot = view.snapshot
    host = host_of(snapshot)
    for report in snapshot.domains:
        if report.kind is Kind.SERVICE:
            continue
        name, domain = report.name, host.domain(report.name)
        assert domain is not None
        code, text = "", ""
        if not view.live:
            code, text = "host-unknown", f"{snapshot.host} has not been heard for three heartbeats"
        elif cls not in report.accepts:
            code, text = report.state.value, report.why
        if code:
            yield Preview(host=snapshot.host, domain=name, vnode=report.vnode, code=code, text=text)
        else:
            yield _of(host, domain, report.vnode, cls, size)


def _of(host: Host, domain: Domain, vnode: str, cls: JobClass, size: Amount) -> Preview:
    answer = verdict(host, domain, cls, size)
    if isinstance(answer, Refusal):
        return Preview(host=host.name, domain=domain.name, vnode=vnode, code=answer.code, text=answer.text[:4096])
    jobs = [job.key.id for d in host.domains if d.name in answer for job in d.running]
    return Preview(host=host.name, domain=domain.name, vnode=vnode, preempts=list(answer), jobs=jobs)


def host_of(snapshot: Snapshot) -> Host:
    """A host as far as its snapshot tells; see the module for what it does not."""
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
        fault=report.why if report.state is State.FAULT else "",
        preempted_s=report.preempted_s,
        jobs=tuple(_job(job) for job in sorted(report.jobs, key=lambda job: (job.id, job.run))),
    )


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
        stopper=Stopper(report.stopper) if report.stopper else None,
        booked=report.booked,
        held_elsewhere=report.held_elsewhere,
        preemptions=report.preemptions,
        preempted_s=report.preempted_s,
        rerunnable=report.rerunnable,
    )
