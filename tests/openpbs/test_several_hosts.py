"""Jobs on several hosts are preempted and resumed as a whole, and refused as a whole."""

from __future__ import annotations

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    finish,
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_domain,
    wait_right_end,
    wait_running,
    wait_state,
    wait_stoppable,
)

from .conftest import EAGER
from .jobs import LONG, end

ON_BOTH = "1:ncpus=1:host=n1+1:ncpus=1:host=n4"
PRIORITY_ON_BOTH = "1:ncpus=1:host=p1+1:ncpus=1:host=p4"


@pytest.mark.parametrize("place", ["p1", "p4"])
def test_a_victim_on_two_hosts_goes_as_a_whole_for_a_job_on_one(fleet: OpenPbsCluster, place: str) -> None:
    """Its script computes on its first host, n1. In n4 it never has a process, and yet it can be preempted there for
    p4."""
    with fleet.only(EXCLUSIVE, EAGER):
        low = fleet.submit("low", LONG, select=ON_BOTH)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1", "n4")
        high = fleet.submit("high", LONG, select=f"1:ncpus=1:host={place}")
        wait_running(fleet, high)
        wait_state(fleet, low, "S")
        for domain in ("n1", "n4"):
            wait_domain(fleet, domain, "preempted")
        step = stands_still(fleet, low)
        end(fleet, high)
        goes_on(fleet, low, step)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        wait_all_free(fleet, EAGER)


def test_a_priority_job_on_two_hosts_that_one_refuses_leaves_nobody_stopped_on_the_other(
    fleet: OpenPbsCluster,
) -> None:
    """p1 grants the job, and n1 is stopped. p4 has just lost its agent and refuses it. It tries again by itself,
    later."""
    with fleet.only(EXCLUSIVE, EAGER):
        low = fleet.submit("low", LONG, select="1:ncpus=1:host=n1")
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        fleet.parts["agent-p4"].kill()
        high = fleet.submit("high", LONG, select=PRIORITY_ON_BOTH)
        refusals = fleet.parts["noded-h1"].log
        wait(fleet, "n1 was preempted for it", lambda: "preempting n1" in refusals.read_text())
        wait_state(fleet, high, "QW")
        wait_domain(fleet, "n1", "running-preemptible")
        step = fleet.counter(low)
        goes_on(fleet, low, step)
        wait_state(fleet, low, "R")
        assert fleet.counter(high) == 0
        fleet.start_part("agent-p4")
        wait_state(fleet, high, "R", 90)
        wait_state(fleet, low, "S")
        finish(fleet, high)
        goes_on(fleet, low, stands_still(fleet, low) if fleet.jobs()[low].state == "S" else fleet.counter(low))
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        wait_all_free(fleet, EAGER)


def test_a_priority_job_on_two_hosts_preempts_on_both(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE, EAGER):
        lows = [fleet.submit("low", 100, select=f"1:ncpus=1:host={domain}") for domain in ("n1", "n4")]
        wait_running(fleet, *lows)
        wait_stoppable(fleet, "n1", "n4")
        high = fleet.submit("high", LONG, select=PRIORITY_ON_BOTH)
        wait_running(fleet, high)
        for low in lows:
            wait_state(fleet, low, "S")
        steps = [stands_still(fleet, low) for low in lows]
        end(fleet, high)
        for low, step in zip(lows, steps, strict=True):
            goes_on(fleet, low, step)
            wait_right_end(fleet, low, 100)
        wait_all_free(fleet, EXCLUSIVE)
        wait_all_free(fleet, EAGER)


def test_a_victim_and_a_priority_job_on_the_same_two_hosts(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE, EAGER):
        low = fleet.submit("low", LONG, select=ON_BOTH)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1", "n4")
        high = fleet.submit("high", LONG, select=PRIORITY_ON_BOTH)
        wait_state(fleet, low, "S")
        step = fleet.counter(low)
        finish(fleet, high)
        goes_on(fleet, low, step)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        wait_all_free(fleet, EAGER)


def test_a_victim_on_two_hosts_is_continued_when_the_last_of_two_priority_jobs_has_ended(
    fleet: OpenPbsCluster,
) -> None:
    with fleet.only(EXCLUSIVE, EAGER):
        low = fleet.submit("low", LONG, select=ON_BOTH)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1", "n4")
        highs = [fleet.submit("high", LONG, select=f"1:ncpus=1:host={place}") for place in ("p1", "p4")]
        wait_running(fleet, *highs)
        wait_state(fleet, low, "S")
        end(fleet, highs[0])
        wait_state(fleet, highs[0], "F")
        wait_domain(fleet, "p1", "free", "occupied")
        step = stands_still(fleet, low)
        assert fleet.jobs()[low].state == "S"
        end(fleet, highs[1])
        goes_on(fleet, low, step)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        wait_all_free(fleet, EAGER)
