"""What must be true at any time of domains that are put to sleep because others need their memory.

Written from the sentences of docs/rules.md, "Giving way to disk"; of the core it reads only the facts.
"""

from __future__ import annotations

from collections.abc import Iterator

from magrathea.core.model import Domain, GiveWay, Host, Kind, Lifecycle

from . import core_oracle as oracle


def broken_in(h: Host) -> Iterator[str]:
    """What is wrong, a sentence each."""
    for d in oracle.workers(h):
        only_disk = h.limits.give_way is GiveWay.DISK and oracle.may_yield(h, d)
        if d.ignores_swap is not only_disk:
            yield f"the swap of {d.name} counts, or not, against the configuration"
        if d.stays_awake and not d.jobs:
            yield f"{d.name} has no jobs, and still stays awake"
        if oracle.yields(d):
            yield from _broken_of(h, d)
    missing = lack_mib(h)
    able = [d for d in oracle.workers(h) if _could_yield(h, d)]
    if missing > 0 and able and sum(_holds_mib(d) for d in able) >= missing and not h.paused and not h.hub_lost:
        yield f"{missing} MiB are missing, and {[d.name for d in able]} could give them by a sleep"


def _broken_of(h: Host, d: Domain) -> Iterator[str]:
    assert d.sleep is not None
    if d.kind is not Kind.NORMAL:
        yield f"{d.name} is {d.kind}, and gives way"
    if d.sleep.wakes or h.paused:
        return
    if any(j.stopper is None for j in d.jobs):
        yield f"{d.name} gives way while it has a job that is not stopped"
    if h.limits.give_way is GiveWay.SWAP:
        yield f"{d.name} gives way although nobody is to"
    if h.now >= d.sleep.since + 60.0 and any(oracle.ours(j) and not j.booked for j in d.jobs):
        yield f"{d.name} waits for PBS for ever"
    if lack_mib(h, but=d) <= 0:
        yield f"{d.name} gives way although nobody needs its memory"


def lack_mib(h: Host, but: Domain | None = None) -> int:
    """What is missing of the memory of jobs that run, wake, or are about to go on. `but`: this domain stays awake."""
    busy = [d for d in oracle.workers(h) if oracle.running(d) or oracle.with_a_place(d) or oracle.is_restored(d)]
    if not busy:
        return 0
    has = h.memory_mib - h.others.mib - sum(d.memory_mib for d in h.domains if d.kind is Kind.SERVICE)
    need = sum(d.floor_mib + _holds_mib(d) + _place_mib(d) for d in oracle.workers(h))
    leave = (d for d in oracle.workers(h) if oracle.yields(d) and d.sleep and not d.sleep.wakes)
    return need - has - sum(_holds_mib(d) for d in leave if but is None)


def _holds_mib(d: Domain) -> int:
    if oracle.away(d):
        return 0
    stopped = [j for j in d.jobs if oracle.ours(j)]
    return sum(j.memory_mib for j in oracle.running(d)) + oracle.unswappable(d, stopped)


def _place_mib(d: Domain) -> int:
    if oracle.is_restored(d):
        return d.memory_mib
    if not oracle.with_a_place(d):
        return 0
    held = [j for j in d.jobs if oracle.ours(j) and j.held_elsewhere]
    stopped = [] if oracle.away(d) else [j for j in d.jobs if oracle.ours(j)]
    back = sum(j.memory_mib for j in oracle.going_on(d))
    return back + oracle.unswappable(d, held) - oracle.unswappable(d, stopped)


def _could_yield(h: Host, d: Domain) -> bool:
    stands_still = bool(d.jobs) and not oracle.running(d) and _holds_mib(d) > 0
    able = oracle.may_yield(h, d) and not d.paused_externally and h.driver_lost_at is None and not d.saving
    return d.sleep is None and d.lifecycle is Lifecycle.UP and stands_still and able and not oracle.with_a_place(d)
