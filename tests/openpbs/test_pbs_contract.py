"""libpbs on a real server passes the contract of PBS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.pbs.base import Pbs

from ..contract.pbs import CASES, PbsSite
from .remote_pbs import RESOURCES, Remote, RemotePbs


class RealPbs:
    """See PbsSite."""

    def __init__(self, cluster: PrivateOpenPbs) -> None:
        self.cluster = cluster
        self.remotes: list[Remote] = []
        self.jobs: list[str] = []

    def connect(self) -> Pbs:
        remote = Remote(self.cluster)
        self.remotes.append(remote)
        remote("connect", 20)
        return RemotePbs(remote)

    def _submit(self, *argv: str) -> str:
        self.jobs.append(self.cluster.qsub("alice", *argv, script="sleep 1000"))
        return self.jobs[-1]

    def submit(self, *vnodes: str, walltime_s: int | None = None, rerunnable: bool = True) -> str:
        select = "+".join(f"1:ncpus=1:vnode={name}" for name in vnodes or ("n1",))
        limit = [] if walltime_s is None else ["-l", f"walltime={walltime_s}"]
        return self._submit("-l", f"select={select}", *limit, "-r", "y" if rerunnable else "n")

    def submit_for_later(self) -> str:
        return self._submit("-a", time.strftime("%Y%m%d%H%M", time.localtime(time.time() + 86400)))

    def suspend_without_flag(self, job: str) -> None:
        self.cluster.run(HEAD, ["qsig", "-s", "suspend", job])

    def set_scheduling(self, on: bool) -> None:
        self.cluster.qmgr(f"set server scheduling={on}")

    def end(self, job: str) -> None:
        self.cluster.run(HEAD, ["qdel", "-W", "force", job])

    def until(self, condition: Callable[[], Any], what: str) -> None:
        self.cluster.wait(condition, what, BOUND_S)

    def close(self) -> None:
        """Restore the first state: no jobs, free vnodes."""
        self.cluster.run(HEAD, ["qdel", "-W", "force", *self.jobs], check=False)
        for remote in self.remotes:
            remote.close()
        self.cluster.run(HEAD, ["pbsnodes", "-r", *self.cluster.moms])
        sizes = f"resources_available.ncpus={self.cluster.ncpus}"
        self.cluster.qmgr("\n".join(f"set node {mom} {sizes}" for mom in self.cluster.moms))
        self.cluster.qmgr("\n".join(f"unset node {mom} resources_available.mem" for mom in self.cluster.moms))
        self.cluster.wait_free(*self.cluster.moms)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateOpenPbs]:
    with PrivateOpenPbs(["n1", "n2"]) as made:
        made.qmgr(RESOURCES)
        yield made


@pytest.fixture
def site(cluster: PrivateOpenPbs) -> Iterator[PbsSite]:
    made = RealPbs(cluster)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_libpbs(site: PbsSite, case: Callable[[PbsSite], None]) -> None:
    case(site)
