"""Messages about moves: what goes out comes in as it was, and what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from magrathea import __version__
from magrathea.core.model import Closing, Domain, Ended, Job, JobClass, JobKey, Kind, Lifecycle, Patience, StopWarning
from magrathea.core.moves import Letting, Ownership, Parcel, Says, Transfer, Word
from magrathea.core.refusals import RefusalCode
from magrathea.messages import (
    KNOWS_MOVES,
    MAX_BYTES,
    WISHES,
    BadMessage,
    decode_to_host,
    decode_to_hub,
    encode,
    knows,
    knows_moves,
    release,
)
from magrathea.move_messages import (
    MoveRefused,
    MoveWished,
    MoveWords,
    Ownerships,
    ParcelSent,
    WishRefused,
    ownerships_of,
    parcel_of,
    words_of,
)

JOB = Job(
    JobKey("7.srv", 2), JobClass.PREEMPTIBLE, 2, 100, 5.0, 6.0, stopped_since=8.0, warning=StopWarning("USR1", 2.0)
)
FACTS = Domain(
    "n1",
    Kind.NORMAL,
    4,
    lifecycle=Lifecycle.UP,
    preempted_s=12.5,
    jobs=(JOB,),
    ended=(Ended(JobKey("6.srv", 1), 4.0),),
    closing=Closing(False, Patience.DRAIN, 3.0),
)
PARCEL = Parcel(2, "a", 10.0, True, FACTS, "papers")


def test_words_arrive_as_they_were_said() -> None:
    words = (Word("n1", 1, Says.ASKS, "b"), Word("n2", 0, Says.OWNS))
    read = decode_to_hub(encode(words_of("a", words, frozenset({"c", "b"}), 3)))
    assert isinstance(read, MoveWords)
    assert tuple(told.word for told in read.words) == words
    assert (read.sender, read.welcome, read.most) == ("a", ["b", "c"], 3)


def test_records_arrive_as_they_were_told() -> None:
    records = (
        Ownership("n1", 1, "a", 5, Transfer(2, "a", "b", True, "", Letting.GONE, room='{"uri": ""}')),
        Ownership("n2", 4, "b", 9),
    )
    read = decode_to_host(encode(ownerships_of(records)))
    assert isinstance(read, Ownerships)
    assert tuple(told.record for told in read.records) == records


def test_a_parcel_arrives_with_all_facts_and_the_hub_passes_it_on_unread() -> None:
    at_the_hub = decode_to_hub(encode(parcel_of(PARCEL, "b")))
    assert isinstance(at_the_hub, ParcelSent) and at_the_hub.to == "b"
    read = decode_to_host(encode(at_the_hub))
    assert isinstance(read, ParcelSent)
    assert read.parcel == PARCEL


def test_a_refusal_arrives() -> None:
    refused = MoveRefused(domain="n1", number=1, code=RefusalCode.NO_VISITORS, text="b takes no domains from a")
    assert decode_to_host(encode(refused)) == refused


def forged(**changes: Any) -> ParcelSent:
    """A parcel with other facts. A key with a dot is of its job."""
    facts = msgspec.json.decode(msgspec.json.encode(FACTS))
    for name, value in changes.items():
        target, _, field = name.rpartition("__")
        (facts["jobs"][0] if target else facts)[field] = value
    message = msgspec.json.decode(encode(parcel_of(PARCEL, "b"))) | {"facts": facts}
    read = decode_to_host(msgspec.json.encode(message))
    assert isinstance(read, ParcelSent)
    return read


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "n2"},
        {"name": ""},
        {"cpus": -1},
        {"cpus": 2**41},
        {"memory_mib": 1.5},
        {"preempted_s": 1e20},
        {"kind": "root"},
        {"fault": "x" * 5000},
        {"jobs": None},
        {"a_newer_fact": 1},
        {"job__id_of_another_release": 1},
        {"job__key": ["7.srv;rm", 1]},
        {"job__key": ["@", 1]},
        {"job__key": ["7.srv", -1]},
        {"job__stopped_since": -1e30},
        {"job__warning": {"signal": "x" * 5000, "seconds": 1.0}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_facts_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadMessage):
        _ = forged(**changes).parcel


def test_a_job_is_not_taken_twice() -> None:
    twice = replace(PARCEL, facts=replace(FACTS, jobs=(JOB, JOB)))
    with pytest.raises(BadMessage):
        _ = parcel_of(twice, "b").parcel


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"type":"ownerships"}',
        b'{"type":"ownerships","records":[{"domain":"n1","number":-1,"owner":"a","revision":1}]}',
        b'{"type":"ownerships","records":[{"domain":"","number":1,"owner":"a","revision":1}]}',
        b'{"type":"ownerships","records":[],"more":1}',
        b'{"type":"move-words","sender":"a","words":[]}',
        b"[" * 100_000,
        b" " * (MAX_BYTES + 1),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_to_host(data)


@pytest.mark.parametrize(
    "words",
    [
        [{"domain": "n1", "number": 2**60, "says": "owns"}],
        [{"domain": "n1", "number": 1, "says": "takes"}],
        [{"domain": "n" * 256, "number": 1, "says": "owns"}],
        [{"domain": "n1", "number": 1, "says": "owns"}] * 257,
    ],
)
def test_words_beyond_their_bounds_are_refused(words: list[object]) -> None:
    with pytest.raises(BadMessage):
        decode_to_hub(msgspec.json.encode({"type": "move-words", "sender": "a", "words": words}))


@pytest.mark.parametrize(
    ("version", "known"),
    [(KNOWS_MOVES, True), (__version__, False), ("", False), ("9.0+sleep.moves", True), ("9.0+movesx", False)],
)
def test_who_knows_such_messages_says_so_in_the_version_of_his_heartbeats(version: str, known: bool) -> None:
    assert knows_moves(version) is known
    assert release(version) == version.partition("+")[0]


@pytest.mark.parametrize(
    ("version", "known"), [(KNOWS_MOVES, True), (f"{__version__}+moves", False), (__version__, False), ("", False)]
)
def test_only_who_knows_wishes_gets_some(version: str, known: bool) -> None:
    assert knows(version, WISHES) is known


def test_a_wish_and_its_refusal_arrive_as_they_were_sent() -> None:
    wish = MoveWished(domain="n1", number=3, to="b", why="preempted for 700 s")
    assert decode_to_host(encode(wish)) == wish
    no = WishRefused(sender="a", domain="n1", number=3, to="b", code=RefusalCode.NOT_MOVABLE, text="it runs")
    assert decode_to_hub(encode(no)) == no
