"""Copies of domains that are under way from here.

Rule 1: a copy belongs to the hypervisor. If this daemon ends, it goes on, and the next daemon follows it to its end.
Rule 2: a copy is made without the cap of a preempted domain: the hypervisor copies within it, ten times as long, and
MoM would be away for that time if the domain is paused. The standing stop holds without the cap.
Rule 3: a copy counts as over only when the core has taken that as a fact (`collect`). Until then looks at the domain
mean nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from magrathea.core import move_events as me
from magrathea.core.passes import rest_s
from magrathea.core.sleeping import jobs_can_be_saved

from ..configuration import NodedConfiguration
from ..hypervisor.base import DriverError
from ..hypervisor.moving import DomainMover, MoveOutcome, MoveProgress, Terms
from .needs import DaemonForMoves
from .papers import Papers, PapersRefused, destination, read_room

log = logging.getLogger(__name__)

PAUSE_S = 3.0
"""If sending the rest takes longer than that, the jobs are stopped for it instead of the whole domain."""
LOOK_S = 0.05
"""How often it is looked whether the jobs are stopped."""


def terms(c: NodedConfiguration) -> Terms:
    """What this host permits of the domains that leave it."""
    return Terms(tuple(c.moves.shared), c.moves.copy_disks, c.moves.same_cpus)


class Watched:
    """Notes how far a copy is, and lets the jobs rest if it does not end. See `moving.Watcher`."""

    def __init__(self, daemon: DaemonForMoves, name: str) -> None:
        self.progress = MoveProgress()
        self._daemon = daemon
        self._name = name

    def progressed(self, progress: MoveProgress) -> None:
        if progress.is_still and not self.progress.is_still:
            self._daemon.apply_move(me.StandsStill(self._daemon.now(), self._name))
        self.progress = progress

    async def stop_jobs(self, progress: MoveProgress) -> None:
        """Returns when they are stopped and suspended in PBS; at once if pausing the domain takes only moments."""
        left_s = rest_s(progress.left_bytes, progress.sent_bytes_per_s)
        if left_s is not None and left_s <= PAUSE_S:
            log.info("%s is paused for the rest of its move, about %.1f s", self._name, left_s)
            return
        log.info("%s: its jobs are stopped for the rest of its move: they write faster than it is sent", self._name)
        self._daemon.apply_move(me.JobsMustRest(self._daemon.now(), self._name))
        while (domain := self._daemon.place.host.domain(self._name)) is not None and domain.rests_for_move:
            if jobs_can_be_saved(self._daemon.place.host, domain):
                break
            await asyncio.sleep(LOOK_S)


class Copies:
    """`ended`: is called when a copy has ended, and `collect` will make that a fact."""

    def __init__(self, daemon: DaemonForMoves, mover: DomainMover, ended: Callable[[], None]) -> None:
        self._daemon = daemon
        self._mover = mover
        self._ended = ended
        self._tasks: dict[str, asyncio.Task[str | None]] = {}
        """Each returns why its copy has failed, or an empty text; None if that is a fact already."""
        self._watched: dict[str, Watched] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    def progress(self, name: str) -> MoveProgress | None:
        """How far the domain's copy is; None if there is none."""
        return self._watched[name].progress if name in self._watched else None

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, name: str, papers: Papers) -> None:
        """Let the hypervisor copy the domain to the host that has prepared for it."""
        watched = self._watched[name] = Watched(self._daemon, name)
        self._start(name, self._copied(name, papers, watched))

    def follow(self, name: str) -> None:
        """Watch a copy that an earlier daemon has begun."""
        watched = self._watched[name] = Watched(self._daemon, name)

        async def followed() -> None:
            await self._mover.follow(name, watched)

        self._start(name, followed())

    def _start(self, name: str, work: Coroutine[None, None, str | None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._ended())

    def collect(self) -> None:
        """Make facts of the copies that have ended."""
        for name, task in list(self._tasks.items()):
            if not task.done() or task.cancelled():
                continue
            error = task.exception()
            failed = task.result() if error is None else f"a defect: {error!r}"
            if failed is not None and self._daemon.apply_move(me.CopyOver(self._daemon.now(), name, failed)) is None:
                continue
            del self._tasks[name], self._watched[name]

    async def _copied(self, name: str, papers: Papers, watched: Watched) -> str:
        """Why the copy has failed; empty if it has not."""
        c, record = self._daemon.configuration, self._daemon.place.moves.record(name)
        transfer = record.transfer if record is not None else None
        if transfer is None:
            return "the hub has taken back its grant"
        try:
            room = read_room(transfer.room)
            way = destination(c, room)
            departure = await self._mover.departure(name, terms(c))
            if departure != papers.departure:
                return "its disks or devices have changed since the move was asked for; ask for it again"
            await self._daemon.switch.uncap(name)
            self._daemon.observe(f"copy {name}")
            moved = await self._mover.move(name, departure, room.arrival, way, watched)
        except (DriverError, PapersRefused) as error:
            return str(error)
        self._daemon.observe(f"copied {name}")
        if moved.outcome is MoveOutcome.GONE:
            return ""
        return moved.why or "the hypervisor does not know what became of the copy"
