"""Work that costs something for each of many items is done at once, then again only after a pause that grows with them.

So it takes a bounded share of the hub's loop, however often something changes, and all changes meanwhile cost one turn.
Pure; times are monotonic.
"""

from __future__ import annotations

MOST_PAUSE_S = 5.0


class GrowingPause:
    """`per_item_s`: the pause for each item of the last turn."""

    def __init__(self, per_item_s: float) -> None:
        self._per_item_s = per_item_s
        self._next = 0.0

    def pause_s(self, items: int) -> float:
        return min(MOST_PAUSE_S, items * self._per_item_s)

    def wait_s(self, now: float) -> float:
        """Seconds until the next turn; 0 if it may be now."""
        return max(0.0, self._next - now)

    def took_turn(self, now: float, items: int) -> None:
        self._next = now + self.pause_s(items)
