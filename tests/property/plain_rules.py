"""The rules of docs/rules.md for one domain and one job at a time, without regard to speed.

The core computes many answers once for a whole host (model.py, rule 4). It is compared with this plain reference, in
which every function reads all facts anew. Of the core this file uses only the facts, and what a single domain or job
knows of itself (`obstacle`, `lingers`, `restoring`, `silent`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

from magrathea.core.allocation import EXACT_DOMAINS
from magrathea.core.model import (
    CLASSES_OF,
    NOTHING,
    Amount,
    Domain,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Mode,
    State,
    StoppedBy,
)
from magrathea.core.plan import ActualDomain, Order
from magrathea.core.refusals import RefusalCode
from magrathea.core.shares import lingers, obstacle, restoring, silent
from magrathea_lab.rigs import core_oracle

Keys = set[tuple[str, JobKey]]


def workers(h: Host) -> list[Domain]:
    return [d for d in h.domains if d.kind is not Kind.SERVICE]


def siblings(h: Host, d: Domain) -> list[Domain]:
    return [s for s in workers(h) if s.name != d.name]


def ours(j: Job) -> bool:
    return j.stopper is StoppedBy.US


def running(d: Domain) -> list[Job]:
    return core_oracle.running(d)


def stopped(d: Domain) -> list[Job]:
    return [j for j in d.jobs if ours(j)]


def stoppable(h: Host, d: Domain) -> bool:
    if h.hub_lost or h.paused or d.kind is not Kind.NORMAL or d.lifecycle is not Lifecycle.UP:
        return False
    if d.agent_lost_at is not None or d.paused_externally or d.fault or core_oracle.with_a_place(d):
        return False
    return all(ours(j) or not obstacle(h, d, j) for j in d.jobs)


# Sums


def total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, NOTHING)


def stuck_mib(d: Domain, jobs: list[Job]) -> int:
    swap = 0 if d.ignores_swap else d.swap_mib
    return max(0, sum(j.memory_mib for j in jobs) - swap, d.unreclaimable_mib) if jobs else 0


def use(d: Domain) -> Amount:
    if core_oracle.away(d):
        return NOTHING
    memory_mib = sum(j.memory_mib for j in running(d)) + stuck_mib(d, stopped(d))
    return Amount(sum(j.cpus for j in running(d)), memory_mib)


def use_when_stopped(h: Host, d: Domain) -> Amount:
    """Nothing if it can be put to sleep for what it would hold."""
    if core_oracle.away(d) or core_oracle.may_yield(h, d):
        return NOTHING
    return Amount(0, stuck_mib(d, list(d.jobs)))


def leaving(h: Host) -> Amount:
    """What stopped jobs hold, and give by a sleep of their domain."""
    return total(use(d) - use_when_stopped(h, d) for d in workers(h) if stoppable(h, d) and not running(d))


def need(d: Domain) -> Amount:
    """What the domain needs, beyond what it has, for all its jobs that no other host holds."""
    staying = stuck_mib(d, [j for j in stopped(d) if j.held_elsewhere])
    now = 0 if core_oracle.away(d) else stuck_mib(d, stopped(d))
    return total(j.size for j in core_oracle.going_on(d)) + Amount(0, staying - now)


def place(d: Domain) -> Amount:
    return need(d) if core_oracle.with_a_place(d) else NOTHING


def there(h: Host) -> Amount:
    services = total(Amount(d.cpus, d.memory_mib) for d in h.domains if d.kind is Kind.SERVICE)
    return Amount(h.cpus, h.memory_mib) - services - h.others


def floors(h: Host) -> Amount:
    return Amount(0, sum(d.floor_mib for d in workers(h)))


def kept(h: Host, domains: list[Domain]) -> Amount:
    lingering = total(d.linger_size for d in domains if lingers(h, d))
    restored = total(Amount(d.cpus, d.memory_mib) for d in domains if restoring(d))
    return lingering + restored + total(place(d) for d in domains)


def unused(h: Host) -> Amount:
    return there(h) - floors(h) - total(use(d) for d in workers(h)) - kept(h, workers(h))


def room_mib(h: Host, d: Domain) -> int:
    left = there(h).mib - floors(h).mib
    if h.mode is Mode.EXCLUSIVE:
        for s in siblings(h, d):
            if stoppable(h, s):
                left -= use_when_stopped(h, s).mib
            elif not core_oracle.away(s):
                left -= use(s).mib if running(s) else stuck_mib(s, list(s.jobs))
    return min(left, d.memory_mib - d.floor_mib) if d.memory_mib else left


def past_stopping(h: Host, d: Domain) -> Amount:
    stay = (use_when_stopped(h, w) if stoppable(h, w) else use(w) for w in workers(h))
    return total(stay) + kept(h, siblings(h, d))


def reserved(h: Host) -> Amount:
    return total(Amount(d.cpus, d.memory_mib) for d in workers(h) if d.frozen and not restoring(d))


def share(h: Host, d: Domain, cls: JobClass) -> Amount:
    left = Amount(max(0, min(there(h).cpus, d.cpus)), max(0, room_mib(h, d))) - use(d)
    if h.mode is Mode.COUNTED:
        taken = total(use(w) for w in workers(h)) + kept(h, siblings(h, d))
        counted = {
            JobClass.PROTECTED: there(h) - floors(h) - reserved(h) - taken,
            JobClass.PREEMPTIBLE: there(h) - floors(h) - taken,
            JobClass.PRIORITY: there(h) - floors(h) - reserved(h) - past_stopping(h, d),
        }[cls]
        if cls is not JobClass.PRIORITY and core_oracle.line_closed(h):
            counted = NOTHING
        left = left.least(counted)
    return Amount(max(0, left.cpus), max(0, left.mib))


def free(h: Host, d: Domain) -> Amount:
    taken = total(use(w) for w in workers(h)) + kept(h, siblings(h, d))
    return (there(h) - floors(h) - taken + leaving(h)).least(there(h) - floors(h) - reserved(h) - past_stopping(h, d))


# Claims: the code of the refusal, or the victims

Answer = RefusalCode | tuple[str, ...]


def verdict(h: Host, d: Domain, cls: JobClass, size: Amount) -> Answer:
    return _gate(h, d, cls, size) or blocked(h, d, cls) or _sized(h, d, cls, size)


def _gate(h: Host, d: Domain, cls: JobClass, size: Amount) -> RefusalCode | None:
    fits = 0 <= size.cpus <= max(0, h.cpus) and 0 <= size.mib <= max(0, h.memory_mib)
    gates = (
        (not fits, RefusalCode.BAD_REQUEST),
        (cls not in CLASSES_OF[d.kind], RefusalCode.WRONG_CLASS),
        (core_oracle.asleep(d), RefusalCode.DOMAIN_ASLEEP),
        (d.frozen and not restoring(d), RefusalCode.DOMAIN_FROZEN),
        (d.lifecycle is Lifecycle.DOWN, RefusalCode.DOMAIN_DOWN),
        (d.lifecycle is Lifecycle.BOOTING, RefusalCode.DOMAIN_BOOTING),
        (silent(h, d), RefusalCode.DOMAIN_UNKNOWN),
        (bool(d.fault), RefusalCode.DOMAIN_FAULT),
        (bool(stopped(d)) and d.sleep is None, RefusalCode.DOMAIN_PREEMPTED),
        (bool(d.drain_reason), RefusalCode.DOMAIN_DRAINING),
        (any(x.lifecycle is Lifecycle.BOOTING for x in h.domains), RefusalCode.HOST_BOOTING),
        (any(x.fault and not core_oracle.asleep(x) for x in h.domains), RefusalCode.HOST_FAULT),
    )
    return next((code for holds, code in gates if holds), None)


def blocked(h: Host, d: Domain, cls: JobClass) -> RefusalCode | None:
    if h.mode is Mode.COUNTED:
        return None
    for s in siblings(h, d):
        if d.kind is Kind.NORMAL:
            if s.jobs and (not core_oracle.asleep(s) or core_oracle.wants_back(s)):
                return RefusalCode.HOST_BUSY
            if lingers(h, s):
                return RefusalCode.HOST_LINGERS
            if s.frozen and cls is not JobClass.PREEMPTIBLE:
                return RefusalCode.HOST_RESERVED
        elif (running(s) or core_oracle.with_a_place(s)) and not stoppable(h, s):
            acting = replace(h, paused=None, hub_lost=False)
            if not stoppable(acting, s):
                return RefusalCode.HOST_BUSY
            return RefusalCode.PAUSED if h.paused else RefusalCode.HUB_LOST
    return RefusalCode.MEMORY if d.kind is Kind.PRIORITY and room_mib(h, d) < 0 else None


def _sized(h: Host, d: Domain, cls: JobClass, size: Amount) -> Answer:
    left = share(h, d, cls)
    if not size.within(left):
        if h.paused and size.within(share(replace(h, paused=None), d, cls)):
            return RefusalCode.PAUSED
        if h.hub_lost and size.within(share(replace(h, hub_lost=False), d, cls)):
            return RefusalCode.HUB_LOST
        return RefusalCode.CPUS if size.cpus > left.cpus else RefusalCode.MEMORY
    if cls is not JobClass.PRIORITY:
        return ()
    if h.mode is Mode.EXCLUSIVE:
        return tuple(s.name for s in siblings(h, d) if running(s))
    need = size - free(h, d)
    return victims(h, Amount(need.cpus if size.cpus else 0, need.mib if size.mib else 0))


def victims(h: Host, need: Amount) -> tuple[str, ...]:
    if need.within(NOTHING):
        return ()
    candidates = [d for d in workers(h) if running(d) and stoppable(h, d)]
    gives = {d.name: use(d) - use_when_stopped(h, d) for d in candidates}
    if len(candidates) > EXACT_DOMAINS:
        return best_fit(gives, need)
    found = []
    for count in range(1, len(candidates) + 1):
        for chosen in itertools.combinations(candidates, count):
            spare = total(gives[d.name] for d in chosen) - need
            if need.within(spare + need):
                preempted_s = sum(d.preempted_s for d in chosen)
                found.append((spare.cpus, count, preempted_s, spare.mib, tuple(d.name for d in chosen)))
    return min(found)[-1]


def best_fit(gives: dict[str, Amount], need: Amount) -> tuple[str, ...]:
    chosen: list[str] = []
    rest = sorted(gives, key=lambda name: (gives[name].cpus, gives[name].mib, name))
    while rest and not need.within(total(gives[n] for n in chosen)):
        missing = need - total(gives[n] for n in chosen)
        chosen.append(next((n for n in rest if missing.within(gives[n])), rest[-1]))
        rest = [n for n in rest if n not in chosen]
    for name in tuple(chosen):
        others = [n for n in chosen if n != name]
        chosen = others if need.within(total(gives[n] for n in others)) else chosen
    return tuple(sorted(chosen))


# Stopping and resuming


def wanted_stopped(h: Host) -> Keys:
    return {(d.name, j.key) for d in workers(h) for j in d.jobs if _must_not_run(h, d, j)}


def _must_not_run(h: Host, d: Domain, j: Job) -> bool:
    if d.sleep is not None and (ours(j) or not core_oracle.yields(d)):
        return ours(j) or (core_oracle.falling(d) and not h.paused and j.stopper is None and not j.ending)
    may = j.cls is JobClass.PREEMPTIBLE and j.stopper is not StoppedBy.PBS and not j.ending and not j.keeps
    if not may and not ours(j):
        return False
    if h.paused:
        return ours(j)
    if h.mode is Mode.EXCLUSIVE:
        if core_oracle.pushed_aside(h, d):
            return True
        waits = any(lingers(h, s) or restoring(s) for s in siblings(h, d)) or core_oracle.back_too_early(h, d)
    else:
        waits = d.name not in resuming(h)
    return j.held_elsewhere or (waits and ours(j))


def wanted_here(h: Host) -> Keys:
    """The jobs that must stop for this host's own sake: lift each wish of another host alone, and ask everything
    again."""
    wanted = wanted_stopped(h)
    for d in workers(h):
        for j in d.jobs:
            lifted = replace(j, held_elsewhere=False)
            without = replace(d, jobs=tuple(lifted if x.key == j.key else x for x in d.jobs))
            h_without = replace(h, domains=tuple(without if x.name == d.name else x for x in h.domains))
            if j.held_elsewhere and (d.name, j.key) not in wanted_stopped(h_without):
                wanted.discard((d.name, j.key))
    return wanted


def in_line(h: Host) -> list[Domain]:
    awake = [d for d in workers(h) if d.sleep is None and any(not j.held_elsewhere for j in stopped(d))]
    waiting = [*awake, *(d for d in workers(h) if core_oracle.wants_back(d))]
    return sorted(waiting, key=lambda d: (not core_oracle.with_a_place(d), core_oracle.waits_since(d), d.name))


def resuming(h: Host) -> list[str]:
    if h.paused or any(restoring(d) for d in workers(h)):
        return []
    claims = [j for d in workers(h) for j in running(d) if j.cls is JobClass.PRIORITY and not j.confirmed]
    if any(j.claimed_at == x.stopped_since for j in claims for d in workers(h) for x in stopped(d)):
        return []
    left = unused(h)
    names: list[str] = []
    for d in in_line(h):
        beside_reserve = core_oracle.asleep(d) and any(j.cls is not JobClass.PREEMPTIBLE or j.keeps for j in d.jobs)
        there = left + place(d) - (reserved(h) if beside_reserve else NOTHING)
        alone = not names and not any(_busy(h, s, beside=d) for s in siblings(h, d))
        if need(d).within(there) or alone:
            left -= need(d) - place(d)
            names.append(d.name)
        elif claims or (d.overtaken_since is not None and h.now >= d.overtaken_since + h.limits.overtaken_s):
            break
    return names


def _busy(h: Host, d: Domain, *, beside: Domain) -> bool:
    wakes = core_oracle.away(d) and not core_oracle.asleep(d)
    place = core_oracle.with_a_place(d) and not core_oracle.with_a_place(beside)
    return bool(running(d) or place) or wakes or lingers(h, d)


# The plan


def memory_mib(h: Host, d: Domain) -> int:
    """The memory that a domain that is up should have."""
    up = [w for w in workers(h) if w.lifecycle is Lifecycle.UP]
    if h.mode is Mode.EXCLUSIVE and [w.name for w in up if active(h, w)] == [d.name]:
        others = sum(held_mib(h, w) if w.lifecycle is Lifecycle.UP else w.floor_mib for w in siblings(h, d))
        leave = sum(held_mib(h, w) - w.floor_mib for w in siblings(h, d) if _is_left(w))
        rest = max(there(h).mib - others, min(held_mib(h, d), there(h).mib - others + leave))
        return min(rest, d.memory_mib or there(h).mib)
    limited = h.mode is Mode.EXCLUSIVE and active(h, d) and d.memory_mib
    return min(held_mib(h, d), d.memory_mib) if limited else held_mib(h, d)


def _is_left(d: Domain) -> bool:
    """It falls asleep so that others have its memory, and nobody has given that up."""
    return core_oracle.yields(d) and d.sleep is not None and not d.sleep.wakes


def active(h: Host, d: Domain) -> list[Job]:
    return [j for j in d.jobs if (d.name, j.key) not in wanted_stopped(h)]


def held_mib(h: Host, d: Domain) -> int:
    rest = [j for j in d.jobs if (d.name, j.key) in wanted_stopped(h)]
    return d.floor_mib + sum(j.memory_mib for j in active(h, d)) + stuck_mib(d, rest)


def orders(h: Host, actual: Mapping[str, ActualDomain], order: Order) -> dict[str, tuple[JobKey, ...]]:
    """For each domain, the jobs about which its agent has not confirmed this order yet."""
    due: dict[str, tuple[JobKey, ...]] = {}
    for d in workers(h):
        if d.name in actual and d.agent_lost_at is None and not d.paused_externally:
            has = actual[d.name].orders
            jobs = [j for j in d.jobs if (ours(j) or j.key in has) and _order(h, d, j) is order]
            due[d.name] = tuple(j.key for j in jobs if has.get(j.key) is not order)
    return {name: keys for name, keys in due.items() if keys}


def _order(h: Host, d: Domain, j: Job) -> Order:
    if (d.name, j.key) in wanted_stopped(h):
        return Order.STOP
    return Order.LIFT if j.booked else Order.RUN


# What is published of a domain


def state(h: Host, d: Domain) -> State:
    """According to the table of core_oracle.py, which counts CPUs. Memory matters only for domains without jobs."""
    found = core_oracle.state(h, d)
    if found not in (State.FREE, State.WOULD_PREEMPT, State.OCCUPIED):
        return found
    starts = any(blocked(h, d, c) is None and share(h, d, c).cpus >= 1 for c in CLASSES_OF[d.kind])
    if d.kind is Kind.NORMAL:
        return State.FREE if starts else State.OCCUPIED
    if h.mode is Mode.EXCLUSIVE:
        beside = not any(running(s) or core_oracle.with_a_place(s) for s in siblings(h, d))
    else:
        beside = min(free(h, d).cpus, share(h, d, JobClass.PRIORITY).cpus) >= 1
    return State.FREE if beside else State.WOULD_PREEMPT if starts else State.OCCUPIED


def accepts(h: Host, d: Domain) -> tuple[JobClass, ...]:
    return tuple(c for c in CLASSES_OF[d.kind] if isinstance(verdict(h, d, c, Amount(1, 0)), tuple))


def published(h: Host, d: Domain) -> Amount:
    left = [share(h, d, c) for c in accepts(h, d)]
    if not left:
        return there(h).least(Amount(d.cpus, d.memory_mib or h.memory_mib))
    return use(d) + Amount(min(s.cpus for s in left), min(s.mib for s in left))


def rank(h: Host, d: Domain) -> int:
    if not accepts(h, d):
        return -1024
    if state(h, d) is not State.WOULD_PREEMPT:
        return 500 if state(h, d) is State.FREE else 1000
    names = verdict(h, d, JobClass.PRIORITY, Amount(1, 0))
    assert isinstance(names, tuple)
    return 400 - min(1000, int(sum(s.preempted_s for s in workers(h) if s.name in names) / 60))
