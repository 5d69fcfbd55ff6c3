"""Arrays, interactive jobs, and jobs that are not yet or no longer running when they should be preempted."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    STILL_S,
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
from magrathea_lab.waiting import BOUND_S

from .jobs import LONG, all_go_on, all_stand_still, command, end, hanging_mom, home, pbs, preempt, subjobs, submit

STAGING = 15
"""Substate of a job while its files are copied, before it is sent to its MoM (JOB_SUBSTATE_STAGEGO)."""


def test_an_array_is_preempted_subjob_by_subjob_and_one_of_them_deleted(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        array = submit(fleet, "low", f"exec {command(fleet, 120)}", "-J", "0-2", "-l", "select=1:ncpus=1")
        first, second, third = (array.replace("[]", f"[{n}]") for n in range(3))
        wait_running_subjobs(fleet, array, first, second)
        high = preempt(fleet)
        wait(fleet, "both are S", lambda: {subjobs(fleet, array).get(job) for job in (first, second)} == {"S"})
        files = [home(fleet) / f"{job}.count" for job in (first, second)]
        before = all_stand_still(fleet, files)
        pbs(fleet, "qdel", first, user=USER)
        wait(fleet, f"{first} has ended", lambda: subjobs(fleet, array)[first] == "X")
        assert subjobs(fleet, array)[second] == "S"
        end(fleet, high)
        all_go_on(fleet, files[1:], before[1:])
        wait(fleet, f"{third} has its turn", lambda: (home(fleet) / f"{third}.count").exists())
        wait_state(fleet, array, "F")
        assert [int(file.read_text()) for file in (files[1], home(fleet) / f"{third}.count")] == [120, 120]
        wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.parametrize("chunk", ["1:ncpus=0", "1:mem=10mb", "1:ncpus=1+1:ncpus=0"])
def test_a_job_without_cpus_is_preempted_and_continues(fleet: OpenPbsCluster, chunk: str) -> None:
    """Also one that gets none because its chunk names none, and one with such a chunk beside another."""
    with fleet.only(EXCLUSIVE):
        low = submit(fleet, "low", f"exec {command(fleet, 80)}", "-l", f"select={chunk}")
        wait_running(fleet, low)
        high = preempt(fleet, low)
        step = stands_still(fleet, low)
        end(fleet, high)
        goes_on(fleet, low, step)
        wait_state(fleet, low, "F")
        assert fleet.counter(low) == 80
        assert str(fleet.pbs.jobs("-x", low)[low]["Exit_status"]) == "0"
        wait_all_free(fleet, EXCLUSIVE)


def wait_running_subjobs(fleet: OpenPbsCluster, array: str, *jobs: str) -> None:
    files = [home(fleet) / f"{job}.count" for job in jobs]
    wait(fleet, f"{array} computes", lambda: all(file.exists() and file.read_text().strip() for file in files))


def test_an_array_of_priority_jobs_preempts_once(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        array = submit(fleet, "high", f"exec {command(fleet, LONG)}", "-J", "0-3", "-l", "select=1:ncpus=1")
        wait_state(fleet, low, "S")
        step = stands_still(fleet, low)
        for number in range(4):
            fleet.finish(array.replace("[]", f"[{number}]"))
        wait_state(fleet, array, "F")
        goes_on(fleet, low, step)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


class Terminal:
    """`qsub -I` at a terminal."""

    def __init__(self, fleet: OpenPbsCluster, queue: str) -> None:
        self.fleet = fleet
        self.master, slave = pty.openpty()
        argv = ["setsid", "--ctty", "--wait", "qsub", "-I", "-q", queue, "-l", "select=1:ncpus=1"]
        whole = fleet.pbs.argv(HEAD, argv, user=USER)
        self.process = subprocess.Popen(whole, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.text = ""

    def read(self) -> str:
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        return self.text

    def type(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def job(self) -> str:
        found = wait(self.fleet, "qsub -I names its job", lambda: re.search(r"waiting for job (\S+)", self.read()))
        assert found is not None
        return found[1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(BOUND_S)
        os.close(self.master)


@contextmanager
def terminal(fleet: OpenPbsCluster, queue: str) -> Iterator[Terminal]:
    found = Terminal(fleet, queue)
    try:
        yield found
    finally:
        found.close()


def test_an_interactive_job_is_preempted_and_continues_at_its_terminal(fleet: OpenPbsCluster) -> None:
    """Input that is typed meanwhile waits, and is executed afterwards.

    The shell has no job control. A shell with job control may notice that its command was stopped, as with PBS's own
    suspend. Then it prints that and a prompt, and the command continues in the background.
    """
    with fleet.only(EXCLUSIVE), terminal(fleet, "low") as user:
        low = user.job()
        wait(fleet, "the job's shell is there", lambda: "ready" in user.read())
        user.type(f"set +m; {command(fleet, 80)}")
        wait_running(fleet, low)
        high = preempt(fleet, low)
        step = stands_still(fleet, low)
        user.type("echo typed $((2 + 2)); exit")
        end(fleet, high)
        goes_on(fleet, low, step)
        wait_state(fleet, low, "F")
        wait(fleet, "all is told", lambda: "typed 4" in user.read() and "started 1 times" in user.read())
        assert fleet.counter(low) == 80
        wait_all_free(fleet, EXCLUSIVE)


def test_an_interactive_priority_job_preempts(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        with terminal(fleet, "high") as user:
            wait_state(fleet, low, "S")
            wait(fleet, "the job's shell is there", lambda: "ready" in user.read())
            step = stands_still(fleet, low)
            user.type("exit")
            goes_on(fleet, low, step)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_job_that_ends_by_itself_while_it_is_being_stopped(fleet: OpenPbsCluster) -> None:
    """The agent has stopped it, and something (for example the kernel) kills it before the hub has booked it in PBS."""
    with fleet.only(EXCLUSIVE):
        low = submit(fleet, "low", f"echo $$ > $HOME/$PBS_JOBID.pid; exec {command(fleet, LONG)}")
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        with hanging_mom(fleet, "n1"):
            high = fleet.submit("high", LONG, select="1:ncpus=1:host=p1")
            wait_running(fleet, high)
            stands_still(fleet, low)
            assert fleet.jobs()[low].state == "R"
            fleet.pbs.run("n1", ["kill", "-KILL", (home(fleet) / f"{low}.pid").read_text().strip()])
            fleet.finish(high)
        wait_state(fleet, low, "F")
        wait_right_end(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)


def test_jobs_that_end_at_the_moment_of_their_stop(fleet: OpenPbsCluster) -> None:
    """Whichever is first: each job's result is right, and none is requeued or left stopped."""
    with fleet.only(EXCLUSIVE):
        for steps in (26, 32):
            low = fleet.submit("low", steps)
            wait_running(fleet, low)
            wait(fleet, "it is about to end", lambda low=low, steps=steps: fleet.counter(low) >= steps - 7)  # type: ignore[misc]
            high = fleet.submit("high", 5)
            wait_right_end(fleet, high, 5)
            wait_right_end(fleet, low, steps)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_job_in_stage_in_waits_for_the_priority_job_that_comes_meanwhile(fleet: OpenPbsCluster) -> None:
    """PBS copies the files before it calls MoM's hooks: there is no claim yet, and when it comes it is refused."""
    source, target = home(fleet) / "source", home(fleet) / "target"
    source.write_text("staged\n")
    os.mkfifo(target)  # copying onto it waits until somebody reads
    for path in (source, target):
        os.chown(path, home(fleet).stat().st_uid, -1)
    with fleet.only(EXCLUSIVE):
        low = submit(fleet, "low", f"exec {command(fleet, 20)}", "-W", f"stagein={target}@{HEAD}:{source}")
        wait(fleet, "it stages in", lambda: fleet.jobs()[low].substate == STAGING)
        high = fleet.submit("high", LONG, select="1:ncpus=1:host=p1")
        wait_running(fleet, high)
        assert reading(target) == "staged\n"
        wait(fleet, f"{low} was refused", lambda: fleet.jobs()[low].state in "WQ")
        assert fleet.counter(low) == 0
        finish(fleet, high)
        wait_right_end(fleet, low, 20)
        wait_all_free(fleet, EXCLUSIVE)


def reading(fifo: Path) -> str:
    with fifo.open() as file:
        return file.read()


@contextmanager
def gated(fleet: OpenPbsCluster, script: str) -> Iterator[Path]:
    """The site's prologue or epilogue in n1, which waits until the yielded file is removed."""
    gate = fleet.directory / f"{script}.gate"
    gate.touch()
    file = fleet.pbs.pbs_home("n1") / "mom_priv" / script
    started = fleet.directory / f"{script}.started"
    file.write_text(f"#!/bin/sh\ntouch {started}\nwhile [ -e {gate} ]; do sleep 0.05; done\nexit 0\n")
    file.chmod(0o700)
    try:
        yield gate
    finally:
        gate.unlink(missing_ok=True)
        file.unlink()
        started.unlink(missing_ok=True)


def test_a_job_in_its_prologue_is_not_preempted_before_it_has_started(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        with gated(fleet, "prologue") as gate:
            low = fleet.submit("low", LONG)
            wait(fleet, "the prologue runs", lambda: gate.with_suffix(".started").exists())
            high = fleet.submit("high", LONG)
            time.sleep(STILL_S)
            assert fleet.jobs()[high].state == "Q"
            gate.unlink()
            wait_state(fleet, low, "S")
            finish(fleet, high)
        finish(fleet, low)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_job_in_its_epilogue_has_ended_for_all_but_its_epilogue(fleet: OpenPbsCluster) -> None:
    """The site's own epilogue runs in spite of our hooks. A priority job that comes meanwhile does no harm."""
    with fleet.only(EXCLUSIVE):
        with gated(fleet, "epilogue") as gate:
            low = fleet.submit("low", LONG)
            wait_running(fleet, low)
            fleet.finish(low)
            wait(fleet, "the epilogue runs", lambda: gate.with_suffix(".started").exists())
            high = fleet.submit("high", LONG)
            time.sleep(STILL_S)
            gate.unlink()
            wait_right_end(fleet, low)
            finish(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)
