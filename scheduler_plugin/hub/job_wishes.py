"""What the hosts say of one job, put together: who wants it stopped, who is not ready yet, who has not got it.

Rule 1: no clock, no I/O. Times of a host become times on the hub's clock here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from magrathea.core.model import JobKey, Stopper
from magrathea.messages import JobReport, Snapshot


@dataclass(frozen=True, slots=True)
class Heard:
    """A host's last snapshot; `live`: its lease is not over; `received_at`: on the hub's clock."""

    snapshot: Snapshot
    live: bool
    received_at: float


@dataclass(frozen=True, slots=True)
class JobWish:
    """What hosts say of a job. `stoppers`: want it stopped; `waiting`: hosts of the job that must be heard, or must
    say ready, before it may be resumed; `unlisted`: are heard, with an agent in the job's domains there, and do not
    list it; `listed`: all of its hosts do. `stopped_at`, `warned_until`: on the hub's clock; before the latter it must
    not be suspended.
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
    key: JobKey,
    reports: Mapping[str, JobReport],
    hosts: Mapping[str, Heard],
    concerned: frozenset[str],
    without_lists: frozenset[str] = frozenset(),
) -> JobWish:
    """`reports`: of this job, by host, from the hosts' last snapshots, of those whose lease is over, too: what such
    a host wanted stands. `concerned`: the hosts of the vnodes that PBS runs it on, heard or not; `without_lists`:
    those of them with one of its domains in a state in which no list of MoM's comes."""
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
        stopped_at=min(since, default=None),
        warned_until=max(warned, default=0.0),
        by=by or (f"Magrathea on {stops[0][0]}" if stops else ""),
    )


def _ready(report: JobReport) -> bool:
    """Whether a host has nothing against a resume: all is given back, or it never stopped the job itself."""
    ours = report.stopped_since is not None and report.stopper != Stopper.PBS
    return not report.stop and (report.ready or not ours)


def _hub_time(heard: Heard, at: float) -> float:
    """A host's time on the hub's clock: by its age, if the host's clock is ahead, else as it is.

    An age alone would be too small in a snapshot that is sent again; too early a time only gives walltime away.
    """
    return min(at, heard.received_at - max(0.0, heard.snapshot.at - at))


def _to_come(heard: Heard, at: float) -> float:
    """A time ahead, on the hub's clock: by what was left of it when the host said so."""
    return heard.received_at + max(0.0, at - heard.snapshot.at)


def _warn_s(report: JobReport) -> float:
    """For how long the job has run on after its stop was decided."""
    return (report.warned_until or 0.0) - (report.stopped_since or 0.0) if report.warned_until is not None else 0.0
