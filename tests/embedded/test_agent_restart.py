"""What the next agent knows of its predecessor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs.agent_rig import Rig, running, state
from magrathea_lab.waiting import BOUND_S, until

COUNT = "while :; do :; done"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def test_a_killed_agent_s_successor_continues_with_the_standing_stop(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(f"({COUNT}) & ({COUNT}) & wait")
    rig.host.await_op("launched")
    rig.host.order("stop")
    rig.kill()
    assert set(rig.children().values()) == {"T"}
    job.send_signal(signal.SIGCONT)
    rig.start(connect=False)  # no message from the daemon
    until(lambda: set(rig.children().values()) == {"T"}, "the stop that stood before")
    rig.host.accept()
    row = rig.host.order("run")
    assert (row["processes"], row["stopped"]) == (3, 0)


def test_the_next_agent_knows_the_stopped_processes_when_the_job_is_released(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    rig.kill()
    rig.start()
    rig.mom("release", job={"id": "12.srv", "run": 1})
    assert job.wait(BOUND_S) == -signal.SIGKILL


def test_after_an_orderly_end_stopped_jobs_stay_stopped(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    assert rig.kill(signal.SIGTERM) == 0
    assert not rig.socket.exists()
    assert state(job.pid) == "T"
    rig.start()
    rig.host.order("run")
    assert state(job.pid) == "R"


def test_a_damaged_state_file_does_not_keep_the_agent_from_starting(rig: Rig) -> None:
    rig.kill()
    rig.state.write_bytes(os.urandom(1000))
    rig.start()
    assert rig.host.request("ping")["ok"]
    assert "put aside" in rig.log_text()
