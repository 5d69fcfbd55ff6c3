"""Watches a move, and helps it to end by stopping the jobs or pausing the domain. A move that sends anything goes on.

Rule 1: what helps is decided by the passes alone (`help_needed`). Whoever ordered the move stops the jobs; if that does
not succeed within its time, the domain is paused when the next passes show that it has to be.
Rule 2: the figures may be unreadable for a while. Then nothing is done; the move goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from magrathea.core.passes import Help

from ...base import DriverError
from ...moving import STOP_LIMIT_S, MoveProgress, Watcher
from .copying import Copying

log = logging.getLogger(__name__)

POLL_S = 0.05
"""A move's figures are read this often: an idle guest of 256 MiB is moved in a second. A reading takes 2 ms."""
IDLE_S = 60.0
"""A move that has sent nothing for this long is cancelled: the network between the hosts is gone. libvirtd notices the
loss of the other libvirtd after 30 s."""
JOB_NONE = 0
IN, OUT = 4, 5
"""libvirt's operations of a job: an incoming, an outgoing migration (VIR_DOMAIN_JOB_OPERATION_...)."""


class Hands(Protocol):
    """What watching needs of a mover."""

    async def job(self, domain: str) -> tuple[Mapping[str, object] | None, bool]:
        """libvirt's figures about the domain's job, and whether the domain's processors run. No figures if the domain
        is not here; None if they cannot be read now."""

    async def pause(self, domain: str) -> bool:
        """Pause the domain for the rest of its move. False: it has failed, and may be tried again."""

    async def cancel(self, domain: str) -> bool:
        """See `moving.DomainMover`. Raises DriverError."""


async def watch(domain: str, hands: Hands, watcher: Watcher, moving: asyncio.Future[None] | None) -> MoveProgress:
    """Report the move's progress and help it to end, until it has ended. `moving`: its call; None: ask its job."""
    loop = asyncio.get_running_loop()
    copying, progress = Copying(loop.time()), MoveProgress()
    stopping: asyncio.Task[None] | None = None
    paused = cancelled = False
    try:
        while moving is None or not moving.done():
            job, is_running = await hands.job(domain)
            if moving is None and job is not None and job.get("type", JOB_NONE) == JOB_NONE:
                break
            if job is not None and job.get("operation") == OUT:
                progress = copying.take(job, loop.time(), is_running)
                watcher.progressed(progress)
            if progress.help >= Help.STOP_JOBS and stopping is None:
                stopping = asyncio.create_task(_stop_jobs(domain, watcher, progress))
                stopping.add_done_callback(lambda _: copying.stopped())
            if progress.help is Help.PAUSE_DOMAIN and not paused:
                paused = await hands.pause(domain)
            if copying.idle_s(loop.time()) > IDLE_S and not cancelled:
                log.error("domain %s: nothing was sent for %g s; its move is cancelled", domain, IDLE_S)
                cancelled = await _cancel(domain, hands)
            if moving is not None:
                await asyncio.wait({moving}, timeout=POLL_S)
            else:
                await asyncio.sleep(POLL_S)
        if stopping is not None and stopping.done():
            await stopping  # raises what it has raised
    finally:
        if stopping is not None:
            stopping.cancel()
    return progress


async def _stop_jobs(domain: str, watcher: Watcher, progress: MoveProgress) -> None:
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await watcher.stop_jobs(progress)
    except (TimeoutError, DriverError) as error:
        log.warning("domain %s: its jobs are not stopped for its move: %s", domain, error or "no answer")


async def _cancel(domain: str, hands: Hands) -> bool:
    try:
        return await hands.cancel(domain)
    except DriverError as error:
        log.warning("the move of domain %s is not cancelled yet: %s", domain, error)
        return False
