"""The two ends of a guest channel, one rule at a time; tests/property/test_wire.py combines them all."""

from __future__ import annotations

import json

import pytest

from node_daemon.agent import sessions, wire
from node_daemon.agent.lines import encode
from node_daemon.agent.parts import MAX_MESSAGE_BYTES
from node_daemon.agent.wire import GuestEnd, HostEnd, TooLarge

from .pair import Doc, Pair


@pytest.fixture
def pair() -> Pair:
    """Two ends that have exchanged hellos."""
    made = Pair()
    made.talk()
    assert made.guest.ready and made.host.ready
    return made


def said(data: bytes) -> list[Doc]:
    return [json.loads(line) for line in data.split(b"\n") if line]


def test_each_hears_the_others_hello_once(pair: Pair) -> None:
    assert [hello["agent"] for hello in pair.greeted["host"]] == ["1"]
    assert [hello["domain"] for hello in pair.greeted["guest"]] == ["n1"]


def test_an_answer_goes_to_the_end_that_asked(pair: Pair) -> None:
    to_guest, to_host = pair.ask(pair.host, n=1), pair.ask(pair.guest, n=2)
    pair.talk()
    pair.answer("guest", n=1)
    pair.answer("host", n=2)
    pair.talk()
    assert [answer and answer["n"] for answer in (*to_guest, *to_host)] == [1, 2]
    assert not pair.guest.pending and not pair.host.pending


def test_a_request_that_is_lost_is_sent_again_until_its_answer(pair: Pair) -> None:
    answers = pair.ask(pair.guest)
    first = pair.guest.take_output()
    pair.wait(wire.REPEAT_S)
    assert pair.guest.take_output() == first
    pair.host.receive(first, pair.now)
    pair.answer("host")
    pair.host.take_output()  # the answer is lost too
    pair.wait(wire.REPEAT_S)
    pair.talk()
    assert len(answers) == 1
    assert not pair.asked["host"], "it was worked on once"
    assert pair.guest.next_at() is None


def test_a_request_without_an_answer_ends_at_its_deadline_and_leaves_nothing(pair: Pair) -> None:
    answers = pair.ask(pair.guest, deadline_s=1.0)
    pair.wait(1.0)
    assert answers == [None]
    assert not pair.guest.pending


def test_later_requests_do_not_displace_one_in_progress(pair: Pair) -> None:
    slow = pair.ask(pair.host, deadline_s=60)
    pair.talk()
    for _ in range(2 * wire.MAX_ANSWERS):
        pair.ask(pair.host)
        pair.talk()
        mark, _ = pair.asked["guest"].pop()
        pair.guest.answer(mark, {"ok": True}, pair.now)
        pair.talk()
    pair.wait(wire.REPEAT_S)
    pair.talk()
    assert len(pair.asked["guest"]) == 1, "worked on once"
    pair.answer("guest")
    pair.talk()
    assert len(slow) == 1


def test_too_many_requests_are_refused_as_busy_and_may_be_repeated(pair: Pair) -> None:
    answers = [pair.ask(pair.host) for _ in range(wire.MAX_AT_WORK + 1)]
    pair.talk()
    assert [one[0]["code"] for one in answers if one and one[0]] == ["busy"]
    pair.answer("guest")
    pair.ask(pair.host)
    pair.talk()
    assert len(pair.asked["guest"]) == wire.MAX_AT_WORK


def test_no_more_is_asked_than_can_wait(pair: Pair) -> None:
    for _ in range(wire.MAX_PENDING):
        pair.ask(pair.guest)
    assert pair.guest.ask("do", {}, pair.now + 5, lambda answer: None, pair.now) is None


def test_a_message_that_is_too_long_leaves_nothing_behind(pair: Pair) -> None:
    with pytest.raises(TooLarge):
        pair.ask(pair.host, filler="x" * MAX_MESSAGE_BYTES)
    assert not pair.host.pending
    assert pair.host.take_output() == b""


def test_an_answer_that_does_not_fit_is_a_refusal(pair: Pair) -> None:
    answers = pair.ask(pair.host)
    pair.talk()
    pair.answer("guest", filler="x" * MAX_MESSAGE_BYTES)
    pair.talk()
    assert answers[0] is not None and answers[0]["code"] == "too-large"


def test_the_guests_hello_is_repeated_until_the_host_knows_it() -> None:
    pair = Pair()
    pair.guest.take_output()  # lost
    pair.guest.receive(pair.host.take_output(), pair.now)
    assert not pair.host.ready
    pair.wait(wire.HELLO_S)
    pair.talk()
    assert pair.host.ready
    pair.wait(100)
    assert pair.guest.take_output() == b"", "and no longer"


def test_a_host_that_restarts_on_the_same_stream_is_greeted_and_asked_again(pair: Pair) -> None:
    answers = pair.ask(pair.guest, deadline_s=60)
    pair.talk()
    before = pair.guest.session
    pair.host = HostEnd({"host": "h1", "domain": "n1"})
    pair.host.on_asked = lambda mark, op, doc: pair.host.answer(mark, {"ok": True}, pair.now)
    pair.host.opened(pair.now)
    pair.talk()
    assert pair.guest.session != before
    assert len(answers) == 1


def test_a_guest_that_was_given_up_is_found_again_when_it_speaks(pair: Pair) -> None:
    pair.host.give_up(pair.now)
    pair.host.take_output()  # the new hello is lost
    assert not pair.host.ready
    pair.wait(wire.HELLO_AGAIN_S + 0.1)
    answers = pair.ask(pair.guest)
    pair.talk()
    assert pair.host.ready
    pair.answer("host")
    pair.talk()
    assert len(answers) == 1


def test_a_late_hello_of_before_is_none(pair: Pair) -> None:
    session = pair.guest.session
    late = {"type": "hello", "protocol": 1, "session": session, "agent": "1"}
    pair.guest.opened(pair.now)
    pair.talk()
    pair.host.receive(encode(late), pair.now)
    assert pair.host.peer == pair.guest.session != session
    own = pair.host.session
    pair.host.give_up(pair.now)
    pair.talk()
    pair.guest.receive(encode({**late, "session": own}), pair.now)
    assert pair.guest.peer == pair.host.session != own


def test_messages_of_another_session_are_dropped(pair: Pair) -> None:
    answers = pair.ask(pair.guest)
    id = said(pair.guest.take_output())[0]["id"]
    pair.guest.receive(encode({"type": "answer", "id": id, "session": "0" * 16, "ok": True}), pair.now)
    assert answers == []
    pair.host.receive(encode({"type": "request", "id": 1, "session": "0" * 16, "op": "do"}), pair.now)
    assert pair.asked["host"] == []


def test_a_hello_for_another_guest_or_of_another_protocol_is_none() -> None:
    guest = GuestEnd({})
    guest.opened(0.0)
    for more in ({"peer": "0" * 16}, {"protocol": 2}, {"session": "no word"}):
        guest.receive(encode({"type": "hello", "protocol": 1, "session": "a" * 16, **more}), 0.0)
    assert not guest.ready


def test_a_guest_of_another_protocol_is_sent_away() -> None:
    host = HostEnd({})
    host.opened(0.0)
    host.receive(b"\n" + encode({"type": "hello", "protocol": 2, "session": "a" * 16}), 0.0)
    assert "protocol 2" in host.broken


def test_bad_lines_in_a_row_break_the_stream(pair: Pair) -> None:
    pair.host.receive(b"garbage\n" * (sessions.MAX_BAD_LINES - 1), pair.now)
    pair.ask(pair.guest)
    pair.talk()
    pair.host.receive(b"garbage\n" * (sessions.MAX_BAD_LINES - 1), pair.now)
    assert not pair.host.broken
    pair.host.receive(b"garbage\n", pair.now)
    assert "bad lines" in pair.host.broken


def test_a_flood_is_read_at_the_rate_and_not_faster(pair: Pair) -> None:
    most = int(sessions.MAX_LINES_PER_S * sessions.RATE_WINDOW_S)
    flood = b"".join(encode({"type": "request", "id": n, "session": pair.guest.session, "op": "do"})
                     for n in range(3 * most))  # fmt: skip
    pair.host.receive(flood, pair.now)
    assert pair.host.paused
    began = pair.host.reader.begin
    at = pair.host.next_at()
    assert at is not None and at > pair.now
    pair.wait(1.0)
    lines = flood[began : pair.host.reader.begin].count(b"\n")
    assert sessions.MAX_LINES_PER_S - 1 <= lines <= sessions.MAX_LINES_PER_S + 1
