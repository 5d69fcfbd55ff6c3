"""Changes of facts that several events share. Each returns the new facts, and the notes about the change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import events as ev
from .model import Domain, Ended, Host, Job, JobClass, JobKey, Lifecycle, StoppedBy
from .refusals import RefusalCode

BOOTS: dict[str, Any] = {"lifecycle": Lifecycle.BOOTING, "paused_externally": False, "down_why": ""}
"""What every boot sets, no matter who began it. Whoever applies it also sets the deadline."""

MOST_ENDED, MOST_ENDED_PER_CPU = 100, 2
"""So many ended jobs of a domain are remembered, the second for each CPU of its host. A guest decides how many of its
jobs end, and each commit writes all that are remembered."""

_LINGER_AFTER = (ev.Note.RELEASED, ev.Note.MISSING, ev.Note.OVER)
"""How a domain's last priority job must have ended if the domain is to linger."""

Result = tuple[Host, tuple[ev.Decision, ...]]
ResultOfDomain = tuple[Domain, tuple[ev.Decision, ...]]
"""For changes of several domains: the caller builds the new host once, at the end."""


def refuse(host: Host, event: ev.DomainEvent, code: RefusalCode, text: str) -> Result:
    key = event.key if isinstance(event, ev.EventOfJob) else None
    return host, (ev.Refused(event.domain, code, text, key),)


def with_facts(host: Host, name: str, **changes: Any) -> Result:
    domain = host.domain(name)
    assert domain
    return host.having(replace(domain, **changes)), ()


def job_in(host: Host, name: str, key: JobKey) -> tuple[Domain, Job]:
    domain = host.domain(name)
    job = domain.job(key) if domain else None
    assert domain and job, f"{key} in {name} was there a moment ago"
    return domain, job


def stop(host: Host, job: Job, longest_warning_s: float | None = None) -> Job:
    warning = job.warning
    if warning is not None and longest_warning_s is not None:
        warning = replace(warning, seconds=min(warning.seconds, longest_warning_s))
    return replace(job, stopped_since=host.now, stopper=StoppedBy.US, preemptions=job.preemptions + 1, warning=warning)


def preempt(host: Host, names: tuple[str, ...], by: str, longest_warning_s: float | None = None) -> Result:
    """`host` with all running jobs of these domains stopped. No job is warned for longer than `longest_warning_s`;
    after the stop MoM's next list gives it back what it has asked for."""
    victims = [victim for name in names if (victim := host.domain(name))]
    said = tuple(ev.Noted(v.name, ev.Note.PREEMPTED, job.key, by) for v in victims for job in v.running)
    return host.having(*(v.having(*(stop(host, job, longest_warning_s) for job in v.running)) for v in victims)), said


def remove_job(host: Host, name: str, key: JobKey, why: ev.JobGone) -> Result:
    domain, job = job_in(host, name, key)
    left, said = without_jobs(host, domain, (job,), why)
    return host.having(left), said


def without_jobs(host: Host, domain: Domain, jobs: tuple[Job, ...], why: ev.JobGone) -> ResultOfDomain:
    """`domain` after these of its jobs have ended, in this order. Their preempted seconds stay with the domain."""
    if not jobs:
        return domain, ()
    gone, preempted_s = {job.key for job in jobs}, domain.preempted_s
    said: list[ev.Decision] = []
    for job in jobs:
        stopped_s = host.now - job.stopped_since if job.stopped_by_us and job.stopped_since is not None else 0.0
        preempted_s += stopped_s
        said.append(ev.Noted(domain.name, why, job.key, "", job.preempted_s + stopped_s))
    rest = tuple(j for j in domain.jobs if j.key not in gone)
    # A domain that is down sends no late list. If somebody else has saved it, it comes back with its jobs.
    denied = why is ev.Note.NOT_GIVEN
    ended = () if why is ev.Note.DOMAIN_DOWN else tuple(Ended(job.key, host.now, denied) for job in jobs)
    most = MOST_ENDED + MOST_ENDED_PER_CPU * host.cpus
    left = replace(domain, jobs=rest, ended=(domain.ended + ended)[-most:], preempted_s=preempted_s)
    last = jobs[-1]
    believed = last.given or host.hub_lost
    last_priority = last.cls is JobClass.PRIORITY and not rest and why in _LINGER_AFTER and believed
    if last_priority and domain.sleep is None and not domain.drain_reason and host.limits.linger_s > 0:
        left = replace(left, linger_until=host.now + host.limits.linger_s, linger_size=last.size)
    return left, tuple(said)


def bring_down(host: Host, domain: Domain, why: str) -> Result:
    left, said = brought_down(host, domain, why)
    return host.having(left), said


def brought_down(host: Host, domain: Domain, why: str) -> ResultOfDomain:
    """`domain` after it went down: its jobs have ended, and facts about a running domain are cleared."""
    left, said = without_jobs(host, domain, domain.jobs, ev.Note.DOMAIN_DOWN)
    over: dict[str, Any] = {"boot_until": None, "saving": False, "linger_until": None, "paused_externally": False}
    return replace(left, lifecycle=Lifecycle.DOWN, down_why=why, sleep=None, woken_at=None, **over), said
