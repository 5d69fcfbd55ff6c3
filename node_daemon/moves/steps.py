"""The steps of moves that end within seconds: prepare, abort, let run, discard, remove files. Each may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable

from magrathea.core import move_events as me
from magrathea.core.departures import closed
from magrathea.core.moves import MoveStage
from magrathea.core.refusals import RefusalCode

from ..hypervisor.base import DriverError
from ..hypervisor.moving import Arrival, DomainMover
from ..retries import Retries, Slot, sentence
from . import looks
from .needs import DaemonForMoves
from .papers import Papers, PapersRefused, premises, read_room, room_of, unacceptable, unlike_facts

log = logging.getLogger(__name__)

RETRY_S = (0.5, 1.0, 2.0, 5.0)
"""Pauses after the first, second, ... failure of a step."""


class MoveSteps:
    """At most one step per domain is under way. `ended`: is called when one has ended."""

    def __init__(self, daemon: DaemonForMoves, mover: DomainMover, ended: Callable[[], None]) -> None:
        self._daemon = daemon
        self._mover = mover
        self._ended = ended
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._retries = Retries(RETRY_S)
        self._cleared: set[tuple[str, int]] = set()
        """Domains, with the number of their move, of which nothing is left here."""

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    def notes(self) -> list[str]:
        return [sentence(slot, failure) for slot, failure in self._retries.items()]

    def forget(self, names: Iterable[str]) -> None:
        """No step of these domains is due any more."""
        over = frozenset(names)
        self._retries.forget(lambda slot: slot[1] in over)

    def keep_only(self, names: Iterable[str]) -> None:
        """Only these domains still move."""
        left = frozenset(names)
        self._retries.forget(lambda slot: slot[1] not in left)
        self._cleared = {(name, number) for name, number in self._cleared if name in left}

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, kind: str, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        slot: Slot = (kind, name)
        if name in self._tasks or self._retries.wait_s(slot):
            return
        task = asyncio.get_running_loop().create_task(work())
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._done(slot, done))

    def _done(self, slot: Slot, task: asyncio.Task[None]) -> None:
        self._tasks.pop(slot[1], None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._retries.succeeded(slot)
        else:
            if not isinstance(error, DriverError):
                log.error("%s of %s failed by a defect", *slot, exc_info=error)
            self._retries.failed(slot, error.code if isinstance(error, DriverError) else RefusalCode.FAILED, str(error))
        self._ended()

    # The steps

    def prepare(self, name: str, papers: Papers) -> None:
        """Make what an arrival needs here, and let the core know."""
        arriving = self._daemon.place.moves.arriving_of(name)
        if arriving is None:
            return
        number, facts = arriving.number, arriving.parcel.facts if arriving.parcel else None

        async def work() -> None:
            closed = self._daemon.closed_to_visitors()
            failed, room = closed or unacceptable(self._daemon.configuration, name, papers), ""
            failed = failed or (unlike_facts(papers, facts) if facts is not None else "")
            if not failed:
                try:
                    room = await self._prepared(name, papers)
                except DriverError as error:
                    failed = error.text
                except PapersRefused as error:
                    failed = str(error)
            self._daemon.apply_move(me.RoomMade(self._daemon.now(), name, number, failed, room))

        self._start("preparing", name, work)

    async def _prepared(self, name: str, papers: Papers) -> str:
        """What was made, in words for the source. Raises DriverError, PapersRefused; then nothing was."""
        c = self._daemon.configuration
        arrival = await self._mover.prepare(name, papers.departure, premises(c, name))
        self._daemon.observe(f"prepare {name}")
        try:
            return room_of(c.visitors, arrival).encoded()
        except PapersRefused:
            await self._mover.clear(name, arrival)
            raise

    def abort(self, name: str) -> None:
        async def work() -> None:
            await self._mover.cancel(name)
            self._daemon.observe(f"abort {name}")

        self._start("giving up the copy", name, work)

    def run(self, name: str) -> None:
        """Let a domain run that has arrived here, or that its copy has left paused here."""

        async def work() -> None:
            await self._mover.go_on_here(name, looks.is_awaited(self._daemon.place.moves.arriving_of(name)))
            self._daemon.observe(f"run {name}")

        self._start("letting run", name, work)

    def discard(self, name: str) -> None:
        """End and forget what is here of a domain that is elsewhere."""

        async def work() -> None:
            await self._mover.give_up(name, looks.is_awaited(self._daemon.place.moves.arriving_of(name)))
            self._daemon.observe(f"discard {name}")

        self._start("discarding", name, work)

    def clears(self, name: str, papers: Papers | None) -> bool:
        """Remove the files that a move has left here, before the move is forgotten. False if there are none any more:
        those that were made for an arrival that came to nothing, and the copied disks of a domain that has gone."""
        found = self._left_behind(name, papers)
        if found is None or (name, found[0]) in self._cleared:
            return False
        number, left = found

        async def work() -> None:
            await self._mover.clear(name, left)
            self._daemon.observe(f"clear {name}")
            self._cleared.add((name, number))

        self._start("removing files", name, work)
        return True

    def _left_behind(self, name: str, papers: Papers | None) -> tuple[int, Arrival] | None:
        """The number of the move, and the files that it has left here."""
        place = self._daemon.place
        leaving, arriving, record = (
            place.moves.leaving_of(name),
            place.moves.arriving_of(name),
            place.moves.record(name),
        )
        if arriving is not None and arriving.owner:
            return None  # it was given up after it had come here: there may be no other copy of its disks
        if arriving is not None and arriving.cancelled and arriving.room:
            with contextlib.suppress(PapersRefused):
                return arriving.number, read_room(arriving.room).arrival
        if leaving is None or record is None or papers is None or leaving.stage is not MoveStage.HANDED:
            return None
        if not closed(place, leaving, record) or not record.owner:
            return None
        return leaving.number, Arrival({}, tuple(disk.path for disk in papers.departure.disks))
