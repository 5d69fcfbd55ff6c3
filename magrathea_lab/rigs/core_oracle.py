"""docs/rules.md and the table of states, written a second time directly from their sentences, to test the core with.

Nothing here calls the core; it reads only the facts. The code aims at clarity, not at speed.
"""

from __future__ import annotations

import itertools

from magrathea.core.model import (
    Domain,
    GiveWay,
    Host,
    Job,
    JobClass,
    Kind,
    Lifecycle,
    Mode,
    Patience,
    SleepCause,
    State,
    StoppedBy,
)

LOW, PROTECTED, HIGH = JobClass.PREEMPTIBLE, JobClass.PROTECTED, JobClass.PRIORITY

TAKES = {Kind.NORMAL: (LOW, PROTECTED), Kind.PRIORITY: (HIGH,), Kind.SERVICE: ()}


def ours(job: Job) -> bool:
    return job.stopper is StoppedBy.US


def workers(h: Host) -> list[Domain]:
    return [d for d in h.domains if d.kind in (Kind.NORMAL, Kind.PRIORITY)]


def siblings(h: Host, d: Domain) -> list[Domain]:
    return [s for s in workers(h) if s.name != d.name]


def running(d: Domain) -> list[Job]:
    return [] if away(d) else [j for j in d.jobs if not ours(j)]


def away(d: Domain) -> bool:
    """It sleeps on disk, or is being restored from there."""
    return d.sleep is not None and d.lifecycle is not Lifecycle.UP


def asleep(d: Domain) -> bool:
    return d.sleep is not None and d.lifecycle is Lifecycle.DOWN


def falling(d: Domain) -> bool:
    return d.sleep is not None and d.lifecycle is Lifecycle.UP


def yields(d: Domain) -> bool:
    """It falls asleep because others need its memory."""
    return falling(d) and d.sleep is not None and d.sleep.cause is SleepCause.GIVE_WAY


def may_yield(h: Host, d: Domain) -> bool:
    able = d.kind is Kind.NORMAL and d.configured and d.closing is None
    return h.limits.give_way is not GiveWay.SWAP and able and d.disk_obstacle == "" and d.stays_awake == ""


def wants_back(d: Domain) -> bool:
    return asleep(d) and d.sleep is not None and d.sleep.wakes


def must_ask(h: Host, d: Domain) -> bool:
    """It sleeps with a job that PBS may have started elsewhere meanwhile, and there is no hub to ask."""
    return h.hub_lost and any(j.stopper is not StoppedBy.PBS and not j.booked for j in d.jobs)


def going_on(d: Domain) -> list[Job]:
    """The jobs for which a domain that falls asleep, wakes or has woken has its place: what no other host holds."""
    if away(d):
        return [j for j in d.jobs if not (ours(j) and j.held_elsewhere)]
    return [j for j in d.jobs if ours(j) and not j.held_elsewhere]


def with_a_place(d: Domain) -> list[Job]:
    """Jobs that do not run, but whose place nobody else gets."""
    waking = away(d) and not asleep(d)
    falls = falling(d) and not yields(d)
    return going_on(d) if waking or falls or (d.woken_at is not None and d.sleep is None) else []


def line_closed(h: Host) -> bool:
    """Jobs of some domain are stopped, or sleep, and are to go on as soon as there is room."""
    return any(
        (bool(d.jobs) and (wants_back(d) or (away(d) and not asleep(d)) or (falling(d) and d.sleep.wakes)))
        if d.sleep is not None and not yields(d)
        else any(ours(j) for j in d.jobs)
        for d in workers(h)
    )


def job_stoppable(h: Host, d: Domain, j: Job) -> bool:
    old = h.now >= j.run_since + h.limits.min_run_s
    shielded_too_long = d.young_since is not None and h.now >= d.young_since + h.limits.young_s
    capped = h.limits.max_preemptions > 0 and j.preemptions >= h.limits.max_preemptions
    ripe = j.launched and (old or shielded_too_long) and not j.ending
    return j.cls is LOW and not j.keeps and ripe and j.stopper is None and not capped


def stoppable(h: Host, d: Domain) -> bool:
    if d.kind is not Kind.NORMAL or h.hub_lost or h.paused or d.agent_lost_at is not None:
        return False
    if d.lifecycle is not Lifecycle.UP or d.fault or d.paused_externally or with_a_place(d):
        return False
    return all(ours(j) or job_stoppable(h, d, j) for j in d.jobs)


def lingering(h: Host, d: Domain) -> bool:
    return d.linger_until is not None and h.now < d.linger_until and not d.jobs


def is_restored(d: Domain) -> bool:
    return d.frozen and d.lifecycle is Lifecycle.BOOTING


def saved(d: Domain) -> bool:
    return d.frozen and d.lifecycle is not Lifecycle.BOOTING


def unknown(h: Host, d: Domain) -> bool:
    away = [at for at in (d.agent_lost_at, h.driver_lost_at) if at is not None]
    return d.paused_externally or any(h.now >= at + h.limits.agent_silent_s for at in away)


# Counted hosts: shares.


def cpus_for_jobs(h: Host) -> int:
    return h.cpus - sum(d.cpus for d in h.domains if d.kind is Kind.SERVICE)


def cpus_in_use(domains: list[Domain]) -> int:
    return sum(j.cpus for d in domains for j in running(d))


def reserved(h: Host) -> int:
    return sum(d.cpus for d in workers(h) if saved(d))


def kept_from(h: Host, d: Domain) -> int:
    """CPUs kept for siblings that linger, are being restored, fall asleep or wake."""
    kept = sum(
        s.linger_size.cpus if lingering(h, s) else s.cpus for s in siblings(h, d) if lingering(h, s) or is_restored(s)
    )
    return kept + sum(j.cpus for s in siblings(h, d) for j in with_a_place(s))


def share(h: Host, d: Domain, cls: JobClass) -> int:
    own = min(cpus_for_jobs(h), d.cpus) - cpus_in_use([d])
    if h.mode is Mode.EXCLUSIVE:
        return max(0, own)
    run = cpus_in_use(workers(h)) + kept_from(h, d)
    stay = cpus_in_use([w for w in workers(h) if not stoppable(h, w)]) + kept_from(h, d)
    n, r = cpus_for_jobs(h), reserved(h)
    left = {PROTECTED: n - r - run, LOW: n - run, HIGH: n - r - stay}[cls]
    if cls is not HIGH and line_closed(h):
        left = 0
    return max(0, min(own, left))


def free_for_priority(h: Host, d: Domain) -> int:
    """CPUs for a priority job that stops nobody. Borrowers may keep reserved CPUs."""
    return min(cpus_for_jobs(h) - cpus_in_use(workers(h)) - kept_from(h, d), share(h, d, HIGH))


# Exclusive hosts: blockers.


def unswappable(d: Domain, jobs: list[Job]) -> int:
    if not jobs:
        return 0
    swap = 0 if d.ignores_swap else d.swap_mib
    return max(0, sum(j.memory_mib for j in jobs) - swap, d.unreclaimable_mib)


def left_mib(h: Host, d: Domain) -> int:
    """What the siblings' floors and unswappable memory leave; negative if they need more than the host has."""
    left = h.memory_mib - sum(s.memory_mib for s in h.domains if s.kind is Kind.SERVICE)
    for s in siblings(h, d):
        if away(s) or (stoppable(h, s) and may_yield(h, s)):
            left -= s.floor_mib
        elif stoppable(h, s) or not running(s):
            left -= s.floor_mib + unswappable(s, list(s.jobs))
        else:
            left -= s.floor_mib + sum(j.memory_mib for j in running(s))
            left -= unswappable(s, [j for j in s.jobs if ours(j)])
    return min(left, d.memory_mib) if d.memory_mib else left


def in_the_way(h: Host, d: Domain) -> list[Domain]:
    if d.kind is Kind.NORMAL:
        return [s for s in siblings(h, d) if (s.jobs and (not asleep(s) or wants_back(s))) or lingering(h, s)]
    return [s for s in siblings(h, d) if running(s) or with_a_place(s)]


def can_preempt(h: Host, d: Domain) -> bool:
    """True if all blockers of a priority domain can be stopped and their remaining memory leaves the domain its
    floor."""
    return all(stoppable(h, s) for s in in_the_way(h, d)) and left_mib(h, d) >= d.floor_mib


# The table.


def state(h: Host, d: Domain) -> State:
    if saved(d):
        return State.FROZEN
    if asleep(d):
        return State.ASLEEP
    if d.lifecycle is Lifecycle.DOWN:
        return State.DOWN
    if d.lifecycle is Lifecycle.BOOTING:
        return State.BOOTING
    if unknown(h, d):
        return State.UNKNOWN
    if d.fault:
        return State.FAULT
    if any(ours(j) for j in d.jobs) and not falling(d):
        return State.PREEMPTED
    going_down = d.closing is not None and d.closing.patience is not Patience.IDLE
    if d.draining or d.saving or going_down or not d.configured or falling(d):
        return State.DRAINING
    if d.jobs and d.kind is Kind.PRIORITY:
        return State.RUNNING_PRIORITY
    if d.jobs:
        return State.RUNNING_PREEMPTIBLE if all(job_stoppable(h, d, j) for j in d.jobs) else State.RUNNING
    if h.mode is Mode.EXCLUSIVE:
        if d.kind is not Kind.SERVICE and not in_the_way(h, d):
            return State.FREE
        return State.WOULD_PREEMPT if d.kind is Kind.PRIORITY and can_preempt(h, d) else State.OCCUPIED
    if d.kind is Kind.PRIORITY:
        if free_for_priority(h, d) >= 1:
            return State.FREE
        return State.WOULD_PREEMPT if share(h, d, HIGH) >= 1 else State.OCCUPIED
    return State.FREE if any(share(h, d, c) >= 1 for c in TAKES[d.kind]) else State.OCCUPIED


OPEN = {State.RUNNING_PRIORITY, State.RUNNING_PREEMPTIBLE, State.RUNNING, State.FREE, State.WOULD_PREEMPT}


def accepts(h: Host, d: Domain) -> set[JobClass]:
    broken = any(x.lifecycle is Lifecycle.BOOTING or (x.fault and not asleep(x)) for x in h.domains)
    if broken or state(h, d) not in OPEN:
        return set()
    classes = {c for c in TAKES[d.kind] if share(h, d, c) >= 1}
    if h.mode is Mode.COUNTED:
        return classes
    if d.kind is Kind.PRIORITY:
        return classes if can_preempt(h, d) else set()
    if in_the_way(h, d):
        return set()
    return classes - {PROTECTED} if any(saved(s) for s in siblings(h, d)) else classes


def best_victims(h: Host, d: Domain, cpus: int) -> tuple[str, ...]:
    """On a counted host, ignoring memory: the domains that a priority job of so many CPUs in `d` preempts."""
    need = cpus - free_for_priority(h, d)
    if need <= 0:
        return ()
    candidates = [w for w in workers(h) if running(w) and stoppable(h, w)]
    sets = [c for n in range(len(candidates) + 1) for c in itertools.combinations(candidates, n)]
    enough = [c for c in sets if cpus_in_use(list(c)) >= need]
    return min(
        (cpus_in_use(list(c)) - need, len(c), sum(w.preempted_s for w in c), tuple(w.name for w in c)) for c in enough
    )[-1]


def must_not_run(h: Host) -> set[tuple[str, str]]:
    """(domain, job id) of all jobs to be stopped; on a counted host by CPUs only."""
    found = set()
    for d in workers(h):
        for j in d.jobs:
            if d.sleep is not None and (ours(j) or not yields(d)):
                due = falling(d) and not h.paused and j.stopper is None and not j.ending
                found |= {(d.name, j.key.id)} if ours(j) or due else set()
                continue
            may = ours(j) or (j.cls is LOW and j.stopper is not StoppedBy.PBS)
            if may and (ours(j) or (not j.ending and not j.keeps)) and _in_way(h, d, j):
                found.add((d.name, j.key.id))
    return found


def _in_way(h: Host, d: Domain, j: Job) -> bool:
    if h.paused:
        return ours(j)
    if j.held_elsewhere:
        return True
    if h.mode is Mode.COUNTED:
        return ours(j) and d.name not in next_to_resume(h)
    kept = any(lingering(h, s) or is_restored(s) for s in siblings(h, d))
    return pushed_aside(h, d) or (ours(j) and (kept or back_too_early(h, d)))


def pushed_aside(h: Host, d: Domain) -> bool:
    """Of an exclusive host: a sibling's priority jobs run, or have their place."""
    priority_jobs = any(x.cls is HIGH for s in siblings(h, d) for x in (*running(s), *with_a_place(s)))
    return d.kind is Kind.NORMAL and priority_jobs


def back_too_early(h: Host, d: Domain) -> bool:
    """It is back from its sleep on an exclusive host, where a sibling is at work, or is back and before it in line."""
    if d.woken_at is None:
        return False
    at_work = any(j.stopper is None for s in siblings(h, d) if not away(s) for j in s.jobs)
    back = [w for w in workers(h) if w.woken_at is not None and with_a_place(w) and not pushed_aside(h, w)]
    first = min(back, key=lambda w: (waits_since(w), w.name), default=d)
    return at_work or first.name != d.name


def waits_since(d: Domain) -> float:
    return min((j.stopped_since or 0.0 for j in d.jobs if ours(j)), default=d.sleep.since if d.sleep else 0.0)


def next_to_resume(h: Host) -> list[str]:
    """Preempted domains that fit and may continue, and sleeping ones that fit and may come back: first those for which
    a place is kept, then the longest preempted; none while a domain is being restored."""
    if any(is_restored(w) for w in workers(h)):
        return []
    provisional = [j for w in workers(h) for j in running(w) if j.cls is HIGH and not j.confirmed]
    stops = [j.stopped_since for w in workers(h) for j in w.jobs if ours(j)]
    if any(j.claimed_at in stops for j in provisional):
        return []
    kept = sum(w.linger_size.cpus for w in workers(h) if lingering(h, w))
    kept += sum(j.cpus for w in workers(h) for j in with_a_place(w))
    left = cpus_for_jobs(h) - cpus_in_use(workers(h)) - kept
    waiting = []
    for w in workers(h):
        mine = [j for j in w.jobs if ours(j)]
        if wants_back(w) or (w.sleep is None and any(not j.held_elsewhere for j in mine)):
            waiting.append((not with_a_place(w), waits_since(w), w.name, w))
    names: list[str] = []
    for _, _, name, w in sorted(waiting, key=lambda row: row[:3]):
        others = [s for s in workers(h) if s.name != name]
        alone = not names and not any(
            running(s) or (with_a_place(s) and not with_a_place(w)) or (away(s) and not asleep(s)) or lingering(h, s)
            for s in others
        )
        size, own = sum(j.cpus for j in going_on(w)), sum(j.cpus for j in with_a_place(w))
        beside_reserve = asleep(w) and any(j.cls is not LOW or j.keeps for j in w.jobs)
        overtaken = w.overtaken_since
        if size <= max(0, left + own - (reserved(h) if beside_reserve else 0)) or alone:
            left -= size - own
            names.append(name)
        elif provisional or (overtaken is not None and h.now >= overtaken + h.limits.overtaken_s):
            break
    return names
