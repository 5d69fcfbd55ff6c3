"""Numbers that end a program: from the channel, from MoM's socket and from the state file. The agent goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs.agent_rig import Rig, running, state
from magrathea_lab.waiting import BOUND_S, until

HUGE = "1" + "0" * 400
COUNT = "while :; do :; done"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found
        assert found.agent is not None and found.agent.poll() is None, "the agent has ended"
        assert "defect" not in found.log_text()


@pytest.mark.parametrize(
    ("op", "body"),
    [
        ("clock", '"unix_s":HUGE'),
        ("clock", '"unix_s":1e999'),
        ("orders", '"orders":[],"deadline_s":HUGE'),
        ("orders", '"orders":[{"id":"1.srv","run":HUGE,"order":"stop"}]'),
        ("orders", '"orders":[{"id":"1.srv","run":1,"order":"stop","warn_signal":"SIGTERM","warn_s":HUGE}]'),
        ("push-out", '"jobs":[{"id":"1.srv","run":1}],"mib":HUGE'),
        ("fetch", '"jobs":[{"id":"1.srv","run":1}],"mib":1,"deadline_s":-HUGE'),
        ("script", '"name":"before-preempt","env":{"X":"\\ud800"}'),
        ("script", '"name":"before-preempt","env":{"X":"a\\u0000b"}'),
    ],
)
def test_a_request_of_the_daemon_with_a_bad_value_is_refused(rig: Rig, op: str, body: str) -> None:
    head = f'{{"type":"request","id":7,"session":"{rig.host.session}","op":"{op}",'
    rig.host.raw(head.encode() + body.replace("HUGE", HUGE).encode() + b"}\n")
    answer = rig.host.answer(7)
    assert answer["code"] in ("bad-request", "not-stopped")
    assert rig.host.request("ping")["ok"]


@pytest.mark.parametrize("id", [HUGE, "9" * 5000, "1e999", "-1", "null", '"1"', "1.5"])
def test_a_message_with_a_bad_id_costs_one_line(rig: Rig, id: str) -> None:
    for kind in ("request", "answer", "part", "last"):
        rest = '"op":"ping","ok":true,"of":"request","message":1,"at":0,"text":""'
        rig.host.raw(f'{{"type":"{kind}","id":{id},"session":"{rig.host.session}",{rest}}}\n'.encode())
        rig.host.raw(f'{{"type":"{kind}","id":{id},"session":"{rig.host.agent["session"]}",{rest}}}\n'.encode())
    assert rig.host.request("ping")["ok"]


@pytest.mark.parametrize("hello", ['"protocol":HUGE', '"protocol":1,"host":HUGE', '"protocol":1,"peer":[HUGE]'])
def test_a_hello_with_a_bad_value_costs_one_line(rig: Rig, hello: str) -> None:
    session = rig.host.session
    rig.host.raw(b'{"type":"hello","session":"%s",%s}\n' % (session.encode(), hello.replace("HUGE", HUGE).encode()))
    assert rig.host.request("ping")["ok"]


@pytest.mark.parametrize(
    "line",
    [
        '{"op":"claim","deadline_s":HUGE,"job":JOB}',
        '{"op":"claim","deadline_s":1e999,"job":JOB}',
        '{"op":"prepared","deadline_s":HUGE,"job":JOB}',
        '{"op":"prepared","job":JOB,"vnodes":["\\ud800"]}',
        '{"op":"release","job":{"id":"1.srv","run":HUGE}}',
        '{"op":"jobs","jobs":[{"id":"1.srv","run":1,"cpus":1,"memory_mib":1,"rerunnable":true,"substate":HUGE}]}',
        '{"op":"claim","job":{"id":"1.srv","run":1,"class":"protected","cpus":HUGE}}',
        '{"op":"ping","x":' + "7" * 4_000_000 + "}",
        '{"op":' + "[" * 1_000_000,
    ],
    ids=lambda line: line[:60],
)
def test_a_hooks_request_with_a_bad_value_is_refused(rig: Rig, line: str) -> None:
    line = line.replace("HUGE", HUGE).replace("JOB", json.dumps(rig.job()))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_S)
        sock.connect(str(rig.socket))
        sock.sendall(line.encode() + b"\n")
        assert rig.mom_answer(sock)["code"] == "bad-request"
    assert rig.mom("ping") == {"ok": True, "connected": True}


def test_a_state_file_with_a_bad_value_is_put_aside_and_the_agent_continues(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    until(lambda: "stopped_at" in rig.state.read_text(), "the state file")
    rig.kill()
    doc = json.loads(rig.state.read_text())
    doc["jobs"][0]["stopped_at"] = 10**400
    rig.state.write_text(json.dumps(doc))
    rig.start()
    assert rig.host.request("ping")["ok"]
    assert "put aside" in rig.log_text()
    rig.host.order("run")  # the daemon decides, as for every job that the agent does not know
    assert state(job.pid) in "TR"
