"""What the checks of a random history compare: two hosts as everybody sees them, and which events may come twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from magrathea.core import events as ev
from magrathea.core import states
from magrathea.core.machine import handle
from magrathea.core.model import Host, JobClass, State

View = tuple[tuple[str, State, tuple[JobClass, ...], int, tuple[int, int]], ...]

REPEATABLE = (
    ev.Claimed,
    ev.Released,
    ev.JobLaunched,
    ev.AgentConnected,
    ev.AgentLost,
    ev.DomainStarted,
    ev.DomainStopped,
    ev.DomainHalted,
    ev.DomainWentOn,
    ev.BootRequested,
    ev.ShutdownRequested,
    ev.FreezeRequested,
    ev.SleepRequested,
    ev.SleepEnded,
    ev.ImageLost,
    ev.DrainRequested,
    ev.DrainEnded,
    ev.Faulted,
    ev.FaultCleared,
    ev.BooksReported,
    ev.HubLost,
    ev.HubFound,
    ev.DriverLost,
    ev.DriverFound,
    ev.PauseRequested,
    ev.PauseEnded,
    ev.Reconfigured,
    ev.TimerFired,
    ev.MemoryReported,
    ev.DiskJudged,
    ev.JobsGiven,
    ev.JobsDenied,
)
"""Events that change nothing when they are repeated. MoM's list is none of them: it counts missing jobs."""


def at(h: Host, time: float) -> Host:
    return handle(h, ev.TimerFired(time))[0]


def view(h: Host, names: Iterable[str]) -> View:
    """Everything that is published about these domains."""
    rows = []
    for d in (d for d in h.domains if d.name in names):
        size = states.published(h, d)
        rows.append((d.name, states.state_of(h, d), states.accepts(h, d), states.rank(h, d), (size.cpus, size.mib)))
    return tuple(rows)


def same_facts(one: Host, two: Host) -> bool:
    """True if the facts are equal, except the time since which a domain is overtaken: that depends on what was in
    between."""

    def plain(h: Host) -> Host:
        return replace(h, domains=tuple(replace(d, overtaken_since=None) for d in h.domains))

    return plain(one) == plain(two)
