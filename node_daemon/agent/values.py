"""Values from outside, checked by type and bounds before anything uses them; lines of JSON."""

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

    Doc = Dict[str, Any]
    Key = Tuple[str, int]
    Reply = Callable[[Doc], None]

JOB_ID = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.@:+\-\[\]]{0,254}\Z")


class BadValue(Exception):
    """Something from outside is not what it must be; the text names the field, its value and what is allowed."""


class Unusable(Exception):
    """The agent cannot start like this; the text says what to fix."""


def field(doc: "Doc", name: str, kind: type, default: "Any" = None) -> "Any":
    """`doc[name]`, which must be of `kind` (bool is no int). Without a default it must be there. Raises BadValue."""
    value = doc.get(name, default)
    if value is None and default is None:
        raise BadValue("field %s is missing" % name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadValue("field %s is %.60r, it must be %s" % (name, value, kind.__name__))
    return value


def seconds(doc: "Doc", name: str, default: float, low: float, high: float) -> float:
    """A time within bounds; one outside them is brought to the nearest bound."""
    value = field(doc, name, float, default)
    return float(max(low, min(high, value)))


def job_key(doc: "Doc") -> "Key":
    """(job id, run version) of a message. Raises BadValue."""
    id = field(doc, "id", str)
    run = field(doc, "run", int)
    if not JOB_ID.match(id) or ".." in id:
        raise BadValue("job id %.80r is none of PBS's" % id)
    if not 0 <= run < 1 << 31:
        raise BadValue("run %r of job %s must be from 0 to 2^31-1" % (run, id))
    return id, run


def words(doc: "Doc", name: str, most: int) -> "List[str]":
    """A list of at most so many names; empty where there is none. Raises BadValue."""
    values = field(doc, name, list, [])
    if len(values) > most or not all(isinstance(value, str) and 0 < len(value) < 256 for value in values):
        raise BadValue("field %s must be a list of up to %d names" % (name, most))
    return list(values)


def count(doc: "Doc", name: str, default: "Optional[int]" = None) -> int:
    """An integer that fits a message; whether it makes sense is decided by the daemon's core. Raises BadValue."""
    value = field(doc, name, int, default)
    if not -(1 << 40) < value < 1 << 40:
        raise BadValue("field %s is %r, it must fit in 40 bits" % (name, value))
    return int(value)


def parse(line: bytes) -> "Doc":
    """A line of JSON as an object. Raises BadValue."""
    try:
        doc = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadValue("no JSON: %s" % error) from error
    if not isinstance(doc, dict):
        raise BadValue("no JSON object")
    return doc


def _no_constant(name: str) -> "NoReturn":
    raise ValueError("%s is no JSON number" % name)


def encode(doc: "Doc") -> bytes:
    return json.dumps(doc, separators=(",", ":")).encode("utf-8") + b"\n"


def refusal(code: str, text: str, retry_after_s: "Optional[float]" = None) -> "Doc":
    answer: "Doc" = {"ok": False, "code": code, "text": text}
    if retry_after_s is not None:
        answer["retry_after_s"] = retry_after_s
    return answer
