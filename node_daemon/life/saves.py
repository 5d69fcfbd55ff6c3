"""Whether a domain can be saved to disk now: its devices permit that, and there is room for its image.

Asked before anybody is stopped for it, and again right before the save. A save that finds the disk full in its midst
leaves the domain running all the same; but then its jobs have stood still for nothing.
"""

from __future__ import annotations

from typing import Protocol

from magrathea.core.model import Host
from magrathea.core.refusals import Refusal, RefusalCode

from ..hypervisor.base import Driver, DriverError, SaveNeeds
from ..switch.switch import Switch


class DaemonForSaves(Protocol):
    """What this needs of the daemon."""

    driver: Driver
    switch: Switch

    @property
    def host(self) -> Host: ...


class Saves:
    """Judges by what the driver knows."""

    def __init__(self, daemon: DaemonForSaves) -> None:
        self._daemon = daemon
        self._found_mib: dict[str, int] = {}
        """What each domain's image took at most, when it was last asked for."""

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


def _refusal(name: str, needs: SaveNeeds, promised_mib: int) -> Refusal | None:
    if needs.obstacle:
        text = f"{name} cannot be saved to disk: {needs.obstacle}; drain it instead, or remove that from its definition"
        return Refusal(RefusalCode.DEVICES, text)
    if needs.free_mib is None or needs.mib + promised_mib <= needs.free_mib:
        return None
    beside = f" and {promised_mib} MiB for other domains that are to be saved" if promised_mib else ""
    text = f"saving {name} takes up to {needs.mib} MiB{beside}, and {needs.place} has {needs.free_mib} MiB left"
    return Refusal(RefusalCode.NO_SPACE, f"{text}; make room there, or mount a larger disk there")
