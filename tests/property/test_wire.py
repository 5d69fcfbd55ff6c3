"""Two ends of a guest channel over a stream that loses, cuts, repeats and delays, in virtual time; also long messages.

The stream behaves like a virtio-serial port (with `fresh`, like a unix socket). When one side restarts, a part of the
bytes under way is lost, and the rest reaches the next process. Whatever happens, a request is executed at most once,
gets its own answer or none, and ends. When the stream works again, both ends understand each other.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node_daemon.agent import parts, sessions, wire
from node_daemon.agent.wire import End, GuestEnd, HostEnd

Doc = dict[str, Any]
STEP_S = st.sampled_from((0.0, 0.001, 0.05, 0.1, 0.5, 0.6, 2.5, 7.0))
DELAY_S = st.sampled_from((0.0, 0.001, 0.05, 0.7))
DEADLINE_S = st.sampled_from((0.05, 1.0, 5.0, 30.0))
SIZE = st.sampled_from((0, 10, 10, 3_000, 60_000, 200_000))
PIECE = st.sampled_from((1, 7, 100, 5_000, 1 << 20))
CUT = st.floats(0, 1)
GUEST = st.booleans()


class Way:
    """One direction of the stream: bytes in order, each piece with its time of arrival."""

    def __init__(self) -> None:
        self.pieces: deque[tuple[float, bytes]] = deque()

    def put(self, at: float, data: bytes) -> None:
        if data:
            self.pieces.append((max(at, self.pieces[-1][0] if self.pieces else at), data))

    def due(self, now: float) -> bytes:
        found = b""
        while self.pieces and self.pieces[0][0] <= now:
            found += self.pieces.popleft()[1]
        return found

    def change(self, how: Callable[[bytes], bytes]) -> None:
        """Change the bytes under way."""
        if self.pieces:
            at = self.pieces[-1][0]
            data = how(b"".join(piece for _, piece in self.pieces))
            self.pieces = deque([(at, data)] if data else [])


class Side:
    """One end as its owner uses it: the requests that it got, and those that it made."""

    def __init__(self, end: End, now: float) -> None:
        self.end = end
        self.worked: Counter[tuple[str, int]] = Counter()
        self.open: list[tuple[tuple[str, int], Doc]] = []
        end.on_asked = self._asked
        end.opened(now)

    def _asked(self, mark: tuple[str, int], op: str, doc: Doc) -> None:
        assert op == "echo" and len(doc["filler"]) == doc["size"]
        self.worked[mark] += 1
        assert self.worked[mark] == 1, "worked on twice"
        assert mark[0] == self.end.peer, "worked on for somebody of before"
        self.open.append((mark, doc))


class TwoEnds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.sessions = (f"{n:016x}" for n in count(1))
        self.serial = count(1)
        self.delay = 0.05
        self.piece = 1 << 20
        self.to_host, self.to_guest = Way(), Way()
        self.well_since = float("inf")
        self.asked: dict[int, float] = {}
        """Serial numbers of unanswered requests, with their deadlines."""
        self.guest, self.host = self._guest(), self._host()
        self._move()

    def _guest(self) -> Side:
        return Side(GuestEnd({"agent": "1"}, make_session=lambda: next(self.sessions)), self.now)

    def _host(self) -> Side:
        side = Side(HostEnd({"host": "h1", "domain": "n1"}, make_session=lambda: next(self.sessions)), self.now)
        side.end.on_greeted = lambda hello: self._void(side)
        return side

    def _void(self, side: Side) -> None:
        """End all requests to an agent that no longer exists, as the daemon does."""
        for request in side.end.withdraw_all():
            del self.asked[request.body["serial"]]

    def _move(self) -> None:
        """Let everything happen that is due now, until nothing more is sent."""
        for _ in range(1000):
            self.to_host.put(self.now + self.delay, self.guest.end.take_output())
            self.to_guest.put(self.now + self.delay, self.host.end.take_output())
            came = self._deliver(self.guest, self.to_guest), self._deliver(self.host, self.to_host)
            for side in (self.guest, self.host):
                if (at := side.end.next_at()) is not None and at <= self.now:
                    side.end.tick(self.now)
                    after = side.end.next_at()
                    assert after is None or after > self.now, "it would be called again at once"
                    came = (True, True)
            if not any(came):
                return
        raise AssertionError("they never stop talking")

    def _deliver(self, side: Side, way: Way) -> bool:
        if side.end.broken or side.end.paused:
            return False
        data = way.due(self.now)
        for at in range(0, len(data), self.piece):
            side.end.receive(data[at : at + self.piece], self.now)
        return bool(data)

    # Events

    @rule(seconds=STEP_S)
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            self._move()
            times = [way.pieces[0][0] for way in (self.to_host, self.to_guest) if way.pieces]
            times += [at for side in (self.guest, self.host) if (at := side.end.next_at()) is not None]
            later = [at for at in times if self.now < at <= until]
            if not later:
                break
            self.now = min(later)
        self.now = until
        self._move()

    @rule(delay=DELAY_S, piece=PIECE)
    def the_stream_changes(self, delay: float, piece: int) -> None:
        self.delay, self.piece = delay, piece

    @rule(guest=GUEST, size=SIZE, deadline_s=DEADLINE_S)
    def one_asks(self, guest: bool, size: int, deadline_s: float) -> None:
        side = self.guest if guest else self.host
        if not guest and not side.end.peer:
            return  # the daemon asks no agent that is not connected
        serial = next(self.serial)

        def answered(answer: Doc | None) -> None:
            assert self.asked.pop(serial, None) is not None, "answered twice"
            assert answer is not None or self.now - self.well_since < 10, "it was repeated and answered in vain"
            assert answer is None or answer.get("serial") == serial or answer["code"] == "busy"

        body = {"serial": serial, "size": size, "filler": "x" * size}
        self.asked[serial] = self.now + deadline_s
        if side.end.ask("echo", body, self.now + deadline_s, answered, self.now) is None:
            assert len(side.end.pending) == wire.MAX_PENDING
            del self.asked[serial]
        self._move()

    @rule(guest=GUEST, which=st.integers(0, 5))
    def one_has_worked(self, guest: bool, which: int) -> None:
        side = self.guest if guest else self.host
        if side.open:
            mark, doc = side.open.pop(which % len(side.open))
            side.end.answer(mark, {"ok": True, "serial": doc["serial"], "filler": doc["filler"]}, self.now)
        self._move()

    @rule(lost=CUT, kept=CUT, hangup=st.booleans())
    def the_host_restarts(self, lost: float, kept: float, hangup: bool) -> None:
        self._void(self.host)
        self.to_host.change(lambda data: data[int(len(data) * lost) :])
        self.to_guest.change(lambda data: data[: int(len(data) * kept)])
        if hangup:
            self.guest.end.closed("hung up")
            self.to_guest.pieces.clear()
            self.guest.end.opened(self.now)
        self.host = self._host()
        self._move()

    @rule(kept=CUT, stale=CUT, asks=st.booleans())
    def the_guest_restarts(self, kept: float, stale: float, asks: bool) -> None:
        """The host does not notice it; the guest's next process may get messages for its predecessor."""
        for request in self.guest.end.withdraw_all():
            del self.asked[request.body["serial"]]
        self.to_host.change(lambda data: data[: int(len(data) * kept)])
        self.to_guest.change(lambda data: data[int(len(data) * stale) :])
        self.guest = self._guest()
        if asks:
            self.one_asks(True, 10, 5.0)
        self._move()

    @rule()
    def a_fresh_stream(self) -> None:
        """As with a unix socket: both ends notice the end of the old stream."""
        self._void(self.host)
        self.to_host.pieces.clear()
        self.to_guest.pieces.clear()
        self.guest.end.closed("closed")
        self.guest.end.opened(self.now)
        self.host = self._host()
        self._move()

    @rule(guest=GUEST, every=st.integers(1, 3), first=st.integers(0, 2))
    def lines_are_lost(self, guest: bool, every: int, first: int) -> None:
        way = self.to_guest if guest else self.to_host

        def thinned(data: bytes) -> bytes:
            lines = data.split(b"\n")
            return b"\n".join(line for n, line in enumerate(lines) if n % every != first % every or n == len(lines) - 1)

        way.change(thinned)

    @rule(guest=GUEST, lines=st.integers(1, 3))
    def lines_come_twice(self, guest: bool, lines: int) -> None:
        """Whole messages: ten repeated halves of one would close the stream."""
        way = self.to_guest if guest else self.to_host

        def repeated(data: bytes) -> bytes:
            last = data.splitlines(keepends=True)[-lines:]
            return data + b"".join(line for line in last if line.startswith(b"{")) if data[-1:] == b"\n" else data

        way.change(repeated)

    @rule()
    def the_host_gives_the_guest_up(self) -> None:
        self._void(self.host)
        self.host.end.give_up(self.now)  # type: ignore[attr-defined]
        self._move()

    # Invariants

    @invariant()
    def nothing_is_unbounded(self) -> None:
        for end in (self.guest.end, self.host.end):
            assert len(end.answers) <= wire.MAX_ANSWERS
            assert len(end.at_work) <= wire.MAX_AT_WORK
            assert len(end.pending) <= wire.MAX_PENDING
            assert end.parts.size <= parts.MAX_KEPT_BYTES
            assert end.bad_lines < sessions.MAX_BAD_LINES, end.broken
            assert all(mark[0] == end.peer for mark in (*end.at_work, *end.answers)), "kept for somebody of before"

    @invariant()
    def nobody_waits_beyond_the_deadline(self) -> None:
        assert all(self.now < deadline for deadline in self.asked.values())

    def teardown(self) -> None:
        """All works again: every request is answered, old ones too, and nothing is left."""
        self.delay, self.piece = 0.0, 1 << 20
        self.well_since = self.now
        self._all_is_answered()
        for guest in (True, False):
            self.one_asks(guest, 10, 5.0)
        assert self.asked
        self._all_is_answered()
        assert not self.asked
        assert not self.guest.end.pending and not self.host.end.pending

    def _all_is_answered(self) -> None:
        for _ in range(20):
            self.time_passes(0.6)
            for side in (self.guest, self.host):
                while side.open:
                    self.one_has_worked(side is self.guest, 0)


TwoEnds.TestCase.settings = settings(stateful_step_count=40)
test_two_ends = TwoEnds.TestCase


def test_a_host_that_takes_the_present_session_for_an_earlier_one_is_greeted_anew() -> None:
    """It came up while the hellos of two agents were under way, and read them as new, old, new."""
    ends = TwoEnds()
    ends.the_guest_restarts(asks=False, kept=1.0, stale=0.0)
    ends.lines_come_twice(guest=False, lines=3)
    ends.the_host_restarts(hangup=False, kept=0.0, lost=0.25)
    ends.time_passes(0.6)
    assert ends.host.end.peer != ends.guest.end.session
    ends.teardown()


def test_an_agent_that_was_given_up_before_it_was_known_takes_a_new_session() -> None:
    """Its host met it, gave it up, and greets it without naming it; the agent has never known whether it was met."""
    ends = TwoEnds()
    ends.the_stream_changes(delay=0.7, piece=1)
    ends.a_fresh_stream()
    ends.time_passes(0.5)
    ends.the_host_gives_the_guest_up()
    ends.lines_come_twice(guest=True, lines=1)
    ends.time_passes(0.5)
    ends.the_host_gives_the_guest_up()
    assert ends.guest.end.session in ends.host.end.past and not ends.guest.end.known  # type: ignore[attr-defined]
    ends.lines_are_lost(every=1, first=0, guest=True)
    ends.teardown()
