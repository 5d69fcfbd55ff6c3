"""The control socket of the node daemon or the hub, for `magrathea status` and administrators' commands.

The client sends one JSON line and gets one back; then the connection is closed. Everybody on the machine may ask for
the status. Changes need root, the daemon's own user, or the configured group (peer credentials, not passwords).

The daemon knows the user of a connection from the start. So strangers can neither lock entitled users out nor keep the
daemon busy:
- entitled users have their own places; all others share STRANGERS places, with at most PER_USER for each user;
- all others together may use STRANGERS_SHARE of the daemon's one loop, each user USER_SHARE;
- a connection that sends nothing, or does not read its answer, is closed;
- at most AT_ONCE connections are accepted before the loop does other work.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec

from magrathea import supervision
from magrathea.budget import Budget
from magrathea.configuration import mistakes
from magrathea.core.model import JobClass
from magrathea.core.refusals import RefusalCode
from magrathea.decoding import UNDECODABLE
from magrathea.host_sleep import LONGEST_S
from magrathea.logs import RationedLog
from magrathea.messages import Chunk, Time
from magrathea.text import printable

log = logging.getLogger(__name__)

MAX_LINE = 4096
LINE_S = 2.0
"""For a client to send its line; a program has it ready."""
TIME_LIMIT_S = 5.0
"""For a client to read its answer."""
ENTITLED, STRANGERS, PER_USER = 64, 32, 8
"""Simultaneous connections."""
STRANGERS_SHARE, STRANGERS_BURST_S = 0.25, 3.0
USER_SHARE, USER_BURST_S = 0.1, 1.0
AT_ONCE = 16
ACCEPT_AGAIN_S = 1.0
BACKLOG = 100
MEMBERS_S = 10.0
MOST_USERS = 1000
"""At most so many users have an entry in memory."""

MOST_REASON = 1000
"""Letters of a reason; it is shown in one line."""

_Text = Annotated[str, msgspec.Meta(max_length=255)]


class ControlRequest(msgspec.Struct, forbid_unknown_fields=True):
    op: _Text
    domain: _Text = ""
    reason: Annotated[str, msgspec.Meta(max_length=MOST_REASON)] = ""
    about: _Text = ""
    since: Time = 0.0
    limit: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 100
    do: _Text = ""
    when_idle: bool = False
    now: bool = False
    with_jobs: bool = False
    to: _Text = ""
    deadline_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_S)] = 0.0
    cls: JobClass = JobClass.PRIORITY
    chunks: Annotated[list[Chunk], msgspec.Meta(max_length=64)] = []


class Denied(Exception):
    """The request is refused: `code` is for programs, text for people."""

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code = code


Operation = Callable[[ControlRequest], Awaitable[bytes]]

_request = msgspec.json.Decoder(ControlRequest)
_encode = msgspec.json.Encoder().encode


class Control:
    """Listens on the socket. `reading`: operations for everybody; `changing`: those for entitled users. They may raise
    Denied.

    `costs`: seconds of the loop that an operation is charged with, in addition to the time that it takes here.
    """

    def __init__(
        self,
        path: Path,
        reading: dict[str, Operation],
        changing: dict[str, Operation],
        group: str = "",
        costs: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.group = group
        self._costs = costs
        self._reading = reading
        self._changing = changing
        self._socket: socket.socket | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._of: Counter[int | None] = Counter()
        """Connections by user; None: all entitled users together."""
        self._shares: dict[int, Budget] = {}
        self._members: dict[tuple[int, int, str], tuple[float, bool]] = {}
        """Whether a user is in the group, and when that was looked up."""
        self._strangers = Budget(STRANGERS_SHARE, STRANGERS_BURST_S, time.monotonic())
        self._complaints = RationedLog(log)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(self.path))
            self.path.chmod(0o666)
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            self._socket = None
            raise
        self._listen(self._socket)

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # it may have been closed meanwhile
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    async def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    # Admission

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:  # no descriptor is left
                self._complaints.say("accept", f"{self.path}: no connection can be accepted: {error}")
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.fileno())
                loop.call_later(ACCEPT_AGAIN_S, self._listen, listener)
                return
            try:
                self._welcome(connection)
            except OSError:  # the client has gone
                connection.close()

    def _welcome(self, connection: socket.socket) -> None:
        uid, gid = peer(connection)
        place = None if self._may_change(uid, gid) else uid
        if busy := self._too_many(place):
            connection.setblocking(False)
            connection.send(refusal(RefusalCode.BUSY, busy) + b"\n")
            connection.close()
            return
        self._of[place] += 1
        task = supervision.start(self._client(connection, uid, place))
        self._clients.add(task)
        task.add_done_callback(lambda done: self._gone(done, place))

    def _too_many(self, place: int | None) -> str:
        """Why there is no place for the user; empty if there is one."""
        if place is None:
            return f"{ENTITLED} connections of root and the like are open" if self._of[None] >= ENTITLED else ""
        if self._of[place] >= PER_USER:
            return f"uid {place} has {PER_USER} connections open; wait until one is closed"
        if self._of.total() - self._of[None] >= STRANGERS:
            return f"{STRANGERS} connections are open; try again"
        now = time.monotonic()
        wait_s = max(self._strangers.wait_s(now), self._share(place, now).wait_s(now))
        return f"uid {place} sends too many requests; try again in {wait_s:.1f} s" if wait_s else ""

    def _share(self, uid: int, now: float) -> Budget:
        if uid not in self._shares and len(self._shares) >= MOST_USERS:
            self._shares.pop(next(iter(self._shares)))
        return self._shares.setdefault(uid, Budget(USER_SHARE, USER_BURST_S, now))

    def _gone(self, task: asyncio.Task[None], place: int | None) -> None:
        self._clients.discard(task)
        self._of[place] -= 1
        if not self._of[place]:
            del self._of[place]

    # One client

    async def _client(self, connection: socket.socket, uid: int, place: int | None) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_LINE)
        writer.transport.set_write_buffer_limits(0)  # `drain` returns when everything is sent
        try:
            async with asyncio.timeout(LINE_S):
                line = await _line(reader)
            began_s = time.thread_time()
            op, answer = await self._answer(line, uid, entitled=place is None)
            if place is not None:
                used_s = time.thread_time() - began_s + self._costs.get(op, 0.0)
                self._strangers.spend(used_s)
                self._share(place, time.monotonic()).spend(used_s)
            async with asyncio.timeout(TIME_LIMIT_S):
                writer.write(answer + b"\n")
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            log.debug("control: a client of uid %d was dropped: %r", uid, error)
        finally:
            writer.transport.abort()

    async def _answer(self, line: bytes | None, uid: int, *, entitled: bool) -> tuple[str, bytes]:
        """The operation's name and its answer. Never raises."""
        op = ""
        if line is None:
            return op, refusal(
                RefusalCode.BAD_REQUEST, f"the request is longer than {MAX_LINE} bytes; shorten its texts"
            )
        try:
            request = _request.decode(line)
            op = request.op
            return op, await self._operation(request, uid, entitled)(request)
        except UNDECODABLE as error:
            return op, refusal(RefusalCode.BAD_REQUEST, _mistakes(line) or printable(str(error)))
        except Denied as error:
            return op, refusal(error.code, str(error))
        except Exception as defect:  # noqa: BLE001  a door (supervision.py)
            self._complaints.say("defect", f"{self.path}: a request of uid {uid} could not be answered", defect)
            return op, refusal(RefusalCode.INTERNAL, "the daemon failed; its log has the reason")

    def _operation(self, request: ControlRequest, uid: int, entitled: bool) -> Operation:
        """The requested operation. Raises Denied."""
        if operation := self._reading.get(request.op):
            return operation
        if operation := self._changing.get(request.op):
            self._check(request, uid, entitled)
            return operation
        known = ", ".join(sorted([*self._reading, *self._changing]))
        raise Denied(RefusalCode.UNKNOWN_OP, f"no operation `{request.op[:64]}`; known: {known}")

    def _check(self, request: ControlRequest, uid: int, entitled: bool) -> None:
        if entitled:
            when = " --now" if request.now else " --when-idle" if request.when_idle else ""
            order = f"{request.op} {request.do}".rstrip() + when
            log.info("control: `%s` %s by uid %d", order, request.domain, uid)
            return
        who = f"root, {pwd_name(os.getuid())}" + (f" or the group {self.group}" if self.group else "")
        raise Denied(RefusalCode.NOT_PERMITTED, f"`{request.op}` is for {who}; uid {uid} may only ask for the status")

    def _may_change(self, uid: int, gid: int) -> bool:
        if uid in (0, os.getuid()):
            return True
        if not self.group:
            return False
        now, key = time.monotonic(), (uid, gid, self.group)
        # the lookup of a group's members may take long
        if key not in self._members or now - self._members[key][0] >= MEMBERS_S:
            if len(self._members) >= MOST_USERS:
                self._members.clear()
            self._members[key] = (now, _in_group(uid, gid, self.group))
        return self._members[key][1]


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """A client's line; None if it is too long. Raises IncompleteReadError, OSError."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        return None


def _mistakes(line: bytes) -> str:
    """What is wrong with a request, in words; empty if it is no JSON object."""
    try:
        value = msgspec.json.decode(line)
    except UNDECODABLE:
        return ""
    return "; ".join(problem.text for problem in mistakes(value, ControlRequest)) if isinstance(value, dict) else ""


def refusal(code: RefusalCode, text: str) -> bytes:
    return _encode({"ok": False, "code": code, "text": text})


def granted(**fields: object) -> bytes:
    return _encode({"ok": True, **fields})


def peer(connection: socket.socket) -> tuple[int, int]:
    """(uid, gid) of the process at the other end (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("3i", credentials)
    return uid, gid


def pwd_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def entitled(uid: int, gid: int, group: str, owned: Path) -> bool:
    """True if a user may change things while no daemon runs: root, the owner of the file `owned`, or the group."""
    try:
        return uid in (0, owned.stat().st_uid) or bool(group and _in_group(uid, gid, group))
    except OSError:
        return False


def _in_group(uid: int, gid: int, group: str) -> bool:
    try:
        entry = grp.getgrnam(group)
        return gid == entry.gr_gid or pwd.getpwuid(uid).pw_name in entry.gr_mem
    except KeyError:
        return False
