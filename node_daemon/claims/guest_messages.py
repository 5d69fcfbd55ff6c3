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

PROTOCOL = 1

MAX_LINE = 65536
"""Bytes in a line, its newline included; both ways."""

MAX_JOBS = 1000
"""Jobs in one list: more than CPUs of any host, and with the ids that PBS makes it fits a line."""

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Session = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Run = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Number = Annotated[int, msgspec.Meta(ge=-(2**40), le=2**40)]
"""Negative numbers get through: the core refuses them with a code and a sentence."""

SUSPENDED = 43
ENDING = 50
"""PBS's substates: 43 is suspended, 50 and above are of a job that ends."""


class BadLine(Exception):
    """A line that is no message; the text says why."""


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
    substate: Number = 42
    rerunnable: bool = True

    def reported(self) -> ReportedJob:
        return ReportedJob(
            key=self.key,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            suspended=self.substate == SUSPENDED,
            ending=self.substate >= ENDING,
            rerunnable=self.rerunnable,
        )


class SeenJob(GuestJob, frozen=True):
    processes: Number = 0
    stopped: Number = 0


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
    jobs: Annotated[list[SeenJob], msgspec.Meta(max_length=MAX_JOBS)] = []


AnyRequest = Claim | Release | Launched | Prepared | Jobs | Report


class Unknown(msgspec.Struct, frozen=True):
    """A request with an operation of another version: answered, so that the other side need not wait."""

    id: Id
    session: Session
    op: Annotated[str, msgspec.Meta(max_length=64)]


class _Head(msgspec.Struct, frozen=True):
    type: str
    op: str = ""


_OPS = frozenset(("claim", "release", "launched", "prepared", "jobs", "report"))
_head = msgspec.json.Decoder(_Head)
_hello = msgspec.json.Decoder(Hello)
_answer = msgspec.json.Decoder(Answer)
_request = msgspec.json.Decoder(AnyRequest)
_unknown = msgspec.json.Decoder(Unknown)
_encoder = msgspec.json.Encoder()


def decode(line: bytes) -> Hello | Answer | AnyRequest | Unknown:
    """One line, its newline taken off. Raises BadLine."""
    try:
        head = _head.decode(line)
        if head.type == "request":
            return _request.decode(line) if head.op in _OPS else _unknown.decode(line)
        if head.type == "answer":
            return _answer.decode(line)
        if head.type == "hello":
            return _hello.decode(line)
    except UNDECODABLE as error:
        raise BadLine(str(error)) from error
    raise BadLine(f"type {head.type[:32]!r} is neither hello, request nor answer")


def encode(message: dict[str, Any]) -> bytes:
    """A line with its newline. Raises ValueError where it is too long for the other side."""
    line = _encoder.encode(message) + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of {len(line)} bytes; {MAX_LINE} are possible")
    return line
