"""A slice that not even SIGKILL ends costs its own process, and keeps no other slice waiting."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.agent import advice, children, pager
from node_daemon.agent.cgroups import Cgroups
from node_daemon.agent.jobs import Job, Proc
from node_daemon.agent.loop import Loop
from node_daemon.agent.pager import Pager

HANGING, GOOD = 1001, 1002


class Slice(advice.Slice):
    """Hangs at one process."""

    def _process(self, pid: int, start: int, address: int) -> bool:
        self.on_process(self.cursor[0])
        while pid == HANGING:
            signal.pause()
        self.moved += 256
        return True


class Deaf(Pager):
    """Its children get no signal, as if they waited in the kernel."""

    LATE_S = IMMORTAL_S = 0.0

    def _kill(self) -> None:
        pass


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deaf]:
    monkeypatch.setattr(pager, "Slice", Slice)
    monkeypatch.setattr(advice.Advisor, "missing", lambda: "")
    monkeypatch.setattr(pager, "memory_report", lambda: {"swap_free_mib": 100, "available_mib": 100})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(children, "POLL_S", (0.001, 0.001))
    found = Deaf(Loop(), Cgroups(()))
    try:
        yield found
    finally:
        for child in found.immortal:
            child.signal(signal.SIGKILL)
            os.waitpid(child.pid, 0)


def job_of(*pids: int) -> Job:
    job = Job(("12.srv", 1), time.monotonic())
    job.procs = {pid: Proc(pid, 0, pid, 0.0) for pid in pids}
    return job


def slice_of(deaf: Deaf, job: Job, deadline_s: float) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    deaf.start("push-out", [job], 10, deadline_s, answers.append)
    end = time.monotonic() + BOUND_S
    while not answers:
        assert time.monotonic() < end, "no answer"
        deaf.loop.turn()
    return answers[0]


@pytest.mark.long
def test_a_slice_that_cannot_be_ended_is_given_up_and_the_next_one_leaves_its_process_out(deaf: Deaf) -> None:
    job = job_of(HANGING, GOOD)
    assert slice_of(deaf, job, 2.0)["code"] == "timeout"
    assert set(deaf.locked) == {(HANGING, HANGING)}
    answer = slice_of(deaf, job, BOUND_S)
    assert answer["ok"] and answer["pushed_mib"] == 1


def test_slices_that_cannot_be_ended_are_bounded(deaf: Deaf) -> None:
    for _ in range(Deaf.MOST_IMMORTAL):
        deaf.locked.clear()
        assert slice_of(deaf, job_of(HANGING), 0.1)["code"] == "timeout"
    assert slice_of(deaf, job_of(GOOD), BOUND_S)["code"] == "busy"
    for child in deaf.immortal:
        child.signal(signal.SIGKILL)
    end = time.monotonic() + BOUND_S
    while deaf.immortal:
        assert time.monotonic() < end, "their end is not seen"
        deaf.loop.turn()
    assert slice_of(deaf, job_of(GOOD), BOUND_S)["ok"]
