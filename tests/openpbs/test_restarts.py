"""PBS's own daemons are killed and restarted during and after a preemption, while the hub works, is away, or comes
back."""

from __future__ import annotations

import json

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LONG,
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_right_end,
    wait_running,
    wait_state,
)
from magrathea_lab.waiting import BOUND_S

from .test_trouble import STEPS, preempted

LOOK_S = BOUND_S


def restart(fleet: OpenPbsCluster, daemon: str) -> None:
    """Kill one of the daemons of the server's machine and start it again; all MoMs are connected afterwards."""
    fleet.pbs.kill_daemon(daemon)
    fleet.pbs.start_server()
    wait(fleet, "all MoMs are back", lambda: not any("down" in v.state for v in fleet.vnodes().values()))


def emptied(fleet: OpenPbsCluster, vnode: str) -> int:
    """How often the server was made to forget the jobs of a vnode."""
    logs = (fleet.pbs.pbs_home(HEAD) / "server_logs").iterdir()
    return sum(log.read_text().count(f";{vnode};attributes set: maintenance_jobs = \n") for log in logs)


def is_clean(fleet: OpenPbsCluster) -> bool:
    """True if PBS's server has nothing left that it must be made to forget."""
    asked = fleet.pbs.pbs_home(HEAD) / "magrathea.heartbeat.forget"
    return asked.exists() and json.loads(asked.read_text()) == {}


def compared(fleet: OpenPbsCluster) -> None:
    """Wait until the hub has compared everything with PBS: until it has corrected a mistake made now."""
    fleet.pbs.qmgr("set node n1 resources_available.magrathea=mistake")
    wait(fleet, "the hub has compared", lambda: fleet.vnodes()["n1"].magrathea != "mistake")


def test_after_a_restart_of_the_server_a_vnode_preempted_before_is_usable(fleet: OpenPbsCluster) -> None:
    """PBS's history still has the job; without the hook the server's database would keep the job's name."""
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        wait(fleet, "what was before is forgotten", lambda: is_clean(fleet), LOOK_S)
        before = emptied(fleet, "n1")
        fleet.delete(high)
        wait_right_end(fleet, low, STEPS)
        wait(fleet, "the server has forgotten it", lambda: emptied(fleet, "n1") > before, LOOK_S)
        restart(fleet, "server")
        assert fleet.jobs()[low].state == "F"
        assert "maintenance" not in fleet.vnodes()["n1"].state
        again = fleet.submit("low", 10)
        wait_right_end(fleet, again, 10)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_vnode_that_comes_up_in_maintenance_for_a_job_that_runs_is_fixed(fleet: OpenPbsCluster) -> None:
    """The server dies before it was made to forget: the job is suspended and resumed within a moment."""
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        fleet.pbs.qmgr("set hook magrathea_vnodes enabled=false")
        long = fleet.submit("low", LONG)
        fleet.delete(high)
        wait_state(fleet, low, "R")
        wait_running(fleet, long)
        restart(fleet, "server")
        assert "maintenance" in fleet.vnodes()["n1"].state, "this is what is to be fixed"
        fleet.pbs.qmgr("set hook magrathea_vnodes enabled=true")
        wait(fleet, "n1 is usable", lambda: "maintenance" not in fleet.vnodes()["n1"].state, LOOK_S)
        wait_state(fleet, long, "R")
        goes_on(fleet, long, fleet.counter(long))
        wait_right_end(fleet, low, STEPS)
        fleet.delete(long)
        wait_all_free(fleet, EXCLUSIVE)


def test_an_admins_maintenance_and_offline_survive_restarts_and_all_repairs(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        compared(fleet)  # and the hub has handled what the previous test left
        wait(fleet, "what was before is forgotten", lambda: is_clean(fleet), LOOK_S)
        job = fleet.submit("normal", LONG)
        wait_running(fleet, job)
        fleet.pbs.run(HEAD, ["qsig", "-s", "admin-suspend", job])
        fleet.pbs.run(HEAD, ["pbsnodes", "-o", "p1"])
        restart(fleet, "server")
        wait(fleet, "the hub has looked since", lambda: is_clean(fleet), LOOK_S)
        step = stands_still(fleet, job)
        assert "maintenance" in fleet.vnodes()["n1"].state
        assert "offline" in fleet.vnodes()["p1"].state
        assert fleet.jobs()[job].state == "S"
        fleet.pbs.run(HEAD, ["pbsnodes", "-r", "p1"])
        fleet.pbs.run(HEAD, ["qsig", "-s", "admin-resume", job])
        goes_on(fleet, job, step)
        wait(fleet, "n1 is out of maintenance", lambda: "maintenance" not in fleet.vnodes()["n1"].state)
        fleet.delete(job)
        wait_all_free(fleet, EXCLUSIVE)


def priority_job_ends(fleet: OpenPbsCluster, low: str, high: str, hub: str) -> None:
    """The priority job ends, and the low job continues to its correct end. If the hub is `away`, only after the hub is
    back."""
    if hub == "back":
        fleet.start_part("hub")
    wait_state(fleet, low, "S")
    step = stands_still(fleet, low)
    fleet.delete(high)
    if hub == "away":
        wait_state(fleet, high, "F")
        assert stands_still(fleet, low) == step
        fleet.start_part("hub")
    goes_on(fleet, low, step)
    wait_right_end(fleet, low, STEPS)
    wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.parametrize(
    ("daemon", "hub"),
    [("server", hub) for hub in ("there", "back", "away")]
    + [(d, h) for d in ("sched", "comm") for h in ("there", "away")],
)
def test_a_daemon_of_pbs_is_restarted_in_mid_preemption(fleet: OpenPbsCluster, daemon: str, hub: str) -> None:
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        if hub != "there":
            fleet.parts["hub"].kill()
        restart(fleet, daemon)
        priority_job_ends(fleet, low, high, hub)


@pytest.mark.parametrize("hub", ["there", "away"])
def test_mom_is_killed_and_restarted_with_p_under_a_preempted_job(fleet: OpenPbsCluster, hub: str) -> None:
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        if hub != "there":
            fleet.parts["hub"].kill()
        fleet.pbs.kill_daemon("mom", "n1")
        fleet.pbs.start_mom("n1", "-p")
        wait(fleet, "n1 is back", lambda: "down" not in fleet.vnodes()["n1"].state)
        priority_job_ends(fleet, low, high, hub)


@pytest.mark.parametrize(("option", "hub"), [("", "there"), ("", "away"), ("-r", "there")])
def test_mom_is_restarted_without_p_under_a_preempted_job_which_runs_again(
    fleet: OpenPbsCluster, option: str, hub: str
) -> None:
    """MoM gives up what ran: nothing of the first run is left, stopped or not."""
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        if hub != "there":
            fleet.parts["hub"].kill()
        fleet.pbs.kill_daemon("mom", "n1")
        fleet.pbs.start_mom("n1", *option.split())
        wait(fleet, "n1 is back", lambda: "down" not in fleet.vnodes()["n1"].state)
        wait(fleet, "the first run is given up", lambda: fleet.jobs()[low].state != "S")
        fleet.delete(high)
        wait_state(fleet, high, "F")
        if hub == "away":
            fleet.start_part("hub")
        view = wait_state(fleet, low, "F")
        assert (view.exit_status, view.run_version, fleet.counter(low)) == (0, 2, STEPS)
        left = fleet.pbs.run("n1", ["pgrep", "-f", "work.py"], check=False).stdout.split()
        assert left == [], "of the first run"
        wait_all_free(fleet, EXCLUSIVE)


def test_the_mom_of_the_priority_job_is_killed_and_restarted(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        place = fleet.jobs()[high].vnodes[0]
        fleet.pbs.kill_daemon("mom", place)
        fleet.pbs.start_mom(place, "-p")
        wait(fleet, f"{place} is back", lambda: "down" not in fleet.vnodes()[place].state)
        priority_job_ends(fleet, low, high, "there")
