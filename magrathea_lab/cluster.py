"""A running cluster as its users and admins see it. Scenarios, the demo and tests use nothing else of a cluster.

Every cluster in clusters/ implements it, with any kind of PBS and of domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .fleet import HostSpec


class Failed(AssertionError):
    """A cluster behaved wrongly. The text says how, and shows the cluster's state."""


@dataclass(frozen=True)
class JobView:
    """A job as PBS shows it. `state`: PBS's letter, F when it has finished. `used_s`: walltime counted by PBS."""

    id: str
    state: str
    substate: int = 0
    run_version: int = 0
    vnodes: tuple[str, ...] = ()
    comment: str = ""
    exit_status: int | None = None


@dataclass(frozen=True)
class VnodeView:
    """A vnode as PBS shows it. `magrathea`: the domain's state word. `state`: PBS's own words."""

    name: str
    magrathea: str
    accepts: tuple[str, ...]
    state: frozenset[str]


class Cluster(Protocol):
    """A running cluster of `hosts`. Use it from one thread only. Every method raises if PBS refuses."""

    @property
    def hosts(self) -> Sequence[HostSpec]: ...

    def submit(
        self,
        queue: str,
        steps: int,
        *,
        cpus: int = 1,
        select: str = "",
        walltime_s: int | None = None,
        rerunnable: bool = True,
        name: str = "job",
    ) -> str:
        """Submit work.py with `steps` steps; return the job's id. `select` replaces `cpus`."""
        ...  # fmt: skip

    def jobs(self) -> Mapping[str, JobView]:
        """All jobs, including finished ones."""
        ...

    def vnodes(self) -> Mapping[str, VnodeView]: ...

    def counter(self, job: str) -> int:
        """The number of steps that the job has done; 0 before the first."""
        ...

    def output(self, job: str) -> str:
        """What the job printed; empty if there is no output (yet)."""
        ...

    def delete(self, job: str) -> None: ...

    def crash(self, part: str) -> None:
        """Kill a part of Magrathea with SIGKILL and start it again: "hub", "noded-h1", "agent-n1"."""
        ...

    def picture(self) -> str:
        """The cluster's state for an error message."""
        ...
