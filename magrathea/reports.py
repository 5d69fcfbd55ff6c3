"""What hosts report of themselves and of their history, and what hub and daemon tell the commands.

Messages between hosts and hub carry it: messages.py also has everything of this module. The commands that only show it
import it from here, and words from core/words.py: to build all other messages and the classes of the facts would take
Python a fifth of the time of `magrathea status`.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from .core.words import (
    GiveWay,
    JobClass,
    Kind,
    MemoryComing,
    MemoryLack,
    MemoryShort,
    Mode,
    SleepCause,
    State,
    StoppedBy,
)
from .message_base import (
    MOST_DOMAINS,
    MOST_JOBS,
    MOST_NOTES,
    MOST_REFUSED,
    Count,
    JobId,
    Message,
    Rank,
    Sentence,
    Time,
    Word,
)


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


class DomainTravel(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain that takes no jobs because it moves between hosts (docs/moves.md). `percent`: of the copy's pass."""

    source: Word
    target: Word
    stage: Word
    text: Sentence
    percent: Count | None = None


class DomainReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain, derived and ready to publish. `ncpus`, `mem_mib`: what PBS may use of its vnode, running jobs included.

    `cpu_percent`, `want_cpu_percent`: the present and the wanted cap (100 is one CPU; None: no cap, or unknown).
    `since`: start of its present state. `why`: a sentence for people. `lacks`: see `lack`. `sleep`: unset if it is
    awake; it is not in the message then, so that a hub that does not know of sleep yet understands it. `travel`: the
    same for a domain that does not move.
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
    travel: DomainTravel | msgspec.UnsetType = msgspec.UNSET

    @property
    def lack(self) -> MemoryLack | None:
        """What its jobs lack of the memory that they asked for.

        `lacks` is None if nothing is missing, empty if the rest is on its way, else the reason why it does not come.
        """
        if self.lacks is None:
            return None
        return MemoryShort(self.lacks) if self.lacks else MemoryComing()


class EvacuationView(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The evacuation of a host: since when, why, and how many of its domains are through. `returning`: the host is
    being taken back."""

    since: Time
    reason: Sentence
    over: Count
    of: Count
    returning: bool = False


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
    `notes` that are about the driver itself, and that nobody needs to fix. `away`: configured domains that have moved
    to other hosts; unset if there are none, so that an older hub understands the snapshot. `evacuation`: the same if
    the host is not evacuated.
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
    away: Annotated[list[Word], msgspec.Meta(max_length=MOST_DOMAINS)] | msgspec.UnsetType = msgspec.UNSET
    evacuation: EvacuationView | msgspec.UnsetType = msgspec.UNSET


class HistoryEntry(msgspec.Struct, frozen=True):
    """A row of a host's history (magrathea/history.py). `kind`: `event` or `decision`; `name`: its type; `domain`,
    `job`: may be empty; `data`: everything as JSON."""

    at: Time
    kind: Annotated[str, msgspec.Meta(max_length=64)]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    domain: Annotated[str, msgspec.Meta(max_length=255)] = ""
    job: Annotated[str, msgspec.Meta(max_length=255)] = ""
    data: str = "{}"


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


class MoveView(msgspec.Struct, kw_only=True, frozen=True):
    """A domain on its way between hosts; or, if `over`, how that ended, or why it was refused. `at`: since when; if it
    is over, when it ended. 0 if the hub does not know."""

    domain: Word
    source: Word
    target: Sentence
    at: Time
    text: Sentence
    over: bool = False


class ElsewhereView(msgspec.Struct, kw_only=True, frozen=True):
    """A preempted domain, if preempted domains may go on elsewhere. `to`: the host where it should go on; empty: it
    stays, and `text` is why. `since`: it has been preempted since then, by its host's clock. `fix`: what to configure,
    if that keeps it from moving."""

    domain: Word
    host: Word
    to: Sentence
    since: Time
    text: Sentence
    fix: Sentence = ""


class FarmView(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of the hub's control socket to `status`. `booked`: jobs that the hub has suspended in PBS.

    `knows_pbs`: the hub has read PBS's vnodes and jobs since its start; before that its books are not reliable.
    `moves`: those under way, and the last ones. `elsewhere`: the preempted domains, if they may go on elsewhere.
    """

    at: Time
    knows_pbs: bool
    hosts: list[HostView]
    booked: list[Word]
    moves: list[MoveView] = []
    elsewhere: list[ElsewhereView] = []


class Road(msgspec.Struct, kw_only=True, frozen=True):
    """Where so much memory of a preempted domain goes, and for how many seconds, as measured there before; None if
    nothing was."""

    domain: Word
    road: GiveWay
    mib: Count
    expected_s: Time | None = None


class Preview(msgspec.Struct, kw_only=True, frozen=True):
    """One domain's answer to a claim now. `code`: empty if it would accept, and preempt `preempts`. `roads`: only the
    host's own daemon knows them."""

    host: Word
    domain: Word
    vnode: Word
    code: str = ""
    text: Sentence = ""
    preempts: list[Word] = []
    jobs: list[Word] = []
    roads: list[Road] = []


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
