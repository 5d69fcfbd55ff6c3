"""Both ends of the guest channel: lines, sessions, requests and their answers, without any input or output.

The agent and the node daemon use this one module, each in a shell that has the stream and the clock: `GuestEnd` there,
`HostEnd` here. It imports nothing of either, so the daemon imports it and the guest gets it as it is.

1. A message is a JSON object on one line of at most MAX_LINE_BYTES. What comes before the first newline of a stream is
   thrown away, and each hello begins with a newline: such a channel loses bytes when its other side restarts.
2. Each end has a session, a new one whenever it begins anew. A request carries the session of who asks, its answer the
   same. What belongs to another session than the present ones is dropped.
3. A request is repeated unchanged until its answer or its deadline. The other end works on it once: what is repeated
   meanwhile is ignored, what is repeated later gets the answer of the first time (the last MAX_ANSWERS are kept).
4. Nothing is unbounded: neither lines, nor what is asked, worked on or kept at one time. A flood makes reading pause,
   bad lines in a row break the stream.

Times are seconds of the shell's clock, given as `now`. After each call the shell writes what `take_output` gives, looks
at `broken` and `paused`, and calls `tick` at `next_at`.
"""

from collections import OrderedDict

from .lines import MAX_LINE_BYTES, BadValue, encode, field, parse
from .refusals import BUSY, TOO_LARGE, refusal
from .sessions import Stream, check_hello, new_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .lines import Doc

    Mark = Tuple[str, int]

MAX_JOBS = 1000  # of one list or order, and in an agent's table: with the ids that PBS makes it fits a line
MAX_PENDING = 256  # requests of this end without an answer
MAX_AT_WORK = 64  # requests of the other end that are worked on; the next ones are refused as busy
MAX_ANSWERS = 64  # kept to be repeated
MAX_OUT_BYTES = 1 << 20  # unsent, for a peer that does not read; then the stream is given up
REPEAT_S = 0.5  # a request without an answer is sent again after it
HELLO_S = 2.0  # a guest without the host's hello says its own again after it
HELLO_AGAIN_S = 1.0  # a host says its hello at most that often to who speaks under a session of before


class TooLarge(Exception):
    """A message that the other end cannot take."""


# Messages


class Message:
    """A message on its way, sent again at `again_at`. Raises TooLarge."""

    def __init__(self, doc: "Doc") -> None:
        self.line = encode(doc)
        self.again_at = 0.0
        if len(self.line) > MAX_LINE_BYTES:
            what = doc.get("op", doc["type"])
            raise TooLarge("%s of %d bytes does not fit a line of %d" % (what, len(self.line), MAX_LINE_BYTES))


class Request:
    """Something asked of the other end: repeated unchanged until its answer or its deadline.

    `on_answer` gets the answer, or None when the deadline has passed, or the other end cannot take the request.
    """

    def __init__(self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]") -> None:
        self.op = op
        self.body = body
        self.deadline = deadline
        self.on_answer = on_answer
        self.id = 0
        self.message: "Optional[Message]" = None


# The ends


class End(Stream):
    """One end, and what goes on over its stream.

    The shell sets `on_asked` (work on this and call `answer`), beside what it sets of a `Stream`; it may call this end.
    """

    def __init__(
        self,
        about: "Doc",
        decode: "Callable[[bytes], Doc]" = parse,
        make_session: "Callable[[], str]" = new_session,
    ) -> None:
        super().__init__(about, decode, make_session)
        self.on_asked: "Callable[[Mark, str, Doc], None]" = lambda mark, op, doc: None
        self.ids = 0
        self.pending: "OrderedDict[int, Request]" = OrderedDict()
        self.at_work: "Dict[Mark, None]" = {}
        self.answers: "OrderedDict[Mark, Message]" = OrderedDict()

    def _message(self, doc: "Doc", now: float) -> None:
        kind = field(doc, "type", str)
        if kind == "hello":
            self._greeting(doc, now)
        elif kind == "request":
            self._asked(doc, now)
        elif kind == "answer":
            self._answered(doc)
        else:
            raise BadValue("type %.60r is none of hello, request, answer" % kind)

    def _forget_peer(self) -> None:
        super()._forget_peer()
        self.at_work.clear()
        self.answers.clear()

    # time

    def next_at(self) -> "Optional[float]":
        """When `tick` is to be called; None: not before something else happens."""
        times = [request.deadline for request in self.pending.values()]
        if self.ready:
            times += [message.again_at for message in self._on_their_way()]
        if self.read_on_at is not None:
            times.append(self.read_on_at)
        return min(times) if times else None

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.read_on_at is not None and now >= self.read_on_at:
            self.read_on_at = None
            self._consume(now)
        for request in list(self.pending.values()):
            if now >= request.deadline:
                self._over(request, None)
        for message in self._on_their_way() if self.ready else ():
            if now >= message.again_at:
                self._send(message, now)

    def _on_their_way(self) -> "List[Message]":
        return [request.message for request in self.pending.values() if request.message is not None]

    def _send(self, message: Message, now: float) -> None:
        if not self.broken:
            self.output.append(message.line)
            message.again_at = now + REPEAT_S

    # requests to the other end

    def ask(
        self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]", now: float
    ) -> "Optional[Request]":
        """Ask; `on_answer` is called later, never from within. None: too much is unanswered already. Raises TooLarge,
        and then nothing of it is left."""
        if len(self.pending) >= MAX_PENDING:
            return None
        request = Request(op, body, deadline, on_answer)
        self._begin(request, now)
        return request

    def _begin(self, request: Request, now: float) -> None:
        """Send it under a new id, if the other end is there. Raises TooLarge."""
        self.ids += 1
        doc = {"type": "request", "id": self.ids, "session": self.session, "op": request.op}
        doc.update(request.body)
        message = Message(doc)
        request.id, request.message = self.ids, message
        self.pending[request.id] = request
        if self.ready:
            self._send(message, now)

    def renew(self, now: float) -> None:
        """Ask all that is unanswered again of the other end that is there now."""
        requests = list(self.pending.values())
        self.pending.clear()
        for request in requests:
            try:
                self._begin(request, now)
            except TooLarge as error:
                self.on_trouble("not asked: %s" % error)
                request.on_answer(None)

    def withdraw(self, request: Request) -> None:
        """No longer ask this."""
        self.pending.pop(request.id, None)

    def withdraw_all(self) -> "List[Request]":
        """Ask nothing any more; what was unanswered."""
        requests = list(self.pending.values())
        self.pending.clear()
        return requests

    def _over(self, request: Request, answer: "Optional[Doc]") -> None:
        if self.pending.pop(request.id, None) is not None:
            request.on_answer(answer)

    def _answered(self, doc: "Doc") -> None:
        if doc.get("session") != self.session:
            return
        request = self.pending.get(field(doc, "id", int))
        field(doc, "ok", bool)
        if request is not None:  # else answered before, or too late
            self._over(request, doc)

    # requests of the other end

    def _asked(self, doc: "Doc", now: float) -> None:
        mark, op = (field(doc, "session", str), field(doc, "id", int)), field(doc, "op", str)
        if not self.peer or mark[0] != self.peer:
            self._stranger(now)
        elif mark in self.answers:
            self._send(self.answers[mark], now)
        elif mark in self.at_work:
            pass  # it gets its answer
        elif len(self.at_work) >= MAX_AT_WORK:  # not kept: when repeated it may be worked on
            text = "%d requests are being worked on; ask again later" % MAX_AT_WORK
            self._send(self._answer(mark, refusal(BUSY, text), now), now)
        else:
            self.at_work[mark] = None
            self.on_asked(mark, op, doc)

    def answer(self, mark: "Mark", body: "Doc", now: float) -> None:
        """The answer to what `on_asked` was called with; nothing happens where nobody waits for it any more."""
        if mark not in self.at_work:
            return
        del self.at_work[mark]
        try:
            message = self._answer(mark, body, now)
        except TooLarge as error:
            message = self._answer(mark, refusal(TOO_LARGE, "%s; ask for fewer jobs at once" % error), now)
        self.answers[mark] = message
        while len(self.answers) > MAX_ANSWERS:
            self.answers.popitem(last=False)
        self._send(message, now)

    def _answer(self, mark: "Mark", body: "Doc", now: float) -> Message:
        doc: "Doc" = {"type": "answer", "id": mark[1], "session": mark[0]}
        doc.update(body)
        return Message(doc)


class GuestEnd(End):
    """The agent's end. It says its hello until the host has shown that it knows it, and again to a host that has begun
    anew."""

    known = False  # the host has answered the hello of this session, or asked or answered something

    def opened(self, now: float) -> None:
        self.known = False
        super().opened(now)

    def next_at(self) -> "Optional[float]":
        times = [super().next_at(), None if self.broken or self.known else self.hello_at + HELLO_S]
        return min((at for at in times if at is not None), default=None)

    def tick(self, now: float) -> None:
        super().tick(now)
        if not self.broken and not self.known and now >= self.hello_at + HELLO_S:
            self.say_hello(now)

    def _message(self, doc: "Doc", now: float) -> None:
        super()._message(doc, now)
        mine, its = doc.get("peer", doc.get("session")) == self.session, doc.get("session") == self.peer
        self.known = self.known or (bool(self.peer) and (mine if doc["type"] != "request" else its))

    def _greeting(self, hello: "Doc", now: float) -> None:
        check_hello(hello)
        if hello.get("peer", self.session) != self.session or hello["session"] in (self.peer, *self.past):
            return  # meant for an agent before this one, or said again, or by a host of before
        if self.peer:
            # The host side came back without a hang-up between: it waits for a hello, and what was out is void.
            self.session, self.known = self.make_session(), False
            self.say_hello(now)
        self._met(hello)
        self.renew(now)
        self.on_greeted(hello)


class HostEnd(End):
    """The node daemon's end. It answers each hello.

    A virtio-serial port is connected by QEMU, often long before an agent opens it, and stays so when the agent is
    restarted: the hello of the stream's beginning was not read, or by another one.
    """

    def _greeting(self, hello: "Doc", now: float) -> None:
        try:
            check_hello(hello)
        except BadValue as error:
            self.broken = str(error)  # it would go on saying it
            return
        if hello["session"] in self.past:
            self._stranger(now)
            return
        self.say_hello(now, peer=hello["session"])
        if hello["session"] != self.peer:
            self._met(hello)
            self.on_greeted(hello)

    def _stranger(self, now: float) -> None:
        if now - self.hello_at > HELLO_AGAIN_S:
            self.say_hello(now)

    def give_up(self, now: float) -> None:
        """The other end says nothing any more. Should it live after all, it hears a new session and greets anew."""
        self._forget_peer()
        self.session = self.make_session()
        self.say_hello(now)
