"""How much CPU time a domain should be able to use, and when a preempted one is capped.

Rule 1: a wanted cap is one of three: none, the CPUs of the domain's jobs (counted hosts), or that of a preempted
domain, which keeps guest, MoM and agent alive.
Rule 2: a preempted domain is capped only after its memory has been moved out, because pushing memory out takes CPU
time: on a tenth of a CPU it takes ten times as long. An existing cap is lifted for the move once the agent answers.
Rule 3: the cap comes at once if the domain has shown that it cannot give; if its agent does not answer, after
UNANSWERED_S; if its guest is still being relieved after the move, after RELIEF_S.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .model import Limits

UNANSWERED_S = 10.0
"""A restart of a daemon or of a guest's kernel takes an agent away for that long. The look after the last retry comes
up to 5 s later."""
RELIEF_S = 10.0
"""A guest is relieved for so long before it is capped: at a cap of 5 % the same takes minutes, and starves MoM."""
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
    """How far a domain is that is to give memory.

    `leaves`: its agent has answered and its memory is on its way out. `failed`: it has shown that it cannot give what
    it should. `unanswered_s`: for how long its agent has not answered; 0 if it does, or has not been asked.
    `relieved_s`: for how long its guest has been relieved after the move; None if it is not being relieved.
    """

    leaves: bool = False
    failed: bool = False
    unanswered_s: float = 0.0
    relieved_s: float | None = None


NOT_ASKED = Giving()


def due_now(wanted: Cap, has_percent: int | None, giving: Giving, is_to_give: bool) -> Cap | None:
    """The cap that a domain with jobs should have at this moment; None: it keeps the present one."""
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
