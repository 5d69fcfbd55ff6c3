"""What sites have set themselves in the definitions of their domains: caps and weights of CPU.

Magrathea's own settings apply to the running domain only (driver.py, rule 4). So the definition always says what the
site wants, also after a crash of the daemon in the middle of a preemption.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

REREAD_S = 30.0
"""A changed definition is noticed after this time at the latest."""


class OwnCaps:
    """The scheduler's parameters of domains' definitions, by the domains' names. Blocking calls."""

    def __init__(self, error: type[Exception], config_flag: int) -> None:
        self._error = error
        self._flag = config_flag
        self._known: dict[str, tuple[float, Mapping[str, object]]] = {}
        self.covered: dict[str, int] = {}
        """Caps that were asked for and are no lower than the domain's own. The domain has its own, which reads as no
        cap; for whoever asked it has what was asked for."""

    def of(self, name: str, domain: Any, *, fresh: bool = False) -> Mapping[str, object]:
        """Empty for a domain without a definition of its own, or if it cannot be read."""
        known = self._known.get(name)
        if known is None or fresh or time.monotonic() - known[0] > REREAD_S:
            try:
                found: Mapping[str, object] = dict(domain.schedulerParametersFlags(self._flag))
            except self._error:
                found = known[1] if known is not None else {}
            known = self._known[name] = (time.monotonic(), found)
        return known[1]
