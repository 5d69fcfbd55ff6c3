"""Configurations of a host: its present one, random changes of it, and what must be true after one was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from magrathea.core import events as ev
from magrathea.core.model import Domain, GiveWay, Host, Kind, Limits, Mode

NAMES = ("d1", "d2", "d3", "d4", "d5", "d6")
LIMITS = (
    Limits(),
    Limits(linger_s=20.0),
    Limits(linger_s=5.0, overtaken_s=30.0, max_preemptions=2),
    Limits(min_run_s=10.0, young_s=16.0, max_preempted_s=60.0),
    Limits(claim_s=20.0, agent_silent_s=10.0, remember_s=20.0),
    Limits(give_way=GiveWay.DISK),
    Limits(linger_s=5.0, give_way=GiveWay.SWAP_THEN_DISK),
)


def configured(domain: Domain) -> ev.ConfiguredDomain:
    sizes = (domain.cpus, domain.memory_mib, domain.floor_mib, domain.swap_mib, domain.boot_limit_s)
    return ev.ConfiguredDomain(domain.name, domain.kind, *sizes)


def configuration(h: Host, at: float) -> ev.Reconfigured:
    """The configuration that the host already has. Reading it again changes nothing."""
    domains = tuple(configured(d) for d in h.domains if d.configured)
    return ev.Reconfigured(at, h.name, h.mode, h.cpus, h.memory_mib, h.limits, domains)


def sane(c: ev.Reconfigured) -> bool:
    """True if the daemon would accept it (node_daemon/configuration.py)."""
    workers = [d for d in c.domains if d.kind is not Kind.SERVICE]
    services = [d for d in c.domains if d.kind is Kind.SERVICE]
    floors = sum(d.floor_mib for d in workers) + sum(d.memory_mib for d in services)
    sizes = all(d.cpus <= c.cpus and (not d.memory_mib or d.floor_mib <= d.memory_mib) for d in c.domains)
    enough = sum(d.cpus for d in services) < c.cpus and floors <= c.memory_mib
    return bool(workers) and sizes and enough and all(d.cpus >= 1 for d in workers)


_Change = Callable[[Random, ev.Reconfigured], ev.Reconfigured]
_Domains = tuple[ev.ConfiguredDomain, ...]


def _one(random: Random, c: ev.Reconfigured, change: Callable[[ev.ConfiguredDomain], ev.ConfiguredDomain]) -> _Domains:
    chosen = random.choice(c.domains).name if c.domains else ""
    return tuple(change(d) if d.name == chosen else d for d in c.domains)


def _added(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    name = random.choice(NAMES)
    kind = random.choice((Kind.NORMAL, Kind.PRIORITY, Kind.PRIORITY, Kind.SERVICE))
    new = ev.ConfiguredDomain(name, kind, 1 if kind is Kind.SERVICE else random.choice((c.cpus, max(1, c.cpus // 2))))
    return c if any(d.name == name for d in c.domains) else replace(c, domains=(*c.domains, new))


def _removed(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    gone = random.choice(c.domains).name if c.domains else ""
    return replace(c, domains=tuple(d for d in c.domains if d.name != gone))


def _of_another_kind(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    kind = random.choice(tuple(Kind))
    return replace(c, domains=_one(random, c, lambda d: replace(d, kind=kind)))


def _of_another_size(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    """Change the host's size. If the host ignores memory, change only its CPUs: most of its histories test CPU
    rules."""
    cpus = random.choice((1, 2, max(1, c.cpus // 2), c.cpus))
    with_memory = any(d.floor_mib or d.swap_mib or d.memory_mib for d in c.domains)
    floor, swap, most = random.choice((0, 100, 500)), random.choice((0, 500, 4_000)), random.choice((0, 0, 1_000))

    def resized(d: ev.ConfiguredDomain) -> ev.ConfiguredDomain:
        d = replace(d, cpus=cpus)
        return replace(d, floor_mib=floor, swap_mib=swap, memory_mib=most) if with_memory else d

    return replace(c, domains=_one(random, c, resized))


def _another_host_size(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    return replace(c, cpus=random.choice((2, 4, 8, 16)), memory_mib=random.choice((1_000, 4_000, 4_000, 6_000)))


def _another_mode(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    return replace(c, mode=Mode.COUNTED if c.mode is Mode.EXCLUSIVE else Mode.EXCLUSIVE)


def _other_limits(random: Random, c: ev.Reconfigured) -> ev.Reconfigured:
    return replace(c, limits=random.choice(LIMITS))


CHANGES: tuple[_Change, ...] = (
    _added,
    _removed,
    _of_another_kind,
    _of_another_size,
    _another_host_size,
    _another_mode,
    _other_limits,
)


def a_reload(random: Random, h: Host, at: float) -> ev.Reconfigured:
    """The configuration with one or two random changes; unchanged if the daemon would refuse them."""
    new = old = configuration(h, at)
    for change in random.sample(CHANGES, random.choice((1, 1, 2))):
        new = change(random, new)
    return new if sane(new) else old


def broken_by(before: Host, after: Host, event: ev.Reconfigured, decisions: tuple[ev.Decision, ...]) -> Iterator[str]:
    """What is wrong after that configuration was read, a sentence each."""
    if (after.mode, after.cpus, after.memory_mib) != (event.mode, event.cpus, event.memory_mib):
        yield "the host is not as configured"
    if after.limits != event.limits:
        yield "the limits are not as configured"
    meant = {d.name: d for d in event.domains}
    ended = {(d.domain, d.key) for d in decisions if isinstance(d, ev.Noted) and d.key and d.what in _OVERDUE}
    for domain in after.domains:
        was = before.domain(domain.name)
        if domain.configured != (domain.name in meant):
            yield f"{domain.name} does not know whether it is configured"
        if domain.name in meant and replace(configured(domain), kind=meant[domain.name].kind) != meant[domain.name]:
            yield f"{domain.name} has not the size that it is to have"
        if domain.name in meant and domain.kind is not meant[domain.name].kind and not _in_use(was):
            yield f"{domain.name} keeps its kind for no reason"
        if was is not None and domain.kind is not was.kind and _in_use(was):
            yield f"{domain.name} changes its kind while it is in use"
    if missing := meant.keys() - {d.name for d in after.domains}:
        yield f"{missing} are configured and not there"
    for old in before.domains:
        new = after.domain(old.name)
        if new is None and old.name in meant:
            yield f"{old.name} is forgotten although it is configured"
        for job in old.jobs:
            if (old.name, job.key) not in ended and (new is None or new.job(job.key) is None):
                yield f"{job.key} in {old.name} is lost by a configuration"


_OVERDUE = (ev.Note.EXPIRED, ev.Note.DOMAIN_DOWN)
"""How a job may end through shorter limits: its claim expires, or a domain is silent that is no longer configured."""


def _in_use(domain: Domain | None) -> bool:
    return domain is not None and (bool(domain.jobs) or domain.frozen or domain.saving or domain.sleep is not None)
