"""How much CPU time a domain should be able to use, and when a preempted one is capped.

Rule 1: there are three wanted caps: none, the CPUs of the domain's jobs (counted hosts), and the cap of a preempted
domain, which leaves enough CPU for guest, MoM and agent.
Rule 2: a preempted domain is capped only after its memory has been moved out, because pushing memory out takes CPU
time: on a tenth of a CPU it takes ten times as long. An existing cap is lifted for the move once the agent answers.
Rule 3: the domain is capped at once if it has shown that it cannot give memory. If its agent does not answer, it is
capped after UNANSWERED_S; if its guest is still being relieved after the move, after RELIEF_S.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .model import Limits

UNANSWERED_S = 10.0
"""A restart of the daemon or of a guest's kernel silences an agent for this long. The daemon may notice the last retry
up to 5 s later."""
RELIEF_S = 10.0
"""A guest is relieved for this long before it is capped. At a cap of 5 % relieving takes minutes and starves MoM."""
ONE_CPU_PERCENT = 100


class CapKind(StrEnum):
    """What a cap is for."""

    NONE = "none"
    SHARE = "share"
    PREEMPTED = "preempted"


@dataclass(frozen=True, slots=True)
class Cap:
    """A wanted cap. `percent`: 100 is one CPU; None if there is none."""

    kind: CapKind
    percent: int | None


NO_CAP = Cap(CapKind.NONE, None)


def share_cap(cpus: int) -> Cap:
    return Cap(CapKind.SHARE, ONE_CPU_PERCENT * cpus)


def preempted_cap(limits: Limits) -> Cap:
    return Cap(CapKind.PREEMPTED, limits.preempted_cpu_percent)


@dataclass(frozen=True, slots=True)
class Giving:
    """The progress of a domain that must give memory.

    `leaves`: its agent has answered and its memory is being moved out. `failed`: it has shown that it cannot give what
    it should. `unanswered_s`: seconds without an answer of its agent; 0 if it answers or has not been asked.
    `relieved_s`: seconds for which its guest has been relieved after the move; None if it is not being relieved.
    """

    leaves: bool = False
    failed: bool = False
    unanswered_s: float = 0.0
    relieved_s: float | None = None


NOT_ASKED = Giving()


def due_now(wanted: Cap, has_percent: int | None, giving: Giving, is_to_give: bool) -> Cap | None:
    """The cap that a domain with jobs should have now; None if it should keep its present one."""
    if wanted.kind is not CapKind.PREEMPTED:
        return wanted
    if giving.leaves and not giving.failed:
        return NO_CAP if is_preempted_cap(wanted.percent, has_percent) else None
    if giving.relieved_s is not None and giving.relieved_s < RELIEF_S:
        return None
    may_give = not giving.failed and giving.unanswered_s < UNANSWERED_S
    return None if is_to_give and may_give else wanted


def is_preempted_cap(configured_percent: int | None, has_percent: int | None) -> bool:
    """True if a domain's cap was set because it was preempted, by this configuration or an earlier one.

    The share of a running job is at least one CPU.
    """
    return has_percent is not None and (has_percent == configured_percent or has_percent < ONE_CPU_PERCENT)


def gives(has_percent: int | None, cap: Cap) -> bool:
    """True if `cap` leaves more CPU than the present one."""
    return has_percent is not None and (cap.percent is None or cap.percent > has_percent)
