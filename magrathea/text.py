"""Makes texts from strangers (job ids, versions, reasons) safe to print: one line, no control characters, bounded."""

from __future__ import annotations

import json

MOST = 1000
"""Characters of one text in a log or an answer: longer than any sentence of ours."""


def printable(text: str, most: int = MOST) -> str:
    """`text` on one line. Control characters and the like are escaped, and a text that is too long is cut.

    Everything that Python calls unprintable is escaped: all kinds of line ends, terminals' escape sequences, characters
    that change the direction of writing, half surrogates.
    """
    cut = text if len(text) <= most else text[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def printable_json(text: str) -> str:
    """The same JSON in which all that `printable` would escape is escaped as JSON has it. Only line ends are left."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def one_line(text: str, most: int) -> str:
    """The same in ASCII and with single blanks, for what PBS keeps and shows: a comment of a job or a vnode."""
    return printable(" ".join(text.split())).encode("ascii", "backslashreplace").decode()[:most]
