"""Replaces the hub for one host, without PBS: it answers snapshots and questions over ZeroMQ, and books what the host
wants stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from magrathea.core.model import Amount
from magrathea.messages import (
    HEARTBEAT_S,
    KNOWS_MOVES,
    BadMessage,
    BookEntry,
    Books,
    GivenAsked,
    GivenTold,
    Heartbeat,
    Resend,
    Snapshot,
    decode_to_hub,
    encode,
)
from magrathea.move_messages import MoveRefused, MoveWords, ownerships_of
from scheduler_plugin.hub.ownership import Ledger, Visits

from ..waiting import BOUND_S

T = TypeVar("T")


class HubRig:
    """Books what hosts want stopped, and withdraws that when they are ready. `books` False: it books nothing, so each
    host lifts its stops alone. `version` empty: it is a hub of the release before, which knows no questions about jobs.
    """

    def __init__(self, endpoint: str, *, books: bool = True, version: str = KNOWS_MOVES) -> None:
        self.endpoint = endpoint
        self.books = books
        self.version = version
        self.given: Callable[[GivenAsked], bool | None] = lambda asked: True
        """What PBS would answer."""
        self.sizes: dict[str, Amount] = {}
        """What PBS would say that it has given these jobs."""
        self.asked: list[GivenAsked] = []
        self.snapshots: list[Snapshot] = []
        self.booked: dict[tuple[str, int], bool] = {}
        self.owners = Ledger()
        """As a hub's that has just lost its books."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._tasks: list[asyncio.Task[None]] = []
        self._boots: dict[bytes, str] = {}
        """Each peer's boot id. A restarted one is greeted again."""

    def start(self) -> None:
        self._socket.bind(self.endpoint)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._serve()), loop.create_task(self._beat())]

    @property
    def last(self) -> Snapshot | None:
        return self.snapshots[-1] if self.snapshots else None

    async def _serve(self) -> None:
        while True:
            peer, data = await self._socket.recv_multipart()
            try:
                message = decode_to_hub(data)
            except BadMessage:
                continue  # only this message is lost
            if isinstance(message, Snapshot | Heartbeat) and self._boots.get(peer) != message.boot_id:
                self._boots[peer] = message.boot_id
                for greeting in (self._heartbeat(), Resend()):  # the version first, as hubs do
                    await self._socket.send_multipart([peer, encode(greeting)])
            if isinstance(message, Snapshot):
                self.snapshots.append(message)
                await self._answer(peer, message)
            elif isinstance(message, MoveWords):
                await self._tell_owners(peer, message)
            elif isinstance(message, GivenAsked) and self.version:  # an older hub does not know the question
                self.asked.append(message)
                await self._socket.send_multipart([peer, encode(self._told(message))])

    def _told(self, asked: GivenAsked) -> GivenTold:
        size, given = self.sizes.get(asked.job), self.given(asked)
        if size is None or not given:
            return GivenTold(id=asked.id, given=given)
        return GivenTold(id=asked.id, given=True, cpus=size.cpus, memory_mib=size.mib)

    async def _answer(self, peer: bytes, snapshot: Snapshot) -> None:
        jobs = {(j.id, j.run): j for d in snapshot.domains for j in d.jobs}
        for key in [k for k in self.booked if k not in jobs]:
            del self.booked[key]
        for key, job in jobs.items():
            if job.stop and self.books:
                self.booked[key] = True
            elif job.ready:
                self.booked.pop(key, None)
        entries = [BookEntry(id=i, run=r, booked=True, held=False) for i, r in sorted(self.booked)]
        books = Books(hub_id="hub", acked_revision=snapshot.revision, jobs=entries)
        await self._socket.send_multipart([peer, encode(books)])

    async def _tell_owners(self, peer: bytes, said: MoveWords) -> None:
        """The host is the only one here: whatever it says of its domains is so, and nobody takes one from it."""
        for word in (told.word for told in said.words):
            refused = self.owners.heard(said.sender, word, Visits()).refused
            if refused is not None:
                answer = MoveRefused(domain=word.domain, number=word.number, code=refused.code, text=refused.text)
                await self._socket.send_multipart([peer, encode(answer)])
        if records := self.owners.told(said.sender):
            await self._socket.send_multipart([peer, encode(ownerships_of(records))])

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(sender="hub", boot_id="hub", revision=0, version=self.version)

    async def _beat(self) -> None:
        while True:
            for peer in tuple(self._boots):
                await self._socket.send_multipart([peer, encode(self._heartbeat())])
            await asyncio.sleep(HEARTBEAT_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()


class HubThread:
    """A HubRig in a thread with its own event loop."""

    def __init__(self, endpoint: str, *, books: bool = True, version: str = KNOWS_MOVES) -> None:
        self._endpoint, self._books, self._version = endpoint, books, version
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._hub: HubRig | None = None

    def start(self) -> None:
        self._thread.start()

        async def make() -> HubRig:
            hub = HubRig(self._endpoint, books=self._books, version=self._version)
            hub.start()
            return hub

        self._hub = self._do(make())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(BOUND_S)

    @property
    def last(self) -> Any:
        return self._hub.last if self._hub is not None else None

    @property
    def booked(self) -> dict[tuple[str, int], bool]:
        return dict(self._hub.booked) if self._hub is not None else {}

    def close(self) -> None:
        if self._hub is not None:
            self._do(self._hub.close())
            self._hub = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(BOUND_S)
        self._loop.close()
