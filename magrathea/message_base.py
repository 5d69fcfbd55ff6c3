"""What all messages between node daemons and hub are made of: their base, their bounds, their encoding.

The messages themselves: messages.py, which also has everything of this module; those about moves: move_messages.py.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from . import job_ids
from .decoding import UNDECODABLE

MAX_BYTES = 4 * 1024 * 1024
"""A larger message is refused unread: 64 domains of 200 jobs are about 3 MiB."""

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
"""Names of hosts, domains and vnodes; 255 is PBS's limit for a vnode's name."""

JobId = Annotated[str, msgspec.Meta(pattern=job_ids.PATTERN, max_length=job_ids.MOST)]

Sentence = Annotated[str, msgspec.Meta(max_length=4096)]
MOST_COUNT = 2**40
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNT)]
Rank = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31)]
Time = Annotated[float, msgspec.Meta(ge=0, le=2**36)]
"""Seconds. 2**36 as a date is in the year 4147, which all of Python's calendars can still handle."""

MOST_DOMAINS, MOST_JOBS, MOST_NOTES, MOST_REFUSED, MOST_ENTRIES = 256, 8192, 1024, 64, 10_000
"""In one message: far more than any host has, but few enough to bound a snapshot's memory and time."""


class BadMessage(Exception):
    """A message is too large, not JSON, of an unknown type, or has a wrong field; the text names it."""


class Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True, frozen=True):
    """Base of all messages; the tag is the class's name in lower case."""


_encoder = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    """What `decoder` finds in `data`. Raises BadMessage."""
    if len(data) > MAX_BYTES:
        raise BadMessage(f"message of {len(data)} bytes; the limit is {MAX_BYTES}")
    try:
        return decoder.decode(data)
    except UNDECODABLE as error:  # ValidationError is one of them
        raise BadMessage(str(error)) from error
