"""The stand-in's server and MoM as processes: what was measured of OpenPBS's jobs holds of theirs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab import fleet
from magrathea_lab.clusters.keeper import Keeper, KeptProcess
from magrathea_lab.pbs_standin.client import StandInClient
from magrathea_lab.processes import of_session
from scheduler_plugin.pbs.base import Code, Pbs, PbsError

COUNTING = "i=0; while [ $i -lt {steps} ]; do i=$((i+1)); echo $i > $PBS_JOBID.count; sleep 0.05; done; echo done\n"
HOOK = """
import os, pbs, time
e = pbs.event()
here = os.path.dirname(pbs.hook_config_filename)
if e.type == pbs.EXECJOB_BEGIN and os.path.exists(here + "/slow"):
    time.sleep(1.0)
if e.type == pbs.EXECJOB_BEGIN and os.path.exists(here + "/refuse"):
    if os.path.exists(here + "/later"):
        e.job.Execution_Time = int(time.time() + 2)
    e.reject("no")
if e.type == pbs.RUNJOB and os.path.exists(here + "/never"):
    e.reject("not now")
with open(here + "/events", "a") as file:
    file.write("%d\\n" % e.type)
"""
PATIENCE_S = 20.0


class Bench:
    """A server and the MoMs n1 and n2 (2 CPUs each) with a hook that does what files in its directory tell it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hook = directory / "hook.py"
        self.hook.write_text(HOOK, encoding="utf-8")
        self.keeper = Keeper({"PATH": os.environ["PATH"], "PYTHONPATH": str(fleet.ROOT)})
        self.parts: dict[str, KeptProcess] = {}
        hook = ["--hook", str(self.hook), "--hook-config", str(directory / "hook.json")]
        self.start("server", ["--dir", str(directory), "--name", "t" + str(os.getpid()), *hook])
        self.until(lambda: (directory / "pbs.sock").exists())
        for name in ("n1", "n2"):
            own = ["--server", str(directory / "pbs.sock"), "--vnode", name, "--ncpus", "2", "--periodic-s", "0.5"]
            own += ["--hook-events", "execjob_begin,execjob_epilogue,execjob_preterm,execjob_end,exechost_periodic"]
            self.start("mom", [*own, "--kill-delay-s", "0.5", *hook], name)
        self.client = StandInClient(directory / "pbs.sock")
        self.until(lambda: len(self.client.vnodes()) == 2)
        for name in ("n1", "n2"):
            self.client.set_vnode(name, {"resources_available.magrathea_accepts": "preemptible"})

    def start(self, module: str, arguments: list[str], name: str = "") -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(fleet.ROOT)}
        argv = [sys.executable, "-m", f"magrathea_lab.pbs_standin.{module}", *arguments]
        log = self.directory / f"{module}{name}.log"
        self.parts[name or module] = self.keeper.start(module, argv, environment, log)

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            logs = {log.name: log.read_text() for log in self.directory.glob("*.log")}
            assert time.monotonic() < deadline, logs
            time.sleep(0.02)
        return value

    def tell(self, word: str) -> None:
        (self.directory / word).touch()

    def submit(self, steps: int = 1000, **more: Any) -> str:
        script = self.directory / f"{steps}.sh"
        script.write_text(COUNTING.format(steps=steps), encoding="utf-8")
        output = self.directory / f"out.{time.monotonic_ns()}"
        return self.client.submit("low", script, output, self.directory, **more)

    def shown(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.ask("job", job=job)
        return found

    def until_state(self, job: str, state: str, substate: int | None = None) -> dict[str, Any]:
        self.until(lambda: self.shown(job)["state"] == state and substate in (None, self.shown(job)["substate"]))
        return self.shown(job)

    def count(self, job: str) -> int:
        path = self.directory / f"{job}.count"
        return int(path.read_text() or 0) if path.exists() else 0

    def running(self, **more: Any) -> str:
        job = self.submit(**more)
        self.until_state(job, "R", 42)
        self.until(lambda: self.count(job))
        return job

    def vnode(self, name: str) -> Any:
        return next(v for v in self.client.vnodes() if v.name == name)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        made.client.close()
        made.keeper.close()


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(PbsError) as refused:
        call()
    return refused.value.code


def test_what_a_job_has_written_can_be_asked_of_its_mom(bench: Bench) -> None:
    job = bench.running()
    path = str(bench.directory / f"{job}.count")
    assert int(bench.client.ask("read", job=job, path=path)) >= 1
    assert bench.client.ask("read", job=job, path=path + ".not-there") == ""


def test_the_client_is_what_the_hub_needs(bench: Bench) -> None:
    pbs: Pbs = bench.client
    assert pbs.wake_scheduler()
    assert {v.name for v in pbs.vnodes()} == {"n1", "n2"}
    assert pbs.jobs() == []
    assert pbs.job("99") is None


def test_a_job_runs_and_ends(bench: Bench) -> None:
    job = bench.running(steps=5)
    found = bench.until_state(job, "F")
    assert (found["exit_status"], found["run_version"]) == (0, 1)
    assert Path(found["output"]).read_text() == "done\n"


def test_users_cannot_ask_for_the_classes_themselves(bench: Bench) -> None:
    assert refusal(lambda: bench.submit(select="1:ncpus=1:magrathea_accepts=priority")) == Code.BAD_VALUE


def test_an_admin_suspended_job_stands_still_with_its_walltime_and_its_vnode_takes_no_other(bench: Bench) -> None:
    job = bench.running(steps=60, walltime_s=5)
    bench.client.admin_suspend(job)
    assert bench.until_state(job, "S", 43)["run_version"] == 1
    assert bench.vnode("n1").state == {"maintenance"}
    assert bench.vnode("n1").maintenance_jobs == (job,)
    before = bench.count(job)
    other = bench.running(steps=5)
    assert bench.shown(other)["vnodes"] == ["n2"]
    time.sleep(3)
    assert bench.count(job) == before
    bench.client.admin_resume(job)
    assert bench.vnode("n1").maintenance_jobs == ()
    found = bench.until_state(job, "F")
    assert (found["exit_status"], found["why"]) == (0, "")


def test_the_limit_kills(bench: Bench) -> None:
    job = bench.running(walltime_s=1)
    assert "exceeded limit" in bench.until_state(job, "F")["why"]


def test_the_limit_of_a_running_job_can_be_raised(bench: Bench) -> None:
    job = bench.running(steps=40, walltime_s=1)
    bench.client.set_walltime(job, 60)
    assert bench.until_state(job, "F")["exit_status"] == 0


def test_a_job_that_starts_cannot_be_suspended(bench: Bench) -> None:
    bench.tell("slow")
    job = bench.submit()
    bench.until_state(job, "R", 41)
    assert refusal(lambda: bench.client.admin_suspend(job)) == Code.BAD_STATE


def test_suspend_and_resume_of_the_wrong_kind_are_refused(bench: Bench) -> None:
    job = bench.running()
    assert refusal(lambda: bench.client.admin_resume(job)) == Code.BAD_STATE
    bench.client.admin_suspend(job)
    assert refusal(lambda: bench.client.admin_suspend(job)) == Code.BAD_STATE
    assert refusal(lambda: bench.client.resume(job)) == Code.WRONG_RESUME
    assert refusal(lambda: bench.client.admin_resume("99")) == Code.UNKNOWN_JOB


def test_a_suspended_job_is_rerun_by_force_only(bench: Bench) -> None:
    job = bench.running()
    bench.client.admin_suspend(job)
    assert refusal(lambda: bench.client.rerun(job)) == Code.BAD_STATE
    bench.client.rerun(job, force=True)
    bench.until(lambda: bench.shown(job)["run_version"] == 2)
    assert bench.vnode("n1").maintenance_jobs == ()


def test_a_job_that_forbids_it_is_not_rerun(bench: Bench) -> None:
    job = bench.running(rerunnable=False)
    assert refusal(lambda: bench.client.rerun(job, force=True)) == Code.NOT_RERUNNABLE


def test_deleting_a_suspended_job_ends_its_processes_and_the_maintenance(bench: Bench) -> None:
    job = bench.running()
    bench.client.admin_suspend(job)
    bench.client.delete(job)
    bench.until_state(job, "F")
    assert bench.vnode("n1").maintenance_jobs == ()
    before = bench.count(job)
    time.sleep(0.2)
    assert bench.count(job) == before


def test_a_refused_runjob_leaves_the_job_queued_with_the_reason(bench: Bench) -> None:
    bench.tell("never")
    job = bench.submit()
    bench.until(lambda: "not now" in bench.shown(job)["comment"])
    assert (bench.shown(job)["state"], bench.shown(job)["run_version"]) == ("Q", 0)


def test_a_refused_begin_is_tried_again_at_once_and_held_in_the_end(bench: Bench) -> None:
    bench.tell("refuse")
    job = bench.submit()
    assert bench.until_state(job, "H")["run_version"] == 21


def test_a_refused_begin_with_a_later_time_waits_until_then(bench: Bench) -> None:
    bench.tell("refuse")
    bench.tell("later")
    job = bench.submit()
    bench.until_state(job, "W")
    (bench.directory / "refuse").unlink()
    assert bench.until_state(job, "R")["run_version"] == 2


def test_nothing_starts_while_scheduling_is_off_and_nobody_wakes_it(bench: Bench) -> None:
    bench.client.ask("set_scheduling", value=False)
    job = bench.submit()
    assert not bench.client.wake_scheduler()
    time.sleep(0.3)
    assert bench.shown(job)["state"] == "Q"
    bench.client.ask("set_scheduling", value=True)
    bench.until_state(job, "R")


def test_a_job_on_two_vnodes_is_suspended_on_both(bench: Bench) -> None:
    job = bench.running(select="2:ncpus=2")
    assert bench.shown(job)["vnodes"] == ["n1", "n2"]
    bench.client.admin_suspend(job)
    assert [bench.vnode(name).state for name in ("n1", "n2")] == [{"maintenance"}] * 2
    bench.client.delete(job)
    bench.until_state(job, "F")
    assert [bench.vnode(name).state for name in ("n1", "n2")] == [{"free"}] * 2


def test_hooks_see_begin_epilogue_end_and_the_periodic_event(bench: Bench) -> None:
    bench.until_state(bench.running(steps=5), "F")

    def seen() -> bool:
        events = set((bench.directory / "events").read_text().split())
        return {"16", "64", "256", "512", "4096"} <= events

    bench.until(seen)


def test_a_hook_sees_a_qdel_before_the_job_has_its_sigterm(bench: Bench) -> None:
    job = bench.running()
    assert "1024" not in (bench.directory / "events").read_text().split()
    bench.client.delete(job)
    bench.until_state(job, "F")
    assert "1024" in (bench.directory / "events").read_text().split()


def test_a_mom_that_dies_is_down_and_the_server_says_so(bench: Bench) -> None:
    job = bench.running()
    bench.parts["n1"].kill(signal.SIGKILL)
    bench.until(lambda: bench.vnode("n1").state == {"down"})
    assert refusal(lambda: bench.client.admin_suspend(job)) == Code.NO_MOM


def test_nothing_stays_behind_when_the_keeper_closes(bench: Bench) -> None:
    bench.running()
    sessions = [part.pid for part in bench.parts.values()]
    bench.keeper.close()
    assert not any(of_session(session) for session in sessions)
