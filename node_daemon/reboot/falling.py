"""A sleep of the host that is going on, or has ended: who falls asleep, and what has become of each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from magrathea.host_sleep import SleeperReport, SleepStage

from ..hypervisor.base import DomainReading
from .plan import Candidate


@dataclass
class Falling:
    """A sleep of the host that is going on, or has ended. `granted`: the domains whose saves may begin, and since when.
    `ended`: those that are through. `restored`: those that were just coming back from an earlier sleep, or on their way
    to another host; they are asked when they are up. `asked`: is set when all others have been asked to sleep."""

    begun: float
    until: float
    chosen: tuple[Candidate, ...]
    left: tuple[Candidate, ...] = ()
    granted: dict[str, float] = field(default_factory=dict)
    ended: dict[str, SleeperReport] = field(default_factory=dict)
    restored: set[str] = field(default_factory=set)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def going_on(self) -> bool:
        return len(self.ended) < len(self.chosen)

    def of(self, name: str) -> Candidate | None:
        return next((c for c in self.chosen if c.name == name), None)


def report_of(candidate: Candidate, stage: SleepStage, text: str = "", took_s: float = 0.0) -> SleeperReport:
    return SleeperReport(
        name=candidate.name,
        stage=stage,
        mib=candidate.mib,
        jobs=candidate.jobs,
        expected_s=candidate.expected_s,
        took_s=took_s,
        text=text,
    )


def size_mib(read: DomainReading) -> int | None:
    return read.memory_mib if read.memory_mib is not None else read.max_memory_mib
