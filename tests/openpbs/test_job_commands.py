"""What users and admins may do to preempted jobs with PBS's own commands, and the effects."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from magrathea_lab.clusters.openpbs import KILL_DELAY_S, USER, OpenPbsCluster
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
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
from scheduler_plugin.setup.hook_texts import hook_text

from .jobs import LONG, command, configured, end, home, lives, pbs, preempt, preempted, refused, site_hook, submit

PATIENT_S = 20
"""A kill delay that a test would notice."""


def kill_delay(fleet: OpenPbsCluster, seconds: int) -> AbstractContextManager[None]:
    """Set the kill delay of the queue of preemptible jobs."""
    return configured(fleet, f"set queue low kill_delay={seconds}", f"set queue low kill_delay={KILL_DELAY_S}")


def test_a_qdel_of_a_preempted_job_does_not_wait_for_the_kill_delay(fleet: OpenPbsCluster) -> None:
    """PBS alone leaves the job's SIGTERM pending behind the stop. With Magrathea the job gets it, and may clean up.

    Normally PBS shows the end 3 s later. If MoM still sees a child of the job's shell when the shell ends, it checks
    again only after the kill delay. The same happens to running jobs.
    """
    with fleet.only(EXCLUSIVE), kill_delay(fleet, PATIENT_S):
        tidy = "trap 'sleep 0.2; touch $HOME/$PBS_JOBID.tidy; exit' TERM"
        script = f"echo $$ > $HOME/$PBS_JOBID.pid\n{tidy}\n{command(fleet, LONG)} & wait"
        low, other = submit(fleet, "low", script), fleet.submit("low", 50)
        wait_running(fleet, low, other)
        high = preempt(fleet, low, other)
        fleet.delete(low)
        wait(fleet, "it has put things away", (home(fleet) / f"{low}.tidy").exists, PATIENT_S / 2)
        pid = (home(fleet) / f"{low}.pid").read_text().strip()
        wait(fleet, "its processes have ended", lambda: not lives(fleet, pid), PATIENT_S / 2)
        step = stands_still(fleet, other)
        end(fleet, high)
        goes_on(fleet, other, step)
        wait_right_end(fleet, other, 50)
        wait_state(fleet, low, "F")
        wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.parametrize("user", [USER, "root"])
def test_a_preempted_job_is_deleted_by_force(fleet: OpenPbsCluster, user: str) -> None:
    """For root the server itself forgets the job at once, and its MoM ends it."""
    with fleet.only(EXCLUSIVE):
        low = submit(fleet, "low", f"echo $$ > $HOME/$PBS_JOBID.pid; exec {command(fleet, LONG)}")
        wait_running(fleet, low)
        high = preempt(fleet, low)
        assert pbs(fleet, "qdel", "-W", "force", low, user=user).returncode == 0
        wait_state(fleet, low, "F")
        pid = (home(fleet) / f"{low}.pid").read_text().strip()
        wait(fleet, "its processes have ended", lambda: not lives(fleet, pid))
        end(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)
        wait(fleet, "n1 is no longer in maintenance", lambda: fleet.vnodes()["n1"].state == {"free"})


def test_signals_to_a_preempted_job(fleet: OpenPbsCluster) -> None:
    """MoM refuses all signals but SIGKILL for a suspended job (its log: "cannot signal job, job substate = 43"). The
    server refuses signals that do not fit the job's state."""
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        step = fleet.counter(low)
        for name in ("SIGCONT", "SIGTERM", "SIGUSR1", "SIGSTOP", "18"):
            assert "invalid for state" in refused(fleet, "qsig", "-s", name, low, user=USER)
        for name in ("suspend", "admin-suspend"):
            assert "invalid for state" in refused(fleet, "qsig", "-s", name, low)
        assert "can not be resumed with the requested" in refused(fleet, "qsig", "-s", "resume", low)
        for name in ("suspend", "resume", "admin-suspend", "admin-resume"):
            assert "Unauthorized" in refused(fleet, "qsig", "-s", name, low, user=USER)
        assert stands_still(fleet, low) == step
        assert fleet.jobs()[low].state == "S"
        assert pbs(fleet, "qsig", "-s", "SIGKILL", low, user=USER).returncode == 0
        assert wait_state(fleet, low, "F").exit_status == 256 + 9
        end(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)


def test_an_admins_own_admin_resume_is_met_by_the_standing_stop(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet, 70)
        step = stands_still(fleet, low)
        log = fleet.parts["hub"].log
        before = log.read_text().count(f"{low} (run 1): Suspend")
        assert pbs(fleet, "qsig", "-s", "admin-resume", low).returncode == 0
        wait(fleet, "the hub suspends it anew", lambda: log.read_text().count(f"{low} (run 1): Suspend") > before)
        wait_state(fleet, low, "S")
        assert stands_still(fleet, low) <= step + 15  # a sweep comes every half second
        end(fleet, high)
        goes_on(fleet, low, fleet.counter(low))
        wait_right_end(fleet, low, 70)
        wait_all_free(fleet, EXCLUSIVE)


VETO = """
import os, pbs
if os.path.exists(%r):
    pbs.event().reject("not now")
"""


def test_an_admin_resume_that_a_hook_of_the_site_refuses_is_repeated_until_it_works(fleet: OpenPbsCluster) -> None:
    """The refusal costs the job its admin flag in PBS, and the vnode its maintenance. Then only a plain `resume` works,
    which goes through the scheduler. The hub repeats it until it succeeds."""
    veto = fleet.directory / "veto"
    with fleet.only(EXCLUSIVE), site_hook(fleet, "veto", "execjob_preresume", VETO % str(veto), "n1"):
        low, high = preempted(fleet, 50)
        step = stands_still(fleet, low)
        veto.touch()
        log = fleet.parts["hub"].log
        end(fleet, high)
        wait(fleet, "the hub tries plain", lambda: f"{low} (run 1): Resume plain=True" in log.read_text())
        assert fleet.jobs()[low].state == "S"
        assert fleet.counter(low) == step
        veto.unlink()
        goes_on(fleet, low, step)
        wait_right_end(fleet, low, 50)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_preempted_job_is_requeued_by_force_only(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet, 40)
        assert "invalid for state" in refused(fleet, "qrerun", low)
        assert fleet.jobs()[low].state == "S"
        assert pbs(fleet, "qrerun", "-W", "force", low).returncode == 0
        wait_state(fleet, low, "Q")
        wait(fleet, "n1 is no longer in maintenance", lambda: fleet.vnodes()["n1"].state == {"free"})
        end(fleet, high)
        view = wait_state(fleet, low, "F")
        assert (view.exit_status, view.run_version) == (0, 2)
        wait(fleet, "its output", lambda: "started 2 times" in fleet.output(low))
        wait_all_free(fleet, EXCLUSIVE)


def test_a_preempted_job_is_altered_held_and_not_moved(fleet: OpenPbsCluster) -> None:
    """A hold of a job that has started takes effect when the job is requeued. PBS moves only waiting jobs."""
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", 50, walltime_s=100)
        wait_running(fleet, low)
        high = preempt(fleet, low)
        assert pbs(fleet, "qalter", "-l", "walltime=200", low).returncode == 0
        assert fleet.pbs.job(low)["Resource_List"]["walltime"] == "00:03:20"
        pbs(fleet, "qhold", low, user=USER)
        assert "invalid for state" in refused(fleet, "qmove", "normal", low)
        step = stands_still(fleet, low)
        assert fleet.jobs()[low].state == "S"
        end(fleet, high)
        goes_on(fleet, low, step)
        wait_right_end(fleet, low, 50)
        wait_all_free(fleet, EXCLUSIVE)


SLOW = """
import os, time
open(%(gate)r + ".started", "w").close()
until = time.time() + 25
while os.path.exists(%(gate)r) and time.time() < until:
    time.sleep(0.05)
"""


def test_a_job_that_is_deleted_while_its_prologue_waits_does_not_start(fleet: OpenPbsCluster) -> None:
    """PBS answers such a qdel, forgets it, and starts the job (seen without our hook).

    Here a hook of the site before ours takes long. Ours then asks the agent, which knows of the qdel from MoM's
    `preterm`.
    """
    gate = fleet.directory / "hook.gate"
    slow = site_hook(fleet, "slow", "execjob_prologue", SLOW % {"gate": str(gate)}, "p1")
    ours = site_hook(fleet, "magrathea_prologue", "execjob_prologue", hook_text("magrathea_mom"), "p1", order=1000)
    with fleet.only(EXCLUSIVE), slow, ours:
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        gate.touch()
        gate.with_name("hook.gate.started").unlink()  # n1 has that hook too
        high = fleet.submit("high", LONG, select="1:ncpus=1:host=p1")
        wait(fleet, "its prologue waits", gate.with_name("hook.gate.started").exists)
        fleet.delete(high)
        gate.unlink()
        wait_state(fleet, high, "F")
        assert fleet.counter(high) == 0
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
