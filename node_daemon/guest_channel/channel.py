"""The guest channel, host's side: one unix socket per domain, the agent connects to it.

The socket shows which guest is speaking, so a guest can only ever speak for itself. Messages and their bounds are in
`agent.wire`, which the agent uses as well. This module adds streams and a clock, and calls the handler.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

from magrathea import files, supervision
from magrathea.core.refusals import RefusalCode
from magrathea.logs import RationedLog

from ..agent.refusals import refusal
from ..agent.sessions import MAX_LINES_PER_S, Allowance
from ..agent.wire import MAX_OUT_BYTES, HostEnd, TooLarge
from .messages import Answer, AnyRequest, Hello, Said, Unknown, decode

log = logging.getLogger(__name__)
defects = RationedLog(log)
"""At most one of each domain in a minute, with its traceback."""

SILENT_S = 25.0
"""An agent that is silent for so long counts as gone: it reports every 10 s, and a capped guest is not that slow.
Nothing else shows that an agent behind a virtio-serial port has died, because QEMU holds the connection."""
LOG_EVERY_S = 10.0
"""A guest's bad input, and the end of its connections for that reason, are each logged at most once in this time, with
the number of lines left out."""
CONNECTION_LINES, HELLO_LINES = 10, 40
"""A connection, and an agent that greets anew, count as so many lines of their guest: each new agent costs two writes
to disk. So a guest may have 20 of them at once, and then 4 in a second."""
ACCEPT_AGAIN_S = 1.0
"""Pause after the system could not accept a connection, mostly because too many files are open."""


def qemu_user(configured: str) -> int | None:
    """The uid that libvirt's QEMU runs as; None, meaning the daemon's own, if no such user is known.

    `configured`: name or number, or empty for the names that distributions use. Raises OSError for an unknown user.
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
    """Handles connections and requests of guests. Called in the event loop; `connected` and `lost` alternate."""

    def connected(self, domain: str, hello: Hello) -> None: ...

    def lost(self, domain: str) -> None: ...

    def request(self, domain: str, request: AnyRequest) -> Awaitable[dict[str, Any]]: ...


class GuestChannel:
    """The channel of one domain: listens, keeps one agent at most, and sends it requests."""

    def __init__(self, host: str, domain: str, path: Path, handler: Handler, owner: int | None = None) -> None:
        self.host = host
        self.domain = domain
        self.path = path
        self.handler = handler
        self.owner = owner
        """The user who may connect beside root; None for the daemon's own."""
        self.hello: Hello | None = None
        """The hello of the connected agent; None if none is connected."""
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self.allowance = Allowance()
        """Of this guest. A new connection gets no new one."""
        self.complaints = RationedLog(log, period_s=LOG_EVERY_S)
        """About this guest. A new connection gets no new ration."""

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with files.private_sockets():
                listener.bind(str(self.path))
            listener.listen(4)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._accepting = supervision.start(self._accept(listener))
        if self.owner is not None:
            os.chown(self.path, self.owner, -1)
            self.path.parent.chmod(0o711)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections, as far as the guest's allowance goes."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(lambda: _Link(self), connection)
            except OSError as error:
                self.complaints.say("accept", f"{self.domain}: its agent's connection cannot be accepted: {error}")
                await asyncio.sleep(ACCEPT_AGAIN_S)
            self.allowance.spend(CONNECTION_LINES)
            while (missing := -self.allowance.left(loop.time())) > 0:
                await asyncio.sleep(missing / MAX_LINES_PER_S + 0.001)

    async def close(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for link in list(self._links):
            link.close()
        # The socket file stays: libvirt starts no domain if the path of its channel is missing.

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
        answer = await link.request(op, within_s, fields)
        if answer is None:
            raise AgentError(
                RefusalCode.TIMEOUT, f"the agent of {self.domain} did not answer `{op}` within {within_s:g} s"
            )
        if not answer.ok:
            raise AgentError(
                answer.code or RefusalCode.FAILED, answer.text or f"the agent of {self.domain} refused `{op}`"
            )
        return answer

    # Called by _Link

    def _made(self, link: _Link) -> None:
        self._links.add(link)
        while len(self._links) > 4:  # the present one, its successor, and some that are closing
            oldest = next(one for one in self._links if one is not self._link and one is not link)
            self._links.discard(oldest)
            oldest.close()

    def _greeted(self, link: _Link, hello: Hello) -> None:
        """The newest hello wins: a restarted agent may connect before the end of the old connection is noticed."""
        self.allowance.spend(HELLO_LINES)
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
        """The domain has gone down, and its agent with it, even if the connection still looks alive."""
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
        self.end = HostEnd({"host": channel.host, "domain": channel.domain}, decode, allowance=channel.allowance)
        self.end.on_greeted = self._greeted
        self.end.on_asked = self._asked
        self.end.on_trouble = self._complain
        self.end.on_defect = self._defect
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[Answer | None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._heard_at = self._loop.time()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.channel._made(self)
        self.end.opened(self._loop.time())
        self._watch = self._loop.call_later(SILENT_S, self._look)
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self.void("its connection has ended")
        self.end.closed("its connection has ended")
        for timer in (self._watch, self._ticker):
            if timer is not None:
                timer.cancel()
        self._cancel_work()
        self.channel._gone(self)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self.end.receive(data, self._heard_at)
        self._go_on()

    def _look(self) -> None:
        """Give up an agent that has been silent too long."""
        silent_s = self._loop.time() - self._heard_at
        self._watch = self._loop.call_later(max(SILENT_S - silent_s, SILENT_S / 10), self._look)
        if silent_s < SILENT_S or not self.end.peer:
            return
        self._complain(f"has been silent for {silent_s:.0f} s and counts as gone")
        self.void("its agent is silent")
        self._cancel_work()
        self.end.give_up(self._loop.time())
        self.channel._lost(self)
        self._go_on()

    def _tick(self) -> None:
        self._ticker = None
        self.end.tick(self._loop.time())
        self._go_on()

    def _go_on(self) -> None:
        """After each call of the end: write its output, pause or resume reading, and set the timer of its tick."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self.end.broken:
            self._complain(f"{self.end.broken}; connection closed", "closed")
            transport.close()
            return
        if data := self.end.take_output():
            if transport.get_write_buffer_size() > MAX_OUT_BYTES:
                self._complain("reads nothing; connection closed", "closed")
                transport.abort()
                return
            transport.write(data)
        if self.end.paused == transport.is_reading():
            (transport.pause_reading if self.end.paused else transport.resume_reading)()
        at = self.end.next_at()
        if self._ticker is not None and self._ticker.when() != at:
            self._ticker.cancel()
            self._ticker = None
        if self._ticker is None and at is not None:
            self._ticker = self._loop.call_at(at, self._tick)

    def _greeted(self, said: dict[str, Any]) -> None:
        assert isinstance(said, Said) and isinstance(said.message, Hello)
        self.channel._greeted(self, said.message)

    def _complain(self, what: str, kind: str = "") -> None:
        self.channel.complaints.say(kind, f"{self.channel.domain}: its agent: {what}")

    def _defect(self, error: Exception) -> None:
        """Log a defect that a line of this guest has met. Only the line is lost."""
        defects.say(
            self.channel.domain, f"{self.channel.domain}: a line of its agent met a defect", error, logging.ERROR
        )

    # Requests to it

    async def request(self, op: str, within_s: float, fields: dict[str, Any]) -> Answer | None:
        """Its answer; None if there is none in time. Raises AgentError."""
        future: asyncio.Future[Answer | None] = self._loop.create_future()

        def answered(said: dict[str, Any] | None) -> None:
            message = said.message if isinstance(said, Said) else None
            assert message is None or isinstance(message, Answer)
            if not future.done():
                future.set_result(message)

        now = self._loop.time()
        try:
            asked = self.end.ask(op, fields, now + within_s, answered, now)
        except TooLarge as error:
            raise AgentError(RefusalCode.TOO_LARGE, f"{self.channel.domain}: {error}") from error
        except (TypeError, ValueError) as error:
            defects.say(self.channel.domain, f"{self.channel.domain}: `{op}` is no JSON", error, logging.ERROR)
            raise AgentError(RefusalCode.FAILED, f"{self.channel.domain}: `{op}` cannot be sent: {error}") from error
        if asked is None:
            raise AgentError(RefusalCode.BUSY, f"too many requests wait for the agent of {self.channel.domain}")
        self._waiting.add(future)
        self._go_on()
        try:
            return await future
        finally:
            self._waiting.discard(future)
            self.end.withdraw(asked)

    def void(self, why: str) -> None:
        """End all waiting for answers of this agent."""
        self.end.withdraw_all()
        for future in self._waiting:
            if not future.done():
                future.set_exception(AgentError(RefusalCode.NO_AGENT, f"{self.channel.domain}: {why}"))
        self._waiting.clear()

    # Requests of it

    def _asked(self, mark: tuple[str, int], op: str, said: dict[str, Any]) -> None:
        assert isinstance(said, Said)
        request = said.message
        if isinstance(request, Unknown):
            text = f"this daemon knows no `{request.op}`; install agents of its version"
            self.end.answer(mark, refusal(RefusalCode.UNKNOWN_OP, text), self._loop.time())
            return
        assert request is not None and not isinstance(request, Hello | Answer)
        task = supervision.start(self._work(mark, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, mark: tuple[str, int], request: AnyRequest) -> None:
        try:
            answer = await self.channel.handler.request(self.channel.domain, request)
        except Exception as error:  # noqa: BLE001 (a defect must not leave MoM waiting)
            domain, op = self.channel.domain, type(request).__name__.lower()
            defects.say((domain, op), f"{domain}: request {op} of its agent met a defect", error, logging.ERROR)
            answer = refusal(RefusalCode.INTERNAL, "the node daemon failed; its log says why")
        self.end.answer(mark, answer, self._loop.time())
        self._go_on()

    def _cancel_work(self) -> None:
        for task in self._tasks:
            task.cancel()

    # Ending

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
