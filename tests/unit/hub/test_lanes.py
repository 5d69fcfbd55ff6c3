"""What one host sends waits in lanes of its own kind; heartbeats never wait, and what waits is bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from magrathea.core.model import Domain, Kind
from magrathea.core.moves import Parcel
from magrathea.core.refusals import RefusalCode
from magrathea.messages import BadMessage, Heartbeat, HistoryTold, PartsAsked, Snapshot, ToHub, encode
from magrathea.move_messages import MoveWords, ParcelSent, WishRefused, parcel_of, words_of
from scheduler_plugin.hub import lanes
from scheduler_plugin.hub.lanes import Lane, Lanes, kind_of
from tests.fakes.reports import snapshot


def asked(id: str) -> bytes:
    return encode(PartsAsked(sender="h1", id=1, job=id, run=1, vnodes=["n2"]))


def parcel(domain: str, number: int = 2) -> bytes:
    return encode(parcel_of(Parcel(number, "h1", 1.0, False, Domain(domain, Kind.NORMAL, 4)), "h2"))


def words(most: int = 1) -> bytes:
    return encode(words_of("h1", (), frozenset(), most))


SNAPSHOT = encode(snapshot(host="h1"))
BEAT = encode(Heartbeat(sender="h1", boot_id="boot", revision=1))


class Loop:
    """A loop whose time only tests move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.handled: list[tuple[Lane, bytes]] = []
        self.lanes: Lanes[bytes] = Lanes(self.handle, self.later, lambda: self.now)

    def handle(self, host: str, lane: Lane, message: bytes) -> None:
        self.handled.append((lane, message))

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, function))

    def send(self, *messages: bytes, host: str = "h1") -> None:
        for message in messages:
            self.lanes.take(host, kind_of(memoryview(message)), message, len(message))

    def after(self, seconds: float) -> list[bytes]:
        """Let time pass; return what was handled."""
        before, end = len(self.handled), self.now + seconds
        while self.due and min(self.due)[0] <= end:
            found = min(self.due, key=lambda one: one[0])
            self.due.remove(found)
            self.now = max(self.now, found[0])
            found[1]()
        self.now = end
        return [message for _, message in self.handled[before:]]


def wish_refused(domain: str) -> bytes:
    text = {"domain": domain, "number": 1, "to": "h2", "text": "x" * 4096}
    return encode(WishRefused(sender="h1", code=RefusalCode.NOT_MOVABLE, **text))  # type: ignore[arg-type]


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.mark.parametrize(
    ("message", "type", "lane"),
    [
        (SNAPSHOT, Snapshot, Lane.REST),
        (BEAT, Heartbeat, Lane.BEATS),
        (asked("1.srv"), PartsAsked, Lane.PARTS),
        (encode(HistoryTold(sender="h1", id=1, entries=[])), HistoryTold, Lane.REST),
        (words(), MoveWords, Lane.MOVES),
        (parcel("n1"), ParcelSent, Lane.MOVES),
        (wish_refused("n1"), WishRefused, Lane.MOVES),
    ],
)
def test_a_message_of_a_daemon_is_recognized_by_its_first_bytes(message: bytes, type: type[ToHub], lane: Lane) -> None:
    assert (kind_of(memoryview(message)).type, kind_of(memoryview(message)).lane) == (type, lane)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{}",
        b'{"type":"\xff"}',
        b'{"sender":"h1","type":"heartbeat"}',
        b'{"type":"books"}',
        b'{"type":"heartbeat","sender":"' + b"x" * lanes.SHORT_BYTES,
        b'{"type":"parts-asked","sender":"' + b"x" * lanes.QUESTION_BYTES,
    ],
)
def test_what_does_not_begin_like_a_message_or_is_too_long_for_one_is_refused(message: bytes) -> None:
    with pytest.raises(BadMessage):
        kind_of(memoryview(message))


def test_work_that_follows_later_is_charged_and_only_the_newest_snapshot_waits(loop: Loop) -> None:
    loop.send(SNAPSHOT)
    loop.lanes.charge("h1", 10.0)
    loop.send(SNAPSHOT + b" ", SNAPSHOT + b"  ")
    assert loop.after(1.0) == []
    assert loop.after(200.0) == [SNAPSHOT + b"  "]
    assert loop.lanes.waiting_bytes == 0


def test_a_heartbeat_never_waits_and_another_host_does_not_either(loop: Loop) -> None:
    loop.lanes.charge("h1", 10.0)
    loop.send(BEAT)
    loop.send(SNAPSHOT, host="h2")
    assert [message for _, message in loop.handled] == [BEAT, SNAPSHOT]


def test_the_time_of_heartbeats_is_charged_to_the_rest(loop: Loop) -> None:
    loop.lanes.charge("h1", 10.0, Lane.BEATS)
    loop.send(SNAPSHOT)
    assert loop.handled == []


def test_questions_of_a_guest_neither_delay_nor_replace_snapshots(loop: Loop) -> None:
    loop.lanes.charge("h1", 10.0, Lane.PARTS)
    loop.send(asked("1.srv"), SNAPSHOT)
    assert loop.handled == [(Lane.REST, SNAPSHOT)]
    loop.lanes.charge("h1", 10.0)
    loop.send(SNAPSHOT, asked("2.srv"))
    assert set(loop.after(1000.0)) == {asked("1.srv"), asked("2.srv"), SNAPSHOT}


def test_a_job_has_one_place_in_the_line_however_often_it_is_asked_about(loop: Loop) -> None:
    loop.lanes.charge("h1", 1.0, Lane.PARTS)
    loop.send(*[asked("1.srv")] * 1000, asked("2.srv"), *[asked("1.srv")] * 1000)
    assert loop.after(1000.0) == [asked("1.srv"), asked("2.srv")]


def test_newer_words_about_moves_and_a_newer_parcel_of_a_domain_replace_those_that_wait(loop: Loop) -> None:
    loop.lanes.charge("h1", 1.0, Lane.MOVES)
    loop.send(words(), *[parcel("n1")] * 1000, parcel("n2"), words(2), parcel("n1", 3), SNAPSHOT)
    assert loop.handled == [(Lane.REST, SNAPSHOT)], "snapshots do not wait for them"
    assert loop.after(1000.0) == [words(2), parcel("n1", 3), parcel("n2")]


def test_what_waits_is_bounded(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.lanes.charge("h1", 1.0, Lane.PARTS)
    loop.send(*(asked(f"{n}.srv") for n in range(lanes.MOST_QUESTIONS)))
    with pytest.raises(BadMessage, match="wait already"):
        loop.send(asked("9999.srv"))
    monkeypatch.setattr(lanes, "MOST_WAITING_BYTES", loop.lanes.waiting_bytes + len(SNAPSHOT) + 1)
    for host in ("h1", "h2"):
        loop.lanes.charge(host, 1.0)
    loop.send(SNAPSHOT)
    loop.send(SNAPSHOT + b" ")
    with pytest.raises(BadMessage, match="of all hosts"):
        loop.send(SNAPSHOT, host="h2")
    loop.after(1000.0)
    assert loop.lanes.waiting_bytes == 0


def test_each_lane_has_its_own_rate(loop: Loop) -> None:
    for _ in range(int(lanes.RATE_PER_S * lanes.RATE_OVER_S)):
        loop.lanes.count("h1", Lane.PARTS)
    with pytest.raises(BadMessage):
        loop.lanes.count("h1", Lane.PARTS)
    loop.lanes.count("h1", Lane.BEATS)
    loop.lanes.count("h1", Lane.REST)


def test_work_that_others_have_caused_as_well_makes_nobody_wait_longer_than_a_second(loop: Loop) -> None:
    """A thousand bookings of one job's host, say, or the books after each snapshot of another host of its job."""
    for _ in range(100):
        loop.lanes.charge_later("h1", 6.0)
    loop.send(SNAPSHOT)
    assert loop.handled == []
    assert loop.after(lanes.MOST_DEBT_S + 0.01) == [SNAPSHOT]
    loop.lanes.charge("h1", 6.0)
    loop.send(SNAPSHOT)
    assert loop.after(lanes.MOST_DEBT_S + 0.01) == [], "what its own messages take it pays as a whole"
