"""Which room hosts have for domains of others, as each has said last. The target itself decides in the end.

Rule 1: a host is told only of hosts that take its domains: what others have is none of its business.
Rule 2: what a silent host has said is worth nothing. A host that has said nothing takes nobody.
"""

from __future__ import annotations

from collections.abc import Callable

from magrathea.core.placement import HostRoom
from magrathea.move_messages import RoomOf, RoomsAsked, RoomsTold, RoomTold


class Rooms:
    """`live`: whether a host is being heard."""

    def __init__(self, live: Callable[[str], bool]) -> None:
        self._live = live
        self._said: dict[str, RoomTold] = {}

    def said(self, host: str, room: RoomTold) -> None:
        self._said[host] = room

    def room(self, host: str) -> HostRoom | None:
        """What the host has said of its room last; None if it is silent, or takes nobody."""
        said = self._said.get(host)
        return said.room if said is not None and self._live(host) else None

    def answer(self, host: str, asked: RoomsAsked) -> RoomsTold:
        return RoomsTold(id=asked.id, rooms=[self._of(other, host) for other in asked.hosts])

    def _of(self, host: str, source: str) -> RoomOf:
        said = self._said.get(host)
        if said is None or not self._live(host):
            return RoomOf(host=host, closed="the hub does not hear it")
        if source not in said.welcome:
            return RoomOf(host=host, closed=f"it takes no domains from {source}")
        return RoomOf(
            host=host,
            mode=said.mode,
            cpus=said.cpus,
            mib=said.mib,
            whole_cpus=said.whole_cpus,
            with_jobs=said.with_jobs,
            closed=said.closed,
        )
