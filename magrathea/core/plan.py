"""The steps from what is to what should be. They are ordered and idempotent, and computed anew after each step.

Order: stop jobs before their memory goes, take CPUs and memory before giving them, give memory back before
continuing jobs. If a domain's agent is away or the driver does not know the domain, it gets no step that needs them.

What is wanted follows from the facts alone and is computed once for them (`model.once`). The steps also depend on the
actual state. Each function here goes through the domains and jobs once and answers for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .caps import NO_CAP, NOT_ASKED, Cap, Giving, due_now, gives, is_preempted_cap, preempted_cap, share_cap
from .model import Domain, Host, Job, JobKey, Lifecycle, Mode, StopWarning, once
from .stopping import to_stop, wanted_stopped


class Order(StrEnum):
    """An order about a job. LIFT: the agent no longer stops it, but leaves it to PBS to continue it."""

    STOP = "stop"
    LIFT = "lift"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class ActualDomain:
    """A domain as driver and agent see it.

    `cpu_percent`: None if it is not capped. `memory_mib`: None if it is unknown or cannot be moved. `orders`: what its
    agent has confirmed. `can_cap`: its CPU can be capped here. `giving`: its progress with memory that it must give.
    """

    cpu_percent: int | None = None
    memory_mib: int | None = None
    orders: Mapping[JobKey, Order] = field(default_factory=dict)
    can_cap: bool = True
    giving: Giving = NOT_ASKED


@dataclass(frozen=True, slots=True)
class Want:
    """What a domain should have.

    `grows_to_mib`: the most that it is given. `keeps_mib`: up to this much it keeps if it has it; of more, it keeps
    `shrinks_to_mib`. All three are `memory_mib`, except where stopped jobs hold memory, or say so: no domain is given
    memory for that, and none with running jobs loses any.
    `idle`: it has no jobs and keeps what it has (docs/rules.md, "Lazy"), except the cap of a preempted domain.
    `shrink`: it has no jobs but still gives memory back: it is about to be saved to disk, and must find room when it
    comes back; or another domain comes back from its sleep.
    """

    cap: Cap = NO_CAP
    memory_mib: int | None = None
    idle: bool = False
    shrink: bool = False
    grows_to_mib: int | None = None
    keeps_mib: int | None = None
    shrinks_to_mib: int | None = None

    def target_mib(self, has_mib: int) -> int | None:
        """The memory that a domain that has so much should get; None if it keeps what it has."""
        mib = self.memory_mib
        if mib is None:
            return None
        if has_mib < (grows_to := mib if self.grows_to_mib is None else self.grows_to_mib):
            return None if self.idle else grows_to
        if has_mib > (mib if self.keeps_mib is None else self.keeps_mib):
            return mib if self.shrinks_to_mib is None else self.shrinks_to_mib
        return None


@dataclass(frozen=True, slots=True)
class Orders:
    """Give this order about these jobs to the domain's agent."""

    domain: str
    order: Order
    keys: tuple[JobKey, ...]


@dataclass(frozen=True, slots=True)
class SetCpu:
    domain: str
    cap: Cap


@dataclass(frozen=True, slots=True)
class SetMemory:
    domain: str
    mib: int


Step = Orders | SetCpu | SetMemory


def desired(host: Host) -> Mapping[str, Want]:
    """What each working domain that is up should have."""
    return once(host, _desired)


def _desired(host: Host) -> dict[str, Want]:
    wanted = wanted_stopped(host)
    up = [d for d in host.workers if d.lifecycle is Lifecycle.UP]
    active = {d.name: tuple(j for j in d.jobs if (d.name, j.key) not in wanted or d.rests_for_move) for d in up}
    held = {d.name: d.floor_mib + _held_mib(host, d, active[d.name]) for d in up}
    held_by_all, floors = sum(held.values()), sum(d.floor_mib for d in up)
    alone = [name for name, jobs in active.items() if jobs] if host.mode is Mode.EXCLUSIVE else []
    away = sum(d.floor_mib for d in host.workers if d.name not in held)
    leaving = sum(held[d.name] - d.floor_mib for d in up if d.gives_way)
    somebody_comes = bool(host.coming) or any(d.waking for d in host.workers)
    wants = {}
    for d in up:
        if not active[d.name]:
            cap = preempted_cap(host.limits) if d.jobs else NO_CAP
            shrink = (d.saving or d.falls_asleep or somebody_comes) and not d.jobs
            wants[d.name] = Want(cap, held[d.name], idle=not d.jobs, shrink=shrink, grows_to_mib=d.floor_mib)
        elif host.mode is Mode.COUNTED:
            wants[d.name] = Want(share_cap(_share_cpus(host, active[d.name])), held[d.name])
        else:
            wants[d.name] = Want(NO_CAP, _at_most(d, held[d.name]))
            if alone == [d.name]:
                needs, others = held[d.name], held_by_all - held[d.name]
                free = host.for_workers.mib - away - others
                rest = max(free, min(needs, free + leaving))
                stuck = others - (floors - d.floor_mib)
                keeps, shrinks_to = _at_most(d, max(rest + stuck, needs)), _at_most(d, max(rest, needs))
                wants[d.name] = Want(NO_CAP, _at_most(d, rest), keeps_mib=keeps, shrinks_to_mib=shrinks_to)
    return wants


def _at_most(domain: Domain, mib: int) -> int:
    """`mib`, but not more than the domain may have."""
    return min(mib, domain.memory_mib) if domain.memory_mib else mib


def _share_cpus(host: Host, active: tuple[Job, ...]) -> int:
    """The CPUs of the domain's jobs, at most what the host has without its services, and at least one.

    Jobs can have more: MoM's list adds some that nobody claimed, and a reload can make the host smaller. The share of
    such a domain must not reach into the CPUs of services. A job without CPUs takes none from others; but it must be
    able to start and to end, and so must its guest, MoM and agent: without a share nothing there would move.
    """
    return max(1, min(sum(j.cpus for j in active), host.without_services.cpus))


def _held_mib(host: Host, domain: Domain, active: tuple[Job, ...]) -> int:
    stopped = () if domain.rests_for_move else to_stop(host, domain)  # those go on within moments, in their place
    return sum(j.memory_mib for j in active) + domain.stuck_mib(stopped)


def steps(host: Host, actual: Mapping[str, ActualDomain]) -> list[Step]:
    """What is left to do, in order; empty if everything is as it should be.

    On a paused host only the standing stops remain, for agents that come back or have not confirmed them yet.
    """
    orders = _orders(host, actual)
    if host.paused:
        return list(orders[Order.STOP])
    return [*orders[Order.STOP], *_resources(host, actual), *orders[Order.LIFT], *orders[Order.RUN]]


def _resources(host: Host, actual: Mapping[str, ActualDomain]) -> list[SetCpu | SetMemory]:
    """The steps that move CPUs and memory, in order; none on a paused host."""
    if host.paused:
        return []
    wants = {name: want for name, want in desired(host).items() if name in actual}
    takes = list(_memory(wants, actual, giving=False))
    to_give = {step.domain for step in takes}
    return [
        *_cpus(host, wants, actual, to_give, giving=False),
        *takes,
        *_memory(wants, actual, giving=True),
        *_cpus(host, wants, actual, to_give, giving=True),
    ]


def lacks(host: Host, actual: Mapping[str, ActualDomain], name: str) -> bool:
    """True if a domain must still get CPUs or memory for its jobs, even if the host is paused."""
    has = actual.get(name, ActualDomain())
    acting = replace(host, paused=None) if host.paused else host
    return any(
        s.domain == name and (gives(has.cpu_percent, s.cap) if isinstance(s, SetCpu) else s.mib > (has.memory_mib or 0))
        for s in _resources(acting, actual)
    )


def warned_until(host: Host, job: Job) -> float | None:
    """The time until which a job that must be stopped is only warned; None if it has asked for no warning.

    PBS must not suspend it earlier: its own SIGSTOP would cut the time short.
    """
    if job.warning is None or not job.stopped_by_us or job.stopped_since is None:
        return None
    return job.stopped_since + warned_s(host, job.warning)


def warned_s(host: Host, warning: StopWarning) -> float:
    """For how long a job runs on after its warning: as long as it has asked for, but at most what the site grants."""
    return min(warning.seconds, host.limits.longest_warning_s)


def _order_for(job: Job, wanted: bool) -> Order:
    if wanted:
        return Order.STOP
    return Order.LIFT if job.booked else Order.RUN


def _orders(host: Host, actual: Mapping[str, ActualDomain]) -> dict[Order, list[Orders]]:
    """The orders that reachable agents have not confirmed yet."""
    wanted = wanted_stopped(host)
    orders: dict[Order, list[Orders]] = {order: [] for order in Order}
    for d in host.workers:
        if d.name not in actual or d.agent_lost_at is not None or d.paused_externally:
            continue
        confirmed = actual[d.name].orders
        keys: dict[Order, list[JobKey]] = {order: [] for order in Order}
        for j in d.jobs:
            if j.stopped_by_us or j.key in confirmed:
                order = _order_for(j, (d.name, j.key) in wanted)
                if confirmed.get(j.key) is not order:
                    keys[order].append(j.key)
        for order in Order:
            if keys[order]:
                orders[order].append(Orders(d.name, order, tuple(keys[order])))
    return orders


def _cpus(
    host: Host, wants: Mapping[str, Want], actual: Mapping[str, ActualDomain], to_give: set[str], *, giving: bool
) -> Iterator[SetCpu]:
    for name, want in wants.items():
        has, cap = actual[name], _due_cap(host, want, actual[name], name in to_give)
        if has.can_cap and cap is not None and cap.percent != has.cpu_percent and gives(has.cpu_percent, cap) is giving:
            yield SetCpu(name, cap)


def _due_cap(host: Host, want: Want, has: ActualDomain, is_to_give: bool) -> Cap | None:
    """The cap that the domain should have now; None if it should keep its present one."""
    if want.idle:
        return want.cap if is_preempted_cap(host.limits.preempted_cpu_percent, has.cpu_percent) else None
    return due_now(want.cap, has.cpu_percent, has.giving, is_to_give)


def _memory(wants: Mapping[str, Want], actual: Mapping[str, ActualDomain], *, giving: bool) -> Iterator[SetMemory]:
    needed = any(not w.idle for w in wants.values())
    for name, want in wants.items():
        has = actual[name].memory_mib
        target = want.target_mib(has) if has is not None and (needed or want.shrink) else None
        if has is not None and target is not None and (target > has) is giving:
            yield SetMemory(name, target)


def ready(host: Host, actual: Mapping[str, ActualDomain]) -> frozenset[tuple[str, JobKey]]:
    """(domain, job) of the booked jobs that PBS may resume from this host's point of view.

    Their domain has everything back, and its agent has let them go.
    """
    pending = {s.domain for s in _resources(host, actual)}
    read = (d for d in host.domains if d.name in actual and d.name not in pending)
    let_go = frozenset((d.name, j.key) for d in read for j in d.jobs if actual[d.name].orders.get(j.key) is Order.LIFT)
    return let_go - wanted_stopped(host)
