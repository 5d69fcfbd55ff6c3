"""Check types and bounds of input before anything uses it."""

import re

from .lines import BadValue, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional, Tuple

    from .lines import Doc

    Key = Tuple[str, int]
    Reply = Callable[[Doc], None]

JOB_ID = re.compile(
    r"\A[0-9]{1,12}(\[[0-9]{1,10}\])?\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[0-9]{1,5})?\Z"
)  # magrathea/job_ids.py
LONGEST_JOB_ID = 255


def is_text(value: "Any") -> bool:
    """Whether the system takes this as a name: a text without NUL that can be encoded."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Unusable(Exception):
    """The agent cannot start; the text explains what to fix."""


def seconds(doc: "Doc", name: str, default: float, low: float, high: float) -> float:
    """A time; one that is out of bounds becomes the nearest bound. Raises BadValue."""
    value = field(doc, name, float, default)
    return float(max(low, min(high, value)))


def job_key(doc: "Doc") -> "Key":
    """Job id and run version of a message. Raises BadValue."""
    id = field(doc, "id", str)
    run = field(doc, "run", int)
    if len(id) > LONGEST_JOB_ID or not JOB_ID.match(id):
        raise BadValue("job id %.80r is no valid id of PBS" % id)
    if not 0 <= run < 1 << 31:
        raise BadValue("run %r of job %s must be from 0 to 2^31-1" % (run, id))
    return id, run


def directory(doc: "Doc", name: str) -> str:
    """An absolute path. Raises BadValue."""
    value = field(doc, name, str)
    if not is_text(value) or not value.startswith("/") or len(value) >= 4096:
        raise BadValue("field %s is %.60r, it must be an absolute path" % (name, value))
    return str(value)


def _is_word(value: "Any") -> bool:
    return isinstance(value, str) and 0 < len(value) < 256 and value.isprintable()


def words(doc: "Doc", name: str, most: int) -> "List[str]":
    """A list of at most `most` names; empty if the field is missing. Raises BadValue."""
    values = field(doc, name, list, [])
    if len(values) > most or not all(_is_word(value) for value in values):
        raise BadValue("field %s must be a list of up to %d names" % (name, most))
    return list(values)


def count(doc: "Doc", name: str, default: "Optional[int]" = None) -> int:
    """An integer that fits in a message. The daemon's core decides whether it makes sense. Raises BadValue."""
    value = field(doc, name, int, default)
    if not -(1 << 40) < value < 1 << 40:
        raise BadValue("field %s is %r, it must fit in 40 bits" % (name, value))
    return int(value)
