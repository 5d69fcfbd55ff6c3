"""A preemption that moves memory, and its end: the order of steps, the waits, and refusals by numbers.

The core, switch, mover and claims are real; guests, agents and hypervisor are fakes in virtual time (tests/fakes).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pytest

from magrathea.core import events as ev
from magrathea.core import machine, plan
from magrathea.core.caps import UNANSWERED_S
from magrathea.core.model import Domain, Host, JobClass, JobKey, Kind, MemoryShort, Mode, Stage
from magrathea.core.plan import Step
from magrathea.core.readiness import UNHEARD_S, Unready
from magrathea.core.states import published
from magrathea_lab.rigs.virtual_time import run
from node_daemon.claims.claims import Claims
from node_daemon.guest_channel.channel import AgentError, GuestChannel
from node_daemon.guest_channel.messages import Claim, ClaimedJob, GuestJob, GuestMemory, Hello, Prepared, Report
from node_daemon.hypervisor.base import Driver, Others
from node_daemon.snapshot import Beside, snapshot
from node_daemon.switch.paging import MemorySettings
from node_daemon.switch.switch import Switch
from tests.fakes.guest import SESSION, FakeGuest
from tests.fakes.hypervisor import FakeDriver, balloons, harmless

T = TypeVar("T")
LOW, HIGH = JobKey("1", 1), JobKey("9", 1)
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

    async def elsewhere(self, domain: str, key: JobKey, vnodes: list[str]) -> tuple[Unready, ...] | None:
        return self.unready if vnodes else ()

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
                wanted = job.stopped_by_us and not plan.ready(self.host, self.switch.actual(), d, job.key)
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


def test_memory_goes_over_and_comes_back_in_the_right_order() -> None:
    w = world(busy_guest())

    async def work() -> None:
        w.log.clear()
        assert (await w.claim(1000))["ok"]
        answer = await w.prepared()
        assert (answer["ok"], answer["ready"]) == (True, False), "1,192 MiB do not come at once"
        assert "waits for its memory: n1 gives" in answer["text"]
        assert "waits for its memory: n1 gives" in w.claims.waits()["p1", HIGH], "its comment says so"
        await w.until(lambda: w.has("p1") >= 1192)
        assert (await w.prepared())["ready"]
        assert w.claims.waits() == {}
        assert w.has("n1") > FLOOR_MIB + 10, "it starts with what it asked for; the rest follows"
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2 and w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        assert w.model.world.guests["n1"].swapped >= 1500
        first = {what: w.log.index(what) for what in ("stop n1", "push n1", "memory n1", "memory p1")}
        assert first["stop n1"] < min(first["push n1"], first["memory n1"])
        assert first["stop n1"] < first["memory p1"]
        w.log.clear()
        w.model.world.guests["p1"].job = 0
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        for earlier, later in (("memory p1", "memory n1"), ("memory n1", "fetch n1"), ("fetch n1", "run n1")):
            assert w.log.index(earlier) < w.log.index(later), f"{earlier} before {later}: {w.log}"
        last_memory = max(i for i, what in enumerate(w.log) if what == "memory n1")
        assert last_memory < w.log.index("run n1"), "memory first, all of it"
        assert w.model.world.guests["n1"].swapped == 0

    played(w, work)


COMING = Unready(Stage.COMING, "h2: n2 gives 10 of 900 MiB")
SILENT = Unready(Stage.UNHEARD, "p2: its host h2 says nothing to the hub")


def test_a_job_of_several_hosts_waits_for_the_others_memory_and_its_comment_shows_the_progress() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        w.unready = (COMING,)
        assert (await w.prepared())["ready"], "a job of one host asks nobody"
        answer = await w.prepared(vnodes=("p1", "p2"))
        assert (answer["ok"], answer["ready"]) == (True, False)
        assert answer["text"] == w.claims.waits()["p1", HIGH] == f"waits for its memory: {COMING.text}"
        await asyncio.sleep(2 * UNHEARD_S)
        assert not (await w.prepared(vnodes=("p1", "p2")))["ready"], "memory on its way is waited for"
        w.unready = ()
        assert (await w.prepared(vnodes=("p1", "p2"))) == {"ok": True, "ready": True}
        assert w.claims.waits() == {}

    played(w, work)


def test_memory_that_does_not_come_on_another_host_refuses_the_job_with_its_numbers() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        w.unready = (COMING, Unready(Stage.SHORT, "h3: p3 needs 1692 MiB and can have 768"))
        answer = await w.prepared(vnodes=("p1", "p2", "p3"))
        assert (answer["code"], answer["text"]) == ("memory-short", "h3: p3 needs 1692 MiB and can have 768")
        assert answer["retry_after_s"] >= 30
        assert w.refusals == [("p1", HIGH, "memory-short")], "its owner is told, too"

    played(w, work)


@pytest.mark.parametrize(("told", "code"), [(None, "hub-lost"), ((SILENT,), "domain-unknown")])
def test_unknown_parts_are_waited_for_a_while_and_then_refused(told: tuple[Unready, ...] | None, code: str) -> None:
    """A restarted hub or host is back before that; a restarted daemon counts from the beginning."""
    w = world(busy_guest())

    async def ask() -> dict[str, Any]:
        return await w.prepared(vnodes=("p1", "p2"))

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        w.unready = told
        assert (await ask())["ready"] is False
        await asyncio.sleep(UNHEARD_S - 1)
        assert (await ask())["ready"] is False
        w.unready = (COMING,)
        assert (await ask())["ready"] is False, "something is known again"
        w.unready = told
        assert (await ask())["ready"] is False
        await asyncio.sleep(UNHEARD_S - 1)
        assert (await ask())["ready"] is False
        await asyncio.sleep(2)
        answer = await ask()
        assert (answer["ok"], answer.get("code")) == (False, code)
        assert "hub" in answer["text"]

    played(w, work)


def test_the_cap_comes_when_the_memory_is_out() -> None:
    """With a tenth of a CPU it would be pushed out ten times as slowly."""
    w = world(busy_guest())

    async def work() -> None:
        w.log.clear()
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.model.world["n1"].cpu_percent is None

    played(w, work)


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


@pytest.mark.parametrize("seconds", [0.05, 0.5, UNANSWERED_S - 6])
def test_an_agent_that_is_slow_for_a_moment_does_not_bring_the_cap_early(seconds: float) -> None:
    w = world(busy_guest())

    async def work() -> None:
        slow_at_first(w, seconds)
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


def caps(w: World) -> list[str]:
    """The driver's calls for the CPU of n1."""
    return [what for what in w.log if what.startswith("cpu n1 ")]


def test_an_agent_that_is_slow_twice_does_not_bring_the_cap_early() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        slow_at_first(w, UNANSWERED_S - 4, again=(UNANSWERED_S, UNANSWERED_S + 3))
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2
        assert len(caps(w)) == 1

    played(w, work)


def test_a_domain_that_was_capped_because_its_agent_was_slow_has_its_cpu_as_soon_as_it_gives() -> None:
    w = world(busy_guest())

    async def work() -> None:
        slow_at_first(w, 60)
        assert (await w.claim(1000))["ok"]
        assert UNANSWERED_S - 1 < await w.until(lambda: w.model.world["n1"].cpu_percent == 10) < UNANSWERED_S + 2
        await w.until(lambda: w.model.world["n1"].cpu_percent is None)
        assert w.has("n1") > 1000
        assert w.model.world.guests["n1"].asked[-1] in ("push-out", "memory"), "it answers"
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


def test_a_preemption_does_not_remember_that_one_before_it_failed() -> None:
    w = world(busy_guest(actual=CAPACITY_MIB - FLOOR_MIB), FakeGuest("p1", FLOOR_MIB, used=60))

    async def work() -> None:
        slow_at_first(w, 5)
        assert (await w.claim(1000))["ok"]
        await asyncio.sleep(3)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        await asyncio.sleep(600)
        w.apply(ev.TimerFired(w.now()))
        w.log.clear()
        assert (await w.claim(1000, JobKey("10", 1)))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2
        assert len(caps(w)) == 1

    played(w, work)


def test_a_capped_domain_keeps_its_cap_while_its_agent_is_away() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        leave(w)
        w.model.world["n1"].cpu_percent = 10
        w.log.clear()
        await w.renew()
        await asyncio.sleep(3 * UNANSWERED_S)
        assert caps(w) == []

    played(w, work)


def test_the_cap_does_not_come_before_an_agent_is_back_that_its_daemon_has_just_lost() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        leave(w)
        await w.renew()
        await asyncio.sleep(UNANSWERED_S / 2)
        assert w.model.world["n1"].cpu_percent is None
        come_back(w)
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


def test_a_domain_is_capped_even_if_its_agent_stays_away() -> None:
    w = world(busy_guest(rate=100))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        leave(w)
        await w.renew()
        assert UNANSWERED_S - 1 < await w.until(lambda: w.model.world["n1"].cpu_percent == 10) < UNANSWERED_S + 6
        assert w.has("n1") > 1000, "its memory stays with it"

    played(w, work)


def test_a_capped_domain_that_is_to_give_has_its_cpu_for_it() -> None:
    """Another daemon had capped it, or it gave little before."""
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        w.model.world["n1"].cpu_percent = 10
        await w.renew()
        await w.until(lambda: w.model.world["n1"].cpu_percent is None)
        assert w.has("n1") > 1000, "from the beginning"
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        assert w.has("n1") <= FLOOR_MIB + 2

    played(w, work)


@pytest.mark.parametrize("nth", range(1, 30))
def test_a_daemon_killed_after_any_step_of_a_move_out_of_a_capped_domain_is_followed_by_one_that_continues(
    nth: int,
) -> None:
    """Lifting the cap for the move is an ordinary step of the plan."""
    w = world(busy_guest())
    steps: list[str] = []

    async def work() -> None:
        restarts: list[asyncio.Task[None]] = []

        def kill(name: str) -> None:
            steps.append(name)
            if len(steps) == nth:
                restarts.append(asyncio.get_running_loop().create_task(w.renew()))

        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1800)
        w.model.world["n1"].cpu_percent = 10
        w.log.clear()
        w.on_observe = kill
        await w.renew()
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2 and w.model.world["n1"].cpu_percent == 10)
        assert caps(w)[0] == "cpu n1 None", "lifted first"
        assert "cpu n1" in steps[: steps.index("memory n1")], "and that was a step, before the balloon took anything"
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.model.world["n1"].cpu_percent is None
        await asyncio.gather(*restarts)

    played(w, work)


def test_a_capped_domain_that_has_shown_that_it_cannot_give_keeps_its_cap() -> None:
    w = world(busy_guest(swap_mib=0), swap_mib=0)

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        await w.until(lambda: w.model.world["n1"].cpu_percent == 10)
        w.log.clear()
        await asyncio.sleep(60)
        assert caps(w) == []

    played(w, work)


def test_memory_that_an_agent_could_not_be_asked_for_moves_as_soon_as_it_is_back() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        leave(w)
        await w.renew()
        await asyncio.sleep(30)
        come_back(w)
        assert await w.until(lambda: w.has("p1") >= 1192) < 6, "1,000 MiB at 250 a second, and no pause before it"

    played(w, work)


def test_a_claim_that_waited_in_vain_for_an_agent_is_not_refused_once_it_is_back() -> None:
    w = world(busy_guest(push_rate=2000), FakeGuest("p1", 384, used=60, rate=100))  # it takes memory slowly

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        leave(w)
        await w.renew()
        await asyncio.sleep(30)
        come_back(w)
        while not (answer := await w.prepared()).get("ready"):
            assert answer["ok"], answer
            await asyncio.sleep(0.01)

    played(w, work)


def test_progress_is_published() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1500)
        beside = Beside("b", read=w.switch.readings.domains, actual=w.switch.actual(), moves=w.switch.progress.moves())
        move = {d.name: d.move for d in snapshot(w.host, beside).domains}["n1"]
        assert move is not None and move.what == "gives"
        assert 500 < move.done_mib < move.of_mib == 2048 - FLOOR_MIB

    played(w, work)


def test_a_claim_that_needs_no_memory_waits_for_none() -> None:
    w = world(busy_guest())

    async def work() -> float:
        began = asyncio.get_running_loop().time()
        assert (await w.claim(100))["ok"]
        return asyncio.get_running_loop().time() - began

    assert played(w, work) < 0.1


def test_a_hopeless_claim_is_refused_with_the_numbers_and_the_preempted_job_continues() -> None:
    w = world(busy_guest(swap_mib=0))

    async def work() -> None:
        answer = await w.claim(1500)
        if answer["ok"]:  # the prologue is told

            def told() -> bool:
                return isinstance(w.switch.progress.lack("p1"), MemoryShort)

            await w.until(told)
            answer = await w.prepared()
            w.apply(ev.Released(w.now(), "p1", HIGH))
        assert not answer["ok"] and answer["code"] == "memory-short"
        assert "1692" in answer["text"] and "n1" in answer["text"], answer
        assert answer["retry_after_s"] >= 30
        assert ("p1", HIGH, "memory-short") in w.refusals, "the job's owner is told, too"
        await w.until(w.low_runs)
        await asyncio.sleep(70)  # old enough to be stopped again
        w.apply(ev.TimerFired(w.now()))
        # the figures of the first preemption answer the next claim: nobody is stopped in vain again
        stops = w.log.count("stop n1")
        again = await w.claim(1500, JobKey("9", 2))
        assert again["code"] == "memory"
        assert w.log.count("stop n1") == stops
        assert published(w.host, w.domain("p1")).mib < 1500, "and PBS knows"
        assert (await w.claim(300, JobKey("9", 3)))["ok"], "what there is can be had"

    played(w, work)


def test_memory_that_a_guest_did_not_give_counts_until_its_jobs_end() -> None:
    w = world(busy_guest(swap_mib=0))

    async def work() -> None:
        await w.claim(1500)
        await w.until(lambda: w.domain("n1").unreclaimable_mib > 1000)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        report = Report(2, SESSION, GuestMemory(total_mib=2000, available_mib=100, unreclaimable_mib=3))
        await w.claims.request("n1", report)
        assert w.domain("n1").unreclaimable_mib > 1000
        w.apply(ev.Released(w.now(), "n1", LOW))
        await w.claims.request("n1", report)
        assert w.domain("n1").unreclaimable_mib == 16

    played(w, work)


def test_without_swap_pbs_sees_only_the_memory_that_can_move() -> None:
    """By arithmetic alone, before any attempt: its jobs' requested memory stays, except the part that its swap
    takes."""
    w = world(busy_guest(swap_mib=0), swap_mib=0, low_mib=1500)

    async def work() -> None:
        assert published(w.host, w.domain("p1")).mib == CAPACITY_MIB - 2 * FLOOR_MIB - 1500
        answer = await w.claim(1000)
        assert answer["code"] == "memory"
        assert w.low_runs()

    played(w, work)


def test_a_guest_that_gives_nothing_back_does_not_keep_the_preempted_job_waiting_for_ever() -> None:
    """p1's job is gone and p1 gives nothing back: n1 continues with its present memory, if its job asked for no
    more."""
    w = world(busy_guest(), low_mib=700)

    async def work() -> None:
        assert (await w.claim(500))["ok"]
        await w.until(lambda: w.has("p1") >= 1500)
        w.model.world.guests["p1"].used = w.has("p1") - 200
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.has("n1") >= FLOOR_MIB + 700
        assert any("p1" in note for note in w.switch.progress.notes()) or w.has("p1") > FLOOR_MIB

    played(w, work)


def test_a_claim_in_mid_return_turns_the_move_round() -> None:
    w = world(busy_guest(push_rate=100, rate=150))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(lambda: w.has("n1") > 600)
        assert not w.low_runs()
        assert (await w.claim(1000, JobKey("9", 2)))["ok"]
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        assert not w.low_runs()
        w.apply(ev.Released(w.now(), "p1", JobKey("9", 2)))
        await w.until(w.low_runs)
        assert w.model.world.guests["n1"].swapped == 0

    played(w, work)


def test_a_job_that_ends_while_it_is_pushed_out_ends_the_pushing() -> None:
    w = world(busy_guest(push_rate=20))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world.guests["n1"].swapped > 100)
        w.model.world.guests["n1"].job = w.model.world.guests["n1"].swapped = 0
        w.apply(ev.Released(w.now(), "n1", LOW))
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2)
        asked = w.model.world.guests["n1"].asked.count("push-out")
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        await asyncio.sleep(30)
        assert w.model.world.guests["n1"].asked.count("push-out") <= asked + 1

    played(w, work)


def test_a_paused_host_moves_nothing_any_more() -> None:
    w = world(busy_guest(push_rate=50))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        w.apply(ev.JobLaunched(w.now(), "p1", HIGH))
        await w.until(lambda: w.has("p1") > 500)
        w.apply(ev.PauseRequested(w.now(), "looked at"))
        await asyncio.sleep(10)
        one, other = w.has("n1"), w.has("p1")
        await asyncio.sleep(60)
        assert (w.has("n1"), w.has("p1")) == (one, other)
        w.apply(ev.PauseEnded(w.now()))
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)

    played(w, work)


def test_an_agent_lost_in_mid_move_is_waited_for_and_all_continues() -> None:
    w = world(busy_guest(push_rate=100))
    n1 = w.model.world.guests["n1"]

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") > 700)
        n1.connected = False
        w.switch.agent_lost("n1")
        w.apply(ev.AgentLost(w.now(), "n1"))
        await asyncio.sleep(10)
        answer = await w.prepared()
        assert (answer["ok"], answer["ready"]) == (True, False), "an agent that is away may come back: no refusal"
        kept = w.has("n1")
        assert n1.target == pytest.approx(kept, abs=3), "nobody presses what nobody can ask"
        come_back(w)
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)

    played(w, work)


@pytest.mark.parametrize("nth", range(1, 70))
def test_a_daemon_killed_after_any_step_is_followed_by_one_that_continues(nth: int) -> None:
    w = world(busy_guest(push_rate=400))
    seen = [0]

    async def work() -> None:
        restarts: list[asyncio.Task[None]] = []

        def kill(name: str) -> None:
            seen[0] += 1
            if seen[0] == nth:
                restarts.append(asyncio.get_running_loop().create_task(w.renew()))

        w.on_observe = kill
        w.log.clear()
        answer = await w.claim(1000)
        assert answer["ok"] or answer["code"] == "stop-timeout"
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        assert not w.low_runs()
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.model.world.guests["n1"].swapped == 0
        await asyncio.gather(*restarts)

    played(w, work)


def test_two_moves_and_back_leave_nothing_under_way() -> None:
    w = world(busy_guest())

    async def work() -> None:
        for number in (1, 2):
            key = JobKey("9", number)
            assert (await w.claim(1000, key))["ok"]
            await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
            w.apply(ev.Released(w.now(), "p1", key))
            await w.until(w.low_runs)
            await asyncio.sleep(70)
        assert w.switch.progress.moves() == {}
        assert w.switch.progress.notes() == []

    played(w, work)


def test_an_agent_that_connects_anew_while_memory_is_brought_back_does_not_let_the_job_continue_without_it() -> None:
    w = world(busy_guest(push_rate=100))
    n1 = w.model.world.guests["n1"]

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(lambda: w.has("n1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        await asyncio.sleep(0.5)
        assert n1.swapped > 200
        w.switch.agent_lost("n1")
        w.apply(ev.AgentLost(w.now(), "n1"))
        n1._hello = Hello(session="1" * 16, protocol=1, agent="model", can=["push-out", "fetch"])
        w.apply(ev.AgentConnected(w.now(), "n1"))
        w.switch.agent_connected("n1")
        left = [1]

        def void(op: str) -> None:
            if op == "fetch" and left[0]:
                left[0] = 0
                raise AgentError("superseded", "the agent has connected anew")

        n1.on_ask = void
        missing: list[float] = []
        w.on_observe = lambda name: missing.append(n1.swapped) if name in ("lift n1", "run n1") else None
        await w.until(w.low_runs)
        assert not left[0]
        assert not any(missing)

    played(w, work)


@pytest.mark.parametrize("restart", [False, True])
def test_a_guest_that_was_just_being_relieved_is_relieved_on_after_daemon_or_agent_were_away(restart: bool) -> None:
    w = world(busy_guest())
    n1 = w.model.world.guests["n1"]

    def away(op: str) -> None:
        if op == "push-out" and w.has("n1") <= FLOOR_MIB + 2:
            raise AgentError("no-agent", "n1: it has just gone")

    n1.on_ask = away

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2)
        assert n1.available < FLOOR_MIB // 2
        if restart:
            await w.renew()
        else:
            n1.connected = False
            w.switch.agent_lost("n1")
            w.apply(ev.AgentLost(w.now(), "n1"))
            await asyncio.sleep(20)
            n1.connected = True
            w.apply(ev.AgentConnected(w.now(), "n1"))
            w.switch.agent_connected("n1")
        n1.on_ask = lambda op: None
        await asyncio.sleep(30)
        assert n1.available >= FLOOR_MIB // 2
        assert w.model.world["n1"].cpu_percent == 10

    played(w, work)
