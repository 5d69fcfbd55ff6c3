"""Small values of which facts and answers are made: amounts of CPUs and memory, a job's warning, room that
moves keep.

The rest of the product imports them from model.py, with the facts that use them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Amount:
    """CPUs and memory (MiB), counted together."""

    cpus: int
    mib: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.cpus + other.cpus, self.mib + other.mib)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.cpus - other.cpus, self.mib - other.mib)

    def within(self, other: Amount) -> bool:
        """True if both parts are at most the other's. A part of 0 or less always fits."""
        return (self.cpus <= max(other.cpus, 0)) and (self.mib <= max(other.mib, 0))

    def least(self, other: Amount) -> Amount:
        return Amount(min(self.cpus, other.cpus), min(self.mib, other.mib))


NOTHING = Amount(0, 0)


@dataclass(frozen=True, slots=True)
class StopWarning:
    """What a job has asked for: this signal before its stop, and so much time after the signal.

    `first_only`: the signal goes to the job's script. Otherwise it goes to all of its processes that
    handle it.
    """

    signal: str
    seconds: float
    first_only: bool = False


@dataclass(frozen=True, slots=True)
class Coming:
    """A domain that moves and is not among the host's: the host has promised room for it, or may get it back.

    `size`: what is kept for it, its floor included. `busy`: it has jobs. Computed from the facts about moves
    (arrivals.py), so that whatever counts what is left counts it, too.
    """

    name: str
    size: Amount
    busy: bool = False
