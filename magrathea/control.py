"""A control socket, the node daemon's or the hub's: what `magrathea status` and an admin's commands speak to.

One JSON line, one JSON line back, then it is closed. Everybody on the machine may ask for the status; what changes
something needs root, the daemon's own user, or the configured group (peer credentials, not passwords).
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from magrathea.core.model import JobClass
from magrathea.core.refusals import RefusalCode
from magrathea.decoding import UNDECODABLE
from magrathea.messages import Chunk

log = logging.getLogger(__name__)

MAX_LINE = 4096
TIME_LIMIT_S = 5.0
"""For a client to send its line and take its answer."""
MAX_CLIENTS = 32


class ControlRequest(msgspec.Struct, forbid_unknown_fields=True):
    op: str
    domain: str = ""
    reason: str = ""
    about: str = ""
    since: float = 0.0
    limit: int = 100
    do: str = ""
    when_idle: bool = False
    now: bool = False
    cls: JobClass = JobClass.PRIORITY
    chunks: list[Chunk] = []


class Denied(Exception):
    """The answer is a refusal: `code` for programs, text for people."""

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code = code


Operation = Callable[[ControlRequest], Awaitable[bytes]]

_request = msgspec.json.Decoder(ControlRequest)
_encode = msgspec.json.Encoder().encode


class Control:
    """Listens; `reading` are operations for everybody, `changing` those for the entitled. They may raise Denied."""

    def __init__(
        self, path: Path, reading: dict[str, Operation], changing: dict[str, Operation], group: str = ""
    ) -> None:
        self.path = path
        self.group = group
        self._reading = reading
        self._changing = changing
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._client, self.path, limit=MAX_LINE)
        self.path.chmod(0o666)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) <= MAX_CLIENTS:
                async with asyncio.timeout(TIME_LIMIT_S):
                    line = await reader.readuntil(b"\n")
                    writer.write(await self._answer(line, writer) + b"\n")
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            log.debug("control: a client was dropped: %r", error)
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> bytes:
        try:
            request = _request.decode(line)
            if operation := self._reading.get(request.op):
                return await operation(request)
            if operation := self._changing.get(request.op):
                self._entitled(request, writer)
                return await operation(request)
            known = ", ".join(sorted([*self._reading, *self._changing]))
            raise Denied(RefusalCode.UNKNOWN_OP, f"no operation `{request.op[:64]}`; known: {known}")
        except UNDECODABLE as error:
            return refusal(RefusalCode.BAD_REQUEST, str(error))
        except Denied as error:
            return refusal(error.code, str(error))

    def _entitled(self, request: ControlRequest, writer: asyncio.StreamWriter) -> None:
        uid, gid = peer(writer.get_extra_info("socket"))
        if uid in (0, os.getuid()) or (self.group and _in_group(uid, gid, self.group)):
            log.info("control: `%s` %s by uid %d", request.op, request.domain, uid)
            return
        who = f"root, {pwd_name(os.getuid())}" + (f" or the group {self.group}" if self.group else "")
        raise Denied(RefusalCode.NOT_PERMITTED, f"`{request.op}` is for {who}; uid {uid} may only ask for the status")


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
    """Whether a user may change something where no daemon runs: root, who owns the file `owned`, or the group."""
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
