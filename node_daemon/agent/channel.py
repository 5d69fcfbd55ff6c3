"""The guest channel, the guest's side."""

import os
import re
import selectors
import time
from collections import OrderedDict

from . import PROTOCOL, VERSION
from .lines import MAX_LINE_BYTES, LineReader, LineWriter
from .log import log
from .loop import Loop, Timer
from .transports import Transport
from .values import BadValue, encode, field, parse, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Tuple

    from .values import Doc, Reply

MAX_OUT_BYTES = 1 << 20  # unsent bytes for a peer that does not read; then the connection is given up
MAX_BAD_LINES = 10  # in a row
MAX_LINES_PER_S = 200  # from the daemon, averaged over RATE_WINDOW_S
RATE_WINDOW_S = 5.0
MAX_PENDING = 256  # requests to the daemon at the same moment
MAX_ANSWERS = 64
REPEAT_S = 0.5  # a request is sent again after it
RECONNECT_S = (0.2, 2.0)
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z")


class Request:
    """Something asked of the daemon: repeated unchanged until its answer or its deadline.

    `persists`: offered again after a reconnection; `on_answer` gets None when the deadline has passed.
    """

    def __init__(self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]") -> None:
        self.op = op
        self.body = body
        self.deadline = deadline
        self.on_answer = on_answer
        self.line = b""
        self.timer: "Optional[Timer]" = None


class Channel:
    """Requests to the daemon and from it, over a stream that may break, lose bytes, or carry stale ones."""

    def __init__(
        self, loop: Loop, transport: Transport, can: "List[str]", serve: "Callable[[str, Doc, Reply], None]"
    ) -> None:
        self.loop = loop
        self.transport = transport
        self.can = can
        self.serve = serve
        self.on_ready: "Callable[[], None]" = lambda: None
        self.fd: "Optional[int]" = None
        self.up = False  # bytes can flow
        self.session = ""
        self.peer = ""  # the daemon's session; empty until its hello
        self.host = self.domain = ""  # what it called them, last
        self.delay = RECONNECT_S[0]
        self.reader = LineReader(True)
        self.writer = LineWriter()
        self.bad_lines = 0
        self.bad_total = 0
        self.allowance = MAX_LINES_PER_S * RATE_WINDOW_S
        self.allowed_at = time.monotonic()
        self.paused = False
        self.ids = 0
        self.pending: "OrderedDict[int, Request]" = OrderedDict()
        self.answers: "OrderedDict[Tuple[str, int], Optional[Doc]]" = OrderedDict()
        self.complained = ""
        self.timer: "Optional[Timer]" = None

    @property
    def ready(self) -> bool:
        return self.up and bool(self.peer)

    # the connection

    def connect(self) -> None:
        """Open, or, where the descriptor stays, see whether the host is back. Tried again until it works."""
        try:
            if self.fd is None:
                self.fd = self.transport.open()
            data = self._drain(self.fd)
        except OSError as error:
            self._complain("%s: %s" % (self.transport.path, error.strerror or error))
            self._close()
            data = False
        if not data:
            self.timer = self.loop.after(self.delay, self.connect)
            self.delay = min(self.delay * 1.5, RECONNECT_S[1])
            return
        self.up = True
        self.delay = RECONNECT_S[0]
        self.reader = LineReader(True)
        self.writer = LineWriter()
        self.bad_lines = 0
        self.session = os.urandom(8).hex()
        self.peer = ""
        self._hello()
        self._watch()

    def _drain(self, fd: int) -> bool:
        """Throw away what was meant for whoever had the port before. False: the host is away."""
        if not self.transport.stays:
            return True
        for _ in range(1024):
            try:
                if not self.transport.read(fd):
                    return False
            except (BlockingIOError, InterruptedError):
                return True
        return True

    def _hello(self) -> None:
        hello = {"type": "hello", "protocol": PROTOCOL, "session": self.session, "agent": VERSION, "can": self.can}
        self._write(b"\n" + encode(hello))
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.after(RECONNECT_S[1], self._hello_again)

    def _hello_again(self) -> None:
        """No hello came back: ours may have been lost."""
        if self.up and not self.peer:
            self._hello()

    def _watch(self) -> None:
        if self.fd is None or not self.up:
            return
        reading = 0 if self.paused else selectors.EVENT_READ
        events = reading | (selectors.EVENT_WRITE if self.writer.pieces else 0)
        if events:
            self.loop.watch(self.fd, events, self._event)
        else:
            self.loop.unwatch(self.fd)

    def _close(self) -> None:
        if self.fd is not None:
            self.loop.unwatch(self.fd)
            self.transport.close(self.fd)
            self.fd = None

    def lost(self, why: str, close: bool = True) -> None:
        """The stream is broken: forget what was half done, and begin anew."""
        if self.fd is not None:
            self.loop.unwatch(self.fd)
        if close or not self.transport.stays:
            self._close()
        if self.up:
            self._complain(why)
        self.up = False
        self.peer = ""
        self.answers.clear()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.after(self.delay, self.connect)

    def _complain(self, why: str) -> None:
        if why != self.complained:
            self.complained = why
            log.warning("no node daemon: %s; trying again" % why)

    def shut(self) -> None:
        """The end: let out what can go out at once."""
        if self.fd is not None and self.up:
            try:
                self.writer.flush(self.fd)
            except OSError as error:
                log.info("channel: %s at the end" % error.strerror)
        self.up = False
        self._close()

    # bytes

    def _event(self, events: int) -> None:
        if self.fd is None:
            return
        try:
            if events & selectors.EVENT_WRITE:
                self.writer.flush(self.fd)
                self._watch()
            data = self.transport.read(self.fd) if events & selectors.EVENT_READ else None
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lost("%s: %s" % (self.transport.path, error.strerror))
            return
        if data is None:
            return
        if not data:
            self.lost("%s: closed by the host" % self.transport.path, close=False)
            return
        lines = self.reader.feed(data)
        self._limit(len(lines))
        for line in lines:
            if line == b"":
                continue  # the newline before a hello
            session = self.session
            self._line(line)
            if self.session != session or not self.up:
                return

    def _limit(self, lines: int) -> None:
        now = time.monotonic()
        most = MAX_LINES_PER_S * RATE_WINDOW_S
        self.allowance = min(most, self.allowance + (now - self.allowed_at) * MAX_LINES_PER_S) - lines
        self.allowed_at = now
        if self.allowance < 0 and not self.paused:
            log.warning("channel: more than %d lines a second: reading pauses" % MAX_LINES_PER_S)
            self.paused = True
            self._watch()
            self.loop.after(min(RATE_WINDOW_S, -self.allowance / MAX_LINES_PER_S), self._read_on)

    def _read_on(self) -> None:
        self.paused = False
        self._watch()

    def _write(self, data: bytes) -> None:
        if not self.up or self.fd is None:
            return
        self.writer.add(data)
        if self.writer.size > MAX_OUT_BYTES:
            self.lost("%s: the host does not read" % self.transport.path)
            return
        try:
            if not self.writer.flush(self.fd):
                self._watch()
        except OSError as error:
            self.lost("%s: %s" % (self.transport.path, error.strerror))

    # lines

    def _line(self, line: "Optional[bytes]") -> None:
        try:
            if line is None:
                raise BadValue("longer than %d bytes" % MAX_LINE_BYTES)
            self._message(parse(line))
            self.bad_lines = 0
        except BadValue as error:
            self.bad_lines += 1
            self.bad_total += 1
            log.warning("channel: bad line (%d so far): %s" % (self.bad_total, error))
            if self.bad_lines >= MAX_BAD_LINES:
                self.lost("%s: %d bad lines in a row" % (self.transport.path, self.bad_lines))

    def _message(self, doc: "Doc") -> None:
        kind = field(doc, "type", str)
        if kind == "hello":
            self._greeted(doc)
        elif kind == "answer":
            if doc.get("session") == self.session:
                self._answered(doc)
        elif kind == "request":
            session, id = field(doc, "session", str), field(doc, "id", int)
            if self.peer and session == self.peer:
                self._asked(session, id, field(doc, "op", str), doc)
        else:
            raise BadValue("type %.60r is none of hello, request, answer" % kind)

    def _greeted(self, doc: "Doc") -> None:
        if field(doc, "protocol", int) != PROTOCOL:
            raise BadValue("protocol %r; this agent speaks %d: update the older one" % (doc["protocol"], PROTOCOL))
        session = field(doc, "session", str)
        if not WORD.match(session):
            raise BadValue("session %.60r is no word" % session)
        host, domain = field(doc, "host", str, "")[:255], field(doc, "domain", str, "")[:255]
        if doc.get("peer", self.session) != self.session:
            return  # meant for an agent before this one
        if session == self.peer:
            return
        if self.peer and self.transport.stays:
            # The host side came back without a hang-up between: it waits for a hello, and what was out is void.
            self.session = os.urandom(8).hex()
            self._hello()
        self.peer = session
        self.answers.clear()
        self.complained = ""
        self.host, self.domain = host, domain
        log.info("connected to %.64s on %.64s" % (self.domain or "?", self.host or "?"))
        for request in list(self.pending.values()):
            self._renew(request)
        self.on_ready()

    # requests to the daemon

    def ask(self, op: str, body: "Doc", deadline_s: float, on_answer: "Callable[[Optional[Doc]], object]") -> bool:
        """Ask the daemon; `on_answer` is called later, never from within. False: too much is unanswered already."""
        if len(self.pending) >= MAX_PENDING:
            return False
        request = Request(op, body, time.monotonic() + deadline_s, on_answer)
        self._renew(request)
        return True

    def _renew(self, request: Request) -> None:
        """Give it an id of this connection, and send it."""
        for id, other in list(self.pending.items()):
            if other is request:
                del self.pending[id]
        self.ids += 1
        self.pending[self.ids] = request
        doc = {"type": "request", "id": self.ids, "session": self.session, "op": request.op}
        doc.update(request.body)
        request.line = encode(doc)
        if len(request.line) > MAX_LINE_BYTES:
            raise BadValue("%s of %d bytes does not fit a line" % (request.op, len(request.line)))
        self._send(self.ids)

    def _send(self, id: int) -> None:
        request = self.pending.get(id)
        if request is None:
            return
        if request.timer is not None:
            request.timer.cancel()
        left = request.deadline - time.monotonic()
        if left <= 0:
            del self.pending[id]
            request.on_answer(None)
            return
        request.timer = self.loop.after(min(REPEAT_S, left), lambda: self._send(id))
        if self.ready:
            self._write(request.line)

    def withdraw(self, op: str, body: "Doc") -> None:
        """No longer ask this."""
        for id, request in list(self.pending.items()):
            if request.op == op and request.body == body:
                del self.pending[id]
                if request.timer is not None:
                    request.timer.cancel()

    def _answered(self, doc: "Doc") -> None:
        id = field(doc, "id", int)
        field(doc, "ok", bool)
        request = self.pending.pop(id, None)
        if request is None:
            return  # answered before, or too late
        if request.timer is not None:
            request.timer.cancel()
        request.on_answer(doc)

    # requests of the daemon

    def _asked(self, session: str, id: int, op: str, doc: "Doc") -> None:
        key = (session, id)
        if key in self.answers:
            known = self.answers[key]
            if known is not None:
                self._write(encode(known))
            return  # else it is being worked on
        while len(self.answers) >= MAX_ANSWERS:
            self.answers.popitem(last=False)
        self.answers[key] = None

        def reply(answer: "Doc") -> None:
            if key not in self.answers:
                return  # the connection has changed, nobody waits
            full: "Doc" = {"type": "answer", "id": id, "session": session}
            full.update(answer)
            if len(encode(full)) > MAX_LINE_BYTES:
                full = {"type": "answer", "id": id, "session": session}
                full.update(refusal("too-large", "the answer does not fit a line; ask for fewer jobs at once"))
            self.answers[key] = full
            self._write(encode(full))

        try:
            self.serve(op, doc, reply)
        except BadValue as error:
            log.warning("channel: %s refused: %s" % (op, error))
            reply(refusal("bad-request", str(error)))
