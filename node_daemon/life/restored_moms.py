"""Lets agents end MoM's connections to PBS after a restore: their other ends are gone.

MoM alone would notice that after half a minute, and its vnode is down until then. A guest that has just been restored
may need many seconds to answer.

Rule 1: nothing waits for the answer, least of all the domain's registration. Its CPUs come with the registration.
Rule 2: an agent that did not manage it in time is asked again, until MoM has noticed it by itself. Later requests could
only harm: they would end good connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from magrathea import supervision
from magrathea.core.refusals import RefusalCode

from ..guest_channel.channel import AgentError, GuestChannel
from ..retries import loop_time

log = logging.getLogger(__name__)

NOTICED_S = 30.0
"""After this time MoM has noticed by itself that a connection is dead (measured)."""
AGAIN_S = 0.5
"""Pause before an agent is asked again."""
PASSING = frozenset({RefusalCode.NO_AGENT, RefusalCode.TIMEOUT, RefusalCode.BUSY})
"""Codes after which the same agent may succeed: it connects anew, was too slow, or is still at it."""


class RestoredMoms:
    """The requests to agents that are under way, at most one of each domain."""

    def __init__(self, channels: Mapping[str, GuestChannel]) -> None:
        self._channels = channels
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def end_soon(self, name: str) -> None:
        """Let the domain's agent end MoM's connections; begins now."""
        self.withdraw(name)
        self._under_way[name] = supervision.start(self._end(name))

    def withdraw(self, name: str) -> None:
        """The domain has gone down: its next life has connections of its own."""
        if (task := self._under_way.pop(name, None)) is not None:
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for name in list(self._under_way):
            self.withdraw(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, name: str) -> None:
        began = loop_time()
        while True:
            left_s = began + NOTICED_S - loop_time()
            if (channel := self._channels.get(name)) is None:
                return  # the domain is no longer configured
            try:
                await channel.request("reconnect", left_s)
            except AgentError as error:
                if error.code in PASSING and left_s > AGAIN_S:
                    log.debug("%s: MoM's connections are not ended yet: %s", name, error)
                    await asyncio.sleep(AGAIN_S)
                    continue
                log.warning("%s: MoM notices by itself that its connection to PBS is dead: %s", name, error)
            else:
                log.info("%s: MoM connects to PBS again, %.1f s after its agent", name, loop_time() - began)
            return
