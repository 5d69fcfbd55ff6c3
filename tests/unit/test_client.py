"""The control socket's client: its bounds, and that every failure has a cause and a fix."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from magrathea import client
from magrathea.messages import MAX_BYTES, encode
from tests.fakes.control_socket import PREEMPTION, answering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_the_status_is_requested_in_one_line_and_returned_typed(path: Path) -> None:
    with answering(path, encode(PREEMPTION) + b"\n") as questions:
        assert client.status(path) == PREEMPTION
    assert questions[0] == b'{"op":"status"}\n'


def test_an_answer_may_come_in_pieces(path: Path) -> None:
    data = encode(PREEMPTION) + b"\n"
    with answering(path, data[:10], data[10:500], data[500:]):
        assert client.status(path) == PREEMPTION


def test_a_refusal_keeps_its_code(path: Path) -> None:
    with (
        answering(
            path, json.dumps({"ok": False, "code": "not-permitted", "text": "no"}, separators=(",", ":")).encode()
        ),
        pytest.raises(client.RequestRefused) as refused,
    ):
        client.ask(path, {"op": "clear"})
    assert (refused.value.code, str(refused.value)) == ("not-permitted", "no")


def test_a_missing_socket_is_explained(path: Path) -> None:
    with pytest.raises(client.Unreachable, match=r"no such socket.*systemctl start"):
        client.status(path)


def test_a_socket_that_nobody_serves(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(client.Unreachable, match="nobody listens"):
        client.status(path)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, os.mkfifo])
def test_what_is_no_socket_is_told_and_no_daemon_is_blamed(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with pytest.raises(client.Unreachable, match="it is no socket; name the socket: --socket"):
        client.ask(path, {"op": "status"})


def test_a_daemon_that_hangs_is_given_up_at_the_deadline(path: Path) -> None:
    with answering(path, hang=True), pytest.raises(client.Unreachable, match=r"no answer within 0\.1 s"):
        client.status(path, deadline_s=0.1)


def test_a_silent_daemon_is_reported(path: Path) -> None:
    with answering(path), pytest.raises(client.Unreachable, match="without an answer"):
        client.status(path)


@pytest.mark.parametrize(
    "answer", [b"hello\n", b'{"type":"heartbeat","sender":"h1","boot_id":"b","revision":1}\n', b'{"ok":false,3}\n']
)
def test_an_invalid_answer_is_reported(path: Path, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(client.Unreachable, match="its answer is invalid"):
        client.status(path)


def test_an_endless_answer_is_not_read_to_its_end(path: Path) -> None:
    with answering(path, b"x" * (MAX_BYTES + 1_000_000)), pytest.raises(client.Unreachable, match="more than"):
        client.status(path)


def test_a_socket_that_may_not_be_opened(path: Path) -> None:
    if os.geteuid() == 0:
        path = Path("/proc/1/mem/control.sock")  # root may open everything, so use a path that leads through a file
        with pytest.raises(client.Unreachable, match="check the path"):
            client.status(path)
        return
    with answering(path):
        path.parent.chmod(0)
        try:
            with pytest.raises(client.Unreachable, match="no permission to open"):
                client.status(path)
        finally:
            path.parent.chmod(stat.S_IRWXU)


def test_the_socket_comes_from_option_environment_or_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGRATHEA_CONTROL", raising=False)
    assert client.socket_path(None) == Path("/run/magrathea/control.sock")
    monkeypatch.setenv("MAGRATHEA_CONTROL", "/tmp/x")
    assert client.socket_path(None) == Path("/tmp/x")
    assert client.socket_path("/tmp/y") == Path("/tmp/y")
