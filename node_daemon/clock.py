"""The host's clock: Unix seconds that never go back and go on while the machine sleeps.

It starts at the wall clock's time or the journal's last time, whichever is later, and goes on by CLOCK_BOOTTIME.
Setting the wall clock moves no deadline, and facts from before a restart are never in the future.
"""

from __future__ import annotations

import time


class Clock:
    """`now()` in seconds; `at_least` is the time of the last facts."""

    def __init__(self, at_least: float = 0.0) -> None:
        self._offset = max(time.time(), at_least) - _boottime()

    def now(self) -> float:
        return _boottime() + self._offset


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
