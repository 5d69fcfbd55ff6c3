"""The daemon's side of the channel to the hub: ZeroMQ DEALER, one socket per hub endpoint.

Whole snapshots go out, at most one every PUBLISH_S; books come in. A hub that is silent for SILENT_S is lost. When all
hubs are lost, no new preemption begins. Nothing is queued for a hub that is away: when it comes back, it gets the
snapshot of that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, assert_never, cast

import zmq
import zmq.asyncio

from magrathea import __version__, supervision
from magrathea.core.events import Booking
from magrathea.core.model import Amount, JobKey
from magrathea.core.placement import HostRoom
from magrathea.core.readiness import Unready, together
from magrathea.logs import RationedLog
from magrathea.messages import (
    HEARTBEAT_S,
    KNOWS_MOVES,
    MAX_BYTES,
    MOVES,
    ROOMS,
    BadMessage,
    Books,
    GivenAsked,
    GivenTold,
    Heartbeat,
    HistoryAsked,
    Message,
    PartsAsked,
    PartsTold,
    Resend,
    Snapshot,
    ToHost,
    decode_to_host,
    encode,
    knows,
)
from magrathea.move_messages import MoveRefused, MoveWished, Ownerships, ParcelSent, RoomsAsked, RoomsTold

from .claims.pbs_says import PbsSays
from .hub_keys import HubError, load_pair
from .hub_silence import sentence, why_silent
from .snapshot import fitting, same

log = logging.getLogger(__name__)

PUBLISH_S = 0.02
"""Shortest time between two snapshots. All changes within it go out together."""
SILENT_S = 3 * HEARTBEAT_S
"""A hub is lost after three missed heartbeats; hubs treat hosts in the same way."""
SAID_AGAIN_S = 600.0
"""The log repeats that often that a hub is silent."""
KNOCK_S = 0.25
"""A snapshot is offered that often to a hub that is away. A vain attempt costs nothing."""
ANSWER_S = 1.0
"""A hub has that long to answer a question. If it does not, the guest asks again."""
PACE_S = 0.1
"""Shortest time between two questions of one guest. A hostile guest must not use up its host's rate of messages."""

A = TypeVar("A", PartsTold, GivenTold, RoomsTold)


@dataclass
class _Hub:
    """One endpoint. `heard_at`: loop time of its last message; `books`: the last ones that it sent."""

    endpoint: str
    socket: zmq.asyncio.Socket
    heard_at: float | None = None
    due: bool = True
    books: dict[JobKey, Booking] = field(default_factory=dict)
    asked: dict[tuple[type, int], asyncio.Future[Any]] = field(default_factory=dict)
    """Answers to come, by their type and number."""
    version: str | None = None
    """Its release; empty if it is so old that it does not say it, None before its first heartbeat."""
    silent_since: float = field(default_factory=time.time)
    """Unix seconds; only of use while `heard_at` is None."""
    say_at: float | None = None
    """Loop time at which its silence is worth a sentence."""
    silence: str = ""
    """That sentence, as long as it is silent."""


@dataclass
class _Asking:
    """A guest's questions, one at a time. `last`: loop time of the last one."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    last: float = -math.inf


class HubClient:
    """Speaks with all hubs. `build` makes the snapshot of this moment, with the given revision. `on_moves` gets what
    hubs say about moves; without it they are told that this host does not know such messages.
    """

    def __init__(
        self,
        host: str,
        boot_id: str,
        endpoints: list[str],
        build: Callable[[int], Snapshot],
        on_books: Callable[[tuple[Booking, ...]], None],
        on_found: Callable[[], None],
        on_lost: Callable[[], None],
        key_file: str = "",
        hub_key_file: str = "",
        on_history: Callable[[HistoryAsked], Awaitable[bytes]] | None = None,
        on_moves: Callable[[Ownerships | MoveRefused | MoveWished | ParcelSent], None] | None = None,
    ) -> None:
        self.host = host
        self._on_history = on_history
        self._on_moves = on_moves
        self.boot_id = boot_id
        self.revision = 0
        self._endpoints = endpoints
        self._build = build
        self._on_books = on_books
        self._on_found = on_found
        self._on_lost = on_lost
        self._keys = (key_file, hub_key_file)
        self._context: zmq.asyncio.Context | None = None
        self._hubs: list[_Hub] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._answers: set[asyncio.Task[None]] = set()
        self._found = False
        self._last: Snapshot | None = None
        self._sent_at = 0.0
        self._pending: asyncio.TimerHandle | None = None
        self._ids = itertools.count(1)
        self._asking: dict[str, _Asking] = {}
        self._complaints = RationedLog(log)

    def start(self) -> None:
        """Connect to all endpoints; no hub needs to be there yet. Raises HubError."""
        if not self._endpoints:
            return
        self._context = zmq.asyncio.Context(io_threads=1)
        for endpoint in self._endpoints:
            hub = _Hub(endpoint, self._connect(endpoint), say_at=asyncio.get_running_loop().time() + SILENT_S)
            self._hubs.append(hub)
            self._tasks.append(supervision.start(self._receive(hub)))
        self._tasks.append(supervision.start(self._beat()))

    def _connect(self, endpoint: str) -> zmq.asyncio.Socket:
        assert self._context is not None
        # before there is a socket: a context that is left with one never ends
        own = load_pair(*self._keys) if endpoint.startswith("tcp://") else None
        socket: zmq.asyncio.Socket = self._context.socket(zmq.DEALER)
        # On TCP the key identifies us. An identity that others can guess could be taken over by them.
        identity = f"{self.host[:200]}/{self.boot_id}" if endpoint.startswith("tcp://") else self.host
        socket.setsockopt(zmq.IDENTITY, identity.encode())
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, 8)
        socket.setsockopt(zmq.RCVHWM, 64)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 200)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if own is not None:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = own
            for option, value in ((zmq.HEARTBEAT_IVL, 2000), (zmq.HEARTBEAT_TIMEOUT, 6000)):
                socket.setsockopt(option, value)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise HubError(f"endpoint {endpoint}: {error.strerror}; fix it in [hub] endpoints") from error
        return socket

    @property
    def connected(self) -> bool:
        return self._found

    def silent(self) -> list[str]:
        """A sentence for each hub that has been silent for some seconds: where it was looked for, and what to check."""
        return [hub.silence for hub in self._hubs if hub.silence]

    def _look_why_silent(self, hub: _Hub) -> None:
        """Find out in a thread, because names may take long to resolve, and log it."""
        loop, endpoint, since = asyncio.get_running_loop(), hub.endpoint, hub.silent_since

        def look() -> None:
            text = sentence(endpoint, since, why_silent(endpoint))
            with contextlib.suppress(RuntimeError):  # the daemon has ended meanwhile
                loop.call_soon_threadsafe(self._is_silent, hub, since, text)

        threading.Thread(target=look, name="hub-silence", daemon=True).start()

    def _is_silent(self, hub: _Hub, since: float, text: str) -> None:
        if hub.heard_at is None and hub.silent_since == since:
            log.warning("%s", text)
            hub.silence = text
            self.publish()

    def publish(self) -> None:
        """The snapshot may have changed: send it at once, or PUBLISH_S after the last one."""
        if self._pending is not None or not self._hubs:
            return
        loop = asyncio.get_running_loop()
        wait = max(0.0, self._sent_at + PUBLISH_S - loop.time())
        self._pending = loop.call_later(wait, self._publish)

    def _publish(self) -> None:
        self._pending = None
        snapshot = self._build(self.revision + 1)
        if self._last is None or not same(snapshot, self._last):
            self.revision += 1
            self._last = snapshot
            for hub in self._hubs:
                hub.due = True
        if any(hub.due for hub in self._hubs):
            self._sent_at = asyncio.get_running_loop().time()
            data = encode(fitting(self._last))
            for hub in self._hubs:
                hub.due = hub.due and not self._send(hub, data)

    def _send(self, hub: _Hub, data: bytes) -> bool:
        """Send to a hub. Returns whether it is there to take the message."""
        # With DONTWAIT the future is done at once. The synchronous `send` would swallow the socket's wake-up.
        sent = cast("asyncio.Future[object]", hub.socket.send(data, zmq.DONTWAIT))
        error = sent.exception()
        if error is not None and not isinstance(error, zmq.Again):
            log.warning("hub %s: a message cannot be sent: %s", hub.endpoint, error)
        return error is None

    def tell_of_moves(self, message: Message, what: str = MOVES) -> None:
        """Send to all hubs that know messages about moves, or about `what`. What is lost must be sent again by its
        author."""
        data = encode(message)
        for hub in self._knowing(what):
            self._send(hub, data)

    def _knowing(self, what: str) -> list[_Hub]:
        return [hub for hub in self._hubs if hub.heard_at is not None and knows(hub.version or "", what)]

    async def rooms(self, hosts: Sequence[str]) -> tuple[HostRoom, ...] | None:
        """What room these hosts have for domains of this one, in that order. None if no hub tells."""
        question = RoomsAsked(sender=self.host, id=next(self._ids), hosts=list(hosts))
        with self._put_to(RoomsTold, question, self._knowing(ROOMS)) as waiting:
            if not waiting:
                return None
            done, _ = await asyncio.wait(waiting, timeout=ANSWER_S)
        return next((answer.result().rooms_for(self.host) for answer in done), None)

    async def _receive(self, hub: _Hub) -> None:
        while True:
            frames = await hub.socket.recv_multipart()
            try:
                self._received(hub, decode_to_host(frames[-1]))
            except BadMessage as error:
                self._complaints.say("bad", f"hub {hub.endpoint} sent something that is not a message: {error}")
            except Exception as defect:  # noqa: BLE001  a door (supervision.py)
                self._complaints.say("defect", f"a message of hub {hub.endpoint} could not be handled", defect)
            await asyncio.sleep(0)  # if the next one is there already, awaiting it would let nothing else run

    def _received(self, hub: _Hub, message: ToHost) -> None:
        first = hub.heard_at is None
        hub.heard_at = asyncio.get_running_loop().time()
        if first:
            log.info("hub %s answers", hub.endpoint)
            hub.silence, hub.say_at = "", None
        if not self._found:
            self._found = True
            self._on_found()
        match message:
            case Books(jobs=jobs):
                hub.books = {JobKey(j.id, j.run): Booking(JobKey(j.id, j.run), j.booked, j.held) for j in jobs}
                self._books()
            case HistoryAsked():
                if self._on_history is not None:
                    self._tell(hub, self._on_history(message))
            case PartsTold() | GivenTold() | RoomsTold():
                if (asked := hub.asked.pop((type(message), message.id), None)) is not None:
                    asked.set_result(message)
            case Ownerships() | MoveRefused() | MoveWished() | ParcelSent():
                if self._on_moves is not None:
                    self._on_moves(message)
            case Resend():
                hub.due = True
            case Heartbeat(version=version):
                hub.version = version
            case _:
                assert_never(message)
        hub.due = hub.due or first
        self.publish()

    def _tell(self, hub: _Hub, answer: Awaitable[bytes]) -> None:
        """Send an answer when it is there."""

        async def tell() -> None:
            try:
                self._send(hub, await answer)
            except Exception as defect:  # noqa: BLE001  a door (supervision.py)
                self._complaints.say("defect", f"a question of hub {hub.endpoint} could not be answered", defect)

        task = supervision.start(tell())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _books(self) -> None:
        """Combine all hubs' books: PBS holds a job if any hub says so."""
        together: dict[JobKey, Booking] = {}
        for hub in self._hubs:
            for key, entry in hub.books.items():
                other = together.get(key, entry)
                together[key] = Booking(key, entry.booked or other.booked, entry.held or other.held)
        self._on_books(tuple(together[key] for key in sorted(together)))

    async def unready(self, domain: str, key: JobKey, vnodes: list[str]) -> tuple[Unready, ...] | None:
        """The job's parts in these vnodes of other hosts that are not ready. None if no hub answers.

        `domain`: the guest that asks.
        """
        loop = asyncio.get_running_loop()
        asking = self._asking.setdefault(domain, _Asking())
        async with asking.turn:
            await asyncio.sleep(asking.last + PACE_S - loop.time())
            asking.last = loop.time()
            question = PartsAsked(sender=self.host, id=next(self._ids), job=key.id, run=key.run, vnodes=vnodes)
            with self._put_to(PartsTold, question, [hub for hub in self._hubs if hub.heard_at is not None]) as waiting:
                if not waiting:
                    return None
                done, _ = await asyncio.wait(waiting, timeout=ANSWER_S)
            return together(tuple(Unready(p.stage, p.text) for p in answer.result().parts) for answer in done)

    @contextlib.contextmanager
    def _put_to(
        self, kind: type[A], question: PartsAsked | GivenAsked | RoomsAsked, hubs: Sequence[_Hub]
    ) -> Iterator[set[asyncio.Future[A]]]:
        """Send the question to these hubs. Inside the `with` their answers may come."""
        data, place = encode(question), (kind, question.id)
        for hub in hubs:
            if self._send(hub, data):
                hub.asked[place] = asyncio.get_running_loop().create_future()
        try:
            yield {hub.asked[place] for hub in hubs if place in hub.asked}
        finally:
            for hub in hubs:
                hub.asked.pop(place, None)

    @property
    def too_old_to_ask(self) -> bool:
        """True if a hub answers, and each that does is of a release that cannot be asked about a job."""
        there = [hub for hub in self._hubs if hub.heard_at is not None]
        return bool(there) and all(hub.version == "" for hub in there)

    async def given(self, key: JobKey, vnode: str, within_s: float, *, claim: bool = True) -> PbsSays:
        """Whether PBS has given the job to this vnode: it has if one hub's PBS has, and not if none has.

        Unknown if no hub answers in time, or one that would have to be asked cannot ask its PBS. `claim`: a claim waits
        for the answer.
        """
        number = next(self._ids)
        question = GivenAsked(sender=self.host, id=number, job=key.id, run=key.run, vnode=vnode, claim=claim)
        # also one that has just come and not sent its heartbeat yet: else the first claims after a start were refused
        hubs = [hub for hub in self._hubs if hub.heard_at is not None and hub.version != ""]
        answers: list[bool | None] = []
        with self._put_to(GivenTold, question, hubs) as waiting, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for said in (answer.result() for answer in done):
                        if said.given:
                            return PbsSays(True, _size(said))
                        answers.append(said.given)
                return PbsSays(False if answers and None not in answers else None)
        return PbsSays(None)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            beat = encode(
                Heartbeat(
                    sender=self.host,
                    boot_id=self.boot_id,
                    revision=self.revision,
                    at=time.time(),
                    version=__version__ if self._on_moves is None else KNOWS_MOVES,
                )
            )
            for hub in self._hubs:
                self._send(hub, beat)
            if any(hub.due for hub in self._hubs):
                self.publish()
            await asyncio.sleep(HEARTBEAT_S if all(hub.heard_at is not None for hub in self._hubs) else KNOCK_S)
            for hub in self._hubs:
                if hub.heard_at is not None and loop.time() - hub.heard_at > SILENT_S:
                    log.warning("hub %s has been silent for %g s: lost", hub.endpoint, SILENT_S)
                    hub.heard_at = None
                    hub.version = None
                    hub.due = True
                    hub.silent_since, hub.say_at = time.time(), loop.time()
                if hub.heard_at is None and loop.time() >= (hub.say_at or math.inf):
                    hub.say_at = loop.time() + SAID_AGAIN_S
                    self._look_why_silent(hub)
            if self._found and all(hub.heard_at is None for hub in self._hubs):
                self._found = False
                self._on_lost()

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        tasks = [*self._tasks, *self._answers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        hubs, self._hubs = self._hubs, []  # nothing is published from here on
        for hub in hubs:
            hub.socket.close(linger=0)
        if self._context is not None:
            with contextlib.suppress(zmq.ZMQError):  # its sockets are closed already
                self._context.term()


def _size(said: GivenTold) -> Amount | None:
    return None if said.cpus is None or said.memory_mib is None else Amount(said.cpus, said.memory_mib)
