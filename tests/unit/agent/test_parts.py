"""Messages that are longer than a line, between the two ends of a guest channel."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import pytest

from node_daemon.agent import parts, wire
from node_daemon.agent.lines import MAX_LINE_BYTES, BadValue, encode
from node_daemon.agent.wire import TooLarge
from tests.tables import crossed

from .pair import Doc, Pair

LONG = '\\"' * 100_000
"""More than twelve parts, and the longest JSON encoding that a text can have."""


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.talk()
    return made


def one_turn(pair: Pair) -> tuple[bytes, bytes]:
    """Each end receives what the other sends now."""
    up, down = pair.guest.take_output(), pair.host.take_output()
    pair.host.receive(up, pair.now)
    pair.guest.receive(down, pair.now)
    return up, down


def test_a_long_request_and_its_long_answer_come_whole(pair: Pair) -> None:
    answers = pair.ask(pair.guest, filler=LONG)
    pair.talk()
    ((_, doc),) = pair.asked["host"]
    assert (doc["op"], doc["filler"]) == ("do", LONG)
    pair.answer("host", filler=LONG)
    pair.talk()
    assert answers[0] is not None
    assert (answers[0]["ok"], answers[0]["filler"]) == (True, LONG)
    assert not pair.guest.pending and not pair.host.pending
    assert pair.host.parts.size == pair.guest.parts.size == 0
    assert pair.guest.next_at() is None


def test_no_line_of_a_long_message_is_longer_than_a_line_may_be(pair: Pair) -> None:
    pair.ask(pair.guest, filler=LONG)
    said = b""
    for _ in range(100):
        said += one_turn(pair)[0]
    assert pair.asked["host"]
    assert max(len(line) + 1 for line in said.split(b"\n")) <= MAX_LINE_BYTES


def test_nothing_waits_behind_a_long_message(pair: Pair) -> None:
    pair.ask(pair.guest, filler="x" * 1_000_000)
    pair.ask(pair.host, filler="x" * 1_000_000)
    pair.ask(pair.guest, claim=True)
    pair.ask(pair.host, order=True)
    up, down = one_turn(pair)
    assert max(len(up), len(down)) < 2 * parts.PART_CHARS
    assert [doc.get("claim") for _, doc in pair.asked["host"]] == [True]
    assert [doc.get("order") for _, doc in pair.asked["guest"]] == [True]


def test_a_part_that_is_lost_is_sent_again_and_one_that_comes_twice_counts_once(pair: Pair) -> None:
    answers = pair.ask(pair.guest, deadline_s=60, filler=LONG)
    for turn in range(60):
        up, down = pair.guest.take_output(), pair.host.take_output()
        if turn % 3 != 1:
            pair.host.receive(up + up, pair.now)
        if turn % 3 != 2:
            pair.guest.receive(down + down, pair.now)
        pair.wait(wire.REPEAT_S)
    pair.talk()
    pair.answer("host")
    pair.talk()
    assert [answer and answer["ok"] for answer in answers] == [True]


def test_a_finished_long_request_leaves_nothing_behind(pair: Pair) -> None:
    answers = pair.ask(pair.guest, deadline_s=1.0, filler=LONG)
    one_turn(pair)
    pair.wait(1.0)
    assert answers == [None]
    assert not pair.guest.pending


def test_a_long_request_starts_again_with_a_restarted_host(pair: Pair) -> None:
    pair.ask(pair.guest, deadline_s=60, filler=LONG)
    one_turn(pair)
    one_turn(pair)
    other = Pair()
    pair.host, pair.asked["host"] = other.host, other.asked["host"]
    pair.talk()
    assert [doc["filler"] for _, doc in other.asked["host"]] == [LONG]


def test_a_long_answer_for_a_peer_of_before_is_no_longer_sent(pair: Pair) -> None:
    pair.ask(pair.host, deadline_s=60)
    pair.talk()
    pair.answer("guest", filler=LONG)
    assert pair.guest.pending
    pair.guest.opened(pair.now)
    assert not pair.guest.pending


def test_an_end_of_before_parts_is_asked_nothing_long(pair: Pair) -> None:
    pair.guest.takes_parts = False
    with pytest.raises(TooLarge):
        pair.ask(pair.guest, filler=LONG)
    assert not pair.guest.pending
    answers = pair.ask(pair.host)
    pair.talk()
    pair.answer("guest", filler=LONG)
    pair.talk()
    assert answers[0] is not None and answers[0]["code"] == "too-large"


def test_an_answer_that_is_no_json_is_a_refusal(pair: Pair) -> None:
    answers = pair.ask(pair.host)
    pair.talk()
    pair.answer("guest", filler=float("nan"))
    pair.talk()
    assert answers[0] is not None and answers[0]["code"] == "failed"


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), {1}, b"bytes"], ids=repr)
def test_a_request_that_is_no_json_leaves_nothing_behind(pair: Pair, filler: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        pair.ask(pair.host, filler=filler)
    assert not pair.host.pending
    assert pair.host.take_output() == b""


# Parts from a hostile end


def part(pair: Pair, id: int, **more: object) -> Doc:
    """A part that the guest might send: the first of message 7, changed by `more`."""
    doc = {"type": "part", "session": pair.guest.session, "id": id, "message": 7, "at": 0, "text": "x"}
    return {**doc, **more}


def test_parts_without_those_before_them_are_refused_and_not_kept(pair: Pair) -> None:
    pair.host.receive(encode(part(pair, 1, at=3)), pair.now)
    assert json.loads(pair.host.take_output())["code"] == "busy"
    pair.host.receive(encode(part(pair, 2, type="last", of="request", at=1)), pair.now)
    assert json.loads(pair.host.take_output())["code"] == "busy"
    assert pair.host.parts.size == 0


@pytest.mark.long
def test_parts_without_an_end_are_kept_within_bounds() -> None:
    kept = parts.Parts()
    for number in range(10):
        for at in range(200):
            kept.add(number, at, "x" * 32_000)
            assert kept.size <= parts.MAX_KEPT_BYTES
    for at in range(100_000):
        kept.add(11, at, "x")
    assert kept.size <= parts.MAX_KEPT_BYTES
    for number in range(12, 200_000):
        kept.add(number, 0, "x")
    assert kept.size <= parts.MAX_KEPT_BYTES
    kept.clear()
    assert kept.size == 0


@pytest.mark.parametrize(
    ("text", "number", "of_one_message"),
    crossed(["", "\u20ac", "x" * 9_000 + "\U0001f600"], [0, 10**900], [False, True]),
    ids=lambda value: ascii(value)[:20],
)
def test_parts_take_no_more_memory_than_is_counted(pair: Pair, text: str, number: int, of_one_message: bool) -> None:
    lines = [
        encode(part(pair, id, message=number + (id // 1000 if of_one_message else id), at=at, text=text))
        for id in range(10_000 if len(text) < 10 else 1_000)
        for at in [id % 1000 if of_one_message else 0]
    ]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for line in itertools.takewhile(lambda line: not pair.host.broken, lines):
            pair.host.receive(line, pair.now)
            pair.host.take_output()
            pair.wait(0.1)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < parts.MAX_KEPT_BYTES + 200_000


def test_a_message_of_too_many_values_is_not_read() -> None:
    kept = parts.Parts()
    for at in range(20):
        kept.add(1, at, "[]," * 10_000)
    with pytest.raises(BadValue):
        kept.take(1, 20, "[]")
    assert kept.size == 0


@pytest.mark.parametrize(
    "other",
    [
        {"type": "hello", "protocol": 1, "session": "c" * 16},
        {"type": "request", "id": 99, "op": "do"},
        {"type": "request", "id": 9, "session": "c" * 16, "op": "do"},
        {"type": "last", "of": "request", "id": 9, "message": 7, "at": 1, "text": " "},
        {"type": "request", "id": 9, "op": 5},
        [],
    ],
)
def test_parts_that_make_another_message_are_a_bad_line(pair: Pair, other: Doc | list[object]) -> None:
    if isinstance(other, dict):
        other = {"session": pair.guest.session, **other}
    pair.host.receive(encode(part(pair, 8, text=json.dumps(other))), pair.now)
    pair.host.receive(encode(part(pair, 9, type="last", of="request", at=1, text=" ")), pair.now)
    assert pair.host.bad_lines == 1
    assert pair.asked["host"] == []
    pair.ask(pair.guest)
    pair.talk()
    assert len(pair.asked["host"]) == 1


WRONG: list[Doc] = [
    {"at": -1},
    {"at": parts.MAX_PARTS},
    {"at": "0"},
    {"text": 5},
    {"text": ""},
    {"message": None},
    {"message": -1},
    {"message": 2**53 + 1},
    {"id": True},
    {"id": -1},
    {"id": 10**900},
    {"of": "x"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: ascii(wrong)[:40])
def test_parts_with_a_wrong_field_do_no_harm(pair: Pair, wrong: Doc) -> None:
    for kind in ("part", "last"):
        pair.host.receive(encode({**part(pair, 8), "type": kind, "of": "request", **wrong}), pair.now)
    pair.ask(pair.guest)
    pair.talk()
    assert len(pair.asked["host"]) == 1
