"""Reads the present size of moving balloons directly from QEMU.

libvirt's `info` repeats what QEMU last reported about a balloon. QEMU reports at most once a second (QEMU 7.2,
`balloon_change` among the limited events of monitor/monitor.c), so each step of a move would wait for that second.
`memoryStats` asks QEMU itself, and so hangs if QEMU hangs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..base import DriverError

log = logging.getLogger(__name__)

KIB = 1024
MOVING_S = 10.0
"""A balloon that has not moved for this time is at rest; by then libvirt's figure is up to date."""
READ_S = 1.0
"""Time limit of QEMU's answer; measured: 1 ms."""

Ask = Callable[[str, str, Callable[[Any], Any], float], Awaitable[Any]]
"""(domain, what for people, work on libvirt's domain, seconds) -> the work's result, from the domain's own thread."""


class Balloons:
    """The balloons of one driver. A balloon that could not be read is not asked again until it is set again."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._moving: dict[str, tuple[float, int | None, bool]] = {}  # read until, size before, grows
        self._silent: dict[str, int] = {}  # last known size of domains that were growing and then did not answer

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
        for name, mib in zip(asked, await asyncio.gather(*map(self._read, asked)), strict=True):
            if mib is not None:
                found[name] = mib
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

    async def _read(self, domain: str) -> int | None:
        try:
            stats = await self._ask(domain, f"reading the balloon of domain {domain}", _stats, READ_S)
        except DriverError as error:
            log.debug("%s: what is known of its balloon may be a second old: %s", domain, error)
            return None
        kib = stats.get("actual")
        return None if kib is None else int(kib) // KIB

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _stats(domain: Any) -> dict[str, int]:
    found: dict[str, int] = domain.memoryStats()
    return found
