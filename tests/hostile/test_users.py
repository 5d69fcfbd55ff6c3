"""Ordinary users of the machine at a control socket: they may look, but they cannot block anybody else."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import signal
import socket
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from magrathea import client, control
from magrathea.control import PER_USER, STRANGERS, Control, ControlRequest, Operation, granted
from magrathea_lab.waiting import BOUND_S, eventually, until

STRANGER = 4711

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Users:
    """Sets which user connects next, for code that asks the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uid = 0
        self.accepted = 0
        monkeypatch.setattr(control, "peer", self.peer)
        monkeypatch.setattr(control, "LINE_S", BOUND_S)

    def peer(self, connection: socket.socket) -> tuple[int, int]:
        self.accepted += 1
        return self.uid, self.uid

    async def connect(self, path: Path, uid: int) -> Connection:
        """A connection of that user, which has been accepted; it sends nothing."""
        self.uid, before = uid, self.accepted
        connection = await asyncio.open_unix_connection(path)
        await eventually(lambda: self.accepted > before, "the connection is accepted")
        for _ in range(3):  # turns of the loop in which a refusal and the end after it are read, before a write fails
            await asyncio.sleep(0)
        return connection

    async def ask(self, path: Path, uid: int, line: bytes) -> bytes:
        reader, writer = await self.connect(path, uid)
        try:
            writer.write(line)
            async with asyncio.timeout(BOUND_S):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Users:
    return Users(monkeypatch)


async def _status(request: ControlRequest) -> bytes:
    return granted(state="free")


async def _drain(request: ControlRequest) -> bytes:
    return granted()


async def _breaks(request: ControlRequest) -> bytes:
    raise ZeroDivisionError("a mistake")


async def _slow(request: ControlRequest) -> bytes:
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    return granted()


async def _large(request: ControlRequest) -> bytes:
    return granted(text="x" * 4_000_000)


READING: dict[str, Operation] = {"status": _status, "breaks": _breaks, "slow": _slow, "large": _large}


def run(folder: Path, test: Callable[[Path], Awaitable[None]], group: str = "") -> None:
    async def whole() -> None:
        made = Control(folder / "control.sock", READING, CHANGING, group)
        await made.start()
        try:
            await test(made.path)
        finally:
            await made.close()

    asyncio.run(whole())


CHANGING: dict[str, Operation] = {"drain": _drain}
STATUS, DRAIN = b'{"op":"status"}\n', b'{"op":"drain"}\n'


@pytest.mark.parametrize("entitled", [0, os.getuid()])
def test_idle_connections_of_one_user_lock_nobody_out(tmp_path: Path, users: Users, entitled: int) -> None:
    async def test(path: Path) -> None:
        held = [await users.connect(path, STRANGER) for _ in range(40)]
        assert json.loads(await users.ask(path, entitled, STATUS))["ok"]
        assert json.loads(await users.ask(path, entitled, DRAIN))["ok"]
        assert json.loads(await users.ask(path, STRANGER + 1, STATUS))["ok"], "another user"
        refused = json.loads(await held[-1][0].read())
        assert (refused["ok"], refused["code"]) == (False, "busy")
        for _, writer in held:
            writer.close()
        answer = b""
        while b"free" not in answer:
            answer = await users.ask(path, STRANGER, STATUS)

    run(tmp_path, test)


def test_idle_connections_of_many_users_do_not_lock_the_entitled_out(
    tmp_path: Path, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_in_group", lambda uid, gid, group: uid == 99)

    async def test(path: Path) -> None:
        held = [await users.connect(path, STRANGER + n) for n in range(2 * STRANGERS)]
        for uid in (0, os.getuid(), 99):
            assert json.loads(await users.ask(path, uid, DRAIN))["ok"]
        for _, writer in held:
            writer.close()

    run(tmp_path, test, group="admins")


def test_a_connection_that_sends_nothing_is_closed(
    tmp_path: Path, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LINE_S", 0.05)

    async def test(path: Path) -> None:
        for line in (b"", b'{"op":'):
            assert await users.ask(path, STRANGER, line) == b""
        answer = await users.ask(path, STRANGER, b"x" * 100_000)
        assert answer == b"" or b"longer than 4096 bytes" in answer  # what was not read may reset the connection

    run(tmp_path, test)


def test_a_client_that_does_not_read_its_answer_is_disconnected(
    tmp_path: Path, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TIME_LIMIT_S", 0.05)

    async def test(path: Path) -> None:
        held = [await users.connect(path, STRANGER) for _ in range(PER_USER)]
        for reader, writer in held:
            writer.write(b'{"op":"large"}\n')
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            assert reader is not None
        answer = b""
        async with asyncio.timeout(BOUND_S):
            while b"free" not in answer:
                answer = await users.ask(path, STRANGER, STATUS)
        for _, writer in held:
            writer.transport.abort()

    run(tmp_path, test)


def test_bytes_that_are_not_utf_8_print_no_traceback(
    tmp_path: Path, users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(path: Path) -> None:
        for _ in range(50):
            answer = json.loads(await users.ask(path, STRANGER, b'{"op":"\xff"}\n'))
            assert answer["code"] == "bad-request"

    with caplog.at_level(logging.INFO):
        run(tmp_path, test)
    assert not caplog.records


def test_a_defect_that_a_user_can_cause_is_logged_once_a_minute(
    tmp_path: Path, users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(path: Path) -> None:
        for _ in range(50):
            assert json.loads(await users.ask(path, STRANGER, b'{"op":"breaks"}\n'))["code"] == "internal"

    run(tmp_path, test)
    assert len(caplog.records) == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_user_who_asks_for_much_waits_and_others_do_not(tmp_path: Path, users: Users) -> None:
    async def test(path: Path) -> None:
        answered = 0
        while (answer := json.loads(await users.ask(path, STRANGER, b'{"op":"slow"}\n')))["ok"]:
            answered += 1
        assert answered >= 9, "a second is saved up"
        assert answer["code"] == "busy" and "too many requests" in answer["text"]
        assert json.loads(await users.ask(path, STRANGER + 1, STATUS))["ok"]
        assert json.loads(await users.ask(path, 0, DRAIN))["ok"]

    run(tmp_path, test)


def test_expensive_requests_are_charged_to_the_user_who_makes_them(tmp_path: Path, users: Users) -> None:
    async def whole() -> None:
        made = Control(tmp_path / "control.sock", READING, CHANGING, costs={"status": 0.2})
        await made.start()
        try:
            answers = [json.loads(await users.ask(made.path, STRANGER, STATUS)) for _ in range(10)]
            assert {answer.get("code") for answer in answers[:4]} == {None}
            assert answers[-1]["code"] == "busy"
            assert json.loads(await users.ask(made.path, 0, STATUS))["ok"]
        finally:
            await made.close()

    asyncio.run(whole())


def attack(path: Path, ready: int, go_on: int) -> str:
    """As an ordinary user, hold 40 connections until `go_on`, then try to drain; return the answer's code."""
    held = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for one in held:  # the socket exists before anybody listens, and before others may connect
        until(lambda one=one: one.connect_ex(str(path)) == 0, "a connection")  # type: ignore[misc]
    os.write(ready, b"x")
    os.read(go_on, 1)
    for one in held:
        one.close()
    code = "busy"
    while code == "busy":
        with suppress(client.Unreachable):
            try:
                client.ask(path, {"op": "drain"})
            except client.RequestRefused as refused:
                code = refused.code
    return code


def test_a_real_user_without_rights(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("NOT RUN: only root can be another user")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o011)
    path, user = tmp_path / "control.sock", pwd.getpwnam("nobody")
    (ready, tell_ready), (go_on, tell_on), (told, tell) = os.pipe(), os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.write(tell, attack(path, tell_ready, go_on).encode())
        except (OSError, AssertionError):
            traceback.print_exc()
        finally:
            os._exit(0)
    for end in (tell_ready, go_on, tell):
        os.close(end)  # so that the end is noticed here

    async def test(path: Path) -> None:
        path.chmod(0o666)
        assert await asyncio.to_thread(os.read, ready, 1) == b"x"
        answer = await asyncio.to_thread(client.ask, path, {"op": "drain"})
        assert json.loads(answer)["ok"], "root is served meanwhile"
        os.write(tell_on, b"x")
        assert await asyncio.to_thread(os.read, told, 100) == b"not-permitted"

    try:
        run(tmp_path, test)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (ready, tell_on, told):
            os.close(end)
