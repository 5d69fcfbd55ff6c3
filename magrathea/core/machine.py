"""What an event does to the facts of a host: the only place where facts change.

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

from . import events as ev
from .allocation import defrost_verdict, in_line, lingers, restoring, resuming, verdict, wanted_stopped, young
from .model import (
    NOTHING,
    Amount,
    Closing,
    Domain,
    Ended,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Patience,
    Pause,
    Stopper,
)
from .reconfiguration import reconfigured, without_leftovers
from .refusals import Refusal, RefusalCode

LIST_AGE_S = 5.0
"""MoM's list may be that old (its hook runs in the background): it does not overrule a newer stop or continuation."""

_BOOTS: dict[str, Any] = {"lifecycle": Lifecycle.BOOTING, "paused_externally": False, "down_why": ""}
"""The facts of every boot, whoever began it; its deadline comes beside."""

Result = tuple[Host, tuple[ev.Decision, ...]]


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
        _, more = _refused(host, event, RefusalCode.UNKNOWN_DOMAIN, f"{host.name} has no domain {event.domain}")
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
            why = f"it did not register within its time limit for booting; {_image_or_console(d)}"
            host, more = _down(host, d, why)
            said += (ev.Noted(d.name, "boot-failed", None, why), *more)
        elif not d.configured and d.agent_lost_at is not None and d.agent_lost_at + silent_s <= host.now:
            host, more = _down(host, d, "it is no longer configured, and its agent is silent")
            said += more
        for j in (host.domain(d.name) or d).jobs:
            if not j.confirmed and j.claimed_at + host.limits.claim_s <= host.now:
                host, more = _gone(host, d.name, j.key, "expired")
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
        domain, job = _job(host, name, key)
        if not job.stopped_by_us:
            host = host.having(domain.having(_stop(host, job)))
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


def _job(host: Host, name: str, key: JobKey) -> tuple[Domain, Job]:
    domain = host.domain(name)
    job = domain.job(key) if domain else None
    assert domain and job, f"{key} in {name} was there a moment ago"
    return domain, job


def _stop(host: Host, job: Job) -> Job:
    return replace(job, stopped_since=host.now, stopper=Stopper.US, preemptions=job.preemptions + 1)


def _gone(host: Host, name: str, key: JobKey, why: str) -> Result:
    """The job taken away; its preempted seconds stay with the domain."""
    domain, job = _job(host, name, key)
    stopped_s = host.now - job.stopped_since if job.stopped_by_us and job.stopped_since is not None else 0.0
    rest = tuple(j for j in domain.jobs if j.key != key)
    # A domain that is down says nothing late; one saved behind our back comes back with its jobs.
    ended = domain.ended if why == "domain-down" else (*domain.ended, Ended(key, host.now))
    left = replace(domain, jobs=rest, ended=ended, preempted_s=domain.preempted_s + stopped_s)
    last_priority = job.cls is JobClass.PRIORITY and not rest and why in ("released", "missing")
    if last_priority and not domain.drain_reason and host.limits.linger_s > 0:
        left = replace(left, linger_until=host.now + host.limits.linger_s, linger_size=job.size)
    return host.having(left), (ev.Noted(name, why, key, "", job.preempted_s + stopped_s),)


def _with(host: Host, name: str, **changes: Any) -> Result:
    domain = host.domain(name)
    assert domain
    return host.having(replace(domain, **changes)), ()


def _down(host: Host, domain: Domain, why: str) -> Result:
    said: tuple[ev.Decision, ...] = ()
    for job in domain.jobs:
        host, more = _gone(host, domain.name, job.key, "domain-down")
        said += more
    over = {"boot_until": None, "saving": False, "linger_until": None, "paused_externally": False}
    return _with(host, domain.name, lifecycle=Lifecycle.DOWN, down_why=why, **over)[0], said


def _image_or_console(domain: Domain) -> str:
    if domain.frozen:
        return f"its image is kept: look at its console, then `magrathea domain defrost {domain.name}`"
    return f"look at its console and at its agent, then `magrathea domain boot {domain.name}`"


def _refused(host: Host, event: ev.DomainEvent, code: RefusalCode, text: str) -> Result:
    return host, (ev.Refused(event.domain, code, text, getattr(event, "key", None)),)


def _preempt(host: Host, names: tuple[str, ...], by: str) -> Result:
    said: tuple[ev.Decision, ...] = ()
    for name in names:
        victim = host.domain(name)
        for job in victim.running if victim else ():
            host = host.having(_job(host, name, job.key)[0].having(_stop(host, job)))
            said += (ev.Noted(name, "preempted", job.key, by),)
    return host, said


def _keys(domain: Domain) -> Iterator[JobKey]:
    """The runs of jobs that are here, or were a short while ago."""
    yield from (j.key for j in domain.jobs)
    yield from (e.key for e in domain.ended)


# One function per event that does more than set a fact; the table of all events is at the end.


def _claimed(host: Host, domain: Domain, event: ev.Claimed) -> Result:
    known, before = domain.job_of(event.key.id), host
    if known and known.key == event.key:
        return host, (ev.Accepted(domain.name, event.key),)
    newest = max((k.run for k in _keys(domain) if k.id == event.key.id), default=0)
    if newest > event.key.run:
        return _refused(
            host, event, RefusalCode.STALE_RUN, f"{domain.name} has had run {newest} of {event.key.id} already"
        )
    if any(e.key == event.key for e in domain.ended):
        return _refused(host, event, RefusalCode.RUN_ENDED, f"{event.key} has ended in {domain.name}")
    said: tuple[ev.Decision, ...] = ()
    if known:
        host, said = _gone(host, domain.name, known.key, "newer-run")
    here = host.domain(domain.name) or domain
    answer = verdict(host, here, event.cls, Amount(event.cpus, event.memory_mib))
    if isinstance(answer, Refusal):
        return _refused(before, event, answer.code, answer.text)
    host, more = _preempt(host, answer, str(event.key))
    new = Job(event.key, event.cls, event.cpus, event.memory_mib, host.now, host.now, rerunnable=event.rerunnable)
    host = host.having(replace(here.having(new), linger_until=None, linger_size=NOTHING))
    return host, (*said, *more, ev.Accepted(domain.name, event.key, answer))


def _released(host: Host, domain: Domain, event: ev.Released) -> Result:
    return _gone(host, domain.name, event.key, "released") if domain.job(event.key) else (host, ())


def _launched(host: Host, domain: Domain, event: ev.JobLaunched) -> Result:
    if not (job := domain.job(event.key)):
        return _refused(host, event, RefusalCode.UNKNOWN_JOB, f"{domain.name} has no {event.key}")
    since = job.run_since if job.launched else host.now
    return host.having(domain.having(replace(job, launched=True, confirmed=True, run_since=since))), ()


def _continued(host: Host, domain: Domain, event: ev.JobContinued) -> Result:
    if not (job := domain.job(event.key)) or not job.stopped_by_us or job.stopped_since is None:
        return _refused(host, event, RefusalCode.NOT_STOPPED, f"{event.key} in {domain.name} is not stopped by us")
    if not host.paused and (domain.name, event.key) in wanted_stopped(host):
        return _refused(host, event, RefusalCode.WANTED_STOPPED, f"{event.key} must not run now: it is stopped again")
    seconds = host.now - job.stopped_since
    runs = replace(job, stopped_since=None, stopper=None, run_since=host.now, preempted_s=job.preempted_s + seconds)
    host = host.having(replace(domain.having(runs), preempted_s=domain.preempted_s + seconds))
    return host, (ev.Noted(domain.name, "continued", event.key, "", seconds),)


def _jobs_reported(host: Host, domain: Domain, event: ev.JobsReported) -> Result:
    if domain.lifecycle is not Lifecycle.UP or domain.kind is Kind.SERVICE:
        return _refused(host, event, RefusalCode.NO_JOBS_HERE, f"{domain.name} ({domain.kind}) is {domain.lifecycle}")
    said: tuple[ev.Decision, ...] = ()
    listed = {r.key: r for r in event.jobs}
    for job in domain.jobs:
        newer = any(r.key.id == job.key.id and r.key.run > job.key.run for r in event.jobs)
        if job.key not in listed and (newer or job.missing >= 1):
            host, more = _gone(host, domain.name, job.key, "newer-run" if newer else "missing")
            said += more
        elif job.key not in listed:
            host = host.having(_job(host, domain.name, job.key)[0].having(replace(job, missing=job.missing + 1)))
    for key, report in sorted(listed.items()):
        here = host.domain(domain.name) or domain
        if (known := here.job_of(key.id)) and known.key == key:
            host = host.having(here.having(_confirmed(host, known, report)))
        elif report.ending and not known:
            continue  # a MoM may list for ever what has ended on several hosts: a sister's answer was lost (seen)
        elif not known and not any(k.id == key.id and k.run >= key.run for k in _keys(here)):
            size = (max(0, report.cpus), max(0, report.memory_mib))
            new = Job(key, JobClass.PROTECTED, *size, host.now, host.now, True, True, rerunnable=report.rerunnable)
            host = host.having(here.having(new))
            said += (ev.Noted(domain.name, "adopted", key, "nobody claimed it; it is protected"),)
    return host, said


def _confirmed(host: Host, job: Job, report: ev.ReportedJob) -> Job:
    job = replace(job, confirmed=True, missing=0, ending=report.ending, rerunnable=report.rerunnable)
    if job.stopped_by_us or job.booked or host.now < job.run_since + LIST_AGE_S:
        return job
    if report.suspended and job.stopper is None:
        return replace(job, stopper=Stopper.PBS, stopped_since=host.now)
    if not report.suspended and job.stopper is Stopper.PBS:
        return replace(job, stopper=None, stopped_since=None, run_since=host.now)
    return job


def _books(host: Host, event: ev.BooksReported) -> Result:
    books = {b.key: b for b in event.jobs}
    for domain in host.workers:
        jobs = []
        for job in domain.jobs:
            book = books.get(job.key, ev.Booking(job.key, booked=False))
            held = book.held and job.cls is JobClass.PREEMPTIBLE
            jobs.append(replace(job, booked=book.booked, held_elsewhere=held))
        host = host.having(replace(domain, jobs=tuple(jobs)))
    return host, ()


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


def _booting(host: Host, domain: Domain, event: ev.DomainBooting) -> Result:
    if event.until <= host.now:
        return _refused(
            host, event, RefusalCode.BAD_REQUEST, f"a boot of {domain.name} until {event.until} is over already"
        )
    return _with(host, domain.name, boot_until=event.until, saving=False, **_BOOTS)


def _not_for_an_admin(host: Host, domain: Domain, *, but_closing: bool = False) -> Refusal | None:
    """Why an admin's wish about a domain's life cannot be heard now."""
    name = domain.name
    paused = host.paused.reason if host.paused else ""
    gates = (
        (domain.kind is Kind.SERVICE, RefusalCode.WRONG_KIND, f"{name} is a service: it is left alone"),
        (
            host.paused is not None,
            RefusalCode.PAUSED,
            f"{host.name} is paused ({paused}); `magrathea unpause` there first",
        ),
        (
            domain.closing is not None and not but_closing,
            RefusalCode.DOMAIN_CLOSING,
            f"{name} is to go down; wait for it, or give that up by `magrathea undrain {name}`",
        ),
    )
    return next((Refusal(code, text) for holds, code, text in gates if holds), None)


def _boot(host: Host, domain: Domain, event: ev.BootRequested) -> Result:
    if no := _not_for_an_admin(host, domain):
        return _refused(host, event, no.code, no.text)
    if domain.frozen and not restoring(domain):
        text = f"{domain.name} is saved to disk; `magrathea domain defrost {domain.name}` brings it back as it was"
        return _refused(host, event, RefusalCode.DOMAIN_FROZEN, text)
    if domain.lifecycle is Lifecycle.DOWN:
        host, _ = _with(host, domain.name, boot_until=host.now + domain.boot_limit_s, **_BOOTS)
    return host, (ev.Accepted(domain.name),)


def _shutdown(host: Host, domain: Domain, event: ev.ShutdownRequested) -> Result:
    if no := _not_for_an_admin(host, domain, but_closing=True):
        return _refused(host, event, no.code, no.text)
    if domain.frozen or domain.saving:
        text = f"{domain.name} is saved to disk, or is just being saved or restored; defrost it first, or wait"
        return _refused(host, event, RefusalCode.DOMAIN_FROZEN, text)
    since = domain.closing.since if domain.closing else host.now
    host, _ = _with(host, domain.name, closing=Closing(event.reboot, event.patience, since))
    return host, (ev.Accepted(domain.name),)


def _stopped(host: Host, domain: Domain, event: ev.DomainStopped) -> Result:
    closing = domain.closing
    why = "it went down by itself, or by somebody else"
    if closing:
        why = "it was shut down on request"
    elif domain.lifecycle is Lifecycle.DOWN:
        why = domain.down_why
    why = event.reason or why
    host, said = _down(host, domain, why)
    host, _ = _with(host, domain.name, closing=None)
    if closing and closing.reboot and not domain.frozen:
        host, _ = _with(host, domain.name, boot_until=host.now + domain.boot_limit_s, **_BOOTS)
    return host, said


def _halted(host: Host, domain: Domain, event: ev.DomainHalted) -> Result:
    if domain.lifecycle is not Lifecycle.UP:
        return _refused(host, event, RefusalCode.DOMAIN_DOWN, f"{domain.name} is {domain.lifecycle}")
    return _with(host, domain.name, paused_externally=True)


def _started(host: Host, domain: Domain, event: ev.DomainStarted) -> Result:
    if domain.lifecycle is Lifecycle.UP:
        return host, ()
    up = replace(domain, lifecycle=Lifecycle.UP, boot_until=None, frozen=False, paused_externally=False, down_why="")
    if up.agent_lost_at is not None:
        up = replace(up, agent_lost_at=host.now)
    if domain.frozen and host.limits.linger_s > 0:
        until = host.now + host.limits.linger_s
        up = replace(up, linger_until=until, linger_size=Amount(domain.cpus, domain.memory_mib))
    return host.having(up), ()


def _freeze(host: Host, domain: Domain, event: ev.FreezeRequested) -> Result:
    if no := _not_for_an_admin(host, domain):
        return _refused(host, event, no.code, no.text)
    if domain.kind is not Kind.PRIORITY or domain.lifecycle is not Lifecycle.UP:
        return _refused(
            host, event, RefusalCode.NOT_FREEZABLE, f"only a priority domain that is up is frozen, not {domain.name}"
        )
    return _with(host, domain.name, saving=True)


def _freeze_ended(host: Host, domain: Domain, event: ev.FreezeEnded) -> Result:
    if not domain.saving or domain.jobs:
        return _refused(host, event, RefusalCode.NOT_SAVING, f"{domain.name} is not being saved")
    host, _ = _with(host, domain.name, saving=False, frozen=not event.failed)
    if event.failed:
        return host, (ev.Noted(domain.name, "freeze-failed", None, event.failed),)
    over = {"lifecycle": Lifecycle.DOWN, "agent_lost_at": host.now, "linger_until": None, "paused_externally": False}
    return _with(host, domain.name, down_why="", **over)


def _defrost(host: Host, domain: Domain, event: ev.DefrostRequested) -> Result:
    if restoring(domain):
        return host, (ev.Accepted(domain.name),)
    answer = defrost_verdict(host, domain, event.until)
    if isinstance(answer, Refusal):
        return _refused(host, event, answer.code, answer.text)
    host, said = _preempt(host, answer, f"the restore of {domain.name}")
    host, _ = _with(host, domain.name, boot_until=event.until, **_BOOTS)
    return host, (*said, ev.Accepted(domain.name, None, answer))


def _image_lost(host: Host, domain: Domain, event: ev.ImageLost) -> Result:
    if not domain.frozen:
        return host, ()
    host, said = _down(host, domain, "its image on disk is gone")
    return host.having(replace(host.domain(domain.name) or domain, frozen=False)), said


def _drain(host: Host, domain: Domain, event: ev.DrainRequested) -> Result:
    if domain.kind is Kind.SERVICE:
        return _refused(host, event, RefusalCode.WRONG_KIND, f"{domain.name} is a service; it takes no jobs anyway")
    return _with(host, domain.name, draining=event.reason or "no reason given")


def _memory(host: Host, domain: Domain, event: ev.MemoryReported) -> Result:
    if event.unreclaimable_mib < 0:
        return _refused(host, event, RefusalCode.BAD_REQUEST, f"{event.unreclaimable_mib} MiB is no amount of memory")
    return _with(host, domain.name, unreclaimable_mib=event.unreclaimable_mib)


_OF_DOMAIN: dict[type, Callable[[Host, Domain, Any], Result]] = {
    ev.Claimed: _claimed,
    ev.Released: _released,
    ev.JobLaunched: _launched,
    ev.JobContinued: _continued,
    ev.JobsReported: _jobs_reported,
    ev.AgentConnected: lambda h, d, e: _with(h, d.name, agent_lost_at=None),
    ev.AgentLost: lambda h, d, e: (h, ()) if d.agent_lost_at is not None else _with(h, d.name, agent_lost_at=h.now),
    ev.MemoryReported: _memory,
    ev.DomainBooting: _booting,
    ev.DomainStarted: _started,
    ev.DomainStopped: _stopped,
    ev.DomainHalted: _halted,
    ev.DomainWentOn: lambda h, d, e: _with(h, d.name, paused_externally=False),
    ev.BootRequested: _boot,
    ev.ShutdownRequested: _shutdown,
    ev.FreezeRequested: _freeze,
    ev.FreezeEnded: _freeze_ended,
    ev.DefrostRequested: _defrost,
    ev.ImageLost: _image_lost,
    ev.DrainRequested: _drain,
    ev.DrainEnded: lambda h, d, e: _with(h, d.name, draining="", saving=False, closing=None),
    ev.Faulted: lambda h, d, e: _with(h, d.name, fault=e.reason or "no reason given"),
    ev.FaultCleared: lambda h, d, e: _with(h, d.name, fault=""),
}

_OF_HOST: dict[type, Callable[[Host, Any], Result]] = {
    ev.Reconfigured: _reconfigured,
    ev.BooksReported: _books,
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
