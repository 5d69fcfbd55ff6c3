"""Which preempted domains should go on at another host: decides only. Hosts have the last word (docs/moves.md).

Rule 1: no clock and no I/O: a function of what hosts report, of who owns which domain, and of former moves (trips.py).
Rule 2: a domain goes only where all its jobs find room beside those that run there, and where nobody waits, sleeps, or
is between two states. So the sum of the CPUs of preempted jobs falls with every move, and no job is stopped for it.
While the load stays as it is, moves come to an end, and no two hosts exchange domains: who has a preempted domain
takes none.
Rule 3: nobody knows how long a preemption lasts. Who has been preempted for some time is expected to be so for as long
again, unless the walltimes of the priority jobs say that it ends sooner. A move must gain more than moves have cost.
Rule 4: after a move, and after one that came to nothing, a domain rests for `rest_s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from magrathea.core import placement
from magrathea.core.model import Amount, JobClass, Kind, Mode, State, StoppedBy
from magrathea.core.moves import Ownership
from magrathea.core.placement import HostRoom, Traveller
from magrathea.messages import DomainReport, JobReport, SleepReport, Snapshot

from .ownership import parties

MOST_JUDGED = 256
"""Domains that are judged at once, those first that have been preempted for longest."""
MOST_OF_A_HOST = 8
"""So many of them may be one host's: it could make them up."""
MOST_REASONS = 3
"""Hosts of which a sentence says why they take nobody."""

NOT_CALM = {
    State.FROZEN: "is frozen, and may come back",
    State.BOOTING: "boots",
    State.UNKNOWN: "is unknown",
    State.FAULT: "is in fault",
    State.PREEMPTED: "is preempted itself",
}
"""Domains in these states keep their host from taking others."""


class ElsewhereTimes(Protocol):
    """`after_s`: how long a domain must have been preempted; 0: none moves. `rest_s`: see rule 4."""

    @property
    def after_s(self) -> float: ...

    @property
    def rest_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class HostNow:
    """A host that reports. `now`: the time on its clock. `welcome`: the hosts that it takes domains from. `follows`:
    it understands the hub's wishes. `ends_in_s`: the time until all its priority jobs have ended at the latest;
    infinite if one has no walltime. `room`: what it has said of its room; None if it does not say it."""

    snapshot: Snapshot
    now: float
    welcome: frozenset[str] = frozenset()
    follows: bool = True
    ends_in_s: float = math.inf
    room: HostRoom | None = None

    @property
    def name(self) -> str:
        return self.snapshot.host


class Past(Protocol):
    """Former moves."""

    def rests(self, domain: str, rest_s: float, now: float) -> str:
        """Why the domain rests; empty if it does not."""

    def refused(self, domain: str, host: str, now: float) -> str:
        """Why a move of the domain to that host was refused lately; empty if it was not."""

    def cost_s(self, source: str, target: str, mib: int) -> float:
        """How long a move of so much memory is expected to take."""


class ElsewhereVerdict(NamedTuple):
    """What is to become of a preempted domain. `to`: the host where it should go on; empty: it stays. `why`: for
    people. `since`: it has been preempted since then, by its host's clock. `fix`: what to configure, if that keeps it
    from moving."""

    domain: str
    host: str
    to: str
    why: str
    since: float
    fix: str = ""


class Reason(NamedTuple):
    """Why a domain stays, and what to configure; both empty if it need not stay."""

    why: str = ""
    fix: str = ""


def verdicts(
    times: ElsewhereTimes, hosts: Mapping[str, HostNow], records: Mapping[str, Ownership], past: Past, now: float
) -> list[ElsewhereVerdict]:
    """What is to become of the preempted domains, those first that have been preempted for longest. `records`: the
    owners of domains. At most one of these moves concerns a host, and none one that a domain is on its way to or from.
    """
    busy = {end for record in records.values() if record.transfer is not None for end in parties(record)}
    waiting = sorted(
        ((host.now - since, host.name, domain.name, since) for host in hosts.values() for domain, since in _few(host)),
        key=lambda one: (-one[0], one[1:3]),
    )
    found = []
    for waited_s, name, domain, since in waiting[:MOST_JUDGED]:
        host = hosts[name]
        report = next(d for d in host.snapshot.domains if d.name == domain)
        why, fix = _why_it_stays(times, host, report, waited_s, records.get(domain))
        if not why:
            why = past.rests(domain, times.rest_s, now)
        if not why and name in busy:
            why = f"a domain is on its way to or from {name}, or is about to be; its turn comes later"
        to = ""
        if not why:
            to, why, fix = _where(host, report, waited_s, hosts, busy, past, now)
        if to:
            busy |= {name, to}
        found.append(ElsewhereVerdict(domain, name, to, why, since, fix))
    return found


def _few(host: HostNow) -> list[tuple[DomainReport, float]]:
    """The host's preempted domains, with the times since when."""
    found = [(d, since) for d in host.snapshot.domains if (since := preempted_since(d)) is not None]
    return sorted(found, key=lambda one: one[1])[:MOST_OF_A_HOST]


def preempted_since(domain: DomainReport) -> float | None:
    """Since when jobs of the domain have been stopped by us, by its host's clock; None if none is."""
    if domain.state is not State.PREEMPTED or domain.kind is not Kind.NORMAL:
        return None
    return min((j.stopped_since for j in domain.jobs if _is_stopped(j) and j.stopped_since is not None), default=None)


def _is_stopped(job: JobReport) -> bool:
    return job.stopper is StoppedBy.US


def _why_it_stays(
    times: ElsewhereTimes,
    host: HostNow,
    domain: DomainReport,
    waited_s: float,
    record: Ownership | None,
) -> Reason:
    """Why the domain goes nowhere, whatever other hosts have."""
    name, here = domain.name, host.name
    ours = [job for job in domain.jobs if _is_stopped(job)]
    held = next((job.id for job in ours if job.held_elsewhere), "")
    late = f"preempted for {waited_s:.0f} s, and it may move after {times.after_s:g} s"
    table = (
        (record is not None and record.transfer is not None, "it is on its way", ""),
        (host.snapshot.paused_since is not None, f"{here} is paused", ""),
        (
            domain.vnode != name,
            f"its vnode is {domain.vnode}, and a domain moves only if its vnode has its name",
            f"give the domain or its vnode the other's name, in noded.toml of {here} and in PBS",
        ),
        (
            record is None or record.owner != here,
            f"the hub's books do not have it as {here}'s, which may move no domains",
            f"name the hosts that its domains may go to in [moves] in noded.toml of {here}; magrathea reload there",
        ),
        (not host.follows, f"the daemon of {here} is too old to understand that", f"upgrade it on {here}"),
        (isinstance(domain.sleep, SleepReport), "it is being put to sleep", ""),
        (not any(job.stop for job in ours), f"its jobs are about to go on at {here}", ""),
        (any(job.requeue for job in ours), "a job of it is about to be requeued", ""),
        (bool(held), f"another host wants {held} stopped, so it could not go on elsewhere either", ""),
        (waited_s < times.after_s, late, ""),
    )
    return next((Reason(why, fix) for holds, why, fix in table if holds), Reason())


def _where(
    host: HostNow,
    domain: DomainReport,
    waited_s: float,
    hosts: Mapping[str, HostNow],
    busy: set[str],
    past: Past,
    now: float,
) -> tuple[str, str, str]:
    """The host where the domain should go on, empty if none; why; and what to configure if nothing else is wrong."""
    able, reasons = list[tuple[float, str]](), list[str]()
    for there in hosts.values():
        if there.name == host.name or host.name not in there.welcome:
            continue
        why = past.refused(domain.name, there.name, now) or no_place(there, domain, busy)
        if why:
            reasons.append(f"{there.name}: {why}")
        else:
            able.append((past.cost_s(host.name, there.name, mib_of(domain)), there.name))
    if not (able or reasons):
        fix = f"name {host.name} in [visitors] in noded.toml of another host; magrathea reload there"
        return "", f"no host takes domains from {host.name}", fix
    if not able:
        return "", f"no host has a place for it: {'; '.join(sorted(reasons)[:MOST_REASONS])}", ""
    cost_s, to = min(able)
    gain_s = min(waited_s, host.ends_in_s)
    ends = ", when what it waits for ends by its walltime" if host.ends_in_s < waited_s else ""
    figures = f"it is expected to wait for {gain_s:.0f} s more{ends}; a move to {to} takes {cost_s:.1f} s"
    if gain_s <= cost_s:
        return "", f"{figures}, which is not less", ""
    return to, f"preempted for {waited_s:.0f} s, {figures}, and there is room", ""


def mib_of(domain: DomainReport) -> int:
    """How much memory the domain takes along."""
    return domain.memory_mib or domain.want_memory_mib or sum(job.memory_mib for job in domain.jobs)


def no_place(there: HostNow, domain: DomainReport, busy: Iterable[str] = ()) -> str:
    """Why the host has no place where all jobs of the domain would run now, without stopping anybody; empty if it has.

    If the host says what room it has, that counts, too, as for whoever else looks for a place (core/placement.py).
    """
    snapshot = there.snapshot
    others = [d for d in snapshot.domains if d.kind is not Kind.SERVICE]
    restless = next((f"{d.name} {NOT_CALM[d.state]}" for d in others if d.state in NOT_CALM), "")
    asleep = next((d.name for d in others if isinstance(d.sleep, SleepReport)), "")
    jobs = [job for d in others for job in d.jobs]
    exclusive = snapshot.mode is Mode.EXCLUSIVE
    kept = exclusive and any(d.kind is Kind.NORMAL and d.state is State.OCCUPIED for d in others)
    free_cpus = snapshot.cpus - snapshot.services_cpus - sum(job.cpus for job in jobs)
    free_mib = snapshot.memory_mib - sum(job.memory_mib for job in jobs)
    cpus, mib = sum(job.cpus for job in domain.jobs), sum(job.memory_mib for job in domain.jobs)
    table = (
        (snapshot.paused_since is not None, "it is paused"),
        (there.name in busy, "a domain is on its way to or from it, or is about to be"),
        (bool(restless), restless),
        (bool(asleep), f"{asleep} sleeps there, and may come back"),
        (exclusive and bool(jobs), "it runs jobs"),
        (kept, "it is kept for a priority job"),
        (cpus > free_cpus, f"{cpus} CPUs are needed, {max(0, free_cpus)} are free"),
        (mib > free_mib, f"{mib} MiB are needed for jobs, {max(0, free_mib)} are free"),
    )
    why = next((why for holds, why in table if holds), "")
    if why or there.room is None:
        return why
    need = Amount(cpus, mib)
    asks = Traveller(domain.name, domain.kind, need, need, 0, has_jobs=True)
    return there.room.closed or placement.why_not(there.room, asks)


def priority_jobs(snapshot: Snapshot) -> Iterable[JobReport]:
    """The priority jobs that run on a host."""
    return (j for d in snapshot.domains for j in d.jobs if j.cls is JobClass.PRIORITY and j.stopped_since is None)
