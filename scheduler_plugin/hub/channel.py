"""The hub's side of the channel to the node daemons: ZeroMQ ROUTER, one socket for ipc and one for TCP.

The channel identifies the sender, never the message:
  ipc  the peer's identity is its host's name; only the hub's own user can open the socket's file
  tcp  CURVE on both sides; the peer's key identifies the host (keys.py). Messages signed with a revoked key are dropped
       at once. ZeroMQ cannot close the connection, so each message's key is checked. The identity is only an address.
       An enrolled host that uses another's identity can interrupt it for moments (ROUTER_HANDOVER), but not send
       in its name. Nor can it interrupt a daemon whose identity cannot be guessed: "h1/<random>" is accepted, too.

ZeroMQ never reads a message that is too large (MAXMSGSIZE). Messages that come too often or make no sense are dropped
and logged. A bad message harms no other message. Each host may use a share of this process's one loop (lanes.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.utils import z85

from magrathea import files, supervision
from magrathea.logs import RationedLog
from magrathea.messages import (
    MAX_BYTES,
    BadMessage,
    Message,
    Snapshot,
    ToHub,
    decode_to_hub,
    encode,
)

from . import keys
from .bindings import Bindings
from .connections import ConnectionLimits, Connections
from .lanes import Lane, Lanes, kind_of

log = logging.getLogger(__name__)

QUEUE = 4
"""Messages of one connection that ZeroMQ holds. If there are more, it stops reading and the host has to wait."""
ANSWERS = 16
"""Messages to one host that ZeroMQ holds while the host reads nothing. Further ones are not sent."""
UNREAD_BYTES = 512 * 1024 * 1024
"""What all connections together may send without completing a message: 128 hosts at once, each the largest."""
SOCKET_BYTES = 256 * 1024
"""What the kernel holds for one connection in each direction."""
ZAP_DOMAIN = b"magrathea"
ZAP = "inproc://zeromq.zap.01"
"""The address at which ZeroMQ asks whether a client may connect (rfc.zeromq.org/spec/27)."""


class ChannelError(Exception):
    """An endpoint cannot be used. The text names it, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class _Peer:
    """Where a host's messages come from. `key`: the key that identified the host; None on ipc."""

    socket: zmq.asyncio.Socket
    identity: bytes
    key: str | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message that is not decoded yet. `type`: what it begins with."""

    peer: _Peer
    frame: zmq.Frame
    type: type[ToHub]


class HubChannel:
    """`on_message` gets the host's name, its message, and whether it has just connected (again)."""

    def __init__(
        self,
        ipc: list[str],
        tcp: list[str],
        keys_dir: Path,
        on_message: Callable[[str, ToHub, bool], None],
        connections: int = 1000,
        of_one_address: int = 64,
    ) -> None:
        self._ipc, self._tcp, self._keys_dir = ipc, tcp, keys_dir
        self._limits = ConnectionLimits(connections, of_one_address, (QUEUE + 2) * MAX_BYTES, UNREAD_BYTES)
        self._connections: Connections | None = None
        self._on_message = on_message
        self._context = zmq.asyncio.Context(io_threads=1)
        self._sockets: list[zmq.asyncio.Socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._peers: dict[str, _Peer] = {}
        self._host_of_key: dict[str, str] = {}
        self._complaints = RationedLog(log)
        self.bindings = Bindings()

    def start(self) -> None:
        """Listen. Raises ChannelError, KeysError."""
        loop = asyncio.get_running_loop()
        self._lanes: Lanes[_Waiting] = Lanes(self._turn_of, loop.call_later, loop.time)
        if self._ipc:
            socket = self._router()
            for endpoint in self._ipc:
                with files.private_sockets():
                    self._bind(socket, endpoint)
            self._tasks.append(supervision.start(self._receive(socket, by_key=False)))
        if self._tcp:
            self.reload_keys()
            pair = keys.read_secret(self._keys_dir / keys.HUB_SECRET)
            questions: zmq.asyncio.Socket = self._context.socket(zmq.REP)
            self._sockets.append(questions)
            questions.bind(ZAP)
            self._tasks.append(supervision.start(self._authenticate(questions)))
            socket = self._router()
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
            socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            self._connections = Connections(self._context, socket, self._limits, self._complaints)
            for endpoint in self._tcp:
                self._bind(socket, endpoint)
            self._tasks.append(supervision.start(self._connections.watch()))
            self._tasks.append(supervision.start(self._connections.look()))
            self._tasks.append(supervision.start(self._receive(socket, by_key=True)))

    def _router(self) -> zmq.asyncio.Socket:
        socket: zmq.asyncio.Socket = self._context.socket(zmq.ROUTER)
        self._sockets.append(socket)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_BYTES),
            (zmq.RCVHWM, QUEUE),
            (zmq.SNDHWM, ANSWERS),
            (zmq.RCVBUF, SOCKET_BYTES),
            (zmq.SNDBUF, SOCKET_BYTES),
            (zmq.ROUTER_MANDATORY, 1),  # otherwise a message to an absent host vanishes silently
            (zmq.ROUTER_HANDOVER, 1),  # a host that reconnects replaces its old connection
            (zmq.HEARTBEAT_IVL, 2000),
            (zmq.HEARTBEAT_TIMEOUT, 6000),
            (zmq.HANDSHAKE_IVL, 5000),
            (zmq.BACKLOG, 1024),
        ):
            socket.setsockopt(option, value)
        return socket

    @staticmethod
    def _bind(socket: zmq.asyncio.Socket, endpoint: str) -> None:
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ChannelError(f"cannot listen at {endpoint}: {error.strerror}; fix `listen` in [hub]") from error

    def reload_keys(self) -> None:
        """Read again which hosts are enrolled. Raises KeysError; then the former keys stay valid."""
        if self._tcp:
            enrolled = keys.enrolled(self._keys_dir)
            self._host_of_key = {one.public: one.host for one in enrolled}
            self.bindings = Bindings({one.host: one.vnodes for one in enrolled if one.vnodes is not None})
            self._peers = {
                host: peer
                for host, peer in self._peers.items()
                if peer.key is None or self._host_of_key.get(peer.key) == host
            }

    async def _authenticate(self, questions: zmq.asyncio.Socket) -> None:
        """Answer ZeroMQ's questions whether a client may connect. Later each message's key is looked up again."""
        while True:
            version, number, _, address, _, _, *credentials = await questions.recv_multipart()
            key = z85.encode(credentials[0])
            known = key.decode() in self._host_of_key
            if not known:
                text = f"a client at {address.decode()} with the key {key.decode()}, which no enrolled host has"
                self._complaints.say("key", f"{text}, was refused")
            status = (b"200", b"OK", key) if known else (b"400", b"unknown key", b"")
            await questions.send_multipart([version, number, *status, b""])
            await asyncio.sleep(0)

    async def _receive(self, socket: zmq.asyncio.Socket, by_key: bool) -> None:
        while True:
            frames = await socket.recv_multipart(copy=False)
            with self._door(""):
                peer = self._peer(socket, frames, by_key)
                if self._connections is not None and peer.key is not None:
                    self._connections.heard(int(frames[-1].get(zmq.SRCFD)), peer.key)
                host = self._host_of(peer)
                with self._door(host):
                    self._received(host, peer, frames[1:])
            await asyncio.sleep(0)  # if the next question is there already, awaiting it lets no other task run

    @contextlib.contextmanager
    def _door(self, host: str) -> Iterator[None]:
        """Log what a message raises instead of passing it on (supervision.py, Rule 3)."""
        try:
            yield
        except BadMessage as error:
            self._complaints.say(("bad", host), f"host {host}: message refused: {error}")
        except Exception as defect:  # noqa: BLE001
            self._complaints.say(("defect", host), f"a message of host {host} could not be handled", defect)

    @staticmethod
    def _peer(socket: zmq.asyncio.Socket, frames: list[zmq.Frame], by_key: bool) -> _Peer:
        return _Peer(socket, frames[0].bytes, str(frames[-1].get("User-Id")) if by_key else None)

    def _host_of(self, peer: _Peer) -> str:
        """The name of the peer's host; empty if its key is not enrolled (any more)."""
        if peer.key is not None:
            return self._host_of_key.get(peer.key, "")
        return peer.identity.partition(b"/")[0].decode(errors="replace")

    def _received(self, host: str, peer: _Peer, frames: list[zmq.Frame]) -> None:
        if not host:
            raise BadMessage("its key belongs to no enrolled host (any more)")
        if len(frames) != 1:
            raise BadMessage(f"{len(frames)} frames instead of one")
        kind = kind_of(frames[0].buffer)
        self._lanes.count(host, kind.lane)
        self._lanes.take(host, kind, _Waiting(peer, frames[0], kind.type), len(frames[0]))

    def _turn_of(self, host: str, lane: Lane, waiting: _Waiting) -> None:
        """Handle a message, unless the host's key was revoked while it waited."""
        if self._host_of(waiting.peer) != host:
            return
        with self._door(host):
            began = time.perf_counter()
            try:
                self._understand(host, waiting)
            finally:
                self._lanes.charge(host, time.perf_counter() - began, lane)

    def charge(self, host: str, seconds: float, lane: Lane = Lane.REST) -> None:
        """Charge the host with time of the loop that its messages have cost later."""
        self._lanes.charge_later(host, seconds, lane)

    def _understand(self, host: str, waiting: _Waiting) -> None:
        message = decode_to_hub(waiting.frame.bytes)
        if type(message) is not waiting.type:
            raise BadMessage("it begins with another type than its own")
        sender = message.host if isinstance(message, Snapshot) else message.sender
        if sender != host:
            raise BadMessage(f"it is in the name of host {sender}")
        new = self._peers.get(host) != waiting.peer
        self._peers[host] = waiting.peer
        self._on_message(host, message, new)

    @property
    def hosts(self) -> list[str]:
        """Hosts that have spoken and are not known to be away."""
        return list(self._peers)

    def send(self, host: str, message: Message) -> bool:
        """True if the message was queued; False if the host is away or does not read."""
        peer = self._peers.get(host)
        if peer is None:
            return False
        # with DONTWAIT the future is already done
        sent = asyncio.ensure_future(peer.socket.send_multipart([peer.identity, encode(message)], zmq.DONTWAIT))
        error = sent.exception()
        if error is None:
            return True
        if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
            self._peers.pop(host, None)
        elif not isinstance(error, zmq.Again):
            raise error
        return False

    async def close(self) -> None:
        self._lanes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connections is not None:
            self._connections.close()
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()
