"""Bytes as lines, and lines of JSON as values whose types are checked.

This module, `refusals`, `sessions`, `parts` and `wire` import nothing else of the agent: the node daemon uses them too.
"""

import json
import os
import sys
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, NoReturn, Optional

    Doc = Dict[str, Any]

MAX_LINE_BYTES = 65536  # newline included
MAX_DIGITS = 1000  # of an integer: before Python 3.11, reading a million digits takes minutes
MAX_FLOAT = sys.float_info.max
MAX_NATURAL = 1 << 53  # of ids and the like: other programs read larger integers as floats


class BadValue(Exception):
    """Input is wrong. The text names the field, its value and what is allowed."""


def field(doc: "Doc", name: str, kind: type, default: "Any" = None) -> "Any":
    """`doc[name]`, which must be of `kind` (bool is no int). Required if there is no default. Raises BadValue."""
    value = doc.get(name, default)
    if value is None and default is None:
        raise BadValue("field %s is missing" % name)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not -MAX_FLOAT <= value <= MAX_FLOAT:  # too large an integer, infinity, or NaN
            raise BadValue("field %s is %.60r, it must be a finite number" % (name, value))
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadValue("field %s is %.60r, it must be %s" % (name, value, kind.__name__))
    return value


def natural(doc: "Doc", name: str, most: int = MAX_NATURAL) -> int:
    """`doc[name]`, an integer from 0 to `most`. Raises BadValue."""
    value = field(doc, name, int)
    if not 0 <= value <= most:
        raise BadValue("field %s is %.60r, it must be from 0 to %d" % (name, value, most))
    return int(value)


def parse(line: bytes) -> "Doc":
    """A line of JSON as an object. Raises BadValue."""
    try:
        doc = json.loads(line.decode("utf-8"), parse_int=_bounded_int, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadValue("no JSON: %s" % error) from error
    if not isinstance(doc, dict):
        raise BadValue("no JSON object")
    return doc


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number of %d digits" % len(digits))
    return int(digits)


def _no_constant(name: str) -> "NoReturn":
    raise ValueError("%s is no JSON number" % name)


def encode(doc: "Doc") -> bytes:
    """A line with its newline, in ASCII. Raises TypeError or ValueError for what is no JSON."""
    return json.dumps(doc, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


class LineReader:
    """Cuts a stream into lines. A line that is too long is dropped up to its newline."""

    def __init__(self, skip_first: bool, most_bytes: int = MAX_LINE_BYTES) -> None:
        self.most_bytes = most_bytes
        self.buffer = bytearray()
        self.begin = 0  # of the bytes that were not returned yet
        self.searched = 0
        self.skipping = skip_first
        self.oversize = False
        self.dropped = 0  # bytes in all that were thrown away without a line's end

    def add(self, data: bytes) -> None:
        self.buffer += data

    def has_line(self) -> bool:
        end = self.buffer.find(b"\n", self.searched)
        self.searched = end if end >= 0 else len(self.buffer)
        if end < 0 and len(self.buffer) - self.begin >= self.most_bytes:
            self.oversize = not self.skipping
            self._clear()
        elif end < 0 and self.begin:
            del self.buffer[: self.begin]
            self.searched -= self.begin
            self.begin = 0
        return end >= 0

    def _clear(self) -> None:
        self.dropped += len(self.buffer) - self.begin
        self.buffer.clear()
        self.begin = self.searched = 0

    def next_line(self) -> "Optional[bytes]":
        """The next line without its newline; empty if it is to be skipped, None if it was too long."""
        line = bytes(self.buffer[self.begin : self.searched])
        self.begin = self.searched = self.searched + 1
        oversize = not self.skipping and (self.oversize or len(line) >= self.most_bytes)
        skipped, self.skipping, self.oversize = self.skipping, False, False
        return None if oversize else b"" if skipped else line


class LineWriter:
    """Bytes that wait until a descriptor takes them."""

    def __init__(self) -> None:
        self.pieces: "Deque[bytes]" = deque()
        self.size = 0

    def add(self, data: bytes) -> None:
        if data:
            self.pieces.append(data)
            self.size += len(data)

    def flush(self, fd: int) -> bool:
        """Write what can be written. True if nothing is left. Raises OSError if the peer has gone."""
        while self.pieces:
            piece = self.pieces[0]
            try:
                sent = os.write(fd, piece)
            except (BlockingIOError, InterruptedError):
                return False
            self.size -= sent
            if sent == len(piece):
                self.pieces.popleft()
            else:
                self.pieces[0] = piece[sent:]
        return True
