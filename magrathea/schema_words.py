"""What a value must be, in words with choices: "a whole number from 1 to 64", "one of local, libvirt".

A library's own sentence about a wrong value names types and regular expressions, which administrators do not know. A
pattern says nothing to people, so a type with a pattern must have a `description`.
"""

from __future__ import annotations

from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec


def wanted(schema: Any) -> str:
    """What the type takes. `schema`: a type with its annotations."""
    origin, of = get_origin(schema), get_args(schema)
    if origin is Annotated:
        return _annotated(of[0], [meta for meta in of[1:] if isinstance(meta, msgspec.Meta)])
    if origin is Literal:
        return _choice(of)
    if origin in (Union, UnionType):
        return " or ".join(wanted(one) for one in of if one is not NoneType)
    if origin is list:
        return f"a list; each entry is {wanted(of[0])}"
    if isinstance(schema, type) and issubclass(schema, Enum):
        return _choice([one.value for one in schema])
    return _NAMES.get(schema, "a table of keys and values")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _choice(values: Any) -> str:
    return f"one of {', '.join(str(value) for value in values if value != '')}" + (' or ""' if "" in values else "")


def _annotated(base: Any, metas: list[msgspec.Meta]) -> str:
    text, least, most, bounds = wanted(base), "", "", ""
    for meta in metas:
        if meta.description:
            return meta.description
        if meta.ge is not None:
            least = f"at least {_plain(meta.ge)}"
        elif meta.gt is not None:
            least = f"above {_plain(meta.gt)}"
        if meta.le is not None:
            most = f"at most {_plain(meta.le)}"
        if meta.min_length:
            bounds += f", with at least {meta.min_length} {_parts(base)}"
        if meta.max_length is not None:
            bounds += f", with at most {meta.max_length} {_parts(base)}"
    return text + bounds + (f", {' and '.join(part for part in (least, most) if part)}" if least or most else "")


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _parts(base: Any) -> str:
    return "entries" if get_origin(base) is list else "letters"
