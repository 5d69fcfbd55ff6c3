"""What moves need of the rest of the daemon."""

from __future__ import annotations

from typing import Protocol

from magrathea.core import move_events as me
from magrathea.core.moves import HostWithMoves
from magrathea.messages import MOVES, Message

from ..configuration import NodedConfiguration
from ..hypervisor.base import Driver
from ..switch.switch import Switch


class HubForMoves(Protocol):
    """The hub's client."""

    @property
    def connected(self) -> bool: ...

    def tell_of_moves(self, message: Message, what: str = MOVES) -> None:
        """Send to the hub if it is there and knows messages about `what`; a message that is lost is sent again."""

    def publish(self) -> None: ...


class DaemonForMoves(Protocol):
    """The daemon itself."""

    configuration: NodedConfiguration
    switch: Switch
    driver: Driver

    @property
    def hub(self) -> HubForMoves: ...

    @property
    def place(self) -> HostWithMoves: ...

    def now(self) -> float: ...

    def closed_to_visitors(self) -> str:
        """Why no domain may come now; empty if those of the configured hosts may."""
        ...

    def apply_move(self, event: me.MoveEvent) -> tuple[me.Decision, ...] | None:
        """Make the event a fact; None if it cannot be written to disk."""
        ...

    def observe(self, name: str) -> None: ...

    async def domains_changed(self) -> None:
        """Domains have come or gone: drive, and listen to, those that are here."""
