"""Bytes as lines, lines as JSON."""

from __future__ import annotations

import os

import pytest

from node_daemon.agent.lines import MAX_LINE_BYTES, BadValue, LineReader, parse


def feed(reader: LineReader, data: bytes) -> list[bytes | None]:
    """The lines that are complete with these bytes."""
    reader.add(data)
    found = []
    while reader.has_line():
        found.append(reader.next_line())
    return found


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"1", b"{", b'{"a":NaN}', b"\xff\xfe{}", b'{"a":' + b"[" * 30000 + b"]" * 30000 + b"}", b"nul"]
)
def test_a_line_that_is_no_json_object_is_refused(line: bytes) -> None:
    with pytest.raises(BadValue):
        parse(line)


def test_lines_arrive_whole_however_they_are_cut() -> None:
    reader = LineReader(skip_first=False)
    text = b"one\ntwo\n\nthree\n"
    got = [line for at in range(len(text)) for line in feed(reader, text[at : at + 1])]
    assert got == [b"one", b"two", b"", b"three"]


def test_bytes_before_the_first_newline_are_dropped() -> None:
    reader = LineReader(skip_first=True)
    assert feed(reader, b'half of a line"}') == []
    assert feed(reader, b'\n{"a":1}\n') == [b"", b'{"a":1}']


def test_a_line_that_is_too_long_is_dropped_and_reported_and_the_next_one_is_good() -> None:
    reader = LineReader(skip_first=False)
    got: list[bytes | None] = []
    for _ in range(40):
        got += feed(reader, b"x" * 10000)
    assert got == []
    assert len(reader.buffer) < 2 * MAX_LINE_BYTES
    assert feed(reader, b"\ngood\n") == [None, b"good"]


def test_megabytes_without_a_newline_before_the_first_hello_are_no_bad_line() -> None:
    reader = LineReader(skip_first=True)
    for _ in range(40):
        assert feed(reader, b"x" * 10000) == []
    assert feed(reader, b"\ngood\n") == [b"", b"good"]


def test_what_was_read_is_not_kept() -> None:
    """Else each read would move all bytes that ever came."""
    reader = LineReader(False)
    data = os.urandom(4000).hex().encode() * 8 + b"\n"
    found = 0
    for _ in range(4):
        for at in range(0, len(data), 1000):
            found += len(feed(reader, data[at : at + 1000]))
            assert len(reader.buffer) <= len(data) + 1000
    assert found == 4
