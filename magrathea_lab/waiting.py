"""Waits for real processes: for a condition, never for a fixed time.

    until(socket.exists, "the agent's socket")
    await eventually(lambda: report().state == "free", lambda: f"n1 is free; {report()}")

A slow event is no failure; only one that never happens is. So one generous bound serves everywhere. Speed is measured
in bench/.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

BOUND_S = 300.0
"""An event of one or two seconds on an idle machine takes twenty beside eight busy processes on two cores. What an
emulated guest computes for ten takes two minutes there."""
FIRST_PAUSE_S, LAST_PAUSE_S, GROWTH = 0.005, 0.2, 1.2
"""Pauses grow, because each check takes CPU time from the processes that the wait is for."""
SHOWN = 500
"""At most so many characters of the last value go into the message."""


class NotInTime(AssertionError):
    """The event did not happen; the text names it and shows the last value seen."""


def until(condition: Callable[[], T | None], what: str | Callable[[], str], bound_s: float = BOUND_S) -> T:
    """Wait until `condition` returns something true, and return that. Raises NotInTime."""
    end = time.monotonic() + bound_s
    for pause_s in _pauses_s():
        if found := condition():
            return found
        if time.monotonic() > end:
            raise _late(what, found, bound_s)
        time.sleep(pause_s)
    raise AssertionError("pauses do not end")


async def eventually(condition: Callable[[], T | None], what: str | Callable[[], str], bound_s: float = BOUND_S) -> T:
    """The same as `until` on the event loop, in the loop's time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + bound_s
    for pause_s in _pauses_s():
        if found := condition():
            return found
        if loop.time() > end:
            raise _late(what, found, bound_s)
        await asyncio.sleep(pause_s)
    raise AssertionError("pauses do not end")


def _pauses_s() -> Iterator[float]:
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(GROWTH * pause_s, LAST_PAUSE_S)


def _late(what: str | Callable[[], str], seen: object, bound_s: float) -> NotInTime:
    text = what if isinstance(what, str) else what()
    shown = "" if seen is None or seen is False else f"; last seen: {seen!r}"[:SHOWN]
    return NotInTime(f"not within {bound_s:g} s: {text}{shown}")
