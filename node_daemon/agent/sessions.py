"""One end of the guest channel as a stream: bytes, lines, their rate, and who is at the other end.

The messages themselves are in `wire`, which states the rules for the whole.
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

MAX_BAD_LINES = 10  # in a row; then the stream is closed
MAX_LINES_PER_S = 200  # from the other end, averaged over RATE_WINDOW_S
RATE_WINDOW_S = 5.0
LONG_BYTES = 8192  # a longer line counts as several: once more for each time that it has this length
MAX_PAST = 8  # earlier sessions of the other end that are remembered, to ignore their late hellos

SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z")


def new_session() -> str:
    return os.urandom(8).hex()


def _raised(error: Exception) -> None:
    raise error


class Allowance:
    """How many lines may still come from the other end. It belongs to that end, whatever streams it opens."""

    def __init__(self) -> None:
        self.lines = MAX_LINES_PER_S * RATE_WINDOW_S
        self.at = 0.0

    def left(self, now: float) -> float:
        """The lines that may come now; negative if more was spent than there was."""
        refilled = self.lines + max(0.0, now - self.at) * MAX_LINES_PER_S
        self.lines = min(MAX_LINES_PER_S * RATE_WINDOW_S, refilled)
        self.at = now
        return self.lines

    def spend(self, lines: float) -> None:
        self.lines -= lines


class Stream:
    """One end. `about`: what its hello contains beside protocol and session. `allowance`: of the other end, if it can
    open several streams.

    The shell sets `on_greeted`, called with the hello of the other end if that is new; `on_trouble`, called with a text
    for the log; `on_defect`, called with an unexpected exception, which costs the line that caused it. They may call
    this end.
    """

    def __init__(
        self,
        about: "Doc",
        decode: "Callable[[bytes], Doc]" = parse,
        make_session: "Callable[[], str]" = new_session,
        allowance: "Optional[Allowance]" = None,
    ) -> None:
        self.about = about
        self.decode = decode
        self.make_session = make_session
        self.on_greeted: "Callable[[Doc], None]" = lambda hello: None
        self.on_trouble: "Callable[[str], None]" = lambda text: None
        self.on_defect: "Callable[[Exception], None]" = _raised
        self.broken = "not opened yet"  # why no bytes can flow; empty if they can
        self.session = self.peer = ""  # `peer`: of the other end, empty until its hello
        self.past: "Deque[str]" = deque(maxlen=MAX_PAST)  # earlier ones of the other end on this stream
        self.reader = LineReader(True)
        self.output: "List[bytes]" = []
        self.bad_lines = self.bad_total = 0
        self.allowance = allowance or Allowance()
        self.read_on_at: "Optional[float]" = None
        self.hello_at = 0.0  # when it was last sent

    # the stream

    @property
    def ready(self) -> bool:
        return not self.broken and bool(self.peer)

    @property
    def paused(self) -> bool:
        """Whether the shell must stop reading for now."""
        return self.read_on_at is not None

    def opened(self, now: float) -> None:
        """Begin with a new stream."""
        self._forget_peer()
        self.past.clear()
        self.output.clear()
        self.broken = ""
        self.reader = LineReader(True)
        self.bad_lines = 0
        self.read_on_at = None
        self.session = self.make_session()
        self.say_hello(now)

    def closed(self, why: str) -> None:
        """The stream has ended. Requests without an answer stay."""
        self._forget_peer()
        self.output.clear()
        self.broken = why

    def take_output(self) -> bytes:
        data = b"".join(self.output)
        self.output.clear()
        return data

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes of the other end."""
        self.reader.add(data)
        self._consume(now)

    def _consume(self, now: float) -> None:
        while not self.broken and not self.paused:
            dropped = self.reader.dropped
            has_line = self.reader.has_line()
            self.allowance.spend((self.reader.dropped - dropped) / LONG_BYTES)
            if self.allowance.left(now) < 1:
                self.read_on_at = now + RATE_WINDOW_S / 20
                self.on_trouble("more than %d lines a second: reading pauses" % MAX_LINES_PER_S)
            elif has_line:
                line = self.reader.next_line()
                self.allowance.spend(1 + len(line or b"") // LONG_BYTES)
                self._line(line, now)
            else:
                return

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
        except Exception as error:  # noqa: BLE001 (a defect costs one line, not the process)
            self.on_defect(error)

    def _message(self, doc: "Doc", now: float) -> None:
        """Handle one message of the other end. Raises BadValue."""
        raise NotImplementedError

    # hellos

    def say_hello(self, now: float, **more: str) -> None:
        self.hello_at = now
        hello: "Doc" = {"type": "hello", "protocol": PROTOCOL, "session": self.session}
        hello.update(self.about, **more)
        self.output.append(b"\n" + encode(hello))

    def _greeting(self, hello: "Doc", now: float) -> None:
        """Handle a hello of the other end. Raises BadValue."""
        raise NotImplementedError

    def _stranger(self, now: float) -> None:
        """Handle a message of a session that is not the other end's present one."""

    def _met(self, hello: "Doc") -> None:
        """Take the sender of this hello as the other end."""
        if self.peer != hello["session"]:
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
        raise BadValue("session %.60r is no identifier" % hello["session"])
