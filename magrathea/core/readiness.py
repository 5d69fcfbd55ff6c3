"""When a job of several parts may begin: not before each part has the memory that it asked for.

The first part's host asks, for the prologue hook there; the others' hosts say what their parts lack, through the hub.

Rule 1: what nobody has spoken of does not count as ready. It is waited for no longer than UNHEARD_S, because the job's
other parts keep the jobs stopped that they have preempted.
Rule 2: what is known not to come is not waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from .model import MemoryComing, MemoryLack, MemoryShort, Stage
from .refusals import Refusal, RefusalCode

UNHEARD_S = 60.0
"""A hub that is restarted speaks again within seconds, a host a few heartbeats later."""


@dataclass(frozen=True, slots=True)
class Unready:
    """A part of a job that lacks memory. `text`: how far that is, or why, for people; it says where."""

    stage: Stage
    text: str


def unready(lack: MemoryLack | None, how_far: str) -> Unready | None:
    """The part of a job whose domain lacks that; None if it lacks nothing."""
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
    """What several hubs know of the same parts: of the one that knows most. None: no hub has spoken."""
    return min(told, key=lambda parts: sum(p.stage is Stage.UNHEARD for p in parts), default=None)


def held_back(parts: Iterable[Unready], unheard_s: float, *, hub: bool) -> Refusal | None:
    """Why the job should not wait for these parts any longer. `unheard_s`: for how long nothing has been known of one
    or the other; `hub`: whether any hub has spoken just now."""
    whys: dict[Stage, list[str]] = {stage: [] for stage in Stage}
    for part in parts:
        whys[part.stage].append(part.text)
    if whys[Stage.SHORT]:
        return Refusal(RefusalCode.MEMORY_SHORT, "; ".join(whys[Stage.SHORT]))
    if whys[Stage.UNHEARD] and unheard_s >= UNHEARD_S:
        text = f"nothing was heard for {unheard_s:.0f} s: {'; '.join(whys[Stage.UNHEARD])}"
        return Refusal(RefusalCode.DOMAIN_UNKNOWN if hub else RefusalCode.HUB_LOST, text)
    return None
