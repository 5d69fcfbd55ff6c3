"""Notices that somebody else changes what Magrathea has set: a balloon or a CPU cap (`virsh setmem`, another manager).

Rule 1: a change counts only if a reading that was begun after our own setting shows it. An older one proves nothing.
Rule 2: a domain whose memory is changed again and again is contested. The most that it had lately counts as taken: it
may have that again in a second.
Rule 3: nothing here is a fact. A restart forgets it, and notices it again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..hypervisor.base import DomainReading
from .bounds import SLACK_MIB

log = logging.getLogger(__name__)

COUNTED_S = 60.0
CONTESTED = 5
"""So many changes within COUNTED_S make a domain contested. A guest's reboot, or one short of memory, makes fewer."""
APART_S = 0.5
"""Changes that follow each other faster count as one: a balloon moves in many steps."""
NOTED_S = 300.0
"""A change is shown for that long."""


@dataclass(slots=True)
class _Setting:
    """What a domain should have. `after`: the last reading that was begun before that was so. `value`: None until a
    later reading has said it; then what was read."""

    after: int
    value: int | None = None
    is_known: bool = False


@dataclass(slots=True)
class _Seen:
    """Changes by others: the last times, how many there were, and the last one for people."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=CONTESTED))
    most: deque[int] = field(default_factory=lambda: deque(maxlen=CONTESTED))
    """What it had at most at these times."""
    count: int = 0
    text: str = ""


class Interference:
    """What others change on one host. `now`: the loop's time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._memory: dict[str, _Setting] = {}
        self._cpu: dict[str, _Setting] = {}
        self._seen: dict[tuple[str, str], _Seen] = {}

    # What we do

    def memory_moves(self, domain: str) -> None:
        """We are moving the domain's memory."""
        self._memory.pop(domain, None)

    def memory_rests(self, domain: str, reading: int) -> None:
        """We have moved it. `reading`: the number of the last reading that was begun."""
        self._memory[domain] = _Setting(reading)

    def cpu_set(self, domain: str, percent: int | None, reading: int) -> None:
        """We have set its cap, which is read as `percent` from now on."""
        self._cpu[domain] = _Setting(reading, percent, is_known=True)

    # What is read

    def note(self, read: Mapping[str, DomainReading], number: int) -> None:
        """Take over a reading of all domains."""
        for name, domain in read.items():
            if not domain.up:
                self._memory.pop(name, None)
                self._cpu.pop(name, None)
            elif domain.known:
                if domain.memory_mib is not None:
                    self._compare(name, "memory", self._memory.get(name), domain.memory_mib, number)
                self._compare(name, "cpu", self._cpu.get(name), domain.cpu_percent, number)

    def _compare(self, name: str, what: str, setting: _Setting | None, value: int | None, number: int) -> None:
        if setting is None or number <= setting.after:
            return
        before, known = setting.value, setting.is_known
        setting.value, setting.is_known = value, True
        if known and before != value:
            self._changed(name, what, before, value)

    def moved_back(self, name: str, before_mib: int, now_mib: int) -> None:
        """While we move the domain's memory one way, it has moved the other way."""
        self._changed(name, "memory", before_mib, now_mib)

    def _changed(self, name: str, what: str, before: int | None, now: int | None) -> None:
        if what == "memory" and abs((before or 0) - (now or 0)) <= SLACK_MIB:
            return
        seen, at = self._seen.setdefault((name, what), _Seen()), self._now()
        if seen.times and at - seen.times[-1] < APART_S:
            return
        if not seen.times or at - seen.times[-1] > NOTED_S:
            seen.count = 0
        seen.times.append(at)
        seen.most.append(max(before or 0, now or 0))
        seen.count += 1
        seen.text = _sentence(name, what, before, now)
        if seen.count in (1, CONTESTED) or seen.count % 100 == 0:
            log.warning("%s (%d times)", seen.text, seen.count)

    # What follows

    def contested_mib(self, domain: str) -> int:
        """What a contested domain had at most lately; 0 if it is not contested."""
        seen = self._seen.get((domain, "memory"))
        if seen is None or len(seen.times) < CONTESTED or self._now() - seen.times[0] > COUNTED_S:
            return 0
        return max(seen.most)

    def notes(self) -> list[str]:
        """What others have changed lately, for people."""
        now = self._now()
        return [
            f"{seen.text}; {seen.count} times" + (self._consequence(name) if what == "memory" else "")
            for (name, what), seen in sorted(self._seen.items())
            if seen.times and now - seen.times[-1] <= NOTED_S
        ]

    def _consequence(self, name: str) -> str:
        return ". While that lasts, nobody gets memory of it" if self.contested_mib(name) else ""


def _sentence(name: str, what: str, before: int | None, now: int | None) -> str:
    if what == "memory":
        who = "`virsh setmem`, another manager, or the guest itself (a reboot, or it was short of memory)"
        return f"domain {name}: its memory has changed from {before} to {now} MiB without Magrathea: {who}"
    shown = ["no cap" if percent is None else f"{percent} %" for percent in (before, now)]
    who = "`virsh schedinfo`, or another manager"
    return f"domain {name}: its CPU cap has changed from {shown[0]} to {shown[1]} without Magrathea: {who}"
