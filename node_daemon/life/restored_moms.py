"""What agents do after a restore: they end MoM's connections to PBS, whose other ends are gone. And they set the clock,
if they were too slow to do that at once.

MoM alone would notice a dead connection after half a minute, and its vnode is down until then. A guest that has just
been restored may need many seconds to answer.

Rule 1: nothing waits for the answer, least of all the domain's registration. Its CPUs come with the registration.
Rule 2: an agent that did not manage it in time is asked again, until MoM has noticed it by itself. Later requests could
only harm: they would end good connections. A clock is tried for longer: jobs see a wrong time until it is set.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping

from magrathea import supervision
from magrathea.core.refusals import RefusalCode

from ..guest_channel.channel import AgentError, GuestChannel
from ..retries import loop_time

log = logging.getLogger(__name__)

NOTICED_S = 30.0
"""After this time MoM has noticed by itself that a connection is dead (measured)."""
AGAIN_S = 0.5
"""Pause before an agent is asked again."""
CLOCK_S = 600.0
"""For so long a clock is tried: on an overloaded host a restored guest may need minutes to answer anything."""
CLOCK_ANSWER_S = 10.0
"""An agent has that long to set its clock. The time in the request is as old as the request."""
PASSING = frozenset({RefusalCode.NO_AGENT, RefusalCode.TIMEOUT, RefusalCode.BUSY})
"""Codes after which the same agent may succeed: it connects anew, was too slow, or is still at it."""


class RestoredMoms:
    """The requests to agents that are under way, at most one of each kind and domain."""

    def __init__(self, channels: Mapping[str, GuestChannel]) -> None:
        self._channels = channels
        self._connections: dict[str, asyncio.Task[None]] = {}
        self._clocks: dict[str, asyncio.Task[None]] = {}

    def end_soon(self, name: str) -> None:
        """Let the domain's agent end MoM's connections; begins now."""
        self._begin(self._connections, name, self._end(name))

    def set_clock_soon(self, name: str) -> None:
        """Let the domain's agent set its clock, as soon as it can."""
        self._begin(self._clocks, name, self._set_clock(name))

    def _begin(self, tasks: dict[str, asyncio.Task[None]], name: str, work: Coroutine[None, None, None]) -> None:
        if (old := tasks.pop(name, None)) is not None:
            old.cancel()
        tasks[name] = supervision.start(work)

    def withdraw(self, name: str) -> None:
        """The domain has gone down: its next life has connections and a clock of its own."""
        for tasks in (self._connections, self._clocks):
            if (task := tasks.pop(name, None)) is not None:
                task.cancel()

    async def close(self) -> None:
        tasks = [*self._connections.values(), *self._clocks.values()]
        for name in {*self._connections, *self._clocks}:
            self.withdraw(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set_clock(self, name: str) -> None:
        began = loop_time()
        while (channel := self._channels.get(name)) is not None:
            try:
                await channel.request("clock", CLOCK_ANSWER_S, unix_s=time.time())
            except AgentError as error:
                if error.code in PASSING and loop_time() - began < CLOCK_S:
                    await asyncio.sleep(AGAIN_S)
                    continue
                log.warning("%s: its clock stood still and could not be set: %s", name, error)
            else:
                log.info("%s: its clock is set, %.1f s after its agent was there", name, loop_time() - began)
            return

    async def _end(self, name: str) -> None:
        began = loop_time()
        while True:
            left_s = max(AGAIN_S, began + NOTICED_S - loop_time())
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
