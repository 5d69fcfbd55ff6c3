"""A hub that cannot be reached: the log and the status name where it was looked for, since when, and what to check."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon import hub_client
from node_daemon.hub_silence import sentence, why_silent

from .test_hub_client import BEAT, DaemonsEnd, HubsEnd


async def until_silent(host: DaemonsEnd) -> str:
    async with asyncio.timeout(BOUND_S):
        while not host.client.silent():
            await asyncio.sleep(0.005)
    [said] = host.client.silent()
    return said


def test_a_hub_that_never_answers_is_told_with_its_place_and_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "SILENT_S", 0.2)
    caplog.set_level(logging.WARNING)
    endpoint = f"ipc://{tmp_path}/hub"
    before = time.strftime("%Y-%m-%d %H:", time.localtime())

    async def test() -> None:
        host = DaemonsEnd([endpoint])
        host.client.start()
        said = await until_silent(host)
        await host.client.close()
        assert endpoint in said
        assert f"since {before[:10]}" in said
        assert "magrathea-hub" in said
        assert said in caplog.messages

    asyncio.run(test())


@pytest.mark.long
def test_the_sentence_goes_when_the_hub_answers_and_comes_when_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "SILENT_S", 0.5)
    endpoint = f"ipc://{tmp_path}/hub"

    async def test() -> None:
        host = DaemonsEnd([endpoint])
        host.client.start()
        await until_silent(host)
        hub = HubsEnd(endpoint)
        await hub.hear()
        await hub.say(BEAT)
        await host.until_told("found")
        assert host.client.silent() == []
        await host.until_told("lost")
        assert "somebody listens" in await until_silent(host)
        await host.client.close()
        hub.close()

    asyncio.run(test())


def test_what_to_check_follows_from_what_a_connection_meets(tmp_path: Path) -> None:
    assert "no such socket" in why_silent(f"ipc://{tmp_path}/none")
    assert "cannot be resolved" in why_silent("tcp://no-such-name.invalid:17017")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        assert "keys list" in why_silent(endpoint)
    assert "magrathea-hub run on that machine" in why_silent(endpoint)


def test_the_time_in_the_sentence_never_changes() -> None:
    assert "since 1970" in sentence("tcp://head:17017", 86400 * 2.0, "why")
