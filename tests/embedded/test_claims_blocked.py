"""Processes that no signal wakes hold up no claim. A file server of the job's own is stopped with it, before or after
them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from magrathea_lab.rigs.agent_rig import MARK, descendants, state
from magrathea_lab.waiting import eventually

from .rig import Job, Rig
from .test_agent_blocked import DEAD_FILE, may_mount
from .test_daemon import play

pytestmark = pytest.mark.skipif(not may_mount(), reason="a file server needs root and /dev/fuse")

HANGING = 20
TRIES = 10
"""A claim has 1.4 s, and such processes count as stopped after one. On a busy machine a claim may come too late."""


def hangs(top: int) -> list[int]:
    return [pid for pid in (top, *descendants(top)) if state(pid) == "D"]


def test_twenty_processes_in_uninterruptible_sleep_hold_up_no_claim(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low, high = Job("1.srv", 1, "preemptible", 2), Job("2.srv", 1, "priority")
        assert (await r.claim("n1", low))["ok"]
        shared = tmp_path / "shared"
        shared.mkdir()
        top = subprocess.Popen(
            [sys.executable, "-c", DEAD_FILE, str(shared), "0", str(HANGING), "0"],
            env={**os.environ, "PBS_JOBID": low.id, MARK: str(r.folder)},
            start_new_session=True,
        )
        low.session = top.pid
        try:
            await eventually(lambda: r.report("n1").state == "running-preemptible", lambda: str(r.report("n1")))
            (shared / "go").touch()
            await eventually(lambda: len(hangs(top.pid)) == HANGING, f"{HANGING} processes that hang")
            for _ in range(TRIES):
                answer = await r.claim("p1", high)
                if answer["ok"]:
                    break
                assert answer["code"] == "stop-timeout", answer
                high.run += 1
            assert answer["ok"], answer
            await eventually(lambda: len(hangs(top.pid)) == HANGING, "nothing that was woken by the stop")
        finally:
            for pid in (top.pid, *descendants(top.pid)):
                os.kill(pid, signal.SIGKILL)
            top.wait()

    play(tmp_path, test)
