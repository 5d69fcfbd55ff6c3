"""A hook for crash tests: somebody is killed right after a certain step, commit or answer of the daemon.

Nothing of it is there unless MAGRATHEA_CRASH_ARMED is set. While the file that it names exists, each step's name is
appended to it with `.trace` added, and after the step that MAGRATHEA_CRASH_AFTER says (`NAME#2`: its second time) those
whom the file holds are killed: pids, and `self` for the daemon.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path


def from_environment(environment: Mapping[str, str]) -> Callable[[str], None]:
    """What `Daemon` calls after each step and commit."""
    armed = environment.get("MAGRATHEA_CRASH_ARMED", "")
    return _Crash(environment.get("MAGRATHEA_CRASH_AFTER", ""), Path(armed)) if armed else lambda name: None


class _Crash:
    def __init__(self, after: str, armed: Path) -> None:
        self._after = after
        self._armed = armed
        self._trace = armed.with_suffix(".trace")
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        if not self._armed.exists():
            return
        self._seen[name] += 1
        step = f"{name}#{self._seen[name]}"
        with self._trace.open("a") as trace:
            trace.write(step + "\n")
        if step == self._after:
            for victim in self._armed.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(os.getpid() if victim == "self" else int(victim), signal.SIGKILL)
