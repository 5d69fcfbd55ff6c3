"""The questions of MoM's hooks to the agent; nobody else gets an answer."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.rigs.agent_rig import Doc, Rig, hook, owner, running, state
from magrathea_lab.waiting import BOUND_S, until

COUNT = "while :; do :; done"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def test_a_claim_goes_to_the_daemon_without_the_hooks_own_fields(rig: Rig) -> None:
    assert rig.claim("7[3].srv", 4, memory_mib=100, cpus=2) == {"ok": True}
    (asked,) = rig.host.seen("claim")
    assert asked["job"] == {
        "id": "7[3].srv", "run": 4, "class": "preemptible", "cpus": 2, "memory_mib": 100, "rerunnable": True,
    }  # fmt: skip
    assert asked["session"] == rig.host.agent["session"]


def test_a_refusal_reaches_the_hook_whole(rig: Rig) -> None:
    refusal = {"ok": False, "code": "host-busy", "text": "p1 runs 3.srv", "retry_after_s": 5}
    rig.host.answers["claim"] = lambda _: refusal
    assert rig.claim() == refusal


def test_without_a_daemon_the_hook_gets_a_refusal_at_once() -> None:
    with Rig() as rig:
        rig.start(connect=False)
        until(rig.socket.exists, "the agent's socket")
        for op, body in (("claim", {"job": rig.job()}), ("jobs", {"jobs": []}), ("prepared", {"job": rig.job()})):
            assert rig.mom(op, **body)["code"] == "no-daemon"
        assert rig.mom("ping") == {"ok": True, "connected": False}


def test_a_claim_without_an_answer_is_a_timeout_and_taken_back(rig: Rig) -> None:
    rig.host.answers["claim"] = lambda _: None
    answer = rig.mom("claim", job=rig.job(), deadline_s=2.0)
    assert answer["code"] == "timeout"
    assert rig.host.await_op("release")["job"] == {"id": "12.srv", "run": 1}
    asked = rig.host.seen("claim")
    assert len(asked) >= 2  # at once, and again after each 0.5 s; a starved agent skips some
    assert all(again == asked[0] for again in asked)


def test_a_claim_is_taken_back_if_its_hook_has_gone(rig: Rig) -> None:
    rig.host.answers["claim"] = lambda _: None
    sock = hook(rig)
    sock.sendall(json.dumps({"op": "claim", "job": rig.job(), "deadline_s": 5}).encode() + b"\n")
    asked = rig.host.await_op("claim")
    sock.close()
    rig.host.raw(rig.host.line(type="answer", id=asked["id"], session=asked["session"], ok=True))
    rig.host.await_op("release")


def test_a_hook_may_close_its_writing_side(rig: Rig) -> None:
    with hook(rig) as sock:
        sock.sendall(json.dumps({"op": "claim", "job": rig.job(), "deadline_s": 5}).encode() + b"\n")
        sock.shutdown(socket.SHUT_WR)
        assert rig.mom_answer(sock) == {"ok": True}


def test_prepared_reports_whether_the_memory_has_arrived(rig: Rig) -> None:
    rig.host.answers["prepared"] = lambda _: {"ok": True, "ready": False}
    assert rig.mom("prepared", job=rig.job(), deadline_s=2) == {"ok": True, "ready": False}
    assert rig.host.seen("prepared")[-1]["vnodes"] == []


def test_the_parts_of_a_job_of_several_hosts_are_named_and_why_they_are_not_ready_is_passed_on(rig: Rig) -> None:
    rig.host.answers["prepared"] = lambda _: {"ok": True, "ready": False, "text": "waits for its memory: h2: n2"}
    vnodes = ["n1", "n2"]
    answer = rig.mom("prepared", job=rig.job(), vnodes=vnodes, deadline_s=2)
    assert answer == {"ok": True, "ready": False, "text": "waits for its memory: h2: n2"}
    assert rig.host.seen("prepared")[-1]["vnodes"] == vnodes
    for wrong in ("n1", [1], [""], ["n" * 256], ["n1"] * 201):
        assert rig.mom("prepared", job=rig.job(), vnodes=wrong, deadline_s=2)["ok"] is False


def test_moms_list_continues_and_a_missing_job_is_forgotten(rig: Rig) -> None:
    row = {**rig.job("1.srv"), "substate": 42, "session_id": 1 << 30}
    assert rig.mom("jobs", jobs=[row, {**rig.job("2.srv"), "substate": 43}]) == {"ok": True}
    (asked,) = rig.host.seen("jobs")
    assert asked["jobs"] == [
        {"id": id, "run": 1, "cpus": 1, "memory_mib": 1, "substate": substate, "rerunnable": True}
        for id, substate in (("1.srv", 42), ("2.srv", 43))
    ]


def test_a_job_is_reported_as_launched_once_a_process_of_it_is_seen(rig: Rig) -> None:
    rig.claim()
    rig.host.order("lift")  # the agent has looked once more, and a report would have come before its answer
    assert rig.host.seen("launched") == []
    rig.run_job(COUNT)
    assert rig.host.await_op("launched")["job"] == {"id": "12.srv", "run": 1}
    for _ in range(3):
        rig.host.order("lift")
    assert len(rig.host.seen("launched")) == 1


def test_a_part_on_a_further_host_counts_as_launched_for_it_may_never_have_a_process(rig: Rig) -> None:
    rig.claim(sister=True)
    assert rig.host.await_op("launched")["job"] == {"id": "12.srv", "run": 1}
    rig.mom("jobs", jobs=[{**rig.job("13.srv"), "substate": 41, "sister": True}])
    until(lambda: {"id": "13.srv", "run": 1} in [asked["job"] for asked in rig.host.seen("launched")], "the other one")


def test_the_guests_root_may_ask_its_agent_for_everything(rig: Rig) -> None:
    rig.claim()
    rig.run_job(COUNT)
    rig.host.await_op("launched")
    before = time.time()
    rig.host.order("stop")
    told = rig.mom("status")
    assert (told["connected"], told["host"], told["domain"]) == (True, "h1", "n1")
    assert told["memory"]["total_mib"] > 0
    (job,) = told["jobs"]
    assert (job["id"], job["order"], job["owner"]) == ("12.srv", "stop", owner().pw_name)
    assert job["stopped"] == job["processes"] >= 1
    assert before <= job["since"] <= time.time()
    rig.host.order("run")
    assert rig.mom("status")["jobs"][0]["since"] is None


def test_a_deleted_job_is_never_prepared(rig: Rig) -> None:
    rig.claim()
    job = {"id": "12.srv", "run": 1}
    assert rig.mom("ending", job=job) == {"ok": True}
    assert rig.mom("prepared", job=job, deadline_s=5)["code"] == "deleted"
    assert rig.host.seen("prepared") == []


def test_a_session_that_mom_names_is_the_jobs(rig: Rig) -> None:
    job = rig.run_job(["/bin/sleep", "600"], id=None)
    rig.mom("jobs", jobs=[{**rig.job(), "substate": 42, "session_id": job.pid}])
    rig.host.await_op("launched")
    rig.host.order("stop")
    assert state(job.pid) == "T"


@pytest.mark.parametrize(
    "request_line",
    [
        b"",
        b"garbage",
        b"[]",
        b'{"op":"frobnicate"}',
        b'{"op":"claim"}',
        b'{"op":"claim","job":{"id":"../x","run":1}}',
        b'{"op":"claim","job":[]}',
        b'{"op":"jobs","jobs":[1]}',
        b'{"op":"jobs","jobs":{"a":1}}',
        b'{"op":"release","job":{"id":"1.srv","run":true}}',
        b'{"op":"ping","x":"' + b"x" * (9 << 20) + b'"}',
        b"\0" * 100,
        b"\xff\xfe",
    ],
)
def test_a_bad_request_is_answered_so_and_harms_nobody(rig: Rig, request_line: bytes) -> None:
    with hook(rig) as sock:
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(request_line + b"\n")
        assert rig.mom_answer(sock)["code"] == "bad-request"
    assert rig.mom("ping") == {"ok": True, "connected": True}


@pytest.mark.parametrize(
    "wrong", [{"class": "urgent"}, {"cpus": "2"}, {"cpus": 1 << 50}, {"rerunnable": 1}, {"memory_mib": None}]
)
def test_a_claim_with_a_wrong_field_is_refused_before_the_daemon_hears_of_it(rig: Rig, wrong: Doc) -> None:
    assert rig.claim(**wrong)["code"] == "bad-request"
    assert rig.host.seen("claim") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="without root all jobs are our own user's")
def test_a_claim_for_an_unknown_user_is_refused(rig: Rig) -> None:
    assert rig.claim(owner="no-such-user-here")["code"] == "bad-request"


def test_more_hooks_than_are_possible_at_once_are_turned_away_and_the_rest_served(rig: Rig) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(40):
            with contextlib.suppress(BlockingIOError):  # the kernel's own queue is full
                idle.enter_context(hook(rig))
    assert until(lambda: rig.mom("ping") == {"ok": True, "connected": True}, "service after the crowd")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_gets_nothing(rig: Rig) -> None:
    assert rig.socket.stat().st_mode & 0o777 == 0o600
    rig.socket.chmod(0o666)  # the agent checks the credentials even if somebody does this
    code = f"import socket; s=socket.socket(socket.AF_UNIX); s.connect({str(rig.socket)!r}); print(s.recv(1000))"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code], user=owner().pw_uid, cwd="/", capture_output=True, text=True, check=True
    )
    assert "not-permitted" in done.stdout


def test_a_second_agent_for_the_same_socket_does_not_start(rig: Rig) -> None:
    done = subprocess.run(
        [rig.python, str(Path(__file__).parents[2] / "node_daemon" / "agent"), "--config", str(rig.config_path)],
        capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "another agent" in done.stderr
