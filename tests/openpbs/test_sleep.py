"""Jobs of a domain that sleeps: the books of hub and PBS, with a real server, hub, daemons, agents and MoMs. The
machines are stopped and away instead of saved (sleeping_noded.py)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from magrathea.pbs_text.amounts import duration_s
from magrathea_lab.clusters.openpbs import USER
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
)
from magrathea_lab.waiting import BOUND_S

from .sleeping import ONE, TWO, SleepingCluster

FAIL_REQUEUE_S = 5
"""`node_fail_requeue` of the server here; the default is 310 s. PBS misses a MoM after 9 s."""
BACK_S = 2 * BOUND_S
"""Bound until a job is requeued if its guest came back without it: a minute of MoM's lists."""
UNREACHABLE = "Server could not connect to MOM"


@pytest.fixture(scope="module")
def _cluster() -> Iterator[SleepingCluster]:
    with SleepingCluster() as cluster:
        cluster.pbs.qmgr(f"set server node_fail_requeue={FAIL_REQUEUE_S}")
        yield cluster


@pytest.fixture
def fleet(_cluster: SleepingCluster) -> Iterator[SleepingCluster]:
    yield _cluster
    _cluster.restore()


def is_away(fleet: SleepingCluster, vnode: str) -> bool:
    """True if PBS misses the vnode's MoM."""
    return "down" in fleet.vnodes()[vnode].state


def falls_asleep(fleet: SleepingCluster, domain: str = "n1") -> None:
    """The domain sleeps, and PBS has missed its MoM for longer than it requeues running jobs."""
    fleet.freeze(domain)
    wait(fleet, f"PBS misses {domain}", lambda: is_away(fleet, domain))
    since = time.monotonic()
    wait(fleet, "node_fail_requeue is over", lambda: time.monotonic() > since + FAIL_REQUEUE_S + 1)


def wakes(fleet: SleepingCluster, domain: str = "n1") -> None:
    fleet.defrost(domain)
    wait(fleet, f"{domain} is awake", lambda: not fleet.is_saved(domain))


def job_of(fleet: SleepingCluster, job: str) -> dict[str, Any]:
    return fleet.pbs.job(job)


def comment(fleet: SleepingCluster, job: str) -> str:
    return str(job_of(fleet, job).get("comment", ""))


def processes(fleet: SleepingCluster, job: str) -> list[str]:
    """Command lines of the job's processes in n1."""
    listed = fleet.pbs.run("n1", ["ps", "-ww", "-eo", "args"]).stdout.splitlines()
    return [line for line in listed if f"{job}.count" in line]


def array(fleet: SleepingCluster) -> str:
    """Submit an array of two subjobs of which only one fits; return the first subjob's id."""
    command = f'exec python3 -S "{fleet.directory}/work.py" {LONG} 0.05 "$HOME/$PBS_JOBID.count"'
    id = fleet.pbs.qsub(
        USER, "-q", "low", "-N", "job", "-j", "oe", "-J", "1-2", "-l", "select=1:ncpus=2", script=command
    )
    return id.replace("[]", "[1]")


def test_jobs_sleep_while_everything_around_them_is_restarted(fleet: SleepingCluster) -> None:
    with fleet.only(ONE):
        began = time.monotonic()
        low = fleet.submit("low", LONG, walltime_s=600)
        protected = fleet.submit("normal", LONG)
        wait_running(fleet, low, protected)
        sub = array(fleet)
        wait_running(fleet, sub)
        jobs = low, protected, sub
        falls_asleep(fleet)
        asleep_at = time.monotonic()
        told = low, protected  # PBS lets nobody change a subjob's comment
        wait(fleet, "comments", lambda: all(comment(fleet, job).startswith("asleep on h1 in n1 ") for job in told))
        assert "a new disk" in comment(fleet, low) and "`magrathea domain defrost n1`" in comment(fleet, low)
        vnode = fleet.pbs.vnode("n1")
        assert vnode["comment"].startswith("magrathea: asleep on h1 in n1 ") and "offline" in vnode["state"]
        steps = {job: fleet.counter(job) for job in jobs}

        for part in ("hub", "noded-h1"):
            fleet.parts[part].kill()
        fleet.pbs.kill_server()
        fleet.pbs.start_server()
        fleet.start_part("hub")
        fleet.pbs.qmgr("set node n1 resources_available.magrathea=mistake")
        wait(fleet, "its host is off, and n1 is known to sleep", lambda: fleet.vnodes()["n1"].magrathea == "asleep")
        fleet.start_part("noded-h1")
        wait(fleet, "the host is heard", lambda: "host h1 is connected" in fleet.log("hub").rpartition("listening")[2])
        assert [fleet.jobs()[job].state for job in jobs] == ["S", "S", "S"]
        assert {job: fleet.counter(job) for job in jobs} == steps

        wakes(fleet)
        away_s = time.monotonic() - asleep_at
        for job in jobs:
            goes_on(fleet, job, steps[job])
        fleet.finish(low)
        fleet.finish(protected)
        wait_right_end(fleet, protected)
        wait_right_end(fleet, low)
        used_s = duration_s(str(job_of(fleet, low)["resources_used"]["walltime"]))
        assert used_s <= time.monotonic() - began - away_s + 1
        wait_state(fleet, sub, "R")
        assert [job_of(fleet, job)["run_count"] for job in jobs] == [1, 1, 1]
        usable = frozenset({"free", "job-busy"})
        wait(fleet, "n1 is usable", lambda: fleet.vnodes()["n1"].state <= usable)
        fleet.command("qdel", "-W", "force", sub.replace("[1]", "[]"))


def test_what_users_and_admins_do_to_a_sleeping_job(fleet: SleepingCluster) -> None:
    with fleet.only(ONE):
        kept, held, gone, again = jobs = [fleet.submit("low", LONG) for _ in range(4)]
        wait_running(fleet, *jobs)
        falls_asleep(fleet)
        steps = {job: fleet.counter(job) for job in jobs}

        code, error = fleet.command("qdel", kept, user=USER)
        assert code and UNREACHABLE in error and fleet.jobs()[kept].state == "S"
        code, error = fleet.command("qhold", held, user=USER)
        assert code and UNREACHABLE in error and job_of(fleet, held)["Hold_Types"] == "u"
        wait(fleet, "our comment is back", lambda: comment(fleet, held).startswith("asleep on h1 in n1 "))
        assert fleet.command("qrls", held, user=USER) == (0, "")
        assert fleet.command("qdel", "-W", "force", gone, user=USER) == (0, "")
        wait_state(fleet, gone, "F")
        assert fleet.command("qrerun", "-W", "force", again) == (0, "")
        wait_state(fleet, again, "Q")
        for job in (gone, again):
            wait(fleet, f"n1 has {job} no more", lambda job=job: is_denied(fleet, job))  # type: ignore[misc]
        assert fleet.vnodes()["n1"].magrathea == "asleep"
        assert len(processes(fleet, gone)) == len(processes(fleet, again)) == 1, "they sleep, too"

        wakes(fleet)
        for job in (gone, again):
            wait(fleet, f"the old {job} ends", lambda job=job: not processes(fleet, job) or second(fleet, job))  # type: ignore[misc]
            assert fleet.counter(job) == steps[job] or second(fleet, job)
        for job in (kept, held):
            goes_on(fleet, job, steps[job])
            finish(fleet, job)
            assert job_of(fleet, job)["run_count"] == 1
        wait(fleet, f"{again} runs again", lambda: second(fleet, again))
        fleet.finish(again)
        assert wait_state(fleet, again, "F").exit_status == 0
        assert fleet.counter(gone) == steps[gone]
        wait_all_free(fleet, ONE)


def is_denied(fleet: SleepingCluster, job: str) -> bool:
    return job not in {found["id"] for found in fleet.reported("h1", "n1")["jobs"]}


def second(fleet: SleepingCluster, job: str) -> bool:
    view = fleet.jobs()[job]
    return view.state == "R" and view.run_version == 2


def test_a_job_with_parts_elsewhere_continues_when_its_last_part_is_awake(fleet: SleepingCluster) -> None:
    job = fleet.submit("low", LONG, select="1:ncpus=2:host=n1+1:ncpus=2:host=n2")
    wait_running(fleet, job)
    assert fleet.jobs()[job].vnodes == ("n1", "n2")
    falls_asleep(fleet, "n2")
    step = stands_still(fleet, job)
    fleet.freeze("n1")
    wakes(fleet, "n2")
    wait(fleet, "PBS has n2 again", lambda: not is_away(fleet, "n2"))
    assert stands_still(fleet, job) == step
    wakes(fleet)
    goes_on(fleet, job, step)
    finish(fleet, job)
    assert job_of(fleet, job)["run_count"] == 1
    wait_all_free(fleet, ONE)
    wait_all_free(fleet, TWO)


def test_a_lost_image_requeues_the_jobs_that_allow_it_and_reports_the_others(fleet: SleepingCluster) -> None:
    with fleet.only(ONE):
        rerunnable, only_once = fleet.submit("low", LONG), fleet.submit("low", LONG, rerunnable=False)
        wait_running(fleet, rerunnable, only_once)
        falls_asleep(fleet)
        fleet.lose_image("n1")
        wait(fleet, "it is no sleeper any more", lambda: fleet.vnodes()["n1"].magrathea == "down")
        for path in (fleet.pbs.pbs_home("n1") / "mom_priv/jobs").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        fleet.pbs.start_machine("n1")
        fleet.start_part("agent-n1")
        wait(fleet, "it is requeued", lambda: fleet.jobs()[rerunnable].state == "Q", BACK_S)
        assert fleet.jobs()[only_once].state == "S"
        assert f"ALERT job {only_once}" in fleet.log("hub")
        fleet.command("qdel", "-W", "force", only_once)
        wait(fleet, "it runs again", lambda: second(fleet, rerunnable))
        fleet.command("qdel", "-W", "force", rerunnable)
        wait_all_free(fleet, ONE)
