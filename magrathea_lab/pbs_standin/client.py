"""The hub's connection to the PBS stand-in (scheduler_plugin/pbs/base.py), with the stand-in's `qsub`, `qdel` and
`qstat`.

One object is one connection to D/pbs.sock. It blocks, and belongs to one thread.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler_plugin.pbs.base import Code, Connect, PbsError, PbsJob, Vnode
from scheduler_plugin.pbs.kinds import KindSettings

DEADLINE_S = 30.0
"""Longer than a MoM can be silent in a begin hook."""


def standin(settings: KindSettings) -> Connect:
    """The connector for `kind = "standin"` in the hub's [pbs]. Raises PbsError."""
    if not settings.socket:
        raise PbsError(Code.NO_SERVER, "`socket` in [pbs] is missing; kind = 'standin' needs it")
    return lambda: StandInClient(Path(settings.socket))


def reached(path: Path) -> StandInClient | None:
    """A connection to the stand-in at `path`; None while nobody listens: its socket exists a moment before that."""
    try:
        return StandInClient(path)
    except PbsError:
        return None


class StandInClient:
    """A connection to the stand-in. Raises PbsError as base.Pbs documents it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(DEADLINE_S)
            self._connect()
        except OSError as error:
            raise PbsError(Code.NO_SERVER, f"connect to the stand-in at {path}: {error}", transient=True) from error
        self._lines = self._socket.makefile("rwb")

    def _connect(self) -> None:
        try:
            self._socket.connect(str(self._path))
        except OSError:
            self._socket.close()
            raise

    def ask(self, op: str, **parameters: Any) -> Any:
        """Run one operation of server.py (`do_...`) and return its result."""
        try:
            self._lines.write(json.dumps({"op": op, **parameters}).encode() + b"\n")
            self._lines.flush()
            line = self._lines.readline()
        except OSError as error:
            raise PbsError(Code.NO_CONNECTION, f"{op} {parameters}: {error}", transient=True) from error
        if not line:
            raise PbsError(Code.NO_CONNECTION, f"{op} {parameters}: the stand-in has gone", transient=True)
        answer = json.loads(line)
        if not answer["ok"]:
            raise PbsError(answer["code"], f"{op} {parameters}: {answer['text']}", answer["transient"])
        return answer["result"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    # The methods of base.Pbs

    def vnodes(self) -> list[Vnode]:
        return [
            Vnode(v["name"], v["attributes"], frozenset(v["state"]), tuple(v["maintenance_jobs"]))
            for v in self.ask("vnodes")
        ]

    def vnode(self, name: str) -> Vnode | None:
        return next((vnode for vnode in self.vnodes() if vnode.name == name), None)

    def jobs(self) -> list[PbsJob]:
        return [_job(found) for found in self.ask("jobs")]

    def job(self, job: str) -> PbsJob | None:
        try:
            found = self.ask("job", job=job)
        except PbsError as error:
            if error.code == Code.UNKNOWN_JOB:
                return None
            raise
        return None if found["state"] == "F" else _job(found)

    def server(self) -> Mapping[str, str]:
        answer: Mapping[str, str] = self.ask("server")
        return answer

    def set_vnode(self, name: str, attributes: Mapping[str, str]) -> None:
        self.ask("set_vnode", name=name, attributes=dict(attributes))

    def set_offline(self, name: str, comment: str) -> None:
        self.ask("offline", name=name, value=bool(comment))
        self.ask("set_vnode", name=name, attributes={"comment": comment})

    def wake_scheduler(self) -> bool:
        if self.server()["scheduling"] != "True":
            return False
        self.ask("set_scheduling", value=True)
        return True

    def admin_suspend(self, job: str) -> None:
        self.ask("suspend", job=job, admin=True)

    def admin_resume(self, job: str) -> None:
        self.ask("resume", job=job, admin=True)

    def resume(self, job: str) -> None:
        self.ask("resume", job=job, admin=False)

    def rerun(self, job: str, force: bool = False) -> None:
        self.ask("rerun", job=job, force=force)

    def set_walltime(self, job: str, seconds: int) -> None:
        self.ask("set_walltime", job=job, seconds=seconds)

    def set_comment(self, job: str, text: str) -> None:
        self.ask("set_comment", job=job, text=text)

    # For users and admins

    def submit(self, queue: str, script: Path, output: Path, workdir: Path, **more: Any) -> str:
        """`qsub`; returns the job's id. `more`: `select`, and the fields of model.StandInJob.GIVEN."""
        id: str = self.ask("submit", queue=queue, script=str(script), output=str(output), workdir=str(workdir), **more)
        return id

    def delete(self, job: str) -> None:
        self.ask("delete", job=job)

    def history(self) -> list[dict[str, Any]]:
        """All jobs, also finished ones, with all their attributes."""
        found: list[dict[str, Any]] = self.ask("jobs", finished=True)
        return found


def _job(found: dict[str, Any]) -> PbsJob:
    return PbsJob(
        id=found["id"],
        state=found["state"],
        substate=found["substate"],
        run_version=found["run_version"],
        queue=found["queue"],
        vnodes=tuple(found["vnodes"]),
        rerunnable=found["rerunnable"],
        walltime_s=None if found["walltime_s"] is None else int(found["walltime_s"]),
        comment=found["comment"],
        started_at=found["started_at"],
        exec_vnode=found["exec_vnode"],
    )
