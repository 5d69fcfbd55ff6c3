"""When a job is over for Magrathea: without a hook of PBS, never too early, and once.

A domain whose job is over is `free` for PBS at once. The job itself may then still be in state E, because its epilogue
runs or its output is copied.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    STILL_S,
    finish,
    goes_on,
    require,
    stands_still,
    wait,
    wait_all_free,
    wait_domain,
    wait_right_end,
    wait_running,
    wait_state,
)

from .conftest import EAGER
from .jobs import LONG, command, home, lives, pbs, preempted, submit

BY_PROCESSES, BY_FILE = "its last process has ended", "MoM has deleted its file"


def ends(fleet: OpenPbsCluster, domain: str, job: str) -> list[tuple[int, str]]:
    """Run and reason of each end of the job that the domain's agent has found."""
    found = re.findall(
        rf"job {re.escape(job)} \(run (\d+)\): over, (.*)", fleet.parts[f"agent-{domain}"].log.read_text()
    )
    return [(int(run), why) for run, why in found]


@contextmanager
def script_of_site(fleet: OpenPbsCluster, domain: str, name: str, text: str) -> Iterator[Path]:
    """The site's own prologue or epilogue script of a MoM. It may wait until the yielded file is removed."""
    gate = fleet.directory / f"{domain}.{name}.gate"
    gate.touch()
    file = fleet.pbs.pbs_home(domain) / "mom_priv" / name
    file.write_text("#!/bin/sh\n" + text.format(gate=gate, mark=gate.with_suffix(".ran")))
    file.chmod(0o700)
    try:
        yield gate
    finally:
        gate.unlink(missing_ok=True)
        gate.with_suffix(".ran").unlink(missing_ok=True)
        file.unlink()


WAITS = "touch {mark}\nwhile [ -e {gate} ]; do sleep 0.05; done\n"


def test_a_preempted_job_goes_on_while_the_priority_job_is_in_its_epilogue(fleet: OpenPbsCluster) -> None:
    """The site's own script runs as ever. Its CPU time does not count: the host has gone on."""
    with fleet.only(EXCLUSIVE), script_of_site(fleet, "p1", "epilogue", WAITS) as gate:
        low, high = preempted(fleet)
        step = stands_still(fleet, low)
        fleet.finish(high)
        wait(fleet, "the epilogue runs", gate.with_suffix(".ran").exists)
        goes_on(fleet, low, step)
        assert fleet.jobs()[high].state in "RE"
        gate.unlink()
        wait_right_end(fleet, high)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        assert ends(fleet, "p1", high) == [(1, BY_PROCESSES)]


def test_a_child_that_computes_after_its_leader_keeps_the_domain_until_pbs_has_ended_the_job(
    fleet: OpenPbsCluster,
) -> None:
    """MoM does not reach it. It computes on while the job's epilogue runs, and after that it is nobody's."""
    number = home(fleet) / "child"
    script = f"setsid bash -c 'echo $$ >{number}; exec sleep 1000' &\nexec {command(fleet, LONG)}"
    with fleet.only(EXCLUSIVE), script_of_site(fleet, "n1", "epilogue", WAITS) as gate:
        low = submit(fleet, "low", script)
        wait_running(fleet, low)
        wait(fleet, "the child is there", lambda: number.exists() and number.read_text().strip())
        wait_domain(fleet, "n1", "running-preemptible")
        fleet.finish(low)
        wait(fleet, "the epilogue runs", gate.with_suffix(".ran").exists)
        time.sleep(STILL_S)
        require(fleet, lives(fleet, number.read_text().strip()), "the child computes")
        assert ends(fleet, "n1", low) == []
        assert fleet.vnodes()["n1"].magrathea != "free"
        gate.unlink()
        wait_state(fleet, low, "F")
        wait_all_free(fleet, EXCLUSIVE)
        assert ends(fleet, "n1", low) == [(1, BY_FILE)]
        fleet.pbs.run("n1", ["kill", number.read_text().strip()])


def test_tasks_on_a_further_host_may_end_and_begin_while_the_job_is_there(fleet: OpenPbsCluster) -> None:
    """pbs_tmrsh starts a task by MoM (tm_spawn). Between two tasks the further host has no process of the job."""
    marks = [home(fleet) / f"task.{number}" for number in range(2)]
    task = "pbs_tmrsh n4 /bin/bash -c 'echo $PBS_JOBID >{}'"
    gate = home(fleet) / "gate"
    gate.touch()
    script = f"{task.format(marks[0])}\nwhile [ -e {gate} ]; do sleep 0.05; done\n{task.format(marks[1])}\n"
    with fleet.only(EXCLUSIVE, EAGER):
        low = submit(fleet, "low", f"{script}exec {command(fleet, LONG)}", "-l", "select=1:host=n1+1:host=n4")
        wait(fleet, "the first task has ended", marks[0].exists)
        time.sleep(STILL_S)
        assert ends(fleet, "n4", low) == []
        assert fleet.vnodes()["n4"].magrathea != "free"
        gate.unlink()
        wait(fleet, "the second task has ended", marks[1].exists)
        wait_running(fleet, low)
        assert ends(fleet, "n4", low) == []
        fleet.finish(low)
        wait_right_end(fleet, low)
        for host in (EXCLUSIVE, EAGER):
            wait_all_free(fleet, host)
        assert ends(fleet, "n1", low) == [(1, BY_PROCESSES)]
        assert ends(fleet, "n4", low) == [(1, BY_FILE)]


def test_a_job_that_pbs_requeues_is_over_once_in_each_run(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        pbs(fleet, "qrerun", low)
        wait(fleet, "the second run", lambda: fleet.jobs()[low].run_version == 2)
        wait_running(fleet, low)
        wait(fleet, "the end of the first run", lambda: [run for run, _ in ends(fleet, "n1", low)] == [1])
        wait_domain(fleet, "n1", "running-preemptible")
        fleet.finish(low)
        wait_state(fleet, low, "F")
        wait_all_free(fleet, EXCLUSIVE)
        assert [run for run, _ in ends(fleet, "n1", low)] == [1, 2]


def test_a_restart_of_mom_ends_no_job_and_its_end_is_found_afterwards(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_domain(fleet, "n1", "running-preemptible")
        fleet.pbs.kill_daemon("mom", "n1")
        fleet.pbs.start_mom("n1", "-p")
        wait(fleet, "n1 is back", lambda: "down" not in fleet.vnodes()["n1"].state)
        assert ends(fleet, "n1", low) == []
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        assert [why for _, why in ends(fleet, "n1", low)] == [BY_PROCESSES]


def test_a_job_that_the_sites_prologue_refuses_is_over(fleet: OpenPbsCluster) -> None:
    """It never had a process."""
    log = fleet.parts["noded-h1"].log
    with fleet.only(EXCLUSIVE), script_of_site(fleet, "n1", "prologue", "touch {mark}\nexit 1\n") as gate:
        low = fleet.submit("low", 5)
        wait(fleet, "the prologue has run", gate.with_suffix(".ran").exists)
        wait(fleet, "its end is found", lambda: f"n1: {low} (run 1) released" in log.read_text())
        pbs(fleet, "qdel", "-W", "force", low)
    wait_all_free(fleet, EXCLUSIVE)


def test_a_job_that_is_too_short_to_be_seen_is_over_too(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        for queue in ("low", "high"):
            jobs = [submit(fleet, queue, "exit 0") for _ in range(3)]
            for job in jobs:
                wait_state(fleet, job, "F")
        wait_all_free(fleet, EXCLUSIVE)


def test_tasks_that_attach_to_a_job_end_without_ending_it(fleet: OpenPbsCluster) -> None:
    """pbs_attach gives MoM the session of a process that is not its child."""
    mark = home(fleet) / "attached"
    attach = f"setsid pbs_attach -j $PBS_JOBID bash -c 'sleep 0.3; echo $$ >{mark}' </dev/null &"
    with fleet.only(EXCLUSIVE):
        low = submit(fleet, "low", f"{attach}\nexec {command(fleet, LONG)}")
        wait_running(fleet, low)
        wait(fleet, "the task has ended", lambda: mark.exists() and mark.read_text().strip())
        wait_domain(fleet, "n1", "running-preemptible")
        assert ends(fleet, "n1", low) == []
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)
        assert ends(fleet, "n1", low) == [(1, BY_PROCESSES)]


def test_no_hook_of_ours_runs_at_the_end_of_a_job(fleet: OpenPbsCluster) -> None:
    """MoM would wait for it, and not run the site's own script."""
    for name in ("magrathea_mom", "magrathea_vnodes", "magrathea_server"):
        listed = fleet.pbs.qmgr(f"list hook {name}")
        require(fleet, "execjob_end" not in listed and "execjob_epilogue" not in listed, f"hooks: {listed}")
