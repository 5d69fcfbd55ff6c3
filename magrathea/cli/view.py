"""A host's snapshot as text: a table for people, tab-separated lines for scripts, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from magrathea.core.model import State
from magrathea.messages import DomainReport, JobReport, Snapshot

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

COLOURS = {
    State.FAULT: "bold red",
    State.UNKNOWN: "red",
    State.PREEMPTED: "yellow",
    State.RUNNING_PRIORITY: "bold green",
    State.RUNNING_PREEMPTIBLE: "green",
    State.RUNNING: "green",
    State.DOWN: "dim",
    State.FROZEN: "cyan",
}
WIDE = 1000
"""Columns where there is no terminal: nothing is wrapped, lines stay lines."""


class Form(Protocol):
    def __call__(self, snapshot: Snapshot, compact: bool = False) -> str:
        """The snapshot as text that ends with a newline. `compact`: one of many, after one another."""
        ...


def duration(seconds: float) -> str:
    """A time span for people, in its largest unit: `12 s`, `3 min`, `5 h`, `9 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _percent(value: int | None) -> str:
    return "all" if value is None else f"{value} %"


def _cap(percent: int | None, cpus: int) -> int | None:
    """A cap of all CPUs is none."""
    return None if percent is None or percent >= 100 * cpus else percent


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value} MiB"


def _towards(now: int | None, wanted: int | None, say: Callable[[int | None], str]) -> str:
    """As it is, and, where that differs, as it should be."""
    return say(now) if now == wanted else f"{say(now)} → {say(wanted)}"


def job_state(job: JobReport, now: float) -> str:
    """What a job is doing, in a few words."""
    if job.stopped_since is not None:
        who = "PBS" if job.stopper == "pbs" else job.preempted_by or "us"
        booked = "" if job.booked or job.stopper == "pbs" else ", not yet booked in PBS"
        leaving = ", to be resumed by PBS" if job.booked and job.ready else ""
        return f"stopped {duration(now - job.stopped_since)} by {who}{booked}{leaving}"
    if job.stop:
        return f"to be stopped for {job.preempted_by}" if job.preempted_by else "to be stopped"
    return "running" if job.confirmed else "claimed"


def plain(snapshot: Snapshot, compact: bool = False) -> str:
    def text(value: object) -> str:
        return "-" if value is None or value == "" else " ".join(str(value).split())

    def line(domain: DomainReport) -> str:
        columns = (
            snapshot.host,
            domain.name,
            domain.kind.value,
            domain.state.value,
            int(domain.since),
            ",".join(c.value for c in domain.accepts),
            len(domain.jobs),
            ",".join(job.id for job in domain.jobs),
            sum(job.stopped_since is not None and job.stopper != "pbs" for job in domain.jobs),
            domain.cpu_percent,
            domain.want_cpu_percent,
            domain.memory_mib,
            domain.want_memory_mib,
            domain.rank,
            "yes" if domain.agent else "no",
            int(domain.preempted_s),
            domain.vnode,
            domain.why,
        )
        return "\t".join(text(column) for column in columns) + "\n"

    return "".join(line(domain) for domain in snapshot.domains)


def as_json(snapshot: Snapshot, compact: bool = False) -> str:
    data = msgspec.json.encode(snapshot)
    return (data if compact else msgspec.json.format(data, indent=2)).decode() + "\n"


def _grid(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _domains(snapshot: Snapshot) -> Table:
    from rich.text import Text

    table = _grid("DOMAIN", "KIND", "STATE", "SINCE", "JOBS", "CPU", "MEMORY", "WHY")
    for domain in snapshot.domains:
        table.add_row(
            Text(domain.name),
            domain.kind.value,
            Text(domain.state.value, COLOURS.get(domain.state, "")),
            duration(snapshot.at - domain.since),
            str(len(domain.jobs)),
            _towards(_cap(domain.cpu_percent, snapshot.cpus), _cap(domain.want_cpu_percent, snapshot.cpus), _percent),
            # Memory that cannot be read cannot be moved either: then what it should be is of no interest.
            "-" if domain.memory_mib is None else _towards(domain.memory_mib, domain.want_memory_mib, _mib),
            Text(domain.why),
        )
    return table


def _jobs(snapshot: Snapshot) -> Table:
    from rich.text import Text

    table = _grid("JOB", "DOMAIN", "CLASS", "CPUS", "MEMORY", "PREEMPTED", "STATE")
    for domain in snapshot.domains:
        for job in domain.jobs:
            so_far = job.preempted_s
            if job.stopped_since is not None and job.stopper != "pbs":
                so_far += max(0.0, snapshot.at - job.stopped_since)
            table.add_row(
                Text(f"{job.id} (run {job.run})" if job.run > 1 else job.id),
                Text(domain.name),
                job.cls.value,
                str(job.cpus),
                _mib(job.memory_mib or None),
                duration(so_far) if job.preemptions or so_far else "-",
                Text(job_state(job, snapshot.at), "yellow" if job.stopped_since is not None else ""),
            )
    return table


def table(snapshot: Snapshot, compact: bool = False) -> str:
    from rich.console import Console, Group
    from rich.text import Text

    hub = "hub connected" if snapshot.hub_connected else "no hub: nothing new is preempted"
    size = f"{snapshot.cpus} CPUs, {snapshot.memory_mib} MiB"
    parts: list[RenderableType] = [
        Text(f"host {snapshot.host}: {snapshot.mode.value}, {size}, driver {snapshot.driver}, {hub}"),
        "",
        _domains(snapshot),
    ]
    if any(domain.jobs for domain in snapshot.domains):
        parts += ["", _jobs(snapshot)]
    if snapshot.notes:
        parts += ["", *(Text(f"note: {note}") for note in snapshot.notes)]
    terminal = sys.stdout.isatty()
    console = Console(force_terminal=terminal, no_color=not terminal, highlight=False, width=None if terminal else WIDE)
    with console.capture() as text:
        console.print(Group(*parts))
    lines = (line.rstrip() for line in text.get().splitlines())
    return "\n".join(lines) + "\n"


FORMS: dict[str, Form] = {"table": table, "json": as_json, "plain": plain}
