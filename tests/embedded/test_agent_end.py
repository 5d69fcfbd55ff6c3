"""The agent finds the end of a job by itself: no hook of PBS reports it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.rigs.agent_rig import Doc, Rig, job_python, running, state
from magrathea_lab.waiting import BOUND_S, until

COUNT = "while :; do :; done"
WITHOUT_PIDFD = """#!/bin/sh
exec {python} -c 'import os, runpy, sys; del os.pidfd_open, sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """MoM's directory with a file for each of its jobs."""
    directory = tmp_path / "mom_priv/jobs"
    directory.mkdir(parents=True)
    return directory


def claim(rig: Rig, files: Path, id: str = "12.srv", **more: object) -> Path:
    """Claim as MoM does, which writes its file about the job; returns it."""
    file = files / f"{id}.JB"
    file.touch()
    home = str(files.parent.parent)
    assert rig.mom("claim", job=rig.job(id, 1, **more), deadline_s=BOUND_S, home=home) == {"ok": True}
    return file


def computing(rig: Rig, files: Path) -> subprocess.Popen[bytes]:
    """Claim a job, and start it; the agent has found its first process."""
    claim(rig, files)
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    return job


def end(job: subprocess.Popen[bytes]) -> None:
    job.kill()
    job.wait(BOUND_S)


def job_of_list(rig: Rig, substate: int, id: str = "12.srv") -> Doc:
    return {**rig.job(id), "substate": substate}


def known(rig: Rig) -> list[str]:
    """The jobs that the agent knows, after one more look at all processes."""
    rig.host.order("lift")
    return [row["id"] for row in rig.mom("status")["jobs"] if row["listed"]]


def released(rig: Rig) -> list[str]:
    return [asked["job"]["id"] for asked in rig.host.seen("release")]


def test_a_job_is_over_when_its_last_process_has_ended(rig: Rig, files: Path) -> None:
    job = computing(rig, files)
    end(job)
    assert rig.host.await_op("release")["job"] == {"id": "12.srv", "run": 1}
    (files / "12.srv.JB").unlink()
    assert known(rig) == []
    assert released(rig) == ["12.srv"]


def test_without_pidfds_the_agent_looks_when_mom_writes_its_file(files: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(WITHOUT_PIDFD.format(python=sys.executable))
    python.chmod(0o755)
    with Rig(python=str(python)) as rig:
        rig.start()
        assert "pidfd" not in rig.host.agent["can"]
        file = claim(rig, files)
        job = rig.run_job(COUNT)
        rig.host.await_op("launched")
        end(job)
        file.write_text("it has ended")
        rig.host.await_op("release")
        assert released(rig) == ["12.srv"]


def test_where_the_kernel_reports_no_changes_the_agent_looks_once_a_second(files: Path, tmp_path: Path) -> None:
    """As if MoM's directory appeared only after its hook has named it."""
    directory = files.with_name("later")
    files.rename(directory)
    with running() as rig:
        home = str(files.parent.parent)
        assert rig.mom("claim", job=rig.job(sister=True), deadline_s=BOUND_S, home=home) == {"ok": True}
        (directory / "12.srv.JB").touch()
        directory.rename(files)
        until(lambda: known(rig) == ["12.srv"] and "reports no changes" in rig.log_text(), "the agent knows the job")
        (files / "12.srv.JB").unlink()
        rig.host.await_op("release")


def the_other(rig: Rig, pid: int) -> int:
    """The process beside this one, once there is no third: what the agent starts for a moment goes again."""

    def found() -> int | None:
        rest = rig.children().keys() - {pid}
        return next(iter(rest)) if len(rest) == 1 else None

    return until(found, "one process more")


@pytest.mark.parametrize("program", [f"({COUNT}) & wait", f"setsid bash -c '{COUNT}' & wait"])
def test_a_child_that_computes_after_its_leader_keeps_the_job(rig: Rig, files: Path, program: str) -> None:
    """In the job's session, and in one of its own."""
    claim(rig, files)
    job = rig.run_job(program)
    rig.host.await_op("launched")
    until(lambda: rig.host.order("lift")["processes"] == 2, "the child computes")
    child = the_other(rig, job.pid)
    end(job)
    assert known(rig) == ["12.srv"]
    assert rig.host.order("stop")["stopped"] == 1  # it is the job's as before
    assert state(child) == "T"
    rig.host.order("run")
    assert released(rig) == []
    os.kill(child, signal.SIGKILL)
    rig.host.await_op("release")
    assert known(rig) == []


def test_a_part_on_a_further_host_is_over_only_when_mom_forgets_the_job(rig: Rig, files: Path) -> None:
    """MoM starts tasks there, one after the other."""
    file = claim(rig, files, sister=True)
    for _ in range(2):
        task = rig.run_job(COUNT)
        until(lambda: rig.host.order("lift")["processes"] == 1, "the task is found")
        task.kill()
        task.wait(BOUND_S)
        assert known(rig) == ["12.srv"]
    assert released(rig) == []
    file.unlink()
    rig.host.await_op("release")
    assert known(rig) == []


def test_a_job_that_never_had_a_process_is_over_when_mom_forgets_it(rig: Rig, files: Path) -> None:
    file = claim(rig, files)
    other = claim(rig, files, "13.srv")
    assert known(rig) == ["12.srv", "13.srv"]
    file.unlink()
    rig.host.await_op("release")
    assert known(rig) == ["13.srv"]
    other.unlink()
    until(lambda: released(rig) == ["12.srv", "13.srv"], "the other one's release")


def test_a_stopped_job_that_mom_forgets_is_killed(rig: Rig, files: Path) -> None:
    """MoM's kill does not reach processes in a session of their own."""
    file = claim(rig, files)
    job = rig.run_job(f"setsid bash -c '{COUNT}' & {COUNT}")
    rig.host.await_op("launched")
    until(lambda: rig.host.order("stop")["stopped"] == 2, "both are stopped")
    end(job)
    assert set(rig.children().values()) == {"T"}
    file.unlink()
    rig.host.await_op("release")
    until(lambda: not any(letter == "T" for letter in rig.children().values()), "the rest is killed")


def test_a_job_whose_file_was_never_seen_is_not_over(rig: Rig, files: Path) -> None:
    """MoM may keep its files elsewhere, as in another mount namespace."""
    claim(rig, files).rename(files / "other")
    rig.mom("claim", job=rig.job("13.srv"), deadline_s=BOUND_S, home=str(files.parent.parent))
    (files / "other").unlink()
    assert "13.srv" in known(rig)
    assert "13.srv" not in released(rig)


def test_a_mom_that_reads_its_files_again_has_forgotten_no_job(rig: Rig, files: Path) -> None:
    """When MoM starts, it renames each job's file for a moment. And a file system may be away."""
    file = claim(rig, files)
    assert known(rig) == ["12.srv"]
    file.rename(file.with_suffix(".BD"))
    assert known(rig) == ["12.srv"]
    file.with_suffix(".BD").rename(file)
    other = claim(rig, files, "13.srv")
    assert known(rig) == ["12.srv", "13.srv"]
    files.rename(files.with_name("elsewhere"))
    (files.with_name("elsewhere") / other.name).unlink()
    assert known(rig) == ["12.srv", "13.srv"]
    files.with_name("elsewhere").rename(files)
    (files / "any").touch()
    (files / "any").unlink()
    until(lambda: released(rig) == ["13.srv"], "the end of the one whose file is not there")
    assert known(rig) == ["12.srv"]


def test_moms_list_brings_no_ended_job_back_while_it_ends_there(rig: Rig, files: Path) -> None:
    job = computing(rig, files)
    end(job)
    rig.host.await_op("release")
    for substate in (42, 51, 57, 58):  # a list from before the end, the epilogue, the obit, copying
        assert rig.mom("jobs", jobs=[job_of_list(rig, substate)])["ok"]
        assert rig.host.seen("jobs")[-1]["jobs"][0]["substate"] >= 50  # the daemon is told that it ends
    assert known(rig) == []
    rig.mom("jobs", jobs=[job_of_list(rig, 42, "14.srv")])
    assert known(rig) == ["14.srv"]


def test_a_job_that_ended_while_no_agent_was_there_is_reported_by_the_next(rig: Rig, files: Path) -> None:
    job = computing(rig, files)
    rig.kill()
    end(job)
    rig.start()
    assert rig.host.await_op("release")["job"] == {"id": "12.srv", "run": 1}


def test_the_next_agent_keeps_a_running_job_and_finds_its_end(rig: Rig, files: Path) -> None:
    job = computing(rig, files)
    rig.kill()
    rig.start()
    assert known(rig) == ["12.srv"]
    assert released(rig) == []
    end(job)
    rig.host.await_op("release")


def test_a_program_of_a_prologue_that_runs_as_the_user_is_not_the_job(rig: Rig, files: Path) -> None:
    """It has a session of its own and the job's number, but it is no child of MoM."""
    claim(rig, files)
    prologue = rig.run_job("PBS_JOBID=12.srv setsid sleep 600 & wait", id=None)
    rig.host.await_op("launched")
    program = the_other(rig, prologue.pid)
    os.kill(program, signal.SIGKILL)
    prologue.wait(BOUND_S)
    assert known(rig) == ["12.srv"]
    job = rig.run_job(COUNT)
    until(lambda: rig.host.order("lift")["processes"] == 1, "the job itself")
    assert released(rig) == []
    end(job)
    rig.host.await_op("release")


FAKE_MOM = """
import os, subprocess, time
job = subprocess.Popen(["sleep", "600"], env={**os.environ, "PBS_JOBID": "12.srv"}, start_new_session=True)
print(job.pid, flush=True)
job.wait()
time.sleep(600)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="without root, MoM is the user's own")
def test_no_user_can_end_his_job_with_a_program_that_he_has_named_like_mom(rig: Rig, files: Path) -> None:
    """He starts it while the job waits in its prologue. Afterwards the job would be unknown, and so protected."""
    claim(rig, files)
    names = rig.directory / "names"
    names.mkdir()
    (names / "pbs_mom").symlink_to(os.path.realpath(job_python()))
    fake = rig.run_job([str(names / "pbs_mom"), "-c", FAKE_MOM], id=None)
    rig.host.await_op("launched")
    program = the_other(rig, fake.pid)
    os.kill(program, signal.SIGKILL)
    until(lambda: state(program) in ("", "Z"), "its end")
    assert known(rig) == ["12.srv"]
    assert rig.host.order("stop")["processes"] == 0, "the agent has looked again"
    assert known(rig) == ["12.srv"]
    assert released(rig) == []


def test_another_home_of_mom_ends_no_job_whose_file_is_in_the_former_one(rig: Rig, files: Path, tmp_path: Path) -> None:
    """As if two MoMs asked one agent, or an administrator has moved PBS_HOME."""
    claim(rig, files)
    assert known(rig) == ["12.srv"]
    other = tmp_path / "other/mom_priv/jobs"
    other.mkdir(parents=True)
    file = claim(rig, other, "13.srv")
    assert known(rig) == ["12.srv", "13.srv"]
    file.unlink()
    until(lambda: "13.srv" in released(rig), "the end of the other job")
    assert known(rig) == ["12.srv"]
    assert released(rig) == ["13.srv"]


def test_the_session_of_a_job_that_ends_is_not_looked_for(rig: Rig, files: Path) -> None:
    """MoM may list the job for long, as while a server is away. Its session's number may be another's by then."""
    claim(rig, files)
    other = rig.run_job(COUNT, id=None)
    assert rig.mom("jobs", jobs=[{**job_of_list(rig, 57), "session_id": other.pid}])["ok"]
    assert rig.host.order("lift")["processes"] == 0
    assert rig.mom("jobs", jobs=[{**job_of_list(rig, 42), "session_id": other.pid}])["ok"]
    assert rig.host.order("lift")["processes"] == 1
