"""What the agent in a domain may say to the node daemon, as types (the agent's own side is agent/, without msgspec).

A guest is hostile until shown otherwise: every field has a bound. Unknown fields are let through, because an agent in
an old or new flavour may be of another version; unknown operations are answered with a code.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from magrathea.core.events import ReportedJob
from magrathea.core.model import JobClass, JobKey
from magrathea.decoding import UNDECODABLE
from magrathea.messages import Vnodes
from magrathea.pbs_text.states import ENDING_SUBSTATE, RUNNING_SUBSTATE, SUSPENDED_SUBSTATE

from ..agent.lines import BadValue
from ..agent.parts import MAX_JOBS

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Session = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Run = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Number = Annotated[int, msgspec.Meta(ge=-(2**40), le=2**40)]
"""Negative numbers get through: the core refuses them with a code and a sentence."""


class GuestJob(msgspec.Struct, frozen=True):
    id: Word
    run: Run

    @property
    def key(self) -> JobKey:
        return JobKey(self.id, self.run)


class ClaimedJob(GuestJob, frozen=True, rename={"cls": "class"}):
    cls: JobClass
    cpus: Number
    memory_mib: Number = 0
    rerunnable: bool = True


class ListedJob(GuestJob, frozen=True):
    cpus: Number = 1
    memory_mib: Number = 0
    substate: Number = RUNNING_SUBSTATE
    rerunnable: bool = True

    def reported(self) -> ReportedJob:
        return ReportedJob(
            key=self.key,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            suspended=self.substate == SUSPENDED_SUBSTATE,
            ending=self.substate >= ENDING_SUBSTATE,
            rerunnable=self.rerunnable,
        )


class GuestMemory(msgspec.Struct, frozen=True):
    total_mib: Number = 0
    available_mib: Number = 0
    unreclaimable_mib: Number = 0
    swap_free_mib: Number = 0
    swap_total_mib: Number = 0
    free_mib: Number = 0
    swap_cached_mib: Number = 0

    @property
    def can_go_mib(self) -> int:
        """What the guest can give up at once: what was just pushed out lies in memory until somebody asks for it."""
        return self.available_mib + self.swap_cached_mib


class Hello(msgspec.Struct, frozen=True):
    session: Session
    protocol: int
    agent: Annotated[str, msgspec.Meta(max_length=64)] = ""
    can: Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=64)] = []


class Answer(msgspec.Struct, frozen=True):
    """To a request of ours. `jobs`: what `orders` and `memory` give back. `memory` and all after it: of `memory`,
    `push-out` and `fetch`; `more` says that the slice was ended before all of the jobs' memory was looked at."""

    id: Id
    session: Session
    ok: bool
    code: Annotated[str, msgspec.Meta(max_length=64)] = ""
    text: Text = ""
    jobs: Annotated[list[OrderedJob], msgspec.Meta(max_length=MAX_JOBS)] = []
    memory: GuestMemory = GuestMemory()
    pushed_mib: Number = 0
    fetched_mib: Number = 0
    left_mib: Number = 0
    more: bool = False


class OrderedJob(GuestJob, frozen=True):
    """What an order has done. `pending`: in uninterruptible sleep with the stop pending. Of `memory`: what of the
    job's own memory is where, and only whether it is stopped."""

    order: Annotated[str, msgspec.Meta(max_length=16)] = ""
    processes: Number = 0
    stopped: Number | bool = 0
    pending: Number = 0
    resident_mib: Number = 0
    swapped_mib: Number = 0

    @property
    def done(self) -> bool:
        """Whether a stop holds: no process of the job runs on."""
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
    """`vnodes`: of the job's parts, its own and others (some of them, if it has very many)."""

    job: GuestJob
    vnodes: Vnodes = []


class Jobs(GuestRequest, frozen=True):
    jobs: Annotated[list[ListedJob], msgspec.Meta(max_length=MAX_JOBS)]


class Report(GuestRequest, frozen=True):
    memory: GuestMemory = GuestMemory()
    load1: float = 0.0


AnyRequest = Claim | Release | Launched | Prepared | Jobs | Report


class Unknown(msgspec.Struct, frozen=True):
    """A request with an operation of another version: answered, so that the other side need not wait."""

    id: Id
    session: Session
    op: Annotated[str, msgspec.Meta(max_length=64)]


class Said(dict[str, Any]):
    """A message as the wire reads it. `message`: the same as a type, None for what the wire alone understands."""

    message: Hello | Answer | AnyRequest | Unknown | None = None


_OPS = frozenset(("claim", "release", "launched", "prepared", "jobs", "report"))
_TYPES: dict[object, Any] = {"hello": Hello, "answer": Answer}
_decoder = msgspec.json.Decoder(dict[str, Any])


def decode(line: bytes) -> Said:
    """One line, its newline taken off. Raises BadValue."""
    try:
        said = Said(_decoder.decode(line))
        kind = said.get("type")
        as_type = _TYPES.get(kind) if kind != "request" else AnyRequest if said.get("op") in _OPS else Unknown
        if as_type is not None:
            said.message = msgspec.convert(said, as_type)
    except (*UNDECODABLE, TypeError) as error:
        raise BadValue(str(error)) from error
    return said
