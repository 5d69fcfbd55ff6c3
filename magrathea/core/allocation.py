"""What must be, given what is: the only place that decides who may start, and who is preempted for it.

Rule 1: everything here is a function of a Host. No clock, no I/O, no memory of how the Host came to be so.
Rule 2: nothing here changes a fact; machine.py does.
Rule 3: what is published and what a claim is answered come from one function, `verdict`.

The rules are those of docs/rules.md. Its formulas leave one thing open, decided here: preemptible jobs may sit on the
CPUs reserved for frozen domains, whoever came first, so a priority job stops them only if the host is really full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .model import CLASSES_OF, NOTHING, Amount, Domain, Host, Job, JobClass, Kind, Lifecycle, Mode, Stopper
from .refusals import Refusal, RefusalCode

EXACT_DOMAINS = 12
"""Up to so many stoppable domains every set of them is tried (4,096 sets); beyond, best fit."""


# What is so: small questions about one domain.


def silent(host: Host, domain: Domain) -> bool:
    """The agent, or the hypervisor, has been away longer than the grace time, or the agent cannot answer at all."""
    lost = min((at for at in (domain.agent_lost_at, host.driver_lost_at) if at is not None), default=None)
    return domain.paused_externally or (lost is not None and host.now >= lost + host.limits.agent_silent_s)


def _silence(host: Host, domain: Domain) -> str:
    if host.driver_lost_at is not None and domain.agent_lost_at is None:
        return f"the hypervisor of {host.name} does not answer; is libvirtd running?"
    return f"{domain.name}'s agent does not answer; see its log"


def lingers(host: Host, domain: Domain) -> bool:
    return domain.linger_until is not None and host.now < domain.linger_until and not domain.jobs


def restoring(domain: Domain) -> bool:
    return domain.frozen and domain.lifecycle is Lifecycle.BOOTING


def young(host: Host, job: Job) -> bool:
    """It has run for less than the minimum since it was started or continued."""
    return not job.stopped_by_us and host.now < job.run_since + host.limits.min_run_s


def obstacle(host: Host, domain: Domain, job: Job) -> str:
    """Why this job cannot be stopped now, for people; empty if it can ("stoppable" in docs/rules.md)."""
    limits = host.limits
    youth_counts = domain.young_since is None or host.now < domain.young_since + limits.young_s
    return next(
        (
            why
            for holds, why in (
                (job.cls is not JobClass.PREEMPTIBLE, f"is of class {job.cls}"),
                (not job.launched, "has not started yet"),
                (job.ending, "is ending"),
                (job.stopper is Stopper.PBS, "is suspended by others"),
                (0 < limits.max_preemptions <= job.preemptions, f"has been preempted {job.preemptions} times"),
                (young(host, job) and youth_counts, f"has run for less than {limits.min_run_s:g} s"),
            )
            if holds
        ),
        "",
    )


def stoppable_by_itself(host: Host, domain: Domain) -> bool:
    """Stoppable as far as the domain goes: the host may be paused or without its hub."""
    answers = domain.agent_lost_at is None and not domain.paused_externally
    reachable = domain.lifecycle is Lifecycle.UP and answers and not domain.fault
    jobs_may = all(j.stopped_by_us or not obstacle(host, domain, j) for j in domain.jobs)
    return domain.kind is Kind.NORMAL and reachable and jobs_may


def stoppable(host: Host, domain: Domain) -> bool:
    return not host.hub_lost and not host.paused and stoppable_by_itself(host, domain)


# What is left: shares.


def summed(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, NOTHING)


def _room_mib(host: Host, domain: Domain) -> int:
    """What the domain's jobs may have in all: beyond every floor, its own too, and what its siblings' jobs keep.

    Negative where not even its floor is left.
    """
    siblings = host.siblings(domain)
    must_stay = 0
    if host.mode is Mode.EXCLUSIVE:
        stay = (s.stuck_mib(s.jobs) if stoppable(host, s) or not s.running else s.use.mib for s in siblings)
        must_stay = sum(stay)
    left = host.without_services.mib - sum(d.floor_mib for d in host.workers) - must_stay
    return min(left, domain.memory_mib - domain.floor_mib) if domain.memory_mib else left


def _ceiling(host: Host, domain: Domain) -> Amount:
    """What this domain's jobs may have in all: its configured size, and what floors and siblings' jobs leave."""
    return Amount(max(0, min(host.without_services.cpus, domain.cpus)), max(0, _room_mib(host, domain)))


def _counted(host: Host, domain: Domain) -> tuple[Amount, Amount, Amount]:
    """(what there is, what is reserved for frozen domains, what `domain` finds taken), without floors."""
    there = host.without_services - Amount(0, sum(d.floor_mib for d in host.workers))
    reserved = summed(Amount(d.cpus, d.memory_mib) for d in host.workers if d.frozen and not restoring(d))
    return there, reserved, summed(d.use for d in host.workers) + _held_back(host, domain)


def _held_back(host: Host, domain: Domain | None) -> Amount:
    """What lingering domains and those being restored keep from others."""
    others = [d for d in host.workers if domain is None or d.name != domain.name]
    lingering = summed(d.linger_size for d in others if lingers(host, d))
    return lingering + summed(Amount(d.cpus, d.memory_mib) for d in others if restoring(d))


def unused(host: Host) -> Amount:
    """What nobody has and nobody keeps; negative where more is in use than there is."""
    floors = Amount(0, sum(d.floor_mib for d in host.workers))
    return host.without_services - floors - summed(d.use for d in host.workers) - _held_back(host, None)


def _past_stopping(host: Host, domain: Domain) -> Amount:
    """What stays taken, for `domain`, when everything stoppable is stopped."""
    uses = summed(d.use_when_stopped if stoppable(host, d) else d.use for d in host.workers)
    return uses + _held_back(host, domain)


def free(host: Host, domain: Domain) -> Amount:
    """What a priority job may have on a counted host without stopping anybody."""
    there, reserved, taken = _counted(host, domain)
    return (there - taken).least(there - reserved - _past_stopping(host, domain))


def share(host: Host, domain: Domain, cls: JobClass) -> Amount:
    """What one more job of `cls` may have in this domain: CPUs, and memory in MiB. Never negative."""
    ceiling = _ceiling(host, domain) - domain.use
    if host.mode is Mode.COUNTED:
        there, reserved, taken = _counted(host, domain)
        left = {
            JobClass.PROTECTED: there - reserved - taken,
            JobClass.PREEMPTIBLE: there - taken,
            JobClass.PRIORITY: there - reserved - _past_stopping(host, domain),
        }[cls]
        if cls is not JobClass.PRIORITY and any(d.stopped for d in host.workers):
            left = NOTHING  # else small jobs would keep a preempted domain stopped for ever
        ceiling = ceiling.least(left)
    return Amount(max(0, ceiling.cpus), max(0, ceiling.mib))


# Who may start.


def verdict(host: Host, domain: Domain, cls: JobClass, size: Amount) -> Refusal | tuple[str, ...]:
    """The answer to a claim: a refusal, or the names of the domains that are preempted for it."""
    return _gate(host, domain, cls, size) or blocked(host, domain, cls) or _sized(host, domain, cls, size)


def _gate(host: Host, domain: Domain, cls: JobClass, size: Amount) -> Refusal | None:
    name, cpus, mib = domain.name, host.cpus, host.memory_mib
    gates = (
        (
            size.cpus < 1 or size.mib < 0 or not size.within(Amount(cpus, mib)),
            RefusalCode.BAD_REQUEST,
            f"no job here can have {size.cpus} CPUs and {size.mib} MiB; {host.name} has {cpus} and {mib}",
        ),
        (
            cls not in CLASSES_OF[domain.kind],
            RefusalCode.WRONG_CLASS,
            f"{name} is a {domain.kind} domain; send jobs of class {cls} elsewhere: their queue gives the class",
        ),
        (
            domain.frozen and not restoring(domain),
            RefusalCode.DOMAIN_FROZEN,
            _told(f"{name} is saved to disk", domain.down_why),
        ),
        (domain.lifecycle is Lifecycle.DOWN, RefusalCode.DOMAIN_DOWN, _told(f"{name} is down", domain.down_why)),
        (domain.lifecycle is Lifecycle.BOOTING, RefusalCode.DOMAIN_BOOTING, f"{name} is booting"),
        (
            domain.paused_externally,
            RefusalCode.DOMAIN_UNKNOWN,
            f"{name} is paused by somebody else; `virsh resume` or the like ends it",
        ),
        (silent(host, domain), RefusalCode.DOMAIN_UNKNOWN, _silence(host, domain)),
        (
            bool(domain.fault),
            RefusalCode.DOMAIN_FAULT,
            f"{name}: {domain.fault}; fix it, then `magrathea clear {name}`",
        ),
        (bool(domain.stopped), RefusalCode.DOMAIN_PREEMPTED, f"{name} is preempted"),
        (bool(domain.drain_reason), RefusalCode.DOMAIN_DRAINING, f"{name} is draining: {domain.drain_reason}"),
        *((d.lifecycle is Lifecycle.BOOTING, RefusalCode.HOST_BOOTING, f"{d.name} is booting") for d in host.domains),
        *((bool(d.fault), RefusalCode.HOST_FAULT, f"{d.name}: {d.fault}") for d in host.domains),
    )
    return next((Refusal(code, text) for holds, code, text in gates if holds), None)


def _told(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what


def blocked(host: Host, domain: Domain, cls: JobClass) -> Refusal | None:
    """On an exclusive host: a sibling in the way that cannot be pushed aside, or not far enough."""
    if host.mode is Mode.COUNTED:
        return None
    for sibling in host.siblings(domain):
        if domain.kind is Kind.NORMAL:
            if sibling.jobs:
                return Refusal(RefusalCode.HOST_BUSY, f"{sibling.name} on {host.name} has jobs")
            if lingers(host, sibling):
                return Refusal(RefusalCode.HOST_LINGERS, f"{sibling.name} keeps {host.name} for its next priority job")
            if sibling.frozen and cls is not JobClass.PREEMPTIBLE:
                return Refusal(
                    RefusalCode.HOST_RESERVED, f"{sibling.name} is frozen; until it is back, only preemptible jobs"
                )
        elif sibling.running and not stoppable(host, sibling):
            return _why_not_stoppable(host, sibling)
    if domain.kind is Kind.PRIORITY and _room_mib(host, domain) < 0:
        return Refusal(
            RefusalCode.MEMORY, f"what cannot be moved out on {host.name} leaves {domain.name} less than its floor"
        )
    return None


def _why_not_stoppable(host: Host, sibling: Domain) -> Refusal:
    if stoppable_by_itself(host, sibling):
        if host.paused:
            return _paused(host, f"{sibling.name} would be preempted")
        return Refusal(RefusalCode.HUB_LOST, f"{sibling.name} would be preempted, but no hub answers to book it in PBS")
    whys = [f"{j.key} {why}" for j in sibling.jobs if not j.stopped_by_us and (why := obstacle(host, sibling, j))]
    return Refusal(
        RefusalCode.HOST_BUSY, f"{sibling.name} on {host.name} cannot be preempted: {'; '.join(whys) or 'no contact'}"
    )


def _paused(host: Host, what: str) -> Refusal:
    reason = host.paused.reason if host.paused else ""
    return Refusal(
        RefusalCode.PAUSED, f"{what}, but {host.name} is paused ({reason}); `magrathea unpause` there ends it"
    )


def _sized(host: Host, domain: Domain, cls: JobClass, size: Amount) -> Refusal | tuple[str, ...]:
    left = share(host, domain, cls)
    if not size.within(left):
        if host.paused and size.within(share(replace(host, paused=None), domain, cls)):
            return _paused(host, "jobs would be preempted")
        if host.hub_lost and size.within(share(replace(host, hub_lost=False), domain, cls)):
            return Refusal(
                RefusalCode.HUB_LOST, f"no hub answers, so nothing is preempted; without that {left.cpus} CPUs are left"
            )
        if size.cpus > left.cpus:
            text = f"{size.cpus} CPUs asked for, {left.cpus} left on {host.name} for class {cls}"
            return Refusal(RefusalCode.CPUS, text + _of_services(host.cpus, host.without_services.cpus, "CPUs"))
        text = f"{size.mib} MiB asked for, {left.mib} left on {host.name} for class {cls}"
        return Refusal(RefusalCode.MEMORY, text + _of_services(host.memory_mib, host.without_services.mib, "MiB"))
    if cls is not JobClass.PRIORITY:
        return ()
    if host.mode is Mode.EXCLUSIVE:
        return tuple(s.name for s in host.siblings(domain) if s.running)
    need = size - free(host, domain)
    # MoM's lists may have overbooked the memory; a job that asks for none does not have to fix that
    return victims(host, need if size.mib else Amount(need.cpus, 0))


def _of_services(has: int, left: int, unit: str) -> str:
    """What services take of the host, for people; empty where there are none."""
    return f"; of its {has} {unit} services have {has - left}" if left < has else ""


def defrost_verdict(host: Host, domain: Domain, until: float) -> Refusal | tuple[str, ...]:
    """May a frozen domain come back now, and which domains that borrowed its CPUs are preempted for it?"""
    if host.paused:
        return _paused(host, f"{domain.name} would be restored")
    if not domain.frozen or domain.lifecycle is not Lifecycle.DOWN or until <= host.now:
        return Refusal(RefusalCode.NOT_FROZEN, f"{domain.name} is not saved to disk, or would have to be back already")
    if other := next((d for d in host.domains if d.fault or d.lifecycle is Lifecycle.BOOTING), None):
        return Refusal(RefusalCode.HOST_BOOTING, f"{other.name} is booting or in fault; wait or fix it")
    if host.mode is Mode.EXCLUSIVE:
        return ()
    back = host.having(replace(domain, lifecycle=Lifecycle.BOOTING))
    need = NOTHING - unused(back)
    sufficient = need.within(summed(d.use - d.use_when_stopped for d in host.workers if stoppable(host, d)))
    return (
        victims(back, need)
        if sufficient
        else Refusal(RefusalCode.CPUS, f"its CPUs or memory are lent: {need} cannot be freed")
    )


def victims(host: Host, need: Amount) -> tuple[str, ...]:
    """The stoppable domains to preempt for `need` more, best fitting first (docs/rules.md, "Victims").

    All of them together suffice: the caller has made sure.
    """
    if need.within(NOTHING):
        return ()
    candidates = [d for d in host.workers if d.running and stoppable(host, d)]
    gives = {d.name: d.use - d.use_when_stopped for d in candidates}
    if len(candidates) > EXACT_DOMAINS:
        return _best_fit(gives, need)

    def cost(chosen: tuple[Domain, ...]) -> tuple[int, int, float, int, tuple[str, ...]]:
        spare = summed(gives[d.name] for d in chosen) - need
        return spare.cpus, len(chosen), sum(d.preempted_s for d in chosen), spare.mib, tuple(d.name for d in chosen)

    sets = (tuple(d for i, d in enumerate(candidates) if mask >> i & 1) for mask in range(1 << len(candidates)))
    return min(cost(chosen) for chosen in sets if need.within(summed(gives[d.name] for d in chosen)))[-1]


def _best_fit(gives: dict[str, Amount], need: Amount) -> tuple[str, ...]:
    chosen: list[str] = []
    rest = dict(sorted(gives.items(), key=lambda item: (item[1].cpus, item[1].mib, item[0])))
    while rest and not need.within(summed(gives[n] for n in chosen)):
        missing = need - summed(gives[n] for n in chosen)
        name = next((n for n, amount in rest.items() if missing.within(amount)), next(reversed(rest)))
        chosen.append(name)
        del rest[name]
    for name in tuple(chosen):  # the last one may make an earlier one needless
        if need.within(summed(gives[n] for n in chosen if n != name)):
            chosen.remove(name)
    return tuple(sorted(chosen))
