"""What counts as confirmed by agents, and what a message to an agent holds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from magrathea.core.model import JobKey, Lifecycle, Sleep, SleepCause, StopWarning
from magrathea.core.plan import Order, Orders
from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.virtual_time import run as in_virtual_time
from node_daemon.guest_channel.channel import AgentError
from node_daemon.guest_channel.messages import Answer, Hello
from node_daemon.switch.orders import AgentOrders
from tests.fakes.guest import FakeGuest
from tests.unit.core.builders import host, run, set_domain, stop

ONE, TWO = JobKey("1.srv", 1), JobKey("2.srv", 1)
STOP = Orders("n1", Order.STOP, (ONE,))


class Host:
    """Two jobs in n1 are stopped for a priority job in p1. The agent of n1 is connected."""

    def __init__(self) -> None:
        facts = run(run(host("exclusive", n1="normal", p1="priority"), "n1", "1.srv"), "n1", "2.srv")
        self.without_priority = stop(stop(facts, "n1", "1.srv"), "n1", "2.srv")
        self.facts = SimpleNamespace(host=run(self.without_priority, "p1", "9"), now=lambda: 1_000.0)
        self.agent = FakeGuest("n1")
        self.seen: list[str] = []
        channels: Any = {"n1": self.agent}
        self.orders = AgentOrders(self.facts, channels, self.seen.append)
        self.orders.connected("n1")

    def send(self, *steps: Orders) -> None:
        async def work() -> None:
            for step in steps:
                await self.orders.send(step, self.orders.connection(step.domain))

        in_virtual_time(work())


@pytest.fixture
def h() -> Host:
    return Host()


def test_every_message_holds_all_orders_of_the_domain(h: Host) -> None:
    h.send(STOP)
    assert h.agent.orders == {("1.srv", 1): "stop", ("2.srv", 1): "stop"}, "2 must not run either"
    assert h.seen == ["stop n1"]
    h.facts.host = h.without_priority
    h.send(Orders("n1", Order.LIFT, (ONE,)), Orders("n1", Order.LIFT, (TWO,)))
    assert h.agent.orders == {("1.srv", 1): "lift", ("2.srv", 1): "lift"}, "the order for 1 stands"


def test_what_sleeps_on_disk_needs_no_confirmation(h: Host) -> None:
    """After a restart no agent can give it, and a frozen domain waits for it before it is restored."""
    sleep = Sleep(900.0, "a new disk", SleepCause.ADMIN)
    h.facts.host = set_domain(h.without_priority, "n1", sleep=sleep, lifecycle=Lifecycle.DOWN)
    assert h.orders.unconfirmed_stops() == frozenset()


@pytest.mark.parametrize(("can", "warn_s"), [(("long-warnings",), 200.0), ((), 60.0)])
def test_an_old_agent_gets_no_order_with_a_time_that_it_would_refuse(
    h: Host, can: tuple[str, ...], warn_s: float
) -> None:
    domain = h.facts.host.domain("n1")
    jobs = (replace(job, warning=StopWarning("SIGUSR1", 200), stopped_since=h.facts.now()) for job in domain.jobs)
    limits = replace(h.facts.host.limits, longest_warning_s=300.0)
    h.facts.host = replace(h.facts.host.having(domain.having(*jobs)), limits=limits)
    h.agent._hello = msgspec.structs.replace(h.agent._hello, can=list(can))
    ordered: list[dict[str, Any]] = []

    async def request(op: str, within_s: float, **fields: Any) -> Answer:
        ordered.extend(fields["orders"])
        raise AgentError(RefusalCode.TIMEOUT, "this test looks only at what is ordered")

    h.agent.request = request  # type: ignore[method-assign]
    with pytest.raises(AgentError):
        h.send(STOP)
    assert [order["warn_s"] for order in ordered] == [warn_s, warn_s]


def test_a_stop_is_confirmed_for_the_jobs_of_the_order(h: Host) -> None:
    assert h.orders.unconfirmed_stops() == {("n1", ONE), ("n1", TWO)}
    h.send(STOP)
    assert h.orders.unconfirmed_stops() == {("n1", TWO)}
    assert h.orders.held_stopped("n1") == (ONE,) and h.orders.to_continue("n1") == ()
    h.facts.host = h.without_priority
    assert h.orders.held_stopped("n1") == () and h.orders.to_continue("n1") == (ONE,)
    assert h.orders.unconfirmed_stops() == frozenset(), "nothing has to be stopped"


def test_an_agent_that_goes_away_leaves_stopped_what_it_has_confirmed_and_confirms_again_when_it_is_back(
    h: Host,
) -> None:
    h.send(STOP)
    h.agent.connected = False
    h.orders.lost("n1")
    assert h.orders.unconfirmed_stops() == {("n1", TWO)}, "1 stays stopped"
    h.agent.connected = True
    h.orders.connected("n1")
    assert h.orders.unconfirmed_stops() == {("n1", ONE), ("n1", TWO)}, "a new agent has to find it stopped"
    h.send(STOP)
    assert h.orders.unconfirmed_stops() == {("n1", TWO)}


def test_a_stop_that_may_have_been_lifted_is_not_confirmed_any_more(h: Host) -> None:
    h.send(STOP)
    allowed, h.facts.host = h.facts.host, h.without_priority
    h.agent.order_s = 1000
    with pytest.raises(AgentError):
        h.send(Orders("n1", Order.LIFT, (ONE,)))
    h.facts.host = allowed
    h.agent.connected = False
    h.orders.lost("n1")
    assert h.orders.unconfirmed_stops() == {("n1", ONE), ("n1", TWO)}


def test_a_new_connection_needs_the_full_set_once(h: Host) -> None:
    assert h.orders.needs_full_orders() == ["n1"]
    h.send(Orders("n1", Order.LIFT, ()))
    assert h.orders.needs_full_orders() == []
    h.orders.connected("n1")
    assert h.orders.needs_full_orders() == ["n1"]
    h.agent.connected = False
    assert h.orders.needs_full_orders() == [], "nobody is there to hear it"


def test_an_answer_over_a_connection_that_was_replaced_confirms_nothing(h: Host) -> None:
    async def work() -> None:
        connection = h.orders.connection("n1")
        sending = asyncio.create_task(h.orders.send(STOP, connection))
        await asyncio.sleep(0.001)
        h.agent._hello = Hello(session="1.srv" * 16, protocol=1)
        h.orders.connected("n1")
        with pytest.raises(AgentError, match="connected anew"):
            await sending

    in_virtual_time(work())
    assert h.orders.unconfirmed_stops() == {("n1", ONE), ("n1", TWO)}
    assert h.orders.needs_full_orders() == ["n1"]
