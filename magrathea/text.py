"""Text of strangers (job ids, versions, reasons), made fit to be printed: one line, no control characters, bounded."""

from __future__ import annotations

MOST = 1000
"""Characters of one text in a log or an answer: longer than any sentence of ours."""


def printable(text: str, most: int = MOST) -> str:
    """`text` on one line: a control character or the like becomes its escape, and what is too long is cut.

    What Python does not call printable is escaped: line ends of all kinds, escape sequences of terminals, characters
    that change the direction of writing, half surrogates.
    """
    cut = text if len(text) <= most else text[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
