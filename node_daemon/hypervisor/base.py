"""What the daemon needs of a hypervisor: a few calls and one stream of events.

Rule 1: a driver decides nothing. It does what it is told and reads what is really so. The core decides what should be
(magrathea/core/plan.py).
Rule 2: every call ends within its deadline, with a result or a `DriverError`. It may be repeated: setting a value again
succeeds and changes nothing. A call that timed out may still take effect, so read `actual()` afterwards.
Rule 3: an event only means "read again". If an event is lost, `actual()` still shows the change.
Rule 4: what a driver cannot do is not in its `capabilities`, and is refused with `not-supported`.

Implemented by local/ (groups of processes on this machine) and libvirt/ (virtual machines and containers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeVar

from magrathea.core.refusals import RefusalCode

T = TypeVar("T")

CALL_DEADLINE_S = 2.0
"""For an ordinary call of a driver. A claim is answered within 2 s (docs/architecture.md); a healthy call takes 1-10
ms."""

SAVE_DEADLINE_S = 120.0
"""For `save`, and for a `boot` that restores: both write or read the domain's whole memory on a disk. More for a large
domain (`save_deadline_s`)."""
SLOWEST_MIB_PER_S = 30
"""The slowest disk for images that anybody should have."""

CPU = "cpu"
MEMORY = "memory"
LIFE = "life"
SAVE = "save"
MOVE = "move"
"""Words of `Driver.capabilities`: it can cap CPU; move memory; boot, shut down and destroy; save to disk; move running
domains to other hosts (moving.py)."""


FLOOR_ADVICE = "Its memory is not moved until then, so its `floor_mib` should be all of it"
"""The end of a driver's note about a domain whose memory cannot be moved. Once the floor is all of it, nothing is left
to do."""


class DriverError(Exception):
    """A call failed. `code` is for programs and never changes; `text` is for people and explains what to do.

    Codes of drivers:
      `no-domain`        not configured
      `domain-down`      not running, so there is nothing to set
      `not-supported`    this driver can never do it
      `not-permitted`    it could with other rights
      `bad-value`, `timeout`, `failed`
      `lost`             the hypervisor cannot be reached, so nothing is known about its domains
      `restore-failed`   a saved domain did not start from its image; the image is kept
    Codes of moving memory (memory.py): `memory-short`, `bad-figures`.
    """

    def __init__(self, code: RefusalCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class GuestFails(DriverError):
    """The same, but the reason is the guest. Root there can cause it at will, so it never makes a domain faulty: a
    fault keeps jobs out of the whole host."""


@dataclass(frozen=True, slots=True)
class DomainChange:
    """A domain went up or down; or something else about it changed, and `up` is as before. Read it again.

    `start` reports every configured domain once.
    """

    name: str
    up: bool


@dataclass(frozen=True, slots=True)
class DomainReading:
    """A domain as the hypervisor reports it now.

    `cpu_percent`: the cap, 100 is one CPU; None: no cap, or unknown. `memory_mib`: None: no limit, or unknown.
    `saved`: an image on disk, from which the next boot restores the domain. `paused_externally`: somebody else has
    paused the domain; it is up, but nothing in it runs. `max_memory_mib`: the largest size it can get; None: no bound,
    or unknown. `image_fault`: why the image is not what was saved; empty if nothing shows that.
    `known`: False if the domain is up but could not be read. Then the other fields mean nothing. The driver soon reads
    it again, and reports that with an event.
    """

    up: bool
    cpu_percent: int | None = None
    memory_mib: int | None = None
    saved: bool = False
    paused_externally: bool = False
    max_memory_mib: int | None = None
    known: bool = True
    image_fault: str = ""


@dataclass(frozen=True, slots=True)
class SaveNeeds:
    """What saving a running domain to disk takes.

    `obstacle`: why it can never be saved as it is, for people; empty if it can. `mib`: the largest size of its image.
    `place`: the folder for images. `free_mib`: the room there. None: unknown.
    """

    mib: int
    obstacle: str = ""
    place: str = ""
    free_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Others:
    """All running domains of the hypervisor that the configuration does not name, added up. They count as services."""

    domains: int = 0
    cpus: int = 0
    memory_mib: int = 0


OnChange = Callable[[DomainChange], None]
"""Called in the event loop's thread; it must not block."""


class Driver(Protocol):
    """The interface of all drivers."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What this driver can do on this machine (`CPU`, `MEMORY`, `LIFE`, `SAVE`, `MOVE`); constant once `start` has
        returned."""
        ...

    async def start(self, on_event: OnChange) -> None:
        """Connect, find the domains, and report from now on when they go up or down. Raises DriverError."""
        ...

    async def actual(self) -> dict[str, DomainReading]:
        """The present reading of every configured domain, by name. Raises DriverError."""
        ...

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        """Let all of the domain together use at most `percent` of one CPU's time (None: no cap). Raises DriverError."""
        ...

    def nearest_cpu(self, percent: int | None) -> int | None:
        """What `actual` will report after `set_cpu(percent)`: some drivers have whole CPUs only, or cannot cap.

        Compare readings with this, not with `percent`. Otherwise a value that cannot be set exactly is set again for
        ever.
        """
        ...

    async def set_memory(self, domain: str, mib: int) -> None:
        """Give the domain `mib` MiB of the host's memory as its target. Raises DriverError.

        The guest gives or takes what it can, as fast as it can; `actual` reports what it has.
        """
        ...

    async def boot(self, domain: str) -> None:
        """Start the domain, from its saved image if there is one. A domain that is up stays as it is.

        Returns when the hypervisor runs it, long before the guest is ready. Raises DriverError; with `restore-failed`
        the image is kept.
        """
        ...

    async def shutdown(self, domain: str) -> None:
        """Ask the guest to power off. It may take long, or never do it. Raises DriverError."""
        ...

    async def destroy(self, domain: str) -> None:
        """End the domain at once, like pulling the plug. A domain that is down stays down. Raises DriverError."""
        ...

    async def save(self, domain: str) -> None:
        """Save the domain to disk and end it. Raises DriverError; then the domain keeps running, and no image remains.
        After `timeout` or `lost` it may still be being saved."""
        ...

    async def save_needs(self, domain: str) -> SaveNeeds:
        """What saving the domain would take now. Changes nothing. Raises DriverError."""
        ...

    async def image_fault(self, domain: str) -> str:
        """Why a domain that is down has no image, or none that can be what was saved, as far as that can be told
        without restoring it. Empty if nothing is wrong, or if the domain is up. Raises DriverError."""
        ...

    async def resume(self, domain: str) -> None:
        """Resume a paused domain; a domain that is not paused stays as it is. Raises DriverError."""
        ...

    def others(self) -> Others:
        """Other domains that run here, as of the last `actual`."""
        ...

    def leave_out(self, away: Collection[str], moving: Collection[str]) -> None:
        """From now on: `away` are configured domains that other hosts have, so nobody misses them here. `moving` are,
        by the hypervisor's names, domains on their way to or from here; they are no `others`."""
        ...

    def limits(self) -> list[str]:
        """Those of the notes that are true wherever this driver or hypervisor is used; there is nothing to fix."""
        ...

    def notes(self) -> list[str]:
        """What the driver cannot do here, a sentence each, for the log at the start and for `magrathea status`."""
        ...

    async def close(self) -> None:
        """Stop watching and remove what the driver made for itself. Domains and their caps stay as they are."""
        ...


def save_deadline_s(mib: int) -> float:
    """How long writing or reading an image of that size may take."""
    return max(SAVE_DEADLINE_S, mib / SLOWEST_MIB_PER_S)


async def within(seconds: float, what: str, work: Awaitable[T]) -> T:
    """The result of `work`, or DriverError `timeout` after `seconds`; `what` names the call for people."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise DriverError(RefusalCode.TIMEOUT, f"{what} did not end within {seconds:g} s; it is tried again") from error
