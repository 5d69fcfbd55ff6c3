"""Both ends of the guest channel: lines, sessions, requests and their answers, without any input or output.

The agent and the node daemon use this one module, each in a shell that has the stream and the clock. The agent uses
`GuestEnd`, the daemon `HostEnd`. The module imports nothing of either, so the guest gets a plain copy of it.

1. A message is a JSON object on one line of at most MAX_LINE_BYTES. Bytes before the first newline of a stream are
   dropped, and each hello begins with a newline, because such a channel loses bytes when one side restarts.
2. Each end has a session, and a new one each time it starts again. A request carries the session of its sender, and its
   answer carries the same. Messages of any other session are dropped.
3. A request is repeated unchanged until its answer or its deadline. The other end works on it once. While it works,
   repetitions are ignored; later ones get the same answer again (the last MAX_ANSWERS are kept).
4. A message that is longer than a line goes in parts, if the other end's hello says that it takes them. The last part
   carries session and id of the whole message, and is repeated like it. Each part before it has an id of its own, and
   the next one is sent when it is acknowledged. So nothing else waits behind a long message.
5. Everything is bounded: lines, and the requests and answers that wait, are worked on or kept. Reading pauses if lines
   come too fast. Several bad lines in a row break the stream.

Times are seconds of the shell's clock, given as `now`. After each call the shell writes what `take_output` returns,
checks `broken` and `paused`, and calls `tick` at `next_at`.
"""

from collections import OrderedDict

from .lines import MAX_LINE_BYTES, BadValue, encode, field, natural, parse
from .parts import MAX_MESSAGE_BYTES, Cut, Parts, read_part
from .refusals import BUSY, FAILED, TOO_LARGE, refusal
from .sessions import Allowance, Stream, check_hello, new_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .lines import Doc

    Mark = Tuple[str, int]

MAX_PENDING = 256  # requests of this end without an answer
MAX_AT_WORK = 64  # requests of the other end under way; further ones are refused as busy
MAX_ANSWERS = 64  # kept for repeated requests
MAX_OUT_BYTES = 1 << 20  # unsent, because the other end does not read; then the stream is closed
ANSWER_S = 30.0  # the longest time for sending a long answer; no request waits longer
REPEAT_S = 0.5  # after this, a request without an answer is sent again
HELLO_S = 2.0  # after this, a guest without the host's hello sends its own again
HELLO_AGAIN_S = 1.0  # between two hellos of a host to a guest that still uses an old session


class TooLarge(Exception):
    """The other end cannot take a message of this size."""


# Messages


class SentLine:
    """A line that is sent again at `again_at`."""

    def __init__(self, line: bytes) -> None:
        self.line = line
        self.again_at = 0.0


class Request:
    """A request to the other end, repeated unchanged until its answer or its deadline.

    `on_answer` gets the answer; None if the deadline has passed or the other end cannot take the request.
    `message`: the line that is sent for it now, under `id`. `cut`: its parts, if it is too long for a line.
    """

    def __init__(self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]") -> None:
        self.op = op
        self.body = body
        self.deadline = deadline
        self.on_answer = on_answer
        self.id = 0
        self.message: "Optional[SentLine]" = None
        self.cut: "Optional[Cut]" = None

    @property
    def is_answer(self) -> bool:
        """Whether this is no request, but an answer of this end that is sent in parts."""
        return self.cut is not None and self.cut.of == "answer"


# The ends


class End(Stream):
    """One end: its stream, and the requests both ways.

    Beside the callbacks of a `Stream` the shell sets `on_asked`, called with each new request; the shell works on it
    and calls `answer`. It may call this end.
    """

    def __init__(
        self,
        about: "Doc",
        decode: "Callable[[bytes], Doc]" = parse,
        make_session: "Callable[[], str]" = new_session,
        allowance: "Optional[Allowance]" = None,
    ) -> None:
        super().__init__(dict(about, parts=True), decode, make_session, allowance)
        self.on_asked: "Callable[[Mark, str, Doc], None]" = lambda mark, op, doc: None
        self.ids = 0
        self.pending: "OrderedDict[int, Request]" = OrderedDict()
        self.at_work: "Dict[Mark, bool]" = {}  # True if its answer is being sent in parts
        self.takes_parts = False  # as the hello of the other end says
        self.parts = Parts()
        self.answers: "OrderedDict[Mark, SentLine]" = OrderedDict()

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
        """When to call `tick`; None if not before the next other call."""
        times = [request.deadline for request in self.pending.values()]
        if self.ready:
            times += [message.again_at for message in self._on_their_way()]
        if self.read_on_at is not None:
            times.append(self.read_on_at)
        return min(times) if times else None

    def tick(self, now: float) -> None:
        """Do what is due at this time."""
        if self.read_on_at is not None and now >= self.read_on_at:
            self.read_on_at = None
            self._consume(now)
        for request in list(self.pending.values()):
            if now >= request.deadline:
                self._over(request, None)
        for message in self._on_their_way() if self.ready else ():
            if now >= message.again_at:
                self._send(message, now)

    def _on_their_way(self) -> "List[SentLine]":
        return [request.message for request in self.pending.values() if request.message is not None]

    def _send(self, message: SentLine, now: float) -> None:
        if not self.broken:
            self.output.append(message.line)
            message.again_at = now + REPEAT_S

    # requests to the other end

    def ask(
        self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]", now: float
    ) -> "Optional[Request]":
        """Send a request. `on_answer` is called later, never during this call. None if too many wait already.

        Raises TooLarge; TypeError or ValueError for what is no JSON. Then nothing is left of the request.
        """
        if len(self.pending) >= MAX_PENDING:
            return None
        request = Request(op, body, deadline, on_answer)
        self._begin(request, now)
        return request

    def _begin(self, request: Request, now: float) -> None:
        """Send the request under a new id, if the other end is there. Raises TooLarge."""
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
        """Send this line for the request, and repeat it."""
        request.id, request.message = id, SentLine(line)
        self.pending[id] = request
        if self.ready:
            self._send(request.message, now)

    def renew(self, now: float) -> None:
        """Send all requests without an answer to the present other end."""
        requests = list(self.pending.values())
        self.pending.clear()
        for request in requests:
            try:
                self._begin(request, now)
            except TooLarge as error:
                self.on_trouble("not asked: %s" % error)
                request.on_answer(None)

    def withdraw(self, request: Request) -> None:
        """Stop repeating this request. Its answer is ignored."""
        self.pending.pop(request.id, None)

    def withdraw_all(self) -> "List[Request]":
        """Withdraw all requests. Returns them."""
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
        mark, op = (field(doc, "session", str), natural(doc, "id")), field(doc, "op", str)
        if self._is_known(mark, now):
            return
        if len(self.at_work) >= MAX_AT_WORK:  # this answer is not kept, so a repetition may be worked on
            text = "%d requests are being worked on; ask again later" % MAX_AT_WORK
            self._send(SentLine(self._answer(mark, refusal(BUSY, text))), now)
        else:
            self.at_work[mark] = False
            try:
                self.on_asked(mark, op, doc)
            except Exception:
                self.answer(
                    mark,
                    refusal(FAILED, "a defect made %.60s fail; the log of the end that was asked shows where" % op),
                    now,
                )
                raise

    def _is_known(self, mark: "Mark", now: float) -> bool:
        """Whether a request needs no work: it has its answer, or will get it, or belongs to another session."""
        if not self.peer or mark[0] != self.peer:
            self._stranger(now)
        elif mark in self.answers:
            self._send(self.answers[mark], now)
        elif mark not in self.at_work:
            return False
        return True

    def answer(self, mark: "Mark", body: "Doc", now: float) -> None:
        """Answer a request that `on_asked` was called with. Nothing happens if nobody waits for it any more."""
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
        """Send this line as the answer, and keep it for repetitions."""
        del self.at_work[mark]
        message = self.answers[mark] = SentLine(line)
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
        """Raise TooLarge if this line cannot be sent in parts. An other end that is not there yet is checked later."""
        if len(line) > MAX_MESSAGE_BYTES:
            raise TooLarge("%s of %d bytes is longer than %d" % (what, len(line), MAX_MESSAGE_BYTES))
        if self.peer and not self.takes_parts:
            size = (what, len(line), MAX_LINE_BYTES)
            raise TooLarge("%s of %d bytes does not fit a line of %d, and the other end is too old for parts" % size)

    def _send_part(self, request: Request, now: float) -> None:
        """Send the next part."""
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
        """Keep and acknowledge a part that is not the last."""
        mark, part = (field(doc, "session", str), natural(doc, "id")), read_part(doc)
        if not self.peer or mark[0] != self.peer:
            self._stranger(now)
            return
        kept = self.parts.add(*part)
        text = "part %d of a message came without those before it; send it again" % part[1]
        self._send(SentLine(self._answer(mark, {"ok": True} if kept else refusal(BUSY, text))), now)

    def _last_part(self, doc: "Doc", now: float) -> None:
        """Join the message, and handle it like one that came on a line."""
        mark, of, part = (field(doc, "session", str), natural(doc, "id")), field(doc, "of", str), read_part(doc)
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
                self._send(SentLine(self._answer(mark, refusal(BUSY, text))), now)
            return
        whole = self.decode(line)
        if (whole.get("type"), whole.get("session"), whole.get("id")) != (of, *mark):
            raise BadValue("the parts make another message than the last one says")
        self._message(whole, now)


class GuestEnd(End):
    """The agent's end.

    It repeats its hello until the host has shown that it knows this session, and greets a host that has restarted.
    """

    known = False  # the host has shown that it knows this session
    met_at = 0.0  # when this session first heard the present host

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
        if hello.get("peer", self.session) != self.session or hello["session"] in self.past:
            return  # for an earlier agent, or from an earlier host
        since = self.hello_at if self.known else self.met_at
        if hello["session"] == self.peer and ("peer" in hello or now - since < HELLO_S):
            return  # repeated
        if self.peer:
            # The host side restarted without a hang-up: it waits for a hello, and has lost all requests. Or it takes
            # this session for an earlier one, and greets whoever is there.
            self.session, self.known = self.make_session(), False
            self.say_hello(now)
        self._met(hello)
        self.met_at = now
        self.renew(now)
        self.on_greeted(hello)


class HostEnd(End):
    """The node daemon's end. It answers each hello.

    QEMU connects a virtio-serial port long before an agent opens it, and keeps it connected when the agent restarts.
    So an agent has usually not read the hello that the stream began with.
    """

    def _greeting(self, hello: "Doc", now: float) -> None:
        try:
            check_hello(hello)
        except BadValue as error:
            self.broken = str(error)  # it would repeat it
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
        """Give up an other end that is silent. If it still lives, it sees a new session and greets again."""
        self._forget_peer()
        self.session = self.make_session()
        self.say_hello(now)
