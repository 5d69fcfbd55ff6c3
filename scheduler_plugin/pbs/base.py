"""What the hub needs of PBS: read the present state, publish on vnodes, suspend and resume jobs.

Implemented by libpbs.py (a PBS server) and by the stand-in's client. One object is one connection and belongs to one
thread. Every call blocks. PBS relays some calls to a MoM (`admin_suspend`, `admin_resume`, `resume`, `rerun`,
`set_walltime`); these can block for tens of seconds, so callers keep them off the thread that publishes.

Every method raises PbsError. After a `transient` one the connection may be dead: close it and open another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

Attributes = Mapping[str, str]
"""Attributes of a PBS object by name; a resource as "attribute.resource"."""


class Code(IntEnum):
    """The PBS error numbers on which the hub acts (pbs_error.h); the stand-in uses the same."""

    UNKNOWN_JOB = 15001
    UNKNOWN_ATTRIBUTE = 15002
    NO_PERMISSION = 15007
    SYSTEM = 15010
    INTERNAL = 15011
    BAD_VALUE = 15014
    BAD_STATE = 15016
    NO_CREDENTIAL = 15019
    PROTOCOL = 15031
    NO_CONNECTION = 15033
    NO_SERVER = 15034
    UNKNOWN_RESOURCE = 15035
    NOT_RERUNNABLE = 15038
    MOM_REJECTED = 15041
    UNKNOWN_VNODE = 15062
    NO_MOM = 15070
    FINISHED_JOB = 15139
    WRONG_RESUME = 15177


class PbsError(Exception):
    """PBS refused the request or could not be reached.

    `code`: PBS's own number (see `Code`). `text`: the request, its object, and PBS's sentence. `transient`: the same
    call may succeed later (server away, connection lost, MoM not answering); else PBS refuses the request itself.
    """

    def __init__(self, code: int, text: str, transient: bool = False) -> None:
        super().__init__(f"{text} (PBS error {int(code)})")
        self.code = int(code)
        self.text = text
        self.transient = transient


@dataclass(frozen=True, slots=True)
class Vnode:
    """A vnode as the server has it.

    `attributes`: by the names that `set_vnode` accepts ("resources_available.magrathea_accepts", "Priority", "comment",
    "resv_enable"); values as PBS prints them ("a,b" for a string_array, "1024mb" or "1048576kb" for a size).
    `state`: the words of its state ({"free"}, {"offline", "down"}, {"maintenance"}).
    `maintenance_jobs`: ids of the jobs that are admin-suspended on it; None if they cannot be read. PBS shows them to
    managers only; an operator sees only the state word `maintenance`.
    """

    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    state: frozenset[str] = frozenset()
    maintenance_jobs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class PbsJob:
    """A job (or a running subjob) that has not finished. `id` is the full one ("12.srv", "12[3].srv").

    `state`: PBS's letter. `substate`: its number.
    `run_version`: grows with each run; 0 before the first. Also 0 if it cannot be read: PBS shows it to managers only,
    so an operator has none (see `is_run`).
    `vnodes`: those of `exec_vnode`, each once, in its order; empty while the job waits.
    `walltime_s`: its limit; None: no limit. `rerunnable`: PBS may requeue it. `comment`: empty if it has none.
    `started_at`: Unix seconds on the server's clock; 0 while it has not started.
    `exec_vnode`: where it runs and what it has there, as PBS prints it; empty while the job waits.
    """

    id: str
    state: str
    substate: int
    run_version: int = 0
    queue: str = ""
    vnodes: tuple[str, ...] = ()
    rerunnable: bool = True
    walltime_s: int | None = None
    comment: str = ""
    started_at: float = 0.0
    exec_vnode: str = ""

    @property
    def suspended(self) -> bool:
        return self.state == "S"

    def is_run(self, run: int) -> bool:
        """True if this may be that run of the job: its run is equal or cannot be read."""
        return self.run_version in (0, run)


class Pbs(Protocol):
    """One connection to a PBS server, for one thread."""

    def vnodes(self) -> list[Vnode]:
        """All vnodes."""

    def vnode(self, name: str) -> Vnode | None:
        """One vnode as in `vnodes`; None if PBS does not have it (any more)."""

    def jobs(self) -> list[PbsJob]:
        """All jobs that start, run, are suspended or exit, also subjobs of arrays. Waiting jobs may be missing."""

    def job(self, job: str) -> PbsJob | None:
        """One job as in `jobs`; None if PBS does not know it (any more) or it has finished."""

    def server(self) -> Mapping[str, str]:
        """The server's attributes: at least "scheduling" ("True"/"False"), and if they are set "node_fail_requeue" and
        "state_count" ("Queued:0 Begun:1 ...")."""

    def set_vnode(self, name: str, attributes: Mapping[str, str]) -> None:
        """Set all these attributes of a vnode in one call, or none of them; an empty value unsets."""

    def set_offline(self, name: str, comment: str) -> None:
        """Set a vnode offline with that comment. An empty comment ends that, and removes the comment."""

    def wake_scheduler(self) -> bool:
        """Start a scheduling cycle (`scheduling=true`), but only if `scheduling` is true now. Returns True if it
        did."""

    def admin_suspend(self, job: str) -> None:
        """Suspend a job. Raises BAD_STATE while the job is still starting, or if it is already suspended."""

    def admin_resume(self, job: str) -> None:
        """Resume a job that `admin_suspend` suspended; raises WRONG_RESUME or BAD_STATE for others."""

    def resume(self, job: str) -> None:
        """Let the scheduler resume a job that is suspended without the admin flag."""

    def rerun(self, job: str, force: bool = False) -> None:
        """Requeue a job; `force` if it is suspended. Raises NOT_RERUNNABLE if the job forbids that; with `force` PBS
        ignores it.

        Use `force` only while one of the job's MoMs is up. OpenPBS (23.06, `req_rerunjob2`) sets the job's
        `ji_discarding` after `discard_job`, and a MoM's answer clears it. If all MoMs are down, `discard_job` itself
        requeues the job and the flag stays. Then `req_runjob` refuses the job (BAD_STATE) until a MoM that still has it
        comes back, or the server is restarted.
        """

    def set_walltime(self, job: str, seconds: int) -> None:
        """Set the job's walltime limit."""

    def set_comment(self, job: str, text: str) -> None:
        """Set the job's comment; the server replaces it at the job's next event."""

    def close(self) -> None:
        """Close the connection; never raises. The object cannot be used afterwards."""


Connect = Callable[[], Pbs]
"""Opens a connection for the calling thread. Raises PbsError, `transient` if the server does not answer."""
