"""Which classes a domain takes no jobs of for a short while, because it has refused subjobs that it seemed to take.

A refused job gets a later execution time. A subjob cannot have one: PBS ends an array whose last subjobs all wait. So
PBS tries it again at once, five times a second, as long as its vnode seems to take it (docs/known-limits.md, "Arrays").
The vnode must not seem so: it is published without the class for a while.

Rule 1: no clock and no I/O.
Rule 2: only what is published changes. A claim that comes all the same is judged by the facts.
Rule 3: the pause grows with each refusal, and ends when a job of the class has started there. Refusals during a pause
do not make it longer: PBS had sent them before it was published.
Rule 4: nothing is remembered over a restart. The next refusal shows it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from magrathea.core.model import JobClass

FIRST_S, MOST_S = 2.0, 16.0
"""Shortest and longest pause; each is twice the one before. Other jobs of the class wait there as long, and
longer if PBS tries the same subjob first after each pause."""


@dataclass(frozen=True, slots=True)
class _Closure:
    until: float
    pause_s: float


class Closures:
    def __init__(self) -> None:
        self._known: dict[tuple[str, JobClass], _Closure] = {}

    def refused(self, domain: str, cls: JobClass, now: float) -> float | None:
        """A subjob of this class was refused in the domain although it accepts the class. Returns until when the domain
        is closed for it; None if it was closed already."""
        known = self._known.get((domain, cls))
        if known is not None and now < known.until:
            return None
        recent = known is not None and now < known.until + MOST_S
        pause_s = min(MOST_S, 2 * known.pause_s) if known is not None and recent else FIRST_S
        self._known[domain, cls] = _Closure(now + pause_s, pause_s)
        return now + pause_s

    def started(self, domain: str, cls: JobClass) -> None:
        """A job of this class has started there."""
        self._known.pop((domain, cls), None)

    def closed(self, now: float) -> Mapping[str, frozenset[JobClass]]:
        """By domain, the classes for which it is closed now."""
        found: dict[str, set[JobClass]] = {}
        for (domain, cls), closure in self._known.items():
            if now < closure.until:
                found.setdefault(domain, set()).add(cls)
        return {domain: frozenset(classes) for domain, classes in found.items()}
