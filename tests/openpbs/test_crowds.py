"""Very many jobs in a domain, and many processes that no signal wakes: the claim is granted and nothing is lost."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.rigs.agent_rig import state
from magrathea_lab.scenarios.scenarios import require, wait, wait_all_free, wait_running, wait_state, wait_stoppable
from tests.embedded.test_agent_blocked import DEAD_FILE, may_mount

from .jobs import LONG, end, home, pbs, preempt, subjobs, submit

JOBS = 60
"""As many as a MoM starts within the test's time. tests/embedded/test_many_jobs.py has 2,000 with a real agent."""
HANGING = 20
SLEEP = "sleep 86399"


def states(fleet: OpenPbsCluster, what: str) -> str:
    """The states, one letter each, of n1's processes with this in their command line."""
    rows = fleet.pbs.run("n1", ["ps", "-ww", "-eo", "stat=,args="]).stdout.splitlines()
    return "".join(row[0] for row in rows if what in row)


def running(program: Path) -> list[int]:
    """The processes of this program. Not once they hang: whoever asks for the command line then hangs, too."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just gone
            if str(program).encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def test_a_crowd_of_jobs_without_cpus_is_preempted_and_none_is_lost(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        script = f'echo $PBS_JOBID >> "$HOME/begun"; exec {SLEEP}'
        array = submit(fleet, "low", script, "-J", f"0-{JOBS - 1}", "-l", "select=1:ncpus=0")
        begun = home(fleet) / "begun"
        wait(fleet, "all jobs compute", lambda: states(fleet, SLEEP) == JOBS * "S")
        high = preempt(fleet)
        wait(fleet, "all are S", lambda: list(subjobs(fleet, array).values()) == JOBS * ["S"])
        assert states(fleet, SLEEP) == JOBS * "T"
        end(fleet, high)
        wait(fleet, "all go on", lambda: states(fleet, SLEEP) == JOBS * "S")
        wait(fleet, "all are R", lambda: list(subjobs(fleet, array).values()) == JOBS * ["R"])
        assert len(begun.read_text().split()) == JOBS, "each has begun once"
        pbs(fleet, "qdel", "-W", "force", array)
        wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.skipif(not may_mount(), reason="a file server needs root and /dev/fuse")
def test_a_claim_is_granted_although_processes_of_the_victim_wait_for_a_dead_file_server(fleet: OpenPbsCluster) -> None:
    """The server is a process of the same job. The agent may stop it before those that wait for it."""
    program = fleet.directory / "dead_file.py"
    program.write_text(DEAD_FILE, encoding="utf-8")
    shared = fleet.directory / "shared"
    shared.mkdir(exist_ok=True)
    fleet.pbs.qmgr("set server acl_roots = root")
    try:
        with fleet.only(EXCLUSIVE):
            script = f"exec {sys.executable} {program} {shared} 0 {HANGING} 0"
            low = fleet.pbs.qsub("root", "-q", "low", "-l", "select=1:ncpus=1", script=script)
            wait_state(fleet, low, "R")
            wait_stoppable(fleet, "n1")
            pids = wait(fleet, "all of them", lambda: found if len(found := running(program)) > HANGING else [])
            (shared / "go").touch()
            wait(fleet, "they hang", lambda: [state(pid) for pid in pids].count("D") == HANGING)
            high = fleet.submit("high", LONG, select="1:ncpus=1:host=p1")
            wait_running(fleet, high)
            wait_state(fleet, low, "S")
            still = sorted(state(pid) for pid in pids)
            require(fleet, still == [*HANGING * ["D"], "T"], f"the file server is stopped, nobody is woken: {still}")
            end(fleet, high)
            wait_state(fleet, low, "R")
            fleet.pbs.run(HEAD, ["qsig", "-s", "SIGKILL", low])
            wait_state(fleet, low, "F")
            wait_all_free(fleet, EXCLUSIVE)
    finally:
        fleet.pbs.qmgr("unset server acl_roots")
