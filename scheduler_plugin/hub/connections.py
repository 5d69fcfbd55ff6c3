"""Connections to the hub by TCP: how many it can bear, and whose are ended.

Each connection takes a file descriptor, and ZeroMQ takes connections until there is none left; then nothing in this
process can open a file any more. So this module counts them, by ZeroMQ's own monitor of the listening socket.

Rule 1: the limit of open files is raised as far as the system lets us; what the rest of the hub needs is kept free.
Rule 2: beyond that the newest connection of the address that has most is ended, and an admin is told. (Not to listen
for a while is no way: then ZeroMQ ends the connections that it has, too.)
Rule 3: one address has at most so many, whether it has a key or not: what comes beyond is ended at once.
Rule 4: a connection that has sent more than what a host may have waiting here, without a whole message among it, is
ended: ZeroMQ itself keeps the parts of a message that never ends without a bound.

ZeroMQ's descriptors are read and shut down, never closed: it notices, and closes them itself. Should one have gone to
another use meanwhile, the checks here or the other use's own new connection make that harmless.
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
"""For all but hosts: connections to PBS, the control socket's clients, keys and other files that are read."""
LEAST = 16
"""Connections that are tried even where too few files may be open."""
LOOK_S = 1.0
_RECEIVED = 128
"""Where tcp_info (linux/tcp.h) has tcpi_bytes_received."""


def raise_limit() -> int:
    """Allow this process as many open files as the system lets it; how many these are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def can_bear(files: int) -> int:
    """How many connections of hosts this process can bear with so many open files; told in the log."""
    connections = files - RESERVED_FILES
    if connections < RESERVED_FILES:
        log.error("ALERT the limit of open files is %d, too few for a farm; raise LimitNOFILE of magrathea-hub", files)
    log.info("can bear %d connections of hosts (limit of open files: %d)", max(LEAST, connections), files)
    return max(LEAST, connections)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`connections`: in all; `of_one`: of one address; `waiting_bytes`: see Rule 4."""

    connections: int
    of_one: int
    waiting_bytes: int


class Connections:
    """Of one listening socket, which belongs to `context`."""

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
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # else ZeroMQ's own thread waits for us
        name = f"inproc://connections-{id(self)}"
        listener.monitor(name, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor.connect(name)
        self._address_of: dict[int, str] = {}
        self._of: dict[str, dict[int, int]] = {}
        """By address, its connections, oldest first, with the bytes that each had sent at its last whole message."""

    def __len__(self) -> int:
        return len(self._address_of)

    def heard(self, descriptor: int) -> None:
        """A whole message has come from there."""
        if (address := self._address_of.get(descriptor)) is not None:
            self._of[address][descriptor] = _received(descriptor)

    async def watch(self) -> None:
        """Count them as they come and go, for ever."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            self._happened(event["event"], event["value"])
            await asyncio.sleep(0)  # the next one may be there already; then awaiting it lets nobody else run

    async def look(self) -> None:
        """End those that send what has no end, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._end_the_endless()

    def _happened(self, event: int, descriptor: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._accepted(descriptor)
        elif event == zmq.EVENT_DISCONNECTED:
            self._gone(descriptor)

    def _accepted(self, descriptor: int) -> None:
        self._gone(descriptor)
        address = _address(descriptor)
        self._of.setdefault(address, {})[descriptor] = 0
        self._address_of[descriptor] = address
        if len(self._of[address]) > self._limits.of_one:
            text = f"{address} has {self._limits.of_one} connections; a further one is ended"
            self._complaints.say("too many of one", text)
            self._end(descriptor)
        elif len(self) > self._limits.connections:
            most = max(self._of, key=lambda one: (len(self._of[one]), one == address))
            text = (
                f"ALERT {self._limits.connections} connections, no more can be borne: one of {most}, which has "
                f"{len(self._of[most])}, is ended; raise LimitNOFILE of magrathea-hub, or end what connects"
            )
            self._complaints.say("too many", text, level=logging.ERROR)
            self._end(next(reversed(self._of[most])))

    def _gone(self, descriptor: int) -> None:
        if (address := self._address_of.pop(descriptor, None)) is not None:
            del self._of[address][descriptor]
            if not self._of[address]:
                del self._of[address]

    def _end(self, descriptor: int) -> None:
        self._gone(descriptor)
        with contextlib.suppress(OSError), _borrowed(descriptor) as connection:  # it has gone already
            connection.shutdown(socket.SHUT_RDWR)

    def _end_the_endless(self) -> None:
        for descriptor, address in list(self._address_of.items()):
            if _received(descriptor) - self._of[address][descriptor] > self._limits.waiting_bytes:
                text = f"{address} sends a message without an end; its connection is ended"
                self._complaints.say("endless", text)
                self._end(descriptor)

    def close(self) -> None:
        """Before the listening socket is closed."""
        self._listener.monitor(None, 0)
        self._monitor.close(linger=0)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """ZeroMQ's connection, by its own descriptor: there may be no other one left. Raises OSError: it has gone."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _address(descriptor: int) -> str:
    """The other end's; empty if it has gone already."""
    try:
        with _borrowed(descriptor) as connection:
            return str(connection.getpeername()[0])
    except OSError:
        return ""


def _received(descriptor: int) -> int:
    """Bytes since it was made; 0 if it has gone."""
    try:
        with _borrowed(descriptor) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED + 8)
    except OSError:
        return 0
    return int(struct.unpack_from("Q", info, _RECEIVED)[0]) if len(info) == _RECEIVED + 8 else 0
