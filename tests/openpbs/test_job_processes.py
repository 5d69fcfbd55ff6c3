"""How processes of a job may try to escape a stop: they ignore signals, catch them, leave their session."""

from __future__ import annotations

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_right_end,
    wait_running,
    wait_state,
)

from .jobs import LONG, all_go_on, all_stand_still, command, end, home, lives, preempt, submit

HANDLED = """\
import runpy, signal, sys
signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
for number in signals:
    signal.signal(number, HANDLER)
sys.argv = [WORK, STEPS, "0.05", sys.argv[1]]
runpy.run_path(WORK, run_name="__main__")
"""
HANDLERS = {"ignores": "signal.SIG_IGN", "catches": "lambda *about: None"}


def submit_handling(fleet: OpenPbsCluster, how: str, steps: int) -> str:
    """A job that does `how` at each signal, its shell included."""
    words = {"HANDLER": HANDLERS[how], "WORK": repr(f"{fleet.directory}/work.py"), "STEPS": repr(str(steps))}
    text = HANDLED
    for word, value in words.items():
        text = text.replace(word, value)
    program = fleet.directory / f"{how}.py"
    program.write_text(text)
    trapped = "trap '' HUP INT QUIT TERM TSTP TTIN TTOU USR1 USR2 CONT"
    return submit(fleet, "low", f'{trapped}\npython3 -S {program} "$HOME/$PBS_JOBID.count"')


@pytest.mark.parametrize("how", HANDLERS)
def test_a_job_that_handles_every_signal_is_preempted_like_others(fleet: OpenPbsCluster, how: str) -> None:
    with fleet.only(EXCLUSIVE):
        low = submit_handling(fleet, how, 40)
        wait_running(fleet, low)
        high = preempt(fleet, low)
        step = stands_still(fleet, low)
        end(fleet, high)
        goes_on(fleet, low, step)
        wait_right_end(fleet, low, 40)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_preempted_job_that_ignores_every_signal_can_be_deleted(fleet: OpenPbsCluster) -> None:
    """Like any job it may run between SIGTERM and SIGKILL: processes that MoM signals are not stopped any more."""
    with fleet.only(EXCLUSIVE):
        low = submit_handling(fleet, "ignores", LONG)
        wait_running(fleet, low)
        high = preempt(fleet, low)
        fleet.delete(low)
        assert wait_state(fleet, low, "F").exit_status != 0
        end(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)


PROCESSES = {
    "nohup": "env -u PBS_JOBID nohup COMMAND > /dev/null 2>&1 &",
    "setsid": "setsid COMMAND > /dev/null 2>&1 &",
    "clean-setsid": "env -u PBS_JOBID setsid COMMAND > /dev/null 2>&1 &",
    "double-fork": "( ( setsid nohup COMMAND > /dev/null 2>&1 & ) & )",
    "clean-double-fork": "( ( env -u PBS_JOBID nohup COMMAND > /dev/null 2>&1 & ) & )",
}
"""Started by a job's script: with and without PBS_JOBID, in its session and in others, with and without a parent."""


def test_processes_that_left_their_session_or_their_parent_are_stopped_too(fleet: OpenPbsCluster) -> None:
    """PBS's own signals miss processes in other sessions; the agent continues them.

    Without job cgroups one kind escapes: a process that drops PBS_JOBID, leaves the session and loses its parent before
    the agent has searched. Then nothing connects it with its job. It keeps running within the preempted domain's cap,
    and PBS does not end it with the job either.
    """
    with fleet.only(EXCLUSIVE):
        lines = [text.replace("COMMAND", command(fleet, 50, f"$JOB.{name}")) for name, text in PROCESSES.items()]
        own = command(fleet, 60, "$JOB.count")
        low = submit(fleet, "low", "\n".join(["JOB=$HOME/$PBS_JOBID", *lines, own]))
        wait_running(fleet, low)
        files = [home(fleet) / f"{low}.{name}" for name in (*PROCESSES, "count")]
        wait(fleet, "all of them compute", lambda: all(file.exists() and file.read_text().strip() for file in files))
        high = preempt(fleet, low)
        before = all_stand_still(fleet, files)
        end(fleet, high)
        all_go_on(fleet, files, before)
        wait_state(fleet, low, "F")
        assert fleet.counter(low) == 60
        wait_all_free(fleet, EXCLUSIVE)


def test_processes_that_left_a_preempted_job_end_when_it_is_deleted(fleet: OpenPbsCluster) -> None:
    """MoM's signals do not reach it. The agent has stopped it, and nobody would ever continue it."""
    with fleet.only(EXCLUSIVE):
        left = f"( setsid sh -c 'echo $$ > $HOME/$PBS_JOBID.left; exec {command(fleet, LONG)}.left' & )"
        low = submit(fleet, "low", f"{left}\nexec {command(fleet, LONG)}")
        wait_running(fleet, low)
        pid = wait(fleet, "its pid", lambda: (home(fleet) / f"{low}.left").read_text().strip())
        high = preempt(fleet, low)
        fleet.delete(low)
        wait_state(fleet, low, "F")
        wait(fleet, "it has ended", lambda: not lives(fleet, pid))
        end(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)
