"""The stand-in's server and MoM as processes: jobs behave as measured on OpenPBS."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magrathea.pbs_text.states import PRERUN_SUBSTATE, RUNNING_SUBSTATE
from magrathea_lab.processes import of_session
from scheduler_plugin.pbs.base import Code, PbsError

from .standin_bench import StandInBench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[StandInBench]:
    made = StandInBench(tmp_path)
    try:
        yield made
    finally:
        made.close()


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(PbsError) as refused:
        call()
    return refused.value.code


def test_a_jobs_output_can_be_read_through_its_mom(bench: StandInBench) -> None:
    job = bench.running()
    path = str(bench.directory / f"{job}.count")
    assert int(bench.client.ask("read", job=job, path=path)) >= 1
    assert bench.client.ask("read", job=job, path=path + ".not-there") == ""


def test_a_job_runs_and_ends(bench: StandInBench) -> None:
    job = bench.running(steps=5)
    found = bench.until_state(job, "F")
    assert (found["exit_status"], found["run_version"]) == (0, 1)
    assert Path(found["output"]).read_text() == "done\n"


def test_users_cannot_ask_for_the_classes_themselves(bench: StandInBench) -> None:
    assert refusal(lambda: bench.submit(select="1:ncpus=1:magrathea_accepts=priority")) == Code.BAD_VALUE


def test_an_admin_suspended_job_stands_still_with_its_walltime_and_its_vnode_takes_no_other(
    bench: StandInBench,
) -> None:
    began = time.monotonic()
    job = bench.running(steps=20)
    bench.client.admin_suspend(job)
    suspended = time.monotonic()
    assert bench.until_state(job, "S", 43)["run_version"] == 1
    assert bench.vnode("n1").state == {"maintenance"}
    assert bench.vnode("n1").maintenance_jobs == (job,)
    before = bench.count(job)
    other = bench.running(steps=5)
    assert bench.shown(other)["vnodes"] == ["n2"]
    bench.until_state(other, "F")  # after five steps
    assert bench.count(job) == before
    suspended_s = time.monotonic() - suspended
    bench.client.admin_resume(job)
    assert bench.vnode("n1").maintenance_jobs == ()
    found = bench.until_state(job, "F")
    assert (found["exit_status"], found["why"]) == (0, "")
    assert found["used_s"] <= time.monotonic() - began - suspended_s


def test_the_limit_kills(bench: StandInBench) -> None:
    job = bench.running(walltime_s=1)
    assert "exceeded limit" in bench.until_state(job, "F")["why"]


def test_the_limit_of_a_running_job_can_be_changed(bench: StandInBench) -> None:
    job = bench.running(walltime_s=3600)
    bench.client.set_walltime(job, 1)
    assert "exceeded limit 1" in bench.until_state(job, "F")["why"]


def test_a_job_that_starts_cannot_be_suspended(bench: StandInBench) -> None:
    bench.tell("slow")
    job = bench.submit()
    bench.until_state(job, "R", 41)
    assert refusal(lambda: bench.client.admin_suspend(job)) == Code.BAD_STATE
    (bench.directory / "slow").unlink()
    bench.until_state(job, "R", 42)


def test_deleting_a_suspended_job_ends_its_processes_and_the_maintenance(bench: StandInBench) -> None:
    job = bench.running()
    bench.client.admin_suspend(job)
    bench.client.delete(job)
    bench.until_state(job, "F")
    assert bench.vnode("n1").maintenance_jobs == ()
    before = bench.count(job)
    bench.until_state(bench.submit(steps=3), "F")
    assert bench.count(job) == before


def test_a_refused_runjob_leaves_the_job_queued_with_the_reason(bench: StandInBench) -> None:
    bench.tell("never")
    job = bench.submit()
    bench.until(lambda: "not now" in bench.shown(job)["comment"])
    assert (bench.shown(job)["state"], bench.shown(job)["run_version"]) == ("Q", 0)


def test_a_refused_begin_is_tried_again_at_once_and_held_in_the_end(bench: StandInBench) -> None:
    bench.tell("refuse")
    job = bench.submit()
    assert bench.until_state(job, "H")["run_version"] == 21


def test_a_refused_begin_with_a_later_time_waits_until_then(bench: StandInBench) -> None:
    bench.tell("refuse")
    bench.tell("later")
    job = bench.submit()
    bench.until_state(job, "W")
    (bench.directory / "refuse").unlink()
    assert bench.until_state(job, "R")["run_version"] >= 2


def test_nothing_starts_while_scheduling_is_off_and_nobody_wakes_it(bench: StandInBench) -> None:
    bench.client.ask("set_scheduling", value=False)
    job = bench.submit()
    assert not bench.client.wake_scheduler()
    time.sleep(0.3)  # a fixed time: a server that does not schedule does nothing that could be waited for
    assert bench.shown(job)["state"] == "Q"
    bench.client.ask("set_scheduling", value=True)
    bench.until_state(job, "R")


def test_a_job_on_two_vnodes_is_suspended_on_both(bench: StandInBench) -> None:
    job = bench.running(select="2:ncpus=2")
    assert bench.shown(job)["vnodes"] == ["n1", "n2"]
    bench.client.admin_suspend(job)
    assert [bench.vnode(name).state for name in ("n1", "n2")] == [{"maintenance"}] * 2
    bench.client.delete(job)
    bench.until_state(job, "F")
    assert [bench.vnode(name).state for name in ("n1", "n2")] == [{"free"}] * 2


def test_a_job_runs_when_it_is_there_on_all_its_vnodes(bench: StandInBench) -> None:
    bench.tell("slow-sister")
    job = bench.submit(select="2:ncpus=2")
    bench.until(lambda: bench.count(job))
    assert bench.shown(job)["substate"] == PRERUN_SUBSTATE, "its sister could not be suspended yet"
    (bench.directory / "slow-sister").unlink()
    bench.until_state(job, "R", RUNNING_SUBSTATE)
    bench.client.admin_suspend(job)
    bench.client.delete(job)
    bench.until_state(job, "F")


def test_hooks_see_begin_epilogue_end_and_the_periodic_event(bench: StandInBench) -> None:
    bench.until_state(bench.running(steps=5), "F")

    def seen() -> bool:
        events = set((bench.directory / "events").read_text().split())
        return {"16", "64", "256", "512", "4096"} <= events

    bench.until(seen)


def test_a_hook_sees_a_qdel_before_the_job_has_its_sigterm(bench: StandInBench) -> None:
    job = bench.running()
    assert "1024" not in (bench.directory / "events").read_text().split()
    bench.client.delete(job)
    bench.until_state(job, "F")
    assert "1024" in (bench.directory / "events").read_text().split()


def test_a_mom_that_dies_is_shown_as_down(bench: StandInBench) -> None:
    job = bench.running()
    bench.parts["n1"].kill(signal.SIGKILL)
    bench.until(lambda: bench.vnode("n1").state == {"down"})
    assert refusal(lambda: bench.client.admin_suspend(job)) == Code.NO_MOM


def test_nothing_stays_behind_when_the_keeper_closes(bench: StandInBench) -> None:
    bench.running()
    sessions = [part.pid for part in bench.parts.values()]
    bench.keeper.close()
    assert not any(of_session(session) for session in sessions)
