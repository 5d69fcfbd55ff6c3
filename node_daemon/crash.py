"""A hook for crash tests: the daemon kills itself right after its Nth step or commit.

Nothing of it is there unless MAGRATHEA_CRASH_AFTER is set. Counting begins when the file MAGRATHEA_CRASH_ARMED exists
(at once where that is not set), so that a test can let the daemon start up first.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path


def from_environment(environment: Mapping[str, str]) -> Callable[[str], None]:
    """What `Daemon` calls after each step and commit."""
    after = environment.get("MAGRATHEA_CRASH_AFTER", "")
    if not after:
        return lambda name: None
    armed = environment.get("MAGRATHEA_CRASH_ARMED", "")
    return _Crash(int(after), Path(armed) if armed else None)


class _Crash:
    def __init__(self, after: int, armed: Path | None) -> None:
        self._left = after
        self._armed = armed

    def __call__(self, name: str) -> None:
        if self._armed is not None and not self._armed.exists():
            return
        self._left -= 1
        if self._left <= 0:
            if self._armed is not None:
                self._armed.with_suffix(".at").write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)
