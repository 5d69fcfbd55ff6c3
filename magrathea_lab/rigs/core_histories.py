"""Random hosts and random events for them, most of them possible, some absurd. The same seed gives the same history.

Times and figures take few values and often coincide, so that deadlines meet and sizes just fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from magrathea.core import events as ev
from magrathea.core import states, stopping
from magrathea.core.model import (
    Domain,
    GiveWay,
    Host,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Mode,
    Patience,
    SleepCause,
    State,
)

from .core_configurations import LIMITS, NAMES, a_reload, configuration, configured, sane

_Maker = Callable[[Random, Host, Domain, float], ev.Event]
"""Makes one kind of event for a host at a time, preferably about the given domain."""

START = 1_000.0
STEPS_S = (0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 10.0, 31.0, 61.0, 300.0)
IDS = ("1", "2", "3", "4", "5", "6", "7", "8")
KINDS = (Kind.NORMAL, Kind.NORMAL, Kind.NORMAL, Kind.PRIORITY, Kind.PRIORITY, Kind.SERVICE)
CLASS_FOR = {
    Kind.NORMAL: (JobClass.PREEMPTIBLE, JobClass.PREEMPTIBLE, JobClass.PREEMPTIBLE, JobClass.PROTECTED),
    Kind.PRIORITY: (JobClass.PRIORITY,),
    Kind.SERVICE: tuple(JobClass),
}


def a_host(random: Random) -> Host:
    """A host with 1 to 6 domains, in either mode, with memory that is counted or ignored."""
    cpus = random.choice((2, 4, 8, 16))
    kinds = [random.choice(KINDS) for _ in range(random.randint(1, 6))]
    if random.random() < 0.7:
        kinds[:2] = [Kind.NORMAL, Kind.PRIORITY]  # otherwise few hosts could preempt anything
    limits = random.choice(LIMITS)
    memory = limits.give_way is not GiveWay.SWAP or random.random() < 0.4
    domains = tuple(_domain(random, name, kind, cpus, memory) for name, kind in zip(NAMES, kinds, strict=False))
    mode = random.choice(tuple(Mode))
    return Host("h1", mode, cpus, 4_000, domains, limits, hub_lost=random.random() < 0.05, now=START)


def _domain(random: Random, name: str, kind: Kind, cpus: int, memory: bool) -> Domain:
    if kind is Kind.SERVICE:
        return Domain(
            name,
            kind,
            cpus=random.choice((0, 0, 1)) if cpus > 6 else 0,
            memory_mib=random.choice((0, 100)) if memory else 0,
            lifecycle=Lifecycle.UP,
            agent_lost_at=None,
        )
    size = random.choice((cpus, cpus, max(1, cpus // 2)))
    domain = Domain(name, kind, cpus=size, lifecycle=Lifecycle.UP, agent_lost_at=None)
    if memory:
        domain = replace(
            domain,
            floor_mib=random.choice((0, 100, 500)),
            swap_mib=random.choice((0, 500, 4_000)),
            memory_mib=random.choice((0, 0, 1_000)),
            disk_obstacle=random.choice(("", "", "", "a device")),
        )
    if kind is Kind.PRIORITY and random.random() < 0.15:
        return replace(domain, frozen=True, lifecycle=Lifecycle.DOWN, agent_lost_at=START)
    if random.random() < 0.05:
        return replace(domain, lifecycle=Lifecycle.DOWN, agent_lost_at=START)
    return domain


def an_event(random: Random, h: Host, at: float | None = None) -> ev.Event:
    """An event that may happen next; sometimes an impossible one."""
    when = h.now + random.choice(STEPS_S) if at is None else at
    domain = random.choice(h.domains)
    if any(not j.launched for d in h.domains for j in d.jobs) and random.random() < 0.35:
        return _launch(random, h, domain, when if when < h.now + 60 else h.now + 5.0)
    recoveries = [make for needed, make in _recoveries(h) if needed]
    if recoveries and random.random() < 0.3:
        return random.choice(recoveries)(random, h, domain, when)
    return random.choices(_MAKERS, _WEIGHTS)[0](random, h, domain, when)


def _recoveries(h: Host) -> tuple[tuple[bool, _Maker], ...]:
    """Events that lead back to normal, so that most hosts work most of the time."""
    return (
        (h.hub_lost, _on_host(ev.HubFound)),
        (any(not d.configured for d in h.domains), _configured_again),
        (h.driver_lost_at is not None, _on_host(ev.DriverFound)),
        (h.paused is not None, _on_host(ev.PauseEnded)),
        (any(d.fault for d in h.domains), _cleared),
        (any(d.draining or d.closing for d in h.domains), _undrained),
        (any(d.paused_externally for d in h.domains), _went_on),
        (any(d.saving or d.falls_asleep for d in h.domains), _saved),
        (any(d.falls_asleep for d in h.domains), _booked),
        (any(d.asleep for d in h.domains), _wake),
        (any(d.frozen for d in h.domains), _defrost),
        (any(d.lifecycle is Lifecycle.BOOTING for d in h.domains), _started),
        (any(d.lifecycle is Lifecycle.DOWN and not d.frozen and not d.sleep for d in h.domains), _boot),
        (any(d.agent_lost_at is not None and d.lifecycle is Lifecycle.UP for d in h.domains), _connected),
    )


def _some_key(random: Random, domain: Domain) -> JobKey:
    """Mostly the key of one of the domain's jobs, sometimes of an unknown job or of another run."""
    if domain.jobs and random.random() < 0.9:
        return random.choice(domain.jobs).key
    return JobKey(random.choice(IDS), random.randint(1, 3))


def _claim(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    """A claim, mostly one that PBS would send."""
    inviting = [d for d in h.domains if states.accepts(h, d)]
    if inviting and random.random() < 0.6:
        preempting = [d for d in inviting if states.state_of(h, d) is State.WOULD_PREEMPT]
        domain = random.choice(preempting if preempting and random.random() < 0.5 else inviting)
    elif h.workers and random.random() < 0.9:
        domain = random.choice(h.workers)
    cls = random.choice(CLASS_FOR[domain.kind]) if random.random() < 0.97 else random.choice(tuple(JobClass))
    cpus = min(random.choice((1, 1, 2, 3, 4, h.cpus // 2, h.cpus)), h.without_services.cpus)
    if random.random() < 0.03:
        cpus = random.choice((0, -3, 99))
    memory = random.choice((0, 0, 100, 700, 2_000, -5 if random.random() < 0.1 else 50))
    if h.limits.give_way is not GiveWay.SWAP:  # most of these histories test who gives way
        memory = random.choice((100, 1_500, 2_000, 3_000))
    if all(d.floor_mib == d.swap_mib == 0 for d in h.domains):
        memory = 0
    name = domain.name if random.random() < 0.99 else "nowhere"
    key = JobKey(random.choice(IDS), random.choice((1, 1, 1, 2, 3)))
    keeps = "lic_a" if random.random() < 0.05 else ""
    return ev.Claimed(when, name, key, cls, cpus, memory, random.random() < 0.8, random.random() < 0.8, keeps)


def _release(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    busy = [d for d in h.domains if d.jobs]
    if random.random() < 0.9:
        if not busy:
            return _claim(random, h, domain, when)
        domain = random.choice(busy)
    return ev.Released(when, domain.name, _some_key(random, domain))


def _launch(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    claimed = [(d.name, j.key) for d in h.domains for j in d.jobs if not j.launched]
    if random.random() < 0.95:
        return ev.JobLaunched(when, *random.choice(claimed)) if claimed else _claim(random, h, domain, when)
    return ev.JobLaunched(when, domain.name, _some_key(random, domain))


def _continue(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    """The end of a stop, mostly of a job that may continue."""
    wanted = stopping.wanted_stopped(h)
    may = [(d.name, j.key) for d in h.domains for j in d.stopped if (d.name, j.key) not in wanted]
    if random.random() < 0.9:
        if not may:
            return _claim(random, h, domain, when)
        name, key = random.choice(may)
        of_domain = tuple(key for other, key in may if other == name)
        return ev.JobsContinued(when, name, random.choice(((key,), of_domain)))
    return ev.JobsContinued(when, domain.name, (_some_key(random, domain),))


def _list(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    jobs = [
        ev.ReportedJob(
            j.key,
            j.cpus,
            j.memory_mib,
            suspended=j.booked or random.random() < 0.05,
            ending=random.random() < 0.05,
            rerunnable=j.rerunnable,
        )
        for j in domain.jobs
        if random.random() < 0.9
    ]
    if random.random() < 0.05:
        key = JobKey(random.choice(IDS), random.randint(1, 3))
        jobs = [*(r for r in jobs if r.key.id != key.id), ev.ReportedJob(key, random.choice((1, 2, 0)), 100)]
    return ev.JobsReported(when, domain.name, tuple(jobs))


def _given(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    """PBS has given some jobs to the domain, now and then with another size than the guest has said."""
    domain = _with_jobs(random, h, domain)
    keys = [j.key for j in domain.jobs if random.random() < 0.8] or [_some_key(random, domain)]
    sizes = [(None, None)] * 5 + [(1, 0), (2, 100), (99, 0)]
    return ev.JobsGiven(when, domain.name, tuple(ev.GivenJob(key, *random.choice(sizes)) for key in keys))


def _denied(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    domain = _with_jobs(random, h, domain)
    return ev.JobsDenied(when, domain.name, tuple(_some_key(random, domain) for _ in range(random.randint(1, 2))))


def _with_jobs(random: Random, h: Host, domain: Domain) -> Domain:
    busy = [d for d in h.domains if d.jobs]
    return random.choice(busy) if busy and random.random() < 0.9 else domain


def _books(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    jobs = [j for d in h.domains for j in d.jobs if j.stopped_by_us or random.random() < 0.1]
    entries = [ev.Booking(j.key, booked=random.random() < 0.8, held=random.random() < 0.15) for j in jobs]
    return ev.BooksReported(when, tuple(entries))


def _unit(kind: Callable[[float, str], ev.DomainEvent]) -> _Maker:
    return lambda random, h, domain, when: kind(when, domain.name)


def _boot(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    down = [d for d in h.domains if d.lifecycle is Lifecycle.DOWN and not d.frozen]
    name = random.choice(down).name if down and random.random() < 0.9 else domain.name
    return ev.DomainBooting(when, name, when + random.choice((30.0, 300.0)))


def _started(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    booting = [d for d in h.domains if d.lifecycle is Lifecycle.BOOTING]
    return ev.DomainStarted(when, random.choice(booting).name if booting else domain.name)


def _defrost(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    frozen = [d for d in h.domains if d.frozen]
    name = random.choice(frozen).name if frozen else domain.name
    return ev.DefrostRequested(when, name, when + random.choice((30.0, 300.0, 300.0, -1.0)))


def _sleep(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    if random.random() < 0.7:
        domain = _with_jobs(random, h, domain)
    within_s = random.choice((None, None, 30.0))
    causes = (SleepCause.ADMIN, SleepCause.SHUTDOWN, SleepCause.EVACUATION)
    return ev.SleepRequested(when, domain.name, "for a test", random.choice(causes), within_s)


def _booked(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    """PBS has suspended what must not run."""
    return ev.BooksReported(when, tuple(ev.Booking(j.key, booked=True) for d in h.domains for j in d.stopped))


def _wake(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    asleep = [d for d in h.domains if d.sleep]
    name = random.choice(asleep).name if asleep else domain.name
    return ev.DefrostRequested(when, name, when + 300.0)


def _sleep_ended(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    given_up = [d for d in h.domains if d.falls_asleep and d.sleep and d.sleep.wakes]
    return ev.SleepEnded(when, random.choice(given_up).name if given_up else domain.name)


def _connected(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    away = [d for d in h.domains if d.agent_lost_at is not None and d.lifecycle is Lifecycle.UP]
    return ev.AgentConnected(when, random.choice(away).name if away else domain.name)


def _cleared(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    broken = [d for d in h.domains if d.fault]
    return ev.FaultCleared(when, random.choice(broken).name if broken else domain.name)


def _undrained(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    draining = [d for d in h.domains if d.draining or d.closing]
    return ev.DrainEnded(when, random.choice(draining).name if draining else domain.name)


def _went_on(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    paused = [d for d in h.domains if d.paused_externally]
    return ev.DomainWentOn(when, random.choice(paused).name if paused else domain.name)


def _shutdown(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    return ev.ShutdownRequested(when, domain.name, random.random() < 0.5, random.choice(tuple(Patience)))


def _saved(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    saving = [d for d in h.domains if d.saving or d.falls_asleep]
    name = random.choice(saving).name if saving else domain.name
    return ev.FreezeEnded(when, name, failed=random.choice(("", "", "disk full")))


def _memory(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    matters = any(d.floor_mib or d.swap_mib for d in h.domains)
    return ev.MemoryReported(when, domain.name, random.choice((0, 50, 300, -1)) if matters else 0)


def _judged(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    return ev.DiskJudged(when, domain.name, random.choice(("", "", "", "a device")))


def _on_host(kind: Callable[[float], ev.HostEvent]) -> _Maker:
    return lambda random, h, domain, when: kind(when)


def _pause(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    return ev.PauseRequested(when, "for a test")


def _reload(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    return a_reload(random, h, when)


def _configured_again(random: Random, h: Host, domain: Domain, when: float) -> ev.Event:
    """A new configuration with all domains and their present sizes."""
    again = replace(configuration(h, when), domains=tuple(configured(d) for d in h.domains))
    return again if sane(again) else _reload(random, h, domain, when)


def _with_reason(kind: type[ev.DrainRequested] | type[ev.Faulted]) -> _Maker:
    return lambda random, h, domain, when: kind(when, domain.name, "for a test")


_HOW_OFTEN: dict[_Maker, float] = {
    _claim: 40,
    _launch: 25,
    _release: 12,
    _continue: 12,
    _list: 8,
    _given: 4,
    _denied: 1,
    _books: 4,
    _on_host(ev.TimerFired): 8,
    _on_host(ev.HubLost): 0.5,
    _on_host(ev.DriverLost): 0.3,
    _reload: 3,
    _pause: 0.5,
    _unit(ev.AgentLost): 0.7,
    _memory: 0.5,
    _judged: 1.5,
    _boot: 0.3,
    _started: 0.3,
    _unit(ev.DomainStopped): 0.7,
    _unit(ev.DomainHalted): 0.3,
    _went_on: 0.2,
    _unit(ev.BootRequested): 0.3,
    _shutdown: 0.7,
    _unit(ev.FreezeRequested): 0.7,
    _saved: 0.2,
    _defrost: 0.3,
    _unit(ev.ImageLost): 0.3,
    _sleep: 1.5,
    _booked: 0.3,
    _wake: 0.5,
    _sleep_ended: 0.3,
    _with_reason(ev.DrainRequested): 0.5,
    _undrained: 0.2,
    _with_reason(ev.Faulted): 0.5,
    _cleared: 0.2,
    _connected: 0.2,
}
_MAKERS, _WEIGHTS = list(_HOW_OFTEN), list(_HOW_OFTEN.values())
