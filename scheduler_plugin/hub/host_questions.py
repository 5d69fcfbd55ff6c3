"""Answers what hosts ask about jobs: by what the hub knows, otherwise by asking PBS now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from magrathea.core.model import JobKey
from magrathea.messages import GivenAsked, GivenTold, Message, PartsAsked, PartsTold
from scheduler_plugin.pbs.base import PbsError

from .call_pool import CallPool
from .farm import Farm
from .lanes import Lane
from .placements import told

log = logging.getLogger(__name__)

Charged = Callable[[Mapping[str, int], Lane], AbstractContextManager[None]]
"""Charges the time that a block takes to hosts."""


class HostQuestions:
    """`questions`: the pool for those for which a claim waits. `works`: whether preemptions could be booked now."""

    def __init__(
        self,
        farm: Farm,
        pool: CallPool,
        questions: CallPool,
        send: Callable[[str, Message], bool],
        charged: Charged,
        works: Callable[[], bool],
    ) -> None:
        self._farm, self._pool, self._questions = farm, pool, questions
        self._send, self._charged, self._works = send, charged, works

    async def tell_parts(self, host: str, asked: PartsAsked, at: float) -> None:
        key, farm = JobKey(asked.job, asked.run), self._farm
        if farm.parts.must_look(host, key, at):
            try:
                job = await self._pool.run(lambda pbs: pbs.job(key.id), [host])
                farm.looked(key, job, at)
            except PbsError as error:
                log.info("job %s: PBS cannot be asked: %s", key, error)
        with self._charged({host: 1}, Lane.PARTS):
            unready = farm.parts.unready(host, key, asked.vnodes)
            self._send(host, PartsTold(id=asked.id, parts=unready))

    async def tell_given(self, host: str, asked: GivenAsked, at: float) -> None:
        """Answer by what PBS has said lately, otherwise by asking PBS now."""
        key, placements = JobKey(asked.job, asked.run), self._farm.placements
        unknown = GivenTold(id=asked.id, given=None)
        if not self._works():  # no preemption could be booked
            self._send(host, unknown)
            return
        answer = placements.known(host, asked, at)
        if answer is None and placements.may_ask(host, asked, at):
            try:
                job = await (self._questions if asked.urgent else self._pool).run(lambda pbs: pbs.job(key.id), [host])
                placements.answered(key.id, job, at)
                if asked.urgent:  # its victims will be reported in a moment
                    self._farm.looked(key, job, at)
                answer = told(asked, job)
            except PbsError as error:
                log.info("job %s: PBS cannot be asked: %s", key, error)
        self._send(host, answer or unknown)
