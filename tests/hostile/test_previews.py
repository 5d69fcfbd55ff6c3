"""An ordinary user asks for a preview of a job of a million chunks: no claim is delayed by the answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from magrathea import client
from magrathea.core.model import Host
from magrathea.preview import TooLong, outlook
from node_daemon import control_operations
from tests.unit.core.builders import host
from tests.unit.node.test_control_operations import Ask, Owner, play


def a_big_host() -> Host:
    return host("counted", cpus=64, p1="priority", **dict.fromkeys((f"n{n:02}" for n in range(24)), "normal"))  # type: ignore[arg-type]


class Previews(Owner):
    def __init__(self, folder: Path, facts: Host) -> None:
        super().__init__(folder, facts)
        self.configuration.domain = {domain.name: None for domain in facts.domains}
        self.configuration.vnode = lambda name: name


def preview(number: int, kinds: int = 1) -> dict[str, object]:
    return {"op": "preview", "cls": "priority", "chunks": [[number, 1, 0]] * kinds}


def on(folder: Path, test: Callable[[Previews, Ask], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.node.test_control_operations.Owner", Previews)
    play(folder, a_big_host(), test)  # type: ignore[arg-type]


def test_a_preview_keeps_nobody_waiting_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_operations, "PREVIEW_S", 1.0)
    computed_by: list[threading.Thread] = []

    def watched(*arguments: Any) -> Any:
        computed_by.append(threading.current_thread())
        return outlook(*arguments)

    monkeypatch.setattr(control_operations, "outlook", watched)

    async def test(owner: Previews, ask: Ask) -> None:
        answer = await ask(**preview(600))
        assert len(computed_by) == 1
        assert computed_by[0] is not threading.current_thread(), "the event loop's thread has computed it"
        assert answer.get("code") == "busy" or len(answer["placed"]) == 64
        assert threading.active_count() < 20

    on(tmp_path, test, monkeypatch)


def test_a_second_preview_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_operations, "PREVIEW_S", 1.0)
    began, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> Any:
        began.set()
        assert go_on.wait(30)
        raise TooLong

    monkeypatch.setattr(control_operations, "outlook", slow)

    async def test(owner: Previews, ask: Ask) -> None:
        first = asyncio.ensure_future(ask(**preview(1)))
        await asyncio.to_thread(began.wait, 30)
        assert (await ask(**preview(1)))["code"] == "busy"
        go_on.set()
        assert (await first)["code"] == "busy"

    on(tmp_path, test, monkeypatch)


@pytest.mark.parametrize(
    "request_",
    [
        preview(10**6),
        preview(1001),
        preview(500, kinds=3),
        preview(1, kinds=100),
        preview(0),
        preview(-1),
        {"op": "preview", "chunks": [[1, 10**30, 0]]},
        {"op": "preview", "chunks": [[1, -1, 0]]},
        {"op": "history", "since": 1e300},
        {"op": "history", "since": -1},
        {"op": "history", "limit": 10**30},
    ],
    ids=str,
)
def test_absurdly_large_previews_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: dict[str, object]
) -> None:
    async def test(owner: Previews, ask: Ask) -> None:
        def raw() -> Any:
            try:
                return json.loads(client.ask(owner.configuration.control_socket, request_))
            except client.RequestRefused as error:
                return {"code": error.code}

        assert (await asyncio.to_thread(raw))["code"] == "bad-request"

    on(tmp_path, test, monkeypatch)
