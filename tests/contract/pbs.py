"""What every `Pbs` must do (scheduler_plugin/pbs/base.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from magrathea.core.model import Amount
from scheduler_plugin.hub.placements import size_on
from scheduler_plugin.pbs.base import Code, Pbs, PbsError, Vnode

UNKNOWN = "99999.srv"


class PbsSite(Protocol):
    """A PBS with two vnodes, n1 and n2, that have Magrathea's resources, and no jobs. Its user is a manager."""

    def connect(self) -> Pbs:
        """A new connection of the implementation."""

    def submit(self, *vnodes: str, walltime_s: int | None = None, rerunnable: bool = True) -> str:
        """Submit a job that starts at once on these vnodes (default: n1); return its id."""

    def submit_for_later(self) -> str:
        """Submit a job that does not start; return its id."""

    def suspend_without_flag(self, job: str) -> None:
        """Suspend a job as `qsig -s suspend` does."""

    def set_scheduling(self, on: bool) -> None: ...

    def end(self, job: str) -> None: ...

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for the condition. Raises AssertionError that names `what` if it stays false."""


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(PbsError) as refused:
        call()
    assert not refused.value.transient, refused.value
    return refused.value.code


def vnode(pbs: Pbs, name: str = "n1") -> Vnode:
    return next(found for found in pbs.vnodes() if found.name == name)


def state(pbs: Pbs, job: str) -> str:
    found = pbs.job(job)
    return "" if found is None else found.state


def running(site: PbsSite, pbs: Pbs, *vnodes: str, walltime_s: int | None = None, rerunnable: bool = True) -> str:
    """A job that MoM allows to be suspended."""
    job = site.submit(*vnodes, walltime_s=walltime_s, rerunnable=rerunnable)
    site.until(lambda: (found := pbs.job(job)) is not None and found.substate == 42, f"{job} runs")
    return job


def suspended(site: PbsSite, pbs: Pbs, *vnodes: str) -> str:
    """A job that an admin has suspended."""
    job = running(site, pbs, *vnodes)

    def done() -> bool:
        try:
            pbs.admin_suspend(job)
        except PbsError as error:  # MoM may still be starting it
            assert error.code == Code.BAD_STATE
            return False
        return True

    site.until(done, f"{job} can be suspended")
    return job


def requeued(pbs: Pbs, job: str) -> bool:
    found = pbs.job(job)
    return found is not None and (found.state == "Q" or found.run_version == 2)


def all_attributes_of_a_vnode_are_set_by_one_call_and_read_back(site: PbsSite) -> None:
    wanted = {
        "resources_available.magrathea": "occupied-would-preempt",
        "resources_available.magrathea_accepts": "preemptible,protected",
        "resources_available.magrathea_rank": "-5",
        "resources_available.ncpus": "3",
        "resources_available.mem": "2048mb",
        "Priority": "-5",
    }
    pbs = site.connect()
    pbs.set_vnode("n1", wanted)
    shown = vnode(pbs).attributes
    assert {name: shown[name] for name in wanted} == wanted


def an_empty_value_unsets_an_attribute(site: PbsSite) -> None:
    pbs = site.connect()
    pbs.set_vnode("n1", {"resources_available.magrathea": "free", "resources_available.magrathea_rank": "4"})
    pbs.set_vnode("n1", {"resources_available.magrathea": ""})
    shown = vnode(pbs).attributes
    assert "resources_available.magrathea" not in shown
    assert shown["resources_available.magrathea_rank"] == "4"


def one_bad_value_changes_nothing(site: PbsSite) -> None:
    pbs = site.connect()
    pbs.set_vnode("n1", {"Priority": "7"})
    for bad, code in (
        ({"resources_available.magrathea_rank": "x"}, Code.BAD_VALUE),
        ({"resources_available.nosuch": "x"}, Code.UNKNOWN_RESOURCE),
    ):
        assert refusal(lambda bad=bad: pbs.set_vnode("n1", {"Priority": "8", **bad})) == code  # type: ignore[misc]
    assert vnode(pbs).attributes["Priority"] == "7"


def a_vnode_that_pbs_does_not_have_is_refused(site: PbsSite) -> None:
    assert refusal(lambda: site.connect().set_vnode("nosuch", {"Priority": "8"})) == Code.UNKNOWN_VNODE


def one_vnode_is_read_as_among_all_of_them(site: PbsSite) -> None:
    pbs = site.connect()
    pbs.set_vnode("n2", {"Priority": "7"})
    assert pbs.vnode("n2") == vnode(pbs, "n2")
    assert pbs.vnode("nosuch") is None


def a_vnode_is_put_offline_with_a_comment_and_back(site: PbsSite) -> None:
    pbs = site.connect()
    pbs.set_offline("n2", "magrathea: saved to disk")
    assert "offline" in vnode(pbs, "n2").state
    assert vnode(pbs, "n2").attributes["comment"] == "magrathea: saved to disk"
    pbs.set_offline("n2", "")
    assert vnode(pbs, "n2").state == {"free"}
    assert "comment" not in vnode(pbs, "n2").attributes


def a_job_is_shown_as_it_runs(site: PbsSite) -> None:
    pbs = site.connect()
    before = int(time.time())  # PBS counts whole seconds
    job = running(site, pbs, walltime_s=500)
    found = pbs.job(job)
    assert found is not None
    assert before <= found.started_at <= time.time()
    assert (found.id, found.state, found.run_version, found.vnodes) == (job, "R", 1, ("n1",))
    assert size_on("n1", found.exec_vnode) == Amount(1, 0)
    assert (found.walltime_s, found.rerunnable) == (500, True)
    assert found in pbs.jobs()


def jobs_are_those_that_moms_have(site: PbsSite) -> None:
    pbs = site.connect()
    stopped = suspended(site, pbs, "n1")
    other = running(site, pbs, "n2")
    waiting = site.submit_for_later()
    assert {job.id: job.state for job in pbs.jobs() if job.vnodes} == {stopped: "S", other: "R"}
    assert waiting not in {job.id for job in pbs.jobs() if job.vnodes}


def a_job_suspended_by_an_admin_holds_its_vnode_until_it_is_resumed(site: PbsSite) -> None:
    pbs = site.connect()
    job = suspended(site, pbs)
    found = pbs.job(job)
    assert found is not None
    assert (found.state, found.substate, found.run_version, found.vnodes) == ("S", 43, 1, ("n1",))
    assert vnode(pbs).state == {"maintenance"}
    assert vnode(pbs).maintenance_jobs == (job,)
    pbs.admin_resume(job)
    site.until(lambda: state(pbs, job) == "R", f"{job} runs again")
    assert "maintenance" not in vnode(pbs).state
    assert not vnode(pbs).maintenance_jobs


def a_job_on_two_vnodes_holds_both(site: PbsSite) -> None:
    pbs = site.connect()
    job = suspended(site, pbs, "n1", "n2")
    assert [vnode(pbs, name).maintenance_jobs for name in ("n1", "n2")] == [(job,), (job,)]
    pbs.admin_resume(job)
    assert not any(vnode(pbs, name).maintenance_jobs for name in ("n1", "n2"))


def operations_that_do_not_fit_a_jobs_state_are_refused(site: PbsSite) -> None:
    pbs = site.connect()
    job = suspended(site, pbs)
    assert refusal(lambda: pbs.admin_suspend(job)) == Code.BAD_STATE
    assert refusal(lambda: pbs.resume(job)) == Code.WRONG_RESUME
    pbs.admin_resume(job)
    site.until(lambda: state(pbs, job) == "R", f"{job} runs again")
    assert refusal(lambda: pbs.admin_resume(job)) == Code.WRONG_RESUME
    assert refusal(lambda: pbs.resume(job)) == Code.BAD_STATE


def a_job_suspended_without_the_flag_holds_no_vnode_and_is_resumed_plainly(site: PbsSite) -> None:
    pbs = site.connect()
    job = running(site, pbs)
    site.suspend_without_flag(job)
    site.until(lambda: state(pbs, job) == "S", f"{job} is suspended")
    assert not vnode(pbs).maintenance_jobs
    assert refusal(lambda: pbs.admin_resume(job)) == Code.WRONG_RESUME
    pbs.resume(job)
    site.until(lambda: state(pbs, job) == "R", f"{job} runs again")


def walltime_and_comment_of_a_suspended_job_are_set(site: PbsSite) -> None:
    pbs = site.connect()
    job = suspended(site, pbs)
    text = "preempted by 9.head, on h1: 'now' — since \"Nov 21\""
    pbs.set_walltime(job, 700)
    pbs.set_comment(job, text)
    found = pbs.job(job)
    assert found is not None
    assert (found.walltime_s, found.comment) == (700, text)


def a_suspended_job_is_requeued_by_force_only(site: PbsSite) -> None:
    pbs = site.connect()
    job = suspended(site, pbs)
    assert refusal(lambda: pbs.rerun(job)) == Code.BAD_STATE
    pbs.rerun(job, force=True)

    site.until(lambda: requeued(pbs, job), f"{job} is requeued, or has started again")
    assert not vnode(pbs).maintenance_jobs


def a_job_that_forbids_it_is_requeued_by_force_only(site: PbsSite) -> None:
    """OpenPBS obeys `force`, so the caller must first check whether the job allows it."""
    pbs = site.connect()
    job = running(site, pbs, rerunnable=False)
    assert refusal(lambda: pbs.rerun(job)) == Code.NOT_RERUNNABLE
    assert state(pbs, job) == "R"
    pbs.rerun(job, force=True)
    site.until(lambda: requeued(pbs, job), f"{job} is requeued, or has started again")


def a_suspended_job_that_ends_is_gone_and_holds_nothing(site: PbsSite) -> None:
    pbs = site.connect()
    job = suspended(site, pbs)
    site.end(job)
    site.until(lambda: pbs.job(job) is None, f"the end of {job}")
    assert job not in {one.id for one in pbs.jobs()}
    assert not vnode(pbs).maintenance_jobs
    assert vnode(pbs).state == {"free"}


def a_job_that_pbs_does_not_know_is_none_and_refused(site: PbsSite) -> None:
    pbs = site.connect()
    assert pbs.job(UNKNOWN) is None
    calls: list[Callable[[str], object]] = [pbs.admin_suspend, pbs.admin_resume, pbs.resume, pbs.rerun]
    calls += [lambda job: pbs.set_walltime(job, 60), lambda job: pbs.set_comment(job, "x")]
    assert [refusal(lambda call=call: call(UNKNOWN)) for call in calls] == [Code.UNKNOWN_JOB] * len(calls)  # type: ignore[misc]


def an_admins_scheduling_false_stands(site: PbsSite) -> None:
    pbs = site.connect()
    assert pbs.server()["scheduling"] == "True"
    assert pbs.wake_scheduler() is True
    site.set_scheduling(False)
    try:
        assert pbs.wake_scheduler() is False
        assert pbs.server()["scheduling"] == "False"
    finally:
        site.set_scheduling(True)


def a_connection_sees_what_another_one_did_and_outlives_it(site: PbsSite) -> None:
    first, second = site.connect(), site.connect()
    first.set_vnode("n1", {"Priority": "9"})
    first.close()
    assert vnode(second).attributes["Priority"] == "9"


CASES: tuple[Callable[[PbsSite], None], ...] = (
    all_attributes_of_a_vnode_are_set_by_one_call_and_read_back,
    an_empty_value_unsets_an_attribute,
    one_bad_value_changes_nothing,
    a_vnode_that_pbs_does_not_have_is_refused,
    one_vnode_is_read_as_among_all_of_them,
    a_vnode_is_put_offline_with_a_comment_and_back,
    a_job_is_shown_as_it_runs,
    jobs_are_those_that_moms_have,
    a_job_suspended_by_an_admin_holds_its_vnode_until_it_is_resumed,
    a_job_on_two_vnodes_holds_both,
    operations_that_do_not_fit_a_jobs_state_are_refused,
    a_job_suspended_without_the_flag_holds_no_vnode_and_is_resumed_plainly,
    walltime_and_comment_of_a_suspended_job_are_set,
    a_suspended_job_is_requeued_by_force_only,
    a_job_that_forbids_it_is_requeued_by_force_only,
    a_suspended_job_that_ends_is_gone_and_holds_nothing,
    a_job_that_pbs_does_not_know_is_none_and_refused,
    an_admins_scheduling_false_stands,
    a_connection_sees_what_another_one_did_and_outlives_it,
)
