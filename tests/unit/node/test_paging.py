"""What agents do with the memory of stopped jobs besides the moves: relief, and fetching back in advance."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from magrathea.core.caps import RELIEF_S
from magrathea.core.model import JobKey
from magrathea_lab.rigs.virtual_time import run
from node_daemon.guest_channel.channel import AgentError
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import harmless

from .memory_owner import KEY, Owner, owner


class Continuing(Owner):
    """n1's job is about to continue."""

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        return ()

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        return (KEY,) if domain == "n1" else ()


def swapped_guest(**changes: float) -> FakeGuest:
    """A guest of 256 MiB with its job in swap."""
    guest = FakeGuest("n1", 256, swapped=1000, swap_mib=2048)
    for name, value in changes.items():
        setattr(guest, name, value)
    return guest


def grown(guest: FakeGuest) -> tuple[Owner, float, float]:
    """(owner, seconds until the guest has 2048 MiB, seconds until its job may continue too)."""
    o = owner(guest)
    o.__class__ = Continuing

    async def work() -> tuple[float, float]:
        now = asyncio.get_running_loop().time
        await o.mover.move("n1", 2048)
        has = now()
        await o.mover.fetch("n1", (KEY,))
        back = now()
        await o.mover.close()
        return has, back

    with harmless(o.driver.world):
        return (o, *run(work()))


def test_pushed_out_memory_comes_back_while_the_balloon_still_grows() -> None:
    guest = swapped_guest(rate=100, push_rate=100)
    _, has, back = grown(guest)
    assert guest.swapped == 0
    assert back - has < 10 * 0.3, "1,000 MiB at 100 a second are 10 s, most of them while the guest grew"


def test_a_guest_that_has_no_room_yet_is_not_asked_all_the_time() -> None:
    guest = swapped_guest(used=2000, rate=10)
    grown(guest)
    seconds = (2048 - 256) / 10
    assert guest.asked.count("fetch") < 8 * seconds
    assert guest.actual >= 2046


def test_a_job_that_was_brought_back_ahead_is_not_brought_back_again() -> None:
    guest = swapped_guest()
    o, _, _ = grown(guest)
    asked = guest.asked.count("fetch")

    async def again() -> None:
        await o.mover.fetch("n1", (KEY,))

    run(again())
    assert guest.asked.count("fetch") == asked


def test_memory_is_fetched_back_again_after_its_jobs_ran_or_more_was_pushed_out() -> None:
    guest = swapped_guest()
    o, _, _ = grown(guest)
    o.mover.paging.jobs_run_again("n1")
    guest.swapped, guest.job = 500, 500
    run(o.mover.fetch("n1", (KEY,)))
    assert guest.swapped == 0, "they ran"

    async def pushed() -> None:
        await o.mover.paging.slice("n1", guest, "push-out", (KEY,), 300)
        await o.mover.fetch("n1", (KEY,))

    run(pushed())
    assert guest.swapped == 0, "300 MiB were pushed out"


def test_a_claim_in_mid_return_ends_the_bringing_back() -> None:
    guest = swapped_guest(rate=100, push_rate=100)
    o = owner(guest)
    o.__class__ = Continuing

    async def work() -> None:
        move = asyncio.get_running_loop().create_task(o.mover.move("n1", 2048))
        await asyncio.sleep(5)
        assert o.mover.progress["n1"].what in ("takes", "fetches")
        o.__class__ = Owner
        o.mover.aim("n1", 256)
        await move
        asked = guest.asked.count("fetch")
        await asyncio.sleep(30)
        assert guest.asked.count("fetch") == asked
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
    assert guest.actual <= 258


def test_the_time_of_relief_is_known_and_the_switch_looks_again_when_the_guest_may_be_capped() -> None:
    for push_rate, over_s, is_relieved in ((1000.0, 1.0, False), (1.0, RELIEF_S, True)):
        guest = FakeGuest("n1", 1024, job=900, swap_mib=1024, push_rate=500)
        o = owner(guest)

        async def work(
            o: Owner = o,
            guest: FakeGuest = guest,
            rate: float = push_rate,
            over: float = over_s,
            is_relieved: bool = is_relieved,
        ) -> None:
            await o.mover.move("n1", 300)
            guest.push_rate = rate
            assert o.mover.paging.relieved_s("n1") == 0.0
            o.seen.clear()
            await asyncio.sleep(over + 0.1)
            relieved_s = o.mover.paging.relieved_s("n1")
            assert relieved_s == pytest.approx(over + 0.1) if is_relieved else relieved_s is None
            assert "look" in o.seen
            await o.mover.close()

        with harmless(o.driver.world):
            run(work())


# Failures meanwhile


@pytest.mark.parametrize(("code", "op"), [("busy", "push-out"), ("timeout", "memory"), ("timeout", "push-out")])
def test_relief_continues_after_an_agent_that_had_no_time_for_it(code: str, op: str) -> None:
    """A slice of the move may still be running there, and a guest under pressure is slow."""
    guest = FakeGuest("n1", 1024, job=600, swap_mib=1024)
    o = owner(guest)

    async def work() -> None:
        await o.mover.move("n1", 300)
        left = [2]

        def refuse(asked: str) -> None:
            if asked == op and left[0]:
                left[0] -= 1
                raise AgentError(code, "not now")

        guest.on_ask = refuse
        await asyncio.sleep(60)
        assert not left[0]
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
    assert guest.available >= 128 // 2


def test_after_a_loss_of_the_agent_memory_is_fetched_back_before_the_jobs_continue() -> None:
    guest = swapped_guest(rate=100, push_rate=100)
    o = owner(guest)
    o.__class__ = Continuing

    async def work() -> None:
        move = asyncio.get_running_loop().create_task(o.mover.move("n1", 2048))
        await asyncio.sleep(5)
        guest.connected = False
        await asyncio.sleep(5)
        guest.connected = True
        await move
        assert guest.swapped > 100
        await o.mover.fetch("n1", (KEY,))
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
    assert guest.swapped == 0


def test_memory_without_room_in_one_move_is_fetched_back_after_the_next() -> None:
    guest = swapped_guest()
    o = owner(guest)
    o.__class__ = Continuing

    async def work() -> None:
        await o.mover.move("n1", 600)
        await asyncio.sleep(30)
        assert guest.swapped > 400
        await o.mover.move("n1", 2048)
        await o.mover.fetch("n1", (KEY,))
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
    assert guest.swapped == 0


def test_a_job_waits_only_once_for_memory_that_never_comes_back() -> None:
    guest = swapped_guest()
    o = owner(guest)

    async def work() -> None:
        await o.mover.fetch("n1", (KEY,))
        asked = len(guest.asked)
        await o.mover.fetch("n1", (KEY,))
        assert len(guest.asked) == asked, "it goes on with what it has, as told the first time"

    run(work())
    assert guest.swapped > 0


def test_an_agent_is_asked_for_one_slice_at_a_time_though_more_jobs_may_continue_meanwhile() -> None:
    guest = swapped_guest(rate=100, push_rate=100, actual=1000)
    o = owner(guest)
    both = (KEY, JobKey("2.srv", 1))
    o.to_continue = lambda domain: both  # type: ignore[method-assign]
    o.held_stopped = lambda domain: ()  # type: ignore[method-assign]
    at_once, most = [0], [0]
    answer = guest.answer

    async def counted(op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        at_once[0] += op == "fetch"
        most[0] = max(most[0], at_once[0])
        try:
            return await answer(op, fields)
        finally:
            at_once[0] -= op == "fetch"

    guest.answer = counted  # type: ignore[method-assign]

    async def work() -> None:
        fetch = asyncio.get_running_loop().create_task(o.mover.fetch("n1", (KEY,)))
        await asyncio.sleep(1)
        await o.mover.move("n1", 2048)
        await fetch
        await o.mover.fetch("n1", both)
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
    assert most[0] == 1


def test_a_guest_that_is_fetching_back_is_not_relieved() -> None:
    """Its move first gave something, and was then reversed."""
    guest = FakeGuest("n1", 2048, used=1650, job=300, rate=10, swapped=500, swap_mib=1024)
    o = owner(guest)
    o.to_continue = lambda domain: (KEY,)  # type: ignore[method-assign]
    o.held_stopped = lambda domain: (JobKey("2.srv", 1),)  # type: ignore[method-assign]

    async def work() -> None:
        move = asyncio.get_running_loop().create_task(o.mover.move("n1", 2000))
        await asyncio.sleep(2)
        o.mover.aim("n1", 2048)
        await move
        await asyncio.sleep(10)
        assert "push-out" not in guest.asked
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
