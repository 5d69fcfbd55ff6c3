"""The guest channel, host's side: one unix socket per domain, the agent connects to it (contract of agent/channel.py).

Newline-delimited JSON both ways. Who speaks is known by the socket, so a guest can only ever speak for itself.

What the channel guarantees whatever the guest does:
- a line has at most MAX_LINE bytes, and a guest at most LINES_PER_S lines a second over BURST_S seconds: then reading
  pauses, so that a flood fills the guest's own buffers and nobody else's;
- ten bad lines in a row close the connection; what comes before the first newline is thrown away;
- answers to requests of an earlier session are dropped; a request that is repeated is not worked on twice: it gets the
  answer of the first time (the last KEPT_ANSWERS are kept);
- what the guest does not read is not kept for ever: a full buffer closes the connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import secrets
from collections import OrderedDict
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

from magrathea import supervision
from magrathea.core.refusals import RefusalCode, retry_after_s

from .guest_messages import MAX_LINE, PROTOCOL, Answer, AnyRequest, BadLine, Hello, Unknown, decode, encode

log = logging.getLogger(__name__)

LINES_PER_S = 200
BURST_S = 5
BAD_LINES = 10
KEPT_ANSWERS = 64
REPEAT_S = 0.5
"""A request is sent again that often until its deadline: a channel loses bytes when its other side restarts."""
MAX_AT_WORK = 64
"""Requests of one guest that are worked on at once; the next ones are answered `busy`."""
WRITE_BUFFER = 1024 * 1024
SILENT_S = 25.0
"""An agent of which nothing is heard that long is gone: it reports each 10 s, and a capped guest is slow, but not so.
Behind a virtio-serial port nothing else tells that an agent has died: QEMU, which holds the connection, lives."""
HELLO_AGAIN_S = 1.0
"""To whoever speaks under a session of before, at most that often."""
LOG_EVERY_S = 10.0
"""Bad input is logged that often at most, with how much of it there was."""


def qemu_user(configured: str) -> int | None:
    """The number of the user that libvirt's QEMU runs as; None where no such user is known: then the daemon's own.

    `configured`: name or number, or empty for what distributions call it. Raises OSError for a user that is not there.
    """
    if configured.isdecimal():
        return int(configured)
    for name in [configured] if configured else ["libvirt-qemu", "qemu"]:
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    if configured:
        raise OSError(f"there is no user {configured!r}: fix `qemu_user` in [host]; it is who libvirt's QEMU runs as")
    return None


class AgentError(Exception):
    """A request to a guest failed. `code`: `no-agent`, `timeout`, `superseded`, or the agent's own word."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Handler(Protocol):
    """Who is told what a guest says. Called in the event loop; `connected` and `lost` alternate."""

    def connected(self, domain: str, hello: Hello) -> None: ...

    def lost(self, domain: str) -> None: ...

    def request(self, domain: str, request: AnyRequest) -> Awaitable[dict[str, Any]]: ...


class GuestChannel:
    """The channel of one domain: listens, keeps at most one agent, sends it requests."""

    def __init__(self, host: str, domain: str, path: Path, handler: Handler, owner: int | None = None) -> None:
        self.host = host
        self.domain = domain
        self.path = path
        self.handler = handler
        self.owner = owner
        """The user who may connect, beside root; None: the daemon's own."""
        self.hello: Hello | None = None
        """The agent's, while one is connected."""
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._next_id = 0

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Link(self), self.path, backlog=4)
        self.path.chmod(0o600)
        if self.owner is not None:
            os.chown(self.path, self.owner, -1)
            self.path.parent.chmod(0o711)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.close()
        # The socket stays, though nobody listens: libvirt starts no domain whose channel's path is not there.

    @property
    def connected(self) -> bool:
        return self._link is not None

    async def request(self, op: str, within_s: float, **fields: Any) -> Answer:
        """The agent's answer. Raises AgentError: no agent, none in time, agent gone meanwhile, or its refusal."""
        link = self._link
        if link is None:
            raise AgentError(
                RefusalCode.NO_AGENT, f"no agent of {self.domain} is connected; is magrathea-agent running there?"
            )
        self._next_id += 1
        message = {"type": "request", "id": self._next_id, "session": link.session, "op": op, **fields}
        line = encode(message)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        link.outstanding[self._next_id] = future
        try:
            answer = await self._until_answered(link, line, future, within_s)
        except TimeoutError as error:
            text = f"the agent of {self.domain} did not answer `{op}` within {within_s:g} s"
            raise AgentError(RefusalCode.TIMEOUT, text) from error
        finally:
            link.outstanding.pop(message["id"], None)
        if not answer.ok:
            raise AgentError(
                answer.code or RefusalCode.FAILED, answer.text or f"the agent of {self.domain} refused `{op}`"
            )
        return answer

    async def _until_answered(
        self, link: _Link, line: bytes, future: asyncio.Future[Answer], within_s: float
    ) -> Answer:
        async with asyncio.timeout(within_s):
            while True:
                link.write(line)
                done, _ = await asyncio.wait([future], timeout=REPEAT_S)
                if done:
                    return future.result()

    # Called by _Link

    def _made(self, link: _Link) -> None:
        self._links.add(link)
        while len(self._links) > 4:  # the present one, its successor, and some that are just going
            oldest = next(one for one in self._links if one is not self._link and one is not link)
            self._links.discard(oldest)
            oldest.close()

    def _greeted(self, link: _Link, hello: Hello) -> None:
        """The newest hello wins: an agent that was restarted may be here before the end of the old one is seen."""
        previous, self._link = self._link, link
        if previous is not None:
            previous.void("the agent has connected anew")
            self.handler.lost(self.domain)
            if previous is not link:
                previous.close()
        self.hello = hello
        self.handler.connected(self.domain, hello)

    def _gone(self, link: _Link) -> None:
        self._links.discard(link)
        self._lost(link)

    def drop(self) -> None:
        """Its domain has gone down: who spoke from in there is no more, even where its end is not seen yet."""
        if (link := self._link) is not None:
            link.void("its domain has gone down")
            self._lost(link)
            link.close()

    def _lost(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
            self.hello = None
            self.handler.lost(self.domain)


class _Link(asyncio.Protocol):
    """One connection of an agent."""

    def __init__(self, channel: GuestChannel) -> None:
        self.channel = channel
        self.session = secrets.token_hex(8)
        self.outstanding: dict[int, asyncio.Future[Answer]] = {}
        self._peer = ""
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._synchronised = False  # a newline was seen
        self._overlong = False  # within a line that is too long: thrown away up to its end
        self._bad_in_row = 0
        self._loop = asyncio.get_running_loop()
        self._tokens = float(LINES_PER_S * BURST_S)
        self._counted_at = self._loop.time()
        self._resume: asyncio.TimerHandle | None = None
        self._at_work: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._answers: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._complaints = 0
        self._complained_at = -LOG_EVERY_S
        self._heard_at = self._greeted_at = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.channel._made(self)
        self._hello({})
        self._watch = self._loop.call_later(SILENT_S, self._look)

    def _hello(self, more: dict[str, str]) -> None:
        self._greeted_at = self._loop.time()
        about = {"host": self.channel.host, "domain": self.channel.domain}
        self.write(b"\n" + encode({"type": "hello", "protocol": PROTOCOL, "session": self.session, **about, **more}))

    def connection_lost(self, exc: Exception | None) -> None:
        self.void("its connection has ended")
        if self._watch is not None:
            self._watch.cancel()
        if self._resume is not None:
            self._resume.cancel()
        for task in self._at_work.values():
            task.cancel()
        self.channel._gone(self)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._buffer += data
        self._consume()

    def _look(self) -> None:
        """Give an agent up that has been silent too long; should it still live, it hears a new session and greets."""
        silent_s = self._loop.time() - self._heard_at
        self._watch = self._loop.call_later(max(SILENT_S - silent_s, SILENT_S / 10), self._look)
        if silent_s < SILENT_S or not self._peer:
            return
        self._complain(f"has said nothing for {silent_s:.0f} s and counts as gone")
        self.void("its agent says nothing any more")
        for task in self._at_work.values():
            task.cancel()
        self._peer = ""
        self._answers.clear()
        self.session = secrets.token_hex(8)
        self.channel._lost(self)
        self._hello({})

    # Reading

    def _consume(self) -> None:
        """Take whole lines off the buffer as long as the rate allows."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            if not self._allowed():
                break
            line = bytes(self._buffer[start:end])
            start = end + 1
            self._line(line)
            if self._transport is None or self._transport.is_closing():
                self._buffer.clear()
                return
        del self._buffer[:start]
        if self._resume is None and len(self._buffer) >= MAX_LINE and b"\n" not in self._buffer:
            if self._synchronised and not self._overlong:
                self._bad(f"a line of more than {MAX_LINE} bytes")
                self._overlong = True
            self._buffer.clear()

    def _allowed(self) -> bool:
        now = self._loop.time()
        self._tokens = min(LINES_PER_S * BURST_S, self._tokens + (now - self._counted_at) * LINES_PER_S)
        self._counted_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        if self._resume is None and self._transport is not None:
            self._complain(f"sends more than {LINES_PER_S} lines a second; reading pauses")
            self._transport.pause_reading()
            self._resume = self._loop.call_later(0.25, self._read_on)
        return False

    def _read_on(self) -> None:
        self._resume = None
        if self._transport is None or self._transport.is_closing():
            return
        self._consume()
        if self._resume is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _line(self, line: bytes) -> None:
        if not self._synchronised:
            self._synchronised = True
            return
        if self._overlong:
            self._overlong = False
            return
        if not line.strip():
            return
        if len(line) >= MAX_LINE:
            self._bad(f"a line of {len(line)} bytes")
            return
        try:
            message = decode(line)
        except BadLine as error:
            self._bad(str(error))
            return
        self._bad_in_row = 0
        if isinstance(message, Hello):
            self._greeting(message)
        elif isinstance(message, Answer):
            future = self.outstanding.get(message.id) if message.session == self.session else None
            if future is not None and not future.done():
                future.set_result(message)
        elif message.session == self._peer:
            self._request(message)
        elif self._loop.time() - self._greeted_at > HELLO_AGAIN_S:  # of an agent that is no more, or was given up
            self._hello({})

    def _greeting(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            self._complain(f"speaks protocol {hello.protocol}, this daemon {PROTOCOL}; install agents of its version")
            self.close()
            return
        # A virtio-serial port is connected by QEMU, often long before an agent opens it, and stays so when the agent is
        # restarted: the hello of the connection's beginning was not read, or by another one.
        self._hello({"peer": hello.session})
        if hello.session != self._peer:
            self._peer = hello.session
            self._answers.clear()
            self.channel._greeted(self, hello)

    def _bad(self, why: str) -> None:
        self._bad_in_row += 1
        self._complain(f"sent a bad line: {why[:200]}")
        if self._bad_in_row >= BAD_LINES:
            log.warning("%s: %d bad lines in a row from its agent; connection closed", self.channel.domain, BAD_LINES)
            self.close()

    def _complain(self, what: str) -> None:
        self._complaints += 1
        now = self._loop.time()
        if now - self._complained_at >= LOG_EVERY_S:
            more = f" ({self._complaints} complaints so far)" if self._complaints > 1 else ""
            log.warning("%s: its agent %s%s", self.channel.domain, what, more)
            self._complained_at = now

    # The guest's requests

    def _request(self, request: AnyRequest | Unknown) -> None:
        mark = (request.session, request.id)
        if mark in self._at_work:
            return
        if mark in self._answers:
            self.write(self._answers[mark])
            return
        if isinstance(request, Unknown):
            text = f"this daemon knows no `{request.op}`; install agents of its version"
            self._answer(mark, {"ok": False, "code": RefusalCode.UNKNOWN_OP, "text": text})
        elif len(self._at_work) >= MAX_AT_WORK:
            text = f"{MAX_AT_WORK} requests of {self.channel.domain} are being worked on; ask again later"
            refusal = {
                "ok": False,
                "code": RefusalCode.BUSY,
                "text": text,
                "retry_after_s": retry_after_s(RefusalCode.BUSY),
            }
            self.write(self._line_of(mark, refusal))  # not kept: when repeated it may be worked on
        else:
            task = supervision.start(self._work(mark, request))
            self._at_work[mark] = task

    async def _work(self, mark: tuple[str, int], request: AnyRequest) -> None:
        try:
            answer = await self.channel.handler.request(self.channel.domain, request)
        except Exception:  # a defect of ours must not leave MoM waiting; it is logged whole
            log.exception("%s: request %s failed", self.channel.domain, type(request).__name__)
            answer = {"ok": False, "code": RefusalCode.INTERNAL, "text": "the node daemon failed; its log says why"}
        finally:
            self._at_work.pop(mark, None)
        self._answer(mark, answer)

    def _answer(self, mark: tuple[str, int], answer: dict[str, Any]) -> None:
        line = self._line_of(mark, answer)
        if mark[0] != self._peer:
            return
        self._answers[mark] = line
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        self.write(line)

    def _line_of(self, mark: tuple[str, int], answer: dict[str, Any]) -> bytes:
        return encode({"type": "answer", "id": mark[1], "session": mark[0], **answer})

    # Writing and ending

    def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > WRITE_BUFFER:
            self._complain("reads nothing; connection closed")
            self._transport.abort()
            return
        self._transport.write(data)

    def void(self, why: str) -> None:
        """Whoever waits for an answer of this agent is told that none comes."""
        for future in self.outstanding.values():
            if not future.done():
                future.set_exception(AgentError(RefusalCode.NO_AGENT, f"{self.channel.domain}: {why}"))
        self.outstanding.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
