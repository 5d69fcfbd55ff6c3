"""What the daemon asks of a hypervisor: a few calls and one stream of events.

Rule 1: a driver has no opinion. It does what it is told and reads the truth back; what should be is the core's
business (magrathea/core/plan.py).
Rule 2: every call ends within its deadline, by a result or by a `DriverError`, and may be repeated: setting what
is already set succeeds and changes nothing. A call given up may still take effect, so read `actual()` afterwards.
Rule 3: events only say "look"; whoever misses one finds the same in `actual()`.
Rule 4: what a driver cannot do it does not name in `capabilities`, and refuses with `not-supported`.

Implemented by local.py (groups of processes on this machine) and libvirt.py (virtual machines and containers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from magrathea.core.refusals import RefusalCode

T = TypeVar("T")

CALL_DEADLINE_S = 2.0
"""For a driver's own call. A claim is answered within 2 s (docs/architecture.md), and a healthy call takes 1-10 ms."""

SAVE_DEADLINE_S = 120.0
"""For `save`, and for a `boot` that restores: both move the domain's whole memory to or from a disk."""

CPU = "cpu"
MEMORY = "memory"
LIFE = "life"
SAVE = "save"
"""Words of `Driver.capabilities`: it can cap CPU; move memory; boot, shut down and destroy; save to disk."""


class DriverError(Exception):
    """A call failed. `code` is for programs and never changes, `text` is for people and says what to do.

    Codes: `no-domain` (not configured), `domain-down` (not running, so nothing to set), `not-supported` (this
    driver cannot do it at all), `not-permitted` (it could, with other rights), `bad-value`, `timeout`, `failed`,
    `lost` (the hypervisor cannot be reached, nothing is known of it), `restore-failed` (a saved domain did not come
    back; its image is kept). Of moving memory (memory.py), not of drivers: `memory-short`, `bad-figures`.
    """

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True)
class DomainChange:
    """A domain came up or went down, or something else of it has changed (`up` is then as it was): look.

    `start` tells how each configured domain is found.
    """

    name: str
    up: bool


@dataclass(frozen=True, slots=True)
class DomainReading:
    """A domain as the hypervisor has it, read just now.

    `cpu_percent`: 100 is one CPU; None: not capped, or not known. `memory_mib`: None: not limited, or not known.
    `saved`: there is an image of it on disk, which the next boot restores. `paused_externally`: somebody else has
    paused it: it is up, but nothing in it runs. `max_memory_mib`: what it could be given at most; None: no bound, or
    not known.
    `known`: False where it is up and could not be read this time, so that nothing else here is said of it; the driver
    reads it again soon, and tells.
    """

    up: bool
    cpu_percent: int | None = None
    memory_mib: int | None = None
    saved: bool = False
    paused_externally: bool = False
    max_memory_mib: int | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class Others:
    """Domains of the hypervisor that run and of which the configuration does not speak: services, all together."""

    domains: int = 0
    cpus: int = 0
    memory_mib: int = 0


OnChange = Callable[[DomainChange], None]
"""Called in the event loop's thread; it must not block."""


class Driver(Protocol):
    """The interface of all drivers."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What this driver can do here and now (`CPU`, `MEMORY`, `LIFE`, `SAVE`); final once `start` has returned."""
        ...

    async def start(self, on_event: OnChange) -> None:
        """Connect, find the domains, and tell of their coming and going from now on. Raises DriverError."""
        ...

    async def actual(self) -> dict[str, DomainReading]:
        """Every configured domain as it is now, by name. Raises DriverError."""
        ...

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        """Let all of the domain together use at most `percent` of one CPU's time (None: no cap). Raises DriverError."""
        ...

    def nearest_cpu(self, percent: int | None) -> int | None:
        """What `actual` will say after `set_cpu(percent)`: some drivers have whole CPUs only, or none to give.

        Compare with this, not with `percent`, else a step that cannot be done any better is done for ever.
        """
        ...

    async def set_memory(self, domain: str, mib: int) -> None:
        """Aim at the domain having `mib` MiB of the host's memory; `actual` tells what it has. Raises DriverError.

        It is a target: the guest gives what it can, as fast as it can.
        """
        ...

    async def boot(self, domain: str) -> None:
        """Start the domain; where it is saved to disk, go on from there. One that is up stays as it is.

        Returns when the hypervisor runs it, long before the guest is ready. Raises DriverError; `restore-failed`
        leaves the image where it is.
        """
        ...

    async def shutdown(self, domain: str) -> None:
        """Ask the guest to power itself off; it may take long, or never do it. Raises DriverError."""
        ...

    async def destroy(self, domain: str) -> None:
        """End the domain at once, as pulling the plug does; one that is down stays so. Raises DriverError."""
        ...

    async def save(self, domain: str) -> None:
        """Save the domain to disk and end it. Within SAVE_DEADLINE_S. Raises DriverError, and then it runs on."""
        ...

    async def resume(self, domain: str) -> None:
        """Let a paused domain go on; one that is not paused stays as it is. Raises DriverError."""
        ...

    def others(self) -> Others:
        """What else runs here, as of the last `actual`."""
        ...

    def notes(self) -> list[str]:
        """What it cannot do here, a sentence each, for the log at start and for `magrathea status`."""
        ...

    async def close(self) -> None:
        """Stop watching and give back what the driver made for itself; domains and their caps stay as they are."""
        ...


async def within(seconds: float, what: str, work: Awaitable[T]) -> T:
    """The result of `work`, or DriverError `timeout` after `seconds`; `what` names the call for people."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise DriverError(RefusalCode.TIMEOUT, f"{what} did not end within {seconds:g} s; it is tried again") from error
