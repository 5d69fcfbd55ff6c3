"""What a domain waits for before it is saved with its jobs, and before it comes back from its sleep.

Rule 1: as in shares.py, everything here is a function of a Host, and nothing here changes a fact. sleep_events.py does.
Rule 2: no stage of a sleep is stored. A domain with the fact `sleep` falls asleep while it is up, sleeps while it is
down, and wakes while it boots (model.py).
Rule 3: a domain is saved only when nothing in it can get lost: each job is stopped, and PBS has it suspended. PBS lets
a suspended job wait for its machine; any other job it would requeue or end.

The rules are those of docs/rules.md, "Sleep".
"""

from __future__ import annotations

from .model import Domain, Host, Job, Mode, StoppedBy, once
from .shares import need_to_continue, unused
from .stopping import in_the_way_of_sleepers, waits_for_hub


def not_saved_for(host: Host, domain: Domain, job: Job) -> str:
    """Why a domain cannot be saved with this job now, for people; empty if it can."""
    if job.ending:
        return "is ending"
    if not job.confirmed:
        return "has not started yet"
    if job.stopper is StoppedBy.PBS:
        return ""
    if not job.stopped_by_us:
        return "is not stopped yet"
    until = domain.sleep.books_until if domain.sleep is not None else None
    return "" if job.booked or (until is not None and host.now >= until) else "is not suspended in PBS yet"


def to_be_saved(host: Host, domain: Domain) -> bool:
    """True if the domain is to be saved, and there is nothing left to wait for."""
    if domain.sleep is not None and (domain.sleep.wakes or domain.rests_for_move):
        return False
    return (
        domain.falls_asleep and jobs_can_be_saved(host, domain) if domain.sleep else domain.saving and not domain.jobs
    )


def jobs_can_be_saved(host: Host, domain: Domain) -> bool:
    return not any(not_saved_for(host, domain, job) for job in domain.jobs)


def why_awake(host: Host, domain: Domain) -> str:
    """For people: why a domain that falls asleep is not saved yet; empty if it is time."""
    found = ((job, not_saved_for(host, domain, job)) for job in domain.jobs)
    return "; ".join(f"{job.key} {why}" for job, why in found if why)


def why_asleep(host: Host, domain: Domain) -> str:
    """For people: why the domain sleeps, and what it waits for."""
    assert domain.sleep is not None
    jobs = f"{len(domain.jobs)} job{'' if len(domain.jobs) == 1 else 's'}"
    text = f"{domain.name} sleeps on disk with {jobs}: {domain.sleep.reason}"
    if domain.down_why:
        text += f"; {domain.down_why}"
    if not domain.sleep.wakes:
        return f"{text}; `magrathea domain defrost {domain.name}` brings it back"
    return f"{text}; it is to come back, and waits for {_waits_for(host, domain)}"


def _waits_for(host: Host, domain: Domain) -> str:
    if host.paused:
        return f"`magrathea unpause`: {host.name} is paused"
    if host.driver_lost_at is not None:
        return f"the hypervisor of {host.name}, which does not answer"
    if waits_for_hub(host, domain):
        return "a hub: PBS had not suspended all of its jobs, and may have started them elsewhere meanwhile"
    if host.mode is Mode.EXCLUSIVE:
        busy = [name for name in once(host, in_the_way_of_sleepers) if name != domain.name]
        return f"{busy[0]}, which has {host.name} for its jobs" if busy else "its turn"
    need, left = need_to_continue(domain), unused(host)
    if need.within(left):
        return "its turn"
    lacking = f"{need.cpus} CPUs" if need.cpus > max(left.cpus, 0) else f"{need.mib} MiB"
    return f"{lacking}; free are {max(left.cpus, 0)} CPUs and {max(left.mib, 0)} MiB"
