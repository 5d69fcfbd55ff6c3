"""The real daemon puts domains of a hypervisor in memory to sleep with their jobs, and brings them back."""

from __future__ import annotations

import asyncio

import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobClass, JobKey, Lifecycle, SleepCause, State
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, SAVE
from node_daemon.life import life

from .life_scene import KEY, Scene, play

JOB = KEY.id, KEY.run


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RETRY_S", (0.01,))


def sleep(s: Scene, name: str) -> None:
    s.want(ev.SleepRequested(s.daemon.now(), name, "new memory", SleepCause.ADMIN))


async def with_job(s: Scene, name: str, cls: JobClass = JobClass.PROTECTED) -> None:
    """A hub answers, and the domain has a job that runs."""
    s.daemon.apply(ev.HubFound(s.daemon.now()))
    await s.job(name, cls)
    s.want(ev.JobLaunched(s.daemon.now(), name, KEY))
    assert s.domain(name).jobs[0].confirmed


def book(s: Scene, booked: bool = True) -> None:
    s.daemon.apply(ev.BooksReported(s.daemon.now(), (ev.Booking(KEY, booked=True),) if booked else ()))


async def asleep(s: Scene, name: str) -> None:
    await with_job(s, name)
    sleep(s, name)
    await s.until(lambda: s.world[name].orders.get(JOB) == "stop", "its job is stopped")
    book(s)
    await s.until_state(name, State.ASLEEP)


@pytest.mark.long
def test_a_domain_is_saved_when_its_jobs_are_stopped_and_booked_and_comes_back_with_them() -> None:
    async def test(s: Scene) -> None:
        await with_job(s, "n1")
        sleep(s, "n1")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "stop", "its job is stopped")
        await asyncio.sleep(5)
        assert s.state("n1") is State.DRAINING and not s.world.asked("save n1"), "PBS does not know yet"
        assert "not suspended in PBS" in s.why("n1")
        book(s)
        await s.until_state("n1", State.ASLEEP)
        assert not s.world["n1"].up and s.world["n1"].saved
        assert [job.key for job in s.domain("n1").jobs] == [KEY]
        assert "new memory" in s.why("n1") and "magrathea domain defrost n1" in s.why("n1")

        await asyncio.sleep(86400)
        assert s.state("n1") is State.ASLEEP and s.domain("n1").jobs[0].stopped_by_us
        s.world["n1"].orders.clear()
        s.defrost("n1")
        await s.until(lambda: s.domain("n1").lifecycle is Lifecycle.UP, "it is back")
        order = [s.world.calls.index(call) for call in ("save n1", "image-fault n1", "boot n1", "clock n1")]
        assert order == sorted(order)
        await s.until(lambda: s.world.asked("reconnect n1") == 1, "MoM connects again")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "lift", "PBS may resume its job")
        book(s, booked=False)
        await s.until_state("n1", State.RUNNING)
        assert s.domain("n1").jobs[0].preemptions == 1

    play(test)


@pytest.mark.parametrize("fails", [{}, {"cpu": "failed"}])
def test_a_cap_that_the_image_has_kept_is_lifted_before_the_agent_has_to_answer(fails: dict[str, str]) -> None:
    async def test(s: Scene) -> None:
        await asleep(s, "n1")
        s.world["n1"].cpu_percent, s.world["n1"].fails = 10, fails
        before = len(s.world.calls)
        s.defrost("n1")
        await s.until(lambda: s.domain("n1").lifecycle is Lifecycle.UP, "it is back, even if the cap stays")
        calls = s.world.calls[before:]
        order = [calls.index(call) for call in ("boot n1", "cpu n1 None", "clock n1")]
        assert order == sorted(order)
        s.world["n1"].fails = {}
        await s.until(lambda: s.world["n1"].cpu_percent is None, "no cap")

    play(test)


def test_a_save_that_fails_leaves_the_domain_up_and_its_jobs_go_on() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].fails = {"save": "failed"}

    async def test(s: Scene) -> None:
        await with_job(s, "n1")
        sleep(s, "n1")
        book(s)
        await s.until(lambda: s.world.asked("save n1") == 1, "the save")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "lift", "PBS may resume its job")
        book(s, booked=False)
        await s.until_state("n1", State.RUNNING)
        assert s.world.asked("save n1") == 1 and s.domain("n1").sleep is None

    play(test, prepare=prepare)


def test_a_disk_that_fills_up_before_the_save_is_noticed_before_it() -> None:
    async def test(s: Scene) -> None:
        await with_job(s, "n1")
        sleep(s, "n1")
        s.world.image_room_mib = 1
        book(s)
        await s.until(lambda: s.world.asked("save-needs n1") == 1, "the look at the disk")
        await s.until(lambda: s.domain("n1").sleep is None, "given up")
        assert not s.world.asked("save n1")
        book(s, booked=False)
        await s.until_state("n1", State.RUNNING)

    play(test)


def test_a_sleep_is_given_up_before_the_save_and_the_jobs_go_on() -> None:
    async def test(s: Scene) -> None:
        await with_job(s, "n1")
        sleep(s, "n1")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "stop", "its job is stopped")
        s.want(ev.DrainEnded(s.daemon.now(), "n1"))
        await s.until_state("n1", State.RUNNING)
        assert not s.world.asked("save n1")

    play(test)


def test_an_image_that_is_gone_releases_the_jobs_and_is_reported() -> None:
    async def test(s: Scene) -> None:
        await asleep(s, "n1")
        s.world["n1"].saved = False
        s.world.tell("n1")
        await s.until_state("n1", State.DOWN)
        assert not s.domain("n1").jobs and "image" in s.why("n1")

    play(test)


def test_a_damaged_image_is_not_started_from_and_the_jobs_stay() -> None:
    async def test(s: Scene) -> None:
        await asleep(s, "n1")
        s.world["n1"].image_fault = "failed to read qemu header"
        s.defrost("n1")
        await s.until(lambda: "failed to read qemu header" in s.why("n1"), "it is said")
        assert s.state("n1") is State.ASLEEP and not s.world.asked("boot n1")
        assert [job.key for job in s.domain("n1").jobs] == [KEY], "somebody may still mend the image"
        await asyncio.sleep(600)
        assert s.state("n1") is State.ASLEEP, "it is not tried for ever"

    play(test)


@pytest.mark.parametrize("when", ["stopping", "booked", "asleep", "waking"])
def test_a_restart_of_the_daemon_changes_nothing(when: str) -> None:
    async def test(s: Scene) -> None:
        async def restart_when(now: str) -> None:
            if now == when:
                await s.restart()
                s.daemon.apply(ev.HubFound(s.daemon.now()))

        await with_job(s, "n1")
        sleep(s, "n1")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "stop", "its job is stopped")
        await restart_when("stopping")
        book(s)
        await restart_when("booked")
        book(s)
        await s.until_state("n1", State.ASLEEP)
        await restart_when("asleep")
        book(s)
        s.world["n1"].registers = False
        s.defrost("n1")
        await s.until(lambda: s.world["n1"].up, "it is restored")
        await restart_when("waking")
        book(s)
        s.world["n1"].registers = True
        s.world.agent("n1")
        await s.until(lambda: s.domain("n1").lifecycle is Lifecycle.UP, "it is back")
        assert [job.key for job in s.domain("n1").jobs] == [KEY]
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "lift", "PBS may resume its job")
        assert s.world.asked("save n1") == 1

    play(test)


def test_a_job_that_pbs_may_just_be_continuing_is_not_saved_before_the_hub_has_had_time_to_say_so() -> None:
    """Its booking is older than the permission to continue it. PBS would have it running in a machine that is away."""

    async def test(s: Scene) -> None:
        await asleep(s, "n1")
        s.defrost("n1")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "lift", "PBS may resume its job")
        s.world["n1"].order_s = 0.5
        sleep(s, "n1")
        await asyncio.sleep(1.0)
        assert s.world["n1"].orders.get(JOB) == "stop" and s.world.asked("save n1") == 1
        book(s, booked=False)
        await asyncio.sleep(60.0)
        assert s.world.asked("save n1") == 1, "PBS had continued it"
        book(s)
        await s.until_state("n1", State.ASLEEP)
        s.defrost("n1")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "lift", "PBS may resume its job")
        sleep(s, "n1")
        await s.until_state("n1", State.ASLEEP)

    play(test)


def test_what_changes_while_room_is_looked_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(s: Scene) -> None:
        async def refusal(name: str) -> None:
            await asyncio.sleep(0.5)

        monkeypatch.setattr(s.daemon.saves, "refusal", refusal)
        await with_job(s, "n1")
        sleep(s, "n1")
        await s.until(lambda: s.world["n1"].orders.get(JOB) == "stop", "its job is stopped")
        book(s)
        await asyncio.sleep(0.2)
        book(s, booked=False)
        await asyncio.sleep(60.0)
        assert s.world.asked("save n1") == 0 and s.world["n1"].up

    play(test)


def test_a_sleeper_that_was_started_while_the_daemon_was_down_gets_the_right_time_first() -> None:
    """As libvirt-guests may do at a boot of the machine. Its clock and MoM's connections are from before the sleep."""

    async def test(s: Scene) -> None:
        await asleep(s, "n1")
        await s.daemon.close()
        s.world.start("n1")
        s.daemon = s._daemon()
        await s.daemon.start()
        await s.until(lambda: s.domain("n1").sleep is None, "it is awake")
        assert [s.world.asked(f"{what} n1") for what in ("clock", "reconnect")] == [1, 1]
        assert [job.key for job in s.domain("n1").jobs] == [KEY]

    play(test)


def test_a_frozen_domain_that_was_started_while_the_daemon_was_down_gets_the_right_time_first() -> None:
    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)
        await s.daemon.close()
        s.world.start("p1")
        s.daemon = s._daemon()
        await s.daemon.start()
        await s.until_state("p1", State.FREE)
        assert [s.world.asked(f"{what} p1") for what in ("clock", "reconnect")] == [1, 1]

    play(test)


def test_a_sleeper_comes_back_only_when_idle_domains_have_given_up_what_it_needs() -> None:
    """An idle domain keeps its memory until somebody needs it. The restore itself needs it, before any job goes on."""

    def prepare(s: Scene) -> None:
        for guest in s.world.guests.values():
            guest.most, guest.actual = 3500, 512
        s.world["n1"].actual, s.world["n1"].used = 2000, 1400  # what its job has locked up, without any swap
        s.world["p1"].rate = 100

    async def test(s: Scene) -> None:
        s.daemon.apply(ev.HubFound(s.daemon.now()))
        s.want(ev.Claimed(s.daemon.now(), "n1", KEY, JobClass.PROTECTED, 1, 1200))
        s.want(ev.JobLaunched(s.daemon.now(), "n1", KEY))
        sleep(s, "n1")
        book(s)
        await s.until_state("n1", State.ASLEEP)
        slept_with = s.world["n1"].actual
        assert slept_with >= 1400
        high = JobKey("9.srv", 1)
        s.want(ev.Claimed(s.daemon.now(), "p1", high, JobClass.PRIORITY, 1, 100))
        await s.until(lambda: s.world["p1"].actual > 3000, "p1 gets all that is left")
        s.want(ev.Released(s.daemon.now(), "p1", high))
        await asyncio.sleep(60)
        assert s.world["p1"].actual > 3000, "it keeps that while nobody needs it"
        s.defrost("n1")
        await s.until(lambda: s.world["n1"].up, "n1 is restored")
        assert s.world["p1"].actual + slept_with <= 4096
        await s.until(lambda: s.domain("n1").lifecycle is Lifecycle.UP, "n1 is back")

    with_memory = frozenset({CPU, LIFE, MEMORY, SAVE})
    play(test, capabilities=with_memory, lines="floor_mib = 512\nmemory_mib = 3500\n", prepare=prepare)


def test_a_sleeper_that_finds_no_memory_sleeps_on() -> None:
    def prepare(s: Scene) -> None:
        for guest in s.world.guests.values():
            guest.most, guest.actual = 3500, 512
        s.world["n1"].actual, s.world["n1"].used = 2000, 1400

    async def test(s: Scene) -> None:
        s.daemon.apply(ev.HubFound(s.daemon.now()))
        s.want(ev.Claimed(s.daemon.now(), "n1", KEY, JobClass.PROTECTED, 1, 1200))
        s.want(ev.JobLaunched(s.daemon.now(), "n1", KEY))
        sleep(s, "n1")
        book(s)
        await s.until_state("n1", State.ASLEEP)
        s.world["p1"].actual, s.world["p1"].used = 3400, 3300  # nothing takes it away
        s.world.tell("p1")
        await asyncio.sleep(20)
        s.defrost("n1", within_s=30)
        await asyncio.sleep(120)
        assert s.state("n1") is State.ASLEEP and not s.world["n1"].up and not s.world.asked("boot n1")

    with_memory = frozenset({CPU, LIFE, MEMORY, SAVE})
    play(test, capabilities=with_memory, lines="floor_mib = 512\nmemory_mib = 3500\n", prepare=prepare)
