"""Moves this host's domains to others, and takes theirs: looks what is there, lets the core decide, and carries it out.

    hypervisor, hub -> event -> core (magrathea/core/migration.py) and journal -> step, words, parcels

Rule 1: a fact is in the journal before anything follows from it. If the journal fails, nothing does.
Rule 2: nothing is remembered that a restart may not forget. Each round looks anew, says to the hub all that the facts
say, and takes the steps that are due. Every step may be repeated.
Rule 3: a look counts only if the facts about the domain's move are the same before and after it: what it shows may be
older than they are.
Rule 4: at most one step per domain is under way, and it is not looked at meanwhile. A copy goes on beside the looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from magrathea import supervision
from magrathea.core import arrivals, migration, placement
from magrathea.core import move_events as me
from magrathea.core.migration import MoveStep
from magrathea.core.moves import Arriving, HostWithMoves, Moves, Parcel, Where
from magrathea.core.refusals import RefusalCode
from magrathea.messages import HEARTBEAT_S, ROOMS, BadMessage
from magrathea.move_messages import MoveRefused, Ownerships, ParcelSent, parcel_of, room_of, words_of

from ..hypervisor.base import DriverError
from ..hypervisor.moving import DomainMover, Whereabouts
from ..retries import loop_time
from . import absent, looks
from .copies import Copies
from .needs import DaemonForMoves
from .papers import Papers, PapersRefused, read_papers
from .steps import MoveSteps

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""How often a domain that moves is looked at. A look takes some milliseconds."""


class DomainMoves:
    """The moves of one host. Call `look_soon` after anything that may matter; it is cheap."""

    def __init__(self, daemon: DaemonForMoves, mover: DomainMover) -> None:
        self.mover = mover
        self.copies = Copies(daemon, mover, self.look_soon)
        self._daemon = daemon
        self._steps = MoveSteps(daemon, mover, self.look_soon)
        self._unseen: dict[str, str] = {}
        """Why domains could not be looked at."""
        self._wake = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None
        self._said: tuple[float, object] = (-math.inf, None)
        """When words and parcels were last sent (the loop's time), and what was in them."""
        self._room_said_at = -math.inf
        self._present: object = None
        """The domains that the rest of the daemon was last told of: those that are here, and those that are away."""

    @property
    def active(self) -> bool:
        """True if this host may move domains or take them, or has not finished with moves."""
        c = self._daemon.configuration
        return bool(c.visitors.hosts or c.moves.hosts or self._moves != Moves())

    @property
    def _place(self) -> HostWithMoves:
        return self._daemon.place

    @property
    def _moves(self) -> Moves:
        return self._daemon.place.moves

    def start(self) -> None:
        self._present = self._domains()
        if self._moves.leaving:
            self._daemon.apply_move(me.Restarted(self._daemon.now()))
        self._rounds = supervision.start(self._go_on())

    async def close(self) -> None:
        """End the looks. Copies under way go on in the hypervisor."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)
        await self._steps.close()
        await self.copies.close()
        self.mover.close()

    def look_soon(self) -> None:
        self._wake.set()

    def notes(self) -> list[str]:
        """What is expected, and what fails at present, for people."""
        said = [f"{x.domain} is to come from {x.source}: {arrivals.how(x)}" for x in self._moves.arriving]
        said += [f"{name} cannot be looked at for its move: {why}" for name, why in sorted(self._unseen.items())]
        return said + self._steps.notes()

    def away(self) -> dict[str, str]:
        """The domains of the configuration that other hosts have, each with its host."""
        return absent.away(self._place, self._daemon.configuration)

    # What the hub says

    def heard(self, message: Ownerships | MoveRefused | ParcelSent) -> None:
        """A message of the hub. Raises BadMessage."""
        now = self._daemon.now()
        match message:
            case Ownerships():
                self._daemon.apply_move(me.RecordsTold(now, tuple(told.record for told in message.records)))
            case MoveRefused() if message.code is RefusalCode.BUSY:  # it is granted later: the host keeps asking
                log.info("%s waits for its move: %s", message.domain, message.text)
            case MoveRefused():
                self._daemon.apply_move(me.MoveDenied(now, message.domain, message.number, message.text))
            case ParcelSent():
                if message.to != self._place.name:
                    raise BadMessage(f"a parcel for {message.to}")
                self._daemon.apply_move(me.ParcelTold(now, self._unpacked(message)))
            case _:
                assert_never(message)
        self.look_soon()

    def _unpacked(self, message: ParcelSent) -> Parcel:
        """Raises BadMessage. If these are the first facts of an arrival, it is declined: the source would wait for it
        until its patience ends, and nobody there would learn why."""
        try:
            return message.parcel
        except BadMessage as error:
            arriving = self._moves.arriving_of(message.domain)
            if arriving is not None and arriving.parcel is None and arriving.source == message.sender:
                failed = f"its facts cannot be read here: {error}"
                self._daemon.apply_move(me.RoomMade(self._daemon.now(), message.domain, message.number, failed))
                self.look_soon()
            raise

    # Rounds

    async def _go_on(self) -> None:
        while True:
            self._wake.clear()
            if self.active:
                await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()

    def _pause_s(self) -> float:
        due = migration.next_deadline(self._place)
        until_due = math.inf if due is None else max(0.0, due - self._daemon.now()) + 0.001
        return min(LOOK_S if self._concerned() else HEARTBEAT_S, until_due)

    async def _round(self) -> None:
        due = migration.next_deadline(self._place)
        if due is not None and due <= self._daemon.now():
            self._daemon.apply_move(me.Ticked(self._daemon.now()))
        self.copies.collect()
        absent.told(self._daemon.driver, self._place, self._daemon.configuration)
        concerned = self._concerned()
        self._steps.keep_only(concerned)
        self._unseen = {name: why for name, why in self._unseen.items() if name in concerned}
        await asyncio.gather(*(self._look(name) for name in concerned))
        self._say()
        if self._domains() != self._present:
            self._present = self._domains()
            await self._daemon.domains_changed()

    def _domains(self) -> object:
        """A domain that was given up is no longer away: its host reads its configuration again, and takes it back."""
        return frozenset(d.name for d in self._place.host.domains), frozenset(self.away())

    def _concerned(self) -> list[str]:
        """The domains whose place matters now: they move, or the hub has given them to another host."""
        place, moves = self._place, self._moves
        names = {x.domain for x in moves.leaving} | {x.domain for x in moves.arriving}
        names |= {d.name for d in place.host.domains if (r := moves.record(d.name)) and r.owner != place.name}
        return sorted(names)

    async def _look(self, name: str) -> None:
        facts = self._facts(name)
        if name in self._steps:
            return
        try:
            seen = await self._seen(name)
        except DriverError as error:
            self._unseen[name] = error.text
            return
        self._unseen.pop(name, None)
        if self._facts(name) != facts:
            self.look_soon()
            return
        if seen is None:
            return
        where, copying = seen
        if where is Where.ABSENT and self._steps.clears(name, self._papers(name)):
            return
        if self._daemon.apply_move(me.DomainFound(self._daemon.now(), name, where, copying)) is not None:
            self._act(name, where, copying)

    def _facts(self, name: str) -> object:
        moves = self._moves
        return moves.leaving_of(name), moves.arriving_of(name), moves.record(name)

    async def _seen(self, name: str) -> tuple[Where, bool] | None:
        """Where the domain is, and whether a copy from here is under way. None if its papers have not come yet: nobody
        knows which domain is meant. Raises DriverError."""
        arriving, papers = self._moves.arriving_of(name), self._papers(name)
        if arriving is not None and papers is None:
            return (Where.ABSENT, False) if arriving.cancelled else None
        self.mover.know(name, papers.departure.name if papers else self._libvirt_name(name))
        found = await self.mover.where_is(name, looks.is_awaited(arriving))
        if arriving is not None and papers is not None:
            self._compare(found, arriving, papers)
            return looks.where_arriving(found, arriving, papers.departure.uuid), False
        if looks.is_copying(found) and name not in self.copies and self._moves.leaving_of(name):
            self.copies.follow(name)
        return looks.where(found), looks.is_copying(found) or name in self.copies

    def _compare(self, found: Whereabouts, arriving: Arriving, papers: Papers) -> None:
        """Decline an arrival that is not what its papers say."""
        why = looks.unlike_papers(found, arriving, papers.departure)
        if why and not (arriving.here or arriving.declined or arriving.cancelled):
            log.error("%s from %s is refused: %s", arriving.domain, arriving.source, why)
            self._daemon.apply_move(me.RoomMade(self._daemon.now(), arriving.domain, arriving.number, failed=why))
            self.look_soon()

    def _libvirt_name(self, name: str) -> str:
        c = self._daemon.configuration
        return c.libvirt_name(name) if name in c.domain else name

    def _papers(self, name: str) -> Papers | None:
        """The papers of a domain that moves. None if they are not there yet, or cannot be read: then the arrival is
        declined."""
        leaving, arriving = self._moves.leaving_of(name), self._moves.arriving_of(name)
        text = leaving.papers if leaving else arriving.parcel.papers if arriving and arriving.parcel else ""
        try:
            return read_papers(text) if text else None
        except PapersRefused as error:
            if arriving is not None and not (arriving.declined or arriving.cancelled):
                self._daemon.apply_move(me.RoomMade(self._daemon.now(), name, arriving.number, failed=str(error)))
            return None

    def _act(self, name: str, where: Where, copying: bool) -> None:
        step, papers = migration.step(self._place, name, where, copying=copying), self._papers(name)
        match step:
            case None:
                self._steps.forget([name])
            case MoveStep.COPY:
                if papers is None:
                    self._daemon.apply_move(me.CopyOver(self._daemon.now(), name, "its papers cannot be read"))
                elif name not in self._daemon.switch.progress.memory_moves():  # libvirt moves memory, or the domain
                    self.copies.begin(name, papers)
            case MoveStep.ABORT if not copying:
                leaving = self._moves.leaving_of(name)
                why = (leaving.why if leaving else "") or "it ended before its copy began"
                self._daemon.apply_move(me.CopyOver(self._daemon.now(), name, why))
                self.look_soon()
            case MoveStep.ABORT:
                self._steps.abort(name)
            case MoveStep.PREPARE:
                if papers is not None:
                    self._steps.prepare(name, papers)
            case MoveStep.RUN | MoveStep.GO_ON:
                self._steps.run(name)
            case MoveStep.DISCARD:
                self._steps.discard(name)
            case _:
                assert_never(step)

    # What is said

    def _say(self) -> None:
        """Say to the hub all that the facts say, if it has changed, and again after a while."""
        place, c = self._place, self._daemon.configuration
        words, parcels = migration.words(place), tuple(self._parcels())
        self._say_room()
        content = words, parcels, c.visitors.hosts, c.moves.at_once, self._daemon.hub.connected
        said_at, said = self._said
        if content == said and loop_time() < said_at + HEARTBEAT_S:
            return
        self._said = loop_time(), content
        self._daemon.hub.tell_of_moves(words_of(place.name, words, frozenset(c.visitors.hosts), c.moves.at_once))
        for to, parcel in parcels:
            self._daemon.hub.tell_of_moves(parcel_of(replace(parcel, at=self._daemon.now()), to))
        if self._moves.leaving or self._moves.arriving:
            self._daemon.hub.publish()

    def _say_room(self) -> None:
        """Say what room there is for visitors. It changes with every job, so it is not said more often than a
        heartbeat: who looks for a place may find it taken, and asks the next host."""
        hosts = self._daemon.configuration.visitors.hosts
        if not hosts or loop_time() < self._room_said_at + HEARTBEAT_S:
            return
        self._room_said_at = loop_time()
        room = placement.room(self._place.host, frozenset(hosts), self._daemon.closed_to_visitors())
        self._daemon.hub.tell_of_moves(room_of(room), ROOMS)

    def _parcels(self) -> Iterator[tuple[str, Parcel]]:
        """Each parcel with the host that it is for. Its time is that of sending, so that an unchanged one is known."""
        for parcel in migration.parcels(self._place):
            leaving = self._moves.leaving_of(parcel.facts.name)
            if leaving is not None:
                yield leaving.to, replace(parcel, at=0.0)
