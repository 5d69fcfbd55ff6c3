"""Asks hosts for their histories on behalf of somebody who asks the hub."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable

from magrathea.messages import HistoryAsked, HistoryTold, HostHistory, Message

ANSWER_S = 3.0
"""Time for all hosts to answer. The client of the hub waits for 5 s."""
MOST_HOSTS = 64
"""Most hosts that are asked for one question. Nobody reads more histories."""


class Histories:
    """Asks hosts and collects their answers. `send` returns True if it has queued the message for the host."""

    def __init__(self, send: Callable[[str, Message], bool], answer_s: float = ANSWER_S) -> None:
        self._send = send
        self._answer_s = answer_s
        self._ids = itertools.count(1)
        self._asked: dict[tuple[str, int], asyncio.Future[HistoryTold]] = {}

    async def ask(self, hosts: Iterable[str], about: str, since: float, limit: int) -> list[HostHistory]:
        """The history of each of these hosts, or its trouble if the host does not answer."""
        question = HistoryAsked(id=next(self._ids), about=about[:255], since=max(0.0, since), limit=max(1, limit))
        loop = asyncio.get_running_loop()
        waiting = {host: loop.create_future() for host in sorted(hosts) if self._send(host, question)}
        self._asked |= {(host, question.id): future for host, future in waiting.items()}
        try:
            if waiting:
                await asyncio.wait(waiting.values(), timeout=self._answer_s)
        finally:
            for host in waiting:
                del self._asked[host, question.id]
        return [self._of(host, waiting.get(host)) for host in sorted(hosts)]

    def _of(self, host: str, future: asyncio.Future[HistoryTold] | None) -> HostHistory:
        if future is None:
            return HostHistory(host=host, trouble="it cannot be reached now")
        if not future.done():
            return HostHistory(host=host, trouble=f"no answer within {self._answer_s:g} s; is it of an older version?")
        return HostHistory(host=host, entries=future.result().entries, trouble=future.result().trouble)

    def told(self, host: str, message: HistoryTold) -> None:
        """Take a host's answer. A late answer is dropped."""
        future = self._asked.get((host, message.id))
        if future is not None and not future.done():
            future.set_result(message)
