"""Whether a domain can be saved to disk now: its devices permit that, and there is room for its image.

Asked before anybody is stopped for it, and again right before the save. A save that finds the disk full in its midst
leaves the domain running all the same; but then its jobs have stood still for nothing.

If preempted domains may have to give way to disk (`give_way` in [limits]), it is asked beforehand, too: the core counts
on it when it answers claims.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Protocol

from magrathea import supervision
from magrathea.core import events as ev
from magrathea.core import migration
from magrathea.core.model import NOT_ASKED, Domain, GiveWay, Host, Kind, Lifecycle
from magrathea.core.moves import HostWithMoves
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.preview import Takes

from ..configuration import NodedConfiguration
from ..hypervisor.base import SAVE, Driver, DriverError, SaveNeeds
from ..measured import SAVES, SWAPS, Measured, Times, expected_s, measured_s
from ..switch.switch import Switch

UNKNOWN = (RefusalCode.LOST, RefusalCode.TIMEOUT, RefusalCode.DOMAIN_DOWN, RefusalCode.NO_DOMAIN)
"""Codes that do not tell whether the domain can be saved."""


class DaemonForSaves(Protocol):
    """What this needs of the daemon."""

    configuration: NodedConfiguration
    driver: Driver
    switch: Switch

    @property
    def host(self) -> Host: ...

    @property
    def place(self) -> HostWithMoves: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...


class Saves:
    """Judges by what the driver knows, and keeps how long saves take."""

    def __init__(self, daemon: DaemonForSaves) -> None:
        self._daemon = daemon
        self._found_mib: dict[str, int] = {}
        """What each domain's image took at most, when it was last asked for."""
        self._judging: asyncio.Task[None] | None = None
        self._judge_again = False

    async def close(self) -> None:
        if self._judging is not None:
            self._judging.cancel()
            await asyncio.gather(self._judging, return_exceptions=True)

    async def refusal(self, name: str) -> Refusal | None:
        """Why the domain cannot be saved now; None if it can, as far as that can be told."""
        try:
            needs = await self._daemon.driver.save_needs(name)
        except DriverError as error:
            return Refusal(error.code, error.text)
        self._found_mib[name] = needs.mib
        return _refusal(name, needs, self._promised_mib(name))

    def _promised_mib(self, name: str) -> int:
        """What the images of other domains will take that are to be saved, or are just being saved."""
        others = [d.name for d in self._daemon.host.workers if d.name != name and (d.saving or d.falls_asleep)]
        return sum(self._found_mib.get(other) or self._read_mib(other) for other in others)

    def _read_mib(self, name: str) -> int:
        read = self._daemon.switch.readings.of(name)
        return 0 if read is None or not read.up else read.memory_mib or read.max_memory_mib or 0

    # Giving way

    def judge_soon(self) -> None:
        """Ask which domains can be put to sleep if others need their memory, and make facts of the answers."""
        self._judge_again = self._daemon.host.limits.give_way is not GiveWay.SWAP
        if self._judge_again and (self._judging is None or self._judging.done()):
            self._judging = supervision.start(self._judge_all())

    async def _judge_all(self) -> None:
        while self._judge_again:
            self._judge_again = False
            await self._judge()

    async def _judge(self) -> None:
        for name in [d.name for d in self._daemon.host.workers if self._may_be_judged(d)]:
            obstacle = await self._obstacle(name)
            domain = self._daemon.host.domain(name)
            if obstacle is None or domain is None or not self._may_be_judged(domain):
                continue
            if domain.disk_obstacle == NOT_ASKED or _words(obstacle) != _words(domain.disk_obstacle):
                self._daemon.apply(ev.DiskJudged(self._daemon.now(), name, obstacle))

    def _may_be_judged(self, domain: Domain) -> bool:
        """Of a domain that moves the core says itself that it is not put to sleep."""
        return _may_be_asked(domain) and migration.refusal(self._daemon.place, domain.name) is None

    async def _obstacle(self, name: str) -> str | None:
        """Why the domain cannot be saved; empty if it can; None if that is not known."""
        if SAVE not in self._daemon.driver.capabilities:
            return "its hypervisor saves nothing to disk here; the notes of `magrathea status` say why"
        refusal = await self.refusal(name)
        if refusal is None:
            return ""
        return None if refusal.code in UNKNOWN else refusal.text

    def notes(self) -> list[str]:
        """Which domains do not give way to disk, and why, for people."""
        host, notes = self._daemon.host, []
        for domain in host.workers if host.limits.give_way is not GiveWay.SWAP else ():
            if domain.stays_awake:
                again = f"`magrathea clear {domain.name}` lets it be tried again"
                notes.append(f"{domain.name} is not put to sleep for others: {domain.stays_awake}; {again}")
            elif _may_be_asked(domain) and domain.disk_obstacle:
                notes.append(f"{domain.name} is not put to sleep for others: {domain.disk_obstacle}")
        return notes

    # How long it takes

    def took(self, name: str, mib: int, seconds: float) -> None:
        """A domain that had so much memory has been saved."""
        if mib > 0:
            self._times(SAVES).measure(name, Measured(mib, seconds))

    def pushed_out(self, name: str, mib: int, seconds: float) -> None:
        """So much memory of a domain's jobs has been pushed out to its guest's swap."""
        if mib > 0:
            self._times(SWAPS).measure(name, Measured(mib, seconds))

    def estimates(self) -> Takes:
        """Estimates by what was measured here until now."""
        saves, swaps = self._times(SAVES).measured(), self._times(SWAPS).measured()

        def takes(road: GiveWay, name: str, mib: int) -> float | None:
            return measured_s(name, mib, swaps) if road is GiveWay.SWAP else expected_s(name, mib, saves)

        return takes

    def _times(self, file: str) -> Times:
        return Times(Path(self._daemon.configuration.paths.state_dir), file)


def _may_be_asked(domain: Domain) -> bool:
    """While a domain is being saved, its own image takes the room."""
    return domain.kind is Kind.NORMAL and domain.lifecycle is Lifecycle.UP and domain.sleep is None


def _words(text: str) -> str:
    """The text without its figures: a disk that fills up by a MiB more is no news."""
    return re.sub(r"\d+", "", text)


def _refusal(name: str, needs: SaveNeeds, promised_mib: int) -> Refusal | None:
    if needs.obstacle:
        text = f"{name} cannot be saved to disk: {needs.obstacle}; drain it instead, or remove that from its definition"
        return Refusal(RefusalCode.DEVICES, text)
    if needs.free_mib is None or needs.mib + promised_mib <= needs.free_mib:
        return None
    beside = f" and {promised_mib} MiB for other domains that are to be saved" if promised_mib else ""
    text = f"saving {name} takes up to {needs.mib} MiB{beside}, and {needs.place} has {needs.free_mib} MiB left"
    return Refusal(RefusalCode.NO_SPACE, f"{text}; make room there, or mount a larger disk there")
