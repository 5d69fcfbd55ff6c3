"""The guest channel with agents that are slow, stale, broken or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.rigs import virtual_time
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.agent import sessions, wire
from node_daemon.agent.lines import MAX_LINE_BYTES
from node_daemon.agent.wire import HostEnd
from node_daemon.guest_channel import channel as channels
from node_daemon.guest_channel.channel import AgentError, GuestChannel
from node_daemon.guest_channel.messages import AnyRequest, decode

from ...fakes.listener import Listener

SESSION = "0123456789abcdef"
OTHER = "fedcba9876543210"


class Agent:
    """The agent's end, played by the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.daemon = ""
        self.answered = ""
        """The agent's hello that the daemon has answered last."""

    def send(self, *messages: dict[str, Any] | bytes) -> None:
        for message in messages:
            self.writer.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The next message, except hellos that answer this agent's own."""
        while "peer" in (heard := await self.line()):
            self.answered = heard["peer"]
        return heard

    async def line(self) -> dict[str, Any]:
        async with asyncio.timeout(BOUND_S):
            while not (line := await self.reader.readuntil(b"\n")).strip():
                pass
            heard: dict[str, Any] = json.loads(line)
            return heard

    async def silent(self, seconds: float = 0.1) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.reader.readexactly(1), seconds)
            return False
        return True

    async def closed(self) -> bool:
        async with asyncio.timeout(BOUND_S):
            while await self.reader.read(65536):
                pass
        return True

    async def greet(self, session: str = SESSION) -> None:
        self.daemon = (await self.hear())["session"]
        self.send(b"\n", hello(session))
        answer = await self.line()
        assert (answer["peer"], answer["session"]) == (session, self.daemon)


def hello(session: str = SESSION, protocol: int = 1) -> dict[str, Any]:
    return {"type": "hello", "protocol": protocol, "session": session, "agent": "0.1.0", "can": ["pidfd"]}


def release(id: int, session: str = SESSION) -> dict[str, Any]:
    return {"type": "request", "id": id, "session": session, "op": "release", "job": {"id": "1.srv", "run": 1}}


class Scene:
    def __init__(self, channel: GuestChannel, listener: Listener) -> None:
        self.channel, self.listener = channel, listener
        self.agents: list[Agent] = []

    async def agent(self, greeting: bool = True) -> Agent:
        agent = Agent(*await asyncio.open_unix_connection(self.channel.path, limit=2**22))
        self.agents.append(agent)
        if greeting:
            before = len(self.listener.events)
            await agent.greet()
            await until(lambda: len(self.listener.events) > before)
        return agent


async def until(condition: Callable[[], Any]) -> None:
    await eventually(condition, "what the test waits for")


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        listener = Listener()
        channel = GuestChannel("h1", "n1", Path(folder) / "guest" / "n1.sock", listener)
        await channel.start()
        made = Scene(channel, listener)
        try:
            yield made
        finally:
            for agent in made.agents:
                agent.writer.close()
            await channel.close()


def run(test: Callable[[Scene], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with scene() as made:
            await test(made)

    virtual_time.run(all_of_it())


def test_both_greet_and_a_request_is_answered() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send(release(7))
        assert await agent.hear() == {"type": "answer", "id": 7, "session": SESSION, "ok": True}
        assert s.listener.events == ["connected 01"]
        assert s.channel.path.stat().st_mode & 0o777 == 0o600

    run(test)


def test_bytes_before_the_first_newline_are_dropped() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent(greeting=False)
        agent.send(b'{"type":"request","id":1,"session":"' + b"x" * 200_000)
        await agent.greet()
        agent.send(release(1))
        assert (await agent.hear())["ok"]

    run(test)


def test_a_line_in_pieces_is_one_line() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        line = json.dumps(release(3)).encode() + b"\n"
        for i in range(0, len(line), 7):
            agent.send(line[i : i + 7])
            await agent.writer.drain()
            await asyncio.sleep(0)
        assert (await agent.hear())["id"] == 3

    run(test)


def test_half_a_line_and_the_end_of_the_connection_is_nothing() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send(json.dumps(release(3)).encode())
        agent.writer.close()
        await until(lambda: "lost" in s.listener.events)
        assert s.listener.requests == []

    run(test)


def test_a_repeated_request_is_worked_on_once_and_answered_each_time() -> None:
    async def test(s: Scene) -> None:
        go = asyncio.Event()

        async def later(request: AnyRequest) -> dict[str, Any]:
            await go.wait()
            return {"ok": True, "ready": False}

        s.listener.answer = later
        agent = await s.agent()
        agent.send(release(5), release(5))
        await until(lambda: s.listener.requests)
        go.set()
        first = await agent.hear()
        agent.send(release(5))
        assert await agent.hear() == first
        assert len(s.listener.requests) == 1

    run(test)


def test_only_so_many_answers_are_kept() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        for id in range(wire.MAX_ANSWERS + 1):
            agent.send(release(id))
            await agent.hear()
        agent.send(release(0))
        await agent.hear()
        assert len(s.listener.requests) == wire.MAX_ANSWERS + 2

    run(test)


def test_a_request_of_an_earlier_session_is_dropped() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send(release(1, OTHER))
        assert await agent.silent()
        assert s.listener.requests == []

    run(test)


def test_a_stale_answer_is_dropped_and_the_right_one_taken() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        asked = asyncio.create_task(s.channel.request("ping", 3))
        request = await agent.hear()
        answer = {"type": "answer", "id": request["id"], "ok": True}
        agent.send({**answer, "session": OTHER, "text": "stale"}, {**answer, "id": 999, "session": agent.daemon})
        agent.send({**answer, "session": agent.daemon, "text": "right"})
        assert (await asked).text == "right"

    run(test)


def test_a_request_is_repeated_unchanged_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REPEAT_S", 0.02)

    async def test(s: Scene) -> None:
        agent = await s.agent()
        asked = asyncio.create_task(s.channel.request("orders", 0.3, orders=[]))
        assert await agent.hear() == await agent.hear()
        with pytest.raises(AgentError) as caught:
            await asked
        assert caught.value.code == "timeout"

    run(test)


def test_an_agents_refusal_has_its_own_code() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        asked = asyncio.create_task(s.channel.request("script", 3))
        id = (await agent.hear())["id"]
        refusal = {
            "type": "answer",
            "id": id,
            "session": agent.daemon,
            "ok": False,
            "code": "no-script",
            "text": "none",
        }
        agent.send(refusal)
        with pytest.raises(AgentError) as caught:
            await asked
        assert caught.value.code == "no-script"

    run(test)


def test_without_an_agent_a_request_fails_at_once() -> None:
    async def test(s: Scene) -> None:
        with pytest.raises(AgentError) as caught:
            await s.channel.request("ping", 3)
        assert caught.value.code == "no-agent"

    run(test)


def test_requests_to_an_agent_that_goes_away_are_void() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        asked = asyncio.create_task(s.channel.request("ping", 10))
        await agent.hear()
        agent.writer.close()
        with pytest.raises(AgentError) as caught:
            await asked
        assert caught.value.code == "no-agent"

    run(test)


def test_a_new_hello_on_the_same_connection_is_a_new_agent() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        asked = asyncio.create_task(s.channel.request("ping", 10))
        await agent.hear()
        agent.send(b"\n", hello(OTHER))
        with pytest.raises(AgentError):
            await asked
        agent.send(release(1, OTHER))
        assert (await agent.hear())["session"] == OTHER
        assert s.listener.events == ["connected 01", "lost", "connected fe"]

    run(test)


def test_a_silent_agent_is_given_up_and_found_again_on_the_same_connection() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        asked = asyncio.create_task(s.channel.request("ping", 2 * channels.SILENT_S))
        assert (await agent.hear())["op"] == "ping"
        with pytest.raises(AgentError) as caught:
            await asked
        assert caught.value.code == "no-agent"
        assert s.listener.events == ["connected 01", "lost"]
        assert not s.channel.connected
        while (heard := await agent.hear())["type"] != "hello":  # the request was repeated meanwhile
            pass
        assert heard["session"] != agent.daemon  # so that a living agent sends a hello again
        await asyncio.sleep(wire.HELLO_AGAIN_S + 0.1)
        agent.send(release(1))  # it has not read that yet: its request is void, and is sent again
        assert (await agent.hear())["type"] == "hello"
        agent.send(b"\n", hello(OTHER), release(2, OTHER))
        while (heard := await agent.hear())["type"] != "answer":
            pass
        assert s.listener.events == ["connected 01", "lost", "connected fe"]

    run(test)


def test_a_new_connection_replaces_the_old_one_after_its_hello() -> None:
    async def test(s: Scene) -> None:
        old = await s.agent()
        silent = await s.agent(greeting=False)
        old.send(release(1))
        assert (await old.hear())["ok"]
        silent.send(b"\n", hello(OTHER))
        assert await old.closed()
        assert s.listener.events == ["connected 01", "lost", "connected fe"]

    run(test)


def test_connections_that_never_greet_are_few() -> None:
    async def test(s: Scene) -> None:
        good = await s.agent()
        for _ in range(20):
            await s.agent(greeting=False)
        good.send(release(1))
        assert (await good.hear())["ok"]
        await until(lambda: len(s.channel._links) <= 5)

    run(test)


GARBAGE = (
    b"not json",
    b"{}",
    b"[1,2,3]",
    b'{"type":"request"}',
    b'{"type":"gossip"}',
    b"\xff\xfe\x00",
    b'{"type":"request","id":"one","session":"0123456789abcdef","op":"release","job":{"id":"1.srv","run":1}}',
    b'{"type":"request","id":1,"session":"0123456789abcdef","op":"release","job":{"id":"","run":1}}',
    b'{"type":"request","id":1,"session":"0123456789abcdef","op":"jobs","jobs":"all"}',
    b'{"type":"request","id":1,"session":"x","op":"release","job":{"id":"1.srv","run":1}}',
    b'{"type":"answer","id":1,"session":"0123456789abcdef"}',
    b'{"type":"hello","session":"UPPER","protocol":1}',
    b'{"type":"x","a":' + b"[" * 60_000 + b"]" * 5_000,
    b'{"type":"request","id":1e400,"session":"0123456789abcdef","op":"release"}',
)


@pytest.mark.parametrize("line", GARBAGE)
def test_garbage_is_a_bad_line_and_nothing_else(line: bytes) -> None:
    end = HostEnd({"host": "h1", "domain": "n1"}, decode)
    end.opened(0.0)
    end.receive(b"\n" + line + b"\n", 0.0)
    assert (end.bad_lines, end.broken, end.peer, end.at_work) == (1, "", "", {})


def test_ten_bad_lines_in_a_row_close_the_connection() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send(*[b"garbage\n"] * (sessions.MAX_BAD_LINES - 1), release(1))
        assert (await agent.hear())["ok"]
        agent.send(*[b"garbage\n"] * sessions.MAX_BAD_LINES)
        assert await agent.closed()
        assert s.listener.events[-1] == "lost"

    run(test)


def test_a_line_that_is_too_long_is_bad_and_the_next_one_good() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send(b"x" * (3 * MAX_LINE_BYTES) + b"\n", release(1))
        assert (await agent.hear())["id"] == 1
        assert max(len(link.end.reader.buffer) for link in s.channel._links) <= 4 * MAX_LINE_BYTES

    run(test)


def test_an_unknown_operation_is_answered_so_that_nobody_waits() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send({"type": "request", "id": 1, "session": SESSION, "op": "dance"})
        answer = await agent.hear()
        assert (answer["ok"], answer["code"]) == (False, "unknown-op")

    run(test)


def test_an_agent_of_another_protocol_is_sent_away() -> None:
    async def test(s: Scene) -> None:
        agent = await s.agent(greeting=False)
        agent.send(b"\n", hello(protocol=2))
        assert await agent.closed()
        assert s.listener.events == []

    run(test)


@pytest.mark.long
def test_a_flood_is_read_at_the_rate_and_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_LINES_PER_S", 20)
    monkeypatch.setattr(sessions, "RATE_WINDOW_S", 1)

    async def test(s: Scene) -> None:
        agent = await s.agent()
        for id in range(100_000):
            agent.send(release(id))
        await asyncio.sleep(10)
        paid = channels.CONNECTION_LINES + channels.HELLO_LINES
        assert 20 * 10 <= len(s.listener.requests) + paid <= 20 * (10 + 1) + 6
        assert max(len(link.end.reader.buffer) for link in s.channel._links) <= 2**20

    run(test)


def test_a_guest_that_reads_nothing_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_OUT_BYTES", 100_000)

    async def test(s: Scene) -> None:
        await s.agent()
        with pytest.raises(AgentError):
            for _ in range(200):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await s.channel.request("orders", 1, filler="x" * 50_000)

    run(test)


def test_too_many_requests_at_once_are_refused() -> None:
    async def test(s: Scene) -> None:
        async def never(request: AnyRequest) -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

        s.listener.answer = never
        agent = await s.agent()
        agent.send(*[release(id) for id in range(wire.MAX_AT_WORK + 1)])
        assert (await agent.hear())["code"] == "busy"

    run(test)


def test_a_defect_of_ours_is_an_answer_too() -> None:
    async def test(s: Scene) -> None:
        async def broken(request: AnyRequest) -> dict[str, Any]:
            raise RuntimeError("a defect")

        s.listener.answer = broken
        agent = await s.agent()
        agent.send(release(1))
        assert (await agent.hear())["code"] == "internal"

    run(test)
