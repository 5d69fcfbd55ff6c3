"""Whatever happens to a host in whatever order, everything that world.py checks is true after each event.

Rules are kinds of events; hypothesis chooses and shrinks them. `make test` runs a few thousand examples; `python -m
bench.core_events` is a longer run of the same invariants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from magrathea.core import events as ev
from magrathea.core import states, stopping
from magrathea.core.model import (
    Domain,
    Host,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Limits,
    Mode,
    Patience,
    SleepCause,
    State,
)
from magrathea_lab.rigs.core_configurations import LIMITS, NAMES, configuration, configured, sane
from magrathea_lab.rigs.core_histories import CLASS_FOR, a_host, an_event
from magrathea_lab.rigs.core_world import World

START = 1_000.0
KINDS = st.sampled_from((Kind.NORMAL, Kind.PRIORITY, Kind.SERVICE))
INDEX = st.integers(0, 5)
STEP_S = st.sampled_from((0.0, 0.5, 3.0, 5.0, 16.0, 31.0, 61.0, 300.0))
JOB_ID = st.sampled_from(("1", "2", "3", "4"))
RUN = st.sampled_from((1, 1, 1, 2, 3))
CPUS = st.sampled_from((1, 2, 3, 4, 8, 0, -1, 99))
GIVEN = st.sampled_from((True, True, False))
"""Whether PBS has been asked about a claimed job."""
MIB = st.sampled_from((0, 0, 100, 700, 2_000, 3_000, -5))


@st.composite
def domains(draw: st.DrawFn, name: str, host_cpus: int) -> Domain:
    kind = draw(KINDS)
    if kind is Kind.SERVICE:
        cpus = draw(st.integers(0, 1)) if host_cpus > 6 else 0
        return Domain(name, kind, cpus, lifecycle=Lifecycle.UP, agent_lost_at=None)
    domain = Domain(
        name,
        kind,
        draw(st.sampled_from((host_cpus, max(1, host_cpus // 2)))),
        floor_mib=draw(st.sampled_from((0, 0, 100, 500))),
        swap_mib=draw(st.sampled_from((0, 4_000))),
        disk_obstacle=draw(st.sampled_from(("", "a device"))),
    )
    frozen = kind is Kind.PRIORITY and draw(st.sampled_from((False, False, True)))
    if frozen:
        return replace(domain, frozen=True, agent_lost_at=START)
    return replace(domain, lifecycle=Lifecycle.UP, agent_lost_at=None)


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    cpus, mode = draw(st.sampled_from((2, 4, 8))), draw(st.sampled_from(tuple(Mode)))
    built = tuple(draw(domains(name, cpus)) for name in NAMES[: draw(st.integers(1, 6))])
    limits: Limits = draw(st.sampled_from(LIMITS))
    return Host("h1", mode, cpus, 4_000, built, limits, now=START)


class AnyEvents(RuleBasedStateMachine):
    """Events of every kind, mostly about things that exist."""

    world: World

    @initialize(host=hosts())
    def begin(self, host: Host) -> None:
        self.world = World(host, thorough=False)

    def domain(self, index: int) -> Domain:
        return self.world.host.domains[index % len(self.world.host.domains)]

    def jobs(self, *, launched: bool | None = None) -> list[tuple[str, JobKey]]:
        all_jobs = ((d, j) for d in self.world.host.domains for j in d.jobs)
        return [(d.name, j.key) for d, j in all_jobs if launched is None or j.launched is launched]

    @property
    def now(self) -> float:
        return self.world.host.now

    # Jobs

    @rule(step=STEP_S, index=INDEX, id=JOB_ID, run=RUN, cpus=CPUS, mib=MIB, protected=st.booleans(), given=GIVEN)
    def claim(
        self, step: float, index: int, id: str, run: int, cpus: int, mib: int, protected: bool, given: bool
    ) -> None:
        domain = self.domain(index)
        classes = CLASS_FOR[domain.kind]
        cls = classes[-1] if protected else classes[0]
        self.world.do(ev.Claimed(self.now + step, domain.name, JobKey(id, run), cls, cpus, mib, given=given))

    @rule(index=INDEX, id=JOB_ID, cpus=st.integers(1, 4), given=GIVEN)
    def claim_where_it_is_invited(self, index: int, id: str, cpus: int, given: bool) -> None:
        h = self.world.host
        inviting = [(d, c) for d in h.domains for c in states.accepts(h, d)]
        inviting = [(d, c) for d, c in inviting if states.state_of(h, d) is State.WOULD_PREEMPT] or inviting
        if inviting:
            domain, cls = inviting[index % len(inviting)]
            self.world.do(ev.Claimed(self.now, domain.name, JobKey(id, 1), cls, cpus, given=given))

    @rule(index=INDEX, cls=st.sampled_from(tuple(JobClass)), name=st.sampled_from(("nowhere", *NAMES)))
    def absurd_claim(self, index: int, cls: JobClass, name: str) -> None:
        self.world.do(ev.Claimed(self.now, name, JobKey("odd", 1), cls, 1))

    @precondition(lambda self: self.jobs(launched=False))
    @rule(index=INDEX, old=st.booleans())
    def launch(self, index: int, old: bool) -> None:
        name, key = self.jobs(launched=False)[index % len(self.jobs(launched=False))]
        self.world.do(ev.JobLaunched(self.now, name, key))
        if old:
            self.world.do(ev.TimerFired(self.now + 10))

    @precondition(lambda self: self.jobs())
    @rule(step=STEP_S, index=INDEX)
    def release(self, step: float, index: int) -> None:
        name, key = self.jobs()[index % len(self.jobs())]
        self.world.do(ev.Released(self.now + step, name, key))

    @rule(index=INDEX, id=JOB_ID, run=RUN)
    def absurd_release_and_launch(self, index: int, id: str, run: int) -> None:
        self.world.do(ev.Released(self.now, self.domain(index).name, JobKey(id, run)))
        self.world.do(ev.JobLaunched(self.now, self.domain(index).name, JobKey(id, run)))

    @precondition(lambda self: any(d.stopped for d in self.world.host.domains))
    @rule(step=STEP_S)
    def continue_what_may_go_on(self, step: float) -> None:
        h = self.world.host
        wanted = stopping.wanted_stopped(h)
        for name, key in [(d.name, j.key) for d in h.domains for j in d.stopped if (d.name, j.key) not in wanted]:
            self.world.do(ev.JobsContinued(self.now + step, name, (key,)))

    @precondition(lambda self: self.jobs())
    @rule(index=INDEX)
    def continue_what_must_not(self, index: int) -> None:
        name, key = self.jobs()[index % len(self.jobs())]
        if not self.world.host.paused and (name, key) in stopping.wanted_stopped(self.world.host):
            before = self.world.host
            self.world.do(ev.JobsContinued(self.now, name, (key,)))
            assert self.world.host == before

    @rule(step=STEP_S, index=INDEX, lacks=INDEX, odd=st.sampled_from(("", "", "ending", "suspended", "stranger")))
    def list_jobs(self, step: float, index: int, lacks: int, odd: str) -> None:
        domain = self.domain(index)
        listed = [
            ev.ReportedJob(
                j.key, j.cpus, j.memory_mib, suspended=j.booked or odd == "suspended", ending=odd == "ending"
            )
            for i, j in enumerate(domain.jobs)
            if i != lacks
        ]
        if odd == "stranger":
            listed.append(ev.ReportedJob(JobKey("stranger", 1), 2, 50))
        self.world.do(ev.JobsReported(self.now + step, domain.name, tuple(listed)))

    @rule(index=INDEX, size=st.sampled_from(((None, None), (None, None), (1, 0), (3, 100), (99, 9_999))))
    def pbs_has_given(self, index: int, size: tuple[int | None, int | None]) -> None:
        domain = self.domain(index)
        self.world.do(ev.JobsGiven(self.now, domain.name, tuple(ev.GivenJob(j.key, *size) for j in domain.jobs)))

    @rule(index=INDEX, every=st.booleans(), id=JOB_ID)
    def pbs_denies(self, index: int, every: bool, id: str) -> None:
        domain = self.domain(index)
        keys = [j.key for j in domain.jobs if every or j.key.id == id] or [JobKey(id, 1)]
        self.world.do(ev.JobsDenied(self.now, domain.name, tuple(keys)))

    @rule(booked=st.booleans(), held=st.sampled_from((False, False, True)), index=INDEX)
    def books(self, booked: bool, held: bool, index: int) -> None:
        jobs = self.jobs()
        entries = [ev.Booking(key, booked, held and i == index) for i, (_, key) in enumerate(jobs)]
        self.world.do(ev.BooksReported(self.now, tuple(entries)))

    # Domains and host

    @rule(step=STEP_S)
    def time_goes_on(self, step: float) -> None:
        self.world.do(ev.TimerFired(self.now + step))

    @rule(step=STEP_S, index=INDEX, up=st.booleans(), after=STEP_S)
    def go_down_and_boot(self, step: float, index: int, up: bool, after: float) -> None:
        name = self.domain(index).name
        self.world.do(ev.DomainStopped(self.now + step, name))
        self.world.do(ev.DomainBooting(self.now, name, self.now + 300))
        self.world.do(ev.TimerFired(self.now + after))
        if up:
            self.world.do(ev.DomainStarted(self.now, name))
            self.world.do(ev.AgentConnected(self.now, name))

    @rule(
        index=INDEX,
        what=st.sampled_from(
            (
                ev.DomainStarted,
                ev.DomainStopped,
                ev.DomainHalted,
                ev.DomainWentOn,
                ev.BootRequested,
                ev.ImageLost,
                ev.FreezeRequested,
                ev.FreezeEnded,
                ev.SleepEnded,
                ev.DrainEnded,
                ev.FaultCleared,
                ev.AgentConnected,
            )
        ),
    )
    def out_of_the_blue(self, index: int, what: Callable[[float, str], ev.DomainEvent]) -> None:
        self.world.do(what(self.now, self.domain(index).name))

    @rule(step=STEP_S, index=INDEX, back_after=st.sampled_from((0.0, 10.0, 40.0)))
    def lose_the_agent(self, step: float, index: int, back_after: float) -> None:
        name = self.domain(index).name
        self.world.do(ev.AgentLost(self.now + step, name))
        self.world.do(ev.AgentConnected(self.now + back_after, name))

    @rule(
        index=INDEX, after=STEP_S, reboot=st.booleans(), patience=st.sampled_from(tuple(Patience)), falls=st.booleans()
    )
    def shut_down(self, index: int, after: float, reboot: bool, patience: Patience, falls: bool) -> None:
        name = self.domain(index).name
        self.world.do(ev.ShutdownRequested(self.now, name, reboot, patience))
        self.world.do(ev.TimerFired(self.now + after))
        if falls:
            self.world.do(ev.DomainStopped(self.now, name))

    @rule(index=INDEX, after=STEP_S)
    def halt(self, index: int, after: float) -> None:
        name = self.domain(index).name
        self.world.do(ev.DomainHalted(self.now, name))
        self.world.do(ev.DomainWentOn(self.now + after, name))

    @rule(index=INDEX, after=STEP_S, failed=st.sampled_from(("", "disk full")))
    def freeze(self, index: int, after: float, failed: str) -> None:
        name = self.domain(index).name
        self.world.do(ev.FreezeRequested(self.now, name))
        self.world.do(ev.FreezeEnded(self.now + after, name, failed))

    @rule(index=INDEX, after=STEP_S, booked=st.booleans(), ends=st.sampled_from(("saved", "saved", "full", "waits")))
    def put_to_sleep(self, index: int, after: float, booked: bool, ends: str) -> None:
        busy = [d for d in self.world.host.domains if d.jobs]
        name = busy[index % len(busy)].name if busy else self.domain(index).name
        self.world.do(ev.SleepRequested(self.now, name, "for a test", SleepCause.ADMIN))
        if booked:
            stopped = (j for d in self.world.host.domains for j in d.stopped)
            self.world.do(ev.BooksReported(self.now, tuple(ev.Booking(j.key, True, j.held_elsewhere) for j in stopped)))
        if ends != "waits":
            self.world.do(ev.FreezeEnded(self.now + after, name, "disk full" if ends == "full" else ""))

    @precondition(lambda self: any(d.sleep for d in self.world.host.domains))
    @rule(index=INDEX, after=STEP_S, ends=st.sampled_from(("up", "up", "up", "failed", "lost", "waits")))
    def wake(self, index: int, after: float, ends: str) -> None:
        asleep = [d.name for d in self.world.host.domains if d.sleep]
        name = asleep[index % len(asleep)]
        self.world.do(ev.DefrostRequested(self.now, name, self.now + 60))
        end = {"up": ev.DomainStarted, "failed": ev.DomainStopped, "lost": ev.ImageLost}.get(ends)
        if end is not None:
            self.world.do(end(self.now + after, name))

    @rule(index=INDEX, after=STEP_S, works=st.booleans())
    def defrost(self, index: int, after: float, works: bool) -> None:
        frozen = [d for d in self.world.host.domains if d.frozen]
        name = frozen[index % len(frozen)].name if frozen else self.domain(index).name
        self.world.do(ev.DefrostRequested(self.now, name, self.now + 60))
        if works:
            self.world.do(ev.DomainStarted(self.now + after, name))
            self.world.do(ev.AgentConnected(self.now, name))

    @rule(index=INDEX, after=STEP_S, what=st.sampled_from(("drain", "fault")))
    def take_out_and_put_back(self, index: int, after: float, what: str) -> None:
        name = self.domain(index).name
        begin = ev.DrainRequested if what == "drain" else ev.Faulted
        end = ev.DrainEnded if what == "drain" else ev.FaultCleared
        self.world.do(begin(self.now, name, "for a test"))
        self.world.do(end(self.now + after, name))

    @rule(after=STEP_S)
    def lose_the_hub(self, after: float) -> None:
        self.world.do(ev.HubLost(self.now))
        self.world.do(ev.TimerFired(self.now + after))
        self.world.do(ev.HubFound(self.now))

    @rule(after=STEP_S)
    def lose_the_hypervisor(self, after: float) -> None:
        self.world.do(ev.DriverLost(self.now))
        self.world.do(ev.TimerFired(self.now + after))
        self.world.do(ev.DriverFound(self.now))

    @rule(step=STEP_S)
    def pause(self, step: float) -> None:
        self.world.do(ev.PauseRequested(self.now + step, "for a test"))

    @precondition(lambda self: self.world.host.paused)
    @rule(step=STEP_S, index=INDEX, let_go=st.booleans())
    def unpause(self, step: float, index: int, let_go: bool) -> None:
        """End the pause. `let_go`: an agent had continued a job before it knew of the pause."""
        stopped = [(d.name, j.key) for d in self.world.host.domains for j in d.stopped]
        if stopped and let_go:
            name, key = stopped[index % len(stopped)]
            self.world.do(ev.JobsContinued(self.now, name, (key,)))
        self.world.do(ev.PauseEnded(self.now + step))

    @rule(index=INDEX, mib=st.sampled_from((0, 50, 300, -1)))
    def memory(self, index: int, mib: int) -> None:
        self.world.do(ev.MemoryReported(self.now, self.domain(index).name, mib))

    @rule(index=INDEX, obstacle=st.sampled_from(("", "", "a device")))
    def the_hypervisor_judges(self, index: int, obstacle: str) -> None:
        self.world.do(ev.DiskJudged(self.now, self.domain(index).name, obstacle))

    # Reading the configuration again

    def reload(self, **changes: Any) -> None:
        """Reload with these changes, if the daemon would accept them."""
        event = replace(configuration(self.world.host, self.now), **changes)
        if sane(event):
            self.world.do(event)

    @property
    def configured(self) -> tuple[ev.ConfiguredDomain, ...]:
        return configuration(self.world.host, self.now).domains

    @rule(index=INDEX)
    def take_a_domain_out_of_the_configuration(self, index: int) -> None:
        gone = self.domain(index).name
        self.reload(domains=tuple(d for d in self.configured if d.name != gone))

    @rule(name=st.sampled_from(NAMES), kind=KINDS)
    def put_a_domain_into_the_configuration(self, name: str, kind: Kind) -> None:
        known = self.world.host.domain(name)
        new = configured(known) if known else ev.ConfiguredDomain(name, kind, 1)
        self.reload(domains=(*(d for d in self.configured if d.name != name), new))

    @rule(index=INDEX, kind=KINDS)
    def configure_another_kind(self, index: int, kind: Kind) -> None:
        name = self.domain(index).name
        self.reload(domains=tuple(replace(d, kind=kind) if d.name == name else d for d in self.configured))

    @rule(index=INDEX, cpus=st.sampled_from((1, 2, 4, 8)), floor=st.sampled_from((0, 500)), swap=MIB)
    def configure_another_size(self, index: int, cpus: int, floor: int, swap: int) -> None:
        name, sizes = self.domain(index).name, {"cpus": cpus, "floor_mib": floor, "swap_mib": max(0, swap)}
        changed = (replace(d, **sizes) if d.name == name else d for d in self.configured)  # type: ignore[arg-type]
        self.reload(domains=tuple(changed))

    @rule(mode=st.sampled_from(tuple(Mode)), cpus=st.sampled_from((2, 4, 8)), mib=st.sampled_from((1_000, 4_000)))
    def configure_another_host(self, mode: Mode, cpus: int, mib: int) -> None:
        self.reload(mode=mode, cpus=cpus, memory_mib=mib)

    @rule(limits=st.sampled_from(LIMITS))
    def configure_other_limits(self, limits: Limits) -> None:
        self.reload(limits=limits)

    # What must make no difference

    @rule(agents_back=st.booleans())
    def restart_the_daemon(self, agents_back: bool) -> None:
        self.world.restart(agents_back=agents_back)

    @rule(seed=st.integers(0, 2**16))
    def swap_two_events(self, seed: int) -> None:
        random, h = Random(seed), self.world.host
        for _ in range(3):
            self.world.swap(an_event(random, h, h.now), an_event(random, h, h.now))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.calm_down()


AnyEvents.TestCase.settings = settings(
    max_examples=5 * settings().max_examples,  # an example is quick, and there are many kinds of events
    stateful_step_count=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyEvents = pytest.mark.timeout(3600)(AnyEvents.TestCase)  # `thorough` takes a quarter of an hour


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_long_histories_of_random_events(seed: int) -> None:
    """Longer histories than hypothesis tries; after each event every claim is tried."""
    random = Random(seed)
    for _ in range(max(1, settings().max_examples // 25)):
        world = World(a_host(random))
        for _ in range(40):
            world.do(an_event(random, world.host))
        world.calm_down()


def test_moms_list_may_add_more_than_fits_beside_jobs_on_their_way_back() -> None:
    """A claim expires, but its job runs nevertheless: more memory is used than there is, by nobody's decision."""
    normal = Domain("d1", Kind.NORMAL, 16, floor_mib=500, swap_mib=4_000, lifecycle=Lifecycle.UP, agent_lost_at=None)
    priority = Domain("d2", Kind.PRIORITY, 16, lifecycle=Lifecycle.UP, agent_lost_at=None)
    world = World(Host("h1", Mode.EXCLUSIVE, 16, 4_000, (normal, priority), now=START))
    world.do(ev.Claimed(START, "d1", JobKey("1", 1), JobClass.PREEMPTIBLE, 4, 3_400))
    world.do(ev.JobLaunched(START, "d1", JobKey("1", 1)))
    world.do(ev.Claimed(START + 10, "d2", JobKey("2", 1), JobClass.PRIORITY, 8, 500))
    assert stopping.wanted_stopped(world.host)
    world.do(ev.JobsReported(START + 300, "d2", (ev.ReportedJob(JobKey("2", 1), 8, 700),)))
    adopted = world.host.domains[1].job(JobKey("2", 1))
    assert adopted is not None and adopted.cls is JobClass.PROTECTED
    assert not stopping.wanted_stopped(world.host), "for a protected job nobody is stopped"
    assert world.host.domains[0].stopped, "until its agent says that it runs"
