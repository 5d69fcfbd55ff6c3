"""What the daemon may ask of every guest, and what it receives: over a real channel, and from a fake guest directly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import pytest

from magrathea.core.refusals import RefusalCode
from node_daemon.agent.sessions import PROTOCOL
from node_daemon.guest_channel.channel import AgentError
from node_daemon.guest_channel.messages import Answer, Hello

SOON_S, WITHIN_S = 0.2, 60.0
JOBS = [("1.srv", 1), ("2.srv", 3)]


class Requests(Protocol):
    """The part of node_daemon.guest_channel.channel.GuestChannel that moves memory, stops jobs, boots and shuts
    down."""

    @property
    def hello(self) -> Hello | None: ...

    async def request(self, op: str, within_s: float, **fields: Any) -> Answer: ...


class GuestSite(Protocol):
    """A guest with a connected agent. No job in it is stopped."""

    @property
    def guest(self) -> Requests: ...

    async def hang(self) -> None:
        """From now on the agent answers nothing."""

    async def lose(self) -> None:
        """End the agent."""

    async def until(self, condition: Callable[[], bool]) -> None: ...

    def run(self, case: Callable[[GuestSite], Coroutine[Any, Any, None]]) -> None:
        """Run the case while the site is up."""


async def failure(request: Awaitable[Answer]) -> str:
    with pytest.raises(AgentError) as refused:
        await request
    assert refused.value.text
    return str(refused.value.code)


async def its_hello_names_session_version_and_protocol(site: GuestSite) -> None:
    hello = site.guest.hello
    assert hello is not None
    assert hello.session and hello.agent and hello.protocol == PROTOCOL


async def its_memory_figures_are_consistent(site: GuestSite) -> None:
    memory = (await site.guest.request("memory", WITHIN_S)).memory
    assert 0 < memory.available_mib <= memory.total_mib
    assert 0 <= memory.swap_free_mib <= memory.swap_total_mib


async def orders_are_answered_by_a_row_for_each_job(site: GuestSite) -> None:
    orders = [{"id": id, "run": run, "order": "stop"} for id, run in JOBS]
    answer = await site.guest.request("orders", WITHIN_S, orders=orders, deadline_s=10.0)
    assert [(row.id, row.run, row.order) for row in answer.jobs] == [(id, run, "stop") for id, run in JOBS]


async def memory_of_jobs_that_are_not_stopped_stays(site: GuestSite) -> None:
    jobs = [{"id": id, "run": run} for id, run in JOBS]
    asked = site.guest.request("push-out", WITHIN_S, jobs=jobs, mib=16, deadline_s=1.0)
    assert await failure(asked) == RefusalCode.NOT_STOPPED


async def unknown_requests_are_refused(site: GuestSite) -> None:
    assert await failure(site.guest.request("dance", WITHIN_S)) == RefusalCode.UNKNOWN_OP


async def a_request_to_an_agent_that_hangs_ends_at_its_deadline(site: GuestSite) -> None:
    await site.hang()
    assert await failure(site.guest.request("memory", SOON_S)) == RefusalCode.TIMEOUT


async def a_request_without_an_agent_fails_at_once(site: GuestSite) -> None:
    await site.lose()
    await site.until(lambda: site.guest.hello is None)
    assert await failure(site.guest.request("memory", WITHIN_S)) == RefusalCode.NO_AGENT


async def a_request_fails_if_the_agent_ends(site: GuestSite) -> None:
    await site.hang()
    asked = asyncio.ensure_future(failure(site.guest.request("memory", WITHIN_S)))
    await asyncio.sleep(SOON_S)  # a fixed time: an agent that hangs does nothing that could be waited for
    assert not asked.done()
    await site.lose()
    assert await asked == RefusalCode.NO_AGENT


Case = Callable[[GuestSite], Coroutine[Any, Any, None]]

CASES: tuple[Case, ...] = (
    its_hello_names_session_version_and_protocol,
    its_memory_figures_are_consistent,
    orders_are_answered_by_a_row_for_each_job,
    memory_of_jobs_that_are_not_stopped_stays,
    unknown_requests_are_refused,
    a_request_to_an_agent_that_hangs_ends_at_its_deadline,
    a_request_without_an_agent_fails_at_once,
    a_request_fails_if_the_agent_ends,
)
