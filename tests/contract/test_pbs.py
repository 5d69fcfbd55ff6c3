"""The fake PBS and the stand-in pass the contract of PBS."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magrathea_lab.pbs_standin.client import StandInClient
from scheduler_plugin.pbs.base import Pbs, PbsJob

from ..embedded.standin_bench import StandInBench
from ..fakes.pbs import FakePbs
from .pbs import CASES, PbsSite


class FakeSite:
    """See PbsSite."""

    def __init__(self) -> None:
        self.pbs = FakePbs("n1", "n2")
        self._numbers = itertools.count(1)

    def connect(self) -> Pbs:
        return self.pbs.connect()

    def _put(self, job: PbsJob) -> str:
        self.pbs.put(job)
        return job.id

    def submit(self, *vnodes: str, walltime_s: int | None = None, rerunnable: bool = True) -> str:
        id = f"{next(self._numbers)}.srv"
        return self._put(
            PbsJob(
                id,
                "R",
                42,
                1,
                "low",
                vnodes or ("n1",),
                rerunnable,
                walltime_s,
                started_at=time.time(),
                exec_vnode="+".join(f"({vnode}:ncpus=1)" for vnode in vnodes or ("n1",)),
            )
        )

    def submit_for_later(self) -> str:
        return self._put(PbsJob(f"{next(self._numbers)}.srv", "W", 30))

    def suspend_without_flag(self, job: str) -> None:
        self.pbs.change(job, state="S", substate=43)

    def set_scheduling(self, on: bool) -> None:
        self.pbs.scheduling = on

    def end(self, job: str) -> None:
        self.pbs.end(job)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Only a scheduling cycle can still be missing."""
        self.pbs.schedule()
        assert condition(), what


class StandInSite:
    """See PbsSite."""

    def __init__(self, bench: StandInBench) -> None:
        self.bench = bench
        self.clients: list[StandInClient] = []
        self.jobs: list[str] = []

    def connect(self) -> Pbs:
        self.clients.append(StandInClient(self.bench.directory / "pbs.sock"))
        return self.clients[-1]

    def submit(self, *vnodes: str, walltime_s: int | None = None, rerunnable: bool = True) -> str:
        select = "+".join(f"1:ncpus=1:vnode={name}" for name in vnodes or ("n1",))
        self.jobs.append(self.bench.submit(select=select, walltime_s=walltime_s, rerunnable=rerunnable))
        return self.jobs[-1]

    def submit_for_later(self) -> str:
        self.jobs.append(self.bench.submit(select="1:ncpus=1000"))
        return self.jobs[-1]

    def suspend_without_flag(self, job: str) -> None:
        self.bench.client.ask("suspend", job=job, admin=False)

    def set_scheduling(self, on: bool) -> None:
        self.bench.client.ask("set_scheduling", value=on)

    def end(self, job: str) -> None:
        self.bench.client.delete(job)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        self.bench.until(condition)

    def close(self) -> None:
        """Restore the first state: no jobs, free vnodes."""
        for job in self.jobs:
            if self.bench.shown(job)["state"] != "F":
                self.bench.client.delete(job)
                self.bench.until_state(job, "F")
        for client in self.clients:
            client.close()
        self.bench.offer()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInBench]:
    made = StandInBench(tmp_path_factory.mktemp("standin"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def standin(bench: StandInBench) -> Iterator[PbsSite]:
    made = StandInSite(bench)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_fake(case: Callable[[PbsSite], None]) -> None:
    case(FakeSite())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_stand_in(standin: PbsSite, case: Callable[[PbsSite], None]) -> None:
    case(standin)
