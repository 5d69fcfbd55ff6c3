"""Messages of agents as types. The agent's own side is in agent/, without msgspec.

A guest may be hostile, so every field has a bound. Unknown fields are ignored and unknown operations are refused with a
code, because an agent may be of another version.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from magrathea import stop_warnings
from magrathea.core.events import ReportedJob
from magrathea.core.model import JobClass, JobKey, StopWarning
from magrathea.decoding import UNDECODABLE
from magrathea.messages import JobId, Vnodes
from magrathea.pbs_text.states import ENDING_SUBSTATE, RUNNING_SUBSTATE, SUSPENDED_SUBSTATE
from magrathea.pbs_text.stop_signals import LONGEST_TEXT

from ..agent.lines import BadValue
from ..agent.parts import MAX_JOBS

Text = Annotated[str, msgspec.Meta(max_length=4096)]
Word = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._+-]*\Z", max_length=64)]
"""A name or a version of ours: other signs are somebody's attempt to have them printed or compared."""
WarningText = Annotated[str, msgspec.Meta(max_length=LONGEST_TEXT)]
Session = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Run = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Number = Annotated[int, msgspec.Meta(ge=-(2**40), le=2**40)]
"""Negative numbers are allowed here: the core refuses them with a code and a sentence."""

Names = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.,-]{0,200}\Z")]
"""Resources of PBS."""


class GuestJob(msgspec.Struct, frozen=True):
    id: JobId
    run: Run

    @property
    def key(self) -> JobKey:
        return JobKey(self.id, self.run)


class ClaimedJob(GuestJob, frozen=True, rename={"cls": "class"}):
    cls: JobClass
    cpus: Number
    memory_mib: Number = 0
    rerunnable: bool = True
    keeps: Names = ""
    warning: WarningText = ""
    prologue: bool = False

    @property
    def wants(self) -> StopWarning | None:
        return stop_warnings.asked(self.warning, prologue=self.prologue)


class ListedJob(GuestJob, frozen=True):
    cpus: Number = 1
    memory_mib: Number = 0
    substate: Number = RUNNING_SUBSTATE
    rerunnable: bool = True
    warning: WarningText = ""
    prologue: bool = False

    def reported(self) -> ReportedJob:
        return ReportedJob(
            key=self.key,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            suspended=self.substate == SUSPENDED_SUBSTATE,
            ending=self.substate >= ENDING_SUBSTATE,
            rerunnable=self.rerunnable,
            warning=stop_warnings.asked(self.warning, prologue=self.prologue),
        )


class GuestMemory(msgspec.Struct, frozen=True):
    total_mib: Number = 0
    available_mib: Number = 0
    unreclaimable_mib: Number = 0
    swap_free_mib: Number = 0
    swap_total_mib: Number = 0
    free_mib: Number = 0
    swap_cached_mib: Number = 0
    zram_mib: Number = 0
    """How much of its swap is zram."""
    zram_used_mib: Number = 0
    swap_takes_mib: Number | None = None
    """How much memory can leave the guest for its swap: what goes to zram stays, compressed. None: an older agent."""

    @property
    def can_go_mib(self) -> int:
        """What the guest can give up at once. Pages just written to swap still lie in memory, but can be freed."""
        return self.available_mib + self.swap_cached_mib


class Hello(msgspec.Struct, frozen=True):
    session: Session
    protocol: int
    agent: Word = ""
    can: Annotated[list[Word], msgspec.Meta(max_length=64)] = []


class Answer(msgspec.Struct, frozen=True):
    """An answer to a request of ours. `jobs`: of `orders` and `memory`. `memory` and all that follow: of `memory`,
    `push-out` and `fetch`. `more`: the slice ended before it had walked through all of the jobs' memory."""

    id: Id
    session: Session
    ok: bool
    code: Word = ""
    text: Text = ""
    jobs: Annotated[list[OrderedJob], msgspec.Meta(max_length=MAX_JOBS)] = []
    memory: GuestMemory = GuestMemory()
    pushed_mib: Number = 0
    fetched_mib: Number = 0
    left_mib: Number = 0
    more: bool = False


class OrderedJob(GuestJob, frozen=True):
    """The effect of an order. `pending`: processes in uninterruptible sleep with the stop pending. In an answer to
    `memory`: where the job's own memory is, and `stopped` is a bool."""

    order: Word = ""
    processes: Number = 0
    stopped: Number | bool = 0
    pending: Number = 0
    resident_mib: Number = 0
    swapped_mib: Number = 0

    @property
    def done(self) -> bool:
        """Whether a stop holds: no process of the job runs."""
        return self.order != "stop" or self.stopped + self.pending >= self.processes


class GuestRequest(msgspec.Struct, frozen=True, tag_field="op", tag=str.lower):
    id: Id
    session: Session


class Claim(GuestRequest, frozen=True):
    job: ClaimedJob


class Release(GuestRequest, frozen=True):
    job: GuestJob


class Launched(GuestRequest, frozen=True):
    job: GuestJob


class Prepared(GuestRequest, frozen=True):
    """`vnodes`: of the job's parts, or some of them if it has very many."""

    job: GuestJob
    vnodes: Vnodes = []


class Jobs(GuestRequest, frozen=True):
    jobs: Annotated[list[ListedJob], msgspec.Meta(max_length=MAX_JOBS)]


class Report(GuestRequest, frozen=True):
    memory: GuestMemory = GuestMemory()
    load1: float = 0.0


AnyRequest = Claim | Release | Launched | Prepared | Jobs | Report


class Unknown(msgspec.Struct, frozen=True):
    """A request whose operation this version does not know. It is refused, so that nobody waits."""

    id: Id
    session: Session
    op: Word


class Said(dict[str, Any]):
    """A message as the wire reads it. `message`: the same as a type; None for types that only the wire knows."""

    message: Hello | Answer | AnyRequest | Unknown | None = None


_OPS = frozenset(("claim", "release", "launched", "prepared", "jobs", "report"))
_TYPES: dict[object, Any] = {"hello": Hello, "answer": Answer}
_decoder = msgspec.json.Decoder(dict[str, Any])


def decode(line: bytes) -> Said:
    """Decode one line without its newline. Raises BadValue."""
    try:
        said = Said(_decoder.decode(line))
        kind = said.get("type")
        as_type = _TYPES.get(kind) if kind != "request" else AnyRequest if said.get("op") in _OPS else Unknown
        if as_type is not None:
            said.message = msgspec.convert(said, as_type)
    except (*UNDECODABLE, TypeError) as error:
        raise BadValue(str(error)) from error
    return said
