"""Strict TOML: turns a file into typed data, or reports every mistake with its line and its fix.

Rule 1: nothing is guessed or ignored. An unknown key, a wrong type or an impossible value is a mistake.
Rule 2: all mistakes of a file are reported at once, so that an administrator can fix them in one go.

A schema is a tree of msgspec Structs; a table with free names (`[domain.NAME]`) is a `dict[str, Struct]`. Types cannot
express everything (sums, names that must match); the caller checks the rest and adds `Problem`s.
"""

from __future__ import annotations

import codecs
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from . import files
from .schema_words import wanted
from .text import printable

T = TypeVar("T", bound=msgspec.Struct)

AbsolutePath = Annotated[
    str, msgspec.Meta(pattern=r"^/", max_length=4096, description="a path in quotes that begins with /")
]

MAX_BYTES = 1024 * 1024
"""A larger file is no configuration; a thousand domains take a tenth of it."""
MOST_SHOWN = 80
"""Characters of a wrong value that are shown."""


BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Some editors put one before the text."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: its place (`("domain", "n1", "kind")`), and a sentence with the mistake and its fix."""

    where: tuple[str, ...]
    text: str


class ConfigurationError(Exception):
    """A file cannot be used. `problems`: sentences, each with file, line (if known), value and fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigurationError."""
    try:
        data = files.read_named(path, MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}; give its name with --config"]) from error
    if len(data) > MAX_BYTES:
        raise ConfigurationError([f"{path}: too long; a configuration has at most {MAX_BYTES} bytes"])
    if data.startswith(BYTE_ORDER_MARKS):
        raise ConfigurationError(
            [f"{path}: begins with a byte order mark; save the file as UTF-8 without one (no BOM)"]
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"]) from error


def parse(text: str, schema: type[T], name: str) -> tuple[T, dict[str, Any]]:
    """`text` as a `schema` and as plain tables, which show what was given at all. Raises ConfigurationError."""
    try:
        tables = tomllib.loads(text)
    # TOMLDecodeError is a ValueError; so is the error for an integer of 5,000 digits
    except (ValueError, RecursionError) as error:
        raise ConfigurationError([f"{name}: not TOML: {error}"]) from error
    if problems := mistakes(tables, schema):
        raise configuration_error(problems, text, name)
    return msgspec.convert(tables, schema), tables


def mistakes(value: Any, schema: Any) -> list[Problem]:
    """All mistakes in a value that should become a `schema`."""
    return list(_check(value, schema, ()))


def configuration_error(problems: Iterable[Problem], text: str, name: str) -> ConfigurationError:
    """The error that reports `problems` of the file `name`, with their lines in `text`."""
    told = []
    for problem in problems:
        line = line_of(text, problem.where)
        told.append(f"{name}{f', line {line}' if line else ''}: {problem.text}")
    return ConfigurationError(told)


def _check(value: Any, schema: Any, where: tuple[str, ...]) -> Iterable[Problem]:
    optional = [s for s in get_args(schema) if isinstance(s, type) and issubclass(s, msgspec.Struct)]
    if get_origin(schema) is UnionType and optional:  # TOML has no null, so a given value must be the table
        schema = optional[0]
    if isinstance(schema, type) and issubclass(schema, msgspec.Struct):
        yield from _check_table(value, schema, where)
    elif get_origin(schema) is dict and isinstance(get_args(schema)[1], type):
        if not isinstance(value, Mapping):
            yield Problem(where, f"`{'.'.join(where)}` must be a table [{'.'.join(where)}.NAME]")
            return
        for key, one in value.items():
            yield from _check(one, get_args(schema)[1], (*where, key))
    elif any(isinstance(one, str) and "\0" in one for one in (value if isinstance(value, list) else [value])):
        yield Problem(where, f"{spelled(where)} = {value!r}: NUL (\\u0000) is in no path and no name; remove it")
    else:
        try:
            msgspec.convert(value, schema)
        except msgspec.ValidationError:
            yield Problem(where, f"{spelled(where)} = {printable(repr(value), MOST_SHOWN)}: give {wanted(schema)}")


def _check_table(value: Any, schema: type[msgspec.Struct], where: tuple[str, ...]) -> Iterable[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(where, f"`{'.'.join(where)}` must be a table [{'.'.join(where)}], not {value!r}")
        return
    hints = get_type_hints(schema, include_extras=True)
    fields = {field.encode_name: field for field in msgspec.structs.fields(schema)}
    former: Mapping[str, str] = getattr(schema, "FORMER", {})
    for key, one in value.items():
        if key in fields:
            yield from _check(one, hints[fields[key].name], (*where, key))
        elif key in former:
            yield Problem((*where, key), f"{spelled((*where, key))} no longer exists: {former[key]}")
        else:
            near = difflib.get_close_matches(key, fields, n=1)
            fix = f"did you mean `{near[0]}`?" if near else "remove it."
            yield Problem((*where, key), f"{spelled((*where, key))} is not known; {fix} Known: {', '.join(fields)}")
    for name, field in fields.items():
        if field.required and name not in value:
            yield Problem(where, f"{spelled((*where, name))} is missing; add it")


def spelled(where: tuple[str, ...]) -> str:
    """A place as people write it: "`cpus` in [domain.n1]"."""
    if len(where) < 2:
        return f"`{'.'.join(where)}`" if where else "the file"
    return f"`{where[-1]}` in [{'.'.join(where[:-1])}]"


_HEADER = re.compile(r"^\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}")
_KEY = re.compile(r"^\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", dotted))


def line_of(text: str, where: tuple[str, ...]) -> int | None:
    """The line number (from 1) of the key `where`, else of the nearest table around it, else None."""
    table: tuple[str, ...] = ()
    lines: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parts(header.group(1))
            path = table
        elif key := _KEY.match(line):
            path = (*table, *_parts(key.group(1)))
        else:
            continue
        for end in range(1, len(path) + 1):
            lines.setdefault(path[:end], number)
    for end in range(len(where), 0, -1):
        if where[:end] in lines:
            return lines[where[:end]]
    return None
