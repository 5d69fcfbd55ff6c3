"""How a command follows what a daemon does: it asks again and again. The daemon may be restarted meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from magrathea import client
from magrathea.decoding import UNDECODABLE

T = TypeVar("T")

DAEMON_AWAY_S = 30.0
"""How long the daemon may be silent meanwhile: systemd restarts it within seconds."""
AWAY = (client.Unreachable, *UNDECODABLE)
"""What a daemon that is away, or ends in the midst of its answer, looks like."""


def answers(look: Callable[[], T], pause: Callable[[], None], away: tuple[type[Exception], ...] = AWAY) -> Iterator[T]:
    """What `look` returns, after a pause each. Raises what it raises, if that is in `away` only after DAEMON_AWAY_S
    without an answer."""
    answered_at = time.monotonic()
    while True:
        pause()
        try:
            found = look()
        except away:
            if time.monotonic() - answered_at > DAEMON_AWAY_S:
                raise
            continue
        answered_at = time.monotonic()
        yield found
