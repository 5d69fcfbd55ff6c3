"""Changes of facts that several events share; each gives the new host and what there is to say about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import events as ev
from .model import Domain, Ended, Host, Job, JobClass, JobKey, Lifecycle, Stopper
from .refusals import RefusalCode

BOOTS: dict[str, Any] = {"lifecycle": Lifecycle.BOOTING, "paused_externally": False, "down_why": ""}
"""The facts of every boot, whoever began it; its deadline comes beside."""

Result = tuple[Host, tuple[ev.Decision, ...]]


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


def stop(host: Host, job: Job) -> Job:
    return replace(job, stopped_since=host.now, stopper=Stopper.US, preemptions=job.preemptions + 1)


def preempt(host: Host, names: tuple[str, ...], by: str) -> Result:
    said: tuple[ev.Decision, ...] = ()
    for name in names:
        victim = host.domain(name)
        for job in victim.running if victim else ():
            host = host.having(job_in(host, name, job.key)[0].having(stop(host, job)))
            said += (ev.Noted(name, ev.Note.PREEMPTED, job.key, by),)
    return host, said


def remove_job(host: Host, name: str, key: JobKey, why: ev.JobGone) -> Result:
    """The job taken away; its preempted seconds stay with the domain."""
    domain, job = job_in(host, name, key)
    stopped_s = host.now - job.stopped_since if job.stopped_by_us and job.stopped_since is not None else 0.0
    rest = tuple(j for j in domain.jobs if j.key != key)
    # A domain that is down says nothing late; one saved behind our back comes back with its jobs.
    ended = domain.ended if why is ev.Note.DOMAIN_DOWN else (*domain.ended, Ended(key, host.now))
    left = replace(domain, jobs=rest, ended=ended, preempted_s=domain.preempted_s + stopped_s)
    last_priority = job.cls is JobClass.PRIORITY and not rest and why in (ev.Note.RELEASED, ev.Note.MISSING)
    if last_priority and not domain.drain_reason and host.limits.linger_s > 0:
        left = replace(left, linger_until=host.now + host.limits.linger_s, linger_size=job.size)
    return host.having(left), (ev.Noted(name, why, key, "", job.preempted_s + stopped_s),)


def bring_down(host: Host, domain: Domain, why: str) -> Result:
    said: tuple[ev.Decision, ...] = ()
    for job in domain.jobs:
        host, more = remove_job(host, domain.name, job.key, ev.Note.DOMAIN_DOWN)
        said += more
    over = {"boot_until": None, "saving": False, "linger_until": None, "paused_externally": False}
    return with_facts(host, domain.name, lifecycle=Lifecycle.DOWN, down_why=why, **over)[0], said
