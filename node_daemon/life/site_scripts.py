"""Runs the site's own scripts at their occasions, on the host and in the guest (docs/site-scripts.md).

Rule: some scripts are waited for, up to their time limit, but no script can prevent anything. If it fails, or if the
guest cannot run it, that is logged and the daemon goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Protocol

from magrathea import supervision
from magrathea.core.model import Host

from ..guest_channel.channel import AgentError, GuestChannel
from .script_runner import ScriptRunner

log = logging.getLogger(__name__)

TOLD_S = 5.0
"""An agent has that long to confirm that it has started its scripts."""
GUEST_MARGIN_S = 5.0
"""Added to the limit of one script, so that the guest's agent can notice it, end the script and answer."""


class DaemonForScripts(Protocol):
    """What site scripts need of the daemon."""

    scripts: ScriptRunner
    channels: dict[str, GuestChannel]

    @property
    def host(self) -> Host: ...


class SiteScripts:
    """Runs the scripts of host and guest at the same time."""

    def __init__(self, daemon: DaemonForScripts) -> None:
        self._daemon = daemon
        self._background: set[asyncio.Task[None]] = set()

    def begin(self, name: str, domain: str, **variables: str) -> None:
        """Start the scripts of this name, here and in the domain. Nothing waits for them."""
        environment = self._environment(name, domain, variables)
        self._daemon.scripts.run(name, environment)
        if self._reachable(domain):
            self._later(self._in_guest(name, domain, environment, wait=False))

    async def run_and_wait(self, name: str, domain: str, *, guest: bool, **variables: str) -> None:
        """Run the scripts of this name. Returns when they have ended or their time is over."""
        environment = self._environment(name, domain, variables)
        work = [self._daemon.scripts.finish(name, environment)]
        if guest and self._reachable(domain):
            work.append(self._in_guest(name, domain, environment, wait=True))
        await asyncio.gather(*work)

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _environment(self, name: str, domain: str, variables: Mapping[str, str]) -> dict[str, str]:
        found = self._daemon.host.domain(domain)
        return {
            "MAGRATHEA_OCCASION": name,
            "MAGRATHEA_HOST": self._daemon.host.name,
            "MAGRATHEA_DOMAIN": domain,
            "MAGRATHEA_KIND": found.kind.value if found else "",
            **{f"MAGRATHEA_{key.upper()}": value[:4096] for key, value in variables.items()},
        }

    def _reachable(self, domain: str) -> bool:
        channel = self._daemon.channels.get(domain)
        return channel is not None and channel.connected

    async def _in_guest(self, name: str, domain: str, environment: dict[str, str], *, wait: bool) -> None:
        within_s = self._daemon.scripts.time_limit_s + GUEST_MARGIN_S if wait else TOLD_S
        try:
            await self._daemon.channels[domain].request("script", within_s, name=name, env=environment, wait=wait)
        except AgentError as error:
            log.info("%s: its scripts of %s: %s", domain, name, error)

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = supervision.start(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
