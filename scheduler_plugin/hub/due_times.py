"""Which jobs are due, without looking at all the others. Pure."""

from __future__ import annotations

import heapq

from magrathea.core.model import JobKey

SPARE = 64
"""How many out-of-date times a short heap may have."""


class DueTimes:
    """The time at which each job is due. A held job is never due.

    `_heap` may have out-of-date times; only those that `_times` has count. `_due` has the jobs that `due` has found
    already.
    """

    def __init__(self) -> None:
        self._times: dict[JobKey, float] = {}
        self._heap: list[tuple[float, JobKey]] = []
        self._due: set[JobKey] = set()
        self._held: set[JobKey] = set()

    def set(self, key: JobKey, at: float) -> None:
        if self._times.get(key) == at:
            return
        self._times[key] = at
        self._due.discard(key)
        if key not in self._held:
            self._push(at, key)

    def _push(self, at: float, key: JobKey) -> None:
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._times) + SPARE:
            self._heap = [(at, key) for key, at in self._times.items() if key not in self._held | self._due]
            heapq.heapify(self._heap)

    def drop(self, key: JobKey) -> None:
        self._times.pop(key, None)
        self._due.discard(key)

    def hold(self, key: JobKey) -> None:
        self._held.add(key)
        self._due.discard(key)

    def release(self, key: JobKey) -> None:
        self._held.discard(key)
        if key in self._times:
            self._push(self._times[key], key)

    def due(self, now: float) -> frozenset[JobKey]:
        """The jobs whose time has come. They stay due until they get another time."""
        while (at := self._first()) is not None and at <= now:
            self._due.add(heapq.heappop(self._heap)[1])
        return frozenset(self._due)

    def next(self) -> float | None:
        """The time at which the next job is due; None if there is none."""
        times = [self._times[key] for key in self._due]
        first = self._first()
        return min(times if first is None else [*times, first], default=None)

    def _first(self) -> float | None:
        while self._heap:
            at, key = self._heap[0]
            if self._times.get(key) == at and key not in self._held and key not in self._due:
                return at
            heapq.heappop(self._heap)
        return None
