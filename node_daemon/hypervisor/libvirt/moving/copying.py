"""How far a move is, from libvirt's figures about its job: pure.

Rule 1: a pass of the memory ends when QEMU counts the next one. What a pass really sent is known only then: before, the
figures contain empty pages, which cost nothing.
Rule 2: a disk has no passes of its own. One ends when as much has been sent as was left at its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping

from magrathea.core.passes import Help, help_needed

from ...moving import MoveProgress


class Series:
    """What each pass has sent, for `help_needed`; the last element is what the running pass has to send."""

    def __init__(self) -> None:
        self.work: list[int] = []
        self.stopped_in: int | None = None
        self._begun_at = 0  # what was sent before the running pass

    def begins(self, sent: int, left: int) -> None:
        """A pass begins with `left` bytes to do; until now `sent` bytes were sent."""
        if self.work:
            self.work[-1] = sent - self._begun_at
            self._begun_at = sent
        self.work.append(left)

    def is_done(self, sent: int) -> bool:
        """True if as much has been sent as was left when the running pass began."""
        return bool(self.work) and sent - self._begun_at >= self.work[-1]

    def stopped(self) -> None:
        """The jobs are stopped, or cannot be."""
        if self.stopped_in is None:
            self.stopped_in = max(0, len(self.work) - 1)


class Copying:
    """One move, fed with the figures of `virDomainGetJobStats`. `began`: when it began, by any clock in seconds."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._memory = Series()
        self._disk = Series()
        self._passes = 0
        self._help = Help.NONE
        self._last = (began, 0)
        self._speed = 0.0
        self._moved_at = began
        """When the last byte was sent."""

    def take(self, stats: Mapping[str, object], now: float, is_running: bool = True) -> MoveProgress:
        """Progress by the job's figures of `now`. `is_running`: False if the guest is paused and writes nothing."""
        memory, disk = _figure(stats, "memory_processed"), _figure(stats, "disk_processed")
        left, disk_left = _figure(stats, "memory_remaining"), _figure(stats, "disk_remaining")
        passes = _figure(stats, "memory_iteration")
        if passes > self._passes:
            self._memory.begins(memory, left)
            self._passes = passes
        if disk_left and not passes and (not self._disk.work or self._disk.is_done(disk)):
            self._disk.begins(disk, disk_left)
        for series in (self._memory, self._disk) if is_running else ():
            self._help = help_needed(series.work, self._help, series.stopped_in)
        self._measure(memory + disk, now)
        written = _figure(stats, "memory_dirty_rate") * _figure(stats, "memory_page_size")
        return MoveProgress(
            now - self._began,
            memory + disk,
            left + disk_left,
            self._passes,
            self._speed,
            written,
            self._help,
            not is_running,
        )

    def _measure(self, sent: int, now: float) -> None:
        at, before = self._last
        if sent > before:
            self._moved_at = now
        if now - at >= MEASURED_S:
            self._speed = (sent - before) / (now - at)
            self._last = (now, sent)

    def stopped(self) -> None:
        """The jobs are stopped, or cannot be."""
        self._memory.stopped()
        self._disk.stopped()

    def idle_s(self, now: float) -> float:
        """How long nothing has been sent."""
        return now - self._moved_at


MEASURED_S = 0.5
"""The speed is measured over at least this time."""


def _figure(stats: Mapping[str, object], name: str) -> int:
    value = stats.get(name)
    return value if isinstance(value, int) and value > 0 else 0
