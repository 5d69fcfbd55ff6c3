"""The agent pushes memory of stopped jobs out and fetches it back, in slices, and touches no other memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.rigs.agent_rig import Rig, job_python, running, state
from magrathea_lab.waiting import BOUND_S, until
from node_daemon.agent.advice import Advisor, Slice
from tests.swap import no_swap, swap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may move the memory of other processes")

ROOM_MIB = 96
HOLD = """
import hashlib, os, random, signal, sys, time
mib, place = int(sys.argv[1]), sys.argv[2]
data = bytearray(random.Random(mib).randbytes(1 << 20) * mib)
for i in range(mib):
    data[i << 20] = i % 251
digest = lambda: hashlib.sha256(data).hexdigest()
def tell(number, frame):
    with open(place + ".new", "w") as file:
        file.write(digest())
    os.rename(place + ".new", place)
signal.signal(signal.SIGUSR1, tell)
tell(0, None)
while True:
    time.sleep(0.01)
"""
NAME = {"id": "12.srv", "run": 1}


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def hold(rig: Rig, mib: int = ROOM_MIB, id: str = "12.srv") -> tuple[int, Path]:
    """A process of the job that holds so much memory; returns its pid, and the file where it writes the data's
    digest."""
    shared = rig.directory / "shared"
    shared.mkdir(exist_ok=True)
    shared.chmod(0o777)
    place = shared / f"digest.{id}"
    process = rig.run_job([job_python(), "-c", HOLD, str(mib), str(place)], id=id)
    until(place.exists, "the job's data")
    return process.pid, place


def kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def slices(rig: Rig, op: str, mib: int = 32, jobs: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Ask for slices until nothing more moves."""
    answers = []
    for _ in range(100):
        answer = rig.host.request(op, jobs=jobs or [NAME], mib=mib, deadline_s=BOUND_S)
        assert answer["ok"], answer
        answers.append(answer)
        if not answer["more"] and (op == "fetch" or answer["pushed_mib"] == 0):
            return answers
    raise AssertionError(f"{op} never ends: {answers[-1]}")


def stopped_job(rig: Rig) -> tuple[int, Path]:
    assert rig.claim()["ok"]
    pid, place = hold(rig)
    assert rig.host.order("stop")["stopped"] >= 1
    return pid, place


def test_a_stopped_jobs_memory_goes_out_in_slices_and_comes_back_byte_for_byte(rig: Rig) -> None:
    with swap():
        pid, place = stopped_job(rig)
        before = place.read_text()
        out = slices(rig, "push-out")
        assert all(answer["pushed_mib"] <= 32 + 16 for answer in out), "a slice is no larger than asked for"
        assert sum(answer["pushed_mib"] for answer in out) >= ROOM_MIB - 4
        assert kib(pid, "VmSwap") >= (ROOM_MIB - 4) * 1024
        assert kib(pid, "RssAnon") <= 16 * 1024
        assert state(pid) == "T", "it is still stopped"
        row = rig.host.request("memory")["jobs"][0]
        assert row["stopped"] and row["swapped_mib"] >= ROOM_MIB - 4

        back = slices(rig, "fetch")
        assert sum(answer["fetched_mib"] for answer in back) >= ROOM_MIB - 4
        assert back[-1]["left_mib"] == 0
        place.unlink()
        rig.host.order("run")
        os.kill(pid, signal.SIGUSR1)
        until(place.exists, "the job's data after all")
        assert place.read_text() == before


def test_only_stopped_jobs_are_pushed_out_and_only_the_named_ones(rig: Rig) -> None:
    with swap():
        assert rig.claim()["ok"]
        assert rig.claim(id="13.srv")["ok"]
        pid, _ = hold(rig)
        other, _ = hold(rig, 40, id="13.srv")
        refused = rig.host.request("push-out", jobs=[NAME], mib=32)
        assert refused["code"] == "not-stopped"
        assert rig.host.orders(j12="stop")["ok"]
        both = rig.host.request("push-out", jobs=[NAME, {"id": "13.srv", "run": 1}], mib=32)
        assert both["code"] == "not-stopped" and "13.srv" in both["text"]
        slices(rig, "push-out")
        assert kib(pid, "VmSwap") > 0
        assert kib(other, "VmSwap") == 0


def pushed_out(pid: int) -> int:
    """Pages that a slice takes from the process, after the agent was asked and has agreed."""
    start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    work = Slice(Advisor(), Advisor.PAGEOUT, [(pid, start)], 16 * 256, time.monotonic() + 10)
    work.run((0, 0))
    return work.moved


def test_a_process_that_somebody_continued_is_not_pushed_out(rig: Rig) -> None:
    """A process can be continued after the agent has agreed, so the agent checks each process again before it touches
    its memory."""
    assert rig.claim()["ok"]
    pid, _ = hold(rig)
    with swap():
        assert (pushed_out(pid), kib(pid, "VmSwap")) == (0, 0), "it runs"
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state(pid) == "T", "it stands")
        assert pushed_out(pid) > 0 and kib(pid, "VmSwap") > 0
        os.kill(pid, signal.SIGCONT)
        until(lambda: state(pid) != "T", "it runs again")
        assert pushed_out(pid) == 0


def test_without_swap_nothing_is_pushed_and_that_is_reported_at_once(rig: Rig) -> None:
    with no_swap():
        pid, _ = stopped_job(rig)
        answer = rig.host.request("push-out", jobs=[NAME], mib=1024)
        assert answer["ok"] and answer["pushed_mib"] == 0 and not answer["more"]
        assert answer["left_mib"] >= ROOM_MIB - 4
        assert kib(pid, "VmSwap") == 0
        assert answer["memory"]["swap_total_mib"] == 0


def test_the_agent_answers_while_a_slice_is_under_way_and_does_not_grow(rig: Rig) -> None:
    with swap():
        pid, place = stopped_job(rig)
        assert rig.agent is not None
        slices(rig, "push-out", 16)  # pages that it needs for the first time stay
        slices(rig, "fetch", 16)
        place.unlink()
        rig.host.order("run")
        os.kill(pid, signal.SIGUSR1)
        until(place.exists, "the job has used all its memory again")
        assert rig.host.order("stop")["stopped"] >= 1
        grown = kib(rig.agent.pid, "RssAnon")
        rig.host.ids += 1
        mine = rig.host.ids
        session = rig.host.session
        rig.host.ids += 1
        ping = rig.host.ids
        # in one piece, so that the agent has both before it begins with the first
        push_out = {"op": "push-out", "jobs": [NAME], "mib": ROOM_MIB, "deadline_s": 60}
        rig.host.raw(
            rig.host.line(type="request", id=mine, session=session, **push_out)
            + rig.host.line(type="request", id=ping, session=session, op="ping")
        )
        answers: list[dict[str, Any]] = []

        def both_came() -> bool:
            answers.extend(rig.host.turn())
            return len(answers) == 2

        until(both_came, "both answers")
        assert [answer["id"] for answer in answers] == [ping, mine], "it answers while the kernel writes"
        assert answers[1]["ok"] and answers[1]["pushed_mib"] > 0
        assert kib(rig.agent.pid, "RssAnon") <= grown + 1024


def test_an_agent_killed_in_mid_slice_leaves_nothing_behind_and_the_next_continues(rig: Rig) -> None:
    with swap():
        pid, place = stopped_job(rig)
        before = place.read_text()
        rig.host.ids += 1
        rig.host.raw(
            rig.host.line(
                type="request", id=rig.host.ids, session=rig.host.session, op="push-out", jobs=[NAME], mib=ROOM_MIB
            )
        )
        until(lambda: kib(pid, "VmSwap") > 0, "the slice has begun")
        rig.kill()
        rig.start()
        until(lambda: rig.host.request("memory")["jobs"][0]["stopped"], "the stop stands again")
        slices(rig, "push-out")
        assert kib(pid, "VmSwap") >= (ROOM_MIB - 4) * 1024
        slices(rig, "fetch")
        place.unlink()
        rig.host.order("run")
        os.kill(pid, signal.SIGUSR1)
        until(place.exists, "the job's data after all")
        assert place.read_text() == before


def test_memory_shared_by_processes_of_the_job_stays_and_the_rest_goes(rig: Rig) -> None:
    """The kernel skips pages that two processes map. Without a cgroup nothing else works, and nothing waits for
    them."""
    with swap():
        assert rig.claim()["ok"]
        shared = rig.directory / "shared"
        shared.mkdir(exist_ok=True)
        shared.chmod(0o777)
        code = """
import os, sys, time
common = bytearray(os.urandom(1 << 20) * 32)
own = None
if os.fork():
    own = bytearray(os.urandom(1 << 20) * 32)
    open(sys.argv[1], "w").write("1")
while True:
    time.sleep(0.01)
"""
        process = rig.run_job([job_python(), "-c", code, str(shared / "there")])
        until((shared / "there").exists, "its memory")
        assert rig.host.order("stop")["stopped"] == 2
        pushed = sum(answer["pushed_mib"] for answer in slices(rig, "push-out"))
        assert 28 <= pushed < 60
        assert kib(process.pid, "VmSwap") >= 28 * 1024


def test_nonsense_is_refused(rig: Rig) -> None:
    for body in ({}, {"jobs": [1], "mib": 1}, {"jobs": [NAME], "mib": 0}, {"jobs": [NAME], "mib": "all"}):
        assert rig.host.request("push-out", **body)["code"] == "bad-request"
    assert rig.host.request("push-out", jobs=[NAME], mib=1)["code"] == "not-stopped"


def test_the_kernel_kills_others_before_the_agent_when_memory_runs_out(rig: Rig) -> None:
    assert rig.agent is not None
    lowered = Path(f"/proc/{rig.agent.pid}/oom_score_adj").read_text().strip() == "-1000"
    assert lowered != ("oom_score_adj may not be lowered here" in rig.log_text())
