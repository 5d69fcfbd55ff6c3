"""Limits how much work for the PBS server each host may cause, and each guest of a host.

Rule 1: a host has a share of each kind of work, for all its guests together.
Rule 2: each vnode also has a small share of its own. It is used when the host's share is used up. So a guest that
causes as much work as it can does not take from its siblings what they need.
Rule 3: a vnode has a share only if PBS has it and the host may speak for it: a host cannot make up shares.
"""

from __future__ import annotations

from collections.abc import Collection

from magrathea.budget import Budget

Cause = tuple[str, str]
"""A host, and the vnode for which it causes the work. The vnode is empty if it is unknown or has no share."""

OWN_PER_S = 0.5
"""Enough for a guest whose jobs come and go, and so little that all guests of a big host together cost PBS little."""


class Shares:
    """One kind of work. A host may cause `per_s` of it on average and `burst` at once; a vnode alone, OWN_PER_S and
    `own_burst`."""

    def __init__(self, per_s: float, burst: float, own_burst: float) -> None:
        self._per_s, self._burst, self._own_burst = per_s, burst, own_burst
        self._of_host: dict[str, Budget] = {}
        self._of_vnode: dict[Cause, Budget] = {}

    def take(self, causes: Collection[Cause], now: float) -> bool:
        """Charge the first of `causes` that has something left. False if none has."""
        return any(self._take(cause, now) for cause in sorted(causes))

    def _take(self, cause: Cause, now: float) -> bool:
        host, vnode = cause
        if self._of_host.setdefault(host, Budget(self._per_s, self._burst, now)).take(now):
            return True
        if not vnode:
            return False
        return self._of_vnode.setdefault(cause, Budget(OWN_PER_S, self._own_burst, now)).take(now)
