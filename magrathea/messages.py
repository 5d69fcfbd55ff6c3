"""What node daemons, hub and commands say to each other: every message, typed, with its bounds.

Encoding: JSON by msgspec; unknown fields and wrong types are refused (`decode` raises `BadMessage`). The guest
channel's messages are elsewhere (node_daemon/guest_channel/messages.py), because the agent has no msgspec.

Rule 1: a Snapshot says all about its host; a later one (boot_id, revision) replaces it whole.
Rule 2: a Books says all about a host's jobs; a later one replaces it whole. Nothing is a difference, so a lost
message costs time only.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from magrathea.decoding import UNDECODABLE

from .core.model import JobClass, Kind, MemoryComing, MemoryLack, MemoryShort, Mode, Stage, State

MAX_BYTES = 4 * 1024 * 1024
"""A message larger than this is refused unread: 64 domains of 200 jobs are about 3 MiB."""

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
"""Names of hosts, domains, vnodes and jobs; 255 is PBS's limit for a vnode's and a job's name."""

Sentence = Annotated[str, msgspec.Meta(max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Rank = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31)]
Time = Annotated[float, msgspec.Meta(ge=0, le=2**36)]
"""Seconds; 2**36 as a date is in the year 4147, which every calendar of Python still knows."""

MOST_DOMAINS, MOST_JOBS, MOST_NOTES, MOST_REFUSED, MOST_ENTRIES = 256, 8192, 1024, 64, 10_000
"""In one message: far more than any host has, and so few that a host's snapshot takes bounded memory and time."""


class BadMessage(Exception):
    """A message that is too large, no JSON, of no known type, or with a wrong field; the text names it."""


class Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True, frozen=True):
    """Base of all messages; the tag is the class's name in lower case."""


class JobReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job as its host sees it.

    `stop`: this host wants it stopped. `ready`: this host no longer does, and all is given back, so that PBS may resume
    it. `waits`: for what its start still waits, empty if for nothing. `requeue`: it was stopped longer than the limit.
    `warned_until`: before that PBS must not suspend it. Times are Unix seconds.
    """

    id: Word
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
    stopper: Word | None = None
    preempted_by: Sentence = ""
    preempted_s: Time = 0.0
    preemptions: Count = 0
    booked: bool = False
    held_elsewhere: bool = False
    rerunnable: bool = True
    waits: Sentence = ""


class MemoryMove(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Memory on its way. `what`: the domain `gives` or `takes` it, or `fetches` from swap what its jobs will need."""

    what: Word
    done_mib: Count
    of_mib: Count


class DomainReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain, derived and ready to publish. `ncpus`, `mem_mib`: what PBS may use of its vnode, running jobs included.

    `cpu_percent`, `want_cpu_percent`: as it is and as it should be (100 is one CPU; None: not capped or not known).
    `since`: when it took its present state. `why`: a sentence for people. `lacks`: see `lack`.
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

    @property
    def lack(self) -> MemoryLack | None:
        """What its jobs lack of the memory that they asked for: `lacks` is None for nothing, empty for what is on its
        way, else why it does not come."""
        if self.lacks is None:
            return None
        return MemoryShort(self.lacks) if self.lacks else MemoryComing()


class RefusedClaim(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job's start that was refused a short while ago, and why: its owner sees it as the job's comment."""

    id: Word
    run: Count
    domain: Word
    code: Word
    text: Sentence
    at: Time


class Snapshot(Message, frozen=True, tag="snapshot"):
    """A host daemon to its hub: everything about the host. `boot_id` changes with each start of the daemon.

    `services_cpus`: of the host's `cpus`, what services have, configured ones and others.
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
    refused: Annotated[list[RefusedClaim], msgspec.Meta(max_length=MOST_REFUSED)] = []


class Heartbeat(Message, frozen=True, tag="heartbeat", omit_defaults=True):
    """Either way, every `HEARTBEAT_S`. From a host: its last revision, so that the hub can ask for what it lacks; and
    its clock and version, for `magrathea doctor`."""

    sender: Word
    boot_id: Word
    revision: Count
    at: Time = 0.0
    version: Sentence = ""


class Resend(Message, frozen=True, tag="resend"):
    """Hub to host: send your snapshot again (the hub has just started, or a revision is missing)."""


class BookEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job in PBS's books. `booked`: admin-suspended by the hub. `held`: another of its hosts wants it stopped."""

    id: Word
    run: Count
    booked: bool
    held: bool


class Books(Message, frozen=True, tag="books"):
    """Hub to host: all of the host's jobs that PBS has suspended for Magrathea, or that another host wants stopped.

    `acked_revision`: the last snapshot of the host that these books know.
    """

    hub_id: Word
    acked_revision: Count
    jobs: list[BookEntry]


class HistoryEntry(msgspec.Struct, frozen=True):
    """A row of a host's history (magrathea/history.py). `kind` is `event` or `decision`; `name` its type; `domain` and
    `job` may be empty; `data`: all of it as JSON."""

    at: Time
    kind: Annotated[str, msgspec.Meta(max_length=64)]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    domain: Annotated[str, msgspec.Meta(max_length=255)] = ""
    job: Annotated[str, msgspec.Meta(max_length=255)] = ""
    data: str = "{}"


class HistoryAsked(Message, frozen=True, tag="history-asked"):
    """Hub to host: somebody asks for your history. `id`: the answer's, too."""

    id: Count
    about: Annotated[str, msgspec.Meta(max_length=255)] = ""
    since: Time = 0.0
    limit: Count = 100


class HistoryTold(Message, frozen=True, tag="history-told"):
    """Host to hub: what was asked for. `trouble`: why there is nothing to tell; else empty."""

    sender: Word
    id: Count
    entries: Annotated[list[HistoryEntry], msgspec.Meta(max_length=MOST_ENTRIES)]
    trouble: Sentence = ""


MAX_PARTS = 200
"""Parts of a job in one question; a job of more asks again. With the longest names it fits a guest channel's line."""

Vnodes = Annotated[list[Word], msgspec.Meta(max_length=MAX_PARTS)]


class PartsAsked(Message, frozen=True, tag="parts-asked"):
    """Host to hub: which of the job's parts in these vnodes of other hosts are not ready? `id`: the answer's, too."""

    sender: Word
    id: Count
    job: Word
    run: Count
    vnodes: Vnodes


class UnreadyPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """See core/readiness.py. `text` names its host, too."""

    stage: Stage
    text: Sentence


class PartsTold(Message, frozen=True, tag="parts-told"):
    """Hub to host: what was asked for; parts that are ready, or in vnodes that nobody manages, are not named."""

    id: Count
    parts: list[UnreadyPart]


class HostHistory(msgspec.Struct, kw_only=True, frozen=True):
    """What one host told of its history, or why it did not."""

    host: Word
    entries: list[HistoryEntry] = []
    trouble: Sentence = ""


class HostView(msgspec.Struct, kw_only=True, frozen=True):
    """A host as the hub knows it. `live`: its lease holds; else the snapshot is its last one, and PBS shows unknown.

    `ahead_s`: how far its clock was before the hub's (negative: behind) at its last heartbeat. `version`: its daemon's.
    """

    live: bool
    snapshot: Snapshot
    ahead_s: float | None = None
    version: Sentence = ""


class FarmView(msgspec.Struct, kw_only=True, frozen=True):
    """What the hub's control socket answers to `status`. `booked`: jobs that it has suspended in PBS.

    `knows_pbs`: it has read PBS's vnodes and jobs since it started; before that the books are not to be relied on.
    """

    at: Time
    knows_pbs: bool
    hosts: list[HostView]
    booked: list[Word]


class Preview(msgspec.Struct, kw_only=True, frozen=True):
    """What one domain would answer to a claim now. `code`: empty if it would accept, and preempt `preempts`."""

    host: Word
    domain: Word
    vnode: Word
    code: str = ""
    text: Sentence = ""
    preempts: list[Word] = []
    jobs: list[Word] = []


class Chunk(NamedTuple):
    """A part of a select: how many of that size."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    cpus: Annotated[int, msgspec.Meta(ge=0, le=2**20)]
    memory_mib: Count = 0


class ChunkPreview(msgspec.Struct, kw_only=True, frozen=True):
    """What each domain would answer to one such chunk by itself."""

    chunk: Chunk
    answers: list[Preview]


class Placement(msgspec.Struct, kw_only=True, frozen=True):
    """Where one chunk (the number of its kind in the select) would go if those before it were there already."""

    chunk: Count
    host: Word
    domain: Word
    preempts: list[Word] = []
    jobs: list[Word] = []


class Outlook(msgspec.Struct, kw_only=True, frozen=True):
    """What a submission would find and do now. `placed`: in order, up to the first chunk that finds no place."""

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
"""Seconds between heartbeats; a host whose three last ones are missing is `unknown` to PBS."""

ToHub = Snapshot | Heartbeat | HistoryTold | PartsAsked
ToHost = Books | Heartbeat | Resend | HistoryAsked | PartsTold

_to_hub = msgspec.json.Decoder(ToHub)
_to_host = msgspec.json.Decoder(ToHost)
_encoder = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def _decode(decoder: msgspec.json.Decoder[ToHub] | msgspec.json.Decoder[ToHost], data: bytes) -> ToHub | ToHost:
    if len(data) > MAX_BYTES:
        raise BadMessage(f"message of {len(data)} bytes; the limit is {MAX_BYTES}")
    try:
        return decoder.decode(data)
    except UNDECODABLE as error:  # ValidationError is one of them
        raise BadMessage(str(error)) from error


def decode_to_hub(data: bytes) -> ToHub:
    """What a host sent to the hub. Raises BadMessage."""
    return _decode(_to_hub, data)  # type: ignore[return-value]


def decode_to_host(data: bytes) -> ToHost:
    """What the hub sent to a host. Raises BadMessage."""
    return _decode(_to_host, data)  # type: ignore[return-value]
