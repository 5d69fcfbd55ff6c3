"""What root in a guest says, refuses or does about its memory gains it nothing and costs its siblings nothing.

n1 is the liar: its job is preempted by a priority job of p1, or is about to be. The core, switch, mover and claims are
real; guests, agents and hypervisor are fakes in virtual time (tests/fakes). On real balloons:
tests/libvirt/test_memory_lies.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobKey, MemoryShort
from magrathea.core.refusals import RefusalCode
from node_daemon.guest_channel.channel import AgentError
from node_daemon.guest_channel.messages import GuestMemory, Report
from node_daemon.switch.paging import MemorySettings
from node_daemon.switch.switch import FAULT_AFTER_S
from tests.fakes.guest import SESSION
from tests.tables import some

from .switch_world import CAPACITY_MIB, FLOOR_MIB, HIGH, LOW, World, busy_guest, played, world

NEEDS_MIB = 1000
"""Memory of p1's job."""
ENORMOUS = 2**40
"""The largest number that a message may have."""
SHORT_LIMIT_S = 20.0
"""How long a move may take, if the guest gives nothing anyway: each virtual second is a hundred slices."""
REPORT_S = 1.1
"""A report of the same guest is entered once in a second."""


async def report(w: World, mib: int) -> None:
    """n1's agent says so, and it is entered."""
    await w.claims.request("n1", Report(2, SESSION, GuestMemory(unreclaimable_mib=mib)))
    await asyncio.sleep(REPORT_S)


async def preempted(w: World) -> None:
    """p1's job runs with its memory, and n1 has given all but its floor."""
    assert (await w.claim(NEEDS_MIB))["ok"]
    w.apply(ev.JobLaunched(w.now(), "p1", HIGH))
    await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2 and w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)


async def let_go(w: World) -> None:
    """p1's job ends, and n1's job continues."""
    w.apply(ev.Released(w.now(), "p1", HIGH))
    await w.until(w.low_runs)


def nobody_suffers(w: World) -> None:
    assert not any(d.fault for d in w.host.domains), "a fault would keep jobs out of the whole host"
    assert w.domain("p1").lifecycle == "up"


@pytest.mark.parametrize("mib", some([-ENORMOUS, -1, ENORMOUS, CAPACITY_MIB, 300]))
def test_what_a_preempted_guest_says_is_locked_takes_no_memory_from_the_job_that_preempted_it(mib: int) -> None:
    w = world(busy_guest())

    async def work() -> None:
        await preempted(w)
        w.model.world.targets.clear()
        await report(w, mib)
        await asyncio.sleep(60)
        assert w.model.world.targets == [], "no balloon moves for it"
        await let_go(w)
        nobody_suffers(w)

    played(w, work)


@pytest.mark.long
def test_reports_to_and_fro_neither_move_a_siblings_balloon_nor_extend_a_move() -> None:
    w = world(busy_guest(rate=20))  # 20 MiB a second: slow, so that there is time to lie during the move

    async def work() -> None:
        assert (await w.claim(NEEDS_MIB))["ok"]
        w.apply(ev.JobLaunched(w.now(), "p1", HIGH))
        began = asyncio.get_running_loop().time()
        for mib in (0, ENORMOUS, 0, 1500, -5, CAPACITY_MIB) * 10:
            await report(w, mib)
        p1 = [mib for name, mib in w.model.world.targets if name == "p1"]
        assert p1 == sorted(p1), "it only ever grows"
        await w.until(lambda: w.has("p1") >= NEEDS_MIB + FLOOR_MIB)
        assert asyncio.get_running_loop().time() - began < w.memory_settings.time_limit_s
        await let_go(w)
        nobody_suffers(w)

    played(w, work)


def test_a_guest_that_says_more_is_locked_than_it_has_keeps_no_more_from_siblings_than_it_has() -> None:
    w = world(busy_guest(job=500))

    async def work() -> None:
        await report(w, ENORMOUS)
        assert FLOOR_MIB < w.domain("n1").unreclaimable_mib <= w.has("n1") - FLOOR_MIB
        w.apply(ev.Released(w.now(), "n1", LOW))
        w.model.world.guests["n1"].job = 0
        await preempted(w)
        await w.until(lambda: w.domain("n1").unreclaimable_mib == w.has("n1") - FLOOR_MIB, seconds=5)

    played(w, work)


@pytest.mark.parametrize(
    "figures",
    some(
        [
            {"available_mib": ENORMOUS},
            {"available_mib": 5000},
            {"total_mib": 0},
            {"total_mib": -1},
            {"total_mib": -ENORMOUS},
        ]
    ),
)
def test_impossible_figures_refuse_the_claim_and_put_no_domain_in_fault(figures: dict[str, int]) -> None:
    w = world(busy_guest())
    honest = w.model.world.guests["n1"].memory

    async def work() -> None:
        n1 = w.model.world.guests["n1"]
        n1.memory = lambda: msgspec.structs.replace(honest(), **figures)  # type: ignore[method-assign]
        await refused_in_time(w)

    played(w, work)


def broken(code: str) -> Any:
    def ask(op: str) -> None:
        if op == "memory":
            raise AgentError(RefusalCode(code), "as root in n1 likes")

    return ask


@pytest.mark.long
@pytest.mark.parametrize("code", ["busy", "failed", "timeout", "no-agent", "unknown-op", "bad-request"])
def test_an_agent_that_never_reports_its_figures_refuses_the_claim_and_puts_no_domain_in_fault(code: str) -> None:
    w = world(busy_guest())

    async def work() -> None:
        w.model.world.guests["n1"].on_ask = broken(code)
        await refused_in_time(w)

    played(w, work)


@pytest.mark.long
@pytest.mark.parametrize("answer", [{"pushed_mib": ENORMOUS}, {"pushed_mib": -ENORMOUS, "more": True}, {"more": True}])
def test_false_answers_about_what_was_pushed_out_end_with_the_time_limit(answer: dict[str, Any]) -> None:
    w = world(busy_guest())

    async def work() -> None:
        n1 = w.model.world.guests["n1"]

        async def lie(mib: float, deadline_s: float) -> dict[str, Any]:
            return answer

        n1._push_out = lie  # type: ignore[method-assign]
        await refused_in_time(w)

    played(w, work)


async def refused_in_time(w: World) -> None:
    """p1's job is refused because n1 gives no memory; n1's job continues, and p1 takes the next job that fits into what
    it has."""
    w.memory_settings = MemorySettings(time_limit_s=SHORT_LIMIT_S)
    answer = await w.claim(NEEDS_MIB)
    if answer["ok"]:
        w.apply(ev.JobLaunched(w.now(), "p1", HIGH))  # MoM has it, and its prologue waits
        await w.until(lambda: isinstance(w.switch.progress.lack("p1"), MemoryShort), w.memory_settings.time_limit_s * 2)
        answer = await w.prepared()
    assert answer["code"] == "memory-short" and "n1" in answer["text"], answer
    await asyncio.sleep(2 * FAULT_AFTER_S)
    await let_go(w)
    nobody_suffers(w)
    await asyncio.sleep(70)  # n1's job is old enough to be stopped again
    w.apply(ev.TimerFired(w.now()))
    assert (await w.claim(0, JobKey("9.srv", 2)))["ok"]


@pytest.mark.long
def test_an_agent_that_refuses_every_order_puts_no_domain_in_fault() -> None:
    w = world(busy_guest())

    async def work() -> None:
        n1 = w.model.world.guests["n1"]

        def refuse(op: str) -> None:
            if op == "orders":
                raise AgentError(RefusalCode.FAILED, "as root in n1 likes")

        n1.on_ask = refuse
        assert (await w.claim(NEEDS_MIB))["code"] == "stop-timeout"
        await asyncio.sleep(4 * FAULT_AFTER_S)
        nobody_suffers(w)
        n1.on_ask = lambda op: None
        await w.until(w.low_runs)

    played(w, work)


@pytest.mark.long
def test_a_guest_that_takes_no_memory_back_puts_no_domain_in_fault() -> None:
    w = world(busy_guest())

    async def work() -> None:
        await preempted(w)
        w.model.world.guests["n1"].rate = 0
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await asyncio.sleep(4 * FAULT_AFTER_S)
        nobody_suffers(w)
        w.model.world.guests["n1"].rate = 1000
        await w.until(w.low_runs)

    played(w, work)


@pytest.mark.long
def test_a_guest_that_empties_its_balloon_by_itself_takes_nothing_from_the_job_that_preempted_it() -> None:
    w = world(busy_guest())

    async def work() -> None:
        await preempted(w)
        n1 = w.model.world.guests["n1"]
        n1.actual, n1.target, n1.rate = 2048, None, 0  # its kernel has unloaded the driver, and all is its own again
        w.model.world.targets.clear()
        await w.switch.readings.refresh()
        await asyncio.sleep(4 * FAULT_AFTER_S)
        assert w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2, w.model.world.targets
        grows = [mib for name, mib in w.model.world.targets if name == "n1" and mib > 2048]
        assert not grows, "it is given nothing for it"
        nobody_suffers(w)
        n1.rate = 1000
        await let_go(w)

    played(w, work)
