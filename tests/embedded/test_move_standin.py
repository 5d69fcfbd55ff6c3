"""Two hosts that the test plays move a domain through the real hub, with the stand-in for PBS and the server's real
hook: a running job goes on in its domain, and no other job starts beside it at either end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea.core.model import State
from magrathea.core.moves import Ownership, Says, Word
from magrathea.messages import JobReport
from magrathea_lab import fleet
from magrathea_lab.pbs_standin.client import StandInClient
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import farm
from scheduler_plugin.hub import hub as shell
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, SIBLINGS
from scheduler_plugin.setup.hook_texts import written
from tests.embedded import real_hub
from tests.embedded.real_hub import RealHub
from tests.embedded.standin_bench import StandInBench
from tests.fakes.host import FakeHost
from tests.fakes.reports import domain, report

STEPS = 200
"""Of the running job: ten seconds and more."""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInBench]:
    monkeypatch.setattr(shell, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(farm, "LEASE_S", BOUND_S)
    (tmp_path / "pbs").mkdir()
    written("magrathea_server", tmp_path / "pbs")
    (tmp_path / "pbs" / "hook.json").write_text(fleet.hook_json(tmp_path / "heartbeat"), encoding="utf-8")
    made = StandInBench(tmp_path / "pbs", tmp_path / "pbs" / "magrathea_server.py")
    try:
        yield made
    finally:
        made.close()


class Move:
    """The vnode `name` with a running job is h1's, and goes to h2, which has the other vnode."""

    def __init__(self, bench: StandInBench, world: RealHub, job: str) -> None:
        self.bench, self.world, self.job = bench, world, job
        [self.name] = bench.shown(job)["vnodes"]
        [self.other] = {"n1", "n2"} - {self.name}
        self.h1, self.h2 = world.host("h1", self.name), world.host("h2", self.other)

    def reports(self, *more: JobReport) -> Any:
        return domain(self.name, [report(self.job), *more], state=State.RUNNING_PREEMPTIBLE, ncpus=2)

    async def insists(self, host: FakeHost, says: Says, number: int, about: str, want: str) -> None:
        """Say a word until the hub's record is as wanted: owner, number, and whether the domain is on its way."""

        def shown(record: Ownership) -> str:
            return f"{record.owner} {record.number} {'moves' if record.transfer else 'rests'}"

        while True:
            await host.speaks(Word(self.name, number, says, about), welcome=["h1"])
            if shown(await host.hears_record(self.name, lambda _: True)) == want:
                return

    async def until(self, name: str, attribute: str, value: str) -> None:
        def so() -> bool:
            return bool(self.bench.vnode(name).attributes.get(attribute) == value)

        await asyncio.to_thread(self.bench.until, so)

    async def refused(self, job: str, more_than: int) -> int:
        """Wait until the server's hook has refused the job once more."""
        self.bench.client.wake_scheduler()
        await asyncio.to_thread(self.bench.until, lambda: self.bench.shown(job)["rejections"] > more_than)
        assert self.bench.shown(job)["vnodes"] == []
        return int(self.bench.shown(job)["rejections"])


def test_a_running_job_moves_with_its_domain_and_the_hook_lets_no_other_start_beside_it(
    bench: StandInBench, tmp_path: Path
) -> None:
    async def test(world: RealHub) -> None:
        job = await asyncio.to_thread(lambda: bench.running(steps=STEPS))
        world.connect = lambda: StandInClient(bench.directory / "pbs.sock")
        move = Move(bench, world, job)
        h1, h2 = move.h1, move.h2
        world.start()
        await h1.says(move.reports())
        await h2.says(domain(move.other, ncpus=2))
        await move.until(move.name, HOST, "h1")
        await move.until(move.other, HOST, "h2")
        await h2.speaks(welcome=["h1"])
        await move.insists(h1, Says.OWNS, 0, "", "h1 1 rests")
        await move.insists(h1, Says.ASKS, 1, "h2", "h1 1 moves")
        await move.until(move.name, ACCEPTS, "none")
        await move.insists(h2, Says.READY, 2, "", "h1 1 moves")
        await move.until(move.other, SIBLINGS, move.name)
        waiting = bench.submit(steps=5)
        times = await move.refused(waiting, 0)
        await h1.says()
        await move.insists(h1, Says.GONE, 2, "h2", "h1 1 moves")
        await move.insists(h2, Says.HERE, 2, "", "h2 2 moves")
        await h2.says(domain(move.other, ncpus=2), move.reports())
        times = await move.refused(waiting, times)
        busy = domain(move.other, state=State.OCCUPIED, accepts=[], ncpus=2)
        await h2.says(busy, move.reports())
        await move.insists(h2, Says.ADOPTED, 2, "", "h2 2 rests")
        await move.until(move.name, HOST, "h2")
        await move.until(move.name, ACCEPTS, "preemptible,protected")
        found = await asyncio.to_thread(bench.until_state, waiting, "F")
        assert (found["exit_status"], found["exec_vnode"].partition(":")[0]) == (0, f"({move.name}")
        found = await asyncio.to_thread(bench.until_state, job, "F")
        assert (found["exit_status"], found["run_version"], found["run_count"]) == (0, 1, 1)
        assert Path(found["output"]).read_text(encoding="utf-8") == "done\n"

    real_hub.run(tmp_path, test, tcp=True)
