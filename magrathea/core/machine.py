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

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from . import domain_events, job_events
from . import events as ev
from .allocation import in_line, lingers, resuming, wanted_stopped, young
from .changes import Result, bring_down, job_in, refuse, remove_job, stop, with_facts
from .model import NOTHING, Amount, Domain, Host, Patience, Pause
from .reconfiguration import reconfigured, without_leftovers
from .refusals import RefusalCode


def handle(host: Host, event: ev.Event) -> Result:
    """The host after `event`, and what was decided. A time before the host's own counts as now."""
    said: tuple[ev.Decision, ...] = ()
    while (due := next_deadline(host)) is not None and due <= event.at:
        host, more = _settled(*_expired(replace(host, now=due)), "")
        said += more
    host = replace(host, now=max(host.now, event.at))
    if not isinstance(event, ev.DomainEvent):
        host, more = _OF_HOST[type(event)](host, event)
    elif domain := host.domain(event.domain):
        host, more = _OF_DOMAIN[type(event)](host, domain, event)
    else:
        _, more = refuse(host, event, RefusalCode.UNKNOWN_DOMAIN, f"{host.name} has no domain {event.domain}")
    host, more = _settled(host, more, str(getattr(event, "key", "")))
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
            said += (ev.Noted(d.name, "boot-failed", None, why), *more)
        elif not d.configured and d.agent_lost_at is not None and d.agent_lost_at + silent_s <= host.now:
            host, more = bring_down(host, d, "it is no longer configured, and its agent is silent")
            said += more
        for j in (host.domain(d.name) or d).jobs:
            if not j.confirmed and j.claimed_at + host.limits.claim_s <= host.now:
                host, more = remove_job(host, d.name, j.key, "expired")
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
            said += (ev.Noted(name, "preempted", key, by if not job.held_elsewhere else "another host of the job"),)
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


def _pause(host: Host, event: ev.PauseRequested) -> Result:
    since = host.paused.since if host.paused else host.now
    return replace(host, paused=Pause(since, event.reason or "no reason given")), ()


def _driver_lost(host: Host, event: ev.DriverLost) -> Result:
    return (host if host.driver_lost_at is not None else replace(host, driver_lost_at=host.now)), ()


def _others(host: Host, event: ev.OthersSeen) -> Result:
    return replace(host, others=Amount(max(0, event.cpus), max(0, event.memory_mib))), ()


def _reconfigured(host: Host, event: ev.Reconfigured) -> Result:
    host, said = reconfigured(host, event)
    host, more = _expired(host)  # shorter limits end at once what has lasted longer
    return host, said + more


def _daemon_started(host: Host, event: ev.DaemonStarted) -> Result:
    away = tuple(replace(d, agent_lost_at=host.now) for d in host.domains)
    return replace(host, domains=away, hub_lost=True), ()


_OF_DOMAIN: dict[type, Callable[[Host, Domain, Any], Result]] = {
    ev.Claimed: job_events.claimed,
    ev.Released: job_events.released,
    ev.JobLaunched: job_events.launched,
    ev.JobContinued: job_events.continued,
    ev.JobsReported: job_events.jobs_reported,
    ev.AgentConnected: lambda h, d, e: with_facts(h, d.name, agent_lost_at=None),
    ev.AgentLost: lambda h, d, e: (
        (h, ()) if d.agent_lost_at is not None else with_facts(h, d.name, agent_lost_at=h.now)
    ),
    ev.MemoryReported: domain_events.memory_reported,
    ev.DomainBooting: domain_events.booting,
    ev.DomainStarted: domain_events.started,
    ev.DomainStopped: domain_events.stopped,
    ev.DomainHalted: domain_events.halted,
    ev.DomainWentOn: lambda h, d, e: with_facts(h, d.name, paused_externally=False),
    ev.BootRequested: domain_events.boot_requested,
    ev.ShutdownRequested: domain_events.shutdown_requested,
    ev.FreezeRequested: domain_events.freeze_requested,
    ev.FreezeEnded: domain_events.freeze_ended,
    ev.DefrostRequested: domain_events.defrost_requested,
    ev.ImageLost: domain_events.image_lost,
    ev.DrainRequested: domain_events.drain_requested,
    ev.DrainEnded: lambda h, d, e: with_facts(h, d.name, draining="", saving=False, closing=None),
    ev.Faulted: lambda h, d, e: with_facts(h, d.name, fault=e.reason or "no reason given"),
    ev.FaultCleared: lambda h, d, e: with_facts(h, d.name, fault=""),
}

_OF_HOST: dict[type, Callable[[Host, Any], Result]] = {
    ev.Reconfigured: _reconfigured,
    ev.BooksReported: job_events.books_reported,
    ev.DaemonStarted: _daemon_started,
    ev.PauseRequested: _pause,
    ev.PauseEnded: lambda h, e: (replace(h, paused=None), ()),
    ev.DriverLost: _driver_lost,
    ev.DriverFound: lambda h, e: (replace(h, driver_lost_at=None), ()),
    ev.OthersSeen: _others,
    ev.HubLost: lambda h, e: (replace(h, hub_lost=True), ()),
    ev.HubFound: lambda h, e: (replace(h, hub_lost=False), ()),
    ev.TimerFired: lambda h, e: (h, ()),
}
