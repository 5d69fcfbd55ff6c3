"""A defect of the daemon costs the line of the guest that met it: no connection, no sibling, no flood in the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from magrathea.logs import RationedLog
from node_daemon.guest_channel import channel as channels
from node_daemon.guest_channel.channel import AgentError
from node_daemon.guest_channel.messages import Hello, Said, decode

from ...fakes.listener import Listener
from .test_channel import Scene, release, run, until


@pytest.fixture(autouse=True)
def a_ration_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "defects", RationedLog(channels.log))


def test_a_line_that_meets_a_defect_is_lost_and_the_next_ones_are_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defective(line: bytes) -> Said:
        if b'"id": 1,' in line:
            raise ZeroDivisionError("of ours")
        return decode(line)

    monkeypatch.setattr(channels, "decode", defective)

    async def test(s: Scene) -> None:
        agent = await s.agent()
        agent.send(*[release(1)] * 50, release(2))
        assert (await agent.hear())["id"] == 2
        assert s.channel.connected
        assert s.listener.events == ["connected 01"]

    with caplog.at_level(logging.ERROR):
        run(test)
    assert len([record for record in caplog.records if "defect" in record.getMessage()]) == 1


def test_a_failing_listener_of_hellos_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(listener: Listener, domain: str, hello: Hello) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(Listener, "connected", defective)

    async def test(s: Scene) -> None:
        agent = await s.agent(greeting=False)
        await agent.greet()
        agent.send(release(1))
        assert (await agent.hear())["id"] == 1

    run(test)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, b"bytes"], ids=repr)
def test_a_request_that_cannot_be_written_is_refused_and_leaves_nothing(value: Any) -> None:
    async def test(s: Scene) -> None:
        await s.agent()
        for _ in range(300):
            with pytest.raises(AgentError, match="failed"):
                await s.channel.request("orders", 5, orders=value)
        (link,) = s.channel._links
        assert not link.end.pending and not link._waiting

    run(test)


def test_a_guest_that_connects_anew_for_each_bad_line_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test(s: Scene) -> None:
        for _ in range(50):
            agent = await s.agent()
            agent.send(*[b"no JSON\n"] * 20)
            await until(lambda: not s.channel.connected)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert 1 <= len(caplog.records) <= 2, [record.getMessage() for record in caplog.records]
