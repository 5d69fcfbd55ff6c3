"""A domain whose memory cannot be moved: nobody is stopped for memory that would not come."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from magrathea.core import events as ev
from magrathea.core.model import JobKey
from node_daemon.guest_channel.messages import GuestMemory, Report
from tests.fakes.guest import SESSION, FakeGuest
from tests.fakes.hypervisor import balloons

from .switch_world import CAPACITY_MIB, HIGH, World, busy_guest, played

PINNED_MIB = 2048


def world() -> World:
    n1 = busy_guest(actual=PINNED_MIB, most=PINNED_MIB)
    n1.stopped, n1.pinned = False, True
    w = World(balloons(CAPACITY_MIB, n1, FakeGuest("p1", 384, used=60)), swap_mib=4096, low_mib=0)
    sizes = {"n1": PINNED_MIB, "p1": CAPACITY_MIB}
    w.host = replace(w.host, domains=tuple(replace(d, memory_mib=sizes[d.name]) for d in w.host.domains))
    return w


def test_a_claim_that_needs_pinned_memory_is_refused_before_anybody_is_stopped() -> None:
    w = world()

    async def work() -> None:
        answer = await w.claim(1000)
        assert answer["code"] == "memory"
        assert w.low_runs() and not any(what.startswith("stop") for what in w.log)
        assert (await w.claim(200))["ok"], "what fits beside it"

    played(w, work)


def test_no_report_of_the_guest_makes_pinned_memory_movable() -> None:
    w = world()

    async def work() -> None:
        await w.claims.request("n1", Report(1, SESSION, GuestMemory(2048, 2000, 0, 0, 0, 2000)))
        assert w.domain("n1").unreclaimable_mib == PINNED_MIB - w.domain("n1").floor_mib

    played(w, work)


def test_memory_that_turns_out_to_be_pinned_is_given_to_nobody() -> None:
    """QEMU has kept what the balloon took: the reading says from then on that the memory cannot be moved."""
    w = world()
    guest = w.model.world.guests["n1"]
    guest.pinned = False

    async def work() -> None:
        had = w.has("p1")
        w.on_observe = lambda name: setattr(guest, "pinned", guest.pinned or name == "memory n1")
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: guest.pinned)
        while "code" not in (answer := await w.prepared()):
            assert w.domain("p1").jobs and w.now() < 1200, "it waits for ever"
            await asyncio.sleep(0.1)
        assert answer["code"] == "memory-short"
        assert w.has("p1") <= max(had, CAPACITY_MIB - PINNED_MIB)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        await asyncio.sleep(20)  # it may be preempted again
        w.apply(ev.TimerFired(w.now()))
        assert (await w.claim(1000, JobKey(HIGH.id, 2)))["code"] == "memory"
        assert w.low_runs(), "nobody is stopped for it again"

    played(w, work)
