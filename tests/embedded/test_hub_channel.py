"""Who may speak to the hub, and in which name: real sockets, ipc and TCP with CURVE on the loopback."""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from magrathea.messages import MAX_BYTES, Heartbeat, Resend, ToHub, decode_to_host, encode
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import keys, lanes
from scheduler_plugin.hub.channel import ChannelError, HubChannel
from tests.embedded.real_hub import free_port

SILENT_S = 0.7
"""Long enough on a loaded machine for anything that would arrive in a millisecond. Only tests that expect nothing wait
for it."""


class Heard:
    def __init__(self) -> None:
        self.messages: list[tuple[str, ToHub, bool]] = []
        self.come = asyncio.Event()

    def __call__(self, host: str, message: ToHub, new: bool) -> None:
        self.messages.append((host, message, new))
        self.come.set()

    async def next(self) -> tuple[str, ToHub, bool]:
        async with asyncio.timeout(BOUND_S):
            while not self.messages:
                self.come.clear()
                await self.come.wait()
        return self.messages.pop(0)

    async def nothing(self) -> None:
        """A fixed time: no event follows what is refused. Connections have no order among each other, and a refused
        one gets no further message through."""
        await asyncio.sleep(SILENT_S)
        assert self.messages == []


class Line:
    """The hub's channel, and clients that want to be hosts."""

    def __init__(self, directory: Path) -> None:
        self.keys_dir = directory / "keys"
        keys.init(self.keys_dir)
        self.ipc = f"ipc://{directory}/hub.ipc"
        self.tcp = f"tcp://127.0.0.1:{free_port()}"
        self.heard = Heard()
        self.context = zmq.asyncio.Context()
        self.clients: list[zmq.asyncio.Socket] = []
        self.channel = HubChannel([self.ipc], [self.tcp], self.keys_dir, self.heard)

    def client(self, endpoint: str, identity: str, pair: Path | keys.Certificate | None = None) -> zmq.asyncio.Socket:
        """A DEALER socket; `pair`: its CURVE keys."""
        dealer: zmq.asyncio.Socket = self.context.socket(zmq.DEALER)
        self.clients.append(dealer)
        dealer.setsockopt(zmq.IDENTITY, identity.encode())
        dealer.setsockopt(zmq.LINGER, 0)
        if pair is not None:
            certificate = keys.read_secret(pair) if isinstance(pair, Path) else pair
            dealer.curve_publickey = certificate.public.encode()
            dealer.curve_secretkey = certificate.secret.encode()
            dealer.curve_serverkey = keys.read(self.keys_dir / keys.HUB_PUBLIC).public.encode()
        dealer.connect(endpoint)
        return dealer

    def enrol(self, host: str) -> Path:
        pair = keys.enrol(self.keys_dir, host)
        self.channel.reload_keys()
        return pair

    async def close(self) -> None:
        for client in self.clients:
            client.close(linger=0)
        self.context.term()
        await self.channel.close()


@asynccontextmanager
async def line(directory: Path) -> AsyncIterator[Line]:
    made = Line(directory)
    try:
        made.channel.start()
        yield made
    finally:
        await made.close()


def run(directory: Path, test: Callable[[Line], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with line(directory) as made:
            await test(made)

    asyncio.run(whole())


def beat(host: str, revision: int = 1) -> bytes:
    return encode(Heartbeat(sender=host, boot_id="boot", revision=revision))


def test_ipc_both_ways(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        host = line.client(line.ipc, "h1")
        await host.send(beat("h1"))
        assert await line.heard.next() == ("h1", Heartbeat(sender="h1", boot_id="boot", revision=1), True)
        await host.send(beat("h1"))
        assert (await line.heard.next())[2] is False, "no longer new"
        assert line.channel.send("h1", Resend())
        async with asyncio.timeout(BOUND_S):
            assert decode_to_host(await host.recv()) == Resend()

    run(tmp_path, test)


def test_the_ipc_socket_is_for_the_hubs_user_only(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        mode = (tmp_path / "hub.ipc").stat().st_mode
        assert stat.S_IMODE(mode) & 0o077 == 0

    run(tmp_path, test)


def test_on_ipc_a_host_cannot_speak_for_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(line: Line) -> None:
        await line.client(line.ipc, "h1").send(beat("h2"))
        await line.heard.nothing()
        assert "host h1: message refused: it is in the name of host h2" in caplog.text

    run(tmp_path, test)


def test_tcp_with_an_enrolled_key_both_ways(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        host = line.client(line.tcp, "h1", line.enrol("h1"))
        await host.send(beat("h1"))
        assert (await line.heard.next())[0] == "h1"
        assert line.channel.send("h1", Resend())
        async with asyncio.timeout(BOUND_S):
            assert decode_to_host(await host.recv()) == Resend()

    run(tmp_path, test)


def test_on_tcp_the_key_identifies_the_host_not_the_identity_nor_the_message(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        pair = line.enrol("h2")
        line.enrol("h1")
        await line.client(line.tcp, "h1", pair).send(beat("h1"))
        await line.heard.nothing()
        await line.client(line.tcp, "whatever", pair).send(beat("h2"))
        assert (await line.heard.next())[0] == "h2"

    run(tmp_path, test)


def test_a_key_that_nobody_enrolled_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(line: Line) -> None:
        line.enrol("h1")
        public, secret = (part.decode() for part in zmq.curve_keypair())
        await line.client(line.tcp, "h1", keys.Certificate(public, secret)).send(beat("h1"))
        await line.heard.nothing()
        assert "no enrolled host" in caplog.text

    run(tmp_path, test)


def test_without_keys_nobody_speaks_on_tcp(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        line.enrol("h1")
        await line.client(line.tcp, "h1").send(beat("h1"))
        await line.heard.nothing()

    run(tmp_path, test)


def test_a_wrong_hub_key_never_finishes_the_handshake(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        pair = line.enrol("h1")
        (tmp_path / "keys" / keys.HUB_PUBLIC).unlink()
        other = tmp_path / "other"
        keys.init(other)
        (tmp_path / "keys" / keys.HUB_PUBLIC).write_text((other / keys.HUB_PUBLIC).read_text())
        await line.client(line.tcp, "h1", pair).send(beat("h1"))
        await line.heard.nothing()

    run(tmp_path, test)


def test_a_revoked_hosts_open_connection_is_ignored(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        host = line.client(line.tcp, "h1", line.enrol("h1"))
        await host.send(beat("h1"))
        await line.heard.next()
        keys.revoke(line.keys_dir, "h1")
        line.channel.reload_keys()
        await host.send(beat("h1"))
        await line.heard.nothing()
        assert not line.channel.send("h1", Resend()), "nor told anything"

    run(tmp_path, test)


def test_a_host_enrolled_again_needs_its_new_key(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        old = keys.read_secret(line.enrol("h1"))
        keys.revoke(line.keys_dir, "h1")
        new = line.enrol("h1")
        await line.client(line.tcp, "h1", old).send(beat("h1"))
        await line.heard.nothing()
        await line.client(line.tcp, "h1", new).send(beat("h1"))
        assert (await line.heard.next())[0] == "h1"

    run(tmp_path, test)


def test_a_message_that_is_too_large_is_never_read_and_its_sender_is_disconnected(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        await line.client(line.ipc, "h1").send(b"x" * (MAX_BYTES + 1))
        await line.heard.nothing()
        await line.client(line.ipc, "h2").send(beat("h2"))
        assert (await line.heard.next())[0] == "h2"

    run(tmp_path, test)


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\x00\xff garbage"],
        [b"{}"],
        [b'{"type":"heartbeat"}'],
        [b'{"type":"heartbeat","sender":"h1","boot_id":"b","revision":-1}'],
        [b'{"type":"heartbeat","sender":"h1","boot_id":"b","revision":1,"more":1}'],
        [b'{"type":"books","hub_id":"x","acked_revision":1,"jobs":[]}'],
        [b"[" * 100_000],
        [beat("h1"), beat("h1")],
        [b"", beat("h1")],
    ],
)
def test_garbage_is_dropped_and_the_next_message_is_accepted(tmp_path: Path, frames: list[bytes]) -> None:
    async def test(line: Line) -> None:
        host = line.client(line.ipc, "h1")
        await host.send_multipart(frames)
        await host.send(beat("h1", revision=7))
        _, message, _ = await line.heard.next()
        assert isinstance(message, Heartbeat)
        assert message.revision == 7

    run(tmp_path, test)


def test_a_host_that_sends_too_much_is_dropped_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "RATE_PER_S", 10)
    monkeypatch.setattr(lanes, "RATE_OVER_S", 60.0)

    async def test(line: Line) -> None:
        host = line.client(line.ipc, "h1")
        for revision in range(700):
            await host.send(beat("h1", revision))
        for _ in range(600):
            await line.heard.next()
        await line.heard.nothing()
        assert caplog.text.count("more than 10 heartbeats a second") == 1

    with caplog.at_level(logging.WARNING):
        run(tmp_path, test)


def test_a_host_that_comes_back_takes_its_old_place(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        first = line.client(line.ipc, "h1")
        await first.send(beat("h1"))
        await line.heard.next()
        second = line.client(line.ipc, "h1")
        await second.send(beat("h1", 2))
        await line.heard.next()
        assert line.channel.send("h1", Resend())
        async with asyncio.timeout(BOUND_S):
            await second.recv()

    run(tmp_path, test)


def test_a_host_that_is_away_gets_nothing_and_is_forgotten(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        assert not line.channel.send("h1", Resend()), "never heard"
        host = line.client(line.ipc, "h1")
        await host.send(beat("h1"))
        await line.heard.next()
        host.close(linger=0)
        async with asyncio.timeout(BOUND_S):
            while line.channel.send("h1", Resend()):
                await asyncio.sleep(0.01)
        assert line.channel.hosts == []

    run(tmp_path, test)


def test_tcp_without_a_hub_key_is_never_opened(tmp_path: Path) -> None:
    async def test() -> None:
        made = HubChannel([], [f"tcp://127.0.0.1:{free_port()}"], tmp_path / "nokeys", Heard())
        with pytest.raises(keys.KeysError):
            made.start()
        await made.close()

    asyncio.run(test())


def test_an_endpoint_that_is_taken_is_named(tmp_path: Path) -> None:
    async def test(line: Line) -> None:
        second = HubChannel([], [line.tcp], line.keys_dir, Heard())
        with pytest.raises(ChannelError, match="tcp://"):
            second.start()
        await second.close()

    run(tmp_path, test)


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    keys.init(tmp_path / "keys")
    (tmp_path / "keys" / keys.HUB_SECRET).chmod(0o644)
    with pytest.raises(keys.KeysError, match="chmod 600"):
        keys.read_secret(tmp_path / "keys" / keys.HUB_SECRET)
