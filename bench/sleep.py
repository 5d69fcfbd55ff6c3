"""A job that sleeps in its guest's image, on a real OpenPBS with real guests, beside the same by hand.

By hand, without Magrathea: `qsig -s admin-suspend`, `virsh managedsave`, `virsh start`, wait until PBS has the vnode
again, `qsig -s admin-resume`. Timed is how long PBS shows the vnode as down after the restore, without the restore's
own time. Walltime is compared with what the job has counted by itself; the difference of a job that did not sleep is
subtracted, because PBS also counts the time that a job needs to start and to end. PBS counts whole seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magrathea_lab.clusters import openpbs_needs
from magrathea_lab.guests import needs
from magrathea_lab.waiting import until

from .figure import Figure, at_most, missing, progress, run

if TYPE_CHECKING:
    from magrathea_lab.clusters.guest_openpbs import Fleet

ROUNDS, QUICK_ROUNDS = 3, 1
AWAY_S, QUICK_AWAY_S = 60.0, 15.0
"""PBS misses a MoM after 9 s here."""
USABLE_S, LOST_S = 10.0, 1.0
MOST_OVERHEAD_S = 3.0
"""If PBS counts more than this for the start and end of a job, the machine is too busy to compare walltimes."""
COMPUTES_S = 5.0
"""How long the job computes before it sleeps, and after."""
PATIENCE_S = 300.0
DOMAIN = "n1"
STOP = "/tmp/stop"
"""When this file exists in the guest, the job tells how long it has computed, and ends."""

COUNT = f"""exec python3 -S -E -c '
import os, time
print("begun", flush=True)
counted, last = 0.0, time.monotonic()
while not os.path.exists("{STOP}"):
    time.sleep(0.05)
    now = time.monotonic()
    counted += now - last if now - last < 1.0 else 0.05
    last = now
print("counted", counted)
'"""
"""A pause of a second or more is a stop. The guest's own clock stands still while the guest sleeps."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """One sleep. `down_s`: after the restore, until PBS did not show the vnode as down. `runs_s`: until the job ran
    again. `uncounted_s`: walltime that the job did not count by itself."""

    down_s: float
    runs_s: float
    uncounted_s: float


def submit(fleet: Fleet, queue: str) -> str:
    """Start the job in the guest; return its id once it has computed for a while."""
    fleet.guest(DOMAIN).sh(f"rm -f {STOP}")
    job = fleet.qsub(queue, COUNT, "-l", f"select=1:ncpus=1:host={DOMAIN}", "-l", "walltime=3600")
    until(lambda: "begun" in fleet.printed(DOMAIN, job), "the job runs", PATIENCE_S)
    time.sleep(COMPUTES_S)
    return job


def uncounted_s(fleet: Fleet, job: str) -> float:
    """End the job after it has computed for a while."""
    from magrathea.pbs_text.amounts import duration_s

    time.sleep(COMPUTES_S)
    fleet.guest(DOMAIN).sh(f"touch {STOP}")
    until(lambda: fleet.jobs()[job].state == "F", "the job has ended", PATIENCE_S)
    attributes = fleet.pbs.job(job)
    begun, counted_s = fleet.printed(DOMAIN, job).split("counted")
    if begun.count("begun") != 1 or attributes["Exit_status"] != 0:
        raise RuntimeError(f"the job was not simply continued: {attributes}")
    return duration_s(attributes["resources_used"]["walltime"]) - float(counted_s)


def slept(
    fleet: Fleet,
    job: str,
    away_s: float,
    sleep: Callable[[], None],
    wake: Callable[[], None],
    resume: Callable[[], None],
) -> Sleep:
    """`wake`: restore the guest from its image. `resume`: let the job run on, once PBS has the vnode again."""
    import libvirt

    def is_down() -> bool:
        return "down" in fleet.vnodes()[DOMAIN].state

    guest = fleet.guest(DOMAIN)
    sleep()
    until(lambda: not guest.up, f"{DOMAIN} is saved", PATIENCE_S)
    saved_at = time.monotonic()
    until(is_down, "PBS misses it", PATIENCE_S)
    time.sleep(max(0.0, saved_at + away_s - time.monotonic()))
    wake()
    until(lambda: guest.up and guest.domain.info()[0] == libvirt.VIR_DOMAIN_RUNNING, "it is restored", PATIENCE_S)
    restored_at = time.monotonic()
    until(lambda: not is_down(), "PBS has it again", PATIENCE_S)
    down_s = time.monotonic() - restored_at
    resume()
    until(lambda: fleet.jobs()[job].state == "R", "the job runs again", PATIENCE_S)
    runs_s = time.monotonic() - restored_at
    return Sleep(down_s, runs_s, uncounted_s(fleet, job))


def by_hand(fleet: Fleet, away_s: float) -> Sleep:
    from magrathea_lab.clusters.private_openpbs import HEAD

    job = submit(fleet, "workq")

    def signal(name: str) -> None:
        fleet.pbs.run(HEAD, ["qsig", "-s", name, job], timeout=PATIENCE_S)

    def sleep() -> None:
        signal("admin-suspend")
        fleet.guest(DOMAIN).domain.managedSave()

    return slept(fleet, job, away_s, sleep, fleet.guest(DOMAIN).boot, lambda: signal("admin-resume"))


def ours(fleet: Fleet, away_s: float) -> Sleep:
    job = submit(fleet, "low")

    def ask(**message: object) -> None:
        if not (answer := fleet.ask("h1", op="domain", domain=DOMAIN, **message))["ok"]:
            raise RuntimeError(f"refused: {answer}")

    def sleep() -> None:
        ask(do="freeze", with_jobs=True, reason="a measurement")

    return slept(fleet, job, away_s, sleep, lambda: ask(do="defrost"), lambda: None)


def figures(quick: bool) -> list[Figure]:
    if (why_not := needs.missing() or openpbs_needs.missing()) is not None:
        return [missing("sleep of a domain with its job", "", "", why_not)]
    from magrathea_lab.clusters.guest_openpbs import Fleet

    rounds, away_s = (QUICK_ROUNDS, QUICK_AWAY_S) if quick else (ROUNDS, AWAY_S)
    fleet = Fleet()
    try:
        fleet.pbs.start()
        progress("by hand")
        awake = [uncounted_s(fleet, submit(fleet, "workq")) for _ in range(rounds)]
        hand = by_hand(fleet, away_s)
        fleet.start_magrathea()
        progress("with Magrathea")
        with_us = [ours(fleet, away_s) for _ in range(rounds)]
    finally:
        fleet.close()
    overhead_s = statistics.mean(awake)
    lost_s = statistics.mean(one.uncounted_s for one in with_us) - overhead_s
    note = f"{rounds} sleep{'' if rounds == 1 else 's'} of {away_s:g} s"
    whole = f"{note}; PBS counts whole seconds"
    return [
        at_most("sleep: vnode down after the restore", round(max(s.down_s for s in with_us), 1), "s", USABLE_S, note),
        Figure("  by hand", round(hand.down_s, 1), "s", note="MoM notices by itself that its connection is dead"),
        Figure("  until the job runs again", round(max(s.runs_s for s in with_us), 1), "s"),
        Figure("  until the job runs again, by hand", round(hand.runs_s, 1), "s"),
        _lost("sleep: walltime lost", lost_s, overhead_s, whole),
        Figure("  by hand", round(hand.uncounted_s - overhead_s, 1), "s"),
        Figure("  start and end of a job that did not sleep", round(overhead_s, 1), "s", note="subtracted"),
    ]


def _lost(name: str, lost_s: float, overhead_s: float, note: str) -> Figure:
    if overhead_s > MOST_OVERHEAD_S:
        return missing(name, "s", f"<= {LOST_S:g}", "the machine is too busy: starts and ends take too long")
    return at_most(name, round(lost_s, 1), "s", LOST_S, note)


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
