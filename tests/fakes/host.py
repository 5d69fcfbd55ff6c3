"""A host that a test plays: its end of the channel to a hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path

import zmq
import zmq.asyncio

from magrathea.core.moves import Ownership, Word
from magrathea.messages import KNOWS_MOVES, Books, DomainReport, Heartbeat, ToHost, decode_to_host, encode
from magrathea.move_messages import Ownerships, words_of
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import keys

from .reports import snapshot


class FakeHost:
    """`pair`: its key file; `hub_key`: the hub's. On ipc there are none."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        name: str = "h1",
        pair: Path | None = None,
        hub_key: Path | None = None,
    ) -> None:
        self.name = name
        self.revision = 0
        self.version = ""
        self.socket: zmq.asyncio.Socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, (name if pair is None else f"{name}/boot").encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        if pair is not None and hub_key is not None:
            own = keys.read_secret(pair)
            self.socket.curve_publickey = own.public.encode()
            self.socket.curve_secretkey = own.secret.encode()
            self.socket.curve_serverkey = keys.read(hub_key).public.encode()
        self.socket.connect(endpoint)

    async def sends(self, *frames: bytes) -> None:
        await self.socket.send_multipart(frames)

    async def says(self, *domains: DomainReport, at: float | None = None, revision: int = 0) -> None:
        """Send its next snapshot; `revision` 0: the next number."""
        self.revision = revision or self.revision + 1
        at = time.time() if at is None else at
        await self.sends(encode(snapshot(*domains, host=self.name, revision=self.revision, at=at)))

    async def beats(self) -> None:
        await self.sends(
            encode(Heartbeat(sender=self.name, boot_id="boot", revision=self.revision, version=self.version))
        )

    async def hears(self, right: Callable[[ToHost], bool]) -> ToHost:
        """The first message for which `right` returns True."""
        async with asyncio.timeout(BOUND_S):
            while not right(message := decode_to_host(await self.socket.recv())):
                pass
        return message

    async def speaks(self, *words: Word, welcome: Collection[str] = (), most: int = 2) -> None:
        """Say these words about moves."""
        self.version = KNOWS_MOVES
        await self.sends(encode(words_of(self.name, words, frozenset(welcome), most)))

    async def hears_record(self, domain: str, right: Callable[[Ownership], bool]) -> Ownership:
        """The first record of the domain that is right."""
        found: list[Ownership] = []

        def heard(message: ToHost) -> bool:
            if isinstance(message, Ownerships):
                found.extend(r for told in message.records if (r := told.record).domain == domain and right(r))
            return bool(found)

        await self.hears(heard)
        return found[0]

    async def hears_books(self, *booked: str) -> Books:
        """The first books with exactly these jobs booked."""

        def right(message: ToHost) -> bool:
            return isinstance(message, Books) and tuple(j.id for j in message.jobs if j.booked) == booked

        books = await self.hears(right)
        assert isinstance(books, Books)
        return books

    def close(self) -> None:
        self.socket.close(linger=0)
