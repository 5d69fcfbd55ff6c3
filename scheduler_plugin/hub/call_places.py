"""Limits how many calls to PBS run at once for one host, so that a host whose MoMs hang leaves some for the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection


class CallPlaces:
    """At most `most` calls at once for each host; further ones wait in order. Use it in one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: dict[str, asyncio.Semaphore] = {}
        self._calls: Counter[str] = Counter()
        """Calls of each host that run or wait."""

    async def take(self, hosts: Collection[str]) -> str:
        """Wait for a place of the one of `hosts` with the fewest calls. Returns that host, for `give_back`."""
        host = min(hosts, key=lambda name: (self._calls[name], name))
        self._calls[host] += 1
        try:
            await self._places.setdefault(host, asyncio.Semaphore(self._most)).acquire()
        except asyncio.CancelledError:
            self._leave(host)
            raise
        return host

    def give_back(self, host: str) -> None:
        self._places[host].release()
        self._leave(host)

    def _leave(self, host: str) -> None:
        self._calls[host] -= 1
        if not self._calls[host]:
            del self._calls[host], self._places[host]
