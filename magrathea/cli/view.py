"""A host's snapshot as text: a table for people, tab-separated lines for scripts, JSON for programs.

Rule 1: hosts and guests have a part in nearly every text that a command prints, and the reader's terminal may be
root's. So commands print by `say` and `show`, and build lines by `grid`, `tabs` and `json_text`. No control character
of a stranger's text comes through these.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import click
import msgspec

from magrathea.core.words import State, StoppedBy
from magrathea.reports import DomainReport, ElsewhereView, EvacuationView, JobReport, MoveView, SleepReport, Snapshot
from magrathea.text import printable, printable_json

COLOURS = {
    State.FAULT: "bright_red",
    State.UNKNOWN: "red",
    State.PREEMPTED: "yellow",
    State.RUNNING_PRIORITY: "bright_green",
    State.RUNNING_PREEMPTIBLE: "green",
    State.RUNNING: "green",
    State.DOWN: "bright_black",
    State.FROZEN: "cyan",
    State.ASLEEP: "cyan",
}
"""Used only on a terminal. A colour never carries information that the text does not have."""

Cell = tuple[str, str | None]
"""A text and its colour."""


class Form(Protocol):
    def __call__(self, snapshot: Snapshot, compact: bool = False) -> str:
        """The snapshot as text that ends with a newline. `compact`: it is one of many in a row."""
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
    """The cap, or None if it is not below all CPUs."""
    return None if percent is None or percent >= 100 * cpus else percent


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value} MiB"


def _towards(now: int | None, wanted: int | None, say: Callable[[int | None], str]) -> str:
    """The value now and, if it differs, the value that it should have."""
    return say(now) if now == wanted else f"{say(now)} → {say(wanted)}"


def job_state(job: JobReport, now: float) -> str:
    """What a job is doing, in a few words."""
    if job.stopped_since is not None:
        whom = "by PBS" if job.stopper == StoppedBy.PBS else f"for {job.preempted_by}" if job.preempted_by else "by us"
        booked = "" if job.booked or job.stopper == StoppedBy.PBS else ", not yet booked in PBS"
        leaving = ", PBS is about to resume it" if job.booked and job.ready else ""
        return f"stopped {duration(now - job.stopped_since)} {whom}{booked}{leaving}"
    if job.stop:
        return f"to be stopped for {job.preempted_by}" if job.preempted_by else "to be stopped"
    return "running" if job.confirmed else "claimed"


def part_state(domain: DomainReport, job: JobReport, now: float) -> str:
    """What a job is doing in that domain. If the domain sleeps with it: since when, why, and until when."""
    sleep = domain.sleep
    if domain.state is not State.ASLEEP or not isinstance(sleep, SleepReport):
        return job_state(job, now)
    ends = "comes back as soon as there is room" if sleep.wakes else "until somebody brings it back"
    return f"asleep on disk with {domain.name} for {duration(now - sleep.since)}, {ends}: {sleep.reason}"


def move_lines(moves: Iterable[MoveView], now: float) -> list[str]:
    """A sentence for each of these moves."""

    def line(move: MoveView) -> str:
        ago = f" ({duration(now - move.at)} ago)" if move.at else ""
        return clean(f"{move.domain}, from {move.source} to {move.target}: {move.text}{ago}")

    return [line(move) for move in moves]


def elsewhere_lines(found: Iterable[ElsewhereView]) -> list[str]:
    """A sentence for each of these preempted domains: where it should go on, or why it stays."""

    def line(one: ElsewhereView) -> str:
        what = f"is to go on at {one.to} instead of {one.host}" if one.to else f"stays on {one.host}"
        return clean(f"{one.domain} {what}: {one.text}")

    return [line(one) for one in found]


def tabs(cells: Iterable[object]) -> str:
    """The cells in a line of `plain`, without its end; `-` is none."""
    return "\t".join("-" if cell is None or cell == "" else clean(" ".join(str(cell).split())) for cell in cells)


def plain(snapshot: Snapshot, compact: bool = False) -> str:
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
            sum(job.stopped_since is not None and job.stopper != StoppedBy.PBS for job in domain.jobs),
            domain.cpu_percent,
            domain.want_cpu_percent,
            domain.memory_mib,
            domain.want_memory_mib,
            domain.rank,
            "yes" if domain.agent else "no",
            int(domain.preempted_s),
            domain.vnode,
            domain.why,
            "no" if snapshot.paused_since is None else "yes",
        )
        return tabs(columns) + "\n"

    return "".join(line(domain) for domain in snapshot.domains)


def as_json(snapshot: Snapshot, compact: bool = False) -> str:
    return json_text(snapshot, compact) + "\n"


def clean(text: str) -> str:
    """Text from outside as one line of the same content, without characters that could control a terminal."""
    return printable(text, len(text))


def json_text(data: object, compact: bool = False) -> str:
    encoded = msgspec.json.encode(data)
    return printable_json((encoded if compact else msgspec.json.format(encoded, indent=2)).decode())


def say(text: str, err: bool = False) -> None:
    """Print a line, whatever stands in it."""
    click.echo(clean(text), err=err)


def styled(text: str, colour: str | None, bold: bool = False) -> str:
    """The text in that colour if a terminal shows it and wants colours."""
    wanted = (colour or bold) and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return click.style(text, fg=colour, bold=bold) if wanted else text


def show(form: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]], data: object) -> None:
    """Rows for people and scripts, data for programs."""
    if form == "json":
        click.echo(json_text(data))
    elif form == "plain":
        for row in rows:
            click.echo(tabs(row))
    else:
        for line in grid(header, rows):
            click.echo(line.rstrip())


def grid(header: tuple[str, ...], rows: Iterable[tuple[str | Cell, ...]]) -> list[str]:
    """Aligned lines. Importing rich's table would take a quarter of the time that `status` may take."""
    cells = [[cell if isinstance(cell, tuple) else (cell, None) for cell in row] for row in rows]
    table: list[list[Cell]] = [[(title, None) for title in header]]
    table += [[(clean(text), colour) for text, colour in row] for row in cells]
    widths = [max(len(row[i][0]) for row in table) for i in range(len(header))]

    def line(row: list[Cell], bold: bool) -> str:
        padded = [text + " " * (width - len(text)) for (text, _), width in zip(row, widths, strict=True)]
        padded[-1] = row[-1][0]
        return "  ".join(styled(text, colour, bold) for text, (_, colour) in zip(padded, row, strict=True))

    return [line(row, bold=n == 0) for n, row in enumerate(table)]


def _domains(snapshot: Snapshot) -> list[str]:
    def row(d: DomainReport) -> tuple[str | Cell, ...]:
        cpu = _towards(_cap(d.cpu_percent, snapshot.cpus), _cap(d.want_cpu_percent, snapshot.cpus), _percent)
        # Memory that cannot be read cannot be moved either, so what it should be is not shown.
        memory = "-" if d.memory_mib is None else _towards(d.memory_mib, d.want_memory_mib, _mib)
        if d.move is not None:
            memory += f" ({d.move.what} {d.move.done_mib} of {d.move.of_mib})"
        state = (d.state.value, COLOURS.get(d.state))
        since = duration(snapshot.at - d.since)
        return d.name, d.kind.value, state, since, str(len(d.jobs)), cpu, memory, _why(d, snapshot.at)

    return grid(
        ("DOMAIN", "KIND", "STATE", "SINCE", "JOBS", "CPU", "MEMORY", "WHY"), (row(d) for d in snapshot.domains)
    )


def _why(domain: DomainReport, now: float) -> str:
    """The host's sentence; for a preempted domain also since when, and how long its jobs were preempted."""
    stops = [job.stopped_since for job in domain.jobs if job.stopped_since is not None and job.stopper != StoppedBy.PBS]
    if domain.state is not State.PREEMPTED or not stops:
        return domain.why
    so_far = domain.preempted_s + sum(max(0.0, now - since) for since in stops)
    return f"{domain.why}, since {clock(min(stops), now)}; {duration(so_far)} of its jobs' time preempted so far"


def clock(at: float, now: float) -> str:
    """Local time of day, with the date if that is not today."""
    then, today = time.localtime(at), time.localtime(now)
    same_day = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def _jobs(snapshot: Snapshot) -> list[str]:
    def row(domain: DomainReport, job: JobReport) -> tuple[str | Cell, ...]:
        preempted_s = job.preempted_s
        if job.stopped_since is not None and job.stopper != StoppedBy.PBS:
            preempted_s += max(0.0, snapshot.at - job.stopped_since)
        return (
            f"{job.id} (run {job.run})" if job.run > 1 else job.id,
            domain.name,
            job.cls.value,
            str(job.cpus),
            _mib(job.memory_mib or None),
            duration(preempted_s) if job.preemptions or preempted_s else "-",
            (part_state(domain, job, snapshot.at), "yellow" if job.stopped_since is not None else None),
        )

    return grid(
        ("JOB", "DOMAIN", "CLASS", "CPUS", "MEMORY", "PREEMPTED", "STATE"),
        (row(domain, job) for domain in snapshot.domains for job in domain.jobs),
    )


def evacuation_word(known: EvacuationView) -> str:
    """What a host that is evacuated is, in one word."""
    return "returning" if known.returning else "evacuating" if known.over < known.of else "evacuated"


def evacuation(known: EvacuationView, at: float) -> str:
    state = f"{evacuation_word(known)} for {duration(at - known.since)}"
    return f"{state}, {known.over} of {known.of} domains are through: {known.reason}"


def table(snapshot: Snapshot, compact: bool = False) -> str:
    hub = "hub connected" if snapshot.hub_connected else "no hub: nothing new is preempted"
    size = f"{snapshot.cpus} CPUs, {snapshot.memory_mib} MiB"
    lines = [clean(f"host {snapshot.host}: {snapshot.mode.value}, {size}, driver {snapshot.driver}, {hub}")]
    if snapshot.paused_since is not None:
        since = duration(snapshot.at - snapshot.paused_since)
        lines += [styled(f"paused for {since}: {clean(snapshot.paused)}", "yellow")]
    if snapshot.evacuation is not msgspec.UNSET:
        lines += [styled(clean(evacuation(snapshot.evacuation, snapshot.at)), "yellow")]
    lines += ["", *_domains(snapshot)]
    if any(domain.jobs for domain in snapshot.domains):
        lines += ["", *_jobs(snapshot)]
    if snapshot.notes:
        lines += ["", notes(snapshot.notes, "note").rstrip()]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def notes(texts: Iterable[str], title: str) -> str:
    return "".join(f"{title}: {clean(text)}\n" for text in texts)


FORMS: dict[str, Form] = {"table": table, "json": as_json, "plain": plain}
