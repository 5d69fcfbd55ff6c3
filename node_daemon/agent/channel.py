"""The guest channel, the guest's side: the stream to the host and the clock around `wire.GuestEnd`."""

import selectors
import time

from . import VERSION
from .lines import BadValue, LineWriter
from .log import log
from .loop import Loop, Timer
from .refusals import BAD_REQUEST, refusal
from .transports import Transport
from .wire import MAX_OUT_BYTES, MAX_PENDING, GuestEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional

    from .lines import Doc
    from .values import Reply
    from .wire import Mark

RECONNECT_S = (0.2, 2.0)


class Channel:
    """Requests to the daemon and from it, over a stream that may break, lose bytes, or bring old ones."""

    def __init__(
        self, loop: Loop, transport: Transport, can: "List[str]", serve: "Callable[[str, Doc, Reply], None]"
    ) -> None:
        self.loop = loop
        self.transport = transport
        self.serve = serve
        self.on_ready: "Callable[[], None]" = lambda: None
        self.end = GuestEnd({"agent": VERSION, "can": can})
        self.end.on_greeted = self._greeted
        self.end.on_asked = self._asked
        self.end.on_trouble = lambda text: log.warning("channel: %s" % text)
        self.end.on_defect = loop.defect
        self.fd: "Optional[int]" = None
        self.up = False  # bytes can flow
        self.host = self.domain = ""  # as the daemon last named them
        self.delay = RECONNECT_S[0]
        self.writer = LineWriter()
        self.complained = ""
        self.timer: "Optional[Timer]" = None  # of the next try to connect
        self.ticker: "Optional[Timer]" = None  # of the end

    @property
    def ready(self) -> bool:
        return self.end.ready

    @property
    def has_room(self) -> bool:
        """Whether one more request that is not urgent leaves enough places for claims."""
        return len(self.end.pending) < MAX_PENDING // 2

    # the connection

    def connect(self) -> None:
        """Open the stream; if the descriptor stays, check whether the host is back. Repeats itself until that works."""
        self._connect_later()
        try:
            if self.fd is None:
                self.fd = self.transport.open()
            there = self._drain(self.fd)
        except OSError as error:
            self._complain("%s: %s" % (self.transport.path, error.strerror or error))
            self._close()
            there = False
        if not there:
            self.delay = min(self.delay * 1.5, RECONNECT_S[1])
            return
        self._no_more_tries()
        self.up = True
        self.delay = RECONNECT_S[0]
        self.writer = LineWriter()
        self.end.opened(time.monotonic())
        self._go_on()

    def _connect_later(self) -> None:
        self._no_more_tries()
        self.timer = self.loop.after(self.delay, self.connect)

    def _no_more_tries(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _drain(self, fd: int) -> bool:
        """Drop bytes that were meant for an earlier agent. False if the host is away."""
        if not self.transport.stays:
            return True
        for _ in range(1024):
            try:
                if not self.transport.read(fd):
                    return False
            except (BlockingIOError, InterruptedError):
                return True
        return True

    def _close(self) -> None:
        if self.fd is not None:
            self.loop.unwatch(self.fd)
            self.transport.close(self.fd)
            self.fd = None

    def lost(self, why: str, close: bool = True) -> None:
        """The stream is broken: forget half lines, and connect again."""
        if self.fd is not None:
            self.loop.unwatch(self.fd)
        if close or not self.transport.stays:
            self._close()
        if self.up:
            self._complain("%s: %s" % (self.transport.path, why))
        self.up = False
        self._connect_later()
        self.end.closed(why)

    def _complain(self, why: str) -> None:
        if why != self.complained:
            self.complained = why
            log.warning("no node daemon: %s; trying again" % why)

    def shut(self) -> None:
        """End: send what the stream takes at once."""
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
        data = None
        try:
            if events & selectors.EVENT_READ:
                data = self.transport.read(self.fd)
        except (BlockingIOError, InterruptedError):
            data = None
        except OSError as error:
            self.lost(error.strerror or str(error))
            return
        if data == b"":
            self.lost("closed by the host", close=False)
            return
        if data:
            self.end.receive(data, time.monotonic())
        self._go_on()

    def _tick(self) -> None:
        self.ticker = None
        try:
            self.end.tick(time.monotonic())
        finally:
            self._go_on()

    def _go_on(self) -> None:
        """After each call of the end: write its output, wait for input, and set the timer for its next tick."""
        if self.up and self.fd is not None:
            self._write(self.fd)
        at = self.end.next_at()
        if self.ticker is not None and self.ticker.when != at:
            self.ticker.cancel()
            self.ticker = None
        if self.ticker is None and at is not None:
            self.ticker = self.loop.at(at, self._tick)

    def _write(self, fd: int) -> None:
        self.writer.add(self.end.take_output())
        if self.end.broken or self.writer.size > MAX_OUT_BYTES:
            self.lost(self.end.broken or "the host does not read")
            return
        try:
            self.writer.flush(fd)
        except OSError as error:
            self.lost(error.strerror or str(error))
            return
        events = (0 if self.end.paused else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self.writer.pieces else 0)
        if events:
            self.loop.watch(fd, events, self._event)
        else:
            self.loop.unwatch(fd)

    # messages

    def _greeted(self, hello: "Doc") -> None:
        self.complained = ""
        self.host, self.domain = (str(hello.get(name, ""))[:255] for name in ("host", "domain"))
        log.info("connected to %.64s on %.64s" % (self.domain or "?", self.host or "?"))
        self.on_ready()

    def ask(self, op: str, body: "Doc", deadline_s: float, on_answer: "Callable[[Optional[Doc]], object]") -> bool:
        """Ask the daemon. `on_answer` is called later, never during this call. False if too many requests wait already.

        Raises TooLarge.
        """
        now = time.monotonic()
        asked = self.end.ask(op, body, now + deadline_s, on_answer, now)
        self._go_on()
        return asked is not None

    def withdraw(self, op: str, body: "Doc") -> None:
        """Withdraw this request if it waits for its answer."""
        for request in list(self.end.pending.values()):
            if request.op == op and request.body == body:
                self.end.withdraw(request)

    def _asked(self, mark: "Mark", op: str, doc: "Doc") -> None:
        def reply(answer: "Doc") -> None:
            self.end.answer(mark, answer, time.monotonic())
            self._go_on()

        try:
            self.serve(op, doc, reply)
        except BadValue as error:
            log.warning("channel: %s refused: %s" % (op, error))
            reply(refusal(BAD_REQUEST, str(error)))
