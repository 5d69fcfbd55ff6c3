"""The messages between node daemons, hub and commands: every message with its types and bounds.

Encoding: JSON by msgspec; unknown fields and wrong types are refused (`decode` raises `BadMessage`). The guest channel
has its own messages (node_daemon/guest_channel/messages.py), because the agent has no msgspec. Those about moves are in
move_messages.py.

Rule 1: a Snapshot has everything about its host; a later one (boot_id, revision) replaces it completely.
Rule 2: a Books has everything about a host's jobs; a later one replaces it completely. No message is a difference, so a
lost message only costs time.
Rule 3: a message of a newer release goes only to those that know it, by the version in their heartbeats.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from magrathea import __version__

from .core.model import (
    JobClass,
    Kind,
    MemoryComing,
    MemoryLack,
    MemoryShort,
    Mode,
    SleepCause,
    Stage,
    State,
    StoppedBy,
)
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
from .move_messages import MoveRefused, MoveWords, Ownerships, ParcelSent


class JobReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job as its host sees it.

    `stop`: this host wants it stopped. `ready`: this host no longer wants that and has given everything back, so PBS
    may resume it. `waits`: what its start still waits for; empty if nothing. `requeue`: it was stopped longer than the
    limit. `keeps`: protected resources that it has, for which it is never stopped.
    `warned_until`: PBS must not suspend it before. Times are Unix seconds.
    """

    id: JobId
    run: Count
    cls: JobClass
    cpus: Count
    memory_mib: Count
    claimed_at: Time
    confirmed: bool
    stop: bool
    ready: bool
    requeue: bool = False
    stopped_since: Time | None = None
    warned_until: Time | None = None
    stopper: StoppedBy | None = None
    preempted_by: Sentence = ""
    preempted_s: Time = 0.0
    preemptions: Count = 0
    booked: bool = False
    held_elsewhere: bool = False
    rerunnable: bool = True
    waits: Sentence = ""
    keeps: Sentence = ""


class MemoryMove(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Memory that is moving. `what`: the domain `gives` it, `takes` it, or `fetches` its jobs' memory from swap."""

    what: Word
    done_mib: Count
    of_mib: Count


class SleepReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain that sleeps on disk with its jobs, or is about to: since when, why, and whether it is to come back as
    soon as there is room (core/model.py, `Sleep`)."""

    since: Time
    reason: Sentence
    cause: SleepCause
    wakes: bool


class DomainReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain, derived and ready to publish. `ncpus`, `mem_mib`: what PBS may use of its vnode, running jobs included.

    `cpu_percent`, `want_cpu_percent`: the present and the wanted cap (100 is one CPU; None: no cap, or unknown).
    `since`: start of its present state. `why`: a sentence for people. `lacks`: see `lack`. `sleep`: unset if it is
    awake; it is not in the message then, so that a hub that does not know of sleep yet understands it.
    """

    name: Word
    vnode: Word
    kind: Kind
    state: State
    since: Time
    why: Sentence
    accepts: Annotated[list[JobClass], msgspec.Meta(max_length=len(JobClass))]
    rank: Rank
    ncpus: Count
    mem_mib: Count
    jobs: Annotated[list[JobReport], msgspec.Meta(max_length=MOST_JOBS)]
    cpu_percent: Count | None = None
    want_cpu_percent: Count | None = None
    memory_mib: Count | None = None
    want_memory_mib: Count | None = None
    move: MemoryMove | None = None
    preempted_s: Time = 0.0
    agent: bool = False
    lacks: Sentence | None = None
    sleep: SleepReport | msgspec.UnsetType = msgspec.UNSET

    @property
    def lack(self) -> MemoryLack | None:
        """What its jobs lack of the memory that they asked for.

        `lacks` is None if nothing is missing, empty if the rest is on its way, else the reason why it does not come.
        """
        if self.lacks is None:
            return None
        return MemoryShort(self.lacks) if self.lacks else MemoryComing()


class RefusedClaim(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A start of a job that was refused lately, and why. Its owner sees the reason as the job's comment."""

    id: JobId
    run: Count
    domain: Word
    code: Word
    text: Sentence
    at: Time


class Snapshot(Message, frozen=True, tag="snapshot"):
    """From a node daemon to its hub: everything about the host. `boot_id` changes with each start of the daemon.

    `services_cpus`: how many of the host's `cpus` services use, configured ones and others. `limits`: those of the
    `notes` that are about the driver itself, and that nobody needs to fix.
    """

    host: Word
    boot_id: Word
    revision: Count
    at: Time
    mode: Mode
    cpus: Count
    memory_mib: Count
    domains: Annotated[list[DomainReport], msgspec.Meta(max_length=MOST_DOMAINS)]
    services_cpus: Count = 0
    driver: Word = "local"
    hub_connected: bool = False
    paused: Sentence = ""
    paused_since: Time | None = None
    notes: Annotated[list[Sentence], msgspec.Meta(max_length=MOST_NOTES)] = []
    limits: Annotated[list[Sentence], msgspec.Meta(max_length=MOST_NOTES)] = []
    refused: Annotated[list[RefusedClaim], msgspec.Meta(max_length=MOST_REFUSED)] = []


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


class HistoryEntry(msgspec.Struct, frozen=True):
    """A row of a host's history (magrathea/history.py). `kind`: `event` or `decision`; `name`: its type; `domain`,
    `job`: may be empty; `data`: everything as JSON."""

    at: Time
    kind: Annotated[str, msgspec.Meta(max_length=64)]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    domain: Annotated[str, msgspec.Meta(max_length=255)] = ""
    job: Annotated[str, msgspec.Meta(max_length=255)] = ""
    data: str = "{}"


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


class HostHistory(msgspec.Struct, kw_only=True, frozen=True):
    """One host's history, or why it sent none."""

    host: Word
    entries: list[HistoryEntry] = []
    trouble: Sentence = ""


class HostView(msgspec.Struct, kw_only=True, frozen=True):
    """A host as the hub knows it. `live`: its lease is valid; else the snapshot is its last one, and PBS shows unknown.

    `ahead_s`: how far its clock was ahead of the hub's at its last heartbeat (negative: behind). `version`: its
    daemon's.
    """

    live: bool
    snapshot: Snapshot
    ahead_s: float | None = None
    version: Sentence = ""


class FarmView(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of the hub's control socket to `status`. `booked`: jobs that the hub has suspended in PBS.

    `knows_pbs`: the hub has read PBS's vnodes and jobs since its start; before that its books are not reliable.
    """

    at: Time
    knows_pbs: bool
    hosts: list[HostView]
    booked: list[Word]


class Preview(msgspec.Struct, kw_only=True, frozen=True):
    """One domain's answer to a claim now. `code`: empty if it would accept, and preempt `preempts`."""

    host: Word
    domain: Word
    vnode: Word
    code: str = ""
    text: Sentence = ""
    preempts: list[Word] = []
    jobs: list[Word] = []


class Chunk(NamedTuple):
    """A part of a select: how many chunks of that size."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    cpus: Annotated[int, msgspec.Meta(ge=0, le=2**20)]
    memory_mib: Count = 0


class ChunkPreview(msgspec.Struct, kw_only=True, frozen=True):
    """Each domain's answer to one such chunk alone."""

    chunk: Chunk
    answers: list[Preview]


class Placement(msgspec.Struct, kw_only=True, frozen=True):
    """Where one chunk (the number of its kind in the select) would go after the chunks before it."""

    chunk: Count
    host: Word
    domain: Word
    preempts: list[Word] = []
    jobs: list[Word] = []


class Outlook(msgspec.Struct, kw_only=True, frozen=True):
    """What a submission would find and do now. `placed`: in order, up to the first chunk without a place."""

    cls: JobClass
    chunks: list[ChunkPreview]
    placed: list[Placement]

    @property
    def asked(self) -> int:
        return sum(part.chunk.number for part in self.chunks)

    @property
    def fits(self) -> bool:
        return len(self.placed) == self.asked


HEARTBEAT_S = 2.0
"""Seconds between heartbeats. After three missing ones a host is `unknown` to PBS."""

KNOWS_MOVES = f"{__version__}+moves"
"""The version in the heartbeats of hubs and hosts that know the messages about moves. What is known stands after a `+`:
a peer of an older release would refuse a heartbeat with a new field."""


def knows_moves(version: str) -> bool:
    """True if the sender of a heartbeat with that version knows the messages about moves."""
    return "moves" in version.partition("+")[2].split(".")


def release(version: str) -> str:
    """The release's number in the version of a heartbeat."""
    return version.partition("+")[0]


ToHub = Snapshot | Heartbeat | HistoryTold | PartsAsked | GivenAsked | MoveWords | ParcelSent
ToHost = Books | Heartbeat | Resend | HistoryAsked | PartsTold | GivenTold | Ownerships | MoveRefused | ParcelSent

_to_hub = msgspec.json.Decoder(ToHub)
_to_host = msgspec.json.Decoder(ToHost)


def decode_to_hub(data: bytes) -> ToHub:
    """A message from a host to the hub. Raises BadMessage."""
    return decode(_to_hub, data)  # type: ignore[no-any-return]


def decode_to_host(data: bytes) -> ToHost:
    """A message from the hub to a host. Raises BadMessage."""
    return decode(_to_host, data)  # type: ignore[no-any-return]
