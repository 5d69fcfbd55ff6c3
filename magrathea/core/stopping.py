"""Decides which jobs are stopped, which continue, and which are requeued.

The rules are those of docs/rules.md, "Resuming" and "Rules for both".

Rule 1: as in shares.py, everything here is a function of a Host, and nothing here changes a fact.
Rule 2: the answer about one domain or job is taken from an answer about the whole host, which is computed once
(`model.once`). The preempted domains are visited once, in the order of their turns. A `_Turn` holds what is left at
that point. It can also tell what would happen if another host did not hold one of the domain's jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .model import NOTHING, Amount, Domain, Host, Job, JobClass, JobKey, Kind, Mode, StoppedBy, once
from .shares import first_two, lingers, place_kept, reserved, restoring, sibling_among, summed, unused

# Which jobs are stopped.


def wanted_stopped(host: Host) -> frozenset[tuple[str, JobKey]]:
    """(domain, job) of all jobs that must not run now. On a paused host: the jobs that are stopped."""
    return once(host, _wanted_stopped)


def _wanted_stopped(host: Host) -> frozenset[tuple[str, JobKey]]:
    return frozenset((d.name, j.key) for d in host.workers for j in to_stop(host, d))


def wanted_here(host: Host) -> frozenset[tuple[str, JobKey]]:
    """What this host itself wants stopped. It may report only this to the hub.

    If another host also wants the job stopped, this is what we would want without that wish; otherwise two hosts hold
    the job for each other for ever. Wishes about other jobs stay; without them each host could wait for what the other
    keeps from it.
    """
    return once(host, _wanted_here)


def _wanted_here(host: Host) -> frozenset[tuple[str, JobKey]]:
    held = ((d, j) for d in host.workers for j in d.jobs if j.held_elsewhere)
    return wanted_stopped(host) - {(d.name, j.key) for d, j in held if not _wanted_without_wish(host, d, j)}


def _wanted_without_wish(host: Host, domain: Domain, job: Job) -> bool:
    if domain.sleep is not None and (job.stopped_by_us or not domain.must_give_way):
        return True
    stays = job.stopped_by_us and _keeps_stopped(host, domain, lifted=job)
    return _may_be_stopped(job) and (stays or _pushed_aside(host, domain))


def to_stop(host: Host, domain: Domain) -> tuple[Job, ...]:
    """The domain's jobs that must not run now; none of a service."""
    return once(host, _to_stop).get(domain.name, ())


def _to_stop(host: Host) -> dict[str, tuple[Job, ...]]:
    return {d.name: tuple(_to_stop_in(host, d)) for d in host.workers}


def _to_stop_in(host: Host, domain: Domain) -> Iterator[Job]:
    if domain.sleep is not None and not domain.must_give_way:
        stops = domain.falls_asleep and not host.paused
        yield from (j for j in domain.jobs if j.stopped_by_us or (stops and j.stopper is None and not j.ending))
        return
    pushed_aside = _pushed_aside(host, domain)
    keeps = domain.must_give_way or _keeps_stopped(host, domain)
    for job in domain.jobs:
        stays = keeps and job.stopped_by_us
        held = job.held_elsewhere and not host.paused
        if (stays or held or pushed_aside) and _may_be_stopped(job):
            yield job


def _may_be_stopped(job: Job) -> bool:
    """True if we have stopped the job already, for whatever reason: until it is its turn it stays stopped, also if it
    is ending, because its end needs no CPU. Otherwise only a preemptible job is stopped, and not while it is ending."""
    if job.stopped_by_us:
        return True
    return job.cls is JobClass.PREEMPTIBLE and not job.keeps and job.stopper is not StoppedBy.PBS and not job.ending


def _pushed_aside(host: Host, domain: Domain) -> bool:
    """True if a sibling on an exclusive host runs a priority job: no preemptible job of a normal domain may run."""
    if host.paused or host.mode is not Mode.EXCLUSIVE or domain.kind is not Kind.NORMAL:
        return False
    return sibling_among(once(host, _with_priority_jobs), domain)


def _with_priority_jobs(host: Host) -> tuple[str, ...]:
    return first_two(d.name for d in host.workers if any(j.cls is JobClass.PRIORITY for j in _jobs_with_a_place(d)))


def _jobs_with_a_place(domain: Domain) -> tuple[Job, ...]:
    return (*domain.running, *domain.to_continue) if domain.keeps_its_place else domain.running


def _keeps_stopped(host: Host, domain: Domain, lifted: Job | None = None) -> bool:
    """True if this host itself keeps the domain's stopped jobs so. `lifted`: as if no other host held that job."""
    if host.paused:
        return True
    if host.mode is Mode.EXCLUSIVE:
        return sibling_among(once(host, _keeping_the_host), domain) or _comes_back_beside_others(host, domain)
    if lifted is None:
        return domain.name not in resuming(host)
    turn = once(host, _turns).get(domain.name)
    return turn is None or not turn.fits(lifted)


def _keeping_the_host(host: Host) -> tuple[str, ...]:
    return first_two(d.name for d in host.workers if lingers(host, d) or restoring(d))


def _comes_back_beside_others(host: Host, domain: Domain) -> bool:
    """True if the domain is back from its sleep, and a sibling on its exclusive host runs jobs. Nobody waited for its
    turn if somebody else has started it, or if its restore outlasted the time limit. If several are back, the first in
    line goes on."""
    if domain.woken_at is None:
        return False
    return sibling_among(once(host, _at_work), domain) or once(host, _first_back) not in (None, domain.name)


def _at_work(host: Host) -> tuple[str, ...]:
    return first_two(d.name for d in host.workers if not d.away and any(j.stopper is None for j in d.jobs))


def _first_back(host: Host) -> str | None:
    """Not one that a sibling's priority jobs push aside: these may be back, too, and would wait for it."""
    waiting = (d for d in once(host, _preempted) if d.woken_at is not None and d.keeps_its_place)
    return next((d.name for d in waiting if not _pushed_aside(host, d)), None)


# Which jobs are requeued.


def to_requeue(host: Host) -> frozenset[tuple[str, JobKey]]:
    """(domain, job) of the rerunnable jobs that we have stopped for longer than the admin allows in one stop.

    A sleep does not count, neither while it lasts nor afterwards.
    """
    return once(host, _to_requeue)


def _to_requeue(host: Host) -> frozenset[tuple[str, JobKey]]:
    limit = host.limits.max_preempted_s
    if host.paused or not limit:
        return frozenset()
    stopped = ((d, j) for d in host.workers if d.sleep is None for j in d.stopped if j.rerunnable)
    return frozenset(
        (d.name, j.key) for d, j in stopped if host.now >= max(j.stopped_since or 0.0, d.woken_at or 0.0) + limit
    )


# Which domains continue.


@dataclass(frozen=True, slots=True)
class _Turn:
    """A preempted domain, or a sleeping one that wants back, at its turn to resume. `left`: what is free for it.
    `alone`: it continues whatever it needs.

    `back`: the size of its stopped jobs that no other host holds. `held`, `held_mib`: number and memory of the others.
    `stuck_mib`: what its stopped jobs keep of the host's memory now.
    """

    domain: Domain
    left: Amount
    alone: bool
    back: Amount
    held: int
    held_mib: int
    stuck_mib: int

    def need(self, lifted: Job | None = None) -> Amount:
        """What the domain needs to continue. `lifted`: as if no other host held that job of it."""
        back, held, held_mib = self.back, self.held, self.held_mib
        if lifted is not None:
            back, held, held_mib = back + lifted.size, held - 1, held_mib - lifted.memory_mib
        return back - Amount(0, self.stuck_mib - self.domain.stuck_of(held, held_mib))

    def fits(self, lifted: Job | None = None) -> bool:
        return self.alone or self.need(lifted).within(self.left)

    @property
    def in_line(self) -> bool:
        """True if at least one of its stopped jobs is not held by another host."""
        return self.domain.in_line_to_wake or self.held < len(self.domain.stopped)


def in_line(host: Host) -> tuple[Domain, ...]:
    """Preempted domains and sleeping ones that want back: first those for which a place is kept, then the longest
    preempted. Preempted domains that only other hosts hold are not in this line."""
    return tuple(d for d in once(host, _preempted) if d.in_line_to_wake or any(not j.held_elsewhere for j in d.stopped))


def _preempted(host: Host) -> tuple[Domain, ...]:
    waiting = (d for d in host.workers if d.in_line_to_wake or (d.sleep is None and d.stopped))
    return tuple(sorted(waiting, key=lambda d: (not d.keeps_its_place, _waits_since(d), d.name)))


def _waits_since(domain: Domain) -> float:
    asleep_since = domain.sleep.since if domain.sleep is not None else 0.0
    return asleep_since if domain.stopped_since is None else domain.stopped_since


def overdue(host: Host, domain: Domain) -> bool:
    """True if smaller domains have gone before it for longer than the admin allows. Then it goes next."""
    since = domain.overtaken_since
    return since is not None and host.now >= since + host.limits.overtaken_s


def resuming(host: Host) -> frozenset[str]:
    """On a counted host: the preempted domains that fit now. They may use what is reserved for frozen ones.

    An unconfirmed claim never resumes a domain, unless its own domain is put to sleep. Until it is confirmed, domains
    resume strictly in the order of the line; otherwise less room would let a smaller one pass. If it preempted
    somebody, none resumes. None resumes while a domain is being restored: what its victims had beyond its need stays
    free until it is back. On a paused host none resumes.
    """
    return once(host, _resuming)


def _resuming(host: Host) -> frozenset[str]:
    return frozenset(name for name, turn in once(host, _turns).items() if turn.in_line and turn.fits())


def _turns(host: Host) -> dict[str, _Turn]:
    """The preempted domains whose turn comes, in order. Each one that fits takes what it needs before the next."""
    if host.paused or any(restoring(d) for d in host.workers):
        return {}
    stops = {j.stopped_since for d in host.workers for j in d.stopped}
    claims = {j.claimed_at for d in host.workers for j in d.running if j.cls is JobClass.PRIORITY and not j.confirmed}
    if claims & stops:
        return {}
    left, anybody = unused(host), False
    turns: dict[str, _Turn] = {}
    for domain in once(host, _preempted):
        kept = place_kept(domain)
        there = left + kept - (reserved(host) if _may_not_borrow(domain) else NOTHING)
        turn = turns[domain.name] = _turn(domain, there, alone=not anybody and _has_host_to_itself(host, domain))
        if not turn.in_line:
            continue
        if turn.fits():
            left -= turn.need() - kept
            anybody = True
        elif claims or overdue(host, domain):
            break  # its turn has come: no other domain may go before it
    return turns


def _may_not_borrow(domain: Domain) -> bool:
    """True if a restore could not stop the domain's jobs again: before it wakes, it finds room beside the reserve."""
    return domain.asleep and any(j.cls is not JobClass.PREEMPTIBLE or j.keeps for j in domain.jobs)


def _turn(domain: Domain, left: Amount, *, alone: bool) -> _Turn:
    held = [j for j in domain.stopped if j.held_elsewhere]
    back = summed(j.size for j in domain.to_continue)
    stuck_mib = 0 if domain.away else domain.stuck_mib(domain.stopped)
    return _Turn(domain, left, alone, back, len(held), sum(j.memory_mib for j in held), stuck_mib)


def _has_host_to_itself(host: Host, domain: Domain) -> bool:
    """True if no sibling runs anything or keeps anything. Then this domain continues whatever it needs.

    Otherwise a job would stay stopped for ever if the host was made smaller or services came up. Among domains for
    which a place is kept, the first in line is alone: otherwise two would wait for each other.
    """
    if host.coming:
        return False  # it waits no longer than the move takes
    if domain.keeps_its_place:
        return not sibling_among(once(host, _running_or_lingering), domain)
    return not sibling_among(once(host, _running_or_with_a_place), domain)


def _running_or_lingering(host: Host) -> tuple[str, ...]:
    return first_two(d.name for d in host.workers if d.running or d.waking or lingers(host, d))


def _running_or_with_a_place(host: Host) -> tuple[str, ...]:
    return first_two(d.name for d in host.workers if d.running or d.waking or d.keeps_its_place or lingers(host, d))


# Which sleeping domains come back.


def to_wake(host: Host) -> tuple[str, ...]:
    """The sleeping domains that want back, and for which it is time: they are restored now. It stops nobody.

    On an exclusive host one comes back when no sibling runs a job or is about to. A domain without jobs needs no room.
    """
    return once(host, _to_wake)


def waits_for_hub(host: Host, domain: Domain) -> bool:
    """True if a sleeping domain has a job that PBS took for a running one. PBS may have started it elsewhere meanwhile:
    only a hub can ask."""
    return host.hub_lost and any(not (j.booked or j.stopper is StoppedBy.PBS) for j in domain.jobs)


def _to_wake(host: Host) -> tuple[str, ...]:
    waiting = [d for d in once(host, _preempted) if d.in_line_to_wake and not waits_for_hub(host, d)]
    if not waiting or host.paused or host.driver_lost_at is not None:
        return ()
    if host.mode is Mode.COUNTED:
        return tuple(d.name for d in waiting if d.name in resuming(host))
    with_jobs = [d.name for d in waiting if d.jobs]
    busy = once(host, in_the_way_of_sleepers) or any(c.busy for c in host.coming)
    next_one = () if busy else tuple(with_jobs[:1])
    return (*next_one, *(d.name for d in waiting if not d.jobs))


def in_the_way_of_sleepers(host: Host) -> tuple[str, ...]:
    """On an exclusive host: the first two domains that have jobs to run, or keep the host for some. What only another
    host holds is in nobody's way: otherwise two hosts would wait for each other."""
    awake = (d for d in host.workers if not d.asleep)
    busy = (d for d in awake if d.running or d.to_continue or d.waking or lingers(host, d) or restoring(d))
    return first_two(d.name for d in busy)
