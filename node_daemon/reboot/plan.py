"""Which domains are put to sleep when the machine shuts down, in which order, and how long that takes.

Rule 1: what has run longest is chosen first. If the time does not suffice for all, the domains are taken in the order
of the CPU seconds that their jobs would lose, as long as the chosen ones together fit. Services that the admin has
named come before all others: nobody else knows what they are worth.
Rule 2: all chosen domains stop at once, so that no job starts among them. They are saved in the order of `Turn`: who
stands still anyway first, priority jobs last of those with jobs. Domains without jobs follow: they lose least if the
time is over. Services are last, because the others may need them.
Rule 3: they come back in the reverse order: services first, then who had the host, then who was preempted. Domains
without jobs come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from magrathea.core.model import Domain, Host, Kind, Lifecycle
from magrathea.core.occupation import occupation

from ..measured import Measured, expected_s


class Turn(IntEnum):
    """When a domain is saved, by its occupation."""

    PREEMPTED = 0
    PREEMPTIBLE = 1
    PROTECTED = 2
    PRIORITY = 3
    IDLE = 4
    SERVICE = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A domain that may be put to sleep. `mib`: its memory. `loses_cpu_s`: CPU seconds that its jobs have computed and
    would lose. `expected_s`: how long its save takes."""

    name: str
    turn: Turn
    mib: int
    jobs: int
    loses_cpu_s: float
    expected_s: float


@dataclass(frozen=True, slots=True)
class SleepPlan:
    """`chosen`: in the order of their saves. `left`: what the time does not suffice for. `expected_s`: until the last
    one is on disk."""

    chosen: tuple[Candidate, ...]
    left: tuple[Candidate, ...]
    expected_s: float


def turn_of(domain: Domain) -> Turn:
    return Turn[occupation(domain).name]


def computed_cpu_s(domain: Domain, now: float) -> float:
    """CPU seconds that its jobs have computed so far, stops by us not counted."""
    total = 0.0
    for job in domain.jobs:
        stopped_s = job.preempted_s + (now - job.stopped_since if job.stopped_since is not None else 0.0)
        total += job.cpus * max(0.0, now - job.claimed_at - stopped_s)
    return total


def candidates(
    host: Host, names: Iterable[str], mib: Mapping[str, int], measured: Mapping[str, Measured], now: float
) -> list[Candidate]:
    """Those of `names` that are up or just come back from a sleep, in the order of their saves. `mib`: the memory that
    each has now. A service's lifecycle is not known here; it counts as up."""
    found = []
    for name in names:
        domain = host.domain(name)
        if domain is None or not (domain.kind is Kind.SERVICE or domain.lifecycle is Lifecycle.UP or domain.waking):
            continue
        size = mib.get(name, domain.memory_mib)
        found.append(
            Candidate(
                name,
                turn_of(domain),
                size,
                len(domain.jobs),
                computed_cpu_s(domain, now),
                expected_s(name, size, measured),
            )
        )
    return sorted(found, key=lambda c: (c.turn, c.expected_s, c.name))


def duration_s(chosen: Sequence[Candidate], at_once: int) -> float:
    """Until the last one is on disk, if `at_once` are saved at the same time, in this order."""
    free_at = [0.0] * max(1, at_once)
    for candidate in chosen:
        earliest = min(range(len(free_at)), key=free_at.__getitem__)
        free_at[earliest] += candidate.expected_s
    return max(free_at)


def plan(found: Sequence[Candidate], time_s: float, at_once: int) -> SleepPlan:
    """What is put to sleep within `time_s`. `found`: in the order of their saves."""
    chosen: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.turn is not Turn.SERVICE, -c.loses_cpu_s, c.expected_s, c.name)):
        more = [c for c in found if c in chosen or c is candidate]
        if duration_s(more, at_once) <= time_s:
            chosen = more
    left = tuple(c for c in found if c not in chosen)
    return SleepPlan(tuple(chosen), left, duration_s(chosen, at_once))
