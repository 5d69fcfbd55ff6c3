"""A PBS in memory that behaves like OpenPBS in everything that concerns the hub (measured on the real one).

Thread-safe; `connect` returns connections. `breaks` is called before each operation and may raise PbsError or block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from magrathea.pbs_text.states import DEAD_STATES
from magrathea_lab.pbs_standin.model import StandInError, check_attributes
from scheduler_plugin.pbs.base import Code, PbsError, PbsJob, Vnode


def nothing_breaks(operation: str, subject: str) -> None:
    """Every operation is carried out."""


class FakePbs:
    def __init__(self, *vnodes: str) -> None:
        self.lock = threading.RLock()
        self.vnodes = {name: Vnode(name, {}, frozenset({"free"}), ()) for name in vnodes}
        self.jobs: dict[str, PbsJob] = {}
        self.admin: set[str] = set()
        self.starting: set[str] = set()
        self.never_again: set[str] = set()
        """Jobs that were rerun by force while all their MoMs were down: the server never starts them again."""
        self.scheduling = True
        self.begun_arrays = 0
        self.fail_requeue_s = 310
        self.calls: list[tuple[str, str]] = []
        self.connections = 0
        self.breaks: Callable[[str, str], None] = nothing_breaks

    def connect(self) -> Connection:
        self.breaks("connect", "")
        with self.lock:
            self.connections += 1
        return Connection(self)

    def count(self, operation: str) -> int:
        with self.lock:
            return sum(1 for done, _ in self.calls if done == operation)

    def put(self, job: PbsJob) -> None:
        with self.lock:
            self.jobs[job.id] = job

    def change(self, id: str, **fields: object) -> None:
        with self.lock:
            self.jobs[id] = replace(self.jobs[id], **fields)  # type: ignore[arg-type]

    def end(self, id: str) -> None:
        with self.lock:
            self.jobs.pop(id, None)
            self._admin_off(id)

    def suspend_by_admin(self, id: str) -> None:
        with self.lock:
            self.change(id, state="S", substate=43)
            self._admin_on(id)

    def resume_by_admin(self, id: str) -> None:
        with self.lock:
            self.change(id, state="R", substate=42)
            self._admin_off(id)

    def put_vnode(self, name: str, *words: str) -> None:
        """Set the vnode's state words; if it was in maintenance, it stays so."""
        with self.lock:
            old = self.vnodes[name]
            self.vnodes[name] = replace(old, state=frozenset(words) | (old.state & {"maintenance"}))

    def lose_comment(self, name: str, instead: str = "") -> None:
        """The effect of a restart of PBS's server on a vnode whose MoM is away. `instead`: what the server writes."""
        with self.lock:
            old = self.vnodes[name]
            left = {key: value for key, value in old.attributes.items() if key != "comment"}
            self.vnodes[name] = replace(old, attributes={**left, "comment": instead} if instead else left)

    def lose_flag(self, id: str) -> None:
        """The effect of a failed admin-resume: the job is still S, but without the flag and the maintenance state."""
        with self.lock:
            self._admin_off(id)

    def schedule(self) -> None:
        """A scheduling cycle: resumes the jobs that a plain resume has left to the scheduler."""
        with self.lock:
            for id, job in self.jobs.items():
                if job.substate == 45:
                    self.change(id, state="R", substate=42)

    def _admin_on(self, id: str) -> None:
        self.admin.add(id)
        for name in self.jobs[id].vnodes:
            old = self.vnodes[name]
            jobs = (*(old.maintenance_jobs or ()), id)
            self.vnodes[name] = replace(old, maintenance_jobs=jobs, state=(old.state - {"free"}) | {"maintenance"})

    def _admin_off(self, id: str) -> None:
        self.admin.discard(id)
        for name, old in self.vnodes.items():
            left = tuple(job for job in old.maintenance_jobs or () if job != id)
            state = old.state if left else (old.state - {"maintenance"}) or frozenset({"free"})
            self.vnodes[name] = replace(old, maintenance_jobs=left, state=state)


class Connection:
    """See scheduler_plugin.pbs.base.Pbs."""

    def __init__(self, world: FakePbs) -> None:
        self.world = world
        self.closed = False

    def _do(self, operation: str, subject: str = "") -> FakePbs:
        if self.closed:
            raise PbsError(Code.NO_CONNECTION, "closed", transient=True)
        self.world.breaks(operation, subject)
        with self.world.lock:
            self.world.calls.append((operation, subject))
        return self.world

    def _job(self, operation: str, id: str) -> PbsJob:
        found = self._do(operation, id).jobs.get(id)
        if found is None:
            raise PbsError(Code.UNKNOWN_JOB, f"{operation} {id}: unknown")
        return found

    def vnodes(self) -> list[Vnode]:
        return list(self._do("vnodes").vnodes.values())

    def vnode(self, name: str) -> Vnode | None:
        return self._do("vnode", name).vnodes.get(name)

    def jobs(self) -> list[PbsJob]:
        return [job for job in self._do("jobs").jobs.values() if job.state in "RSUE"]

    def job(self, job: str) -> PbsJob | None:
        return self._do("job", job).jobs.get(job)

    def server(self) -> Mapping[str, str]:
        world = self._do("server")
        counts = f"Transit:0 Queued:3 Running:2 Begun:{world.begun_arrays} "
        return {
            "scheduling": str(world.scheduling),
            "node_fail_requeue": str(world.fail_requeue_s),
            "state_count": counts,
        }

    def set_vnode(self, name: str, attributes: Mapping[str, str]) -> None:
        world = self._do("set_vnode", name)
        with world.lock:
            if name not in world.vnodes:
                raise PbsError(Code.UNKNOWN_VNODE, f"{name}: unknown")
            try:
                check_attributes(attributes)
            except StandInError as error:
                raise PbsError(error.code, f"{name}: {error.text}") from error
            old = world.vnodes[name]
            both = {**old.attributes, **attributes}
            world.vnodes[name] = replace(old, attributes={k: v for k, v in both.items() if v})

    def set_offline(self, name: str, comment: str) -> None:
        world = self._do("set_offline", name)
        self.set_vnode(name, {"comment": comment})
        with world.lock:
            old = world.vnodes[name]
            words = (old.state - {"free"}) | {"offline"} if comment else (old.state - {"offline"}) or {"free"}
            world.vnodes[name] = replace(old, state=frozenset(words))

    def wake_scheduler(self) -> bool:
        return self._do("wake_scheduler").scheduling

    def admin_suspend(self, job: str) -> None:
        found = self._job("admin_suspend", job)
        with self.world.lock:
            if found.state != "R" or job in self.world.starting:
                raise PbsError(Code.BAD_STATE, f"{job}: bad state")
            self.world.suspend_by_admin(job)

    def admin_resume(self, job: str) -> None:
        found = self._job("admin_resume", job)
        with self.world.lock:
            if job not in self.world.admin:
                code = Code.WRONG_RESUME if found.state in "RS" else Code.BAD_STATE
                raise PbsError(code, f"{job}: not suspended by an admin")
            self.world.resume_by_admin(job)
            self.world.change(job, comment="Job run at (n1)")

    def resume(self, job: str) -> None:
        found = self._job("resume", job)
        with self.world.lock:
            if job in self.world.admin:
                raise PbsError(Code.WRONG_RESUME, f"{job}: suspended by an admin")
            if found.state != "S":
                raise PbsError(Code.BAD_STATE, f"{job}: not suspended")
            self.world.change(job, substate=45)

    def rerun(self, job: str, force: bool = False) -> None:
        found = self._job("rerun", job)
        with self.world.lock:
            if not found.rerunnable and not force:
                raise PbsError(Code.NOT_RERUNNABLE, f"{job}: not rerunnable")
            if found.state == "S" and not force:
                raise PbsError(Code.BAD_STATE, f"{job}: suspended")
            if all(self.world.vnodes[name].state & DEAD_STATES for name in found.vnodes):
                self.world.never_again.add(job)
            self.world._admin_off(job)
            self.world.change(job, state="Q", substate=10, vnodes=())

    def set_walltime(self, job: str, seconds: int) -> None:
        self._job("set_walltime", job)
        self.world.change(job, walltime_s=seconds)

    def set_comment(self, job: str, text: str) -> None:
        self._job("set_comment", job)
        self.world.change(job, comment=text)

    def close(self) -> None:
        self.closed = True
