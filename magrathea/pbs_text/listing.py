"""What `qmgr` lists and `qstat -f -w` prints: a heading for each object, an attribute a line.

The product does not read `qstat -F json`: a value becomes whatever it looks like (`pbs_json_insert_parsed` in
pbs_cjson.c), so that a queue `null` loses its name and one called `007` becomes a 7, for good.

Rule 1: bytes that are no UTF-8 survive (`decoded`), so that a value can be given back to PBS as it was.
Rule 2: a line ends with a newline and nothing else. PBS prints one within a value as `\\n` or goes on after a tab.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

QSTAT_JOB, QSTAT_QUEUE = "Job Id:", "Queue:"
"""What stands before an object's name in `qstat -f -w` and `qstat -Q -f -w`; qmgr says Queue, Node and so on."""

QSTAT_ENVIRONMENT = {"LC_ALL": "C"}
"""In a locale of UTF-8 qstat puts each letter beyond ASCII into one byte, and most are lost."""


def decoded(output: bytes) -> str:
    """A program's output. What is no UTF-8 becomes surrogates, which os.fsencode turns back."""
    return output.decode("utf-8", "surrogateescape")


def listed(text: str, headings: Iterable[str]) -> dict[str, dict[str, str]]:
    """Attributes by object's name, of the objects with one of these words before their name; others are left out.

    Long values go on in lines that begin with a tab.
    """
    heading = re.compile(rf"(?:{'|'.join(map(re.escape, headings))}) (\S+)")
    objects: dict[str, dict[str, str]] = {}
    attributes: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        if line.startswith("\t"):
            if last:
                attributes[last] += line.strip()
        elif line.startswith("    "):
            last, equals, value = line.strip().partition(" = ")
            if not equals:
                last = ""
                continue
            attributes[last] = value.strip()
        elif line:
            match = heading.fullmatch(line)
            attributes = objects.setdefault(match[1], {}) if match else {}
            last = ""
    return objects
