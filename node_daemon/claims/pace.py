"""How often what a guest reports is entered.

Entering a report costs the host's one loop, and a write to disk that claims of siblings wait for. A guest decides how
often it reports, so that has a bound; only the newest report counts anyway. Claims and releases are never paced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from magrathea.logs import RationedLog

log = logging.getLogger(__name__)
defects = RationedLog(log)

LISTS_S = 2.0
"""For MoM's list, which comes every 15 s. It must not grow much older here than MoM's own hook lets it (LIST_AGE_S)."""
REPORTS_S = 1.0
"""For a report about memory, which comes every 10 s."""


class Pace:
    """Enters one report of each domain in `every_s`: the first one at once, of the others the newest when it may.

    A report is a function that returns False if it changed nothing; then the next one may be entered at once.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._newest: dict[str, Callable[[], bool]] = {}

    def enter(self, domain: str, report: Callable[[], bool]) -> None:
        """Call `report` now, or later if it is the newest then."""
        if domain in self._timers:
            self._newest[domain] = report
            return
        changed = True
        try:
            changed = report()
        finally:
            if changed:
                self._timers[domain] = asyncio.get_running_loop().call_later(self._every_s, self._due, domain)

    def lost(self, domain: str) -> None:
        """The guest is gone. What it has reported and was not entered no longer counts."""
        self._newest.pop(domain, None)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._newest.clear()

    def _due(self, domain: str) -> None:
        del self._timers[domain]
        if (report := self._newest.pop(domain, None)) is None:
            return
        try:
            self.enter(domain, report)
        except Exception as defect:  # noqa: BLE001  a door (supervision.py)
            defects.say(domain, f"{domain}: a report of its agent met a defect", defect, logging.ERROR)
