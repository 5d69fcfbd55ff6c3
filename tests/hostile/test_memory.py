"""What a peer without a key, a host, or all hosts together can make the hub hold in memory is bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from magrathea.messages import Heartbeat, Resend, decode_to_host, encode
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import connections, keys
from scheduler_plugin.hub.connections import PER_KEY, ConnectionLimits
from tests.embedded.real_hub import RealHub, run
from tests.fakes.reports import domain
from tests.hostile.hub_process import HubProcess
from tests.hostile.test_connections import FILES, Listener

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
"""rfc.zeromq.org/spec/23."""
LONG_COMMAND = b"\x06" + (3 * 1024 * 1024).to_bytes(8, "big")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    made = HubProcess(tmp_path, files=(64, FILES))
    try:
        yield made
    finally:
        made.close()


def test_a_peer_that_has_shown_no_key_sends_a_handshake_and_no_more(hub: HubProcess) -> None:
    honest = hub.connect("127.0.0.2")
    assert honest.recv(10)
    stranger = hub.connect("127.0.0.3")
    stranger.sendall(GREETING + LONG_COMMAND + b"x" * 100_000)
    hub.until(lambda: "before it has shown a key" in hub.log, "it is ended")
    try:
        while stranger.recv(1000):
            pass
    except ConnectionResetError:
        pass
    honest.setblocking(False)
    with pytest.raises(BlockingIOError):
        while honest.recv(1000):
            pass
    honest.close()
    stranger.close()


def test_a_host_with_large_snapshots_is_not_taken_for_a_stranger(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        host = hub.host("h1", "n1")
        hub.start()
        await host.says(domain("n1"))
        large = [domain(f"x{n}", ncpus=n) for n in range(250)]
        await host.says(*large, domain("n1", ncpus=3))
        await hub.until(lambda: hub.shown("n1", "resources_available.ncpus") == "3", "the large one")

    run(tmp_path, test, "n1", tcp=True)


def test_a_host_has_few_connections_and_its_newest_one_works(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        pair = keys.read_secret(hub.enrol("h1", "n1"))
        server = keys.read(hub.keys_dir / keys.HUB_PUBLIC).public
        hub.start()
        dealers: list[zmq.asyncio.Socket] = []
        try:
            for _ in range(8):
                dealer: zmq.asyncio.Socket = hub.context.socket(zmq.DEALER)
                dealers.append(dealer)
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.curve_publickey, dealer.curve_secretkey = pair.public.encode(), pair.secret.encode()
                dealer.curve_serverkey = server.encode()
                dealer.connect(hub.endpoint)
                await dealer.send(encode(Heartbeat(sender="h1", boot_id="boot", revision=1)))
                async with asyncio.timeout(BOUND_S):
                    while not isinstance(decode_to_host(await dealer.recv()), Resend):
                        pass
            assert hub.hub is not None and hub.hub._channel._connections is not None
            [used] = hub.hub._channel._connections._of_key.values()
            assert len(used) == PER_KEY
        finally:
            for dealer in dealers:
                dealer.close(linger=0)

    run(tmp_path, test, "n1", tcp=True)


def test_all_connections_together_hold_a_bounded_number_of_bytes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_S", 0.1)
    monkeypatch.setattr(connections, "HANDSHAKE_BYTES", 10**9)

    async def test() -> None:
        listener = Listener(ConnectionLimits(1000, 64, 10**9, 200_000))
        writers = []
        try:
            for size in (10_000, 150_000, 90_000):
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writers.append(writer)
                await reader.readexactly(10)
                writer.write(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 48 + LONG_COMMAND + b"x" * size)
            async with asyncio.timeout(BOUND_S):
                while "all hosts together send too much" not in caplog.text:
                    await asyncio.sleep(0.01)
            assert len(listener.connections) == 2, "the one that has sent most is closed"
        finally:
            for writer in writers:
                writer.transport.abort()
            await listener.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(test())


def test_a_message_says_what_it_is_and_is_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(hub: RealHub) -> None:
        host = hub.host("h1")
        hub.start()
        beat = encode(Heartbeat(sender="h1", boot_id="boot", revision=0))
        await host.sends(b'{"type":"snapshot",' + beat[1:])
        await host.says(domain("n1"))
        await hub.until(lambda: hub.shown("n1", "resources_available.magrathea_host") == "h1", "the next one")
        assert "host h1: message refused" in caplog.text

    run(tmp_path, test, "n1")
