"""The control socket: who may ask for what, and what happens to invalid requests."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from magrathea import client
from magrathea import control as controls
from magrathea.control import Control, ControlRequest, Denied, granted
from magrathea.core.refusals import RefusalCode
from magrathea_lab.waiting import BOUND_S


async def status(request: ControlRequest) -> bytes:
    return granted(state="free")


async def drain(request: ControlRequest) -> bytes:
    if request.domain != "n1":
        raise Denied(RefusalCode.UNKNOWN_DOMAIN, f"no domain {request.domain}")
    return granted()


async def ask(path: Path, line: bytes) -> bytes:
    async with asyncio.timeout(BOUND_S):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        answer = await reader.read()
        writer.close()
        return answer


def run(test: Callable[[Path], Awaitable[None]], group: str = "") -> None:
    async def all_of_it() -> None:
        with tempfile.TemporaryDirectory() as folder:
            control = Control(Path(folder) / "control.sock", {"status": status}, {"drain": drain}, group)
            await control.start()
            try:
                await test(control.path)
            finally:
                await control.close()
            assert not control.path.exists()

    asyncio.run(all_of_it())


def test_everybody_may_ask_for_the_status() -> None:
    async def test(path: Path) -> None:
        assert path.stat().st_mode & 0o777 == 0o666
        assert json.loads(await ask(path, b'{"op":"status"}\n')) == {"ok": True, "state": "free"}

    run(test)


def test_the_daemons_own_user_may_change_something_and_gets_the_reason_of_a_failure() -> None:
    async def test(path: Path) -> None:
        assert json.loads(await ask(path, b'{"op":"drain","domain":"n1"}\n'))["ok"]
        answer = json.loads(await ask(path, b'{"op":"drain","domain":"n9"}\n'))
        assert (answer["ok"], answer["code"]) == (False, "unknown-domain")

    run(test)


def test_others_may_not_unless_in_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "peer", lambda connection: (os.getuid() + 4711, 4711))

    async def test(path: Path) -> None:
        assert json.loads(await ask(path, b'{"op":"drain","domain":"n1"}\n'))["code"] == "not-permitted"
        assert json.loads(await ask(path, b'{"op":"status"}\n'))["ok"]

    run(test)
    run(test, group="no-such-group")
    monkeypatch.setattr(controls, "_in_group", lambda uid, gid, group: group == "admins" and gid == 4711)

    async def permitted(path: Path) -> None:
        assert json.loads(await ask(path, b'{"op":"drain","domain":"n1"}\n'))["ok"]

    run(permitted, group="admins")


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b'{"op":5}\n', b'{"op":"status","x":1}\n', b"[" * 3000 + b"\n"])
def test_nonsense_is_a_bad_request(line: bytes) -> None:
    async def test(path: Path) -> None:
        assert json.loads(await ask(path, line))["code"] == "bad-request"

    run(test)


def test_an_unknown_operation_names_the_known_ones() -> None:
    async def test(path: Path) -> None:
        answer = json.loads(await ask(path, b'{"op":"dance"}\n'))
        assert answer["code"] == "unknown-op" and "drain, status" in answer["text"]

    run(test)


@pytest.mark.parametrize(
    ("request_", "wrong", "right"),
    [
        ({"op": "drain", "domain": "n1", "reason": "x" * 1001}, "`reason` = 'xxx", "a text, with at most 1000 letters"),
        ({"op": "drain", "domain": "n1", "reason": "x" * 5000}, "longer than 4096 bytes", "shorten"),
        ({"op": "drain", "domain": "n1", "reason": "x" * 1_000_000}, "longer than 4096 bytes", "shorten"),
        ({"op": "drain", "domain": "n" * 256}, "`domain` = 'nnn", "a text, with at most 255 letters"),
        ({"op": "status", "limit": -1}, "`limit` = -1", "a whole number, at least 0 and at most"),
        ({"op": "status", "cls": "high"}, "`cls` = 'high'", "one of priority, preemptible, protected"),
        ({"op": "status", "now": 1}, "`now` = 1", "true or false"),
        ({"op": "status", "limt": 1}, "`limt` is not known", "did you mean `limit`"),
        ({}, "`op` is missing", "add it"),
    ],
)
def test_bounds_and_choices_of_a_request_are_told_in_words(request_: dict[str, object], wrong: str, right: str) -> None:
    async def test(path: Path) -> None:
        with pytest.raises(client.RequestRefused) as caught:
            await asyncio.to_thread(client.ask, path, request_)
        assert caught.value.code == "bad-request"
        assert wrong in str(caught.value) and right in str(caught.value) and len(str(caught.value)) < 400

    run(test)


def test_the_longest_reason_is_taken() -> None:
    async def test(path: Path) -> None:
        assert await asyncio.to_thread(client.ask, path, {"op": "drain", "domain": "n1", "reason": "ü" * 1000})

    run(test)


def test_the_audit_line_says_which_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test(path: Path) -> None:
        for more in ({"do": "shutdown", "now": True}, {"do": "reboot", "when_idle": True}, {}):
            await asyncio.to_thread(client.ask, path, {"op": "drain", "domain": "n1", **more})

    run(test)
    said = [record.getMessage() for record in caplog.records if record.name == "magrathea.control"]
    assert [line.partition("by")[0] for line in said] == [
        "control: `drain shutdown --now` n1 ",
        "control: `drain reboot --when-idle` n1 ",
        "control: `drain` n1 ",
    ]


def test_a_client_that_is_slow_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "LINE_S", 0.05)

    async def test(path: Path) -> None:
        assert await ask(path, b'{"op":') == b""
        assert json.loads(await ask(path, b'{"op":"status"}\n'))["ok"]

    run(test)
