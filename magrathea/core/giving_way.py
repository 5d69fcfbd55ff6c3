"""Which preempted domains are put to sleep because others need their memory, and it has nowhere to go in their guests.

Rule 1: as in shares.py, everything here is a function of a Host, and nothing here changes a fact. sleep_events.py does.
Rule 2: nobody is put to sleep for nothing. A domain sleeps only if jobs lack memory, and only as many domains as that
takes; none if all together would not suffice.
Rule 3: a domain that gives way has no running job: what is protected never sleeps for others. It keeps nothing for its
jobs meanwhile, and comes back by itself, in the line of the preempted.
Rule 4: what cannot be saved is not tried again and again. Until then its memory counts as before: what its swap cannot
take stays.

The rules are those of docs/rules.md, "Giving way to disk".
"""

from __future__ import annotations

from .allocation import best_fit
from .model import Amount, Domain, GiveWay, Host, JobClass, Lifecycle, once
from .shares import floors_mib, may_sleep, place_kept, restoring
from .sleeping import jobs_can_be_saved, why_awake

BOOKED_WITHIN_S = 60.0
"""PBS suspends stopped jobs within seconds. A priority job does not wait longer for that than for its other parts."""


def givers(host: Host) -> frozenset[str]:
    """The domains that are to sleep because their memory must give way: those that fall asleep, and those that are to.

    On a paused host nobody begins or ends it.
    """
    return once(host, _givers)


def _givers(host: Host) -> frozenset[str]:
    falling = [d for d in host.workers if d.gives_way]
    if host.paused:
        return frozenset(d.name for d in falling)
    lack_mib = _lack_mib(host)
    if lack_mib <= 0 or host.limits.give_way is GiveWay.SWAP:
        return frozenset()
    going_on = [d for d in falling if _can_go_on(host, d)]
    lack_mib -= sum(d.use.mib for d in going_on)
    gives = {d.name: Amount(0, d.use.mib) for d in host.workers if _may_begin(host, d)}
    if lack_mib <= 0 or sum(amount.mib for amount in gives.values()) < lack_mib:
        return frozenset(d.name for d in going_on)
    return frozenset((*(d.name for d in going_on), *best_fit(gives, Amount(0, lack_mib))))


def _lack_mib(host: Host) -> int:
    """What jobs lack of the memory that they run with, or come back with, if all others stay awake. 0 if there are no
    such jobs. What a lingering domain keeps for its next job does not count."""
    if not any(d.running or d.keeps_its_place or restoring(d) for d in host.workers):
        return 0
    kept = sum(place_kept(d).mib + (d.memory_mib if restoring(d) else 0) for d in host.workers)
    return floors_mib(host) + sum(d.use.mib for d in host.workers) + kept - host.for_workers.mib


def _may_begin(host: Host, domain: Domain) -> bool:
    """True if the domain can be put to sleep for others now: it is preempted, and its jobs hold memory."""
    if host.hub_lost or host.driver_lost_at is not None or domain.lifecycle is not Lifecycle.UP:
        return False
    stands_still = bool(domain.stopped) and not domain.running and domain.use.mib > 0
    free_for_it = domain.sleep is None and not domain.keeps_its_place and not domain.saving
    return stands_still and free_for_it and not domain.paused_externally and may_sleep(host, domain)


def _can_go_on(host: Host, domain: Domain) -> bool:
    """What the hypervisor says of a save no longer counts: the image that is being written takes room itself."""
    stands_still = not domain.running and bool(domain.jobs)
    return stands_still and domain.configured and not domain.stays_awake and not failed(host, domain)


def due_until(domain: Domain) -> float | None:
    """The time until which the jobs of a domain that gives way must be suspended in PBS; None if it does not."""
    return domain.sleep.since + BOOKED_WITHIN_S if domain.gives_way and domain.sleep is not None else None


def failed(host: Host, domain: Domain) -> str:
    """Why a domain that gives way cannot be saved in time, for people; empty if it can, or already stands still."""
    until = due_until(domain)
    if until is None or host.now < until or host.paused or jobs_can_be_saved(host, domain):
        return ""
    return f"it could not be put to sleep within {BOOKED_WITHIN_S:g} s: {why_awake(host, domain)}"


def reason(host: Host) -> str:
    """Whose jobs need the memory, for people."""
    busy = [d for d in host.workers if d.running or d.keeps_its_place or restoring(d)]
    first = [d for d in busy if any(job.cls is JobClass.PRIORITY for job in d.jobs) or restoring(d)]
    names = [d.name for d in first or busy]
    return f"{', '.join(names)} need{'s' if len(names) == 1 else ''} its memory"
