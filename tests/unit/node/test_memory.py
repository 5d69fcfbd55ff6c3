"""Memory is taken from guests that can give it, and given when it has arrived; whatever a guest does, no guest is
harmed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from magrathea_lab.rigs.virtual_time import run
from node_daemon.guest_channel.channel import AgentError
from node_daemon.hypervisor.base import DomainReading, DriverError
from node_daemon.switch.memory import STALL_S
from node_daemon.switch.paging import MemorySettings
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, harmless

from .memory_owner import CAPACITY_MIB, KEY, moved, owner, refused


def test_free_memory_is_given_at_once_if_no_job_runs() -> None:
    guest = FakeGuest("n1", 2048)
    o = owner(guest)
    moved(o, "n1", 256)
    assert guest.actual == 256
    assert [mib for _, mib in o.driver.world.targets] == [256]


def test_free_memory_is_given_in_steps_beside_a_running_job_which_may_want_it_meanwhile() -> None:
    guest = FakeGuest("n1", 2048)
    o = owner(guest, runs=True)
    moved(o, "n1", 256)
    assert guest.actual == 256
    goals = [mib for _, mib in o.driver.world.targets]
    assert all(a - b <= 256 for a, b in zip([2048, *goals], goals, strict=False)), "no step is larger than asked for"
    assert "push-out" not in guest.asked, "there was no need to"


def test_a_stopped_jobs_memory_is_pushed_out_until_the_guest_is_at_its_floor() -> None:
    guest = FakeGuest("n1", 1024, job=600, swap_mib=1024)
    o = owner(guest)

    async def work() -> None:
        await o.mover.move("n1", 300)
        assert guest.available < 128 // 2, "who waits for the memory does not wait for this"
        await asyncio.sleep(60)
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())
    assert guest.actual == 300
    assert guest.available >= 128 // 2, "half of the floor, not just the margin"


def test_a_guest_is_relieved_no_longer_than_its_jobs_are_stopped() -> None:
    guest = FakeGuest("n1", 1024, job=600, swap_mib=1024, push_rate=1)
    o = owner(guest, step_mib=16)

    async def work() -> None:
        await o.mover.move("n1", 700)
        await o.mover.fetch("n1", (KEY,))
        asked = guest.asked.count("push-out")
        await asyncio.sleep(60)
        assert guest.asked.count("push-out") == asked

    with harmless(o.driver.world):
        run(work())


def test_the_memory_that_keeps_a_guest_alive_stays_available() -> None:
    guest = FakeGuest("n1", 1024, used=300, stopped=False)
    o = owner(guest)
    error = refused(o, "n1", 128)
    assert error.code == "memory-short"
    assert guest.available >= MemorySettings().margin_mib - 1


def test_a_stopped_jobs_memory_is_pushed_out_before_the_balloon_takes_it() -> None:
    guest = FakeGuest("n1", 2048, job=1800, swap_mib=4096)
    o = owner(guest)
    moved(o, "n1", 256)
    assert guest.actual <= 258
    assert guest.swapped >= 1600
    assert o.seen[0] == "memory n1" or o.seen.index("push n1") < o.seen.index("memory n1")
    assert o.mover.progress == {}


def test_pushed_out_memory_that_is_still_cached_can_go() -> None:
    guest = FakeGuest("n1", 2048, job=1800, swap_mib=4096, cached=True)
    moved(owner(guest), "n1", 256)
    assert guest.actual <= 258


def test_in_a_large_move_the_balloon_takes_memory_while_more_is_pushed_out() -> None:
    guest = FakeGuest("n1", 8192, most=8192, job=7900, swap_mib=9000, push_rate=200, rate=400, cached=True)
    o = owner(guest, capacity_mib=9000)
    assert moved(o, "n1", 256) < 1.35 * 7800 / 200, "one after the other would take half as long again"
    goals = [mib for _, mib in o.driver.world.targets]
    assert max(a - b for a, b in zip([8192, *goals], goals, strict=False)) < 2048


def test_free_memory_is_given_before_anything_is_pushed_out() -> None:
    guest = FakeGuest("n1", 2048, job=1000, swap_mib=2048, push_rate=20)
    o = owner(guest)

    async def work() -> None:
        move = asyncio.get_running_loop().create_task(o.mover.move("n1", 256))
        await asyncio.sleep(3)
        assert guest.actual < 2048 - 700, "who waits for it has it early"
        await move
        await o.mover.close()

    with harmless(o.driver.world):
        run(work())


def test_without_swap_only_free_memory_moves_and_that_is_known_at_once() -> None:
    guest = FakeGuest("n1", 2048, job=1000)
    o = owner(guest)

    async def work() -> float:
        with pytest.raises(DriverError) as caught:
            await o.mover.move("n1", 256)
        assert caught.value.code == "memory-short"
        for number in ("1792", "1092", "0 of 0"):
            assert number in str(caught.value)
        return asyncio.get_running_loop().time()

    with harmless(o.driver.world):
        assert run(work()) < 3.0
    assert guest.actual == guest.target == pytest.approx(1000 + 60 + 32, abs=2)
    assert o.mover.kept_mib("n1") == int(guest.actual) - 128


def test_a_guest_that_refuses_to_give_is_not_pressed_any_longer() -> None:
    guest = FakeGuest("n1", 2048, rate=0)
    o = owner(guest)
    error = refused(o, "n1", 256)
    assert error.code == "memory-short" and f"{STALL_S:g} s" in error.text
    assert guest.target == 2048


def test_a_slow_guest_gets_its_time_limit_and_no_more() -> None:
    guest = FakeGuest("n1", 2048, rate=10)
    o = owner(guest, time_limit_s=30)
    error = refused(o, "n1", 256)
    assert error.code == "memory-short" and "30 s" in error.text
    assert guest.target == pytest.approx(guest.actual, abs=3)
    assert 1500 < guest.actual < 1900


def test_an_agent_lost_in_the_middle_leaves_true_figures_and_can_be_asked_again() -> None:
    guest = FakeGuest("n1", 2048, job=1500, swap_mib=4096)
    o = owner(guest)

    def third_slice(op: str) -> None:
        if guest.asked.count("push-out") == 3:
            guest.connected = False

    guest.on_ask = third_slice
    with pytest.raises(AgentError) as caught:
        moved(o, "n1", 256)
    assert caught.value.code == "no-agent"
    assert guest.target == pytest.approx(guest.actual, abs=3)
    assert o.mover.short("n1") is None, "that is nothing that the guest has shown"
    guest.on_ask, guest.connected = lambda op: None, True
    moved(o, "n1", 256)
    assert guest.actual <= 258


def test_nothing_is_taken_by_figures_that_cannot_be_true() -> None:
    guest = FakeGuest("n1", 1024, used=900, lie_mib=2000)
    o = owner(guest)
    assert refused(o, "n1", 256).code == "bad-figures"
    assert o.driver.world.targets == []


def test_a_lie_within_bounds_harms_only_the_liar() -> None:
    """Its sibling gets what the hypervisor reports, whatever the guest reports."""
    liar, other = FakeGuest("n1", 2048, used=1500, lie_mib=900), FakeGuest("p1", 512, most=4096)
    o = owner(liar, other, capacity_mib=2560)

    async def work() -> None:
        await asyncio.gather(o.mover.move("n1", 256), o.mover.move("p1", 2300), return_exceptions=True)

    run(work())
    assert liar.actual + other.actual <= 2560
    assert o.driver.world.overbooked <= 0.5


def test_a_hypervisor_that_does_not_answer_ends_the_move_and_the_next_one_continues() -> None:
    guest = FakeGuest("n1", 2048)
    o = owner(guest)

    def hang(op: str) -> None:
        if len(guest.asked) == 1:
            o.driver.world.unanswered = 2

    guest.on_ask = hang
    assert refused(o, "n1", 256).code == "timeout"
    moved(o, "n1", 256)
    assert guest.actual <= 258


def test_an_agent_that_cannot_push_out_gives_free_memory_only() -> None:
    guest = FakeGuest("n1", 2048, job=1000, swap_mib=4096, can=())
    o = owner(guest)
    assert "its agent cannot push" in refused(o, "n1", 256).text
    assert "push-out" not in guest.asked


def test_a_domain_halted_by_others_is_left_alone() -> None:
    guest = FakeGuest("n1", 2048)
    o = owner(guest)

    async def work() -> None:
        read = await FakeDriver.actual(o.driver)
        o.driver.actual = lambda: _halted(read)  # type: ignore[method-assign]
        with pytest.raises(DriverError) as caught:
            await o.mover.move("n1", 256)
        assert caught.value.code == "domain-down"

    async def _halted(read: dict[str, DomainReading]) -> dict[str, DomainReading]:
        return {name: replace(domain, paused_externally=True) for name, domain in read.items()}

    run(work())
    assert o.driver.world.targets == []


# Giving


def test_memory_is_not_given_while_the_other_domain_still_has_it() -> None:
    """The host is booked in full: what one domain gives goes to the other as it arrives."""
    one, other = FakeGuest("n1", 3072, job=2000, swap_mib=4096, rate=200), FakeGuest("p1", 1024)
    o = owner(one, other, needs_mib=2500)
    heights: list[float] = []

    async def work() -> None:
        grow = asyncio.get_running_loop().create_task(o.mover.move("p1", CAPACITY_MIB - 256))
        shrink = asyncio.get_running_loop().create_task(o.mover.move("n1", 256))
        while not grow.done():
            heights.append(other.actual)
            await asyncio.sleep(0.5)
        await asyncio.gather(grow, shrink)

    with harmless(o.driver.world):
        run(work())
    assert other.actual >= CAPACITY_MIB - 256 - 6
    assert len({int(h) for h in heights}) > 4, "it got what there was, long before all was there"


def test_a_domain_with_its_jobs_memory_does_not_wait_for_more() -> None:
    one, other = FakeGuest("n1", 3072), FakeGuest("p1", 512)
    o = owner(one, other, needs_mib=800)

    async def work() -> bool:
        await o.mover.move("p1", 3000)
        read = await o.driver.actual()
        return o.mover.bounds.settled("p1", read["p1"], 3000)

    with harmless(o.driver.world):
        assert run(work()), "or the same step would be taken for ever"
    assert other.actual == 1024
    one.actual = 2000

    async def later() -> bool:
        read = await o.driver.actual()
        o.mover.note(read)
        return o.mover.bounds.settled("p1", read["p1"], 3000)

    assert not run(later()), "there is more now"


def test_a_domain_that_lacks_its_jobs_memory_names_who_has_it() -> None:
    one, other = FakeGuest("n1", 3072), FakeGuest("p1", 512)
    o = owner(one, other, needs_mib=2000)
    error = refused(o, "p1", 3000)
    assert error.code == "memory-short"
    for word in ("p1", "1024", "2128", "n1 has 3072", str(CAPACITY_MIB)):
        assert word in error.text


def test_a_guest_that_takes_nothing_is_reported() -> None:
    guest = FakeGuest("p1", 512, rate=0)
    assert refused(owner(guest), "p1", 1024).code == "failed"


def test_no_guest_is_given_more_than_it_can_have() -> None:
    guest = FakeGuest("p1", 512, most=1000)
    o = owner(guest)
    moved(o, "p1", 3000)
    assert guest.actual == 1000
    assert o.mover.bounds.settled("p1", DomainReading(True, None, 1000, max_memory_mib=1000), 3000)


# Fetching back


def test_pushed_out_memory_is_fetched_back_completely() -> None:
    guest = FakeGuest("n1", 2048, swapped=1500, swap_mib=4096)
    o = owner(guest)
    run(o.mover.fetch("n1", (KEY,)))
    assert guest.swapped == 0 and guest.job == 1500


def test_bringing_back_ends_in_time_however_slow_the_disk() -> None:
    guest = FakeGuest("n1", 2048, swapped=1500, swap_mib=4096, push_rate=5)
    o = owner(guest, time_limit_s=20, step_mib=16)

    async def work() -> float:
        await o.mover.fetch("n1", (KEY,))
        return asyncio.get_running_loop().time()

    assert run(work()) < 30


def test_a_failed_fetch_delays_no_job() -> None:
    guest = FakeGuest("n1", 2048, swapped=1500, swap_mib=4096)
    o = owner(guest)
    guest.connected = False
    run(o.mover.fetch("n1", (KEY,)))
    guest.connected = True
    guest.on_ask = lambda op: setattr(guest, "connected", False)
    run(o.mover.fetch("n1", (KEY,)))
    assert o.mover.progress == {}


def test_progress_is_reported() -> None:
    guest = FakeGuest("n1", 2048, job=1500, swap_mib=4096, push_rate=100)
    o = owner(guest)
    seen: list[tuple[str, int, int]] = []

    async def work() -> None:
        move = asyncio.get_running_loop().create_task(o.mover.move("n1", 256))
        while not move.done():
            seen.extend((p.what, p.done_mib, p.of_mib) for p in o.mover.progress.values())
            await asyncio.sleep(1)
        await move
        guest.actual = guest.target = 2048
        fetch = asyncio.get_running_loop().create_task(o.mover.fetch("n1", (KEY,)))
        while not fetch.done():
            seen.extend((p.what, p.done_mib, p.of_mib) for p in o.mover.progress.values())
            await asyncio.sleep(1)

    run(work())
    given = [done for what, done, _ in seen if what == "gives"]
    assert given == sorted(given) and len(set(given)) > 5
    assert {of for what, _, of in seen if what == "gives"} == {2048 - 256}
    assert any(what == "fetches" for what, _, _ in seen)
