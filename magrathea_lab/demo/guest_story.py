"""`magrathea demo --driver libvirt`: two virtual machines, and a host's memory and CPU, which move to where the work
is.

All figures come from libvirt and the guests, not from Magrathea. Only the times of a switch's parts come from the node
daemon's log.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from magrathea.deadlines import MEMORY_GLANCE_S

from ..guests import needs
from .screen import PATIENCE_S, STYLES, DemoCluster, Screen, columns, runs
from .watch import Watch, Watched

if TYPE_CHECKING:
    from rich.table import Table

    from ..clusters.guests import GuestCluster

LOW_STEPS, HIGH_STEPS = 100, 20
LOW_MIB, HIGH_MIB = 200, 200
"""Memory that the jobs ask for; they hold nearly all of it. Together it is more than the host has besides the floors.
"""
SLOW_S = 2 * PATIENCE_S
"""Bound of each chapter: an emulated guest beside other work on two cores moves its memory ten times as slowly."""
LINE_MIB = 60
"""The smallest change of memory that gets a line."""
BAR_STEP_MIB = 48
"""MiB for each step of a domain's bar."""
ASK_S = 0.5
"""Interval between questions about a guest's swap: each question costs a capped, emulated guest CPU time."""

INTRODUCTION = (
    "[bold]Magrathea: virtual machines, preemption and PBS working as one[/bold]\n\n"
    'One machine ("host") with two virtual machines ("domains"): n1 runs ordinary jobs (queue [green]low[/green]), '
    "p1 those that cannot wait (queue [magenta]high[/magenta]). The host has not enough memory for a big job in each. "
    "When a high job comes, Magrathea stops the low one inside n1, pushes its memory out to n1's swap, gives memory "
    "and CPU to p1, and brings all of it back afterwards: the low job finds each byte unchanged.\n"
)
MEANINGS = (
    "\n[dim]MEMORY: the virtual machine's memory at this moment, from libvirt. IN SWAP: MiB that the guest has "
    "pushed out, from its kernel. CPU: the cap from libvirt, in per cent of one CPU.[/dim]"
)


class NoGuests(Exception):
    """No virtual machines can run here; the text says what is missing."""


def make() -> DemoCluster:
    """The demo's cluster of virtual machines, not started yet. Raises NoGuests."""
    if (why := needs.missing()) is not None:
        how = "" if os.geteuid() == 0 else "; as root: magrathea demo --driver libvirt"
        raise NoGuests(f"virtual machines cannot run here: {why}{how}")
    from ..clusters.guests import GuestCluster

    return GuestCluster()


class GuestStory:
    """See screen.Story. One object for one run."""

    introduction = INTRODUCTION
    meanings = MEANINGS

    def __init__(self) -> None:
        self._ask_at = 0.0
        self._printed: dict[str, int] = {}
        self._swap: dict[str, int] = {}
        self._caps: dict[str, int | None] = {}

    def after_look(self, watch: Watch, screen: Screen) -> None:
        """Print what has moved: visible steps of memory, and every change of a cap."""
        cluster = _guests(watch)
        figures = cluster.figures()
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + ASK_S
            for job in watch.jobs.values():
                if job.state in "RS" and job.counter:
                    self._swap[job.domain] = cluster.swapped_mib(job.id)
        for name, now in figures.items():
            if name in self._caps and self._caps[name] != now.cpu_percent:
                screen.event(f"CPU: {name} {_cap(self._caps[name])} -> {_cap(now.cpu_percent)}")
            self._caps[name] = now.cpu_percent
        moved = any(abs(now.memory_mib - self._printed.get(name, 0)) >= LINE_MIB for name, now in figures.items())
        if moved:
            first = not self._printed
            self._printed = {name: now.memory_mib for name, now in figures.items()}
            if not first:
                parts = [f"{name} {_memory(mib)}" for name, mib in self._printed.items()]
                screen.event(f"memory (MiB): {'  '.join(parts)}  in n1's swap {self._swap.get('n1', 0):3d}")

    def table(self, watch: Watch) -> Table:
        found = columns("DOMAIN", "STATE", "MEMORY (MiB)", "IN SWAP", "CPU", "JOB", gap=1)
        present = [job for job in watch.jobs.values() if job.state not in ("F", "?")]
        for name, now in _guests(watch).figures().items():
            state = watch.vnodes[name].magrathea if name in watch.vnodes else "?"
            style = STYLES.get(state, "default")
            here = [_progress(job) for job in present if job.domain == name and job.state in "RSE"]
            memory, swap = _memory(now.memory_mib), str(self._swap.get(name, 0))
            jobs = "\n".join(here)
            found.add_row(name, f"[{style}]{state}[/{style}]", memory, swap, _cap(now.cpu_percent), jobs)
        if waiting := [job.name for job in present if job.state in "QWH"]:
            found.add_row("", "[dim]waiting in PBS[/dim]", "", "", "", ", ".join(waiting))
        return found

    def tell(self, watch: Watch, screen: Screen) -> None:
        cluster = _guests(watch)
        low = _submit(watch, "low", "low-1", LOW_STEPS, LOW_MIB)
        screen.chapter(
            f"1. A low job in n1. It computes, and holds {low.holds_mib} MiB that it checks again and again."
        )
        watch.until(
            "the low job runs, and has run long enough to be pushed aside",
            lambda: watch.vnodes["n1"].magrathea == "running-preemptible" and low.counter > 5,
            SLOW_S,
        )
        screen.show(watch)

        screen.chapter(
            f"2. `qsub -q high -l select=1:ncpus=1:mem={HIGH_MIB}mb`: p1 does not have that much. n1 gives it."
        )
        high = runs(watch, _submit(watch, "high", "high-1", HIGH_STEPS, HIGH_MIB), SLOW_S)
        screen.show(watch)

        screen.chapter("3. The high job ends: memory and CPU go back, then the low job continues where it stopped.")
        watch.until("the low job goes on", lambda: high.state == "F" and _goes_on(watch, low), SLOW_S)
        screen.show(watch)

        screen.chapter("4. Once more, a high job that needs no more memory than p1 has: it does not wait.")
        before = low.counter
        watch.until(
            "the low job may be pushed aside again",
            lambda: watch.vnodes["n1"].magrathea == "running-preemptible" and low.counter > before,
            SLOW_S,
        )
        runs(watch, _submit(watch, "high", "high-2", HIGH_STEPS, 0), SLOW_S)
        screen.show(watch)
        watch.until("all jobs end", lambda: all(job.state == "F" for job in watch.jobs.values()), SLOW_S)
        names = cluster.names()
        watch.until("both are free again", lambda: all(watch.vnodes[n].magrathea == "free" for n in names), SLOW_S)
        screen.show(watch)

    def closing(self, cluster: DemoCluster, screen: Screen) -> None:
        """Print the times of each switch's parts."""
        switches = parts_of(cluster.log("noded-h1"))
        screen.chapter("The parts of each switch, as the node daemon timed them")
        table = columns("PART", *(f"{name} (ms)" for name in switches))
        for row, _ in (*PARTS, *BACK):
            table.add_row(row, *(f"{parts[row]:.0f}" if row in parts else "-" for parts in switches.values()))
        screen.say(table)
        screen.say(
            "\n[dim]Memory moves while p1's job is already granted: the job waits for no more than it asked for, in "
            f"its prologue. Where it has to, up to {1000 * MEMORY_GLANCE_S:.0f} ms before the answer go into seeing "
            "whether that memory can come at all.[/dim]"
        )


PARTS = (
    ("claim to answer", r"p1: claim of (?P<job>\S+) \(run \d+\) granted after (?P<ms>[\d.]+) ms"),
    ("  the agent stops the job in n1", r"n1: stop \S+ .* after (?P<ms>[\d.]+) ms"),
    ("CPU of n1 capped", r"n1: cpu \d+ % after (?P<ms>[\d.]+) ms"),
    ("memory out of n1", r"n1: memory (?P<mib>\d+) MiB after (?P<ms>[\d.]+) ms"),
    ("memory into p1", r"p1: memory (?P<mib>\d+) MiB after (?P<ms>[\d.]+) ms"),
)
BACK = (
    ("back: the cap of n1 taken off", r"n1: cpu without a cap after (?P<ms>[\d.]+) ms"),
    ("back: memory into n1", r"n1: memory (?P<mib>\d+) MiB after (?P<ms>[\d.]+) ms"),
    ("back: what was pushed out is fetched", r"n1: lift \S+ .* after (?P<ms>[\d.]+) ms"),
    ("back: the agent continues the job", r"n1: run \S+ .* after (?P<ms>[\d.]+) ms"),
)


def parts_of(log: str) -> dict[str, dict[str, float]]:
    """Milliseconds of each part, by switch ("high-1", "high-2", ...), from a node daemon's log (level debug)."""
    found: dict[str, dict[str, float]] = {}
    current: dict[str, float] = {}
    back = False
    for line in log.splitlines():
        if ", preempting " in line:
            current = found.setdefault(f"high-{len(found) + 1}", {})
            back = False
        elif re.search(r"p1: .* released", line):
            back = True
        for part, pattern in BACK if back else PARTS:
            if match := re.search(pattern, line):
                current[part] = current.get(part, 0.0) + float(match["ms"])
    return found


def _goes_on(watch: Watch, job: Watched) -> bool:
    return not job.stopped and watch.vnodes[job.domain].magrathea != "preempted"


def _guests(watch: Watch) -> GuestCluster:
    from ..clusters.guests import GuestCluster

    assert isinstance(watch.cluster, GuestCluster)
    return watch.cluster


def _submit(watch: Watch, queue: str, name: str, steps: int, memory_mib: int) -> Watched:
    from ..clusters.guests import held_mib

    select = f"1:ncpus=1:mem={memory_mib}mb" if memory_mib else "1:ncpus=1"
    return watch.submit(queue, name, steps, 1, select, held_mib(memory_mib))


def _memory(mib: int) -> str:
    """A bar and a figure."""
    return f"{'█' * round(mib / BAR_STEP_MIB):<8s} {mib:3d}"


def _progress(job: Watched) -> str:
    return f"{job.name} {job.counter}/{job.steps}{' stopped' if job.stopped else ''}"


def _cap(percent: int | None) -> str:
    return "no cap" if percent is None else f"{percent} %"
