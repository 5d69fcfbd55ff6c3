"""The log of the hub and of the node daemon: texts from strangers can neither forge a line nor flood it.

Rule 1: every message is one line without control characters (text.py), whatever it contains. Each line of a traceback
begins with BAR, so that none can be taken for a message or for a priority of journald ("<3>").
Rule 2: log entries that a stranger can cause go through `RationedLog`: one line for each kind and minute, with the
number of omitted ones. Kinds are our own words or names of a bounded set, never a stranger's text.
Rule 3: as a last resort each place in the program may log SITE_BURST lines at once, then one every SITE_PERIOD_S. Debug
messages are exempt.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Hashable

from .budget import Budget
from .text import printable

MOST = 4000
"""Characters of a message: the longest sentence that a protocol message can hold."""
BAR = "  | "
PERIOD_S = 60.0
SITE_BURST, SITE_PERIOD_S = 1000.0, 0.02
MOST_KINDS = 1000
"""Different kinds within one period; all further kinds share one."""
TIDY_S = 1.0
"""Least time between two searches for kinds that may be forgotten: a stranger who makes up kinds causes no more."""


def configure(level: str, form: str) -> None:
    """Log to stderr from now on, each message in the layout `form`. journald adds the time itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(form if "JOURNAL_STREAM" in os.environ else f"%(asctime)s {form}"))
    handler.addFilter(SiteRation())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class Formatter(logging.Formatter):
    """See Rule 1."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, MOST)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(BAR + printable(line) for line in text.split("\n"))


class SiteRation(logging.Filter):
    """See Rule 3."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._rations = Rations(SITE_BURST, SITE_PERIOD_S, clock)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        more = self._rations.take((record.pathname, record.lineno))
        if more is None:
            return False
        record.msg = f"{record.msg}{more}"
        return True


class Rations:
    """How many lines of each kind are allowed: `burst` at once, then one every `period_s`."""

    def __init__(self, burst: float, period_s: float, clock: Callable[[], float]) -> None:
        self._burst, self._period_s = burst, period_s
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}
        self._tidied_at = -math.inf

    def take(self, kind: Hashable) -> str | None:
        """Text about omitted lines, to add to this one; None if this line must be omitted too."""
        now = self._clock()
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
            self._tidy(now)
            if len(self._kinds) >= MOST_KINDS:
                kind = "too many kinds to count each"
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(Budget(1 / self._period_s, self._burst, now))
        known = self._kinds[kind]
        if not known.budget.take(now):
            known.left_out += 1
            return None
        left_out, known.left_out = known.left_out, 0
        return f" (and {left_out} more like this since)" if left_out else ""

    def _tidy(self, now: float) -> None:
        if now - self._tidied_at >= TIDY_S:
            self._tidied_at = now
            self._kinds = {k: known for k, known in self._kinds.items() if not known.budget.is_full(now)}


class RationedLog:
    """A log for entries that strangers cause; see Rule 2. `burst` lines of a kind at once, then one every
    `period_s`."""

    def __init__(
        self,
        log: logging.Logger,
        burst: float = 1.0,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._rations = Rations(burst, period_s, clock)

    def say(self, kind: Hashable, text: str, error: BaseException | None = None, level: int = logging.WARNING) -> None:
        """Log `text`, unless too many lines of this kind were logged lately; with `error`, its traceback."""
        if not self._log.isEnabledFor(level) or (more := self._rations.take(kind)) is None:
            return
        self._log.log(logging.ERROR if error else level, "%s%s", text, more, exc_info=error, stacklevel=2)


class _Kind:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.left_out = 0
