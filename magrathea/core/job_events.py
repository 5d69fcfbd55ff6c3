"""What an event about jobs changes: claims, starts and ends, MoM's lists, PBS's books. Called by machine.py only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from . import events as ev
from .allocation import costs_siblings, verdict
from .changes import Result, preempt, refuse, remove_job, without_jobs
from .model import NOTHING, Amount, Domain, Host, Job, JobClass, JobKey, Kind, Lifecycle, StoppedBy
from .refusals import Refusal, RefusalCode
from .shares import most_jobs
from .stopping import wanted_stopped

LIST_AGE_S = 5.0
"""MoM's list may be this old (its hook runs in the background), so it does not overrule a newer stop or resume."""


def claimed(host: Host, domain: Domain, event: ev.Claimed) -> Result:
    known, before = domain.job_of(event.key.id), host
    if known and known.key == event.key:
        return host, (ev.Accepted(domain.name, event.key),)
    newest = max((k.run for k in _keys(domain) if k.id == event.key.id), default=0)
    if newest > event.key.run:
        return refuse(
            host, event, RefusalCode.STALE_RUN, f"{domain.name} has had run {newest} of {event.key.id} already"
        )
    if any(e.key == event.key for e in domain.ended):
        return refuse(host, event, RefusalCode.RUN_ENDED, f"{event.key} has ended in {domain.name}")
    said: tuple[ev.Decision, ...] = ()
    if known:
        host, said = remove_job(host, domain.name, known.key, ev.Note.NEWER_RUN)
    here = host.domain(domain.name) or domain
    answer = verdict(host, here, event.cls, Amount(event.cpus, event.memory_mib))
    if isinstance(answer, Refusal):
        return refuse(before, event, answer.code, answer.text)
    if not event.given and costs_siblings(host, here, answer):
        text = f"{event.key} would cost siblings of {domain.name} something, and PBS has not been asked about it"
        return refuse(before, event, RefusalCode.UNCONFIRMED, text)
    host, more = preempt(host, answer, str(event.key), event.longest_warning_s)
    size = (event.cpus, event.memory_mib)
    new = Job(event.key, event.cls, *size, host.now, host.now)
    new = replace(new, rerunnable=event.rerunnable, given=event.given, keeps=event.keeps, warning=event.warning)
    host = host.having(replace(here.having(new), linger_until=None, linger_size=NOTHING))
    return host, (*said, *more, ev.Accepted(domain.name, event.key, answer))


def released(host: Host, domain: Domain, event: ev.Released) -> Result:
    return remove_job(host, domain.name, event.key, ev.Note.RELEASED) if domain.job(event.key) else (host, ())


def launched(host: Host, domain: Domain, event: ev.JobLaunched) -> Result:
    if not (job := domain.job(event.key)):
        return refuse(host, event, RefusalCode.UNKNOWN_JOB, f"{domain.name} has no {event.key}")
    since = job.run_since if job.launched else host.now
    return host.having(domain.having(replace(job, launched=True, confirmed=True, run_since=since))), ()


def continued(host: Host, domain: Domain, event: ev.JobsContinued) -> Result:
    """Each job is judged by itself."""
    running: list[Job] = []
    said: list[ev.Decision] = []
    total_s = 0.0
    jobs = {job.key: job for job in domain.jobs}
    for key in dict.fromkeys(event.keys):
        job = jobs.get(key)
        if not job or not job.stopped_by_us or job.stopped_since is None:
            text = f"{key} in {domain.name} is not stopped by us"
            said.append(ev.Refused(domain.name, RefusalCode.NOT_STOPPED, text, key))
        elif domain.away or (not host.paused and (domain.name, key) in wanted_stopped(host)):
            text = f"{key} must not run now: it is stopped again"
            said.append(ev.Refused(domain.name, RefusalCode.WANTED_STOPPED, text, key))
        else:
            seconds = host.now - job.stopped_since
            total_s += seconds
            preempted_s = job.preempted_s + seconds
            running.append(replace(job, stopped_since=None, stopper=None, run_since=host.now, preempted_s=preempted_s))
            said.append(ev.Noted(domain.name, ev.Note.CONTINUED, key, "", seconds))
    if not running:
        return host, tuple(said)
    changed = replace(domain.having(*running), preempted_s=domain.preempted_s + total_s)
    return host.having(changed), tuple(said)


def given(host: Host, domain: Domain, event: ev.JobsGiven) -> Result:
    """What has ended meanwhile stays so. What was removed because PBS had not given it may be claimed and listed."""
    found = ((job, one) for one in event.jobs if (job := domain.job(one.key)) is not None)
    changed = [new for job, one in found if (new := _as_given(host, job, one)) != job]
    keys = {one.key for one in event.jobs}
    if any(e.denied and e.key in keys for e in domain.ended):
        domain = replace(domain, ended=tuple(e for e in domain.ended if not (e.denied and e.key in keys)))
    elif not changed:
        return host, ()
    return host.having(domain.having(*changed)), ()


def _as_given(host: Host, job: Job, one: ev.GivenJob) -> Job:
    cpus = job.cpus if one.cpus is None else one.cpus
    memory_mib = job.memory_mib if one.memory_mib is None else one.memory_mib
    size = _within(host, cpus, memory_mib)
    return replace(job, given=True, cpus=size.cpus, memory_mib=size.mib)


def denied(host: Host, domain: Domain, event: ev.JobsDenied) -> Result:
    """Remove jobs that PBS does not have there. A list or claim does not bring them back while they are remembered."""
    jobs = [job for key in dict.fromkeys(event.keys) if (job := domain.job(key)) is not None]
    left, said = without_jobs(host, domain, tuple(job for job in jobs if not job.given), ev.Note.NOT_GIVEN)
    left, more = without_jobs(host, left, tuple(job for job in jobs if job.given), ev.Note.OVER)
    return (host.having(left) if jobs else host), (*said, *more)


def jobs_reported(host: Host, domain: Domain, event: ev.JobsReported) -> Result:
    """Enter MoM's list in one pass. Each job's change depends only on that job and on the other runs of its id."""
    if domain.lifecycle is not Lifecycle.UP or domain.kind is Kind.SERVICE:
        return refuse(host, event, RefusalCode.NO_JOBS_HERE, f"{domain.name} ({domain.kind}) is {domain.lifecycle}")
    said: list[ev.Decision] = []
    listed = {r.key: r for r in event.jobs}
    newest = _newest_runs(listed)
    missing: dict[JobKey, Job] = {}
    gone: list[tuple[Job, ev.JobGone]] = []
    for job in domain.jobs:
        if job.key in listed:
            continue
        newer = newest.get(job.key.id, job.key.run) > job.key.run
        if newer or job.missing >= 1:
            gone.append((job, ev.Note.NEWER_RUN if newer else ev.Note.MISSING))
        else:
            missing[job.key] = replace(job, missing=job.missing + 1)
    here = domain
    for why, some in groupby(gone, key=lambda one: one[1]):
        here, more = without_jobs(host, here, tuple(job for job, _ in some), why)
        said += more
    jobs = {job.key: missing.get(job.key, job) for job in here.jobs}
    ids = {key.id for key in jobs}
    had = _newest_runs(_keys(here))
    most, left_out = most_jobs(host), 0
    for key, report in sorted(listed.items()):
        if key in jobs:
            jobs[key] = _confirmed(host, jobs[key], report)
        elif report.ending and key.id not in ids:
            continue  # seen: if a sister's answer is lost, a MoM lists an ended job of several hosts for ever
        elif key.id in ids or had.get(key.id, -1) >= key.run:
            continue
        elif len(jobs) >= most:
            left_out += 1
        else:
            jobs[key] = _adopted(host, key, report)
            ids.add(key.id)
            said.append(ev.Noted(domain.name, ev.Note.ADOPTED, key, "nobody claimed it; it is protected"))
    if left_out:
        text = f"{left_out} jobs of its list: it has {len(jobs)}, and a domain of {host.name} has at most {most}"
        said.append(ev.Noted(domain.name, ev.Note.LEFT_OUT, None, text))
    here = replace(here, jobs=tuple(jobs[key] for key in sorted(jobs)))
    if here.jobs and here.linger_until is not None:  # what it waited for is there, as after a claim
        here = replace(here, linger_until=None, linger_size=NOTHING)
    return host.having(here), tuple(said)


def _adopted(host: Host, key: JobKey, report: ev.ReportedJob) -> Job:
    """A job that nobody claimed. The list comes from a guest, and no job is larger than its host."""
    size = _within(host, report.cpus, report.memory_mib)
    at = host.now
    job = Job(key, JobClass.PROTECTED, size.cpus, size.mib, at, at, True, True, rerunnable=report.rerunnable)
    return replace(job, warning=report.warning)


def _within(host: Host, cpus: int, memory_mib: int) -> Amount:
    return Amount(max(0, min(cpus, host.cpus)), max(0, min(memory_mib, host.memory_mib)))


def _newest_runs(keys: Iterable[JobKey]) -> dict[str, int]:
    """The newest run of each job among `keys`."""
    found: dict[str, int] = {}
    for key in keys:
        found[key.id] = max(key.run, found.get(key.id, key.run))
    return found


def _confirmed(host: Host, job: Job, report: ev.ReportedJob) -> Job:
    warning = job.warning if job.stopped_by_us else report.warning  # a warning under way is not changed
    job = replace(job, confirmed=True, missing=0, ending=report.ending, rerunnable=report.rerunnable, warning=warning)
    if job.stopped_by_us or job.booked or host.now < job.run_since + LIST_AGE_S:
        return job
    if report.suspended and job.stopper is None:
        return replace(job, stopper=StoppedBy.PBS, stopped_since=host.now)
    if not report.suspended and job.stopper is StoppedBy.PBS:
        return replace(job, stopper=None, stopped_since=None, run_since=host.now)
    return job


def books_reported(host: Host, event: ev.BooksReported) -> Result:
    books = {b.key: b for b in event.jobs}
    changed = []
    for domain in host.workers:
        jobs = [job for known in domain.jobs if (job := _as_in_books(known, books.get(known.key))) is not known]
        if jobs:
            changed.append(domain.having(*jobs))
    return host.having(*changed), ()


def _as_in_books(job: Job, book: ev.Booking | None) -> Job:
    booked, held = (book.booked, book.held) if book else (False, False)
    held = held and job.cls is JobClass.PREEMPTIBLE and not job.keeps
    if (job.booked, job.held_elsewhere) == (booked, held):
        return job
    return replace(job, booked=booked, held_elsewhere=held)


def _keys(domain: Domain) -> Iterator[JobKey]:
    """The runs of jobs that are here, or were a short while ago."""
    yield from (j.key for j in domain.jobs)
    yield from (e.key for e in domain.ended)
