"""Make inputs out of samples. All choices come from one `random.Random`, so a seed repeats them.

Three kinds of changes: of bytes; of a value in a line of JSON, by anything; and of a value by another of its kind. The
last kind passes decoders, and reaches what is behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Any

MOST_BYTES = 64 * 1024
"""Longer inputs are cut: readers refuse them by length, and they would only slow the search down."""

WORDS = (
    *(b"\xff", b"\xc3", b"\0", b"\n", b"\r\n", b"\x1b[31m", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000"),
    *(b"'", b'"', b"\\", b"+", b":", b"=", b"(", b")", b"[", b"]", b"{", b"}", b",", b" ", b"\t", b"/", b"..", b"%s"),
    *(b"0", b"-1", b"9" * 400, b"9" * 5000, b"1e400", b"-1e400", b"NaN", b"Infinity", b"null", b"true", b"1.5"),
    *(b"[" * 1500, b'{"a":' * 1500, b"x" * 300, b"x" * 5000, b"magrathea_accepts=priority", b"2147483648"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("inf"), float("nan")),
    *(2**31 - 1, 2**31, 2**40, 2**53, 2**63, 2**64, -(2**63), 10**400),
    *("", " ", "\0", "\ud800", "\n", "\x1b[2J", "\u2028", "%s", "{}", "../../etc/passwd", "x" * 255, "x" * 5000, "é"),
    *([], {}, [[]], [{}], {"": None}, [0] * 300, [""] * 300, {"type": "hello"}),
)


def mutated(samples: Sequence[bytes], random: Random) -> bytes:
    """One of the samples with one to six changes."""
    data = random.choice(samples)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        kind = random.random()
        if kind < 0.3:
            data = _changed_bytes(data, samples, random)
        elif kind < 0.6:
            data = _changed_json(data, random)
        else:
            data = _changed_kindly(data, samples, random)
    return data[:MOST_BYTES]


# Bytes


def _changed_bytes(data: bytes, samples: Sequence[bytes], random: Random) -> bytes:
    at = random.randint(0, len(data))
    end = min(len(data), at + random.choice((1, 1, 2, 4, 16, 64, 1024)))
    match random.randrange(7):
        case 0:
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + random.choice(WORDS) + data[at:]
        case 2:
            return data[:at] + random.choice(WORDS) + data[end:]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:at] + data[at:end] * random.choice((2, 3, 10, 300)) + data[end:]
        case 5:
            other = random.choice(samples)
            begin = random.randint(0, len(other))
            return data[:at] + other[begin : begin + 1024] + data[end:]
        case _:
            return data[:at]


# A line of JSON


def _changed_json(data: bytes, random: Random) -> bytes:
    """The same lines with one value of one line changed; changed bytes if that line is no JSON."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    try:
        document = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _changed_bytes(data, (data,), random)
    try:
        lines[at] = json.dumps(_changed_value(document, random)).encode()
    except (ValueError, RecursionError):
        return data
    if random.random() < 0.1:
        lines.insert(random.randrange(len(lines)), lines[at])
    return b"\n".join(lines)


def _changed_value(value: Any, random: Random) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.9:
        name = random.choice(list(value))
        match random.randrange(6):
            case 0:
                return {key: one for key, one in value.items() if key != name}
            case 1:
                return {**value, name: value[random.choice(list(value))]}
            case 2:
                return {**value, random.choice(("", "type", "op", "id", "jobs", "x" * 300, "\ud800")): value[name]}
            case _:
                return {**value, name: _changed_value(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        if random.random() < 0.2:
            return value[:at] + [value[at]] * random.choice((0, 2, 300)) + value[at + 1 :]
        return [*value[:at], _changed_value(value[at], random), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.5:
        return value + random.choice((-1, 1, 2**31, -(2**31), 2**53))
    return random.choice(VALUES)


# By others of its kind

NUMBERS = (-1, 0, 1, 2, 3, 42, 43, 64, 4096, 2**31 - 1, 2**31, 2**40, 0.5, 1.0, 3600.0, 1e9, 1_800_000_000.0, 2.0**36)


def _changed_kindly(data: bytes, samples: Sequence[bytes], random: Random) -> bytes:
    """The same lines in another order, or more or fewer of them, or with other values of the same kinds."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(8):
        case 0:
            lines.insert(random.randrange(len(lines) + 1), lines.pop(at))
        case 1:
            lines.insert(at, lines[random.randrange(len(lines))])
        case 2:
            lines.insert(at, random.choice(random.choice(samples).split(b"\n")))
        case 3 if len(lines) > 1:
            del lines[at]
        case _:
            try:
                document = json.loads(lines[at])
                known = _kinds(random.choice(samples))
                for _ in range(random.choice((1, 1, 1, 2, 5))):
                    document = _kindly(document, known, random)
                lines[at] = json.dumps(document, separators=(",", ":")).encode()
            except (ValueError, RecursionError):
                return _changed_bytes(data, samples, random)
    return b"\n".join(lines)


@lru_cache(maxsize=1000)
def _kinds(sample: bytes) -> dict[tuple[str, type], list[Any]]:
    """The values of a sample, by their name and type and by their type alone."""
    found: dict[tuple[str, type], list[Any]] = {}
    for line in sample.split(b"\n"):
        try:
            for name, value in _values("", json.loads(line)):
                found.setdefault((name, type(value)), []).append(value)
                found.setdefault(("", type(value)), []).append(value)
        except (ValueError, RecursionError):
            continue
    return found


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _values(key, one)
    elif isinstance(value, list):
        for one in value:
            yield from _values(name, one)


def _kindly(value: Any, known: dict[tuple[str, type], list[Any]], random: Random, name: str = "") -> Any:
    """The value with one part replaced by another of its kind."""
    if isinstance(value, dict) and value and random.random() < 0.95:
        name = random.choice(list(value))
        return {**value, name: _kindly(value[name], known, random, name)}
    if isinstance(value, list) and random.random() < 0.9:
        at = random.randrange(len(value) + 1)
        same = known.get((name, dict)) or known.get((name, str)) or []
        match random.randrange(4):
            case 0 if value:
                return [*value[:at], random.choice(value), *value[at:]]
            case 1 if same:
                return [*value[:at], random.choice(same), *value[at:]]
            case 2:
                return value[:at] + value[at + 1 :]
            case _ if value:
                at = min(at, len(value) - 1)
                return [*value[:at], _kindly(value[at], known, random, name), *value[at + 1 :]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and random.random() < 0.5:
        return type(value)(random.choice(NUMBERS)) if random.random() < 0.5 else value + random.choice((-1, 1))
    return random.choice(known.get((name, type(value))) or known.get(("", type(value))) or [value])
