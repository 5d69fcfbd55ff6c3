"""What the end of a job costs on a real OpenPBS with Magrathea, beside OpenPBS alone, at the same time.

Two private clusters run side by side, as in `bench.openpbs`, and their rounds alternate. A job's script writes the time
of its last line. A loop of `qstat` on the server's machine notes when PBS shows the job as F. For the rate, jobs that
each fill the vnode wait in line; the rate is that of their first lines.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time

from magrathea_lab.clusters import openpbs_needs
from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs

from .figure import Figure, at_most, missing, run
from .openpbs import HOST, SETTLE_S, Side, alternate

ROUNDS, QUICK_ROUNDS = 20, 5
LINES, QUICK_LINES = 3, 1
IN_LINE = 12
"""Jobs of one line."""
RAN_S = 0.5
"""How long a job runs that is timed, so that agent and PBS have seen it."""
END = ("end of a job's script to its state F: with Magrathea / without", 1.05)
RATE = "jobs a second on one vnode, one after the other: with Magrathea / without"
WATCH = 'until qstat -x -f "$1" | grep -q "job_state = F"; do :; done; echo $EPOCHREALTIME'


def where(side: Side) -> list[str]:
    return ["-q", side.low[1], "-l", "select=1:ncpus=2:host=n1"]


def end_s(side: Side, number: int) -> float:
    """Seconds from the last line of a script to the job's state F."""
    last = side.home / f"end.{number}"
    job, _ = side.submit(["-N", "end", *where(side)], f"sleep {RAN_S}; echo $EPOCHREALTIME > {last}")
    shown = side.pbs.run(HEAD, ["bash", "-c", WATCH, "-", job], user=USER).stdout
    time.sleep(SETTLE_S)
    return float(shown) - side.time_in(last, "a job's last line")


def jobs_a_second(side: Side, number: int) -> float:
    """The rate at which jobs start that wait for each other."""
    files = [side.home / f"line.{number}.{place}" for place in range(IN_LINE)]
    jobs = [side.submit(["-N", "line", *where(side)], f"echo $EPOCHREALTIME > {file}")[0] for file in files]
    begun = sorted(side.time_in(file, "a job of the line") for file in files)
    for job in jobs:
        side.pbs.wait_job(job, "F")
    return (len(begun) - 1) / (begun[-1] - begun[0])


def figures(quick: bool) -> list[Figure]:
    if why := openpbs_needs.missing():
        return [missing(END[0], "ratio", f"<= {END[1]:g}", why), missing(RATE, "ratio", "", why)]
    with OpenPbsCluster([HOST], on_disk=True) as fleet, PrivateOpenPbs(["n1", "p1"], ncpus=2, on_disk=True) as plain:
        ours = Side("Magrathea", fleet.pbs, ["-q", "low"], [], fleet)
        theirs = Side("OpenPBS alone", plain, ["-q", "workq"], [], None)
        numbers = itertools.count()
        ends: dict[str, list[float]] = {ours.name: [], theirs.name: []}
        rates: dict[str, list[float]] = {ours.name: [], theirs.name: []}

        def end(side: Side, _: int) -> None:
            ends[side.name].append(end_s(side, next(numbers)))

        def line(side: Side, _: int) -> None:
            rates[side.name].append(jobs_a_second(side, next(numbers)))

        alternate((ours, theirs), 1, end)  # to warm caches
        ends = {side.name: [] for side in (ours, theirs)}
        alternate((ours, theirs), QUICK_ROUNDS if quick else ROUNDS, end)
        alternate((ours, theirs), QUICK_LINES if quick else LINES, line)
    mine, rival = (statistics.median(ends[side.name]) for side in (ours, theirs))
    my_rate, rival_rate = (statistics.median(rates[side.name]) for side in (ours, theirs))
    note = f"medians of {len(ends[ours.name])} interleaved rounds each"
    lines = f"medians of {len(rates[ours.name])} lines of {IN_LINE} jobs each"
    return [
        at_most(END[0], mine / rival, "ratio", END[1], note),
        Figure("  end: with Magrathea", mine * 1000, "ms"),
        Figure("  end: OpenPBS alone", rival * 1000, "ms"),
        Figure(RATE, my_rate / rival_rate, "ratio", note=lines),
        Figure("  rate: with Magrathea", my_rate, "jobs/s"),
        Figure("  rate: OpenPBS alone", rival_rate, "jobs/s"),
    ]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
