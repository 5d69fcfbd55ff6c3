"""Limits the number of TCP connections to the hub and their memory, and chooses which to close.

Each connection takes a file descriptor. ZeroMQ accepts connections until no descriptor is left; then nothing in this
process can open a file any more. So this module counts them, using ZeroMQ's own monitor of the listening socket.

Rule 1: raise the limit of open files as far as the system allows. Keep free what the rest of the hub needs.
Rule 2: if there are too many, close the newest connection of the address with the most, and alert the admin. Pausing
the listener does not help: ZeroMQ then closes existing connections, too.
Rule 3: an address may have `of_one` connections, with or without a key. Further ones are closed at once.
Rule 4: close a connection that has sent more than `waiting_bytes` without completing a message. ZeroMQ itself sets no
limit. If all connections together have sent more than `waiting_bytes_of_all`, close those that have sent most.
Rule 5: a host has PER_KEY connections. If it makes further ones, close those that it has not used for longest.
Rule 6: before a peer has shown a key, it may send HANDSHAKE_BYTES. ZeroMQ itself would let it send a whole message.

This module reads and shuts down ZeroMQ's descriptors, but never closes them: ZeroMQ notices the end and closes them. If
a descriptor was reused meanwhile, no harm is done: it is checked first, or its new owner reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from magrathea.logs import RationedLog

log = logging.getLogger(__name__)

RESERVED_FILES = 200
"""Files for everything but hosts: connections to PBS, clients of the control socket, keys and other files."""
LEAST = 16
"""The hub accepts this many connections even if the limit of open files is too low for them."""
LOOK_S = 1.0
NEW_LOOKS = 10
"""So many times in LOOK_S, look at the connections whose peer may not have shown its key yet."""
PER_KEY = 2
"""A host needs one. When it connects again, the hub may not know yet that the old one has gone."""
HANDSHAKE_BYTES = 16 * 1024
"""CURVE's whole handshake takes less than 1 KiB of each end (rfc.zeromq.org/spec/25)."""
WELCOMED_BYTES = 270
"""A peer that has been sent more than this has shown its key: our greeting (64 bytes), WELCOME (170) and ERROR (12) are
less, our greeting, WELCOME and READY (67 and more) are more."""
_ACKNOWLEDGED, _RECEIVED = 120, 128
"""Offsets of tcpi_bytes_acked and tcpi_bytes_received in tcp_info (linux/tcp.h)."""


def raise_limit() -> int:
    """Raise this process's limit of open files as far as the system allows. Returns the new limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def can_bear(files: int) -> int:
    """The number of connections of hosts that fit into a limit of `files` open files. Logs it."""
    connections = files - RESERVED_FILES
    if connections < RESERVED_FILES:
        log.error("ALERT the limit of open files is %d, too few for a farm; raise LimitNOFILE of magrathea-hub", files)
    log.info("room for %d connections of hosts (limit of open files: %d)", max(LEAST, connections), files)
    return max(LEAST, connections)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`connections`: of all addresses together; `of_one`: of one address; the rest: see Rule 4."""

    connections: int
    of_one: int
    waiting_bytes: int
    waiting_bytes_of_all: int


@dataclass(slots=True)
class _Connection:
    """`heard_bytes`: what it had received when its last message was complete. `key`: of that message; empty if there
    was none. `welcomed`: its peer has shown a key."""

    address: str
    heard_bytes: int = 0
    key: str = ""
    welcomed: bool = False


class Connections:
    """The connections of one listening socket of `context`."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        listener: zmq.asyncio.Socket,
        limits: ConnectionLimits,
        complaints: RationedLog,
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._complaints = complaints
        self._monitor: zmq.asyncio.Socket = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # otherwise ZeroMQ's own thread waits for us
        name = f"inproc://connections-{id(self)}"
        listener.monitor(name, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor.connect(name)
        self._connections: dict[int, _Connection] = {}
        self._of: dict[str, dict[int, None]] = {}
        """The connections of each address, oldest first."""
        self._of_key: dict[str, dict[int, None]] = {}
        """The connections of each key, the last used one last."""

    def __len__(self) -> int:
        return len(self._connections)

    def heard(self, descriptor: int, key: str) -> None:
        """Note that this connection has completed a message of the host with this key."""
        if (connection := self._connections.get(descriptor)) is None:
            return
        connection.heard_bytes, connection.welcomed = _transferred(descriptor)[0], True
        self._forget_key(descriptor, connection)
        connection.key = key
        used = self._of_key.setdefault(key, {})
        used[descriptor] = None
        if len(used) > PER_KEY:
            text = (
                f"a host at {connection.address} has {PER_KEY} connections already; closed the one that it used least"
            )
            self._complaints.say("too many of one key", text)
            self._end(next(iter(used)))

    async def watch(self) -> None:
        """Count connections as they open and close. Never returns."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            self._happened(event["event"], event["value"])
            await asyncio.sleep(0)  # if the next event is there already, awaiting it lets no other task run

    async def look(self) -> None:
        """Close connections whose message never ends, or that send much before they have shown a key. Never returns."""
        while True:
            for _ in range(NEW_LOOKS):
                await asyncio.sleep(LOOK_S / NEW_LOOKS)
                self._end_the_unwelcome()
            self._end_the_endless()

    def _happened(self, event: int, descriptor: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._accepted(descriptor)
        elif event == zmq.EVENT_DISCONNECTED:
            self._gone(descriptor)

    def _accepted(self, descriptor: int) -> None:
        self._gone(descriptor)
        address = _address(descriptor)
        self._of.setdefault(address, {})[descriptor] = None
        self._connections[descriptor] = _Connection(address)
        if len(self._of[address]) > self._limits.of_one:
            text = f"{address} has {self._limits.of_one} connections; closed a further one"
            self._complaints.say("too many of one", text)
            self._end(descriptor)
        elif len(self) > self._limits.connections:
            most = max(self._of, key=lambda one: (len(self._of[one]), one == address))
            text = (
                f"ALERT {self._limits.connections} connections are the limit; closed one of {most}, which has "
                f"{len(self._of[most])}; raise LimitNOFILE of magrathea-hub, or stop what connects so often"
            )
            self._complaints.say("too many", text, level=logging.ERROR)
            self._end(next(reversed(self._of[most])))

    def _gone(self, descriptor: int) -> None:
        if (connection := self._connections.pop(descriptor, None)) is not None:
            del self._of[connection.address][descriptor]
            if not self._of[connection.address]:
                del self._of[connection.address]
            self._forget_key(descriptor, connection)

    def _forget_key(self, descriptor: int, connection: _Connection) -> None:
        if (used := self._of_key.get(connection.key)) is not None:
            used.pop(descriptor, None)
            if not used:
                del self._of_key[connection.key]

    def _end(self, descriptor: int) -> None:
        self._gone(descriptor)
        with contextlib.suppress(OSError), _borrowed(descriptor) as connection:  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)

    def _end_the_unwelcome(self) -> None:
        for descriptor, connection in list(self._connections.items()):
            if connection.welcomed:
                continue
            received, acknowledged = _transferred(descriptor)
            connection.welcomed = acknowledged > WELCOMED_BYTES
            if not connection.welcomed and received > HANDSHAKE_BYTES:
                text = f"{connection.address} sends {received} bytes before it has shown a key; closed its connection"
                self._complaints.say("unwelcome", text)
                self._end(descriptor)

    def _end_the_endless(self) -> None:
        waiting: dict[int, int] = {}
        for descriptor, connection in list(self._connections.items()):
            waiting[descriptor] = _transferred(descriptor)[0] - connection.heard_bytes
            if waiting[descriptor] > self._limits.waiting_bytes:
                text = f"{connection.address} sends a message without an end; closed its connection"
                self._complaints.say("endless", text)
                self._end(descriptor)
                del waiting[descriptor]
        too_many = sum(waiting.values()) - self._limits.waiting_bytes_of_all
        for descriptor in sorted(waiting, key=lambda one: -waiting[one]):
            if too_many <= 0:
                return
            too_many -= waiting[descriptor]
            address = self._connections[descriptor].address
            text = f"ALERT all hosts together send too much; closed a connection of {address}"
            self._complaints.say("too much", text, level=logging.ERROR)
            self._end(descriptor)

    def close(self) -> None:
        """Stop monitoring. To be called before the listening socket is closed."""
        self._listener.monitor(None, 0)
        self._monitor.close(linger=0)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """ZeroMQ's connection by its descriptor, without a duplicate: none may be left. Raises OSError if it is closed."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _address(descriptor: int) -> str:
    """The address of the other end; empty if the connection is closed already."""
    try:
        with _borrowed(descriptor) as connection:
            return str(connection.getpeername()[0])
    except OSError:
        return ""


def _transferred(descriptor: int) -> tuple[int, int]:
    """Bytes received, and sent and acknowledged, since the connection was opened; 0 if it is closed already."""
    try:
        with _borrowed(descriptor) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED + 8)
    except OSError:
        return 0, 0
    if len(info) < _RECEIVED + 8:
        return 0, 0
    return struct.unpack_from("Q", info, _RECEIVED)[0], struct.unpack_from("Q", info, _ACKNOWLEDGED)[0]
