"""Sets the comments of job_comments.py in PBS, by calls that wait in the pool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial

from magrathea.core.model import JobKey
from scheduler_plugin.pbs.base import PbsError

from .call_pool import CallPool
from .job_actions import RefusalProgress, explain, say
from .job_comments import Comment

log = logging.getLogger(__name__)

EXPLAIN_S = (0.0, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)
"""Pauses between looks whether PBS has taken back a refused job, so that its comment can be set. The first look should
still find the job on the host that refused it."""


async def explain_in_time(pool: CallPool, hosts: Collection[str], key: JobKey, comment: Comment) -> None:
    """Explain a refused start as soon as PBS has taken the job back. `hosts`: whom the calls are charged to."""
    so_far = RefusalProgress.UNSEEN
    for pause_s in EXPLAIN_S:
        await asyncio.sleep(pause_s)
        try:
            task = partial(explain, key=key, comment=comment, so_far=so_far)
            so_far = await pool.run(task, hosts)
        except PbsError as error:
            log.info("job %s: comment not set: %s", key, error)
            return
        if so_far is RefusalProgress.OVER:
            return


async def comment_on(pool: CallPool, hosts: Collection[str], key: JobKey, comment: Comment) -> None:
    """Set the comment of a job that has started. `hosts`: whom the call is charged to."""
    try:
        await pool.run(lambda pbs: say(pbs, key, comment), hosts)
    except PbsError as error:
        log.info("job %s: comment not set: %s", key, error)
