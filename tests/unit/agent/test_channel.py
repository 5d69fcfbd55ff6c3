"""A port with a host that goes away and comes back on the same descriptor, as with virtio-serial."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.agent.channel import Channel
from node_daemon.agent.loop import Loop
from node_daemon.agent.sessions import MAX_LINES_PER_S, RATE_WINDOW_S
from node_daemon.agent.transports import Transport


class Port(Transport):
    """A port on which the host can go `away`: then reads return an end, and polls always report it readable."""

    stays = True

    def __init__(self) -> None:
        super().__init__("/dev/virtio-ports/test")
        self.guest, self.host = socket.socketpair()
        self.guest.setblocking(False)
        self.host.setblocking(False)
        self.away = False
        self.opened = 0
        self.reads = 0

    def open(self) -> int:
        self.opened += 1
        return self.guest.fileno()

    def close(self, fd: int) -> None:
        assert fd == self.guest.fileno()

    def read(self, fd: int) -> bytes:
        self.reads += 1
        return b"" if self.away else super().read(fd)


class Desk:
    """A channel on such a port; the test turns its loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.port = Port()
        self.channel = Channel(self.loop, self.port, ["pidfd"], lambda op, doc, reply: reply({"ok": True, "op": op}))
        self.got: list[dict[str, Any]] = []

    def turn_until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + BOUND_S
        while not what():
            assert time.monotonic() < end
            timer = self.loop.after(0.01, lambda: None)
            self.loop.turn()
            timer.cancel()
            self.take()

    def take(self) -> None:
        try:
            data = self.port.host.recv(1 << 20)
        except BlockingIOError:
            return
        self.got += [json.loads(line) for line in data.split(b"\n") if line]

    def say(self, **doc: Any) -> None:
        self.port.host.sendall(json.dumps(doc).encode() + b"\n")

    def greet(self, session: str) -> None:
        self.port.host.sendall(b"\n")
        self.say(type="hello", protocol=1, session=session, host="h1", domain="n1")
        self.turn_until(lambda: self.channel.end.peer == session)

    def hellos(self) -> list[str]:
        return [doc["session"] for doc in self.got if doc["type"] == "hello"]


@pytest.fixture
def desk() -> Iterator[Desk]:
    found = Desk()
    yield found
    found.port.guest.close()
    found.port.host.close()
    found.loop.selector.close()


def test_messages_for_an_earlier_agent_are_dropped(desk: Desk) -> None:
    desk.say(type="hello", protocol=1, session="a" * 16)
    desk.say(type="request", id=1, session="a" * 16, op="ping")
    desk.channel.connect()
    desk.greet("b" * 16)
    desk.turn_until(desk.hellos)
    assert [doc for doc in desk.got if doc["type"] == "answer"] == []


def test_a_host_that_goes_and_comes_back_is_greeted_on_the_same_descriptor(desk: Desk) -> None:
    desk.channel.connect()
    desk.greet("a" * 16)
    asked: list[object] = []
    desk.channel.ask("claim", {"job": 1}, 9, asked.append)
    desk.turn_until(lambda: len(desk.got) >= 2)
    desk.port.host.sendall(b'{"half of a li')  # bytes in flight are partly lost
    desk.turn_until(lambda: desk.channel.end.reader.buffer)
    desk.port.away = True
    desk.port.host.sendall(b"x")  # a hang-up makes it readable
    desk.turn_until(lambda: not desk.channel.up)
    reads = desk.port.reads
    end = time.monotonic() + 0.5
    desk.turn_until(lambda: time.monotonic() > end)
    assert desk.port.reads - reads <= 4  # no busy loop because of the hang-up
    desk.port.away = False
    desk.port.host.sendall(b"rest of something\n")
    before = len(desk.hellos())
    desk.turn_until(lambda: len(desk.hellos()) > before)
    assert len(set(desk.hellos())) == 2
    desk.greet("b" * 16)
    desk.turn_until(lambda: desk.got[-1]["type"] == "request")
    again = desk.got[-1]
    assert (again["op"], again["session"]) == ("claim", desk.hellos()[-1])
    desk.say(type="answer", id=again["id"], session=again["session"], ok=True)
    desk.turn_until(lambda: asked)
    assert desk.port.opened == 1


@pytest.mark.long
def test_a_lost_hello_is_sent_again(desk: Desk) -> None:
    desk.channel.connect()
    desk.turn_until(lambda: len(desk.hellos()) == 2)
    assert len(set(desk.hellos())) == 1


def test_a_host_that_restarts_without_a_hang_up_gets_a_new_hello(desk: Desk) -> None:
    desk.channel.connect()
    desk.greet("a" * 16)
    desk.say(type="request", id=1, session="a" * 16, op="ping")
    desk.greet("b" * 16)
    desk.turn_until(lambda: len(set(desk.hellos())) == 2)
    desk.say(type="request", id=1, session="a" * 16, op="stale")
    desk.say(type="request", id=1, session="b" * 16, op="ping")
    desk.turn_until(lambda: desk.got[-1]["type"] == "answer" and desk.got[-1]["session"] == "b" * 16)
    assert "stale" not in {doc.get("op") for doc in desk.got}


def test_a_hello_for_another_agent_or_of_another_protocol_is_none(desk: Desk) -> None:
    desk.channel.connect()
    desk.say(type="hello", protocol=1, session="a" * 16, peer="0" * 16)
    desk.say(type="hello", protocol=2, session="b" * 16)
    desk.turn_until(lambda: desk.channel.end.bad_total == 1)
    assert not desk.channel.ready


def test_a_flood_makes_reading_pause(desk: Desk) -> None:
    desk.channel.connect()
    desk.greet("a" * 16)
    most = int(MAX_LINES_PER_S * RATE_WINDOW_S)
    for _ in range(most // 100 + 2):
        if not desk.channel.end.paused:
            desk.port.host.sendall(b'{"type":"answer","session":"x"}\n' * 100)
            desk.loop.turn()
    assert desk.channel.end.paused
    assert desk.port.guest.fileno() not in desk.loop.selector.get_map()
    desk.turn_until(lambda: desk.port.guest.fileno() in desk.loop.selector.get_map())


def test_a_try_to_connect_that_meets_a_defect_is_followed_by_another(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.port, "open", lambda: int("a defect"))
    desk.loop.after(0.0, desk.channel.connect)
    desk.turn_until(lambda: desk.loop.faults)
    monkeypatch.undo()
    desk.turn_until(lambda: desk.channel.up)


@pytest.mark.long
def test_the_end_ticks_on_after_a_defect(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.channel.connect()
    desk.turn_until(desk.hellos)
    monkeypatch.setattr(desk.channel.end, "tick", lambda now: int("a defect"))
    desk.turn_until(lambda: desk.loop.faults)
    monkeypatch.undo()
    before = len(desk.hellos())
    desk.turn_until(lambda: len(desk.hellos()) > before)
