"""Somebody else sets a balloon or a CPU cap: it is named, and nobody is given memory that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from magrathea.core import events as ev
from node_daemon.guest_channel.messages import GuestMemory, Report
from node_daemon.hypervisor.base import DomainReading
from node_daemon.switch.interference import CONTESTED, COUNTED_S, NOTED_S, Interference
from tests.fakes.guest import SESSION, FakeGuest

from .switch_world import CAPACITY_MIB, HIGH, World, busy_guest, played, world


class Scene:
    """Readings one after the other, a second apart."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.interference = Interference(lambda: self.now_s)
        self._numbers: Iterator[int] = iter(range(1, 1000))
        self.begun = 0

    def read(self, mib: int | None = 512, percent: int | None = None, up: bool = True) -> list[str]:
        self.now_s += 1.0
        self.begun = next(self._numbers)
        reading = DomainReading(up, percent, mib, max_memory_mib=2048)
        self.interference.note({"n1": reading}, self.begun)
        return self.interference.notes()


def test_what_we_set_ourselves_is_nobody_elses() -> None:
    scene = Scene()
    assert scene.read(2048) == []
    scene.interference.memory_moves("n1")
    assert scene.read(1000) == []
    scene.interference.memory_rests("n1", scene.begun)
    scene.interference.cpu_set("n1", 10, scene.begun)
    assert scene.read(512, 10) == scene.read(512, 10) == scene.read(513, 10) == []


def test_a_reading_that_was_begun_before_we_set_it_proves_nothing() -> None:
    scene = Scene()
    scene.read(512)
    scene.interference.cpu_set("n1", 10, scene.begun + 1)
    assert scene.read(512, None) == []
    assert scene.read(512, 10) == []


def test_a_balloon_and_a_cap_that_others_set_are_named() -> None:
    scene = Scene()
    scene.interference.memory_rests("n1", 0)
    scene.interference.cpu_set("n1", 10, 0)
    scene.read(512, 10)
    [cap] = scene.read(512, None)
    assert "n1" in cap and "from 10 % to no cap" in cap and "virsh schedinfo" in cap
    _, memory = scene.read(2048, None)
    assert "from 512 to 2048 MiB" in memory and "virsh setmem" in memory
    scene.now_s += NOTED_S + 1
    assert scene.read(2048, None) == []


def test_a_domain_that_went_down_starts_anew() -> None:
    scene = Scene()
    scene.interference.memory_rests("n1", 0)
    scene.read(512)
    scene.read(None, up=False)
    assert scene.read(2048) == []


def test_a_domain_is_contested_as_long_as_others_change_it_again_and_again() -> None:
    scene = Scene()
    scene.interference.memory_rests("n1", 0)
    scene.read(512)
    for mib in (2000, 512, 2000, 512):
        scene.read(mib)
    assert scene.interference.contested_mib("n1") == 0, "a reboot, or a guest that was short of memory"
    assert "nobody gets memory of it" in scene.read(1900)[0]
    assert scene.interference.contested_mib("n1") == 2000
    scene.now_s += COUNTED_S
    assert scene.interference.contested_mib("n1") == 0


# With the real switch and mover


def meddled(w: World, mib: int) -> asyncio.Task[None]:
    """`virsh setmem n1` every second."""

    async def meddle() -> None:
        while True:
            w.model.world.set_memory("n1", mib)
            await asyncio.sleep(1)
            await w.switch.readings.refresh()

    return asyncio.get_running_loop().create_task(meddle())


def test_while_somebody_sets_a_balloon_each_second_no_memory_is_given_twice() -> None:
    w = world(busy_guest(actual=2048, most=2048), FakeGuest("p1", 384, used=60))

    async def work() -> None:
        other = meddled(w, 2048)
        try:
            assert (await w.claim(1000))["ok"]
            await w.until(lambda: any("virsh setmem" in note for note in w.switch.interference.notes()))
            await w.until(lambda: w.has("n1") == 2048)
            await asyncio.sleep(1)  # what n1 had given before has arrived
            had = w.has("p1")
            while "code" not in (answer := await w.prepared()):
                assert w.now() < 1200, "it waits for ever"
                assert w.has("p1") <= had and w.switch.mover.bounds.room("p1") <= had, "n1 has it"
                await asyncio.sleep(0.1)
            assert answer["code"] == "memory-short"
            assert not w.model.world.guests["n1"].killed
            w.apply(ev.Released(w.now(), "p1", HIGH))
            await w.until(w.low_runs)
            assert w.model.world.overbooked <= 2048 + had - CAPACITY_MIB, "the other's doing, no more"
            w.model.world.overbooked = 0
        finally:
            other.cancel()

    played(w, work)


async def contest(w: World) -> None:
    """Somebody else sets n1's balloon until Magrathea has noticed it; it ends low."""
    for _ in range(10 * CONTESTED):
        w.switch.interference.memory_rests("n1", w.switch.readings.begun)
        for mib in (2048, 1900):
            w.model.world.guests["n1"].actual = mib
            await w.switch.readings.refresh()
        await asyncio.sleep(1)
        if w.switch.interference.contested_mib("n1"):
            return


def large() -> World:
    """Each domain may have nearly the whole host, and n1 has."""
    w = world(busy_guest(actual=2048, most=2048), FakeGuest("p1", 384, used=60))
    sizes = {"n1": 2048, "p1": CAPACITY_MIB}
    w.host = replace(w.host, domains=tuple(replace(d, memory_mib=sizes[d.name]) for d in w.host.domains))
    return w


def test_nobody_is_stopped_for_the_memory_of_a_contested_domain() -> None:
    w = large()

    async def work() -> None:
        await contest(w)
        w.apply(ev.TimerFired(w.now()))
        assert (await w.claim(1000))["code"] == "memory"
        assert w.low_runs()

    played(w, work)


def test_what_a_contested_domain_has_at_most_stays_a_fact_while_its_balloon_is_low() -> None:
    w = large()

    async def work() -> None:
        await contest(w)
        assert w.switch.interference.contested_mib("n1") == 2048
        facts = set()
        for _ in range(4):
            w.model.world.set_memory("n1", 1900)
            await asyncio.sleep(1)
            await w.switch.readings.refresh()
            assert w.has("n1") < 2048
            facts.add(w.domain("n1").unreclaimable_mib)
            await w.claims.request("n1", Report(1, SESSION, GuestMemory(2048, 10, 0, 0, 0, 2000)))
            facts.add(w.domain("n1").unreclaimable_mib)
            await asyncio.sleep(1)
        assert facts == {2048 - w.domain("n1").floor_mib}

    played(w, work)
