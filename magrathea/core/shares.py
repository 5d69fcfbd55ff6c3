"""What the domains of a host have, what they could give up, and what is left for one more job.

Rule 1: everything here is a function of a Host. No clock, no I/O, no memory of how the Host came to be so.
Rule 2: what concerns the whole host is computed once for it (`model.once`): sums over all domains (`_Sums`), which
domains can be stopped. An answer about one domain is taken from that. So it costs the same on a host of many domains
and jobs as on a small one.

The rules are those of docs/rules.md. This file decides one question that its formulas leave open. Preemptible jobs may
use the CPUs reserved for frozen domains, no matter which came first. So a priority job stops them only if the host is
really full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from .model import NOTHING, Amount, Domain, GiveWay, Host, Job, JobClass, Kind, Lifecycle, Mode, StoppedBy, once

MOST_JOBS, MOST_JOBS_PER_CPU = 4096, 4
"""So many jobs a domain may have, the second for each CPU of its host: no fewer than a message of a guest can list
(`MAX_JOBS`). Jobs without CPUs run, too, and an admin may have told PBS of more CPUs than there are."""

# Small questions about one domain.


def silent(host: Host, domain: Domain) -> bool:
    """True if agent or hypervisor have been away for longer than the grace time, or the agent cannot answer at all."""
    lost = min((at for at in (domain.agent_lost_at, host.driver_lost_at) if at is not None), default=None)
    return domain.paused_externally or (lost is not None and host.now >= lost + host.limits.agent_silent_s)


def lingers(host: Host, domain: Domain) -> bool:
    return domain.linger_until is not None and host.now < domain.linger_until and not domain.jobs


def restoring(domain: Domain) -> bool:
    return domain.frozen and domain.lifecycle is Lifecycle.BOOTING


def need_to_continue(domain: Domain) -> Amount:
    """What the domain needs, beyond what its jobs hold now, for all jobs that no other host holds."""
    held = [j for j in domain.stopped if j.held_elsewhere]
    staying_mib = domain.stuck_of(len(held), sum(j.memory_mib for j in held))
    now_mib = 0 if domain.away else domain.stuck_mib(domain.stopped)
    return summed(j.size for j in domain.to_continue) + Amount(0, staying_mib - now_mib)


def place_kept(domain: Domain) -> Amount:
    """What is kept for a domain that falls asleep or wakes, until it is saved or its jobs continue."""
    return need_to_continue(domain) if domain.keeps_its_place else NOTHING


def young(host: Host, job: Job) -> bool:
    """True if the job has run for less than the minimum since it was started or continued."""
    return not job.stopped_by_us and host.now < job.run_since + host.limits.min_run_s


def any_young(host: Host, domain: Domain) -> bool:
    """True if the domain has a young job."""
    return host.now < domain.latest_start + host.limits.min_run_s and any(young(host, j) for j in domain.jobs)


def obstacle(host: Host, domain: Domain, job: Job) -> str:
    """Why this job cannot be stopped now, for people; empty if it can ("stoppable" in docs/rules.md)."""
    limits = host.limits
    if job.cls is not JobClass.PREEMPTIBLE:
        return f"is of class {job.cls}"
    if job.keeps:
        return f"has {job.keeps}, which a stop would not give back"
    if not job.launched:
        return "has not started yet"
    if job.ending:
        return "is ending"
    if job.stopper is StoppedBy.PBS:
        return "is suspended by others"
    if 0 < limits.max_preemptions <= job.preemptions:
        return f"has been preempted {job.preemptions} times"
    youth_counts = domain.young_since is None or host.now < domain.young_since + limits.young_s
    return f"has run for less than {limits.min_run_s:g} s" if youth_counts and young(host, job) else ""


def most_jobs(host: Host) -> int:
    """How many jobs a domain may have. A guest decides how many there are that need no CPU."""
    return MOST_JOBS + MOST_JOBS_PER_CPU * host.cpus


def all_stoppable(host: Host, domain: Domain) -> bool:
    """True if each of the domain's jobs is stoppable, or already stopped by us."""
    return domain.name in once(host, _all_stoppable)


def _all_stoppable(host: Host) -> frozenset[str]:
    return frozenset(d.name for d in host.workers if not any(obstacle(host, d, j) for j in d.running))


def stoppable_by_itself(host: Host, domain: Domain) -> bool:
    """True if the domain itself can be stopped; its host may be paused or without its hub."""
    answers = domain.agent_lost_at is None and not domain.paused_externally
    reachable = domain.lifecycle is Lifecycle.UP and answers and not domain.fault
    may_be = domain.kind is Kind.NORMAL and not domain.keeps_its_place
    return may_be and reachable and all_stoppable(host, domain)


def stoppable(host: Host, domain: Domain) -> bool:
    return not host.hub_lost and not host.paused and stoppable_by_itself(host, domain)


def may_sleep(host: Host, domain: Domain) -> bool:
    """True if the domain's memory can go to disk when others need it: the domain may be put to sleep then."""
    may_be = domain.kind is Kind.NORMAL and domain.configured and domain.closing is None
    return host.limits.give_way is not GiveWay.SWAP and may_be and not domain.disk_obstacle and not domain.stays_awake


def use_when_stopped(host: Host, domain: Domain) -> Amount:
    """What the domain's jobs would hold for good if they were stopped: nothing if it may be put to sleep."""
    return NOTHING if may_sleep(host, domain) else domain.use_when_stopped


def disk_obstacles(host: Host) -> str:
    """For people: why domains are not put to sleep whose jobs hold memory, or would hold it if they were stopped; empty
    if all may be, or none is to."""
    if host.limits.give_way is GiveWay.SWAP:
        return ""
    held = (d for d in host.workers if d.kind is Kind.NORMAL and not d.away and d.use_when_stopped.mib)
    whys = ((d.name, d.stays_awake or d.disk_obstacle) for d in held)
    return "; ".join(f"{name} is not put to sleep for it: {why}" for name, why in whys if why)


# What siblings are doing.


def first_two(names: Iterable[str]) -> tuple[str, ...]:
    """The first two names. Two are enough to know whether a sibling is among them: one may be the domain itself."""
    return tuple(islice(names, 2))


def sibling_among(names: tuple[str, ...], domain: Domain) -> bool:
    return any(name != domain.name for name in names)


def with_running_jobs(host: Host) -> tuple[str, ...]:
    """The domains with jobs that run, or that fall asleep or come back from their sleep."""
    return tuple(d.name for d in host.workers if d.running or d.keeps_its_place)


# What is left: shares.


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a host's working domains have together.

    `past_stopping`: their use if everything stoppable were stopped. `leaving_mib`: what stopped jobs hold now and can
    give by a sleep of their domain. `stay_mib`: on an exclusive host, what their jobs
    keep of the memory if what can be stopped is stopped. `reserved`: for frozen domains. `held_back`: what domains keep
    from others while they linger, are restored, fall asleep or wake. `preempted`: jobs of one are stopped by us, or
    sleep, and are to go on when there is room.
    """

    floors_mib: int
    use: Amount
    past_stopping: Amount
    leaving_mib: int
    stay_mib: int
    reserved: Amount
    held_back: Amount
    preempted: bool


def _sums(host: Host) -> _Sums:
    return _Sums(
        floors_mib=sum(d.floor_mib for d in host.workers),
        use=summed(d.use for d in host.workers),
        past_stopping=summed(use_when_stopped(host, d) if stoppable(host, d) else d.use for d in host.workers),
        leaving_mib=sum(d.use.mib for d in host.workers if not d.running and stoppable(host, d) and may_sleep(host, d)),
        stay_mib=sum(_stays_mib(host, d) for d in host.workers),
        reserved=summed(Amount(d.cpus, d.memory_mib) for d in host.workers if d.frozen and not restoring(d)),
        held_back=summed(_holds_back(host, d) for d in host.workers),
        preempted=any(d.wants_to_continue for d in host.workers),
    )


def summed(amounts: Iterable[Amount]) -> Amount:
    cpus = mib = 0
    for amount in amounts:
        cpus, mib = cpus + amount.cpus, mib + amount.mib
    return Amount(cpus, mib)


def _stays_mib(host: Host, domain: Domain) -> int:
    """What the domain's jobs keep of the memory of an exclusive host, for a priority domain that pushes it aside."""
    if stoppable(host, domain):
        return use_when_stopped(host, domain).mib
    return domain.use.mib if domain.running else domain.use_when_stopped.mib


def _holds_back(host: Host, domain: Domain) -> Amount:
    """What the domain keeps from others while it lingers, is being restored, falls asleep or wakes."""
    lingering = (domain.linger_size if lingers(host, domain) else NOTHING) + place_kept(domain)
    return lingering + Amount(domain.cpus, domain.memory_mib) if restoring(domain) else lingering


def room_mib(host: Host, domain: Domain) -> int:
    """What the domain's jobs may have in all: beyond every floor, its own too, and what its siblings' jobs keep.

    Negative if not even its floor is left.
    """
    sums = once(host, _sums)
    left = host.for_workers.mib - sums.floors_mib
    if host.mode is Mode.EXCLUSIVE:
        left -= sums.stay_mib - _stays_mib(host, domain)
    return min(left, domain.memory_mib - domain.floor_mib) if domain.memory_mib else left


def _ceiling(host: Host, domain: Domain) -> Amount:
    """What this domain's jobs may have in all: limited by its size, and by what floors and siblings' jobs leave."""
    return Amount(max(0, min(host.without_services.cpus, domain.cpus)), max(0, room_mib(host, domain)))


def _there(host: Host) -> Amount:
    """What a counted host has for jobs, without floors."""
    return host.for_workers - Amount(0, once(host, _sums).floors_mib)


def reserved(host: Host) -> Amount:
    """What is reserved for frozen domains."""
    return once(host, _sums).reserved


def unused(host: Host) -> Amount:
    """What nobody uses and nobody keeps; negative if more is in use than there is."""
    sums = once(host, _sums)
    return _there(host) - sums.use - sums.held_back


def leaving(host: Host) -> Amount:
    """The memory that jobs hold which are stopped already, if their domains can be put to sleep for it."""
    return Amount(0, once(host, _sums).leaving_mib)


def floors_mib(host: Host) -> int:
    return once(host, _sums).floors_mib


def _taken(host: Host, domain: Domain) -> Amount:
    """What is taken on a counted host, for this domain. What the domain itself holds back is not counted."""
    sums = once(host, _sums)
    return sums.use + sums.held_back - _holds_back(host, domain)


def _past_stopping(host: Host, domain: Domain) -> Amount:
    """What stays taken, for this domain, if everything stoppable is stopped."""
    sums = once(host, _sums)
    return sums.past_stopping + sums.held_back - _holds_back(host, domain)


def free(host: Host, domain: Domain) -> Amount:
    """What a priority job may have on a counted host without stopping anybody."""
    there, reserved = _there(host), once(host, _sums).reserved
    return (there - _taken(host, domain) + leaving(host)).least(there - reserved - _past_stopping(host, domain))


def share(host: Host, domain: Domain, cls: JobClass) -> Amount:
    """What one more job of `cls` may have in this domain: CPUs, and memory in MiB. Never negative."""
    ceiling = _ceiling(host, domain) - domain.use
    if host.mode is Mode.COUNTED:
        ceiling = ceiling.least(_left(host, domain, cls))
    return Amount(max(0, ceiling.cpus), max(0, ceiling.mib))


def _left(host: Host, domain: Domain, cls: JobClass) -> Amount:
    """What a counted host has left for one more job of `cls` in this domain (docs/rules.md, "Counted hosts")."""
    sums, there = once(host, _sums), _there(host)
    if cls is JobClass.PRIORITY:
        return there - sums.reserved - _past_stopping(host, domain)
    if sums.preempted:
        return NOTHING  # otherwise small jobs would keep a preempted domain stopped for ever
    return there - _taken(host, domain) - (sums.reserved if cls is JobClass.PROTECTED else NOTHING)
