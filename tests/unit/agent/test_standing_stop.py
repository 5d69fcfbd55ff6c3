"""A standing stop costs almost nothing, and yet nothing escapes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magrathea_lab.rigs.agent_rig import state
from magrathea_lab.waiting import BOUND_S, until
from node_daemon.agent import changes, finder, sweeper
from node_daemon.agent.cgroups import Cgroups
from node_daemon.agent.changes import StoppedProcesses
from node_daemon.agent.finder import Finder
from node_daemon.agent.jobs import Job, Proc
from node_daemon.agent.loop import Loop
from node_daemon.agent.signals import Signaller
from node_daemon.agent.sweeper import CALM_SWEEP_S, SWEEP_S, Sweeper


class Births(changes.Births):
    """The counter with values from the test: on this machine others make processes all the time."""

    def __init__(self) -> None:
        self.now: bytes | None = b"1000"

    def last(self) -> bytes | None:
        return self.now


class Looks(Finder):
    """Counts the looks at /proc."""

    def __init__(self, mark: str) -> None:
        super().__init__(Cgroups(()), (mark.encode(),))
        if self.births.fd >= 0:
            os.close(self.births.fd)
        self.counter = Births()
        self.births = self.counter
        self.looks = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def look(self, jobs: list[Job], thorough: bool, since: float, environ: bool = True) -> set[Proc]:
        self.looks += 1
        return super().look(jobs, thorough, since, environ)

    def _read(self, now: float, thorough: bool, since: float) -> list[Proc]:
        found = super()._read(now, thorough, since)
        self.meanwhile()
        return found


class Standing:
    """A job of two processes under a standing stop."""

    def __init__(self) -> None:
        code = "import os, time\nos.fork()\nprint(flush=True)\ntime.sleep(600)"
        mine = uuid.uuid4().hex  # a unique id, so that no other test's process is touched
        environment = {"PBS_JOBID": "12.srv", "MAGRATHEA_TEST": mine}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.process.stdout.readline()
        self.job = Job(("12.srv", 1), time.monotonic())
        self.job.uid = os.geteuid()
        self.job.listed = True
        self.finder = Looks(f"MAGRATHEA_TEST={mine}")
        self.loop = Loop()
        self.sweeper = Sweeper(self.loop, {self.job.key: self.job}, self.finder, Signaller())

    def order(self, word: str) -> None:
        answers: list[dict[str, Any]] = []
        self.sweeper.order([(self.job.key, word)], BOUND_S, answers.append)
        end = time.monotonic() + BOUND_S
        while not answers:
            assert time.monotonic() < end, "the order is not carried out"
            self.loop.turn()

    def settle(self) -> None:
        until(lambda: self.looks_of_a_glance() == 0, "a glance that needs no look")

    def looks_of_a_glance(self) -> int:
        before = self.finder.looks
        self.sweeper.glance()
        return self.finder.looks - before

    def close(self) -> None:
        self.sweeper.stopped.watch(())
        self.loop.selector.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    made = Standing()
    try:
        made.order("stop")
        assert len(made.job.procs) == 2
        monkeypatch.setattr(finder, "SETTLED_S", 0.0)
        monkeypatch.setattr(finder, "UNBORN_S", 0.0)
        monkeypatch.setattr(sweeper, "WHOLE_LOOK_S", 600.0)
        yield made
    finally:
        made.close()


def test_nothing_is_looked_for_while_no_process_is_made(standing: Standing) -> None:
    standing.settle()
    assert [standing.looks_of_a_glance() for _ in range(10)] == [0] * 10


def test_a_birth_makes_it_look(standing: Standing) -> None:
    standing.settle()
    standing.finder.counter.now = b"1001"
    assert standing.looks_of_a_glance() == 1


def test_a_birth_during_a_look_makes_it_look_again(standing: Standing) -> None:
    standing.settle()

    def born() -> None:
        standing.finder.counter.now = b"1002"

    standing.finder.counter.now = b"1001"
    standing.finder.meanwhile = born
    assert standing.looks_of_a_glance() == 1
    assert standing.looks_of_a_glance() == 1


def test_a_process_that_has_its_number_but_is_not_to_be_seen_yet_is_waited_for(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.settle()
    monkeypatch.setattr(finder, "UNBORN_S", 600.0)
    standing.finder.counter.now = b"1001"
    assert [standing.looks_of_a_glance() for _ in range(3)] == [1, 1, 1]
    monkeypatch.setattr(finder, "UNBORN_S", 0.0)
    standing.settle()


def test_without_a_counter_of_new_processes_it_looks_each_time(standing: Standing) -> None:
    standing.finder.counter.now = None
    assert [standing.looks_of_a_glance() for _ in range(3)] == [1, 1, 1]


def test_a_kernel_that_does_not_count_births_is_none_to_fail_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes.Births, "PATH", "/proc/sys/kernel/no-such-file")
    assert changes.Births().last() is None


def test_a_birth_is_counted() -> None:
    births = changes.Births()
    if births.fd < 0:
        pytest.skip(f"no {births.PATH} here")
    before = births.last()
    subprocess.run(["true"], check=True)
    assert births.last() != before
    os.close(births.fd)


def test_a_young_stranger_may_become_the_jobs_by_an_exec(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    standing.settle()
    monkeypatch.setattr(finder, "SETTLED_S", 600.0)
    standing.finder.counter.now = b"1001"
    assert [standing.looks_of_a_glance() for _ in range(3)] == [1, 1, 1]


def test_a_look_that_is_too_old_is_repeated(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    standing.settle()
    monkeypatch.setattr(sweeper, "WHOLE_LOOK_S", 0.0)
    assert standing.looks_of_a_glance() == 1


def test_a_job_without_known_processes_is_searched_for_sooner(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "REREAD_S", 600.0)
    standing.settle()
    monkeypatch.setattr(sweeper, "REREAD_S", 0.0)
    assert standing.looks_of_a_glance() == 0
    standing.job.seen = False
    assert standing.looks_of_a_glance() == 1


def test_a_process_put_into_the_jobs_cgroup_is_found(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {standing.process.pid}
    monkeypatch.setattr(standing.finder.cgroups, "found", [("/nowhere", "{job}")])
    monkeypatch.setattr(standing.finder.cgroups, "pids", lambda id: set(inside))
    standing.settle()
    inside.add(1)
    assert standing.looks_of_a_glance() == 1


def test_a_process_that_somebody_continues_is_stopped_again(standing: Standing) -> None:
    standing.settle()
    standing.process.send_signal(signal.SIGCONT)
    assert standing.looks_of_a_glance() == 1

    def stopped_again() -> bool:
        standing.loop.turn()
        return state(standing.process.pid) == "T"

    until(stopped_again, "the next stop")
    standing.settle()


def pause_s(standing: Standing) -> float:
    """Seconds until the next check."""
    standing.settle()
    timer = standing.sweeper.timer
    assert timer is not None
    return timer.when - time.monotonic()


def test_a_stop_undisturbed_for_long_is_looked_after_less_often(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pause_s(standing) <= SWEEP_S
    monkeypatch.setattr(sweeper, "CALM_AFTER_S", 0.0)
    assert SWEEP_S < pause_s(standing) <= CALM_SWEEP_S
    monkeypatch.setattr(sweeper, "CALM_LOOK_S", 600.0)
    monkeypatch.setattr(sweeper, "WHOLE_LOOK_S", 0.0)
    assert standing.looks_of_a_glance() == 0, "and /proc is read less often"
    monkeypatch.setattr(sweeper, "CALM_LOOK_S", 0.0)
    assert standing.looks_of_a_glance() == 1


def test_a_process_that_had_to_be_stopped_again_is_checked_as_often_as_at_first(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "CALM_AFTER_S", 600.0)
    standing.settle()
    standing.sweeper.disturbed_at = time.monotonic() - 700
    assert pause_s(standing) > SWEEP_S
    standing.process.send_signal(signal.SIGCONT)
    assert standing.looks_of_a_glance() == 1
    assert pause_s(standing) <= SWEEP_S


def test_an_end_is_seen(standing: Standing) -> None:
    standing.settle()
    standing.process.kill()
    until(lambda: state(standing.process.pid) in "Z", "its end")
    assert standing.looks_of_a_glance() == 1
    assert len(standing.job.procs) == 1


@pytest.mark.parametrize("change", ["pending", "deleted", "barrier", "settled"])
def test_a_stop_that_is_not_complete_is_looked_at(standing: Standing, change: str) -> None:
    standing.settle()
    setattr(standing.job, change, change != "settled")
    assert standing.looks_of_a_glance() == 1


def test_more_processes_than_files_may_be_kept_are_looked_after(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_KEPT_FILES", 1)
    standing.settle()
    stopped = standing.sweeper.stopped
    assert (len(stopped.files), len(stopped.others)) == (1, 1)
    for proc in [*stopped.files, *stopped.others]:
        os.kill(proc.pid, signal.SIGCONT)
        assert not stopped.still()
        os.kill(proc.pid, signal.SIGSTOP)
        until(stopped.still, "both stopped")


def test_no_file_stays_open_when_the_stop_is_over(standing: Standing) -> None:
    standing.settle()
    assert len(standing.sweeper.stopped.files) == 2
    kept = list(standing.sweeper.stopped.files.values())
    standing.order("run")
    assert not standing.sweeper.stopped.files
    for fd in kept:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_file_of_a_process_is_never_another_ones(standing: Standing) -> None:
    standing.settle()
    proc = next(iter(standing.sweeper.stopped.files))
    other = Proc(proc.pid, proc.inode, proc.start + 1, time.monotonic())
    stopped = StoppedProcesses()
    stopped.watch([other])
    assert not stopped.files
    assert not stopped.still()


def fail_once(monkeypatch: pytest.MonkeyPatch, part: object, name: str) -> Callable[[], bool]:
    """Let the next call of this method meet a defect. Returns a function that tells whether it has."""
    called: list[bool] = []

    def defect(*given: Any) -> Any:
        monkeypatch.undo()
        called.append(True)
        raise AssertionError("a defect")

    monkeypatch.setattr(part, name, defect)
    return lambda: bool(called)


def stopped_again_by_the_loop_alone(standing: Standing, has_failed: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND_S
    while not (has_failed() and state(standing.process.pid) == "T"):
        assert time.monotonic() < end, "the stop is not enforced any more"
        standing.loop.after(0.05, lambda: None)
        standing.loop.turn()


@pytest.mark.parametrize("place", ["glance", "sweep", "drive"])
def test_a_look_that_meets_a_defect_is_followed_by_others(standing: Standing, place: str) -> None:
    """Also while no node daemon is there, whose orders and reports would make the agent look."""
    standing.settle()
    with pytest.MonkeyPatch.context() as patch:
        if place == "glance":
            has_failed = fail_once(patch, standing.finder, "unchanged")
        else:
            standing.finder.counter.now = b"1001"
            has_failed = fail_once(patch, standing.sweeper.stopper, "stop")
        if place == "drive":
            standing.sweeper._schedule(0.0)
        os.kill(standing.process.pid, signal.SIGCONT)
        stopped_again_by_the_loop_alone(standing, has_failed)
