"""What an event does to the facts of a host: the only door to them.

`handle` takes an event to the function that changes facts for it: job_events.py, domain_events.py, reconfiguration.py.

Rule 1: `handle` is a function; the same facts and the same event give the same facts and decisions.
Rule 2: deadlines take effect in the order of their times, before the event itself.
Rule 3: a refused or impossible event changes nothing but the time.
Rule 4: there is no undo. What has to be done follows from the facts (allocation.py, plan.py), after every event anew.

A job's stop begins as a fact here, with the claim that needs it. It ends as a fact when it has ended in the world
(`JobContinued`), so that a claim during a switch only changes what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from . import domain_events, job_events
from . import events as ev
from .allocation import lingers, young
from .changes import Result, bring_down, job_in, refuse, remove_job, stop, with_facts
from .model import NOTHING, Amount, Domain, Host, Patience, Pause
from .reconfiguration import reconfigured, without_leftovers
from .refusals import RefusalCode
from .stopping import in_line, resuming, wanted_stopped


def handle(host: Host, event: ev.Event) -> Result:
    """The host after `event`, and what was decided. A time before the host's own counts as now."""
    said: tuple[ev.Decision, ...] = ()
    while (due := next_deadline(host)) is not None and due <= event.at:
        host, more = _settled(*_expired(replace(host, now=due)), "")
        said += more
    host = replace(host, now=max(host.now, event.at))
    if not isinstance(event, ev.EventOfDomain):
        host, more = _of_host(host, event)
    elif domain := host.domain(event.domain):
        host, more = _of_domain(host, domain, event)
    else:
        _, more = refuse(host, event, RefusalCode.UNKNOWN_DOMAIN, f"{host.name} has no domain {event.domain}")
    host, more = _settled(host, more, str(event.key) if isinstance(event, ev.EventOfJob) else "")
    return host, said + more


def next_deadline(host: Host) -> float | None:
    """When a `TimerFired` may next change something, or None."""
    return min((t for t in _deadlines(host) if t > host.now), default=None)


def _deadlines(host: Host) -> Iterator[float]:
    limits = host.limits
    if host.driver_lost_at is not None:
        yield host.driver_lost_at + limits.agent_silent_s
    for d in host.domains:
        yield from (t for t in (d.boot_until, d.linger_until) if t is not None)
        after = ((d.agent_lost_at, limits.agent_silent_s), (d.young_since, limits.young_s))
        for since, span in (*after, (d.overtaken_since, limits.overtaken_s)):
            if since is not None:
                yield since + span
        yield from (e.at + limits.remember_s for e in d.ended)
        for j in d.jobs:
            if not j.confirmed:
                yield j.claimed_at + limits.claim_s
            yield j.run_since + limits.min_run_s
            if j.stopped_since is not None and limits.max_preempted_s:
                yield j.stopped_since + limits.max_preempted_s


def _expired(host: Host) -> Result:
    """What the present time ends: boots, claims, lingering, the memory of ended jobs."""
    said: tuple[ev.Decision, ...] = ()
    silent_s = host.limits.agent_silent_s
    for d in host.domains:
        if d.boot_until is not None and d.boot_until <= host.now:
            why = f"it did not register within its time limit for booting; {domain_events.image_or_console(d)}"
            host, more = bring_down(host, d, why)
            said += (ev.Noted(d.name, ev.Note.BOOT_FAILED, None, why), *more)
        elif not d.configured and d.agent_lost_at is not None and d.agent_lost_at + silent_s <= host.now:
            host, more = bring_down(host, d, "it is no longer configured, and its agent is silent")
            said += more
        for j in (host.domain(d.name) or d).jobs:
            if not j.confirmed and j.claimed_at + host.limits.claim_s <= host.now:
                host, more = remove_job(host, d.name, j.key, ev.Note.EXPIRED)
                said += more
    for d in host.domains:
        ended = tuple(e for e in d.ended if e.at + host.limits.remember_s > host.now)
        over = d.linger_until is not None and not lingers(host, d)
        kept = replace(d, linger_until=None, linger_size=NOTHING) if over else d
        host = host.having(replace(kept, ended=ended))
    return host, said


def _settled(host: Host, said: tuple[ev.Decision, ...], by: str) -> Result:
    """Mark what must be stopped as stopped, and bring the facts that depend on other facts up to date."""
    wanted = wanted_stopped(host)
    for name, key in sorted(wanted):
        domain, job = job_in(host, name, key)
        if not job.stopped_by_us:
            host = host.having(domain.having(stop(host, job)))
            said += (
                ev.Noted(name, ev.Note.PREEMPTED, key, by if not job.held_elsewhere else "another host of the job"),
            )
    fits, line = resuming(host), [d.name for d in in_line(host)]
    overtakers = [i for i, name in enumerate(line) if name in fits]
    for d in host.workers:
        ahead = d.name in line and d.name not in fits and any(i > line.index(d.name) for i in overtakers)
        overtaken = (host.now if d.overtaken_since is None else d.overtaken_since) if ahead else d.overtaken_since
        has_young = any(young(host, j) for j in d.jobs)
        since = (host.now if d.young_since is None else d.young_since) if has_young else None
        closing = replace(d.closing, patience=Patience.DRAIN) if _idle_at_last(d) and d.closing else d.closing
        overtaken = overtaken if d.name in line else None
        host = host.having(replace(d, overtaken_since=overtaken, young_since=since, closing=closing))
    host, more = without_leftovers(host)
    return host, said + more


def _idle_at_last(domain: Domain) -> bool:
    return domain.closing is not None and domain.closing.patience is Patience.IDLE and not domain.jobs


def _reconfigured(host: Host, event: ev.Reconfigured) -> Result:
    host, said = reconfigured(host, event)
    host, more = _expired(host)  # shorter limits end at once what has lasted longer
    return host, said + more


def _of_domain(host: Host, domain: Domain, event: ev.DomainEvent) -> Result:
    match event:
        case ev.Claimed():
            return job_events.claimed(host, domain, event)
        case ev.Released():
            return job_events.released(host, domain, event)
        case ev.JobLaunched():
            return job_events.launched(host, domain, event)
        case ev.JobContinued():
            return job_events.continued(host, domain, event)
        case ev.JobsReported():
            return job_events.jobs_reported(host, domain, event)
        case ev.AgentConnected():
            return with_facts(host, domain.name, agent_lost_at=None)
        case ev.AgentLost():
            lost_at = host.now if domain.agent_lost_at is None else domain.agent_lost_at
            return with_facts(host, domain.name, agent_lost_at=lost_at)
        case ev.MemoryReported():
            return domain_events.memory_reported(host, domain, event)
        case ev.DomainBooting():
            return domain_events.booting(host, domain, event)
        case ev.DomainStarted():
            return domain_events.started(host, domain, event)
        case ev.DomainStopped():
            return domain_events.stopped(host, domain, event)
        case ev.DomainHalted():
            return domain_events.halted(host, domain, event)
        case ev.DomainWentOn():
            return with_facts(host, domain.name, paused_externally=False)
        case ev.BootRequested():
            return domain_events.boot_requested(host, domain, event)
        case ev.ShutdownRequested():
            return domain_events.shutdown_requested(host, domain, event)
        case ev.FreezeRequested():
            return domain_events.freeze_requested(host, domain, event)
        case ev.FreezeEnded():
            return domain_events.freeze_ended(host, domain, event)
        case ev.DefrostRequested():
            return domain_events.defrost_requested(host, domain, event)
        case ev.ImageLost():
            return domain_events.image_lost(host, domain, event)
        case ev.DrainRequested():
            return domain_events.drain_requested(host, domain, event)
        case ev.DrainEnded():
            return with_facts(host, domain.name, draining="", saving=False, closing=None)
        case ev.Faulted():
            return with_facts(host, domain.name, fault=event.reason or "no reason given")
        case ev.FaultCleared():
            return with_facts(host, domain.name, fault="")
        case _:
            assert_never(event)


def _of_host(host: Host, event: ev.HostEvent) -> Result:
    match event:
        case ev.Reconfigured():
            return _reconfigured(host, event)
        case ev.BooksReported():
            return job_events.books_reported(host, event)
        case ev.DaemonStarted():
            away = tuple(replace(d, agent_lost_at=host.now) for d in host.domains)
            return replace(host, domains=away, hub_lost=True), ()
        case ev.PauseRequested():
            since = host.paused.since if host.paused else host.now
            return replace(host, paused=Pause(since, event.reason or "no reason given")), ()
        case ev.PauseEnded():
            return replace(host, paused=None), ()
        case ev.DriverLost():
            lost_at = host.now if host.driver_lost_at is None else host.driver_lost_at
            return replace(host, driver_lost_at=lost_at), ()
        case ev.DriverFound():
            return replace(host, driver_lost_at=None), ()
        case ev.OthersSeen():
            return replace(host, others=Amount(max(0, event.cpus), max(0, event.memory_mib))), ()
        case ev.HubLost():
            return replace(host, hub_lost=True), ()
        case ev.HubFound():
            return replace(host, hub_lost=False), ()
        case ev.TimerFired():
            return host, ()
        case _:
            assert_never(event)
