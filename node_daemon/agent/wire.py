"""Both ends of the guest channel: lines, sessions, requests and their answers, without any input or output.

The agent and the node daemon use this one module, each in a shell that has the stream and the clock: `GuestEnd` there,
`HostEnd` here. It imports nothing of either, so the daemon imports it and the guest gets it as it is.

1. A message is a JSON object on one line of at most MAX_LINE_BYTES. What comes before the first newline of a stream is
   thrown away, and each hello begins with a newline: such a channel loses bytes when its other side restarts.
2. Each end has a session, a new one whenever it begins anew. A request carries the session of who asks, its answer the
   same. What belongs to another session than the present ones is dropped.
3. A request is repeated unchanged until its answer or its deadline. The other end works on it once: what is repeated
   meanwhile is ignored, what is repeated later gets the answer of the first time (the last MAX_ANSWERS are kept).
4. A message that is longer than a line goes in parts, if the other end's hello says that it takes them. The last part
   carries session and id of the whole message, and is repeated like it. Each part before it has an id of its own, and
   the next one is sent when it is acknowledged. So nothing else waits behind a long message.
5. Nothing is unbounded: neither lines, nor what is asked, worked on or kept at one time. A flood makes reading pause,
   bad lines in a row break the stream.

Times are seconds of the shell's clock, given as `now`. After each call the shell writes what `take_output` gives, looks
at `broken` and `paused`, and calls `tick` at `next_at`.
"""

from collections import OrderedDict

from .lines import MAX_LINE_BYTES, BadValue, encode, field, parse
from .parts import MAX_MESSAGE_BYTES, Cut, Parts
from .refusals import BUSY, FAILED, TOO_LARGE, refusal
from .sessions import Stream, check_hello, new_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .lines import Doc

    Mark = Tuple[str, int]

MAX_PENDING = 256  # requests of this end without an answer
MAX_AT_WORK = 64  # requests of the other end that are worked on; the next ones are refused as busy
MAX_ANSWERS = 64  # kept to be repeated
MAX_OUT_BYTES = 1 << 20  # unsent, for a peer that does not read; then the stream is given up
ANSWER_S = 30.0  # a long answer is sent for so long: whoever asked waits no longer for any
REPEAT_S = 0.5  # a request without an answer is sent again after it
HELLO_S = 2.0  # a guest without the host's hello says its own again after it
HELLO_AGAIN_S = 1.0  # a host says its hello at most that often to who speaks under a session of before


class TooLarge(Exception):
    """A message that the other end cannot take."""


# Messages


class Message:
    """A line on its way, sent again at `again_at`."""

    def __init__(self, line: bytes) -> None:
        self.line = line
        self.again_at = 0.0


class Request:
    """Something asked of the other end: repeated unchanged until its answer or its deadline.

    `on_answer` gets the answer, or None when the deadline has passed, or the other end cannot take the request.
    `message`: what is sent for it now, under `id`; `cut`: it goes in parts, and this one is of them.
    """

    def __init__(self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]") -> None:
        self.op = op
        self.body = body
        self.deadline = deadline
        self.on_answer = on_answer
        self.id = 0
        self.message: "Optional[Message]" = None
        self.cut: "Optional[Cut]" = None

    @property
    def is_answer(self) -> bool:
        """Not a request, but an answer of this end that goes in parts."""
        return self.cut is not None and self.cut.of == "answer"


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
        super().__init__(dict(about, parts=True), decode, make_session)
        self.on_asked: "Callable[[Mark, str, Doc], None]" = lambda mark, op, doc: None
        self.ids = 0
        self.pending: "OrderedDict[int, Request]" = OrderedDict()
        self.at_work: "Dict[Mark, bool]" = {}  # True: its answer is on its way in parts
        self.takes_parts = False  # the other end does
        self.parts = Parts()
        self.answers: "OrderedDict[Mark, Message]" = OrderedDict()

    def _message(self, doc: "Doc", now: float) -> None:
        kind = field(doc, "type", str)
        if kind == "hello":
            self._greeting(doc, now)
        elif kind == "request":
            self._asked(doc, now)
        elif kind == "answer":
            self._answered(doc, now)
        elif kind == "part":
            self._part(doc, now)
        elif kind == "last":
            self._last_part(doc, now)
        else:
            raise BadValue("type %.60r is none of hello, request, answer, part, last" % kind)

    def _met(self, hello: "Doc") -> None:
        super()._met(hello)
        self.takes_parts = hello.get("parts") is True

    def _forget_peer(self) -> None:
        super()._forget_peer()
        self.at_work.clear()
        self.answers.clear()
        self.parts.clear()
        for request in list(self.pending.values()):
            if request.is_answer:
                self.withdraw(request)

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
        doc = {"type": "request", "id": self.ids + 1, "session": self.session, "op": request.op}
        doc.update(request.body)
        line = encode(doc)
        if len(line) > MAX_LINE_BYTES:
            self._check_parts(request.op, line)
        self.ids += 1
        if len(line) > MAX_LINE_BYTES:
            request.cut = Cut("request", (self.session, self.ids), self.ids, line)
            self._send_part(request, now)
        else:
            request.cut = None
            self._put(request, self.ids, line, now)

    def _put(self, request: Request, id: int, line: bytes, now: float) -> None:
        """This line is on its way for the request."""
        request.id, request.message = id, Message(line)
        self.pending[id] = request
        if self.ready:
            self._send(request.message, now)

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
        requests = [request for request in self.pending.values() if not request.is_answer]
        for request in requests:
            self.withdraw(request)
        return requests

    def _over(self, request: Request, answer: "Optional[Doc]") -> None:
        if self.pending.pop(request.id, None) is not None:
            request.on_answer(answer)

    def _answered(self, doc: "Doc", now: float) -> None:
        if doc.get("session") != self.session:
            return
        request = self.pending.get(field(doc, "id", int))
        ok = field(doc, "ok", bool)
        if request is None:
            pass  # answered before, or too late
        elif ok and request.cut is not None and not request.cut.at_last:
            del self.pending[request.id]
            request.cut.next += 1
            self._send_part(request, now)
        else:
            self._over(request, doc)

    # requests of the other end

    def _asked(self, doc: "Doc", now: float) -> None:
        mark, op = (field(doc, "session", str), field(doc, "id", int)), field(doc, "op", str)
        if self._is_known(mark, now):
            return
        if len(self.at_work) >= MAX_AT_WORK:  # not kept: when repeated it may be worked on
            text = "%d requests are being worked on; ask again later" % MAX_AT_WORK
            self._send(Message(self._answer(mark, refusal(BUSY, text))), now)
        else:
            self.at_work[mark] = False
            try:
                self.on_asked(mark, op, doc)
            except Exception:
                self.answer(
                    mark, refusal(FAILED, "%.60s failed by a defect; the log of the other end says where" % op), now
                )
                raise

    def _is_known(self, mark: "Mark", now: float) -> bool:
        """Whether nothing is to be done for a request: it has its answer, or gets it, or a stranger asks."""
        if not self.peer or mark[0] != self.peer:
            self._stranger(now)
        elif mark in self.answers:
            self._send(self.answers[mark], now)
        elif mark not in self.at_work:
            return False
        return True

    def answer(self, mark: "Mark", body: "Doc", now: float) -> None:
        """The answer to what `on_asked` was called with; nothing happens if nobody waits for it any more."""
        if self.at_work.get(mark, True):
            return
        try:
            line = self._answer(mark, body)
            if len(line) > MAX_LINE_BYTES:
                self._check_parts("answer", line)
        except TooLarge as error:
            line = self._answer(mark, refusal(TOO_LARGE, "%s; ask for fewer jobs at once" % error))
        except (TypeError, ValueError) as error:
            self.on_trouble("an answer cannot be written as JSON: %s" % error)
            line = self._answer(mark, refusal(FAILED, "the answer cannot be written: %s" % error))
        if len(line) <= MAX_LINE_BYTES:
            self._answer_with(mark, line, now)
        elif len(self.pending) >= MAX_PENDING:
            self._answer_with(mark, self._answer(mark, refusal(BUSY, "too much is on its way; ask again later")), now)
        else:
            self.at_work[mark] = True
            request = Request("", {}, now + ANSWER_S, lambda answer: self._answer_failed(mark, now))
            self.ids += 1
            request.cut = Cut("answer", mark, self.ids, line)
            self._send_part(request, now)

    def _answer_failed(self, mark: "Mark", now: float) -> None:
        if mark in self.at_work:
            self._answer_with(mark, self._answer(mark, refusal(BUSY, "the parts of the answer were not taken")), now)

    def _answer_with(self, mark: "Mark", line: bytes, now: float) -> None:
        """This line is the answer, now and when it is asked for again."""
        del self.at_work[mark]
        message = self.answers[mark] = Message(line)
        while len(self.answers) > MAX_ANSWERS:
            self.answers.popitem(last=False)
        self._send(message, now)

    @staticmethod
    def _answer(mark: "Mark", body: "Doc") -> bytes:
        doc: "Doc" = {"type": "answer", "id": mark[1], "session": mark[0]}
        doc.update(body)
        return encode(doc)

    # messages in parts

    def _check_parts(self, what: str, line: bytes) -> None:
        """Raises TooLarge if this line cannot go in parts, as far as the other end is known."""
        if len(line) > MAX_MESSAGE_BYTES:
            raise TooLarge("%s of %d bytes is longer than %d" % (what, len(line), MAX_MESSAGE_BYTES))
        if self.peer and not self.takes_parts:
            size = (what, len(line), MAX_LINE_BYTES)
            raise TooLarge("%s of %d bytes does not fit a line of %d, and the other end is too old for parts" % size)

    def _send_part(self, request: Request, now: float) -> None:
        """Send the part whose turn it is."""
        cut = request.cut
        assert cut is not None
        doc: "Doc" = {"message": cut.number, "at": cut.next, "text": cut.texts[cut.next]}
        if cut.at_last:
            doc.update(type="last", of=cut.of, session=cut.mark[0], id=cut.mark[1])
            if cut.of == "answer":
                self._answer_with(cut.mark, encode(doc), now)
                return
        else:
            self.ids += 1
            doc.update(type="part", session=self.session, id=self.ids)
        self._put(request, doc["id"], encode(doc), now)

    def _part(self, doc: "Doc", now: float) -> None:
        """A part that is not the last: kept and acknowledged."""
        mark = field(doc, "session", str), field(doc, "id", int)
        part = field(doc, "message", int), field(doc, "at", int), field(doc, "text", str)
        if not self.peer or mark[0] != self.peer:
            self._stranger(now)
            return
        kept = self.parts.add(*part)
        text = "part %d of a message came without those before it; send it again" % part[1]
        self._send(Message(self._answer(mark, {"ok": True} if kept else refusal(BUSY, text))), now)

    def _last_part(self, doc: "Doc", now: float) -> None:
        """The message is whole now, and counts like one that came on a line of its own."""
        mark, of = (field(doc, "session", str), field(doc, "id", int)), field(doc, "of", str)
        part = field(doc, "message", int), field(doc, "at", int), field(doc, "text", str)
        if of == "answer":
            if not self.peer or mark[0] != self.session or mark[1] not in self.pending:
                return  # answered before, or too late
        elif of != "request":
            raise BadValue("the last part of %.60r, it must be of a request or an answer" % of)
        elif self._is_known(mark, now):
            return
        line = self.parts.take(*part)
        if line is None:
            if of == "request":
                text = "the parts before the last one are missing; send the request again"
                self._send(Message(self._answer(mark, refusal(BUSY, text))), now)
            return
        whole = self.decode(line)
        if (whole.get("type"), whole.get("session"), whole.get("id")) != (of, *mark):
            raise BadValue("the parts make another message than the last one says")
        self._message(whole, now)


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
        self.known = self.known or (bool(self.peer) and (mine if doc["type"] in ("hello", "answer") else mine or its))

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
