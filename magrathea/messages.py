"""The messages between node daemons, hub and commands: every message with its types and bounds.

Encoding: JSON by msgspec; unknown fields and wrong types are refused (`decode` raises `BadMessage`). The guest channel
has its own messages (node_daemon/guest_channel/messages.py), because the agent has no msgspec. Those about moves are in
move_messages.py, what hosts report and commands show in reports.py.

Rule 1: a Snapshot has everything about its host; a later one (boot_id, revision) replaces it completely.
Rule 2: a Books has everything about a host's jobs; a later one replaces it completely. No message is a difference, so a
lost message only costs time.
Rule 3: a message of a newer release goes only to those that know it, by the version in their heartbeats.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from magrathea import __version__

from .core.words import Stage
from .message_base import MAX_BYTES as MAX_BYTES
from .message_base import MOST_COUNT as MOST_COUNT
from .message_base import MOST_DOMAINS as MOST_DOMAINS
from .message_base import MOST_ENTRIES as MOST_ENTRIES
from .message_base import MOST_JOBS as MOST_JOBS
from .message_base import MOST_NOTES as MOST_NOTES
from .message_base import MOST_REFUSED as MOST_REFUSED
from .message_base import BadMessage as BadMessage
from .message_base import Count as Count
from .message_base import JobId as JobId
from .message_base import Message as Message
from .message_base import Rank as Rank
from .message_base import Sentence as Sentence
from .message_base import Time as Time
from .message_base import Word as Word
from .message_base import decode
from .message_base import encode as encode
from .move_messages import (
    MoveRefused,
    MoveWished,
    MoveWords,
    Ownerships,
    ParcelSent,
    RoomsAsked,
    RoomsTold,
    RoomTold,
    WishRefused,
)
from .reports import Chunk as Chunk
from .reports import ChunkPreview as ChunkPreview
from .reports import DomainReport as DomainReport
from .reports import DomainTravel as DomainTravel
from .reports import ElsewhereView as ElsewhereView
from .reports import EvacuationView as EvacuationView
from .reports import FarmView as FarmView
from .reports import HistoryEntry as HistoryEntry
from .reports import HostHistory as HostHistory
from .reports import HostView as HostView
from .reports import JobReport as JobReport
from .reports import MemoryMove as MemoryMove
from .reports import MoveView as MoveView
from .reports import Outlook as Outlook
from .reports import Placement as Placement
from .reports import Preview as Preview
from .reports import RefusedClaim as RefusedClaim
from .reports import Road as Road
from .reports import SleepReport as SleepReport
from .reports import Snapshot as Snapshot


class Heartbeat(Message, frozen=True, tag="heartbeat", omit_defaults=True):
    """In both directions, every `HEARTBEAT_S`.

    From a host it has the last revision, so that the hub can ask for a missing one. It also has the host's clock and
    version, for `magrathea doctor`. A hub sends its version, too: without one it does not know `GivenAsked`. Who knows
    the messages about moves says so in it (`KNOWS_MOVES`).
    """

    sender: Word
    boot_id: Word
    revision: Count
    at: Time = 0.0
    version: Sentence = ""


class Resend(Message, frozen=True, tag="resend"):
    """Hub to host: send your snapshot again (the hub has just started, or a revision is missing)."""


class BookEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job in PBS's books. `booked`: admin-suspended by the hub. `held`: another of its hosts wants it stopped."""

    id: JobId
    run: Count
    booked: bool
    held: bool


class Books(Message, frozen=True, tag="books"):
    """Hub to host: all of the host's jobs that PBS has suspended for Magrathea, or that another host wants stopped.

    `acked_revision`: the host's last snapshot that is included in these books.
    """

    hub_id: Word
    acked_revision: Count
    jobs: list[BookEntry]


class HistoryAsked(Message, frozen=True, tag="history-asked"):
    """Hub to host: send your history. `id`: also the answer's."""

    id: Count
    about: Annotated[str, msgspec.Meta(max_length=255)] = ""
    since: Time = 0.0
    limit: Count = 100


class HistoryTold(Message, frozen=True, tag="history-told"):
    """Host to hub: the requested history. `trouble`: why there is none; else empty."""

    sender: Word
    id: Count
    entries: Annotated[list[HistoryEntry], msgspec.Meta(max_length=MOST_ENTRIES)]
    trouble: Sentence = ""


MAX_PARTS = 200
"""Parts of a job in one question; for more parts ask again. With the longest names it fits a line of the guest
channel."""

Vnodes = Annotated[list[Word], msgspec.Meta(max_length=MAX_PARTS)]


class PartsAsked(Message, frozen=True, tag="parts-asked"):
    """Host to hub: which of the job's parts in these vnodes of other hosts are not ready? `id`: also the answer's."""

    sender: Word
    id: Count
    job: JobId
    run: Count
    vnodes: Vnodes


class UnreadyPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """See core/readiness.py. `text` also names the part's host."""

    stage: Stage
    text: Sentence


class PartsTold(Message, frozen=True, tag="parts-told"):
    """Hub to host: the parts that are not ready. Parts that are ready, or in unmanaged vnodes, are not in it."""

    id: Count
    parts: list[UnreadyPart]


class GivenAsked(Message, frozen=True, tag="given-asked"):
    """Host to hub: has PBS given this run of the job to this vnode of mine? `id`: also the answer's. `claim`: a claim
    waits for the answer; None: a host that does not say it, asks for claims only, and understands no size.

    Only a hub that sends its version with its heartbeats knows this question.
    """

    sender: Word
    id: Count
    job: JobId
    run: Count
    vnode: Word
    claim: bool | None = None

    @property
    def urgent(self) -> bool:
        return self.claim is not False


class GivenTold(Message, frozen=True, tag="given-told", omit_defaults=True):
    """Hub to host. `given`: PBS's answer; None if PBS could not be asked, or if it has no such vnode (yet).

    `cpus`, `memory_mib`: what PBS has given the job on that vnode; left out if that is unknown, because older hosts
    understand no message that has them.
    """

    id: Count
    given: bool | None
    cpus: Count | None = None
    memory_mib: Count | None = None


HEARTBEAT_S = 2.0
"""Seconds between heartbeats. After three missing ones a host is `unknown` to PBS."""

MOVES, ROOMS, WISHES = "moves", "rooms", "wishes"
KNOWS_MOVES = f"{__version__}+{MOVES}.{ROOMS}.{WISHES}"
"""The version in the heartbeats of hubs and hosts that know the messages about moves, those about room for them, and a
hub's wishes for moves. What is known stands after a `+`: a peer of an older release would refuse a heartbeat with a new
field."""


def knows(version: str, what: str) -> bool:
    """True if the sender of a heartbeat with that version knows the messages about `what` (MOVES, ROOMS, WISHES)."""
    return what in version.partition("+")[2].split(".")


def knows_moves(version: str) -> bool:
    return knows(version, MOVES)


def release(version: str) -> str:
    """The release's number in the version of a heartbeat."""
    return version.partition("+")[0]


ToHub = (
    Snapshot
    | Heartbeat
    | HistoryTold
    | PartsAsked
    | GivenAsked
    | MoveWords
    | ParcelSent
    | RoomTold
    | RoomsAsked
    | WishRefused
)
ToHost = (
    Books
    | Heartbeat
    | Resend
    | HistoryAsked
    | PartsTold
    | GivenTold
    | Ownerships
    | MoveRefused
    | MoveWished
    | ParcelSent
    | RoomsTold
)

_to_hub = msgspec.json.Decoder(ToHub)
_to_host = msgspec.json.Decoder(ToHost)


def decode_to_hub(data: bytes) -> ToHub:
    """A message from a host to the hub. Raises BadMessage."""
    return decode(_to_hub, data)  # type: ignore[no-any-return]


def decode_to_host(data: bytes) -> ToHost:
    """A message from the hub to a host. Raises BadMessage."""
    return decode(_to_host, data)  # type: ignore[no-any-return]
