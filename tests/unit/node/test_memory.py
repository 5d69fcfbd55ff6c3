"""Memory is taken from guests that can give it, and given when it has arrived; whatever a guest does, no guest is
harmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, Kind, Lifecycle, Mode, Stopper
from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.virtual_time import run
from node_daemon.guest_channel.channel import AgentError
from node_daemon.hypervisor.base import DomainReading, DriverError
from node_daemon.switch.memory import STALL_S, Mover
from node_daemon.switch.paging import MemorySettings
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, balloons, harmless

KEY = JobKey("1", 1)
CAPACITY_MIB = 4096


class Owner:
    """Plays the switch for the mover."""

    def __init__(self, driver: FakeDriver, limits: MemorySettings, needs_mib: int = 0, runs: bool = False) -> None:
        self.memory_settings = limits
        self.driver = driver
        low = Job(KEY, JobClass.PREEMPTIBLE, 1, 0, 0.0, 0.0, True, True)
        if not runs:
            low = replace(low, stopped_since=0.0, stopper=Stopper.US)
        high = Job(JobKey("9", 1), JobClass.PRIORITY, 1, needs_mib, 0.0, 0.0, True, True)
        kinds = {"n1": (Kind.NORMAL, (low,)), "p1": (Kind.PRIORITY, (high,))}
        domains = tuple(
            Domain(name, kinds[name][0], 4, floor_mib=128, lifecycle=Lifecycle.UP, jobs=kinds[name][1])
            for name in sorted(driver.world.guests)
        )
        self.host = Host("h1", Mode.EXCLUSIVE, 4, driver.world.capacity_mib, domains)
        self.seen: list[str] = []
        self.mover = Mover(self, driver, driver.world.guests)
        self.reads = 0

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        return (KEY,) if domain == "n1" and self.driver.world.guests["n1"].stopped else ()

    def memory_read(self, read: Mapping[str, DomainReading]) -> None:
        self.reads += 1

    def begins_to_give(self, domain: str) -> None:
        self.seen.append(f"gives {domain}")

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        return ()

    def look_soon(self) -> None:
        self.seen.append("look")

    def observe(self, name: str) -> None:
        self.seen.append(name)


def owner(
    *guests: FakeGuest, capacity_mib: int = CAPACITY_MIB, needs_mib: int = 0, runs: bool = False, **changes: Any
) -> Owner:
    return Owner(balloons(capacity_mib, *guests), replace(MemorySettings(), **changes), needs_mib, runs)


def moved(o: Owner, domain: str, mib: int) -> float:
    """Move it, and nothing else; return the virtual seconds that it took."""

    async def work() -> float:
        try:
            await o.mover.move(domain, mib)
            return asyncio.get_running_loop().time()
        finally:
            await o.mover.close()

    with harmless(o.driver.world):
        return run(work())


def refused(o: Owner, domain: str, mib: int) -> DriverError:
    with pytest.raises(DriverError) as caught:
        moved(o, domain, mib)
    return caught.value


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


def test_a_slow_guest_is_given_its_time_and_no_more() -> None:
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


# The target changes


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


def test_a_wish_that_goes_to_and_fro_with_a_guests_own_figures_gives_it_no_more_time() -> None:
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


def test_a_failure_of_bringing_back_holds_no_job_up() -> None:
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


# Whatever happens


@st.composite
def guests(draw: st.DrawFn, name: str) -> FakeGuest:
    used = draw(st.integers(20, 200))
    actual = draw(st.integers(256, 2048))
    job = draw(st.integers(0, max(0, actual - used))) if name == "n1" else 0
    return FakeGuest(
        name,
        actual,
        most=draw(st.sampled_from([2048, 4096])),
        used=used,
        job=job,
        swap_mib=draw(st.sampled_from([0, 100, 4096])),
        rate=draw(st.sampled_from([0, 1, 50, 1000, 100000])),
        push_rate=draw(st.sampled_from([1, 20, 500, 5000])),
        stopped=draw(st.booleans()),
        can=draw(st.sampled_from([("push-out", "fetch"), ()])),
    )


Wish = tuple[str, str, int, float]
wishes = st.lists(
    st.tuples(
        st.sampled_from(["aim", "agent", "fail", "stop", "use", "down", "withdraw"]),
        st.sampled_from(["n1", "p1"]),
        st.integers(64, 3000),
        st.floats(0.01, 20.0),
    ),
    max_size=12,
)


def happens(o: Owner, what: str, name: str, mib: int) -> None:
    guest = o.driver.world.guests[name]
    guest.pass_time()
    if what == "aim":
        o.mover.aim(name, mib)
    elif what == "withdraw":
        o.mover.aim(name, None)
    elif what == "agent":
        guest.connected = not guest.connected
    elif what == "fail":
        o.driver.world.unanswered = mib % 4
    elif what == "stop":
        guest.stopped = not guest.stopped
    elif what == "use":  # a stray process takes the margin, which is there for that
        guest.used += min(MemorySettings().margin_mib / 8, guest.available / 2)
    elif guest.up:
        o.driver.world.end(name)
    else:
        o.driver.world.start(name)


async def moving(o: Owner, name: str, mib: Callable[[], int], over: asyncio.Event) -> None:
    """Move as the switch does, with a bounded number of attempts."""
    for _ in range(30):
        try:
            await o.mover.move(name, mib())
        except (DriverError, AgentError):
            await asyncio.sleep(1.0)
        if over.is_set():
            return
        await asyncio.sleep(0.5)


@given(guests("n1"), guests("p1"), st.integers(64, 3000), st.integers(64, 3000), wishes)
def test_whatever_happens_no_balloon_kills_and_nothing_is_given_twice(
    one: FakeGuest, other: FakeGuest, first: int, second: int, then: list[Wish]
) -> None:
    o = owner(one, other, capacity_mib=2560, time_limit_s=40)

    async def work() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(moving(o, n, lambda m=m: m, over)) for n, m in (("n1", first), ("p1", second))]  # type: ignore[misc]
        for what, name, mib, pause in then:
            await asyncio.sleep(pause)
            happens(o, what, name, mib)
        over.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 10_000)  # virtual time, so every wait is bounded

    with harmless(o.driver.world):
        run(work())
    assert o.mover.progress == {}
