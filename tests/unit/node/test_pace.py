"""However often a guest reports something, it is entered rarely; claims and releases are not delayed by it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from magrathea.core import events as ev
from magrathea.core.model import Host, JobClass, JobKey
from magrathea_lab.rigs import virtual_time
from node_daemon.claims.claims import Claims
from node_daemon.claims.pace import LISTS_S, REPORTS_S, Pace
from node_daemon.claims.pbs_says import PbsSays
from node_daemon.clock import Clock
from node_daemon.facts import Facts
from node_daemon.guest_channel.messages import (
    Claim,
    ClaimedJob,
    GuestJob,
    GuestMemory,
    Hello,
    Jobs,
    ListedJob,
    Release,
    Report,
)
from tests.unit.core.builders import get, host, job_ids

SESSION = "0" * 16
FLOOD = 200


class LoopClock(Clock):
    def now(self) -> float:
        return 1_800_000_000.0 + asyncio.get_running_loop().time()


class Owner:
    """A daemon with facts and a journal. Its switch moves nothing, and nothing is missing."""

    def __init__(self, folder: Path, facts: Host) -> None:
        self.commits: Counter[str] = Counter()
        self.facts = Facts(folder / "journal.sqlite", LoopClock, self._observed, lambda: None)
        self.facts.host = facts
        self.driver: Any = None
        progress = SimpleNamespace(pending=lambda domain: None)
        silent = lambda domain: None  # noqa: E731
        mover = SimpleNamespace(kept_mib=lambda domain: 0)
        self.switch: Any = SimpleNamespace(
            agent_lost=silent,
            agent_connected=silent,
            mover=mover,
            stays_mib=lambda domain, said_mib: said_mib,
            progress=progress,
            actual=dict,
        )

    def _observed(self, name: str) -> None:
        self.commits[name] += 1

    @property
    def changes(self) -> int:
        return self.commits.total()

    @property
    def host(self) -> Host:
        return self.facts.host

    def now(self) -> float:
        return self.facts.now()

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        return self.facts.apply(event).decisions

    def refused(self, domain: str, key: JobKey, code: str, text: str) -> None:
        raise AssertionError(f"{key} is refused: {text}")

    async def parts_elsewhere(self, domain: str, key: JobKey, vnodes: list[str]) -> Any:
        raise NotImplementedError

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        raise NotImplementedError

    def actual_changed(self) -> None:
        raise NotImplementedError

    def observe(self, name: str) -> None:
        return


def listed(*ids: str) -> Jobs:
    return Jobs(id=1, session=SESSION, jobs=[ListedJob(id=id, run=1) for id in ids])


def reported(mib: int) -> Report:
    return Report(id=1, session=SESSION, memory=GuestMemory(unreclaimable_mib=mib))


def play(folder: Path, test: Callable[[Owner, Claims], Awaitable[None]]) -> Counter[str]:
    """Returns the commits by the event that they were for."""

    async def all_of_it() -> Counter[str]:
        owner = Owner(folder, host("counted", cpus=8, n1="normal", n2="normal"))
        claims = Claims(owner)
        try:
            await test(owner, claims)
        finally:
            claims.close()
            owner.facts.close()
        return owner.commits

    return virtual_time.run(all_of_it())


def test_a_flood_of_lists_is_entered_rarely_and_the_newest_wins(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        for number in range(FLOOD):
            assert await claims.request("n1", listed(f"{number}.srv")) == {"ok": True}
            if number == 0:
                assert job_ids(owner.host, "n1") == {"0.srv"}, "the first one is entered at once"
            await asyncio.sleep(0.05)
        await asyncio.sleep(LISTS_S)
        assert f"{FLOOD - 1}.srv" in job_ids(owner.host, "n1")

    commits = play(tmp_path, test)
    assert 2 <= commits["commit JobsReported"] <= FLOOD * 0.05 / LISTS_S + 2


def test_a_flood_of_reports_is_entered_rarely_and_the_newest_wins(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        for number in range(FLOOD):
            await claims.request("n1", reported(16 * (number + 1)))
            await asyncio.sleep(0.05)
        await asyncio.sleep(REPORTS_S)
        assert get(owner.host, "n1").unreclaimable_mib == 16 * FLOOD

    commits = play(tmp_path, test)
    assert 2 <= commits["commit MemoryReported"] <= FLOOD * 0.05 / REPORTS_S + 2


def test_lists_and_reports_that_change_nothing_write_nothing(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        for number in range(5):
            await claims.request("n1", listed("1.srv", "2.srv"))
            await claims.request("n1", reported(100))
            await asyncio.sleep(60)
            if number == 0:
                assert owner.commits == {"commit JobsReported": 1, "commit MemoryReported": 1}
                owner.apply(ev.TimerFired(owner.now()))  # its jobs are no longer young
                owner.commits.clear()

    assert not play(tmp_path, test)


def test_claims_releases_and_siblings_are_not_delayed_by_it(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        for number in range(3):
            await claims.request("n1", listed(f"{number}.srv"))
            await claims.request("n1", reported(16 * (number + 1)))
        began = asyncio.get_running_loop().time()
        job = ClaimedJob(id="9.srv", run=1, cls=JobClass.PROTECTED, cpus=1)
        assert (await claims.request("n1", Claim(id=1, session=SESSION, job=job)))["ok"]
        assert "9.srv" in job_ids(owner.host, "n1")
        await claims.request("n1", Release(id=2, session=SESSION, job=GuestJob(id="9.srv", run=1)))
        assert "9.srv" not in job_ids(owner.host, "n1")
        await claims.request("n2", listed("5.srv"))
        assert job_ids(owner.host, "n2") == {"5.srv"}
        assert asyncio.get_running_loop().time() == began
        await asyncio.sleep(LISTS_S)
        assert "9.srv" not in job_ids(owner.host, "n1"), "a list of before its end does not bring it back"

    play(tmp_path, test)


def test_what_a_lost_guest_said_last_is_not_entered_for_its_successor(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        await claims.request("n1", listed("1.srv"))
        await claims.request("n1", listed("1.srv", "2.srv"))
        claims.lost("n1")
        claims.connected("n1", Hello(session=SESSION, protocol=1))
        await asyncio.sleep(2 * LISTS_S)
        assert job_ids(owner.host, "n1") == {"1.srv"}
        await claims.request("n1", listed("3.srv"))
        assert "3.srv" in job_ids(owner.host, "n1")

    play(tmp_path, test)


def test_a_report_that_meets_a_defect_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    def say(text: str) -> bool:
        said.append(text)
        return True

    async def test() -> None:
        pace = Pace(1.0)
        pace.enter("n1", lambda: say("first"))
        pace.enter("n1", lambda: say(str(1 // 0)))
        await asyncio.sleep(1.5)
        pace.enter("n1", lambda: say("last"))
        assert said == ["first"], "the defect counts as a change"
        await asyncio.sleep(1.5)

    with caplog.at_level(logging.ERROR):
        virtual_time.run(test())
    assert said == ["first", "last"]
    assert "n1: a report of its agent met a defect" in caplog.text


def test_a_report_that_changes_nothing_delays_none(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        await claims.request("n1", reported(0))
        await claims.request("n1", reported(100))
        assert get(owner.host, "n1").unreclaimable_mib == 112

    play(tmp_path, test)
