"""What an evacuation needs of the rest of the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.model import Host
from magrathea.core.moves import HostWithMoves
from magrathea.core.placement import HostRoom

from ..configuration import NodedConfiguration
from ..hypervisor.base import Driver
from ..life.saves import Saves
from ..moves.requests import MoveRequests
from ..switch.switch import Switch


class HubForEvacuation(Protocol):
    """The hub's client."""

    @property
    def connected(self) -> bool: ...

    async def rooms(self, hosts: Sequence[str]) -> tuple[HostRoom, ...] | None: ...

    def publish(self) -> None: ...


class SleepForEvacuation(Protocol):
    """The sleep of the whole host."""

    @property
    def going_on(self) -> bool: ...


class DaemonForEvacuation(Protocol):
    """The daemon itself."""

    configuration: NodedConfiguration
    driver: Driver
    switch: Switch
    saves: Saves
    move_requests: MoveRequests

    @property
    def hub(self) -> HubForEvacuation: ...

    @property
    def host_sleep(self) -> SleepForEvacuation: ...

    @property
    def host(self) -> Host: ...

    @property
    def place(self) -> HostWithMoves: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    def apply_move(self, event: me.MoveEvent) -> tuple[me.Decision, ...] | None: ...
