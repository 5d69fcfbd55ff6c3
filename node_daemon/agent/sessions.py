"""One end of the guest channel as a stream: bytes, lines, how fast they may come, and who is at the other end.

What the messages are about is in `wire`, the module of both ends that says what holds for the whole.
"""

import os
import re
from collections import deque

from .lines import MAX_LINE_BYTES, BadValue, LineReader, encode, field, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, List, Optional

    from .lines import Doc

PROTOCOL = 1

MAX_BAD_LINES = 10  # in a row: then the stream is given up
MAX_LINES_PER_S = 200  # of the other end, averaged over RATE_WINDOW_S
RATE_WINDOW_S = 5.0
MAX_PAST = 8  # sessions of the other end that are remembered, so that a late hello of theirs is none

SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z")


def new_session() -> str:
    return os.urandom(8).hex()


def _raised(error: Exception) -> None:
    raise error


class Stream:
    """One end. `about`: what its hello tells beside protocol and session.

    The shell sets `on_greeted` (the other end is there, or another than before; its hello), `on_trouble` (for the log)
    and `on_defect` (for what nobody thought of; it costs the line that caused it). They may call this end.
    """

    def __init__(
        self,
        about: "Doc",
        decode: "Callable[[bytes], Doc]" = parse,
        make_session: "Callable[[], str]" = new_session,
    ) -> None:
        self.about = about
        self.decode = decode
        self.make_session = make_session
        self.on_greeted: "Callable[[Doc], None]" = lambda hello: None
        self.on_trouble: "Callable[[str], None]" = lambda text: None
        self.on_defect: "Callable[[Exception], None]" = _raised
        self.broken = "not opened yet"  # why no bytes can flow; empty while they can
        self.session = self.peer = ""  # the other end's is empty until its hello
        self.past: "Deque[str]" = deque(maxlen=MAX_PAST)  # sessions that the other end had before on this stream
        self.reader = LineReader(True)
        self.output: "List[bytes]" = []
        self.bad_lines = self.bad_total = 0
        self.allowance = MAX_LINES_PER_S * RATE_WINDOW_S
        self.allowed_at = 0.0
        self.read_on_at: "Optional[float]" = None
        self.hello_at = 0.0  # when it was last said

    # the stream

    @property
    def ready(self) -> bool:
        return not self.broken and bool(self.peer)

    @property
    def paused(self) -> bool:
        """No more may be read now."""
        return self.read_on_at is not None

    def opened(self, now: float) -> None:
        """There is a stream, a new one."""
        self._forget_peer()
        self.past.clear()
        self.output.clear()
        self.broken = ""
        self.reader = LineReader(True)
        self.bad_lines = 0
        self.allowance, self.allowed_at, self.read_on_at = MAX_LINES_PER_S * RATE_WINDOW_S, now, None
        self.session = self.make_session()
        self.say_hello(now)

    def closed(self, why: str) -> None:
        """The stream is no more. What is asked stays asked."""
        self._forget_peer()
        self.output.clear()
        self.broken = why

    def take_output(self) -> bytes:
        data = b"".join(self.output)
        self.output.clear()
        return data

    def receive(self, data: bytes, now: float) -> None:
        """These bytes have come."""
        self.reader.add(data)
        self._consume(now)

    def _consume(self, now: float) -> None:
        while not self.broken and not self.paused and self.reader.has_line():
            most = MAX_LINES_PER_S * RATE_WINDOW_S
            self.allowance = min(most, self.allowance + (now - self.allowed_at) * MAX_LINES_PER_S)
            self.allowed_at = now
            if self.allowance < 1:
                self.read_on_at = now + RATE_WINDOW_S / 20
                self.on_trouble("more than %d lines a second: reading pauses" % MAX_LINES_PER_S)
                return
            self.allowance -= 1
            self._line(self.reader.next_line(), now)

    def _line(self, line: "Optional[bytes]", now: float) -> None:
        if line is not None and not line.strip():
            return
        try:
            if line is None:
                raise BadValue("longer than %d bytes" % MAX_LINE_BYTES)
            self._message(self.decode(line), now)
            self.bad_lines = 0
        except BadValue as error:
            self.bad_lines += 1
            self.bad_total += 1
            self.on_trouble("bad line (%d so far): %.200s" % (self.bad_total, error))
            if self.bad_lines >= MAX_BAD_LINES:
                self.broken = "%d bad lines in a row" % self.bad_lines
        except Exception as error:  # noqa: BLE001 (a defect of this end; those of other guests, and later lines, go on)
            self.on_defect(error)

    def _message(self, doc: "Doc", now: float) -> None:
        """One message of the other end. Raises BadValue."""
        raise NotImplementedError

    # hellos

    def say_hello(self, now: float, **more: str) -> None:
        self.hello_at = now
        hello: "Doc" = {"type": "hello", "protocol": PROTOCOL, "session": self.session}
        hello.update(self.about, **more)
        self.output.append(b"\n" + encode(hello))

    def _greeting(self, hello: "Doc", now: float) -> None:
        """A hello of the other end. Raises BadValue."""
        raise NotImplementedError

    def _stranger(self, now: float) -> None:
        """Somebody speaks who is not the other end as this one knows it."""

    def _met(self, hello: "Doc") -> None:
        """The other end is there, another than before."""
        self._forget_peer()
        self.peer = hello["session"]

    def _forget_peer(self) -> None:
        if self.peer:
            self.past.append(self.peer)
        self.peer = ""


def check_hello(hello: "Doc") -> None:
    """Raises BadValue."""
    if field(hello, "protocol", int) != PROTOCOL:
        raise BadValue("protocol %r; this end speaks %d: update the older one" % (hello["protocol"], PROTOCOL))
    if not SESSION.match(field(hello, "session", str)):
        raise BadValue("session %.60r is no word" % hello["session"])
