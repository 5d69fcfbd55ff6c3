"""What the lives of domains need of the rest of the daemon."""

from __future__ import annotations

from typing import Protocol

from magrathea.core import events as ev
from magrathea.core.model import Host

from ..configuration import NodedConfiguration
from ..guest_channel.channel import GuestChannel
from ..hypervisor.base import Driver
from ..switch.switch import Switch
from .saves import Saves
from .site_scripts import SiteScripts


class DaemonForLife(Protocol):
    """What the lives of domains need of the daemon."""

    configuration: NodedConfiguration
    driver: Driver
    switch: Switch
    site_scripts: SiteScripts
    saves: Saves
    channels: dict[str, GuestChannel]

    @property
    def host(self) -> Host: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    def observe(self, name: str) -> None: ...

    async def ask_before_wake(self, domain: str) -> None:
        """Remove the jobs of a sleeping domain that PBS no longer has there."""
        ...

    def may_save(self, name: str) -> bool:
        """Whether the save of a domain may begin now, or has to wait for others."""
        ...

    def life_rests(self, name: str) -> bool:
        """True while a move between hosts decides about the domain's life."""
        ...
