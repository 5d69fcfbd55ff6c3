"""A host with memory that moves, for tests. Core, switch, mover and claims are real; guests, agents and hypervisor are
fakes in virtual time (tests/fakes)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from magrathea.core import events as ev
from magrathea.core import machine, plan
from magrathea.core.model import Domain, Host, JobClass, JobKey, Kind, Mode
from magrathea.core.plan import Step
from magrathea.core.readiness import Unready
from magrathea_lab.rigs.virtual_time import run
from node_daemon.claims.claims import Claims
from node_daemon.claims.pbs_says import PbsSays
from node_daemon.guest_channel.channel import AgentError, GuestChannel
from node_daemon.guest_channel.messages import Claim, ClaimedJob, GuestJob, Prepared
from node_daemon.hypervisor.base import Driver, Others
from node_daemon.switch.paging import MemorySettings
from node_daemon.switch.switch import Switch
from tests.fakes.guest import SESSION, FakeGuest
from tests.fakes.hypervisor import FakeDriver, balloons, harmless

T = TypeVar("T")
LOW, HIGH = JobKey("1.srv", 1), JobKey("9.srv", 1)
CAPACITY_MIB = 2560
FLOOR_MIB = 192


class World:
    """The daemon's facts, a hub that books the jobs to be stopped, and the switch under test."""

    def __init__(self, driver: FakeDriver, swap_mib: int, low_mib: int, mode: Mode = Mode.EXCLUSIVE) -> None:
        self.driver: Driver = driver
        self.model = driver
        self.log = driver.world.calls
        self.memory_settings = MemorySettings(time_limit_s=120)
        kinds = {"n1": Kind.NORMAL, "p1": Kind.PRIORITY}
        domains = tuple(
            Domain(n, kinds[n], 4, floor_mib=FLOOR_MIB, swap_mib=swap_mib if n == "n1" else 0)
            for n in sorted(driver.world.guests)
        )
        self.host = Host("h1", mode, 4, driver.world.capacity_mib, domains)
        self.on_observe: Callable[[str], None] = lambda name: None
        self.channels = cast("dict[str, GuestChannel]", driver.world.guests)
        self.switch = Switch(self, driver, self.channels, self.observe)
        self.claims = Claims(self)
        self.low_mib = low_mib
        self.hub: asyncio.Task[None] | None = None
        self.refusals: list[tuple[str, JobKey, str]] = []
        self.pushed: list[tuple[str, int, float]] = []
        self.unready: tuple[Unready, ...] | None = ()
        """What hubs know of the job's other hosts."""

    def observe(self, name: str) -> None:
        self.log.append(name)
        self.on_observe(name)

    def now(self) -> float:
        return 1000.0 + asyncio.get_running_loop().time()

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        self.host, decisions = machine.handle(self.host, event)
        for decision in decisions:
            if isinstance(decision, ev.Noted) and decision.key and decision.what in ("released", "continued"):
                self.switch.forget(decision.domain, decision.key)
        self.switch.look_soon()
        return decisions

    async def parts_elsewhere(self, domain: str, key: JobKey, vnodes: list[str]) -> tuple[Unready, ...] | None:
        return self.unready if vnodes else ()

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        return PbsSays(True)

    def actual_changed(self) -> None:
        return

    def refused(self, domain: str, key: JobKey, code: str, text: str) -> None:
        self.refusals.append((domain, key, code))

    def driver_read(self, others: Others) -> None:
        return

    def driver_lost(self, why: str) -> None:
        return

    def step_begins(self, step: Step) -> None:
        return

    def step_done(self, step: Step) -> None:
        return

    def life_rests(self, name: str) -> bool:
        return False

    def pushed_out(self, domain: str, mib: int, seconds: float) -> None:
        self.pushed.append((domain, mib, seconds))

    async def start(self) -> None:
        """Both domains are up and connected, the hub is there, and n1 has an old preemptible job."""
        self.apply(ev.HubFound(self.now()))
        for name in self.model.world.guests:
            self.apply(ev.DomainStarted(self.now(), name))
            self.apply(ev.AgentConnected(self.now(), name))
        low = ev.Claimed(self.now(), "n1", LOW, JobClass.PREEMPTIBLE, 1, self.low_mib)
        assert isinstance(self.apply(low)[-1], ev.Accepted)
        self.apply(ev.JobLaunched(self.now(), "n1", LOW))
        await asyncio.sleep(20)
        self.apply(ev.TimerFired(self.now()))
        await self.renew()
        self.hub = asyncio.get_running_loop().create_task(self._book())

    async def renew(self) -> None:
        """Kill the daemon, and start another with its facts."""
        await self.switch.close()
        self.switch = Switch(self, self.driver, self.channels, self.observe)
        self.claims = Claims(self)
        await self.switch.readings.refresh()
        for name, guest in self.model.world.guests.items():
            if guest.connected:
                self.switch.agent_connected(name)

    async def _book(self) -> None:
        """Act as the hub: book a job as soon as it must be stopped, withdraw that when the host is ready."""
        while True:
            await asyncio.sleep(0.05)
            books = []
            for job in (d := self.domain("n1")).jobs:
                wanted = job.stopped_by_us and (d.name, job.key) not in plan.ready(self.host, self.switch.actual())
                books.append(ev.Booking(job.key, booked=wanted))
            if books and {b.key for b in books if b.booked} != {j.key for j in d.jobs if j.booked}:
                self.apply(ev.BooksReported(self.now(), tuple(books)))

    def domain(self, name: str) -> Domain:
        found = self.host.domain(name)
        assert found is not None
        return found

    async def claim(self, mib: int, key: JobKey = HIGH) -> dict[str, Any]:
        job = ClaimedJob(key.id, key.run, JobClass.PRIORITY, 1, mib, True)
        return await self.claims.request("p1", Claim(1, SESSION, job))

    async def prepared(self, key: JobKey = HIGH, vnodes: tuple[str, ...] = ()) -> dict[str, Any]:
        return await self.claims.request("p1", Prepared(1, SESSION, GuestJob(key.id, key.run), list(vnodes)))

    async def until(self, condition: Callable[[], bool], seconds: float = 500) -> float:
        """Wait until the condition is true; return the virtual seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not condition():
            assert loop.time() - began < seconds, f"never: {self.host} {self.switch.steps()} {self.log[-20:]}"
            await asyncio.sleep(0.02)
        return loop.time() - began

    def has(self, name: str) -> int:
        return int(self.model.world.guests[name].actual)

    def low_runs(self) -> bool:
        job = self.domain("n1").job(LOW)
        return job is not None and not job.stopped_by_us and not self.model.world.guests["n1"].stopped


def world(n1: FakeGuest, p1: FakeGuest | None = None, swap_mib: int = 4096, low_mib: int = 0) -> World:
    driver = balloons(CAPACITY_MIB, n1, p1 or FakeGuest("p1", 384, used=60))
    for guest in driver.world.guests.values():

        def note(op: str, name: str = guest.name) -> None:
            driver.world.calls.append(f"{op} to {name}")

        guest.on_ask = note
    n1.stopped = False
    return World(driver, swap_mib, low_mib)


def played(w: World, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def whole() -> T:
        await w.start()
        result = await work()
        await w.switch.close()
        return result

    with harmless(w.model.world):
        return run(whole())


def busy_guest(**changes: Any) -> FakeGuest:
    return FakeGuest("n1", **{"actual": 2048, "used": 60, "job": 1700, "swap_mib": 4096, "push_rate": 250, **changes})


def leave(w: World) -> None:
    """n1's agent goes away, and the facts have that."""
    w.model.world.guests["n1"].connected = False
    w.apply(ev.AgentLost(w.now(), "n1"))


def come_back(w: World) -> None:
    w.model.world.guests["n1"].connected = True
    w.apply(ev.AgentConnected(w.now(), "n1"))
    w.switch.agent_connected("n1")


def slow_at_first(w: World, seconds: float, again: tuple[float, float] = (0, 0)) -> None:
    """n1's agent answers no question about memory for this time, nor in the seconds `again`."""
    began = asyncio.get_running_loop().time()

    def slow(op: str) -> None:
        now = asyncio.get_running_loop().time() - began
        if op == "memory" and (now < seconds or again[0] < now < again[1]):
            raise AgentError("timeout", "no answer")

    w.model.world.guests["n1"].on_ask = slow


def caps(w: World) -> list[str]:
    """The driver's calls for the CPU of n1."""
    return [what for what in w.log if what.startswith("cpu n1 ")]
