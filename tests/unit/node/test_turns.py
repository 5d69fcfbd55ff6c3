"""However many jobs a guest claims and ends, it changes facts rarely; an honest one and its siblings never wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from magrathea.core.model import JobClass
from magrathea.deadlines import DAEMON_CLAIM_S
from magrathea_lab.rigs import virtual_time
from node_daemon.claims.claims import Claims
from node_daemon.claims.pace import (
    CHANGES_BURST,
    CHANGES_PER_CPU,
    CHANGES_PER_CPU_S,
    CHANGES_PER_S,
    JOBS_PER_CHANGE,
    Turns,
)
from node_daemon.guest_channel.messages import (
    AnyRequest,
    Claim,
    ClaimedJob,
    GuestJob,
    Hello,
    Launched,
    Prepared,
    Release,
)
from tests.unit.core.builders import get, get_job, job_ids

from .test_pace import SESSION, Owner, listed, play

CPUS = 8  # of the host of `play`
BURST = CHANGES_BURST + CHANGES_PER_CPU * CPUS
PER_S = CHANGES_PER_S + CHANGES_PER_CPU_S * CPUS
SECONDS = 20.0


def claim(number: int, cpus: int = 1) -> Claim:
    job = ClaimedJob(id=f"{number}.srv", run=1, cls=JobClass.PROTECTED, cpus=cpus)
    return Claim(id=number, session=SESSION, job=job)


def release(number: int) -> Release:
    return Release(id=number, session=SESSION, job=GuestJob(id=f"{number}.srv", run=1))


def launched(number: int) -> Launched:
    return Launched(id=number, session=SESSION, job=GuestJob(id=f"{number}.srv", run=1))


def now() -> float:
    return asyncio.get_running_loop().time()


async def flood(claims: Claims, requests: Iterable[AnyRequest], at_once: int) -> None:
    """Ask as fast as answers come, with so many requests under way."""
    waiting = iter(requests)

    async def ask() -> None:
        for request in waiting:
            await claims.request("n1", request)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(ask())


async def flooded(claims: Claims, requests: Iterable[AnyRequest], at_once: int = 64) -> None:
    try:
        async with asyncio.timeout(SECONDS):
            await flood(claims, requests, at_once)
    except TimeoutError:
        return
    raise AssertionError("the flood was entered at once")


@pytest.mark.long
def test_a_flood_of_claims_and_ends_changes_facts_rarely(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        await flooded(claims, (kind(number) for number in range(10_000) for kind in (claim, release)), at_once=1)

    commits = play(tmp_path, test)
    assert BURST <= commits.total() <= BURST + SECONDS * PER_S + 2


@pytest.mark.long
def test_a_change_counts_for_more_in_a_domain_of_very_many_jobs(tmp_path: Path) -> None:
    most = 4 * JOBS_PER_CHANGE

    async def test(owner: Owner, claims: Claims) -> None:
        await claims.request("n1", listed(*(f"{number}.srv" for number in range(1_000_000, 1_000_000 + most))))
        await flooded(claims, map(release, range(1_000_000, 1_000_000 + most)), at_once=1)

    commits = play(tmp_path, test)
    assert BURST / 4 <= commits["commit Released"] <= (BURST + SECONDS * PER_S) / 3


@pytest.mark.long
def test_refused_claims_and_agents_that_greet_anew_count_too(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        owner.refused = lambda *said: refusals.append(said)  # type: ignore[method-assign]
        for _ in range(int(BURST)):
            claims.lost("n1")
            claims.connected("n1", Hello(session=SESSION, protocol=1))
        began = now()
        await claims.request("n1", claim(1, cpus=1000))
        assert refusals == [], "it got no turn"
        assert now() > began

    refusals: list[Any] = []
    play(tmp_path, test)


def test_a_sibling_waits_for_one_change_of_a_flood_at_most(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        attack = asyncio.create_task(flood(claims, map(release, itertools.count()), at_once=64))
        await asyncio.sleep(0)
        for number in range(100, 105):
            before = owner.changes
            began = now()
            assert (await claims.request("n2", claim(number)))["ok"]
            await claims.request("n2", release(number))
            assert now() == began
            assert owner.changes - before <= 6, "its own two, and those that were entered between"
        attack.cancel()
        await asyncio.gather(attack, return_exceptions=True)

    play(tmp_path, test)


@pytest.mark.long
def test_an_honest_guest_starts_and_ends_a_job_on_each_cpu_without_waiting(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        began = now()
        for wave in range(5):
            jobs = range(wave * CPUS, wave * CPUS + CPUS)
            for number in jobs:
                assert (await claims.request("n1", claim(number)))["ok"]
                await claims.request("n1", launched(number))
            for number in jobs:
                await claims.request("n1", release(number))
        assert now() == began
        for number in range(1000, 1000 + 30 * CPUS):  # and then one job in 30 s on each CPU
            await asyncio.sleep(30 / CPUS)
            began = now()
            assert (await claims.request("n1", claim(number)))["ok"]
            await claims.request("n1", launched(number))
            await claims.request("n1", release(number))
            assert now() == began

    play(tmp_path, test)


def test_what_one_guest_says_is_entered_in_its_order(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        asked = [kind(number) for number in range(20) for kind in (claim, launched, release)]
        answers = await asyncio.gather(*(claims.request("n1", one) for one in [*asked, claim(99)]))
        assert all(answer["ok"] for answer in answers)
        assert job_ids(owner.host, "n1") == {"99.srv"}

    play(tmp_path, test)


def test_jobs_that_wait_for_their_memory_delay_no_claim(tmp_path: Path) -> None:
    """Each of their prologues asks twice a second."""

    async def test(owner: Owner, claims: Claims) -> None:
        question = Prepared(id=1, session=SESSION, job=GuestJob(id="9.srv", run=1), vnodes=[])
        await asyncio.gather(*(claims.request("n1", question) for _ in range(10 * int(BURST))))
        began = now()
        assert (await claims.request("n1", claim(1)))["ok"]
        assert now() == began

    play(tmp_path, test)


def test_a_list_that_overtakes_a_claim_does_not_answer_it(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        job = ClaimedJob(id="1.srv", run=1, cls=JobClass.PREEMPTIBLE, cpus=1)
        asked = asyncio.create_task(claims.request("n1", Claim(id=1, session=SESSION, job=job)))
        await asyncio.sleep(0)
        await claims.request("n1", listed("1.srv", "2.srv"))
        assert job_ids(owner.host, "n1") == {"2.srv"}
        assert (await asked)["ok"]
        assert get_job(owner.host, "n1", "1.srv").cls is JobClass.PREEMPTIBLE, "no job that nobody has claimed"

    play(tmp_path, test)


def test_a_claim_that_gets_no_turn_in_time_is_refused_and_leaves_no_fact(tmp_path: Path) -> None:
    async def test(owner: Owner, claims: Claims) -> None:
        claims._turns.spend("n1", BURST + PER_S)
        ends = [asyncio.create_task(claims.request("n1", claim(number))) for number in range(1000, 1064)]
        answers = await asyncio.gather(*ends)
        busy = [answer for answer in answers if not answer["ok"]]
        assert {answer["code"] for answer in busy} == {"busy"}
        granted = len(answers) - len(busy)
        assert 0 < len(get(owner.host, "n1").jobs) == granted <= PER_S * DAEMON_CLAIM_S

    play(tmp_path, test)


def test_a_guest_that_has_gone_keeps_no_turn(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        turns = Turns(lambda: CPUS)
        turns.spend("n1", BURST + PER_S)

        async def wait() -> None:
            async with turns.turn("n1"):
                raise AssertionError("it has gone")

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0.1)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        async with turns.turn("n1") as spend:
            spend(1)

    virtual_time.run(all_of_it())
