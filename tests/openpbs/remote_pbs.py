"""libpbs as a process on the server's machine of a private cluster uses it (pbs_calls.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from scheduler_plugin.pbs.base import PbsError, PbsJob, Vnode

ROOT = Path(__file__).parents[2]

RESOURCES = (
    "create resource magrathea type=string,flag=h\n"
    "create resource magrathea_accepts type=string_array,flag=h\n"
    "create resource magrathea_siblings type=string_array,flag=h\n"
    "create resource magrathea_rank type=long,flag=h\n"
)


class Refused(PbsError):
    """A call was refused there, after so many seconds."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["code"], answer["text"], answer["transient"])
        self.seconds: float = answer["seconds"]


class Remote:
    """Connections of a process on the server's machine (pbs_calls.py)."""

    def __init__(self, cluster: PrivateOpenPbs) -> None:
        argv = cluster.argv(HEAD, [sys.executable, "-m", "tests.openpbs.pbs_calls"], env={"PYTHONPATH": str(ROOT)})
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, op: str, *arguments: Any, connection: int = 0) -> None:
        assert self.process.stdin is not None
        asked = {"connection": connection, "op": op, "arguments": arguments}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended with {self.process.wait()}"
        answer = json.loads(line)
        if "code" in answer:
            raise Refused(answer)
        return answer["value"]

    def __call__(self, op: str, *arguments: Any, connection: int = 0) -> Any:
        self.send(op, *arguments, connection=connection)
        return self.receive()

    def code(self, op: str, *arguments: Any) -> int:
        with pytest.raises(Refused) as refused:
            self(op, *arguments)
        return refused.value.code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class RemotePbs:
    """See scheduler_plugin.pbs.base.Pbs: one connection of such a process."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def vnodes(self) -> list[Vnode]:
        return [_vnode(found) for found in self._remote("vnodes")]

    def vnode(self, name: str) -> Vnode | None:
        found = self._remote("vnode", name)
        return None if found is None else _vnode(found)

    def jobs(self) -> list[PbsJob]:
        return [_job(found) for found in self._remote("jobs")]

    def job(self, job: str) -> PbsJob | None:
        found = self._remote("job", job)
        return None if found is None else _job(found)

    def server(self) -> Mapping[str, str]:
        return dict(self._remote("server"))

    def set_vnode(self, name: str, attributes: Mapping[str, str]) -> None:
        self._remote("set_vnode", name, dict(attributes))

    def set_offline(self, name: str, comment: str) -> None:
        self._remote("set_offline", name, comment)

    def wake_scheduler(self) -> bool:
        return bool(self._remote("wake_scheduler"))

    def admin_suspend(self, job: str) -> None:
        self._remote("admin_suspend", job)

    def admin_resume(self, job: str) -> None:
        self._remote("admin_resume", job)

    def resume(self, job: str) -> None:
        self._remote("resume", job)

    def rerun(self, job: str, force: bool = False) -> None:
        self._remote("rerun", job, force)

    def set_walltime(self, job: str, seconds: int) -> None:
        self._remote("set_walltime", job, seconds)

    def set_comment(self, job: str, text: str) -> None:
        self._remote("set_comment", job, text)

    def close(self) -> None:
        self._remote("close")


def _vnode(found: Mapping[str, Any]) -> Vnode:
    jobs = found["maintenance_jobs"]
    return Vnode(found["name"], found["attributes"], frozenset(found["state"]), None if jobs is None else tuple(jobs))


def _job(found: Mapping[str, Any]) -> PbsJob:
    return PbsJob(**{**found, "vnodes": tuple(found["vnodes"])})
