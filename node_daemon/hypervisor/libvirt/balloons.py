"""Reads the present size of moving balloons directly from QEMU.

libvirt's `info` repeats what QEMU last reported about a balloon. QEMU reports at most once a second (QEMU 7.2,
`balloon_change` among the limited events of monitor/monitor.c), so each step of a move would wait for that second.
`memoryStats` asks QEMU itself, and so hangs if QEMU hangs.

It also says what QEMU holds of the host's memory. If a balloon has taken memory and QEMU still holds it, the memory is
pinned, by something that neither the XML nor the process shows (pinning.py). That is noticed before others get it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..base import DriverError

log = logging.getLogger(__name__)

KIB = 1024
MOVING_S = 10.0
"""A balloon that has not moved for this time is at rest; by then libvirt's figure is up to date."""
READ_S = 1.0
"""Time limit of QEMU's answer; measured: 1 ms."""

LEAST_TAKEN_MIB = 64
"""A balloon that has taken less proves nothing."""

Ask = Callable[[str, str, Callable[[Any], Any], float], Awaitable[Any]]
"""(domain, what for people, work on libvirt's domain, seconds) -> the work's result, from the domain's own thread."""


@dataclass(frozen=True, slots=True)
class QemuMemory:
    """A balloon's size, and what its QEMU holds of the host's memory (0: not known), of which `own_mib` may be its
    own."""

    balloon_mib: int
    held_mib: int
    own_mib: int = 0

    def kept(self, now: QemuMemory) -> str:
        """What QEMU has evidently kept since this moment, as a sentence; empty if it may have given everything.

        Of a guest that has never used its memory QEMU holds less than the balloon says. So it counts what QEMU holds
        beyond the balloon's size and its own use, and only if it holds nearly as much as before.
        """
        taken = self.balloon_mib - now.balloon_mib
        own = max(self.own_mib, self.held_mib - self.balloon_mib)
        beyond, fell = now.held_mib - now.balloon_mib - own, self.held_mib - now.held_mib
        if not self.held_mib or not now.held_mib or taken < LEAST_TAKEN_MIB or 2 * beyond <= taken or 2 * fell >= taken:
            return ""
        return (
            f"its balloon has taken {taken} MiB, but QEMU still holds {now.held_mib} MiB of the host's memory: "
            "something pins it (a device, or an option of QEMU). Find it, and start the domain anew without it"
        )


class Balloons:
    """The balloons of one driver. A balloon that could not be read is not asked again until it is set again.

    `on_kept` is called with a domain and a sentence if its QEMU has kept what the balloon took.
    """

    def __init__(self, ask: Ask, on_kept: Callable[[str, str], None] = lambda domain, text: None) -> None:
        self._ask = ask
        self._on_kept = on_kept
        self._before: dict[str, QemuMemory] = {}  # at the start of each move
        self._moving: dict[str, tuple[float, int | None, bool]] = {}  # read until, size before, grows
        self._silent: dict[str, int] = {}  # last known size of domains that were growing and then did not answer

    def about_to_set(self, domain: str, stats: Mapping[str, int], own_mib: int) -> None:
        """The domain's target is about to be set. `stats`: of now; empty if they cannot be had."""
        if domain not in self._moving:
            self._before[domain] = QemuMemory(stats.get("actual", 0) // KIB, stats.get("rss", 0) // KIB, own_mib)

    def target_set(self, domain: str) -> None:
        """The domain's target has just been set: read its balloon for a while."""
        self._moving[domain] = (self._now() + MOVING_S, None, False)
        self._silent.pop(domain, None)

    def last_known(self, domain: str, libvirt_mib: int | None) -> int | None:
        """The size of a domain that was not read here: libvirt's figure, or the last known one if that is larger.

        A QEMU that hangs reports nothing to libvirt. If its domain has grown, libvirt's old figure would let the daemon
        give the same memory to others.
        """
        if libvirt_mib is None:  # the domain is down
            self._silent.pop(domain, None)
            return None
        return max(libvirt_mib, self._silent.get(domain, 0))

    async def mib(self) -> dict[str, int]:
        """The present size of each domain whose balloon may be moving and answers, in MiB."""
        now = self._now()
        self._moving = {name: state for name, state in self._moving.items() if state[0] > now}
        asked = dict(self._moving)
        found = {}
        for name, read in zip(asked, await asyncio.gather(*map(self._read, asked)), strict=True):
            mib = read.balloon_mib if read is not None else None
            if mib is not None:
                found[name] = mib
            before = self._before.get(name)
            if read is not None and before is not None and (text := before.kept(read)):
                del self._before[name]
                self._on_kept(name, text)
            if self._moving.get(name) is not asked[name]:
                continue  # its target was set again meanwhile
            if mib is None:
                del self._moving[name]
                _, had, grew = asked[name]
                if had is not None and grew:
                    self._silent[name] = had
            elif mib != (had := asked[name][1]):
                self._moving[name] = (self._now() + MOVING_S, mib, had is not None and mib > had)
        return found

    async def _read(self, domain: str) -> QemuMemory | None:
        try:
            stats = await self._ask(domain, f"reading the balloon of domain {domain}", _stats, READ_S)
        except DriverError as error:
            log.debug("%s: what is known of its balloon may be a second old: %s", domain, error)
            return None
        kib = stats.get("actual")
        return None if kib is None else QemuMemory(int(kib) // KIB, int(stats.get("rss", 0)) // KIB)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _stats(domain: Any) -> dict[str, int]:
    found: dict[str, int] = domain.memoryStats()
    return found
