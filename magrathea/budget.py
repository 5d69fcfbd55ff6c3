"""A budget that is spent and refills with time, up to a bound."""

from __future__ import annotations


class Budget:
    """`share` of it refills each second, up to `burst`. The unit is the caller's: seconds of a thread, calls, and so
    on."""

    def __init__(self, share: float, burst: float, now: float) -> None:
        self._share = share
        self._burst = burst
        self._left = burst
        self._at = now

    def wait_s(self, now: float, reserve: float = 0.0) -> float:
        """Seconds until more than `reserve` (a share of the burst) is left."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._share)
        self._at = now
        return max(0.0, (reserve * self._burst - self._left) / self._share)

    def spend(self, amount: float) -> None:
        self._left -= amount

    def spend_for(self, amount: float, now: float, most_wait_s: float) -> None:
        """Spend it, but no more than lets somebody wait for this time."""
        self.wait_s(now)
        self._left = max(self._left - amount, min(self._left, -most_wait_s * self._share))

    def take(self, now: float) -> bool:
        """Spend one if there is one; return True if there was."""
        self.wait_s(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def is_full(self, now: float) -> bool:
        """True if the budget is refilled completely."""
        self.wait_s(now)
        return self._left >= self._burst
