"""The target changes while memory moves: the move turns round or ends, and nothing is undone twice."""

from __future__ import annotations

import asyncio

import pytest

from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.virtual_time import run
from node_daemon.hypervisor.base import DriverError
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import harmless

from .memory_owner import Owner, owner


def changing(o: Owner, domain: str, mib: int, at_s: float, new: int | None) -> None:
    async def work() -> None:
        move = asyncio.get_running_loop().create_task(o.mover.move(domain, mib))
        await asyncio.sleep(at_s)
        assert not move.done()
        o.mover.aim(domain, new)
        await move

    with harmless(o.driver.world):
        run(work())


def test_a_new_target_turns_a_move_round_and_nothing_is_undone_twice() -> None:
    guest = FakeGuest("n1", 2048, rate=100)
    o = owner(guest)
    changing(o, "n1", 256, 5.0, 2000)
    assert guest.actual == 2000
    assert [mib for _, mib in o.driver.world.targets] == [256, 2000]


def test_a_lower_target_in_mid_move_is_gone_on_to() -> None:
    guest = FakeGuest("n1", 2048, rate=100)
    changing(owner(guest), "n1", 1500, 2.0, 400)
    assert guest.actual <= 402


def test_a_withdrawn_move_leaves_true_figures() -> None:
    guest = FakeGuest("n1", 2048, rate=100)
    o = owner(guest)
    changing(o, "n1", 256, 5.0, None)
    assert 1200 < guest.actual < 1900
    assert guest.target == pytest.approx(guest.actual, abs=3)


def test_a_target_that_changes_at_the_start_of_a_move_counts() -> None:
    guest = FakeGuest("n1", 2048)
    o = owner(guest)
    changing(o, "n1", 256, 0.0005, 2000)  # its size is just being read
    assert guest.actual == 2000
    assert [mib for _, mib in o.driver.world.targets] == [2000]


def test_a_target_that_wobbles_with_a_guests_figures_does_not_extend_the_time_limit() -> None:
    guest = FakeGuest("n1", 2048, rate=5)
    o = owner(guest, time_limit_s=60)

    async def ended() -> bool:
        move = asyncio.get_running_loop().create_task(o.mover.move("n1", 256))
        for number in range(9):
            await asyncio.sleep(10)
            o.mover.aim("n1", 256 if number % 2 else 272)
        over = move.done()
        move.cancel()
        await asyncio.gather(move, return_exceptions=True)
        await o.mover.close()
        return over

    with harmless(o.driver.world):
        assert run(ended())


def test_a_balloon_that_did_not_get_its_new_target_may_still_take_the_old_one() -> None:
    one, other = FakeGuest("n1", 1000, rate=50), FakeGuest("p1", 1024)
    o = owner(one, other, needs_mib=2900)
    told = o.driver.set_memory

    async def deaf(domain: str, mib: int) -> None:
        if domain == "n1":
            raise DriverError(RefusalCode.TIMEOUT, "setting the memory of n1 did not end")
        await told(domain, mib)

    async def work() -> None:
        grow = asyncio.get_running_loop().create_task(o.mover.move("n1", 3072))
        await asyncio.sleep(2)
        o.driver.set_memory = deaf  # type: ignore[method-assign]
        o.mover.aim("n1", 256)
        with pytest.raises(DriverError):
            await grow
        with pytest.raises(DriverError):
            await o.mover.move("p1", 3500)
        o.driver.set_memory = told  # type: ignore[method-assign]
        await o.mover.move("n1", 256)
        await o.mover.move("p1", 3500)

    with harmless(o.driver.world):
        run(work())
    assert other.actual >= 3498
