"""What Magrathea costs and gains on a real OpenPBS, beside OpenPBS alone, on the same machine at the same time.

Two private clusters run side by side, one with Magrathea and one without. Their rounds alternate, so other load of the
machine hits both. Times are taken inside: by the shell right before it becomes `qsub`, and by the first and the last
line of the job's script. The preempted job has its own clock, which ticks every 2 ms.

The rival of a preemption is OpenPBS's own: an express queue whose jobs suspend others in the same operating system.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from magrathea_lab.clusters import openpbs_needs
from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from magrathea_lab.fleet import DomainSpec, HostSpec

from .figure import Figure, at_most, missing, run

HOST = HostSpec("h1", "exclusive", 2, (DomainSpec("n1", "normal", 2), DomainSpec("p1", "priority", 2)))
ROUNDS, QUICK_ROUNDS = 30, 5
PREEMPTIONS, QUICK_PREEMPTIONS = 15, 3
HIGH_S = 1.0
"""How long a priority job lasts."""
SETTLE_S = 0.3
"""Pause between two rounds, in which PBS writes its books and copies output."""
PATIENCE_S = 60.0

TICK = """
import sys, time
with open(sys.argv[1], "w") as file:
    while True:
        file.write("%.6f\\n" % time.time())
        file.flush()
        time.sleep(0.002)
"""

NAMES = {
    "start": ("qsub to first line, idle domain: with Magrathea / without", 1.3),
    "preempt": ("qsub -q high to first line, preempting a sibling / OpenPBS's own suspension", 1.0),
    "resume": ("end of the priority job to the preempted one computing / OpenPBS's own", 0.15),
}


class Side:
    """One of the two clusters, with the options that send jobs to its queues."""

    def __init__(
        self, name: str, pbs: PrivateOpenPbs, low: list[str], high: list[str], fleet: OpenPbsCluster | None
    ) -> None:
        self.name, self.pbs, self.low, self.high, self.fleet = name, pbs, low, high, fleet
        self.home = pbs.base / "home" / USER
        (self.home / "tick.py").write_text(TICK)

    def submit(self, options: list[str], script: str) -> tuple[str, float]:
        """Submit a job. Returns its id and the time at which `qsub` began."""
        path = self.home / "script"
        path.write_text(f"#!/bin/bash\n{script}\n")
        command = 'echo $EPOCHREALTIME; exec qsub -S /bin/bash -o /dev/null -e /dev/null "$@"'
        said = self.pbs.run(HEAD, ["bash", "-c", command, "-", *options, str(path)], user=USER).stdout.split()
        return said[1], float(said[0])

    def time_in(self, path: Path, what: str) -> float:
        """Wait for the time that a job writes into a file."""
        until = time.monotonic() + PATIENCE_S
        while not path.exists() or not (text := path.read_text()).endswith("\n"):
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name}: {what}: not within {PATIENCE_S:g} s\n{self.pbs.picture()}")
            time.sleep(0.01)
        return float(text)

    def start_s(self, number: int) -> float:
        """Seconds from `qsub` to the first line of a script on an idle vnode."""
        file = self.home / f"start.{number}"
        where = ["-q", self.low[1], "-l", "select=1:ncpus=1:host=n1"]  # the same request on both sides
        job, begun = self.submit(["-N", "start", *where], f"echo $EPOCHREALTIME > {file}")
        taken = self.time_in(file, "a job's first line") - begun
        self.pbs.wait_job(job, "F")
        time.sleep(SETTLE_S)
        return taken

    def preemption_s(self, number: int) -> tuple[float, float]:
        """Seconds from `qsub` to the priority job's first line, and from its last to the preempted job's next tick."""
        ticks, first, last = (self.home / f"{what}.{number}" for what in ("ticks", "first", "last"))
        low, _ = self.submit(["-N", "low", *self.low], f"exec python3 -S {self.home}/tick.py {ticks}")
        self.pbs.wait(lambda: ticks.exists() and ticks.stat().st_size > 0, "the low job computes")
        self.wait_preemptible(low)
        lines = f"echo $EPOCHREALTIME > {first}\nsleep {HIGH_S}\necho $EPOCHREALTIME > {last}"
        high, begun = self.submit(["-N", "high", *self.high], lines)
        started = self.time_in(first, "the priority job's first line")
        ended = self.time_in(last, "the priority job's last line")
        self.pbs.wait(lambda: last_tick(ticks) > ended, "the preempted job goes on", PATIENCE_S)
        times = [float(line) for line in ticks.read_text().split()[:-1]]
        if any(started + 0.2 < tick < ended for tick in times):
            raise RuntimeError(f"{self.name}: the low job was not stopped while the priority job ran")
        resumed = next(tick for tick in times if tick > ended)
        self.pbs.run(HEAD, ["qdel", low], user=USER)
        for job in (low, high):
            self.pbs.wait_job(job, "F")
        if self.fleet is not None:
            self.fleet.wait_free()
        time.sleep(SETTLE_S)
        return started - begun, resumed - ended

    def wait_preemptible(self, low: str) -> None:
        self.pbs.wait_job(low, "R")
        if self.fleet is not None:
            vnodes = self.fleet.vnodes
            self.pbs.wait(lambda: vnodes()["p1"].magrathea == "occupied-would-preempt", "p1 would preempt")
        else:
            time.sleep(1.5)  # so that the jobs of both sides are equally old


def last_tick(path: Path) -> float:
    lines = path.read_text().split()
    return float(lines[-2]) if len(lines) > 1 else 0.0


def prepare_rival(pbs: PrivateOpenPbs) -> None:
    """Set up OpenPBS's own preemption by its guide: an express queue, suspension only, one full vnode."""
    pbs.qmgr(
        "create queue express queue_type=Execution\nset queue express enabled=True\nset queue express started=True\n"
        "set queue express Priority=200\nset sched preempt_order=S"
    )


def compare(kind: str, ours: list[float], theirs: list[float]) -> list[Figure]:
    name, limit = NAMES[kind]
    mine, rival = statistics.median(ours), statistics.median(theirs)
    note = f"medians of {len(ours)} and {len(theirs)} interleaved rounds"
    return [
        at_most(name, mine / rival, "ratio", limit, note),
        Figure(f"  {kind}: with Magrathea", mine * 1000, "ms"),
        Figure(f"  {kind}: OpenPBS alone", rival * 1000, "ms"),
    ]


def alternate(sides: tuple[Side, Side], rounds: int, one: Callable[[Side, int], None]) -> None:
    """Run each round on both sides; the first side alternates."""
    for number in range(rounds):
        for side in sides if number % 2 else sides[::-1]:
            one(side, number)


def figures(quick: bool) -> list[Figure]:
    if why := openpbs_needs.missing():
        return [missing(name, "ratio", f"<= {limit:g}", why) for name, limit in NAMES.values()]
    with OpenPbsCluster([HOST], on_disk=True) as fleet, PrivateOpenPbs(["n1", "p1"], ncpus=2, on_disk=True) as plain:
        prepare_rival(plain)
        ours = Side("Magrathea", fleet.pbs, ["-q", "low"], ["-q", "high"], fleet)
        place = ["-l", "select=1:ncpus=2:host=n1"]
        theirs = Side("OpenPBS alone", plain, ["-q", "workq", *place], ["-q", "express", *place], None)
        sides = (ours, theirs)
        numbers = itertools.count()
        starts: dict[str, list[float]] = {side.name: [] for side in sides}
        preempts: dict[str, list[float]] = {side.name: [] for side in sides}
        resumes: dict[str, list[float]] = {side.name: [] for side in sides}

        def start(side: Side, _: int) -> None:
            starts[side.name].append(side.start_s(next(numbers)))

        def preemption(side: Side, number: int) -> None:
            taken, back = side.preemption_s(number)
            preempts[side.name].append(taken)
            resumes[side.name].append(back)

        alternate(sides, 2, start)  # to warm caches
        starts = {side.name: [] for side in sides}
        alternate(sides, QUICK_ROUNDS if quick else ROUNDS, start)
        alternate(sides, QUICK_PREEMPTIONS if quick else PREEMPTIONS, preemption)
        measured = (("start", starts), ("preempt", preempts), ("resume", resumes))
        return [f for kind, times in measured for f in compare(kind, times[ours.name], times[theirs.name])]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
