"""A hook for crash tests: it kills processes right after a certain step, commit or answer of the daemon.

It does nothing unless MAGRATHEA_CRASH_ARMED names a file. While that file exists, the name of each step is appended to
a second file, with the suffix `.trace`. After the step that MAGRATHEA_CRASH_AFTER names (`NAME#2`: its second time) the
processes listed in the first file are killed: pids, and `self` for the daemon.
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
