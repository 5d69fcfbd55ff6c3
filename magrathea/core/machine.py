"""Changes the facts of a host when an event comes. Nothing else changes them.

`handle` passes an event to what changes facts for it: job_events.py, domain_events.py or reconfiguration.py.

Rule 1: `handle` is a function; the same facts and the same event give the same facts and decisions.
Rule 2: deadlines take effect in the order of their times, before the event itself.
Rule 3: a refused or impossible event changes only the time.
Rule 4: there is no undo. After every event, what must be done follows anew from the facts (stopping.py, plan.py).

A stop becomes a fact with the claim that needs it. It stops being one only when the job really runs again
(`JobsContinued`). So a claim during a switch only changes what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from . import domain_events, job_events, sleep_events
from . import events as ev
from .changes import Result, ResultOfDomain, brought_down, refuse, stop, with_facts, without_jobs
from .giving_way import due_until
from .model import NOTHING, Amount, Domain, Host, Patience, Pause, once
from .reconfiguration import reconfigured, without_leftovers
from .refusals import RefusalCode
from .shares import any_young, lingers
from .stopping import in_line, resuming, to_stop

FORGET_S = 30.0
"""Ended jobs of a domain are forgotten together, after this time at the earliest: each time is a write to disk, and a
guest decides how many of its jobs end."""


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
    return once(host, _next_deadline)


def _next_deadline(host: Host) -> float | None:
    return min((t for t in _deadlines(host) if t > host.now), default=None)


def _deadlines(host: Host) -> Iterator[float]:
    limits = host.limits
    if host.driver_lost_at is not None:
        yield host.driver_lost_at + limits.agent_silent_s
    for d in host.domains:
        books_until = d.sleep.books_until if d.sleep is not None else None
        yield from (t for t in (d.boot_until, d.linger_until, books_until, due_until(d)) if t is not None)
        after = ((d.agent_lost_at, limits.agent_silent_s), (d.young_since, limits.young_s))
        for since, span in (*after, (d.overtaken_since, limits.overtaken_s)):
            if since is not None:
                yield since + span
        if d.ended:
            yield min(e.at for e in d.ended) + limits.remember_s + FORGET_S
        has_new = host.now < d.latest_start + limits.min_run_s  # otherwise each minimum run is over
        for j in d.jobs:
            if not j.confirmed:
                yield j.claimed_at + limits.claim_s
            if has_new:
                yield j.run_since + limits.min_run_s
            if j.stopped_since is not None and limits.max_preempted_s:
                yield max(j.stopped_since, d.woken_at or 0.0) + limits.max_preempted_s


def _expired(host: Host) -> Result:
    """`host` without what has expired by now: boots, claims, lingering, remembered jobs."""
    changed: list[Domain] = []
    said: list[ev.Decision] = []
    for domain in host.domains:
        left, more = _expired_in(host, domain)
        changed.append(left)
        said += more
    return host.having(*changed), tuple(said)


def _expired_in(host: Host, domain: Domain) -> ResultOfDomain:
    limits, left = host.limits, domain
    said: tuple[ev.Decision, ...] = ()
    silent = domain.agent_lost_at is not None and domain.agent_lost_at + limits.agent_silent_s <= host.now
    if domain.boot_until is not None and domain.boot_until <= host.now:
        why = f"it did not register within its time limit for booting; {domain_events.image_or_console(domain)}"
        left, more = domain_events.gone(host, domain, why)
        said = (ev.Noted(domain.name, ev.Note.BOOT_FAILED, None, why), *more)
    elif silent and not domain.configured and not domain.away:
        left, said = brought_down(host, domain, "it is no longer configured, and its agent is silent")
    expired = tuple(j for j in left.jobs if not j.confirmed and j.claimed_at + limits.claim_s <= host.now)
    left, more = without_jobs(host, left, expired, ev.Note.EXPIRED)
    if left.linger_until is not None and not lingers(host, left):
        left = replace(left, linger_until=None, linger_size=NOTHING)
    if any(e.at + limits.remember_s + FORGET_S <= host.now for e in left.ended):
        left = replace(left, ended=tuple(e for e in left.ended if e.at + limits.remember_s > host.now))
    return left, said + more


def _settled(host: Host, said: tuple[ev.Decision, ...], by: str) -> Result:
    """Mark jobs that must not run as stopped, and update the facts that depend on other facts."""
    host, stops = _stopped_where_wanted(host, by)
    host, gives_way = sleep_events.given_way(host)
    fits = resuming(host)
    places = {d.name: place for place, d in enumerate(in_line(host))}
    last_overtaker = max((places[name] for name in fits), default=-1)
    changed = []
    for domain in host.workers:
        place = places.get(domain.name)
        overtaken = place is not None and domain.name not in fits and place < last_overtaker
        since = domain.overtaken_since if place is not None else None
        settled = _with_dependent_facts(host, domain, host.now if overtaken and since is None else since)
        if settled is not domain:
            changed.append(settled)
    host, more = without_leftovers(host.having(*changed) if changed else host)
    host, wakes = sleep_events.woken(host)
    said += stops + gives_way + more + wakes
    if (wakes or more) and sleep_events.given_way(host)[0] is not host:
        return _settled(host, said, by)  # there is more memory now, or less
    return host, said


def _stopped_where_wanted(host: Host, by: str) -> Result:
    changed: list[Domain] = []
    said: list[ev.Decision] = []
    for domain in host.workers:
        stopping = [job for job in to_stop(host, domain) if not job.stopped_by_us]
        if stopping:
            changed.append(domain.having(*(stop(host, job) for job in stopping)))
        for job in stopping:
            why = "another host of the job" if job.held_elsewhere else by
            why = "its domain's sleep" if domain.falls_asleep and not domain.must_give_way else why
            why = "its domain's move" if domain.rests_for_move else why
            said.append(ev.Noted(domain.name, ev.Note.PREEMPTED, job.key, why))
    return (host.having(*changed) if changed else host), tuple(said)


def _with_dependent_facts(host: Host, domain: Domain, overtaken_since: float | None) -> Domain:
    """`domain` with its dependent facts updated. It is the same object if nothing changes, so its answers remain."""
    has_young = any_young(host, domain)
    young_since = (host.now if domain.young_since is None else domain.young_since) if has_young else None
    closing = domain.closing
    if closing is not None and closing.patience is Patience.IDLE and not domain.jobs:
        closing = replace(closing, patience=Patience.DRAIN)
    woken_at = domain.woken_at if domain.stopped else None
    facts = (overtaken_since, young_since, closing, woken_at)
    if facts == (domain.overtaken_since, domain.young_since, domain.closing, domain.woken_at):
        return domain
    left = replace(domain, overtaken_since=overtaken_since, young_since=young_since)
    return replace(left, closing=closing, woken_at=woken_at)


def _reconfigured(host: Host, event: ev.Reconfigured) -> Result:
    host, said = reconfigured(host, event)
    host, more = _expired(host)  # with shorter limits, what has lasted longer expires at once
    return host, said + more


def _of_domain(host: Host, domain: Domain, event: ev.DomainEvent) -> Result:
    match event:
        case ev.Claimed():
            return job_events.claimed(host, domain, event)
        case ev.Released():
            return job_events.released(host, domain, event)
        case ev.JobLaunched():
            return job_events.launched(host, domain, event)
        case ev.JobsContinued():
            return job_events.continued(host, domain, event)
        case ev.JobsReported():
            return job_events.jobs_reported(host, domain, event)
        case ev.JobsGiven():
            return job_events.given(host, domain, event)
        case ev.JobsDenied():
            return job_events.denied(host, domain, event)
        case ev.AgentConnected():
            return with_facts(host, domain.name, agent_lost_at=None)
        case ev.AgentLost():
            lost_at = host.now if domain.agent_lost_at is None else domain.agent_lost_at
            return with_facts(host, domain.name, agent_lost_at=lost_at)
        case ev.MemoryReported():
            return domain_events.memory_reported(host, domain, event)
        case ev.DiskJudged():
            return domain_events.disk_judged(host, domain, event)
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
        case ev.SleepRequested():
            return domain_events.sleep_requested(host, domain, event)
        case ev.SleepEnded():
            return sleep_events.awake_after_all(host, domain, event)
        case ev.FreezeEnded():
            return domain_events.freeze_ended(host, domain, event)
        case ev.DefrostRequested():
            return domain_events.defrost_requested(host, domain, event)
        case ev.ImageLost():
            return domain_events.image_lost(host, domain, event)
        case ev.DrainRequested():
            return domain_events.drain_requested(host, domain, event)
        case ev.DrainEnded():
            awake = sleep_events.kept_awake(host, domain)
            return host.having(replace(awake, draining="", saving=False, closing=None)), ()
        case ev.Faulted():
            return with_facts(host, domain.name, fault=event.reason or "no reason given")
        case ev.FaultCleared():
            return with_facts(host, domain.name, fault="", stays_awake="")
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
