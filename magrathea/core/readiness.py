"""Decides when a job of several parts may begin: when each part has the memory that it asked for.

The first part's host asks, for the prologue hook there. The other hosts report through the hub what their parts lack.

Rule 1: a part that nobody has reported does not count as ready. The job waits at most UNHEARD_S for it, because the
jobs that its other parts have preempted stay stopped meanwhile.
Rule 2: no job waits for memory that is known not to come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from .model import MemoryComing, MemoryLack, MemoryShort, Stage
from .refusals import Refusal, RefusalCode

UNHEARD_S = 60.0
"""After a restart a hub answers within seconds, and a host reports a few heartbeats later."""


@dataclass(frozen=True, slots=True)
class Unready:
    """A part of a job that lacks memory. `text`, for people: where, and how far the move is or why it failed."""

    stage: Stage
    text: str


def unready(lack: MemoryLack | None, how_far: str) -> Unready | None:
    """What to report about a part whose domain has this lack; None if it lacks nothing."""
    match lack:
        case None:
            return None
        case MemoryComing():
            return Unready(Stage.COMING, how_far)
        case MemoryShort(why=why):
            return Unready(Stage.SHORT, why)
        case _:
            assert_never(lack)


def together(told: Iterable[tuple[Unready, ...]]) -> tuple[Unready, ...] | None:
    """The answer with the fewest unknown parts; None if no hub answered."""
    return min(told, key=lambda parts: sum(p.stage is Stage.UNHEARD for p in parts), default=None)


def held_back(parts: Iterable[Unready], unheard_s: float, *, hub: bool) -> Refusal | None:
    """Why the job should no longer wait for these parts; None if it should.

    `unheard_s`: for how long one of them has not been reported. `hub`: a hub has just answered.
    """
    whys: dict[Stage, list[str]] = {stage: [] for stage in Stage}
    for part in parts:
        whys[part.stage].append(part.text)
    if whys[Stage.SHORT]:
        return Refusal(RefusalCode.MEMORY_SHORT, "; ".join(whys[Stage.SHORT]))
    if whys[Stage.UNHEARD] and unheard_s >= UNHEARD_S:
        text = f"nothing was heard for {unheard_s:.0f} s: {'; '.join(whys[Stage.UNHEARD])}"
        return Refusal(RefusalCode.DOMAIN_UNKNOWN if hub else RefusalCode.HUB_LOST, text)
    return None
