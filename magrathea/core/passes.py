"""When the copy of a running domain needs help to end. It is made in passes; a guest that writes causes more of them.

The first pass sends all memory. Each further pass sends what the guest has written during the pass before. The
hypervisor ends the copy when what is left can be sent within a moment, with the guest paused.

Rule 1: the jobs compute as long as each pass leaves less to do than the one before (LEAST_SHRINK).
Rule 2: if a pass does not, the jobs are stopped for the rest. A stopped guest writes next to nothing.
Rule 3: if a pass that was made with stopped jobs does not either, the whole domain is paused for the rest. A paused
domain writes nothing, so every copy ends, whatever the guest does.
Rule 4: the copy is never slowed down, throttled or given up for lack of progress.

The same rules serve the copy of a disk: its passes are cut by what was to do, not by the hypervisor.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

LEAST_SHRINK = 0.25
"""A pass must leave at least this share less to do than the one before; otherwise it counts as not less.

All passes with running jobs then send at most four times what the first has sent. Without a bound a guest whose passes
shrink by a page each would be copied for days. The figures are read every 50 ms, and are that inexact.
"""


class Help(IntEnum):
    """What a copy needs to end, in rising order. Help once given stays until the copy has ended."""

    NONE = 0
    STOP_JOBS = 1
    PAUSE_DOMAIN = 2


def help_needed(work: Sequence[int], given: Help, stopped_in: int | None) -> Help:
    """What the copy needs now; never less than it was `given`.

    `work`: bytes that each pass has sent; the last is what the running pass has to send. `stopped_in`: the index in
    `work` of the pass in which the jobs were stopped, or in which stopping them failed; None if they run.
    """
    if len(work) < 2 or _is_less(work[-1], work[-2]):
        return given
    if stopped_in is None:
        return max(given, Help.STOP_JOBS)
    # the first pass after the stop still sends what running jobs had written
    made_stopped = len(work) - 1 - (stopped_in + 1)
    return Help.PAUSE_DOMAIN if made_stopped >= 1 else max(given, Help.STOP_JOBS)


def _is_less(work: int, before: int) -> bool:
    return work <= (1 - LEAST_SHRINK) * before


def rest_s(left_bytes: int, bytes_per_s: float) -> float | None:
    """Seconds that sending `left_bytes` takes at this speed; None if nothing is known of the speed."""
    return left_bytes / bytes_per_s if bytes_per_s > 0 else None
