"""A domain with 3,000 jobs with the longest names and users: a real agent, and the daemon's own channel."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from magrathea_lab.rigs.agent_rig import Doc, Rig
from magrathea_lab.rigs.local_host import one_host
from magrathea_lab.waiting import BOUND_S
from node_daemon.agent.parts import MAX_JOBS
from node_daemon.agent.wire import MAX_PENDING
from node_daemon.guest_channel.channel import GuestChannel
from node_daemon.guest_channel.messages import AnyRequest, Claim, Hello, Jobs, Launched, Release

JOBS = 3000


def job(number: int) -> Doc:
    """A job as the hook describes it: the longest id that PBS can make, the longest user name, none of it ASCII."""
    host = "very-long-name-of-a-server." * 10
    return {
        "id": f"{number}[{number}].{host}"[:255],
        "run": 1,
        "cpus": 1,
        "memory_mib": 100,
        "rerunnable": True,
        "owner": f"{number}" + "ü" * 250,
        "substate": 42,
        "session_id": 1 << 30,
    }


class Site:
    """An agent, and the daemon's end of its channel. Requests are recorded; lists wait for `let_lists_go`."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.channel = GuestChannel("h1", "n1", rig.host.path, self)
        self.is_connected = asyncio.Event()
        self.let_lists_go = asyncio.Event()
        self.let_lists_go.set()
        self.list_came = asyncio.Event()
        self.let_releases_go = asyncio.Event()
        self.let_releases_go.set()
        self.asked: list[AnyRequest] = []

    def connected(self, domain: str, hello: Hello) -> None:
        self.is_connected.set()

    def lost(self, domain: str) -> None:
        self.is_connected.clear()

    async def request(self, domain: str, request: AnyRequest) -> dict[str, Any]:
        self.asked.append(request)
        if isinstance(request, Jobs):
            self.list_came.set()
            await self.let_lists_go.wait()
        if isinstance(request, Release):
            await self.let_releases_go.wait()
        return {"ok": True}

    async def mom(self, op: str, **body: Any) -> Doc:
        """Ask as a hook, and return the answer."""
        reader, writer = await asyncio.open_unix_connection(str(self.rig.socket), limit=1 << 20)
        writer.write(json.dumps({"op": op, **body}).encode() + b"\n")
        answer: Doc = json.loads(await asyncio.wait_for(reader.readline(), BOUND_S))
        writer.close()
        return answer

    @property
    def lists(self) -> list[Jobs]:
        return [request for request in self.asked if isinstance(request, Jobs)]

    @property
    def launched(self) -> set[str]:
        return {request.job.id for request in self.asked if isinstance(request, Launched)}


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made.start(connect=False)


def run(rig: Rig, case: Callable[[Site], Awaitable[None]]) -> None:
    async def whole() -> None:
        site = Site(rig)
        await site.channel.start()
        try:
            await asyncio.wait_for(site.is_connected.wait(), BOUND_S)
            await case(site)
        finally:
            await site.channel.close()

    asyncio.run(whole())


def test_the_whole_list_reaches_the_daemon_and_all_can_be_ordered(rig: Rig) -> None:
    async def case(site: Site) -> None:
        listed = [job(number) for number in range(JOBS)]
        assert await site.mom("jobs", jobs=listed) == {"ok": True}
        (came,) = site.lists
        assert [found.id for found in came.jobs] == [row["id"] for row in listed]
        names = [{"id": row["id"], "run": 1} for row in listed]
        orders = [{**name, "order": "stop", "warn_signal": "SIGTERM", "warn_s": 0.0} for name in names]
        answer = await site.channel.request("orders", BOUND_S, orders=orders, deadline_s=1.0)
        assert [(row.id, row.order) for row in answer.jobs] == [(name["id"], "stop") for name in names]
        answer = await site.channel.request("memory", BOUND_S)
        assert {row.id for row in answer.jobs} == {name["id"] for name in names}
        if os.geteuid() == 0:
            answer = await site.channel.request("push-out", BOUND_S, jobs=names, mib=1, deadline_s=1.0)
            assert answer.left_mib == 0
        status = await site.mom("status")
        assert status["ok"] and status["jobs"]

    run(rig, case)


def test_claims_and_orders_do_not_wait_behind_a_list(rig: Rig) -> None:
    async def case(site: Site) -> None:
        site.let_lists_go.clear()
        asked = asyncio.create_task(site.mom("jobs", jobs=[job(number) for number in range(JOBS)]))
        await asyncio.wait_for(site.list_came.wait(), BOUND_S)
        claimed = site.rig.job("12.srv")
        assert await site.mom("claim", job=claimed, deadline_s=BOUND_S) == {"ok": True}
        assert (await site.channel.request("ping", BOUND_S)).ok
        assert not asked.done()
        site.let_lists_go.set()
        await asked
        assert [request.job.id for request in site.asked if isinstance(request, Claim)] == ["12.srv"]

    run(rig, case)


def test_the_launch_of_each_is_reported_and_claims_are_answered_meanwhile(rig: Rig) -> None:
    async def case(site: Site) -> None:
        asked = asyncio.create_task(site.mom("jobs", jobs=[{**job(n), "sister": True} for n in range(JOBS)]))
        await asyncio.wait_for(site.list_came.wait(), BOUND_S)
        assert await site.mom("claim", job=site.rig.job("12.srv"), deadline_s=BOUND_S) == {"ok": True}
        await asked
        async with asyncio.timeout(BOUND_S):
            while len(site.launched) < JOBS:
                await asyncio.sleep(0.01)

    run(rig, case)


def test_releases_that_nobody_answers_leave_room_for_claims(rig: Rig) -> None:
    async def case(site: Site) -> None:
        site.let_releases_go.clear()
        for number in range(MAX_PENDING + 10):
            assert await site.mom("release", job={"id": f"{number}.srv", "run": 1}) == {"ok": True}
        answer = await site.mom("claim", job=site.rig.job("12.srv"), deadline_s=0.5)
        assert answer["code"] in ("busy", "timeout")  # from the daemon, not from the agent
        site.let_releases_go.set()
        async with asyncio.timeout(BOUND_S):
            while await site.mom("claim", job=site.rig.job("12.srv"), deadline_s=0.5) != {"ok": True}:
                await asyncio.sleep(0.01)

    run(rig, case)


def test_the_longest_list_is_taken_and_a_longer_one_leaves_nothing_behind(rig: Rig) -> None:
    async def case(site: Site) -> None:
        assert await site.mom("jobs", jobs=[job(number) for number in range(MAX_JOBS)]) == {"ok": True}
        assert len(site.lists[0].jobs) == MAX_JOBS
        for _ in range(3):
            refused = await site.mom("jobs", jobs=[{"id": "1.srv"}] * (MAX_JOBS + 1))
            assert (refused["ok"], refused["code"]) == (False, "bad-request")
        assert await site.mom("claim", job=site.rig.job("12.srv"), deadline_s=5) != {"ok": True}, "its table is full"
        assert await site.mom("jobs", jobs=[job(1)]) == {"ok": True}
        assert len(site.lists) == 2

    run(rig, case)


def test_a_successor_knows_them_all(rig: Rig) -> None:
    async def case(site: Site) -> None:
        await site.mom("jobs", jobs=[job(number) for number in range(JOBS)])
        await asyncio.to_thread(rig.kill)
        site.is_connected.clear()
        rig.start(connect=False)
        await asyncio.wait_for(site.is_connected.wait(), BOUND_S)
        assert len((await site.channel.request("memory", BOUND_S)).jobs) == JOBS

    run(rig, case)


def test_the_whole_daemon_knows_them_all_and_answers_claims_of_a_sibling_meanwhile() -> None:
    with one_host() as host, ThreadPoolExecutor(1) as pool:
        listed = [{**job(number), "owner": getpass.getuser()} for number in range(JOBS)]
        assert host.ask_agent("n1", op="jobs", jobs=listed) == {"ok": True}
        again = pool.submit(host.ask_agent, "n1", op="jobs", jobs=listed)
        assert host.claim("p1", "12.srv", "priority")["code"] == "host-busy"
        assert again.result(BOUND_S) == {"ok": True}
        (domain,) = (domain for domain in host.status().domains if domain.name == "n1")
        assert {found.id for found in domain.jobs} == {row["id"] for row in listed}
