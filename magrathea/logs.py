"""The log of the hub and of the node daemon: what strangers say can neither forge a line of it nor flood it.

Rule 1: every message is one line without control characters (text.py), whatever is in it. A traceback has lines of its
own, each behind BAR, so that no line of it can be taken for a message or for a priority of journald ("<3>").
Rule 2: what a stranger can cause to be logged goes through `Complaints`: one line for each kind and minute, with the
number of those left out. Kinds are ours, or names that are bounded in number; never a stranger's text.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Hashable

from .text import printable

MOST = 4000
"""Characters of a message: the longest sentence that a message may hold."""
BAR = "  | "
PERIOD_S = 60.0
MOST_KINDS = 1000
"""Kinds that are told apart within one period; further ones share a line."""


def configure(level: str, form: str) -> None:
    """Log to stderr from here on, each message as `form` says. journald adds the time itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(form if "JOURNAL_STREAM" in os.environ else f"%(asctime)s {form}"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class Formatter(logging.Formatter):
    """See Rule 1."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, MOST)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(BAR + printable(line) for line in text.split("\n"))


class _Kind:
    def __init__(self, told_at: float) -> None:
        self.told_at = told_at
        self.left_out = 0


class Complaints:
    """Warnings about what strangers do. See Rule 2."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}

    def say(self, kind: Hashable, text: str, error: BaseException | None = None, level: int = logging.WARNING) -> None:
        """Log `text` unless something of this kind was logged less than a minute ago; with `error`, its traceback."""
        now = self._clock()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds = {k: one for k, one in self._kinds.items() if now - one.told_at < PERIOD_S}
            if len(self._kinds) >= MOST_KINDS:
                kind = "more kinds than are told apart"
                known = self._kinds.get(kind)
        if known is not None and now - known.told_at < PERIOD_S:
            known.left_out += 1
            return
        more = f" (and {known.left_out} more of the kind since)" if known is not None and known.left_out else ""
        self._kinds[kind] = _Kind(now)
        self._log.log(logging.ERROR if error else level, "%s%s", text, more, exc_info=error)
