"""The output of `qmgr` lists and of `qstat -f -w`: a heading for each object, a line for each attribute.

The product does not read `qstat -F json`, because it changes the types of values (`pbs_json_insert_parsed` in
pbs_cjson.c). A queue named `null` loses its name there, and one named `007` becomes a 7.

Rule 1: bytes that are not UTF-8 survive (`decoded`), so that a value can be given back to PBS unchanged.
Rule 2: a line ends with a newline and nothing else. PBS prints a newline inside a value as `\\n`, or continues the
value in the next line after a tab.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

QSTAT_JOB, QSTAT_QUEUE = "Job Id:", "Queue:"
"""The words before an object's name in `qstat -f -w` and `qstat -Q -f -w`; qmgr's are Queue, Node and so on."""

QSTAT_ENVIRONMENT = {"LC_ALL": "C"}
"""In a UTF-8 locale qstat puts each letter beyond ASCII into one byte, and most are lost."""


def decoded(output: bytes) -> str:
    """A program's output as text. Bytes that are not UTF-8 become surrogates, which os.fsencode turns back."""
    return output.decode("utf-8", "surrogateescape")


def listed(text: str, headings: Iterable[str]) -> dict[str, dict[str, str]]:
    """Attributes by object's name, for objects with one of these headings; other objects are left out.

    Long values continue in lines that begin with a tab.
    """
    return _listed(text, re.compile(rf"(?:{'|'.join(map(re.escape, headings))}) (\S+)"))


def listed_vnodes(text: str) -> dict[str, dict[str, str]]:
    """Attributes by vnode, of `pbsnodes -av`: its heading is the name alone."""
    return _listed(text, re.compile(r"(\S+)"))


def _listed(text: str, heading: re.Pattern[str]) -> dict[str, dict[str, str]]:
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
