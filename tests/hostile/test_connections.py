"""More connections than the hub can hold, and messages without an end: the hub lives, and its hosts are still
served."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from magrathea.logs import RationedLog
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import connections
from scheduler_plugin.hub.connections import ConnectionLimits, Connections
from tests.embedded.real_hub import free_port
from tests.hostile.hub_process import HubProcess

FILES = connections.RESERVED_FILES + 100
"""Enough for 100 hosts."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    made = HubProcess(tmp_path, files=(64, FILES), more="connections_per_address = 1000\n")
    try:
        yield made
    finally:
        made.close()


def test_the_hub_raises_its_limit_of_files_and_logs_how_many_connections_fit(hub: HubProcess) -> None:
    limits = Path(f"/proc/{hub.process.pid}/limits").read_text()
    assert re.search(rf"Max open files\s+{FILES}\s+{FILES}\b", limits)
    assert "room for 100 connections of hosts" in hub.log


def test_connections_beyond_the_limit_are_closed_and_reported_and_others_work(hub: HubProcess) -> None:
    honest = hub.connect("127.0.0.2")
    assert honest.recv(10)
    held = [hub.connect("127.0.0.3") for _ in range(400)]
    hub.until(lambda: "ALERT 100 connections" in hub.log, "it tells")
    late = hub.connect("127.0.0.4")
    assert late.recv(10), "there is room for a host that comes later, at the cost of who has most"
    hub.until(lambda: hub.descriptors() <= 100 + connections.RESERVED_FILES / 2, "those beyond are ended")
    assert hub.log.count("connections are the limit") == 1
    for connection in (honest, late):
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(100)
    for connection in (honest, late, *held):
        connection.close()


def test_a_hub_with_very_few_files_reports_it(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, files=(64, 128))
    try:
        assert "LimitNOFILE" in hub.log
    finally:
        hub.close()


class Listener:
    """A listening socket without keys, so that a few bytes are a whole handshake."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.context = zmq.asyncio.Context()
        self.router: zmq.asyncio.Socket = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.port = free_port()
        self.connections = Connections(self.context, self.router, limits, RationedLog(logging.getLogger("test")))
        self.router.bind(f"tcp://127.0.0.1:{self.port}")
        self.tasks = [asyncio.create_task(self.connections.watch()), asyncio.create_task(self.connections.look())]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.connections.close()
        self.router.close(linger=0)
        self.context.term()

    async def until_ended(self, reader: asyncio.StreamReader) -> None:
        async with asyncio.timeout(BOUND_S):
            while await reader.read(1000):
                pass


READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + struct.pack(">I", 2) + b"h1"
"""rfc.zeromq.org/spec/23."""


def test_a_message_without_an_end_ends_its_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_S", 0.1)

    async def test() -> None:
        listener = Listener(ConnectionLimits(1000, 64, 1_000_000, 10**9))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            async with asyncio.timeout(BOUND_S):
                writer.write(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 48)
                writer.write(b"\x04" + bytes([len(READY)]) + READY)
                await reader.readuntil(b"ROUTER")
                writer.write(b"\x00\x01x")
                frames = await listener.router.recv_multipart(copy=False)
                listener.connections.heard(int(frames[-1].get(zmq.SRCFD)), "key")
                assert len(listener.connections) == 1
                part = b"\x01\xff" + b"x" * 255  # more will come
                while "a message without an end" not in caplog.text:
                    writer.write(part * 100)
                    await asyncio.sleep(0)
                assert len(listener.connections) == 0
        finally:
            writer.transport.abort()
            await listener.close()

    asyncio.run(test())


def test_the_connections_of_one_address_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        listener = Listener(ConnectionLimits(1000, 8, 10**9, 10**9))
        try:
            held = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(8)]
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                await listener.until_ended(reader)
                writer.close()
            assert len(listener.connections) == 8
            other, writer = await asyncio.open_connection("127.0.0.1", listener.port, local_addr=("127.0.0.2", 0))
            await other.readexactly(10)
            held[0][1].close()
            async with asyncio.timeout(BOUND_S):
                while len(listener.connections) != 8:
                    await asyncio.sleep(0.01)
            writer.close()
        finally:
            await listener.close()

    asyncio.run(test())
    assert caplog.text.count("closed a further one") == 1, "told once"


def test_the_limit_is_raised_as_far_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        assert connections.raise_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
