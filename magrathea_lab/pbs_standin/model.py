"""Jobs and vnodes of the PBS stand-in, and which job fits where. Data and arithmetic, no I/O."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from magrathea.pbs_text.amounts import size_bytes, whole_number
from magrathea.pbs_text.placement import placed
from magrathea.pbs_text.select import chunks
from magrathea.pbs_text.states import SUSPENDED_SUBSTATE
from magrathea.pbs_text.words import words
from scheduler_plugin.pbs.base import Code

Json = dict[str, Any]
STRING_ARRAYS = {"magrathea_accepts", "magrathea_siblings"}
RESOURCES = STRING_ARRAYS | {"ncpus", "mem", "magrathea", "magrathea_rank", "magrathea_host", "magrathea_host_ncpus"}
PRIORITIES = range(-1024, 1024)  # of a vnode


class StandInError(Exception):
    """The stand-in refused something. `code`: PBS's own error number."""

    def __init__(self, code: int, text: str, transient: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.transient = code, text, transient


def mib(size: str) -> float:
    """A PBS size in MiB. Raises StandInError."""
    try:
        return size_bytes(size) / 2**20
    except ValueError as error:
        raise StandInError(Code.BAD_VALUE, str(error)) from None


def chunks_of(select: str) -> list[dict[str, str]]:
    """Resources of each chunk of a select; "2:ncpus=1" gives two chunks. Raises StandInError."""
    try:
        found = [chunk for count, pairs in chunks(select) for chunk in [{"ncpus": "1", **dict(pairs)}] * count]
        for chunk in found:
            whole_number(chunk["ncpus"])
    except ValueError as error:
        raise StandInError(Code.BAD_VALUE, str(error)) from None
    for chunk in found:
        mib(chunk.get("mem", "0"))
    return found


@dataclass
class StandInJob:
    """A job. `deleted`, `requeued`: what happens to it at its end.

    `run_count`: how often it was started; MoM's hook may change it. `everywhere`: its script also runs on the sister
    MoMs.
    """

    GIVEN: ClassVar[set[str]] = {
        "script", "output", "workdir", "name", "walltime_s", "rerunnable", "variables", "place", "everywhere"
    }  # fmt: skip

    id: str
    queue: str
    schedselect: str
    script: str
    output: str
    workdir: str
    name: str = "job"
    walltime_s: float | None = None
    rerunnable: bool = True
    variables: dict[str, str] = field(default_factory=dict)
    place: str = "free"
    everywhere: bool = False
    state: str = "Q"
    substate: int = 10
    exec_vnode: str = ""
    run_version: int = 0
    execution_time: float = 0.0
    comment: str = ""
    started_at: float = 0.0
    run_count: int = 0
    rejections: int = 0
    admin_suspended: bool = False
    deleted: bool = False
    requeued: bool = False
    exit_status: int | None = None
    why: str = ""
    used_s: float = 0.0
    launching: set[str] = field(default_factory=set)
    """Its vnodes whose MoM has not said yet that the job is there. Until none is left, it cannot be suspended."""
    history: list[tuple[float, str, int]] = field(default_factory=list)

    def moved(self, state: str, substate: int) -> None:
        self.state, self.substate = state, substate
        self.history.append((time.time(), state, substate))

    @property
    def running(self) -> bool:
        return self.state in ("R", "S")

    @property
    def chunks(self) -> list[tuple[str, dict[str, str]]]:
        """Vnode and resources of each chunk of `exec_vnode`."""
        parts = [part for chunk in placed(self.exec_vnode) for part in chunk] if self.exec_vnode else []
        return [(vnode, dict(pairs)) for vnode, pairs in parts]

    @property
    def vnodes(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.chunks))

    def attributes(self) -> Json:
        """The job's attributes as a hook sees them."""
        totals = {"ncpus": sum(int(c["ncpus"]) for c in chunks_of(self.schedselect)), "place": self.place}
        return {
            "id": self.id, "Job_Name": self.name, "queue": self.queue, "schedselect": self.schedselect,
            "exec_vnode": self.exec_vnode or None, "run_version": self.run_version, "run_count": self.run_count,
            "substate": self.substate,
            "euser": getpass.getuser(), "Job_Owner": f"{getpass.getuser()}@localhost", "Rerunable": self.rerunnable,
            "Resource_List": {**totals, "select": self.schedselect, "walltime": self.walltime_s},
            "comment": self.comment,
        }  # fmt: skip

    def shown(self) -> Json:
        """The job's attributes as `qstat -f` shows them."""
        names = ("id", "state", "substate", "run_version", "queue", "vnodes", "rerunnable", "walltime_s", "comment")
        more = ("run_count", "started_at", "name", "exit_status", "why", "used_s", "history", "rejections", "output",
                "exec_vnode")  # fmt: skip
        return {name: getattr(self, name) for name in (*names, *more)}


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Check a vnode's attributes as `qmgr` does; an empty value unsets. Raises StandInError."""
    for name, value in attributes.items():
        resource = name.partition("resources_available.")[2]
        if resource and resource not in RESOURCES:
            raise StandInError(Code.UNKNOWN_RESOURCE, f"unknown resource {resource}")
        if not resource and name not in ("Priority", "comment", "resv_enable"):
            raise StandInError(Code.UNKNOWN_ATTRIBUTE, f"unknown attribute {name}")
        whole = name == "Priority" or resource in ("ncpus", "magrathea_rank", "magrathea_host_ncpus")
        if value and whole and not value.lstrip("-").isdigit():
            raise StandInError(Code.BAD_VALUE, f"{name} is a number, not {value!r}")
        if value and name == "Priority" and int(value) not in PRIORITIES:
            raise StandInError(Code.BAD_VALUE, f"Priority {value} is not in -1024 to 1023")
        if value and resource == "mem":
            mib(value)


@dataclass
class StandInVnode:
    """A vnode. `attributes`: by qmgr's names ("resources_available.ncpus", "Priority"). `offered`: what its MoM
    reports."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    offered: dict[str, str] = field(default_factory=dict)
    maintenance_jobs: list[str] = field(default_factory=list)
    up: bool = True
    offline: bool = False

    def resource(self, name: str) -> str:
        return self.attributes.get(f"resources_available.{name}", "")

    def set(self, attributes: Mapping[str, str]) -> None:
        """Set all attributes or none. An empty value unsets; the value that MoM reports then returns. Raises
        StandInError."""
        check_attributes(attributes)
        self.attributes.update(attributes)
        for name in [name for name, value in attributes.items() if not value]:
            del self.attributes[name]
            if name in self.offered:
                self.attributes[name] = self.offered[name]

    def jobs_here(self, jobs: Iterable[StandInJob]) -> list[tuple[StandInJob, dict[str, str]]]:
        """The jobs and chunks that hold resources here, as in the vnode's list; suspended jobs hold none."""
        active = [j for j in jobs if j.exec_vnode and j.state != "F" and j.substate != SUSPENDED_SUBSTATE]
        return [(job, chunk) for job in active for name, chunk in job.chunks if name == self.name]

    def free(self, jobs: Iterable[StandInJob]) -> tuple[int, float]:
        """CPUs and MiB that are not assigned."""
        here = self.jobs_here(jobs)
        cpus = int(self.resource("ncpus")) - sum(int(chunk["ncpus"]) for _, chunk in here)
        return cpus, mib(self.resource("mem")) - sum(mib(chunk.get("mem", "0mb")) for _, chunk in here)

    def state(self, jobs: Iterable[StandInJob]) -> list[str]:
        words = [("down", not self.up), ("offline", self.offline), ("maintenance", bool(self.maintenance_jobs))]
        return [word for word, holds in words if holds] or ["job-busy" if self.free(jobs)[0] <= 0 else "free"]

    def for_hook(self, jobs: Iterable[StandInJob]) -> Json:
        there = self.jobs_here(jobs)
        here = [f"{job.id}/{index}" for index, (job, _) in enumerate(there)]
        assigned = {"ncpus": sum(int(chunk["ncpus"]) for _, chunk in there)}
        prefix = "resources_available."
        available = {n.removeprefix(prefix): v for n, v in self.attributes.items() if n.startswith(prefix)}
        others = {n: v for n, v in self.attributes.items() if not n.startswith(prefix)}
        resources = {"resources_available": available, "resources_assigned": assigned}
        return {**others, **resources, "jobs": ", ".join(here) or None, "state": 0}

    def shown(self, jobs: Iterable[StandInJob]) -> Json:
        """The vnode's attributes as `pbsnodes` shows them."""
        here = list(dict.fromkeys(job.id for job, _ in self.jobs_here(jobs)))
        return {
            "name": self.name, "attributes": self.attributes, "state": self.state(jobs), "jobs": here,
            "maintenance_jobs": self.maintenance_jobs,
        }  # fmt: skip


def matches(chunk: dict[str, str], vnode: StandInVnode) -> bool:
    """True if the vnode has what the chunk asks for; a string_array matches if one of its words is equal."""
    for name, value in chunk.items():
        if name in STRING_ARRAYS:
            if value not in words(vnode.resource(name)):
                return False
        elif name not in ("ncpus", "mem") and vnode.resource(name) != value:
            return False
    return int(chunk["ncpus"]) <= int(vnode.resource("ncpus")) and mib(chunk.get("mem", "0mb")) <= mib(
        vnode.resource("mem")
    )


def assign(job: StandInJob, vnodes: Iterable[StandInVnode], jobs: Iterable[StandInJob]) -> tuple[str, str]:
    """`exec_vnode` and "" if the job fits now, else "" and the comment. Tries vnodes with the highest Priority
    first."""
    order = sorted(vnodes, key=lambda v: (-int(v.attributes.get("Priority", "0")), v.name))
    left = {v.name: v.free(jobs) for v in order}
    found: list[str] = []
    for chunk in chunks_of(job.schedselect):
        candidates = [v for v in order if matches(chunk, v)]
        if not candidates:
            missing = chunk.get("magrathea_accepts", "")
            return "", f"Can Never Run: Insufficient amount of resource: magrathea_accepts ({missing})"
        cpus, memory = int(chunk["ncpus"]), mib(chunk.get("mem", "0mb"))
        for vnode in candidates:
            fits = left[vnode.name][0] >= cpus and left[vnode.name][1] >= memory
            taken = job.place == "scatter" and any(f.startswith(f"({vnode.name}:") for f in found)
            if fits and not taken and vnode.state(jobs) == ["free"]:
                break
        else:
            return "", "Not Running: Insufficient amount of resource: ncpus"
        left[vnode.name] = left[vnode.name][0] - cpus, left[vnode.name][1] - memory
        found.append(f"({vnode.name}:ncpus={cpus}" + (f":mem={chunk['mem']})" if "mem" in chunk else ")"))
    return "+".join(found), ""
