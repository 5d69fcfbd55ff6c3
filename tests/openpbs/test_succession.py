"""Several preemptions of one domain in quick succession: each is booked at once, and walltime stands still in each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from magrathea_lab.clusters.openpbs import VNODES_HOOK_S, OpenPbsCluster
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    goes_on,
    require,
    stands_still,
    wait,
    wait_all_free,
    wait_right_end,
    wait_running,
    wait_state,
    wait_stoppable,
)
from scheduler_plugin.setup.install import VNODES_HOOK_SLOWEST_S

from .jobs import LONG
from .test_preemption import walltime_s

TIMES = 4
BETWEEN_S = 5.0
BOOKED_S = 5.0
"""Bound from the stop until PBS shows S on a busy machine; normally 0.2 s. Anything that waits for the hook below takes
30."""
STEPS, LIMIT_S = 400, 34
"""20 s of work, a second or two around it, and the time before each booking; much less than with the stops."""


@contextmanager
def slowest_hook(fleet: OpenPbsCluster) -> Iterator[None]:
    """The vnodes hook runs as seldom as on the largest farms."""

    def every(seconds: int) -> None:
        settings = ("enabled=false", f"freq={seconds}", "enabled=true")
        fleet.pbs.qmgr("\n".join(f"set hook magrathea_vnodes {setting}" for setting in settings))

    every(VNODES_HOOK_SLOWEST_S)
    try:
        yield
    finally:
        every(VNODES_HOOK_S)


def test_preemptions_in_close_succession_are_all_booked_at_once(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE), slowest_hook(fleet):
        submitted = time.monotonic()
        low = fleet.submit("low", STEPS, walltime_s=LIMIT_S)
        wait_running(fleet, low)
        away_s, late_s = 0.0, []
        for _ in range(TIMES):
            wait_stoppable(fleet, "n1")
            high = fleet.submit("high", LONG)
            wait(fleet, "the stop", lambda high=high: f"{high} (run 1) accepted" in fleet.log("noded-h1"))  # type: ignore[misc]
            stopped = time.monotonic()
            wait_state(fleet, low, "S")
            booked = time.monotonic()
            late_s.append(booked - stopped)
            wait_running(fleet, high)
            step = stands_still(fleet, low)
            time.sleep(max(0.0, booked + BETWEEN_S - time.monotonic()))
            fleet.delete(high)
            goes_on(fleet, low, step)
            wait_state(fleet, low, "R")
            away_s += time.monotonic() - booked
            time.sleep(BETWEEN_S)
        require(fleet, max(late_s) < BOOKED_S, f"S after {late_s} s")
        wait_right_end(fleet, low, STEPS)
        lived_s, used_s = time.monotonic() - submitted, walltime_s(fleet, low)
        require(fleet, away_s > TIMES * BETWEEN_S, f"it was away for {away_s:.0f} s")
        require(fleet, used_s <= lived_s - away_s + 3, f"walltime {used_s} s of {lived_s:.0f}, {away_s:.0f} of them S")
        wait_all_free(fleet, EXCLUSIVE)
