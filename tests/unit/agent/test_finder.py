"""Which process belongs to a job, if /proc is read at an unlucky moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from node_daemon.agent.cgroups import Cgroups
from node_daemon.agent.finder import Finder
from node_daemon.agent.jobs import Job


@pytest.fixture
def mom() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a job's id in its environment, but is not a process of the job."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"],
        env={"PBS_JOBID": "12.srv"},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def the_job() -> Job:
    job = Job(("12.srv", 1), time.monotonic())
    job.uid = os.geteuid()
    return job


def look_for(finder: Finder, job: Job, pid: int) -> None:
    """Look once; one look reads only as many environments as there is time for."""
    for _ in range(1000):
        finder.look([job], True, 0.0)
        if pid in job.procs:
            return


def test_mom_seen_in_the_midst_of_an_exec_is_given_up_as_soon_as_it_speaks(mom: subprocess.Popen[bytes]) -> None:
    finder, job = Finder(Cgroups(()), ()), the_job()
    look_for(finder, job, mom.pid)
    taken = job.procs[mom.pid]
    taken.image = (b"1", b"half-way")  # the exec has changed the stack pointer since
    finder.spare(mom.pid)
    assert mom.pid not in job.procs
    finder.look([job], True, 0.0)
    assert mom.pid not in job.procs


def test_a_child_of_mom_that_execs_belongs_to_the_job(mom: subprocess.Popen[bytes]) -> None:
    """The prologue hook's parent is about to become the job's shell."""
    finder, job = Finder(Cgroups(()), ()), the_job()
    finder.spare(mom.pid)
    finder.look([job], True, 0.0)
    assert mom.pid not in job.procs
    start, _ = finder.spared[mom.pid]
    finder.spared[mom.pid] = (start, (b"1", b"before"))
    look_for(finder, job, mom.pid)
    assert mom.pid in job.procs


@pytest.mark.skipif(os.geteuid() != 0, reason="an agent without root sees its own user's processes only")
def test_a_job_that_asks_through_a_program_of_root_makes_nobody_of_its_own_spared() -> None:
    """As by sudo: the asking process is root's, and its parent is the job's."""
    program = (
        "import os, subprocess; asking = subprocess.Popen(['sleep', '600']); os.setuid(65534);"
        "print(asking.pid, flush=True); asking.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            asking = int(parent.stdout.readline())
            finder = Finder(Cgroups(()), ())
            finder.spare(asking)
            assert set(finder.spared) == {asking}
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
