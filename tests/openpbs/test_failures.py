"""Failures of MoMs, machines and other hooks: late ends, repeated and useless claims, machines that die under a
suspended job."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import AbstractContextManager

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LONG,
    finish,
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_right_end,
    wait_running,
    wait_state,
    wait_stoppable,
)
from magrathea_lab.waiting import BOUND_S

from .jobs import configured, site_hook
from .test_trouble import STEPS, preempted

FAIL_REQUEUE_S = 5
"""`node_fail_requeue` of the server here; the default is 310 s."""
BACK_S = 2 * BOUND_S
"""Bound until a job is requeued if its MoM came back without it: a minute of MoM's lists, and a refused claim."""


def hook(fleet: OpenPbsCluster, name: str, event: str, script: str, order: int = 1) -> AbstractContextManager[None]:
    """Inside the `with` all MoMs have this hook of the site."""
    return site_hook(fleet, name, event, script, *(domain.name for domain in EXCLUSIVE.domains), order=order)


def said(fleet: OpenPbsCluster, part: str, text: str) -> int:
    """How often a part has logged this text."""
    return fleet.log(part).count(text)


SEND = """
import socket, sys

link = socket.socket(socket.AF_UNIX)
link.connect("/run/magrathea/agent.sock")
link.sendall(sys.argv[1].encode() + b"\\n")
print(link.recv(65536).decode())
"""


def test_a_late_end_of_an_earlier_run_does_not_release_the_next(fleet: OpenPbsCluster) -> None:
    """PBS waits for a run's end hooks before it starts the next run. So the test sends this end by hand, as MoM's hook
    does."""
    with fleet.only(EXCLUSIVE):
        job = fleet.submit("low", LONG)
        wait_running(fleet, job)
        first = fleet.jobs()[job].run_version  # above 1 if an earlier start failed
        fleet.pbs.run(HEAD, ["qrerun", job])
        wait(fleet, "the next run", lambda: f"n1: {job} (run {first + 1}) accepted" in fleet.log("noded-h1"))
        wait_state(fleet, job, "R")
        end = json.dumps({"op": "release", "job": {"id": job, "run": first}})
        answer = fleet.pbs.run("n1", [sys.executable, "-c", SEND, end]).stdout
        assert json.loads(answer)["ok"], answer
        wait_stoppable(fleet, "n1")
        assert said(fleet, "noded-h1", f"{job} (run {first + 1}) released") == 0, fleet.log("noded-h1")
        high = fleet.submit("high", LONG)
        wait_state(fleet, job, "S")
        stands_still(fleet, job)
        fleet.delete(high)
        fleet.delete(job)
        wait_all_free(fleet, EXCLUSIVE)


def test_the_same_claim_twice_is_one_job(fleet: OpenPbsCluster) -> None:
    """A second hook runs the same script, so each start asks twice, and each end is reported twice."""
    script = (fleet.pbs.pbs_home("n1") / "mom_priv/hooks/magrathea_mom.PY").read_text()
    with fleet.only(EXCLUSIVE), hook(fleet, "again", "execjob_begin,execjob_abort,execjob_end", script):
        low = fleet.submit("low", STEPS)
        wait_running(fleet, low)
        assert said(fleet, "noded-h1", f"n1: {low} (run 1) accepted") == 2, "answered like the first"
        wait_stoppable(fleet, "n1")
        high = fleet.submit("high", LONG)
        wait_state(fleet, low, "S")
        finish(fleet, high)
        wait_right_end(fleet, low, STEPS)
        assert said(fleet, "noded-h1", f"{low} (run 1) preempted") == 1
        assert said(fleet, "noded-h1", f"{low} (run 1) released") == 1
        wait_all_free(fleet, EXCLUSIVE)


VETO = """
import pbs

e = pbs.event()
if str(e.job.Job_Name) == "vetoed":
    e.reject("not today")
"""


@pytest.mark.parametrize("hub", ["there", "away"])
def test_another_hooks_refusal_after_ours_accepted_gives_the_victim_back(fleet: OpenPbsCluster, hub: str) -> None:
    """Neither end nor abort follows such a refusal. MoM's own lists show that the job does not exist."""
    with fleet.only(EXCLUSIVE), hook(fleet, "veto", "execjob_begin", VETO, order=1000):
        low = fleet.submit("low", STEPS)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        high = fleet.submit("high", 10, name="vetoed")
        wait(fleet, "our hook accepted", lambda: f"{high} (run 1) accepted" in fleet.log("noded-h1"))
        wait_state(fleet, low, "S")
        if hub == "away":
            fleet.parts["hub"].kill()
            wait(fleet, "its next claim is refused", lambda: f"whether it has given {high} " in fleet.log("noded-h1"))
        else:
            wait_state(fleet, high, "H")  # PBS tries it 21 times at once
        fleet.delete(high)
        assert fleet.counter(high) == 0
        if hub == "away":
            stands_still(fleet, low)
            fleet.start_part("hub")
        wait_state(fleet, low, "RF")
        wait_right_end(fleet, low, STEPS)
        wait_all_free(fleet, EXCLUSIVE)


def quick_requeue(fleet: OpenPbsCluster) -> AbstractContextManager[None]:
    return configured(fleet, f"set server node_fail_requeue={FAIL_REQUEUE_S}", "unset server node_fail_requeue")


def revive(fleet: OpenPbsCluster, machine: str, *, files: bool = True) -> None:
    """Start the machine again. `files`: its MoM still has its files about jobs, as on a disk; False: as if all was in
    memory."""
    if not files:
        # an agent that still lives would see the files go, and take the job for over
        wait(fleet, "its agent has ended", lambda: not fleet.parts[f"agent-{machine}"].running())
        for path in (fleet.pbs.pbs_home(machine) / "mom_priv/jobs").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    fleet.pbs.start_machine(machine)
    fleet.start_part(f"agent-{machine}")


def runs_again(fleet: OpenPbsCluster, job: str) -> None:
    """The job runs again in a new run. A first claim may come before the host is ready, and be refused."""

    def there() -> bool:
        view = fleet.jobs()[job]
        return view.state == "R" and view.run_version >= 2

    wait(fleet, f"{job} runs again", there, BACK_S)
    # Not until its end: rarely PBS itself loses a run that it starts so soon after MoM's return. Then it shows the job
    # as
    # running for good, without a process.
    fleet.pbs.run(HEAD, ["qdel", "-W", "force", job])


@pytest.mark.parametrize(("hub", "files"), [("there", True), ("there", False), ("away", False)])
def test_a_suspended_job_runs_again_when_its_dead_host_is_back(fleet: OpenPbsCluster, hub: str, files: bool) -> None:
    """Not earlier: PBS never requeues a suspended job, and never starts a job that was requeued by force without any
    MoM."""
    with fleet.only(EXCLUSIVE), quick_requeue(fleet):
        low, high = preempted(fleet)
        if hub == "away":
            fleet.parts["hub"].kill()
        fleet.pbs.kill_machine("n1")
        try:
            wait(fleet, "n1 is down", lambda: "down" in fleet.vnodes()["n1"].state)
            if hub == "away":
                time.sleep(FAIL_REQUEUE_S + 2)
                assert fleet.jobs()[low].state == "S", "PBS itself requeues no suspended job"
            else:
                wait(fleet, "the alert", lambda: f"ALERT job {low} (run 1): its host has been down" in fleet.log("hub"))
                wait(fleet, "the comment", lambda: "n1 is down; requeued once it is back" in fleet.jobs()[low].comment)
            assert fleet.jobs()[low].state == "S"
            assert fleet.jobs()[high].state == "R"
        finally:
            revive(fleet, "n1", files=files)
        if hub == "away":
            fleet.start_part("hub")
        fleet.delete(high)
        runs_again(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.parametrize("suspended", [True, False], ids=["suspended", "running"])
def test_a_job_runs_again_if_its_guest_returns_without_it_before_pbs_notices(
    fleet: OpenPbsCluster, suspended: bool
) -> None:
    """PBS has noticed nothing: its MoM is there, and does not report the job."""
    with fleet.only(EXCLUSIVE):
        if suspended:
            low, high = preempted(fleet)
        else:
            low, high = fleet.submit("low", LONG), ""
            wait_running(fleet, low)
            wait_stoppable(fleet, "n1")
        fleet.pbs.kill_machine("n1")
        revive(fleet, "n1", files=False)
        if suspended:
            fleet.delete(high)
        wait(fleet, "it is requeued", lambda: f"job {low} (run 1): its guest was ended" in fleet.log("hub"), BACK_S)
        runs_again(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


def test_an_admin_is_alerted_if_a_suspended_job_must_not_be_requeued(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE), quick_requeue(fleet):
        low, high = preempted(fleet, rerunnable=False)
        fleet.pbs.kill_machine("n1")
        try:
            wait(fleet, "the alert", lambda: f"ALERT job {low} (run 1): its host has been down" in fleet.log("hub"))
            assert fleet.jobs()[low].state == "S"
            assert fleet.jobs()[high].state == "R"
        finally:
            revive(fleet, "n1")
        fleet.delete(high)
        assert wait_state(fleet, low, "F").run_version == 1
        wait_all_free(fleet, EXCLUSIVE)


def test_the_host_of_the_priority_job_dies_and_its_victim_continues(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE), quick_requeue(fleet):
        low, high = preempted(fleet)
        place = fleet.jobs()[high].vnodes[0]
        step = stands_still(fleet, low)
        fleet.pbs.kill_machine(place)
        try:
            goes_on(fleet, low, step)
            wait_right_end(fleet, low, STEPS)
        finally:
            revive(fleet, place)
        wait(fleet, f"{place} is back", lambda: "down" not in fleet.vnodes()[place].state)
        fleet.delete(high)
        wait_state(fleet, high, "F")
        wait_all_free(fleet, EXCLUSIVE)
