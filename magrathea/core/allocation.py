"""Decides which jobs may start, and which domains are preempted for them. Nothing else decides it.

Rule 1: everything here is a function of a Host. No clock, no I/O, no memory of how the Host came to be so.
Rule 2: nothing here changes a fact; machine.py does.
Rule 3: what is published and what a claim is answered come from one function, `verdict`.
Rule 4: what concerns the whole host is computed once for it (`model.once`): what is in the way of its domains, and
which sets of domains can be preempted. An answer about one domain is taken from that.

The rules are those of docs/rules.md; shares.py computes the shares that they mention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from .model import CLASSES_OF, NOTHING, Amount, Domain, Host, JobClass, Kind, Lifecycle, Mode, once
from .refusals import Refusal, RefusalCode
from .shares import (
    disk_obstacles,
    free,
    leaving,
    lingers,
    most_jobs,
    obstacle,
    restoring,
    room_mib,
    share,
    silent,
    stoppable,
    stoppable_by_itself,
    summed,
    unused,
    use_when_stopped,
    with_running_jobs,
)
from .sleeping import why_asleep

EXACT_DOMAINS = 12
"""Up to this many stoppable domains, all sets of them are compared (4,096 sets); with more, best fit decides."""


# Who may start.


def verdict(host: Host, domain: Domain, cls: JobClass, size: Amount) -> Refusal | tuple[str, ...]:
    """The answer to a claim: a refusal, or the names of the domains that are preempted for it."""
    return _gate(host, domain, cls, size) or blocked(host, domain, cls) or _sized(host, domain, cls, size)


def costs_siblings(host: Host, domain: Domain, victims: tuple[str, ...]) -> bool:
    """True if a job that `verdict` lets in costs siblings something: it stops their jobs, or keeps stopped ones so.

    Such a claim counts only if PBS itself has given the job to the domain (docs/rules.md, "Who is believed").
    """
    return bool(victims) or any(d.wants_to_continue for d in host.workers if d.name != domain.name)


def _gate(host: Host, domain: Domain, cls: JobClass, size: Amount) -> Refusal | None:
    name, cpus, mib = domain.name, host.cpus, host.memory_mib
    gates: tuple[tuple[bool, RefusalCode, Callable[[], str]], ...] = (
        (
            size.cpus < 0 or size.mib < 0 or not size.within(Amount(cpus, mib)),
            RefusalCode.BAD_REQUEST,
            lambda: (
                f"no job here can have {size.cpus} CPUs and {size.mib} MiB; {host.name} has {cpus} and {mib}: ask for"
                " less (qalter -l select=...)"
            ),
        ),
        (
            cls not in CLASSES_OF[domain.kind],
            RefusalCode.WRONG_CLASS,
            lambda: (
                f"{name} is a {domain.kind} domain; send jobs of class {cls} elsewhere: their queue gives the class"
            ),
        ),
        (domain.asleep, RefusalCode.DOMAIN_ASLEEP, lambda: why_asleep(host, domain)),
        (
            domain.frozen and not restoring(domain),
            RefusalCode.DOMAIN_FROZEN,
            lambda: _told(f"{name} is saved to disk", domain.down_why),
        ),
        (
            domain.lifecycle is Lifecycle.DOWN,
            RefusalCode.DOMAIN_DOWN,
            lambda: _told(f"{name} is down", domain.down_why),
        ),
        (domain.lifecycle is Lifecycle.BOOTING, RefusalCode.DOMAIN_BOOTING, lambda: f"{name} is booting"),
        (
            domain.paused_externally,
            RefusalCode.DOMAIN_UNKNOWN,
            lambda: f"{name} is paused by somebody else; `virsh resume` or the like ends it",
        ),
        (silent(host, domain), RefusalCode.DOMAIN_UNKNOWN, lambda: _silence(host, domain)),
        (
            bool(domain.fault),
            RefusalCode.DOMAIN_FAULT,
            lambda: f"{name}: {domain.fault}; fix it, then `magrathea clear {name}`",
        ),
        (
            bool(domain.stopped) and domain.sleep is None,
            RefusalCode.DOMAIN_PREEMPTED,
            lambda: f"{name} is preempted",
        ),
        (bool(domain.drain_reason), RefusalCode.DOMAIN_DRAINING, lambda: f"{name} is draining: {domain.drain_reason}"),
        (
            len(domain.jobs) >= most_jobs(host),
            RefusalCode.CPUS,
            lambda: f"{name} has {len(domain.jobs)} jobs, and a domain of {host.name} at most {most_jobs(host)}",
        ),
    )
    found = next((Refusal(code, text()) for holds, code, text in gates if holds), None)
    return found or once(host, _gate_of_host)


def _gate_of_host(host: Host) -> Refusal | None:
    """Why no domain of the host accepts a job: a domain boots or is in fault. None if none does.

    The fault of a sleeping domain is in nobody's way.
    """
    if booting := next((d for d in host.domains if d.lifecycle is Lifecycle.BOOTING), None):
        return Refusal(RefusalCode.HOST_BOOTING, f"{booting.name} is booting")
    faulty = next((d for d in host.domains if d.fault and not d.asleep), None)
    return Refusal(RefusalCode.HOST_FAULT, f"{faulty.name}: {faulty.fault}") if faulty else None


def _silence(host: Host, domain: Domain) -> str:
    if host.driver_lost_at is not None and domain.agent_lost_at is None:
        return f"the hypervisor of {host.name} does not answer; is libvirtd running?"
    return f"{domain.name}'s agent does not answer; see its log"


def _told(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what


def _told_too(what: str, more: str) -> str:
    return f"{what}; {more}" if more else what


def blocked(host: Host, domain: Domain, cls: JobClass) -> Refusal | None:
    """On an exclusive host: the refusal if a sibling cannot be pushed aside, or not far enough. None otherwise."""
    if host.mode is Mode.COUNTED:
        return None
    if coming := next((c for c in host.coming if c.busy and c.name != domain.name), None):
        text = f"{coming.name} is on its way here, or may come back to {host.name}, with jobs"
        return Refusal(RefusalCode.HOST_BUSY, text)
    in_the_way = {
        JobClass.PRIORITY: _not_stoppable,
        JobClass.PREEMPTIBLE: _in_use,
        JobClass.PROTECTED: _in_use_or_reserved,
    }[cls]
    first = next((refusal for name, refusal in once(host, in_the_way) if name != domain.name), None)
    if first is None and domain.kind is Kind.PRIORITY and room_mib(host, domain) < 0:
        text = f"what cannot be moved out on {host.name} leaves {domain.name} less than its floor"
        return Refusal(RefusalCode.MEMORY, _told_too(text, disk_obstacles(host)))
    return first


_Refusals = tuple[tuple[str, Refusal], ...]
"""The first two domains that are in the way of others, each with its refusal. Two, because the domain in question may
be one of them."""


def _not_stoppable(host: Host) -> _Refusals:
    found = (d for d in host.workers if (d.running or d.keeps_its_place) and not stoppable(host, d))
    return tuple((d.name, _why_not_stoppable(host, d)) for d in islice(found, 2))


def _in_use(host: Host) -> _Refusals:
    found = ((d.name, _uses(host, d)) for d in host.workers)
    return tuple(islice(((name, refusal) for name, refusal in found if refusal), 2))


def _in_use_or_reserved(host: Host) -> _Refusals:
    found = ((d.name, _uses(host, d) or _reserves(d)) for d in host.workers)
    return tuple(islice(((name, refusal) for name, refusal in found if refusal), 2))


def _uses(host: Host, sibling: Domain) -> Refusal | None:
    """The refusal if this sibling keeps every job out of a normal domain."""
    if sibling.jobs and not sibling.asleep:
        return Refusal(RefusalCode.HOST_BUSY, f"{sibling.name} on {host.name} has jobs")
    if sibling.jobs and sibling.in_line_to_wake:
        text = f"{sibling.name} on {host.name} has jobs, and comes back from its sleep when there is room"
        return Refusal(RefusalCode.HOST_BUSY, text)
    if lingers(host, sibling):
        return Refusal(RefusalCode.HOST_LINGERS, f"{sibling.name} keeps {host.name} for its next priority job")
    return None


def _reserves(sibling: Domain) -> Refusal | None:
    """The refusal if this sibling keeps all but preemptible jobs out of a normal domain."""
    if sibling.frozen:
        text = f"{sibling.name} is frozen; until it is back, only preemptible jobs"
        return Refusal(RefusalCode.HOST_RESERVED, text)
    return None


def _why_not_stoppable(host: Host, sibling: Domain) -> Refusal:
    if stoppable_by_itself(host, sibling):
        if host.paused:
            return _paused(host, f"{sibling.name} would be preempted")
        return Refusal(RefusalCode.HUB_LOST, f"{sibling.name} would be preempted, but no hub answers to book it in PBS")
    if sibling.keeps_its_place:
        text = f"{sibling.name} on {host.name} is put to sleep, or has come back and its jobs are about to go on"
        return Refusal(RefusalCode.HOST_BUSY, text)
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
        if host.paused and size.within(share(once(host, _unpaused), domain, cls)):
            return _paused(host, "jobs would be preempted")
        if host.hub_lost and size.within(share(once(host, _with_hub), domain, cls)):
            return Refusal(
                RefusalCode.HUB_LOST, f"no hub answers, so nothing is preempted; without that {left.cpus} CPUs are left"
            )
        if size.cpus > left.cpus:
            text = f"{size.cpus} CPUs asked for, {left.cpus} left on {host.name} for class {cls}"
            text += _of_services(host.cpus, host.without_services.cpus, "CPUs")
            return Refusal(RefusalCode.CPUS, text + _of_moves(host))
        text = f"{size.mib} MiB asked for, {left.mib} left on {host.name} for class {cls}"
        text += _of_services(host.memory_mib, host.without_services.mib, "MiB") + _of_moves(host)
        return Refusal(RefusalCode.MEMORY, _told_too(text, disk_obstacles(host)))
    if cls is not JobClass.PRIORITY:
        return ()
    if host.mode is Mode.EXCLUSIVE:
        return tuple(name for name in once(host, with_running_jobs) if name != domain.name)
    need = size - free(host, domain)
    # MoM's lists may have overbooked CPUs or memory; a job that asks for none does not have to fix that
    return victims(host, Amount(need.cpus if size.cpus else 0, need.mib if size.mib else 0))


def _unpaused(host: Host) -> Host:
    return replace(host, paused=None)


def _with_hub(host: Host) -> Host:
    return replace(host, hub_lost=False)


def _of_services(has: int, left: int, unit: str) -> str:
    """How much of the host services take, for people; empty if there are no services."""
    return f"; of its {has} {unit} services have {has - left}" if left < has else ""


def _of_moves(host: Host) -> str:
    """What moves keep, for people; empty if they keep nothing."""
    kept = (f"{c.size.cpus} CPUs and {c.size.mib} MiB are kept for {c.name}, which moves" for c in host.coming)
    return "".join(f"; {text}" for text in kept)


def defrost_verdict(host: Host, domain: Domain, until: float) -> Refusal | tuple[str, ...]:
    """The answer to a defrost: a refusal, or the domains that borrowed its CPUs and are preempted for it."""
    if host.paused:
        return _paused(host, f"{domain.name} would be restored")
    if not domain.frozen or domain.lifecycle is not Lifecycle.DOWN or until <= host.now:
        return Refusal(RefusalCode.NOT_FROZEN, f"{domain.name} is not saved to disk, or would have to be back already")
    in_the_way = (d for d in host.domains if d.lifecycle is Lifecycle.BOOTING or (d.fault and not d.asleep))
    if other := next(in_the_way, None):
        return Refusal(RefusalCode.HOST_BOOTING, f"{other.name} is booting or in fault; wait or fix it")
    if host.mode is Mode.EXCLUSIVE:
        return ()
    back = host.having(replace(domain, lifecycle=Lifecycle.BOOTING))
    need = NOTHING - unused(back) - leaving(back)
    candidates = (d for d in host.workers if d.running and stoppable(host, d))
    sufficient = need.within(summed(d.use - use_when_stopped(host, d) for d in candidates))
    return (
        victims(back, need)
        if sufficient
        else Refusal(RefusalCode.CPUS, f"its CPUs or memory are lent: {need} cannot be freed")
    )


def victims(host: Host, need: Amount) -> tuple[str, ...]:
    """The stoppable domains to preempt for `need` more, best fitting first (docs/rules.md, "Victims").

    The caller guarantees that all of them together suffice.
    """
    if need.within(NOTHING):
        return ()
    candidates = once(host, _candidates)
    if len(candidates) > EXACT_DOMAINS:
        return best_fit({name: amount for name, amount, _ in candidates}, need)
    return next(chosen.names for chosen in once(host, _sets) if need.within(Amount(chosen.cpus, chosen.mib)))


def _candidates(host: Host) -> tuple[tuple[str, Amount, float], ...]:
    """The domains that can be preempted. For each: its name, what it would give, its job-seconds preempted so far."""
    found = (d for d in host.workers if d.running and stoppable(host, d))
    return tuple((d.name, d.use - use_when_stopped(host, d), d.preempted_s) for d in found)


class _Set(NamedTuple):
    """Domains that may be preempted together, and what they give. A smaller tuple is preferred."""

    cpus: int
    domains: int
    preempted_s: float
    mib: int
    names: tuple[str, ...]


def _sets(host: Host) -> tuple[_Set, ...]:
    """Every set of candidates, the preferred ones first. The order is the same for every need."""
    sets = [_Set(0, 0, 0.0, 0, ())]
    for name, amount, preempted_s in once(host, _candidates):
        sets += [
            _Set(s.cpus + amount.cpus, s.domains + 1, s.preempted_s + preempted_s, s.mib + amount.mib, (*s.names, name))
            for s in sets
        ]
    return tuple(sorted(sets))


def best_fit(gives: dict[str, Amount], need: Amount) -> tuple[str, ...]:
    """The smallest domain that gives enough. If none does: the largest, and so on for what is still missing."""
    chosen: list[str] = []
    got = NOTHING
    rest = sorted(gives, key=lambda name: (gives[name].cpus, gives[name].mib, name))
    while rest and not need.within(got):
        missing = need - got
        name = next((n for n in rest if missing.within(gives[n])), rest[-1])
        chosen.append(name)
        rest.remove(name)
        got += gives[name]
    for name in tuple(chosen):  # the last one may make an earlier one unnecessary
        if need.within(got - gives[name]):
            chosen.remove(name)
            got -= gives[name]
    return tuple(sorted(chosen))
