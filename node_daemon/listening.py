"""The guest channels of the domains that are on this host."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from magrathea.core.model import Host

from .claims.claims import Claims
from .configuration import NodedConfiguration
from .guest_channel.channel import GuestChannel, qemu_user


class DaemonForChannels(Protocol):
    """What this needs of the daemon."""

    configuration: NodedConfiguration
    claims: Claims

    @property
    def host(self) -> Host: ...


class Listening:
    """`channels`: those that are open, by domain."""

    def __init__(self, daemon: DaemonForChannels) -> None:
        self.channels: dict[str, GuestChannel] = {}
        self._daemon = daemon
        self._one_at_a_time = asyncio.Lock()

    async def adjust(self) -> None:
        """Open a channel for each domain, and close those of domains that are gone. Raises OSError."""
        async with self._one_at_a_time:
            host, configuration = self._daemon.host, self._daemon.configuration
            names = {d.name for d in host.domains}
            for name in [n for n in self.channels if n not in names]:
                await self.channels.pop(name).close()
            owner = self._user() if names - self.channels.keys() else None
            for name in sorted(names - self.channels.keys()):
                channel = GuestChannel(host.name, name, configuration.guest_socket(name), self._daemon.claims, owner)
                await channel.start()
                self.channels[name] = channel

    def _user(self) -> int | None:
        """QEMU's user, who must reach the guest channels; None if only the daemon's own user must. Raises OSError."""
        host = self._daemon.configuration.host
        return qemu_user(host.qemu_user) if host.driver == "libvirt" and os.geteuid() == 0 else None

    async def close(self) -> None:
        for channel in self.channels.values():
            await channel.close()
