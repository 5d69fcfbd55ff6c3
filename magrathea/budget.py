"""A share of something that is used up and comes back with time, saved up to a bound."""

from __future__ import annotations


class Budget:
    """`share` of it comes back each second, at most `burst` is saved up: seconds of a thread, calls, whatever."""

    def __init__(self, share: float, burst: float, now: float) -> None:
        self._share = share
        self._burst = burst
        self._left = burst
        self._at = now

    def wait_s(self, now: float, reserve: float = 0.0) -> float:
        """How long until there is more left than `reserve` (a share of the burst)."""
        self._left = min(self._burst, self._left + (now - self._at) * self._share)
        self._at = now
        return max(0.0, (reserve * self._burst - self._left) / self._share)

    def spend(self, amount: float) -> None:
        self._left -= amount

    def take(self, now: float) -> bool:
        """Use one, if there is one left."""
        self.wait_s(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def is_full(self, now: float) -> bool:
        """Whether all that can be saved up is."""
        self.wait_s(now)
        return self._left >= self._burst
