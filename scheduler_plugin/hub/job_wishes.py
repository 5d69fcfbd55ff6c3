"""Combines what all hosts report about one job: who wants it stopped, who is not ready yet, who does not have it.

Rule 1: no clock, no I/O. Only this file converts a host's times to times on the hub's clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from magrathea.core.model import StoppedBy
from magrathea.messages import BookEntry, DomainReport, JobReport, Snapshot

MAX_REPORTED_WARN_S = 300.0
"""No agent warns a job for longer (MAX_ORDERED_WARN_S of its daemon_requests.py), whatever a host reports."""


@dataclass(frozen=True)
class Heard:
    """A host's last snapshot. `live`: its lease has not run out. `received_at`: on the hub's clock.

    What follows from the snapshot alone is computed once, when it is needed.
    """

    snapshot: Snapshot
    live: bool
    received_at: float

    @cached_property
    def by_vnode(self) -> Mapping[str, DomainReport]:
        """The domains by vnode: the first if there are several."""
        return {domain.vnode: domain for domain in reversed(self.snapshot.domains)}

    @cached_property
    def moves(self) -> str:
        """How far the host's memory has moved, for people; empty if none is moving."""
        moving = ((d.name, d.move) for d in self.snapshot.domains if d.move)
        return ", ".join(f"{name} {move.what} {move.done_mib} of {move.of_mib} MiB" for name, move in moving)

    @cached_property
    def believed_books(self) -> list[BookEntry]:
        """The books as the snapshot shows them."""
        return [
            BookEntry(id=job.id, run=job.run, booked=job.booked, held=job.held_elsewhere)
            for domain in self.snapshot.domains
            for job in domain.jobs
            if job.booked or job.held_elsewhere
        ]


@dataclass(frozen=True, slots=True)
class JobWish:
    """What the hosts want to happen to a job.

    `stoppers`: hosts that want it stopped. `waiting`: hosts that must be heard, or must report it ready, before it may
    be resumed. `unlisted`: live hosts whose agents run and do not list it. `listed`: all of its hosts list it.
    `stopped_at`, `warned_until`: on the hub's clock; it must not be suspended before the latter.
    """

    stoppers: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    unlisted: frozenset[str] = frozenset()
    listed: bool = False
    requeue: bool = False
    booked: bool = False
    stopped_at: float | None = None
    warned_until: float = 0.0
    by: str = ""

    @property
    def stop(self) -> bool:
        return bool(self.stoppers)


def wish_of(
    reports: Mapping[str, JobReport],
    hosts: Mapping[str, Heard],
    concerned: frozenset[str],
    without_lists: frozenset[str] = frozenset(),
    running: tuple[float, float] = (0.0, math.inf),
) -> JobWish:
    """Combine the reports of this job.

    `reports`: the reports that count, by host, from the last snapshots. If a host's lease has run out, its last wish
    stands. `running`: the job can have been stopped only between these times; times that hosts report are clamped to
    them. `concerned`: the hosts of the vnodes on which PBS runs the job, even silent ones. `without_lists`: the hosts
    with a domain of the job whose state lets no list from MoM arrive.
    """
    stops = [(host, r) for host, r in reports.items() if r.stop]
    since = [_hub_time(hosts[host], r.stopped_since) + _warn_s(r) for host, r in stops if r.stopped_since is not None]
    warned = [_to_come(hosts[host], r.warned_until) for host, r in reports.items() if r.warned_until is not None]
    waiting = {h for h in concerned if h not in hosts or not hosts[h].live}
    waiting |= {h for h, r in reports.items() if not _ready(r) or not hosts[h].live}
    by = next((f"{r.preempted_by} on {host}" for host, r in stops if r.preempted_by), "")
    return JobWish(
        stoppers=frozenset(host for host, _ in stops),
        waiting=frozenset(waiting),
        unlisted=frozenset(h for h in concerned - without_lists if h not in reports and h in hosts and hosts[h].live),
        listed=bool(concerned) and concerned <= reports.keys(),
        requeue=any(r.requeue for r in reports.values()),
        booked=any(r.booked for r in reports.values()),
        stopped_at=max(running[0], min(running[1], *since)) if since else None,
        warned_until=max(warned, default=0.0),
        by=by or (f"Magrathea on {stops[0][0]}" if stops else ""),
    )


def _ready(report: JobReport) -> bool:
    """True if this host allows a resume: it has given everything back, or it has never stopped the job itself."""
    ours = report.stopped_since is not None and report.stopper != StoppedBy.PBS
    return not report.stop and (report.ready or not ours)


def _hub_time(heard: Heard, at: float) -> float:
    """A past time of a host on the hub's clock: computed from its age if the host's clock is ahead, else unchanged.

    A snapshot that is sent again makes ages too small. A time that is too early only gives the job more walltime.
    """
    return min(at, heard.received_at - max(0.0, heard.snapshot.at - at))


def _to_come(heard: Heard, at: float) -> float:
    """A future time of a host on the hub's clock, computed from what was left of it in the snapshot."""
    return heard.received_at + min(MAX_REPORTED_WARN_S, max(0.0, at - heard.snapshot.at))


def _warn_s(report: JobReport) -> float:
    """Seconds for which the job ran on after its stop was decided."""
    return (report.warned_until or 0.0) - (report.stopped_since or 0.0) if report.warned_until is not None else 0.0
