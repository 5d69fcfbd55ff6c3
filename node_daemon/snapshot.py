"""The host as others see it: facts and what follows from them, as one message for hub and `magrathea status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from magrathea.core import plan
from magrathea.core.allocation import to_requeue, wanted_here
from magrathea.core.model import Domain, Host, Job, JobKey
from magrathea.core.states import accepts, published, rank, state_of, why
from magrathea.messages import DomainReport, JobReport, Snapshot

from .hypervisor import base
from .journal import Since


@dataclass(frozen=True, slots=True)
class Beside:
    """What a snapshot says beside the facts. `actual`: what is so in the plan's figures, `read`: in the driver's own,
    which may be coarser; `by`: what each stopped job was preempted for."""

    boot_id: str
    actual: Mapping[str, plan.ActualDomain] = field(default_factory=dict)
    read: Mapping[str, base.ActualDomain] = field(default_factory=dict)
    since: Mapping[str, Since] = field(default_factory=dict)
    vnodes: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[tuple[str, JobKey], str] = field(default_factory=dict)
    driver: str = "local"
    notes: tuple[str, ...] = ()


def snapshot(host: Host, beside: Beside, revision: int = 0) -> Snapshot:
    """Everything about the host. Only `at` and `revision` differ between two snapshots of the same facts."""
    wanted, wants = wanted_here(host), plan.desired(host)
    return Snapshot(
        host=host.name,
        boot_id=beside.boot_id,
        revision=revision,
        at=host.now,
        mode=host.mode,
        cpus=host.cpus,
        memory_mib=host.memory_mib,
        domains=[_domain(host, d, beside, wanted, wants.get(d.name)) for d in host.domains],
        driver=beside.driver,
        hub_connected=not host.hub_lost,
        notes=[note[:4096] for note in beside.notes],
    )


def same(one: Snapshot, other: Snapshot) -> bool:
    """Whether they say the same, whenever they were made."""
    return msgspec.structs.replace(one, at=0, revision=0) == msgspec.structs.replace(other, at=0, revision=0)


def _domain(
    host: Host, domain: Domain, beside: Beside, wanted: frozenset[tuple[str, JobKey]], want: plan.Want | None
) -> DomainReport:
    size = published(host, domain)
    read = beside.read.get(domain.name)
    state = state_of(host, domain)
    since = beside.since.get(domain.name)
    return DomainReport(
        name=domain.name,
        vnode=beside.vnodes.get(domain.name, domain.name),
        kind=domain.kind,
        state=state,
        since=since.since if since else host.now,
        why=why(host, domain)[:4096],
        accepts=list(accepts(host, domain)),
        rank=rank(host, domain),
        ncpus=max(0, size.cpus),
        mem_mib=max(0, size.mib),
        jobs=[_job(host, domain, job, beside, wanted) for job in domain.jobs],
        cpu_percent=read.cpu_percent if read else None,
        want_cpu_percent=want.cpu_percent if want else None,
        memory_mib=read.memory_mib if read else None,
        want_memory_mib=max(0, want.memory_mib) if want and want.memory_mib is not None else None,
        preempted_s=domain.preempted_s,
        agent=domain.agent_lost_at is None,
    )


def _job(host: Host, domain: Domain, job: Job, beside: Beside, wanted: frozenset[tuple[str, JobKey]]) -> JobReport:
    return JobReport(
        id=job.key.id,
        run=job.key.run,
        cls=job.cls,
        cpus=max(0, job.cpus),
        memory_mib=max(0, job.memory_mib),
        claimed_at=job.claimed_at,
        confirmed=job.confirmed,
        stop=(domain.name, job.key) in wanted,
        ready=plan.ready(host, beside.actual, domain, job.key),
        requeue=(domain.name, job.key) in to_requeue(host),
        stopped_since=job.stopped_since,
        stopper=job.stopper.value if job.stopper else None,
        preempted_by=beside.by.get((domain.name, job.key), "")[:4096],
        preempted_s=job.preempted_s,
        preemptions=job.preemptions,
        booked=job.booked,
        held_elsewhere=job.held_elsewhere,
        rerunnable=job.rerunnable,
    )
