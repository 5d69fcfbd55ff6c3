"""In the guest, in the place of libvirt's driver: domains that are files, and that take long to be saved.

In /run is what is up, so it is gone after a boot. In /var/lib are the images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from magrathea.core.refusals import RefusalCode
from node_daemon.hypervisor.base import (
    LIFE,
    SAVE,
    DomainChange,
    DomainReading,
    DriverError,
    OnChange,
    Others,
    SaveNeeds,
)

UP, IMAGES = Path("/run/magrathea"), Path("/var/lib/magrathea")
MIB = 64
TAKES_S = 95.0
"""How long a save takes: longer than the unit's own 90 s. With a shorter limit of its own a busy machine would miss it:
there the command needs half a minute to start."""


class LibvirtDriver:
    """See `base.Driver`."""

    capabilities = frozenset({LIFE, SAVE})

    def __init__(
        self, host: str, uri: str, names: Mapping[str, str], services: frozenset[str], sleepers: frozenset[str]
    ) -> None:
        self._names = tuple(names)
        self._on_event: OnChange | None = None

    def _up(self, domain: str) -> Path:
        return UP / f"{domain}.up"

    def _image(self, domain: str) -> Path:
        return IMAGES / f"{domain}.image"

    def _tell(self, domain: str) -> None:
        assert self._on_event is not None
        self._on_event(DomainChange(domain, self._up(domain).exists()))

    async def start(self, on_event: OnChange) -> None:
        self._on_event = on_event
        for name in self._names:
            self._tell(name)

    async def actual(self) -> dict[str, DomainReading]:
        return {
            name: DomainReading(self._up(name).exists(), memory_mib=MIB, saved=self._image(name).exists())
            for name in self._names
        }

    async def save(self, domain: str) -> None:
        await asyncio.sleep(TAKES_S)
        self._image(domain).touch()
        self._up(domain).unlink()
        self._tell(domain)

    async def boot(self, domain: str) -> None:
        self._up(domain).touch()
        self._image(domain).unlink(missing_ok=True)
        self._tell(domain)

    async def save_needs(self, domain: str) -> SaveNeeds:
        return SaveNeeds(MIB)

    async def image_fault(self, domain: str) -> str:
        return "" if self._image(domain).exists() else "there is none"

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain} has no CPU")

    def nearest_cpu(self, percent: int | None) -> int | None:
        return None

    async def set_memory(self, domain: str, mib: int) -> None:
        raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain} has no memory")

    async def shutdown(self, domain: str) -> None:
        self._up(domain).unlink(missing_ok=True)

    async def destroy(self, domain: str) -> None:
        self._up(domain).unlink(missing_ok=True)

    async def resume(self, domain: str) -> None:
        return

    def others(self) -> Others:
        return Others()

    def leave_out(self, away: Collection[str], moving: Collection[str]) -> None:
        return

    def limits(self) -> list[str]:
        return []

    def notes(self) -> list[str]:
        return []

    async def close(self) -> None:
        return
