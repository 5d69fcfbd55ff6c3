"""Magrathea's main job on a real OpenPBS, as users and admins see it."""

from __future__ import annotations

import time

import pytest

from magrathea.pbs_text.amounts import duration_s
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import COUNTED, EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LIMIT_S,
    LONG,
    STILL_S,
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


def walltime_s(fleet: OpenPbsCluster, job: str) -> int:
    return duration_s(fleet.pbs.job(job)["resources_used"]["walltime"])


def test_a_job_that_was_preempted_for_longer_than_its_walltime_finishes(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG, walltime_s=LIMIT_S)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        high = fleet.submit("high", LONG)
        wait_state(fleet, low, "S")
        until = time.monotonic() + LIMIT_S + 5
        step = stands_still(fleet, low)
        time.sleep(max(0.0, until - time.monotonic()))
        assert fleet.counter(low) == step
        fleet.delete(high)
        finish(fleet, low)
        assert walltime_s(fleet, low) <= LIMIT_S
        wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.first
def test_the_full_cycle_as_qstat_and_pbsnodes_show_it(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        wait_domain(fleet, "p1", "occupied-would-preempt")
        high = fleet.submit("high", LONG)
        wait_running(fleet, high)
        assert wait_state(fleet, low, "S").substate == 43
        wait_domain(fleet, "n1", "preempted")
        wait(fleet, "n1 takes nothing", lambda: "maintenance" in fleet.vnodes()["n1"].state)
        wait(fleet, "n1 accepts nothing", lambda: fleet.vnodes()["n1"].accepts == ("none",))
        superior = fleet.jobs()[high].vnodes[0]
        wait_domain(fleet, superior, "running-priority")
        step = stands_still(fleet, low)
        fleet.delete(high)
        goes_on(fleet, low, step)
        wait_state(fleet, low, "R")
        wait_domain(fleet, "n1", "running-preemptible")
        wait(fleet, "n1 is no longer in maintenance", lambda: fleet.vnodes()["n1"].state == {"free"})
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


def two_at_once(fleet: OpenPbsCluster, first: str, second: str, steps: int) -> tuple[str, str]:
    """Two priority jobs, one for each domain, that the scheduler finds in the same cycle."""
    with fleet.pbs.stopped_scheduling():
        highs = [fleet.submit("high", steps, select=f"1:ncpus=1:host={domain}") for domain in (first, second)]
    return highs[0], highs[1]


def test_two_priority_jobs_at_the_same_moment_in_the_same_domain(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        highs = two_at_once(fleet, "p1", "p1", LONG)
        wait_running(fleet, *highs)
        wait_state(fleet, low, "S")
        stands_still(fleet, low)
        for high in highs:
            fleet.delete(high)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


def test_two_priority_jobs_at_the_same_moment_in_two_domains(fleet: OpenPbsCluster) -> None:
    """One of them waits for the other: on an exclusive host one domain runs at a time."""
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        highs = two_at_once(fleet, "p1", "p2", LONG)

        def running() -> list[str]:
            return [high for high in highs if fleet.jobs()[high].state == "R"]

        wait_state(fleet, low, "S")
        (first,) = wait(fleet, "one of them runs", running)
        time.sleep(STILL_S)
        assert running() == [first]
        finish(fleet, first)
        for high in highs:
            finish(fleet, high)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_job_preempted_in_the_second_it_starts(fleet: OpenPbsCluster) -> None:
    """PBS refuses to suspend a job that is just starting. The hub repeats it until the job is S, and nothing is
    lost."""
    with fleet.only(EAGER):
        low = fleet.submit("low", LONG)
        wait(fleet, f"{low} is with its MoM", lambda: fleet.jobs()[low].state == "R")
        high = fleet.submit("high", LONG)
        wait_running(fleet, high)
        wait_state(fleet, low, "S")
        stands_still(fleet, low)
        fleet.delete(high)
        finish(fleet, low)
        wait_all_free(fleet, EAGER)


def test_low_and_high_in_the_same_cycle_both_finish(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER):
        with fleet.pbs.stopped_scheduling():
            jobs = [fleet.submit("low", 40), fleet.submit("high", 20), fleet.submit("low", 40)]
        for job, steps in zip(jobs, (40, 20, 40), strict=True):
            wait_state(fleet, job, "F")
            wait_right_end(fleet, job, steps)
        wait_all_free(fleet, EAGER)


def test_a_job_on_two_hosts_is_stopped_on_both_and_continues(fleet: OpenPbsCluster) -> None:
    """h1 wants the job stopped; h3, where its other half runs, does not. PBS suspends it as a whole."""
    command = (
        f"pbsdsh -- /bin/sh -c 'exec python3 -S {fleet.directory}/work.py 120 0.05 $HOME/'$PBS_JOBID'.$PBS_NODENUM'"
    )
    with fleet.only(EXCLUSIVE, EAGER):
        low = fleet.pbs.qsub("alice", "-q", "low", "-l", "select=1:ncpus=1:host=n1+1:ncpus=1:host=n4", script=command)

        def halves() -> list[int]:
            files = [fleet.directory / "home/alice" / f"{low}.{number}" for number in (0, 1)]
            return [int(file.read_text() or 0) if file.exists() else 0 for file in files]

        wait(fleet, "both halves compute", lambda: min(halves()) > 0)
        wait_stoppable(fleet, "n1", "n4")
        high = fleet.submit("high", LONG, select="1:ncpus=1:host=p1")
        wait_running(fleet, high)
        wait_state(fleet, low, "S")
        before = halves()
        time.sleep(1)
        assert halves() == before
        fleet.delete(high)
        wait(fleet, "both halves go on", lambda: all(now > then for now, then in zip(halves(), before, strict=True)))
        view = wait_state(fleet, low, "F")
        assert (view.exit_status, view.run_version, halves()) == (0, 1, [120, 120])
        wait_all_free(fleet, EXCLUSIVE)
        wait_all_free(fleet, EAGER)


def assigned_cpus(fleet: OpenPbsCluster, vnode: str) -> int:
    """The server's own sum, on which the runjob hook relies."""
    return int(fleet.pbs.vnode(vnode).get("resources_assigned", {}).get("ncpus", 0))


def test_counted_a_priority_job_that_fits_stops_nobody_and_one_that_does_not_stops_one(fleet: OpenPbsCluster) -> None:
    with fleet.only(COUNTED):
        low = fleet.submit("low", LONG, cpus=2)
        wait_running(fleet, low)
        wait_stoppable(fleet, fleet.jobs()[low].vnodes[0])
        [where] = fleet.jobs()[low].vnodes
        assert assigned_cpus(fleet, where) == 2
        first = fleet.submit("high", LONG, cpus=2)
        wait_running(fleet, first)
        assert fleet.jobs()[low].state == "R"
        second = fleet.submit("high", LONG, cpus=1)
        wait_running(fleet, second)
        wait_state(fleet, low, "S")
        assert assigned_cpus(fleet, where) == 0, "a suspended job is in no vnode's list and in no sum"
        step = stands_still(fleet, low)
        fleet.delete(second)
        goes_on(fleet, low, step)
        for job in (first, low):
            fleet.delete(job)
        wait_all_free(fleet, COUNTED)
