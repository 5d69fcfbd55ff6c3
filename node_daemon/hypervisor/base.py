"""What the daemon asks of a hypervisor: a few calls and one stream of events.

Rule 1: a driver has no opinion. It does what it is told and reads the truth back; what should be is the core's
business (magrathea/core/plan.py).
Rule 2: every call ends within its deadline, by a result or by a `DriverError`, and may be repeated: setting what
is already set succeeds and changes nothing. A call given up may still take effect, so read `actual()` afterwards.
Rule 3: events only say "look"; whoever misses one finds the same in `actual()`.

Implemented by local.py (groups of processes on this machine).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

CALL_DEADLINE_S = 2.0
"""For a driver's own call. A claim is answered within 2 s (DESIGN.md section 6), and a healthy call takes 1-10 ms."""

CPU = "cpu"
MEMORY = "memory"
"""Words of `Driver.capabilities`: it can cap CPU, it can move memory."""


class DriverError(Exception):
    """A call failed. `code` is for programs and never changes, `text` is for people and says what to do.

    Codes: `no-domain` (not configured), `domain-down` (not running, so nothing to set), `not-supported` (this
    driver cannot do it at all), `not-permitted` (it could, with other rights), `bad-value`, `timeout`, `failed`.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """A domain came up or went down. `start` tells how each configured domain is found."""

    name: str
    up: bool


@dataclass(frozen=True, slots=True)
class ActualDomain:
    """A domain as the hypervisor has it, read just now.

    `cpu_percent`: 100 is one CPU; None: not capped, or not known. `memory_mib`: None: not limited, or not known.
    """

    up: bool
    cpu_percent: int | None = None
    memory_mib: int | None = None


OnEvent = Callable[[DomainEvent], None]
"""Called in the event loop's thread; it must not block."""


class Driver(Protocol):
    """The interface of all drivers."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What this driver can do here and now (`CPU`, `MEMORY`); final once `start` has returned."""
        ...

    async def start(self, on_event: OnEvent) -> None:
        """Connect, find the domains, and tell of their coming and going from now on. Raises DriverError."""
        ...

    async def actual(self) -> dict[str, ActualDomain]:
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
        """Let the domain have `mib` MiB of the host's memory. Raises DriverError."""
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
        raise DriverError("timeout", f"{what} did not end within {seconds:g} s; it is tried again") from error
