"""A domain that is preempted goes on at an idle host by itself: two real daemons, the real hub, and the stand-in for
PBS with a real job. The hypervisors, and what copies between them, are in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from magrathea import client
from magrathea.control import ControlRequest
from magrathea.core import events as ev
from magrathea.core.model import JobClass, JobKey
from magrathea.core.move_events import MoveNote
from magrathea.messages import HistoryAsked
from magrathea.reports import ElsewhereView, FarmView
from magrathea_lab.pbs_standin.client import StandInClient
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.daemon import Daemon
from scheduler_plugin.hub import farm, trips
from scheduler_plugin.hub import hub as shell
from scheduler_plugin.hub.configuration import ElsewhereTable
from scheduler_plugin.hub.vnode_attributes import HOST
from scheduler_plugin.hub.wishes import Wishes
from tests.embedded.moving_hosts import MovingHosts, ShownHypervisors
from tests.embedded.real_hub import RealHub, real_hub
from tests.embedded.standin_bench import StandInBench
from tests.fakes import mover
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.reports import job
from tests.unit.core.builders import run

ON = ElsewhereTable(after_s=0.2, rest_s=3600)
STEPS = 150
"""Of the job: eight seconds and more."""
HIGH = JobKey("9.high", 1)
DOMAIN = """
[domain.{name}]
kind = "{kind}"
cpus = 2
"""


class World(ShownHypervisors):
    """A guest starts at a host, with its agent, when its copy runs there, and ends there when it does not."""

    def show(self, shown: FakeHypervisor, domain: str, runs: bool) -> None:
        if runs and not shown[domain].up:
            shown.start(domain)
        elif not runs and shown[domain].up:
            shown.end(domain)


class Site(MovingHosts):
    """h1 with the normal domain `low` and the priority domain p1, h2 with the normal domain `other`; and the hub."""

    def __init__(self, folder: Path, hub: RealHub, low: str, other: str, job: str) -> None:
        super().__init__(folder, hub, World())
        self.low, self.other, self.key = low, other, JobKey(job, 1)

    async def start(self) -> None:
        self.hub.start()
        tables = {"h1": {self.low: "normal", "p1": "priority"}, "h2": {self.other: "normal"}}
        for host, own in tables.items():
            [other] = tables.keys() - {host}
            text = "".join(DOMAIN.format(name=name, kind=kind) for name, kind in own.items())
            await self.start_host(host, other, text, own, self.low, mode="exclusive", cpus=2)
        self.world.files["h1"] = {mover.DISK}
        await eventually(lambda: self.h1.place.moves.record(self.low) is not None, "h1 is told what it owns")
        await eventually(lambda: all(d.agent_lost_at is None for d in self.h1.host.domains), "agents connect")

    async def close(self) -> None:
        await super().close()
        for shown in self.world.shown.values():
            await shown.close()

    @property
    def h1(self) -> Daemon:
        return self.daemons["h1"]

    @property
    def h2(self) -> Daemon:
        return self.daemons["h2"]

    # What MoM would say

    def has(self, daemon: Daemon, domain: str, id: str) -> None:
        """The domain has a job that has run for long."""
        daemon.facts.host = run(daemon.facts.host, domain, id, cpus=2)
        daemon.apply(ev.TimerFired(daemon.now()))

    def preempt(self) -> None:
        """A long priority job begins in p1."""
        said = self.h1.apply(ev.Claimed(self.h1.now(), "p1", HIGH, JobClass.PRIORITY, 2))
        assert any(isinstance(one, ev.Accepted) and one.victims for one in said), said
        self.h1.apply(ev.JobLaunched(self.h1.now(), "p1", HIGH))

    # What is seen

    def owner(self) -> str:
        record = self.h1.place.moves.record(self.low)
        return record.owner if record is not None else ""

    async def at_rest(self, host: str) -> None:
        """Wait until the domain is at that host, and nothing moves any more."""

        def so() -> bool:
            moves = [daemon.place.moves for daemon in self.daemons.values()]
            return self.owner() == host and not any(m.leaving or m.arriving for m in moves)

        await eventually(so, f"{self.low} is at {host}")

    async def farm(self) -> FarmView:
        return await asyncio.to_thread(client.farm, self.hub.control)

    async def stays_because(self, why: str) -> None:
        """Wait until the hub says that the domain stays, and why."""
        found: list[ElsewhereView] = []
        async with asyncio.timeout(BOUND_S):
            while not any(one.domain == self.low and not one.to and why in one.text for one in found):
                await asyncio.sleep(0.05)
                found = (await self.farm()).elsewhere
        assert self.h1.place.moves.leaving == () and self.world.running(self.low) == ["h1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(farm, "LEASE_S", BOUND_S)
    monkeypatch.setattr(mover, "COPY_S", 0.5)
    monkeypatch.setattr(trips, "UNMEASURED_S_PER_GIB", 0.1)
    monkeypatch.setattr(trips, "LEAST_S", 0.1)


def play(
    folder: Path,
    test: Callable[[Site], Awaitable[None]],
    table: ElsewhereTable = ON,
    bench: StandInBench | None = None,
) -> None:
    """Run `test` when the low job runs at h1: a real one of `bench`, else one of a PBS in memory."""

    async def whole() -> None:
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(real_hub(folder, "n1", "n2"))
            hub.elsewhere = table
            low, other, id = "n1", "n2", "1.srv"
            if bench is None:
                hub.pbs.put(job(id, vnodes=(low,)))
            else:
                id = await asyncio.to_thread(lambda: bench.running(steps=STEPS))
                hub.connect = lambda: StandInClient(bench.directory / "pbs.sock")
                [low] = bench.shown(id)["vnodes"]
                [other] = {"n1", "n2"} - {low}
            site = Site(folder, hub, low, other, id)
            stack.push_async_callback(site.close)
            await site.start()
            site.has(site.h1, low, id)
            await test(site)

    asyncio.run(whole())


def test_a_preempted_job_goes_on_at_the_idle_host_in_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "pbs").mkdir()
    bench = StandInBench(tmp_path / "pbs")

    async def test(site: Site) -> None:
        id = site.key.id
        site.preempt()
        await asyncio.to_thread(bench.until_state, id, "S")
        await eventually(lambda: site.owner() == "h2", lambda: f"it moves; {site.h1.place.moves}; {site.world.story}")
        found = await asyncio.to_thread(bench.until_state, id, "F")
        assert (found["exit_status"], found["run_version"], found["run_count"]) == (0, 1, 1)
        assert Path(found["output"]).read_text(encoding="utf-8") == "done\n"
        assert site.world.running(site.low) == ["h2"] and site.h1.host.domain(site.low) is None
        p1 = site.h1.host.domain("p1")
        assert p1 is not None and [one.key for one in p1.running] == [HIGH], "the priority job has lost nothing"
        said = [move.text for move in (await site.farm()).moves if move.domain == site.low and move.over]
        assert any("moved to h2 (the hub's wish: preempted for" in text for text in said), said
        noted = await site.h1.move_requests.report(ControlRequest(op="moves"))
        assert b"it is at h2 now" in noted
        history = await site.h1.admin.answer_history(HistoryAsked(id=1, about=site.low, limit=1000))
        assert MoveNote.WISHED.encode() in history

    try:
        play(tmp_path, test, bench=bench)
    finally:
        bench.close()


def test_it_stays_if_the_other_host_is_busy_and_goes_when_that_is_over(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        site.has(site.h2, site.other, "8.srv")
        site.preempt()
        await site.stays_because("no host has a place for it: h2: it runs jobs")
        site.h2.apply(ev.Released(site.h2.now(), site.other, JobKey("8.srv", 1)))
        await eventually(lambda: site.hub.shown(site.low, HOST) == "h2", "it moves")
        await eventually(lambda: not (d := site.h2.host.domain(site.low)) or not d.stopped, "it goes on there")

    play(tmp_path, test)


def test_it_stays_if_nothing_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[None]()
    look = Wishes.look

    def counted(self: Wishes, welcome: dict[str, frozenset[str]]) -> None:
        look(self, welcome)
        looks.append(None)

    monkeypatch.setattr(Wishes, "look", counted)

    async def test(site: Site) -> None:
        site.preempt()
        await site.hub.until(lambda: site.hub.pbs.jobs["1.srv"].suspended, "the job is suspended in PBS")
        before = len(looks)
        await eventually(lambda: len(looks) > before + 5, "the hub looks some times more")
        assert (await site.farm()).elsewhere == []
        assert site.h1.place.moves.leaving == () and site.owner() == "h1"

    play(tmp_path, test, ElsewhereTable())


def test_it_stays_if_it_has_moved_lately_also_after_a_restart_of_the_hub(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        for here, there in (("h1", "h2"), ("h2", "h1")):
            asked = ControlRequest(op="migrate", domain=site.low, to=there)
            await site.daemons[here].move_requests.migrate(asked)
            await site.at_rest(there)
        await site.hub.end()
        site.hub.start()
        await eventually(lambda: site.h1.hub.connected and not site.h1.host.hub_lost, "the new hub answers")
        site.preempt()
        await site.stays_because("it rests for 3600 s")

    play(tmp_path, test)


def test_it_stays_if_a_move_is_too_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trips, "LEAST_S", 1e6)

    async def test(site: Site) -> None:
        site.preempt()
        await site.stays_because("which is not less")

    play(tmp_path, test)


def test_a_host_that_does_not_follow_says_why_and_is_not_asked_for_that_again(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        site.world.reasons.append("it has a passed-through device")
        site.preempt()
        await site.stays_because("h2: refused lately (h1: n1 cannot move: it has a passed-through device)")
        texts = [move.text for move in (await site.farm()).moves if move.domain == site.low]
        assert sum("passed-through" in text for text in texts) == 1

    play(tmp_path, test)
