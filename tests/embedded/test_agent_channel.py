"""What the agent sends to MoM's hooks and to its node daemon, and what it accepts from them, friendly or not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.rigs.agent_rig import Doc, Rig, owner, running, state
from magrathea_lab.waiting import BOUND_S, NotInTime, until

COUNT = "while :; do :; done"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def hook(rig: Rig) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(BOUND_S)
    sock.connect(str(rig.socket))
    return sock


# MoM's side


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
    answer = rig.mom("claim", job=rig.job(), deadline_s=0.7)
    assert answer["code"] == "timeout"
    assert rig.host.await_op("release")["job"] == {"id": "12.srv", "run": 1}
    asked = rig.host.seen("claim")
    assert len(asked) == 2  # once at once, and again unchanged after 0.5 s
    assert asked[0] == asked[1]


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
    time.sleep(0.3)
    assert rig.host.seen("launched") == []
    rig.run_job(COUNT)
    assert rig.host.await_op("launched")["job"] == {"id": "12.srv", "run": 1}
    time.sleep(0.7)
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
    assert done.returncode == 2
    assert "another agent" in done.stderr


# The channel


def test_the_agent_introduces_itself_and_reports(rig: Rig) -> None:
    assert rig.host.agent["protocol"] == 1
    assert len(rig.host.agent["session"]) == 16
    report = rig.host.await_op("report")
    assert report["memory"]["total_mib"] > 0


def test_it_comes_back_to_a_daemon_that_was_away_and_asks_again(rig: Rig) -> None:
    first = rig.host.agent["session"]
    rig.claim()
    rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.answers["claim"] = lambda _: None
    with hook(rig) as sock:
        sock.sendall(json.dumps({"op": "claim", "job": rig.job("13.srv"), "deadline_s": 9}).encode() + b"\n")
        rig.host.await_op("claim")
        rig.host.close()
        rig.host.asked.clear()
        rig.host.answers.clear()
        rig.host.accept()
        assert rig.mom_answer(sock) == {"ok": True}
    assert rig.host.agent["session"] != first
    rig.host.await_op("launched")  # sent again: this daemon may not know it
    assert rig.host.request("ping")["ok"]


def test_messages_for_another_connection_are_dropped(rig: Rig) -> None:
    rig.host.answers["claim"] = lambda _: None
    with hook(rig) as sock:
        sock.sendall(json.dumps({"op": "claim", "job": rig.job(), "deadline_s": 2}).encode() + b"\n")
        asked = rig.host.await_op("claim")
        rig.host.raw(rig.host.line(type="answer", id=asked["id"], session="0" * 16, ok=True))
        rig.host.raw(rig.host.line(type="answer", id=asked["id"] + 7, session=asked["session"], ok=True))
        rig.host.raw(rig.host.line(type="request", id=1, session="0" * 16, op="ping"))
        assert rig.mom_answer(sock)["code"] == "timeout"
    with pytest.raises(NotInTime):
        rig.host.answer(1, bound_s=0.2)
    assert rig.host.request("ping")["ok"]


def test_requests_before_the_daemons_hello_are_dropped() -> None:
    with Rig() as rig:
        rig.start(connect=False)
        rig.host.accept(hello=False)
        rig.host.raw(b'half a line of an earlier time"}\n')
        rig.host.session = "a" * 16
        rig.host.raw(rig.host.line(type="request", id=1, session="a" * 16, op="ping"))
        with pytest.raises(NotInTime):
            rig.host.answer(1, bound_s=0.3)
        rig.host.greet()
        assert rig.host.request("ping")["ok"]


def test_an_unknown_operation_is_answered(rig: Rig) -> None:
    answer = rig.host.request("frobnicate")
    assert (answer["ok"], answer["code"]) == (False, "unknown-op")


@pytest.mark.parametrize(
    "body",
    [
        {"orders": 1},
        {"orders": [1]},
        {"orders": [{"id": "1.srv", "run": 1, "order": "kill"}]},
        {"orders": [{"id": "/", "run": 1, "order": "stop"}]},
        {"orders": [{"id": "1.srv", "run": 1, "order": "stop"}] * 2},
        {"orders": [], "deadline_s": "x"},
        {},
    ],
)
def test_orders_that_are_none_are_refused_and_change_nothing(rig: Rig, body: Doc) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    assert rig.host.request("orders", **body)["code"] == "bad-request"
    job.send_signal(signal.SIGCONT)
    until(lambda: state(job.pid) == "T", "the stop that still stands")


def test_orders_that_newer_ones_have_overtaken_change_nothing(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.ids = 10
    rig.host.order("stop")
    row = {"id": "12.srv", "run": 1, "order": "run"}
    rig.host.raw(rig.host.line(type="request", id=5, session=rig.host.session, op="orders", orders=[row]))
    assert rig.host.answer(5)["code"] == "superseded"
    assert state(job.pid) == "T"


def test_ten_bad_lines_in_a_row_end_the_connection_and_nine_do_not(rig: Rig) -> None:
    rig.host.raw(b"garbage\n" * 9)
    assert rig.host.request("ping")["ok"]
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        rig.host.raw(b'{"type":"strange"}\n' + b"x" * 70000 + b"\n" + b"[]\n" * 8)
        until(lambda: rig.host.turn() and False, "the end of the connection")
    rig.host.accept()
    assert rig.host.request("ping")["ok"]


def test_a_line_that_is_too_long_is_one_bad_line(rig: Rig) -> None:
    rig.host.raw(b"x" * 300000 + b"\n")
    assert rig.host.request("ping")["ok"]


def test_lines_may_come_in_pieces(rig: Rig) -> None:
    line = rig.host.line(type="request", id=77, session=rig.host.session, op="ping")
    for at in range(0, len(line), 7):
        rig.host.raw(line[at : at + 7])
        time.sleep(0.001)
    assert rig.host.answer(77)["ok"]


def test_a_flood_is_answered_and_mom_is_served_meanwhile(rig: Rig) -> None:
    lines = [rig.host.line(type="request", id=n, session=rig.host.session, op="ping") for n in range(100, 1400)]
    rig.host.raw(b"".join(lines))
    with hook(rig) as sock:
        sock.sendall(b'{"op":"ping"}\n')
        assert json.loads(sock.recv(1000))["ok"]
    rig.host.answer(1399)


def test_a_daemon_that_does_not_read_is_given_up_not_waited_for(rig: Rig) -> None:
    for n in range(900):  # some hundred bytes each in answers that nobody reads
        rows = [{"id": f"{n}.srv" + "x" * 200, "run": r, "order": "lift"} for r in range(40)]
        try:
            rig.host.raw(rig.host.line(type="request", id=n + 1, session=rig.host.session, op="orders", orders=rows))
        except (BrokenPipeError, ConnectionResetError):
            break
        with hook(rig) as sock:
            sock.sendall(b'{"op":"ping"}\n')
            assert json.loads(sock.recv(1000))["ok"]
    else:
        pytest.fail("the agent took every request and kept every answer")
    rig.host.accept()
    assert rig.host.request("ping")["ok"]


# Restart


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


# Scripts


def script(rig: Rig, name: str, text: str, mode: int = 0o755) -> Path:
    path = rig.directory / "hooks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(mode)
    return path


def test_scripts_run_in_order_with_a_clean_environment_and_their_output_in_the_log(rig: Rig) -> None:
    script(rig, "before-preempt", 'echo "first $MAGRATHEA_JOB $MAGRATHEA_X pid1=$PBS_JOBID"')
    script(rig, "before-preempt.d/20-c", "echo third >&2; exit 3")
    script(rig, "before-preempt.d/10-b", "echo second")
    script(rig, "before-preempt.d/30-open", "echo never", mode=0o777)
    script(rig, "before-preempt.d/40-data", "echo never", mode=0o644)
    env = {"MAGRATHEA_JOB": "12.srv", "X": "$(reboot)"}
    assert rig.host.request("script", name="before-preempt", env=env) == {
        "type": "answer", "id": 1, "session": rig.host.session, "ok": True, "scripts": 3,
    }  # fmt: skip
    until(lambda: "exit code 3" in rig.log_text(), "the last script")
    text = rig.log_text()
    assert text.index("first 12.srv $(reboot) pid1=") < text.index("second") < text.index("third")
    assert "never" not in text


def test_a_script_over_its_time_is_ended_and_nothing_waits_for_it() -> None:
    with running(script_time_limit_s=0.3) as rig:
        script(rig, "slow", "trap '' TERM; echo begun; sleep 600 & wait; sleep 600")
        assert rig.host.request("script", name="slow")["ok"]
        assert rig.host.request("ping")["ok"]
        until(lambda: "signal 9" in rig.log_text() and not rig.children(), "the end of the script")


@pytest.mark.parametrize("name", ["../evil", "", "A", "a/b", "a b", ".", "x" * 100])
def test_a_script_name_that_is_none_is_refused(rig: Rig, name: str) -> None:
    assert rig.host.request("script", name=name)["code"] == "bad-request"


def test_a_script_that_floods_does_not_fill_the_log(rig: Rig) -> None:
    script(rig, "flood", "yes magrathea | head -c 3000000; echo done > " + str(rig.directory / "done"))
    rig.host.request("script", name="flood")
    until((rig.directory / "done").exists, "the script")
    assert rig.host.request("ping")["ok"]
    assert len(rig.log_text()) < 20000


# A virtio-serial port, played by a pseudo-terminal


def test_a_character_device_is_a_channel_too() -> None:
    master, slave = os.openpty()
    try:
        with Rig(channel=f"port:{os.ttyname(slave)}") as rig:
            rig.host.listen()
            os.set_blocking(master, False)
            rig.start(connect=False)
            here, there = socket.socketpair()
            rig.host.sock = here
            with Pump(master, there):
                until(lambda: rig.host.turn() or rig.host.agent, "the agent's hello")
                rig.host.session = "b" * 16
                hello = rig.host.line(type="hello", protocol=1, session="b" * 16, host="h1", domain="n1")
                rig.host.raw(b"rest of a line\n" + hello)
                assert rig.host.request("ping")["ok"]
                # a real port shows no hang-up when the daemon restarts either: a new hello voids everything before it
                before = rig.host.agent["session"]
                rig.host.greet()
                until(lambda: rig.host.turn() or rig.host.agent, "the agent's hello")
                assert rig.host.agent["session"] != before
                assert rig.host.request("ping")["ok"]
            there.close()
    finally:
        os.close(slave)
        os.close(master)


class Pump:
    """Carries bytes between a descriptor and a socket, in a process of its own."""

    def __init__(self, fd: int, sock: socket.socket) -> None:
        code = (
            "import os,select,socket,sys\n"
            "fd=int(sys.argv[1]); s=socket.socket(fileno=int(sys.argv[2]))\n"
            "while True:\n"
            "  for r in select.select([fd,s],[],[])[0]:\n"
            "    if r is s:\n"
            "      d=s.recv(4096)\n"
            "      if not d: sys.exit()\n"
            "      while d:\n"
            "        try: d=d[os.write(fd,d):]\n"
            "        except BlockingIOError: select.select([],[fd],[])\n"
            "    else:\n"
            "      try: d=os.read(fd,4096)\n"
            "      except (BlockingIOError, OSError): continue\n"
            "      s.sendall(d)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(fd), str(sock.fileno())], pass_fds=(fd, sock.fileno())
        )

    def __enter__(self) -> Pump:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def test_who_wants_to_wait_for_scripts_is_answered_after_the_last(rig: Rig) -> None:
    script(rig, "before-freeze", "sleep 0.3; echo one")
    script(rig, "before-freeze.d/10-b", "sleep 0.3; echo two; exit 1")
    assert rig.host.request("script", name="before-freeze", wait=True)["ok"]
    assert "two" in rig.log_text()
    assert rig.host.request("script", name="before-nothing", wait=True)["ok"]


def test_power_goes_off_as_configured_and_on_no_machine_that_is_not_known_to_be_a_guest(rig: Rig) -> None:
    assert "power" not in rig.host.agent["can"]
    assert rig.host.request("power", what="off")["code"] == "not-supported"
    assert rig.host.request("power", what="reboot")["code"] == "bad-request"
    assert rig.host.request("clock", unix_s=time.time() + 3600)["code"] == "not-permitted"
    with running(power_off=["/bin/sh", "-c", "kill $PPID"]) as other:
        assert "power" in other.host.agent["can"]
        assert other.host.request("power", what="off")["ok"]
        until(lambda: other.agent is not None and other.agent.poll() is not None, "what was configured")
