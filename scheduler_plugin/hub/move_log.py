"""What the hub tells people about moves: those under way, and how the last ones ended or why they were refused.

Rule 1: no I/O but the log. After a restart of the hub only what is under way is known; hosts' histories have the rest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from magrathea.core.moves import Ownership, Transfer
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.logs import RationedLog
from magrathea.messages import MoveView
from magrathea.text import one_line

from .transfers import Transfers

log = logging.getLogger(__name__)

MOST_KEPT = 100
MOST_TEXT = 300


class MoveLog:
    """`now`: Unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since: dict[str, float] = {}
        """When each move under way was granted, as far as this hub knows."""
        self._why: dict[str, str] = {}
        """Why the hub itself wished for moves under way."""
        self._last: deque[MoveView] = deque(maxlen=MOST_KEPT)
        self._of_hosts = RationedLog(log, burst=50, period_s=10)

    def refused(self, domain: str, source: str, target: str, no: Refusal) -> None:
        """A move is not granted. A host repeats its request: the same refusal is noted once."""
        text = f"refused ({no.code}): {one_line(no.text, MOST_TEXT)}"
        last = next((one for one in reversed(self._last) if one.domain == domain), None)
        if last is None or (last.source, last.target, last.text) != (source, target, text):
            self._note(domain, source, target, text, over=no.code is not RefusalCode.BUSY)

    def changed(self, before: Ownership | None, record: Ownership | None, why: str = "") -> None:
        """A record is on disk that was another before. `why`: the hub itself wished for its move."""
        old, new = before.transfer if before else None, record.transfer if record else None
        if old is not None and before is not None and (new is None or new.number != old.number):
            self._since.pop(before.domain, None)
            text = _end(old, record) + self._because(before.domain)
            self._why.pop(before.domain, None)
            self._note(before.domain, old.source, old.target, text, over=True)
        if record is not None and new is not None and (old is None or old.number != new.number):
            self._since[record.domain] = self._now()
            if why:
                self._why[record.domain] = why
            self._note(record.domain, new.source, new.target, f"granted{self._because(record.domain)}", over=False)

    def _because(self, domain: str) -> str:
        why = self._why.get(domain, "")
        return f" (the hub's wish: {why})" if why else ""

    def _note(self, domain: str, source: str, target: str, text: str, *, over: bool) -> None:
        self._of_hosts.say(source, f"move of {domain} from {source} to {target}: {text}", level=logging.INFO)
        at = self._now()
        self._last.append(MoveView(domain=domain, source=source, target=target, at=at, text=text, over=over))

    def hosts_of(self, domain: str) -> set[str]:
        """The hosts that a domain was on its way between lately."""
        return {host for one in self._last if one.domain == domain for host in (one.source, one.target)}

    def views(self, transfers: Transfers) -> list[MoveView]:
        """Moves under way first, each with the time of its grant; then the last notes, the newest first."""
        under_way = [
            MoveView(
                domain=record.domain,
                source=transfer.source,
                target=transfer.target,
                at=self._since.get(record.domain, 0.0),
                text=stage(transfer) + self._because(record.domain),
            )
            for record in sorted(transfers, key=lambda record: record.domain)
            if (transfer := record.transfer) is not None
        ]
        return [*under_way, *(one for one in reversed(self._last) if one.over)]


def stage(transfer: Transfer) -> str:
    """How far the move is, in words."""
    source, target = transfer.source, transfer.target
    if transfer.owed:
        return f"it is on {target}, which waits for its facts from {source}"
    if transfer.letting is not None:
        return f"it has left {source}, and {target} must say what it has"
    if transfer.declined:
        return f"{target} does not take it: {one_line(transfer.declined, MOST_TEXT)}"
    return f"{source} copies it" if transfer.ready else f"{target} prepares"


def _end(old: Transfer, record: Ownership | None) -> str:
    """How a move ended."""
    if record is None or not record.owner:
        return f"given up: {old.target} is lost"
    if record.owner == old.target:
        return f"moved to {old.target}"
    declined = f": {one_line(old.declined, MOST_TEXT)}" if old.declined else ""
    return f"stays on {old.source}{declined}"
