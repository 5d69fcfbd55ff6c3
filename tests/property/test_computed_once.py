"""The answers that the core computes once for a host agree with the rules for each domain and job (plain_rules.py)."""

from __future__ import annotations

import pickle
from dataclasses import replace
from random import Random

import hypothesis.strategies as st
from hypothesis import given

from magrathea.core import allocation, shares, states, stopping
from magrathea.core.machine import handle
from magrathea.core.model import (
    CLASSES_OF,
    Amount,
    Domain,
    GiveWay,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Limits,
    Mode,
    Pause,
    Sleep,
    SleepCause,
    StoppedBy,
)
from magrathea.core.plan import ActualDomain, Order, Orders, SetCpu, SetMemory, desired, ready, steps
from magrathea.core.refusals import Refusal
from magrathea_lab.rigs.core_histories import a_host, an_event

from . import plain_rules as plain

NOW = 1_000.0
SIZES = st.tuples(st.integers(0, 5), st.sampled_from((0, 0, 100, 700)), st.sampled_from((0.0, 60.0)))
"""For each domain: CPUs and memory of its job, and how long it was preempted so far."""
SINCE = st.sampled_from((900.0, 950.0, 990.0, 997.0, NOW))
MIB = st.sampled_from((0, 0, 100, 700))
ODD = ("frozen", "restoring", "lingering", "lingering", "away", "halted", "booting", "draining", "fault")
SLEEPING = ("falls", "falls", "given up", "asleep", "asleep", "in line", "in line", "in line", "wakes", "woken")
SMALL_MIB = st.sampled_from((0, 100, 200))
HELD = st.sampled_from((False, False, True))
SWAP_MIB = st.sampled_from((0, 100, 600))
LIMITS = st.sampled_from(
    (
        Limits(),
        Limits(linger_s=30.0),
        Limits(max_preempted_s=60.0, max_preemptions=2, overtaken_s=50.0),
        Limits(give_way=GiveWay.DISK),
        Limits(give_way=GiveWay.SWAP_THEN_DISK),
    )
)
OBSTACLE = st.sampled_from(("", "", "a device"))
CAUSE = st.sampled_from((SleepCause.ADMIN, SleepCause.GIVE_WAY))


@st.composite
def jobs(draw: st.DrawFn, id: str, kind: Kind, preempted: bool, flag: st.SearchStrategy[bool]) -> Job:
    """A job with any consistent facts; in a preempted domain most jobs are stopped. `flag`: mostly true."""
    usual = JobClass.PRIORITY if kind is Kind.PRIORITY else JobClass.PREEMPTIBLE
    cls = draw(st.sampled_from((usual, usual, usual, JobClass.PROTECTED)))
    job = Job(JobKey(id, 1), cls, draw(st.integers(0, 4)), draw(MIB), draw(SINCE), draw(SINCE))
    stopper = None
    if cls is JobClass.PREEMPTIBLE and preempted:
        stopper = draw(st.sampled_from((StoppedBy.US, StoppedBy.US, StoppedBy.US, StoppedBy.PBS, None)))
    return replace(
        job,
        confirmed=draw(flag),
        launched=draw(flag),
        ending=not draw(flag),
        stopper=stopper,
        stopped_since=draw(SINCE) if stopper else None,
        booked=draw(st.booleans()),
        held_elsewhere=cls is JobClass.PREEMPTIBLE and not draw(flag),
        preemptions=draw(st.integers(0, 2)),
        rerunnable=draw(flag),
    )


@st.composite
def domains(draw: st.DrawFn, number: int, flag: st.SearchStrategy[bool], preempted: float) -> Domain:
    kind = draw(st.sampled_from((Kind.NORMAL, Kind.NORMAL, Kind.NORMAL, Kind.PRIORITY, Kind.PRIORITY, Kind.SERVICE)))
    domain = Domain(f"d{number:02d}", kind, draw(st.integers(1, 8)), lifecycle=Lifecycle.UP, agent_lost_at=None)
    if kind is Kind.SERVICE:
        return domain
    odd = "" if draw(flag) or draw(flag) else draw(st.sampled_from(ODD))
    domain = replace(
        domain,
        memory_mib=draw(st.sampled_from((0, 0, 1_000))),
        floor_mib=draw(MIB),
        swap_mib=draw(st.sampled_from((0, 100, 4_000))),
        unreclaimable_mib=draw(MIB),
        disk_obstacle=draw(OBSTACLE),
        stays_awake=draw(OBSTACLE),
        ignores_swap=draw(HELD),
        preempted_s=draw(st.sampled_from((0.0, 60.0, 120.0))),
        young_since=draw(st.sampled_from((None, None, 900.0, 999.0))),
        overtaken_since=draw(st.sampled_from((None, 900.0, 999.0))),
        draining="for a test" if odd == "draining" else "",
        fault="broken" if odd == "fault" else "",
        agent_lost_at=NOW if odd == "away" else None,
        paused_externally=odd == "halted",
    )
    if odd in ("frozen", "restoring", "booting"):
        lifecycle = Lifecycle.DOWN if odd == "frozen" else Lifecycle.BOOTING
        return replace(domain, frozen=odd != "booting", lifecycle=lifecycle)
    if odd == "lingering":
        return replace(domain, linger_until=NOW + 10, linger_size=Amount(draw(st.integers(1, 4)), draw(MIB)))
    if not draw(st.integers(0, 4)):
        count, sleeping = draw(st.integers(0, 3)), draw(st.sampled_from(SLEEPING))
        its_jobs = tuple(draw(jobs(f"{number}{i}", kind, True, flag)) for i in range(count))
        return _sleeping(domain, sleeping, draw(CAUSE), its_jobs)
    is_preempted = kind is Kind.NORMAL and number % 2 < 2 * preempted
    count = draw(st.integers(0, 4)) if kind is Kind.NORMAL or preempted < 1 else 0
    return replace(domain, jobs=tuple(draw(jobs(f"{number}{i}", kind, is_preempted, flag)) for i in range(count)))


def _sleeping(domain: Domain, how: str, cause: SleepCause, its_jobs: tuple[Job, ...]) -> Domain:
    """A domain in a stage of its sleep. Except in one that falls asleep, all jobs are stopped."""
    if how != "falls":
        stopped = (j if j.stopper else replace(j, stopper=StoppedBy.US, stopped_since=900.0) for j in its_jobs)
        its_jobs = tuple(replace(j, confirmed=True) for j in stopped)
    domain = replace(domain, jobs=its_jobs)
    if how == "woken":
        return replace(domain, woken_at=NOW - 10 if domain.stopped else None)
    lifecycle = {"asleep": Lifecycle.DOWN, "in line": Lifecycle.DOWN, "wakes": Lifecycle.BOOTING}.get(how, Lifecycle.UP)
    sleep = Sleep(950.0, "for a test", cause, wakes=how in ("given up", "in line", "wakes"))
    return replace(domain, sleep=sleep, lifecycle=lifecycle)


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """Hosts on which no, every second, or every normal domain is preempted. Some are in good order, some are odd."""
    flag = draw(st.sampled_from((st.just(True), st.sampled_from((True, True, True, False)))))
    preempted = draw(st.sampled_from((0.0, 0.5, 0.5, 1.0)))
    built = tuple(draw(domains(number, flag, preempted)) for number in range(draw(st.integers(1, 7))))
    return Host(
        "h1",
        draw(st.sampled_from(tuple(Mode))),
        draw(st.sampled_from((2, 8, 16, 32))),
        draw(st.sampled_from((1_000, 2_000, 4_000, 16_000))),
        built,
        draw(LIMITS),
        hub_lost=not (draw(flag) or draw(flag)),
        paused=None if draw(flag) or draw(flag) else Pause(NOW, "for a test"),
        now=NOW,
    )


@st.composite
def actuals(draw: st.DrawFn, h: Host) -> dict[str, ActualDomain]:
    """Readings that hypervisor and agents may report, for most of the domains."""
    read = {}
    for d in h.workers:
        if draw(st.sampled_from((True, True, True, False))):
            orders = {j.key: draw(st.sampled_from(tuple(Order))) for j in d.jobs if draw(st.booleans())}
            has = desired(h).get(d.name)
            memory_mib = has.memory_mib if has and draw(st.booleans()) else draw(st.sampled_from((None, 100, 1_000)))
            read[d.name] = ActualDomain(draw(st.sampled_from((None, 10, 100))), memory_mib, orders)
    return read


@given(hosts())
def test_the_jobs_that_are_stopped_and_resumed(h: Host) -> None:
    assert stopping.wanted_stopped(h) == plain.wanted_stopped(h)
    assert stopping.wanted_here(h) == plain.wanted_here(h)
    assert stopping.in_line(h) == tuple(plain.in_line(h))
    assert stopping.resuming(h) == set(plain.resuming(h))


@st.composite
def lines(draw: st.DrawFn) -> Host:
    """Preempted domains that wait for memory beside a running job; other hosts hold some of their jobs."""
    beside = Domain("p1", Kind.PRIORITY, 8, lifecycle=Lifecycle.UP, agent_lost_at=None)
    built = [beside.having(Job(JobKey("9", 1), JobClass.PRIORITY, 1, 100, 0.0, 0.0, True, True))]
    for number in range(draw(st.integers(1, 4))):
        name = f"n{number}"
        domain = Domain(name, Kind.NORMAL, 8, swap_mib=draw(SWAP_MIB), lifecycle=Lifecycle.UP, agent_lost_at=None)
        for i, (mib, held) in enumerate(draw(st.lists(st.tuples(SMALL_MIB, HELD), min_size=1, max_size=3))):
            job = Job(JobKey(f"{name}.{i}", 1), JobClass.PREEMPTIBLE, 1, mib, 0.0, 0.0, True, True)
            stopped = replace(job, stopper=StoppedBy.US, stopped_since=900.0 + number, held_elsewhere=held)
            domain = domain.having(stopped)
        built.append(domain)
    used_mib = sum(plain.use(d).mib for d in built)
    return Host("h1", Mode.COUNTED, 32, used_mib + draw(st.integers(0, 4)) * 100, tuple(built), now=NOW)


@given(lines())
def test_a_line_that_waits_for_memory(h: Host) -> None:
    assert stopping.resuming(h) == set(plain.resuming(h))
    assert stopping.wanted_here(h) == plain.wanted_here(h)


@given(hosts(), st.sampled_from((0, 1, 3, 8, 99)), st.sampled_from((0, 100, 2_000, -1)))
def test_every_claim_is_answered_by_the_rules(h: Host, cpus: int, mib: int) -> None:
    for d in h.workers:
        assert shares.stoppable(h, d) == plain.stoppable(h, d)
        assert shares.free(h, d) == plain.free(h, d)
        for cls in CLASSES_OF[d.kind]:
            assert shares.share(h, d, cls) == plain.share(h, d, cls)
            keeps_out = allocation.blocked(h, d, cls)
            assert (keeps_out.code if keeps_out else None) == plain.blocked(h, d, cls)
        for cls in JobClass:
            answer = allocation.verdict(h, d, cls, Amount(cpus, mib))
            expected = plain.verdict(h, d, cls, Amount(cpus, mib))
            assert (answer.code if isinstance(answer, Refusal) else answer) == expected, f"{d.name}, {cls}: {answer}"


@given(hosts())
def test_the_published_values_of_each_domain(h: Host) -> None:
    for d in h.workers:
        assert states.state_of(h, d) == plain.state(h, d)
        assert states.accepts(h, d) == plain.accepts(h, d)
        assert states.published(h, d) == plain.published(h, d)
        assert states.rank(h, d) == plain.rank(h, d)
        assert states.why(h, d)


@given(st.data())
def test_the_plan(data: st.DataObject) -> None:
    h = data.draw(hosts())
    actual = data.draw(actuals(h))
    for d in h.workers:
        want = desired(h).get(d.name)
        assert (want is None) == (d.lifecycle is not Lifecycle.UP)
        assert want is None or want.memory_mib == plain.memory_mib(h, d)
    due = steps(h, actual)
    for order in Order:
        given_orders = {s.domain: s.keys for s in due if isinstance(s, Orders) and s.order is order}
        assert given_orders == ({} if h.paused and order is not Order.STOP else plain.orders(h, actual, order))
    for d in h.domains:
        pending = any(isinstance(s, SetCpu | SetMemory) and s.domain == d.name for s in due)
        for j in d.jobs:
            let_go = d.name in actual and actual[d.name].orders.get(j.key) is Order.LIFT
            is_ready = let_go and not pending and (d.name, j.key) not in plain.wanted_stopped(h)
            assert ((d.name, j.key) in ready(h, actual)) == is_ready


@given(
    st.sampled_from((0, 0, 13)).flatmap(lambda least: st.lists(SIZES, min_size=least, max_size=least + 6)),
    st.sampled_from((0, 600)),
    st.integers(1, 40),
    st.sampled_from((0, 0, 100, 2_000)),
)
def test_victims_of_many_or_few_domains(sizes: list[tuple[int, int, float]], swap: int, cpus: int, mib: int) -> None:
    h = Host("h1", Mode.COUNTED, 100, 10_000, now=NOW)
    for number, (size, memory, preempted_s) in enumerate(sizes):
        name = f"d{number:02d}"
        job = Job(JobKey(name, 1), JobClass.PREEMPTIBLE, size, memory, 0.0, 0.0, True, True)
        domain = Domain(name, Kind.NORMAL, 8, swap_mib=swap, lifecycle=Lifecycle.UP, agent_lost_at=None)
        h = replace(h, domains=(*h.domains, replace(domain, jobs=(job,), preempted_s=preempted_s)))
    gives = plain.total(plain.use(d) - plain.use_when_stopped(h, d) for d in h.domains)
    need = Amount(cpus, mib).least(gives)
    assert allocation.victims(h, need) == plain.victims(h, need)


@given(st.integers(0, 2**32), st.integers(1, 25))
def test_answers_do_not_depend_on_earlier_computations(seed: int, events: int) -> None:
    """A host with all answers computed and the same facts fresh from the journal behave alike."""
    random = Random(seed)
    host = a_host(random)
    for _ in range(events):
        for d in host.domains:
            states.rank(host, d), states.published(host, d), states.why(host, d), d.use, d.use_when_stopped
        stopping.wanted_here(host), steps(host, {})
        unseen = Host(**{name: getattr(host, name) for name in Host.__dataclass_fields__})
        unseen = replace(unseen, domains=tuple(replace(d) for d in host.domains))
        event = an_event(random, host)
        after, said = handle(host, event)
        assert (after, said) == handle(unseen, event)
        assert pickle.loads(pickle.dumps(after)) == after
        host = after
