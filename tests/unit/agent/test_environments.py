"""An environment that cannot be read costs its own process only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from magrathea_lab.waiting import BOUND_S, until
from node_daemon.agent import environments, procfs
from node_daemon.agent.environments import MOST_LATE, MOST_OF_USER, Environments
from node_daemon.agent.jobs import Proc

HANGING, GOOD = 20, 3


class Jobs:
    """Processes with a job's id in their environment. Those in `hanging` cannot be read, as the reader believes."""

    def __init__(self, count: int) -> None:
        self.children = [subprocess.Popen(["sleep", "600"], env={"PBS_JOBID": "12.srv"}) for _ in range(count)]
        self.procs: dict[int, Proc] = {}
        for child in self.children:
            self.procs[child.pid] = Proc(child.pid, 0, procfs.start_of(child.pid) or 0, time.monotonic())
        self.hanging = set(list(self.procs)[:HANGING])
        self.environments = Environments([])

    def read(self, pid: int) -> bytes:
        if pid in self.hanging:
            while True:
                signal.pause()
        return procfs.read_environ(pid)

    def look(self, uid: int = 1000) -> list[Proc]:
        """Read as a look does. Returns those whose read is not over."""
        self.environments.tidy(self.procs)
        unread = [
            proc for proc in self.procs.values() if proc.env_job is None and not self.environments.rests(proc, uid)
        ]
        asked = [proc for proc in unread if not self.environments.is_being_read(proc)]
        self.environments.read([(proc, uid) for proc in asked], time.monotonic() + 0.02)
        return unread

    def read_a_good_one(self) -> Proc:
        """Afterwards a reader is free."""
        good = next(proc for pid, proc in self.procs.items() if pid not in self.hanging)
        good.env_job = None
        until(lambda: not self.look(), "another read")
        return good

    def close(self) -> None:
        self.environments.rest()
        for child in self.children:
            child.kill()
            child.communicate()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    found = Jobs(HANGING + GOOD)
    monkeypatch.setattr(environments, "read_environ", found.read)
    # These reads hang in no kernel. A reader of another process only waits for a CPU, on a busy machine for long.
    hangs = lambda reader: reader.asked[0][0].pid in found.hanging  # noqa: E731
    monkeypatch.setattr(environments.ReaderChild, "waits_for_memory", hangs)
    monkeypatch.setattr(environments, "STARVED_S", BOUND_S)
    monkeypatch.setattr(environments, "REST_S", (BOUND_S, 2 * BOUND_S))
    try:
        yield found
    finally:
        found.close()


@pytest.mark.long
def test_all_that_can_be_read_is_read_although_many_processes_of_the_same_user_hang(jobs: Jobs) -> None:
    until(lambda: not jobs.look(), "a look that leaves nothing to read")
    read = {pid for pid, proc in jobs.procs.items() if proc.env_job == "12.srv"}
    assert read == set(jobs.procs) - jobs.hanging
    assert {pid for pid, _ in jobs.environments.hung} == jobs.hanging


@pytest.mark.long
def test_so_many_reads_of_one_user_hang_at_a_time_and_no_more(jobs: Jobs) -> None:
    late = []

    def is_over() -> bool:
        left = jobs.look()
        late.append(sum(reader.asked[0][0].pid in jobs.hanging for reader in jobs.environments.late))
        return not left

    until(is_over, "a look that leaves nothing to read")
    assert 1 <= max(late) <= MOST_OF_USER


@pytest.mark.long
def test_readers_that_wait_for_a_cpu_are_bounded(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments.ReaderChild, "waits_for_memory", lambda reader: False)
    monkeypatch.setattr(environments, "STARVED_S", BOUND_S)
    for _ in range(MOST_LATE):
        jobs.look()
    assert len(jobs.environments.late) == MOST_LATE
    jobs.look()
    assert len(jobs.environments.late) <= MOST_LATE


@pytest.mark.long
def test_a_process_that_answers_again_is_read_again_after_its_rest(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: not jobs.look(), "a look that leaves nothing to read")
    jobs.hanging.clear()
    jobs.environments.rest()  # the next reader is made with this
    assert not jobs.look(), "not yet"
    for hung in jobs.environments.hung.values():
        hung.until = 0.0
    until(lambda: not jobs.look() or None, "all read")
    assert {proc.env_job for proc in jobs.procs.values()} == {"12.srv"}


@pytest.mark.long
def test_no_reader_stays(jobs: Jobs) -> None:
    until(lambda: not jobs.look(), "a look that leaves nothing to read")
    readers = set(jobs.environments.pids)
    assert readers

    def have_ended() -> bool:
        jobs.environments.rest()
        return not jobs.environments.pids

    until(have_ended, "their end")
    for pid in readers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.long
def test_what_is_known_of_a_process_is_forgotten_with_it(jobs: Jobs) -> None:
    until(lambda: not jobs.look(), "a look that leaves nothing to read")

    def is_forgotten() -> bool:
        jobs.environments.tidy({})
        return not jobs.environments.hung

    until(is_forgotten, "the end of all readers")


@pytest.mark.long
def test_a_reader_without_work_ends(jobs: Jobs) -> None:
    until(lambda: not jobs.look(), "a look that leaves nothing to read")
    jobs.read_a_good_one()
    jobs.environments.relax()
    assert jobs.environments.reader is not None, "it has just worked"
    jobs.environments.relax()
    assert jobs.environments.reader is None


@pytest.mark.long
def test_a_reader_that_was_killed_is_replaced(jobs: Jobs) -> None:
    until(lambda: not jobs.look(), "a look that leaves nothing to read")
    jobs.read_a_good_one()
    assert jobs.environments.reader is not None
    os.kill(jobs.environments.reader.pid, signal.SIGKILL)
    assert jobs.read_a_good_one().env_job == "12.srv"
