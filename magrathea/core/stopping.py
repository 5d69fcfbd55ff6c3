"""Who is stopped, who goes on, and who is requeued.

The rules are those of docs/rules.md, "Resuming" and "Rules for both". As in allocation.py, everything here is a
function of a Host, and nothing here changes a fact.
"""

from __future__ import annotations

from dataclasses import replace

from .allocation import lingers, restoring, summed, unused
from .model import Amount, Domain, Host, Job, JobClass, JobKey, Kind, Mode, Stopper


def holds_host(domain: Domain) -> bool:
    """A priority job runs here: on an exclusive host nobody else's preemptible job does."""
    return any(j.cls is JobClass.PRIORITY for j in domain.jobs)


def wanted_stopped(host: Host) -> frozenset[tuple[str, JobKey]]:
    """(domain, job) of all jobs that must not run now. A job that is ending is neither stopped nor waited for; one
    that was stopped before stays so: its end needs no CPU, and there is none for it. On a paused host: those that are
    stopped.
    """
    to_stop = ((d, j) for d in host.workers for j in _to_stop(host, d))
    return frozenset((d.name, j.key) for d, j in to_stop if j.stopped_by_us or not j.ending)


def wanted_here(host: Host) -> frozenset[tuple[str, JobKey]]:
    """What this host wants stopped on its own account: all that it may tell the hub.

    Of a job that another host holds: what would be if only that were lifted. Told more, two hosts would hold a job
    for each other for ever; told as if nothing were held, each could wait for what the other keeps from it.
    """
    wanted = wanted_stopped(host)
    for domain, job in ((d, j) for d in host.workers for j in d.jobs if j.held_elsewhere):
        lifted = host.having(domain.having(replace(job, held_elsewhere=False)))
        if (domain.name, job.key) not in wanted_stopped(lifted):
            wanted -= {(domain.name, job.key)}
    return wanted


def _to_stop(host: Host, domain: Domain) -> tuple[Job, ...]:
    ours = tuple(j for j in domain.jobs if j.cls is JobClass.PREEMPTIBLE and j.stopper is not Stopper.PBS)
    if host.paused:
        return tuple(j for j in ours if j.stopped_by_us)
    if host.mode is Mode.EXCLUSIVE:
        siblings = host.siblings(domain)
        if domain.kind is Kind.NORMAL and any(holds_host(s) for s in siblings):
            return ours
        waiting = any(lingers(host, s) or restoring(s) for s in siblings)
    else:
        waiting = domain.stopped_since is not None and domain.name not in resuming(host)
    return tuple(j for j in ours if j.held_elsewhere or (waiting and j.stopped_by_us))


def to_requeue(host: Host) -> frozenset[tuple[str, JobKey]]:
    """(domain, job) of the jobs stopped by us for longer than the admin allows in one stop, and rerunnable."""
    limit = host.limits.max_preempted_s
    late = ((d, j) for d in host.workers for j in d.stopped if j.stopped_since is not None and j.rerunnable)
    due = not host.paused and limit
    return frozenset((d.name, j.key) for d, j in late if due and host.now >= (j.stopped_since or 0.0) + limit)


def in_line(host: Host) -> tuple[Domain, ...]:
    """Preempted domains, longest preempted first; those held for another host's sake only are not in this line."""
    preempted = [d for d in host.workers if any(not j.held_elsewhere for j in d.stopped)]
    return tuple(sorted(preempted, key=lambda d: (d.stopped_since or 0.0, d.name)))


def overdue(host: Host, domain: Domain) -> bool:
    since = domain.overtaken_since
    return since is not None and host.now >= since + host.limits.overtaken_s


def _has_host_to_itself(host: Host, domain: Domain) -> bool:
    """Nothing runs in any other domain, and none is kept for others: what this one stopped goes on, whatever it needs.

    Else a job would be stopped for ever on a host that has been made smaller since, or on which services have come up.
    """
    others = host.siblings(domain)
    return not any(d.running for d in others) and not any(lingers(host, d) for d in others)


def resuming(host: Host) -> frozenset[str]:
    """On a counted host: the preempted domains that fit now. They may use what is reserved for frozen ones.

    A claim resumes nobody: while one is provisional nobody goes before a longer preempted domain that does not fit
    (less room would else let a smaller one pass), and while one that had to stop somebody is, nobody goes on at all.
    Nor does anybody while a domain is restored: what its victims had beyond its need goes to nobody before it is back.
    On a paused host nobody goes on either.
    """
    if host.paused or any(restoring(d) for d in host.workers):
        return frozenset()
    stops = {j.stopped_since for d in host.workers for j in d.stopped}
    claims = {j.claimed_at for d in host.workers for j in d.jobs if j.cls is JobClass.PRIORITY and not j.confirmed}
    if claims & stops:
        return frozenset()
    left = unused(host)
    names: set[str] = set()
    for domain in in_line(host):
        back = [j for j in domain.stopped if not j.held_elsewhere]
        staying = tuple(j for j in domain.stopped if j.held_elsewhere)
        gives_up = domain.stuck_mib(domain.stopped) - domain.stuck_mib(staying)
        need = summed(j.size for j in back) - Amount(0, gives_up)
        if need.within(left) or (not names and _has_host_to_itself(host, domain)):
            left -= need
            names.add(domain.name)
        elif claims or overdue(host, domain):
            break  # its turn has come: nobody goes before it any more
    return frozenset(names)
