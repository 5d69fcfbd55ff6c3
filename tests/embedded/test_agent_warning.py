"""A job is warned before it is stopped: only processes that handle the signal, once, and never longer than asked."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.rigs.agent_rig import Rig, job_python, running, state
from magrathea_lab.waiting import BOUND_S, until

WARNED = """
import signal, sys, time
def told(*_):
    with open(sys.argv[1], "a") as file:
        file.write("told\\n")
signal.signal(signal.SIGUSR1, told)
open(sys.argv[1] + ".ready", "w").close()
while True:
    open(sys.argv[1] + ".beat", "w").close()
    time.sleep(0.01)
"""


LONG_S = 55.0
"""A test would notice if anybody waited for this warning; the agent accepts at most 60 s."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def handler(rig: Rig) -> Path:
    """A running job with a process that writes a line into this file at each SIGUSR1."""
    shared = rig.directory / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    rig.run_job([job_python(), "-c", WARNED, str(shared / "said")])
    until((shared / "said.ready").exists, "the handler")
    return shared / "said"


def stop(rig: Rig, warn_s: float) -> tuple[dict[str, Any], float]:
    """The agent's row for the job, and how long its stop took."""
    order = {"id": "12.srv", "run": 1, "order": "stop", "warn_signal": "SIGUSR1", "warn_s": warn_s}
    began = time.monotonic()
    answer = rig.host.request("orders", orders=[order], deadline_s=warn_s + BOUND_S)
    assert answer["ok"], answer
    return answer["jobs"][0], time.monotonic() - began


def test_it_has_the_time_to_do_something_and_is_stopped_then(rig: Rig) -> None:
    rig.claim()
    said = handler(rig)
    row, seconds = stop(rig, 0.6)
    assert said.read_text() == "told\n"
    assert (row["processes"], row["stopped"]) == (1, 1)
    assert seconds >= 0.6


def test_a_process_that_the_signal_would_kill_gets_no_warning(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job("sleep 100 & while :; do sleep 0.1; done")
    until(lambda: len(rig.children()) >= 2, "its processes")
    row, seconds = stop(rig, LONG_S)
    assert row["stopped"] == row["processes"]
    assert seconds < LONG_S
    rig.host.order("run")
    assert job.poll() is None


FIRST_AND_OTHERS = """
trap 'echo told > "$0.shell"' USR1
%s "$0" &
: > "$0.shell.ready"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("first_only", [True, False])
def test_the_signal_goes_to_the_jobs_first_process_alone_if_the_job_wants_that(rig: Rig, first_only: bool) -> None:
    rig.claim()
    shared = rig.directory / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    said = shared / "said"
    script = FIRST_AND_OTHERS % f"{job_python()} -c {shlex.quote(WARNED)}"
    rig.run_job(["/bin/bash", "-c", script, str(said)])
    until(lambda: (shared / "said.ready").exists() and (shared / "said.shell.ready").exists(), "both handlers")
    order = {"id": "12.srv", "run": 1, "order": "stop", "warn_signal": "SIGUSR1", "warn_s": LONG_S}
    rig.host.send("orders", orders=[{**order, "warn_first_only": first_only}], deadline_s=LONG_S + 2)
    until((shared / "said.shell").exists, "the shell's handler")
    row = rig.host.order("run")
    assert row["stopped"] == 0
    assert first_only or until(said.exists, "the other's handler")
    beat = said.with_name("said.beat")
    for _ in range(2):  # the other's handler would have run before the second step
        beat.unlink(missing_ok=True)
        until(beat.exists, "the other's next step")
    assert said.exists() is not first_only


def test_a_first_process_that_does_not_handle_the_signal_is_not_killed_by_it(rig: Rig) -> None:
    rig.claim()
    said = handler(rig)
    job = rig.run_job("while :; do sleep 0.05; done", id="13.srv")
    rig.claim("13.srv")
    order = {"id": "13.srv", "run": 1, "order": "stop", "warn_signal": "SIGUSR1", "warn_s": LONG_S}
    began = time.monotonic()
    answer = rig.host.request("orders", orders=[{**order, "warn_first_only": True}], deadline_s=LONG_S + 2)
    assert answer["jobs"][0]["stopped"] == answer["jobs"][0]["processes"]
    assert time.monotonic() - began < LONG_S
    assert job.poll() is None
    assert not said.exists()


def test_a_standing_stop_is_not_announced_again(rig: Rig) -> None:
    rig.claim()
    said = handler(rig)
    stop(rig, 0.2)
    _, seconds = stop(rig, LONG_S)
    assert seconds < LONG_S
    rig.host.order("run")
    beat = said.with_name("said.beat")
    for _ in range(2):  # the handler of a second signal would have run before the second one
        beat.unlink(missing_ok=True)
        until(beat.exists, "the job's next step")
    assert said.read_text() == "told\n"


def test_a_warning_that_is_taken_back_stops_nobody(rig: Rig) -> None:
    rig.claim()
    said = handler(rig)
    order = {"id": "12.srv", "run": 1, "order": "stop", "warn_signal": "SIGUSR1", "warn_s": 30.0}
    rig.host.send("orders", orders=[order], deadline_s=40.0)
    until(said.exists, "the warning")
    row = rig.host.order("run")
    assert (row["processes"], row["stopped"]) == (1, 0)


@pytest.mark.parametrize("name", ["SIGKILL", "USR1", ""])
def test_a_signal_that_is_none_for_a_warning_is_refused(rig: Rig, name: str) -> None:
    rig.claim()
    order = {"id": "12.srv", "run": 1, "order": "stop", "warn_signal": name, "warn_s": 1.0}
    assert rig.host.request("orders", orders=[order], deadline_s=1.0)["code"] == "bad-request"


def test_continuing_a_stopped_job_by_hand_is_reported(rig: Rig) -> None:
    rig.claim()
    rig.run_job("while :; do :; done")
    until(rig.children, "its process")
    rig.host.order("stop")
    for pid in rig.children():
        os.kill(pid, signal.SIGCONT)
    until(lambda: set(rig.children().values()) == {"T"} and "stopped again" in rig.log_text(), "the next sweep")


def warn(rig: Rig, **others: str) -> int:
    """Order a stop of job 12 with a long warning, and other orders beside it. Returns the request's id."""
    rows = [{"id": "12.srv", "run": 1, "order": "stop", "warn_signal": "SIGUSR1", "warn_s": LONG_S}]
    rows += [{"id": f"{name[1:]}.srv", "run": 1, "order": word} for name, word in others.items()]
    return rig.host.send("orders", orders=rows, deadline_s=LONG_S + 2)


def test_other_stops_are_enforced_while_a_job_has_its_time(rig: Rig) -> None:
    """It may be of the same user, and continue them."""
    rig.claim()
    said = handler(rig)
    rig.claim("13.srv")
    other = rig.run_job("while :; do sleep 0.05; done", id="13.srv")
    until(lambda: rig.host.orders(j13="stop")["jobs"][0]["stopped"] >= 1, "the other one's stop")
    began = time.monotonic()
    warn(rig, j13="stop")
    until(said.exists, "the warning")
    for _ in range(3):
        until(lambda: rig.host.turn() or state(other.pid) == "T", "the stop, again")
        os.kill(other.pid, signal.SIGCONT)
    until(lambda: state(other.pid) == "T", "the stop, again")
    assert time.monotonic() - began < LONG_S


def test_the_end_of_a_warned_job_is_reported_at_once(rig: Rig, tmp_path: Path) -> None:
    """It has saved what it needs, and ends before its time is over. Its file stays while MoM copies its output."""
    (tmp_path / "mom_priv/jobs").mkdir(parents=True)
    (tmp_path / "mom_priv/jobs/12.srv.JB").touch()
    assert rig.mom("claim", job=rig.job(), deadline_s=BOUND_S, home=str(tmp_path)) == {"ok": True}
    said = handler(rig)
    rig.host.await_op("launched")
    began = time.monotonic()
    warn(rig)
    until(said.exists, "the warning")
    [pid] = rig.children()
    os.kill(pid, signal.SIGKILL)
    assert rig.host.await_op("release")["job"] == {"id": "12.srv", "run": 1}
    assert time.monotonic() - began < LONG_S
