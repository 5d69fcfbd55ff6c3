"""What the agent and its node daemon send each other, friendly or not."""

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

import pytest

from magrathea_lab.rigs.agent_rig import Doc, Rig, hook, running, state
from magrathea_lab.waiting import NotInTime, until

COUNT = "while :; do :; done"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


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
