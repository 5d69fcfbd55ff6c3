"""What PBS itself shows of hosts, domains and jobs, for machines with neither hub nor node daemon (login nodes).

The hub publishes each domain on its vnode: state, classes that it accepts, host, siblings, CPUs. That is enough to say
what is so now, and which vnodes would take a job. Only hub and daemon know for how long a job has been preempted, and
which jobs of a sibling would be stopped.

Rule 1: pure. qstat.py asks PBS, as the calling user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from magrathea.core.refusals import RefusalCode
from magrathea.core.words import JobClass, State
from magrathea.pbs_text.amounts import size_bytes, whole_mib, whole_number
from magrathea.pbs_text.states import CLOSED_STATES
from magrathea.pbs_text.words import job_ids, words
from magrathea.reports import Chunk, ChunkPreview, Outlook, Placement, Preview

Attributes = Mapping[str, str]

OURS = "resources_available.magrathea"


@dataclass(frozen=True, slots=True)
class PublishedVnode:
    """A managed vnode. `state`: Magrathea's word; `pbs`: PBS's own words. `cpus`, `memory_mib`: free ones."""

    name: str
    host: str
    state: str
    pbs: str
    accepts: tuple[str, ...] = ()
    cpus: int = 0
    memory_mib: int = 0
    rank: int = 0
    siblings: tuple[str, ...] = ()
    counted: bool = False
    jobs: tuple[str, ...] = ()


def published(vnodes: Mapping[str, Attributes]) -> list[PublishedVnode]:
    """The managed vnodes among all, by host and name."""
    found = [_published(name, have) for name, have in vnodes.items() if f"{OURS}_host" in have]
    return sorted(found, key=lambda vnode: (vnode.host, vnode.name))


def _published(name: str, have: Attributes) -> PublishedVnode:
    cpus = _number(have.get("resources_available.ncpus")) - _number(have.get("resources_assigned.ncpus"))
    memory = _mib(have.get("resources_available.mem")) - _mib(have.get("resources_assigned.mem"))
    return PublishedVnode(
        name=name,
        host=have[f"{OURS}_host"],
        state=have.get(OURS, State.UNKNOWN.value),
        pbs=have.get("state", ""),
        accepts=tuple(words(have.get(f"{OURS}_accepts", ""))),
        cpus=max(0, cpus),
        memory_mib=max(0, memory),
        rank=_number(have.get("Priority") or have.get(f"{OURS}_rank")),
        siblings=tuple(words(have.get(f"{OURS}_siblings", ""))),
        counted=f"{OURS}_host_ncpus" in have,
        jobs=tuple(job_ids(have.get("jobs", ""))),
    )


def _number(text: str | None) -> int:
    try:
        return whole_number(text or "0")
    except ValueError:
        return 0


def _mib(text: str | None) -> int:
    try:
        return whole_mib(size_bytes(text or "0"))
    except ValueError:
        return 0


def is_open(vnode: PublishedVnode) -> bool:
    """True if PBS itself starts jobs there."""
    return not CLOSED_STATES & set(words(vnode.pbs))


def outlook(vnodes: Sequence[PublishedVnode], cls: JobClass, chunks: Sequence[Chunk]) -> Outlook:
    """Which vnodes would take each chunk now, and where all chunks would go: each on the best by rank, as PBS does."""
    parts = [ChunkPreview(chunk=chunk, answers=[_answer(vnodes, v, cls, chunk) for v in vnodes]) for chunk in chunks]
    return Outlook(cls=cls, chunks=parts, placed=list(_placed(vnodes, cls, chunks)))


def _answer(vnodes: Sequence[PublishedVnode], vnode: PublishedVnode, cls: JobClass, chunk: Chunk) -> Preview:
    code, text = _refusal(vnode, cls, chunk, vnode.cpus, vnode.memory_mib)
    preempts = [] if code else _preempted(vnodes, vnode)
    return Preview(
        host=vnode.host,
        domain=vnode.name,
        vnode=vnode.name,
        code=code,
        text=text,
        preempts=[sibling.name for sibling in preempts],
        jobs=[job for sibling in preempts for job in sibling.jobs],
    )


def _refusal(vnode: PublishedVnode, cls: JobClass, chunk: Chunk, cpus: int, memory_mib: int) -> tuple[str, str]:
    if not is_open(vnode):
        return RefusalCode.DOMAIN_DOWN, f"PBS shows {vnode.pbs}"
    if cls not in vnode.accepts:
        takes = ", ".join(vnode.accepts) or "nothing"
        return vnode.state, f"it takes {takes} now"
    if chunk.cpus > cpus:
        return RefusalCode.CPUS, f"{cpus} CPUs are free there"
    if chunk.memory_mib > memory_mib:
        return RefusalCode.MEMORY, f"{memory_mib} MiB are free there"
    return "", ""


def _preempted(vnodes: Sequence[PublishedVnode], vnode: PublishedVnode) -> list[PublishedVnode]:
    """The siblings that may be stopped for it. Those of a counted host are candidates: hub and daemon choose."""
    if vnode.state != State.WOULD_PREEMPT:
        return []
    stoppable = (State.RUNNING_PREEMPTIBLE, State.RUNNING)
    return [v for v in vnodes if v.host == vnode.host and v.name != vnode.name and v.jobs and v.state in stoppable]


def _placed(vnodes: Sequence[PublishedVnode], cls: JobClass, chunks: Sequence[Chunk]) -> Iterator[Placement]:
    left = {vnode.name: (vnode.cpus, vnode.memory_mib) for vnode in vnodes}
    taken_by: dict[str, str] = {}
    by_rank = sorted(vnodes, key=lambda vnode: (-vnode.rank, vnode.host, vnode.name))
    for kind, chunk in enumerate(chunks):
        for _ in range(chunk.number):
            for vnode in by_rank:
                alone = vnode.counted or taken_by.get(vnode.host, vnode.name) == vnode.name
                if alone and not _refusal(vnode, cls, chunk, *left[vnode.name])[0]:
                    break
            else:
                return
            cpus, memory_mib = left[vnode.name]
            left[vnode.name] = (cpus - chunk.cpus, memory_mib - chunk.memory_mib)
            stopped = _preempted(vnodes, vnode) if vnode.host not in taken_by else []
            taken_by.setdefault(vnode.host, vnode.name)
            yield Placement(
                chunk=kind,
                host=vnode.host,
                domain=vnode.name,
                preempts=[one.name for one in stopped],
                jobs=[job for one in stopped for job in one.jobs],
            )
