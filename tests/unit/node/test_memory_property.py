"""Whatever guests, agents and hypervisor do, no balloon kills and no memory is given twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from magrathea_lab.rigs.virtual_time import run
from node_daemon.guest_channel.channel import AgentError
from node_daemon.hypervisor.base import DriverError
from node_daemon.switch.paging import MemorySettings
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import harmless

from .memory_owner import Owner, owner


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
def test_no_balloon_ever_kills_a_job_and_no_memory_is_given_twice(
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
