"""The real daemon puts a preempted domain to sleep whose memory is needed, and brings it back (docs/rules.md, "Giving
way to disk").

The host has 3,584 MiB for domains, their floors are 512. n1 has a job that holds 2,000 MiB, and no swap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from magrathea.control import ControlRequest
from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.model import GiveWay, JobClass, JobKey, Lifecycle, MemoryComing, MemoryShort, State
from magrathea.core.moves import Ownership
from magrathea.messages import Chunk, Outlook
from node_daemon.control_operations import Admin
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, SAVE
from node_daemon.life import life
from node_daemon.measured import Times

from .life_scene import KEY, Scene, play

JOB = KEY.id, KEY.run
HIGH = JobKey("9.srv", 1)
LOW_MIB, HIGH_MIB, FLOOR_MIB = 2_000, 1_500, 512


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RETRY_S", (0.01,))


def scene(
    test: Callable[[Scene], object],
    way: GiveWay = GiveWay.SWAP_THEN_DISK,
    prepare: Callable[[Scene], None] = lambda s: None,
) -> None:
    def prepared(s: Scene) -> None:
        n1, p1 = s.world["n1"], s.world["p1"]
        n1.actual, n1.job, p1.actual = 2_900, LOW_MIB, FLOOR_MIB
        limits = msgspec.structs.replace(s.configuration.limits, give_way=way)
        s.configuration = msgspec.structs.replace(s.configuration, limits=limits)
        prepare(s)
        s.daemon = s._daemon()

    with_memory = frozenset({CPU, LIFE, MEMORY, SAVE})
    play(test, capabilities=with_memory, lines=f"floor_mib = {FLOOR_MIB}\n", prepare=prepared)  # type: ignore[arg-type]


async def with_low(s: Scene, mib: int = LOW_MIB) -> None:
    """n1 has a job that runs, a hub answers, and the hypervisor has been asked what can be saved."""
    s.daemon.apply(ev.HubFound(s.daemon.now()))
    s.want(ev.Claimed(s.daemon.now(), "n1", KEY, JobClass.PREEMPTIBLE, 1, mib))
    s.want(ev.JobLaunched(s.daemon.now(), "n1", KEY))
    await s.until(lambda: "said yet" not in s.domain("n1").disk_obstacle, "the hypervisor is asked")


def high(s: Scene, mib: int = HIGH_MIB, key: JobKey = HIGH) -> str:
    """A priority job in p1: `accepted`, or the refusal's text."""
    said = s.daemon.apply(ev.Claimed(s.daemon.now(), "p1", key, JobClass.PRIORITY, 1, mib))
    s.daemon.apply(ev.JobLaunched(s.daemon.now(), "p1", key))
    answers = [d for d in said if isinstance(d, ev.Accepted | ev.Refused)]
    return answers[0].text if isinstance(answers[0], ev.Refused) else "accepted"


def book(s: Scene, booked: bool = True) -> None:
    s.daemon.apply(ev.BooksReported(s.daemon.now(), (ev.Booking(KEY, booked=True),) if booked else ()))


def leaves(s: Scene, to: str) -> None:
    """An admin has asked for n1's move to this host."""
    now, record = s.daemon.now(), Ownership("n1", 1, s.daemon.host.name, 1)
    s.daemon.apply_move(me.RecordsTold(now, (record,)))
    assert s.daemon.apply_move(me.MoveRequested(now, "n1", to, now + 1_000)) == (ev.Accepted("n1"),)


async def stopped(s: Scene) -> None:
    await s.until(lambda: s.world["n1"].orders.get(JOB) == "stop", "its job is stopped")


async def has_memory(s: Scene) -> None:
    await s.until(lambda: s.daemon.switch.progress.lack("p1") is None, "p1 has its memory")
    assert s.world["p1"].actual >= FLOOR_MIB + HIGH_MIB - 2 and not s.world.overbooked


async def back(s: Scene) -> None:
    """The priority job has ended: n1 comes back, and its job goes on."""
    s.want(ev.Released(s.daemon.now(), "p1", HIGH))
    await s.until(lambda: s.domain("n1").lifecycle is Lifecycle.UP, "n1 is back")
    await s.until(lambda: s.world["n1"].orders.get(JOB) in ("lift", "run"), "its job may go on")
    book(s, booked=False)
    await s.until(lambda: not s.domain("n1").stopped, "it goes on")
    assert not s.world["n1"].killed and not s.world.overbooked


def test_the_victim_sleeps_the_priority_job_has_its_memory_and_the_victim_comes_back() -> None:
    async def test(s: Scene) -> None:
        await with_low(s)
        assert high(s) == "accepted"
        await stopped(s)
        assert isinstance(s.daemon.switch.progress.lack("p1"), MemoryComing)
        assert "n1 is put to sleep for it (1.srv (run 1) is not" in s.daemon.switch.progress.how_far()
        s.world["n1"].save_s = 20.0
        book(s)
        await s.until(lambda: s.world.asked("save n1") == 1, "the save begins")
        assert isinstance(s.daemon.switch.progress.lack("p1"), MemoryComing)
        await s.until_state("n1", State.ASLEEP)
        assert isinstance(s.daemon.switch.progress.lack("p1"), MemoryComing), "it is there, but not given yet"
        await has_memory(s)
        measured = Times(Path(s.configuration.paths.state_dir)).measured()["n1"]
        assert measured.mib >= LOW_MIB and 20 <= measured.seconds < 25
        await back(s)

    scene(test)


@pytest.mark.parametrize("way", [GiveWay.DISK, GiveWay.SWAP_THEN_DISK])
def test_memory_that_turns_out_to_be_stuck_goes_to_disk_too(way: GiveWay) -> None:
    """Nobody has said how much the job holds. Its guest cannot give it."""

    async def test(s: Scene) -> None:
        await with_low(s, mib=0)
        assert high(s) == "accepted" and s.domain("n1").sleep is None
        await s.until(lambda: s.domain("n1").gives_way, "what it keeps is known")
        book(s)
        await s.until_state("n1", State.ASLEEP)
        await has_memory(s)
        await back(s)

    scene(test, way)


def test_as_shipped_the_job_is_refused_and_nobody_is_asked() -> None:
    async def test(s: Scene) -> None:
        s.daemon.apply(ev.HubFound(s.daemon.now()))
        await asyncio.sleep(100)
        assert not s.world.asked("save-needs n1")
        s.want(ev.Claimed(s.daemon.now(), "n1", KEY, JobClass.PREEMPTIBLE, 1, LOW_MIB))
        s.want(ev.JobLaunched(s.daemon.now(), "n1", KEY))
        assert "left on h1" in high(s)

    scene(test, GiveWay.SWAP)


def test_a_save_that_fails_leaves_the_domain_preempted_and_is_not_tried_again() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].fails = {"save": "failed"}

    async def test(s: Scene) -> None:
        await with_low(s)
        assert high(s) == "accepted"
        await stopped(s)
        book(s)
        await s.until(lambda: s.domain("n1").stays_awake, "the save has failed")
        lack = s.daemon.switch.progress.lack("p1")
        assert isinstance(lack, MemoryShort) and "n1 is not put to sleep for it: its save has failed" in lack.why
        await asyncio.sleep(300)
        assert s.world.asked("save n1") == 1 and s.state("n1") is State.PREEMPTED
        await back(s)
        assert "its save has failed" in high(s, key=JobKey("10.srv", 1))
        assert any("`magrathea clear n1`" in note for note in s.daemon.saves.notes())

    scene(test, prepare=prepare)


def test_a_domain_with_devices_or_without_room_for_its_image_is_not_counted_on() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].obstacle = "a PCI device is passed through"

    async def test(s: Scene) -> None:
        await with_low(s)
        assert "a PCI device is passed through" in high(s)
        s.world["n1"].obstacle, s.world.image_room_mib = "", 10
        await s.until(lambda: "10 MiB left" in s.domain("n1").disk_obstacle, "it is asked again")
        assert "10 MiB left" in high(s)
        s.world.image_room_mib = 9
        await asyncio.sleep(100)
        assert "10 MiB left" in s.domain("n1").disk_obstacle, "a disk that fills up further is no news"
        s.world.image_room_mib = 10_000
        await s.until(lambda: not s.domain("n1").disk_obstacle, "there is room now")
        assert high(s) == "accepted"

    scene(test, prepare=prepare)


@pytest.mark.parametrize("when", ["stopped", "booked", "saving", "asleep", "waking"])
def test_a_restart_of_the_daemon_at_any_moment_changes_nothing(when: str) -> None:
    async def test(s: Scene) -> None:
        async def restart_when(now: str, *, booked: bool = True) -> None:
            if now == when:
                await s.restart()
                s.daemon.apply(ev.HubFound(s.daemon.now()))
                book(s, booked)

        await with_low(s)
        assert high(s) == "accepted"
        await stopped(s)
        await restart_when("stopped", booked=False)
        s.world["n1"].save_s = 5.0
        book(s)
        await restart_when("booked")
        await s.until(lambda: s.world.asked("save n1") >= 1, "the save begins")
        await restart_when("saving")
        await s.until_state("n1", State.ASLEEP)
        await restart_when("asleep")
        await has_memory(s)
        s.world["n1"].registers = False
        s.want(ev.Released(s.daemon.now(), "p1", HIGH))
        await s.until(lambda: s.world["n1"].up, "it is restored")
        await restart_when("waking")
        s.world["n1"].registers = True
        s.world.agent("n1")
        await back(s)
        assert [job.preemptions for job in s.domain("n1").jobs] == [1]

    scene(test)


@pytest.mark.parametrize("saving", [False, True])
def test_the_priority_job_ends_while_its_victim_falls_asleep(saving: bool) -> None:
    async def test(s: Scene) -> None:
        await with_low(s)
        assert high(s) == "accepted"
        await stopped(s)
        if saving:
            s.world["n1"].save_s = 5.0
            book(s)
            await s.until(lambda: s.world.asked("save n1") == 1, "the save begins")
        await back(s)
        assert s.world.asked("save n1") == (1 if saving else 0) and s.domain("n1").sleep is None

    scene(test)


def test_the_preview_says_which_road_a_victim_goes_and_how_long_that_takes() -> None:
    async def asked(s: Scene) -> Outlook:
        request = ControlRequest(op="preview", chunks=[Chunk(1, 1, HIGH_MIB)])
        return msgspec.json.decode(await Admin(s.daemon)._preview(request), type=Outlook)

    async def test(s: Scene) -> None:
        await with_low(s)
        s.daemon.saves.took("n1", 1_000, 50.0)
        found = await asked(s)
        p1 = next(a for a in found.chunks[0].answers if a.domain == "p1")
        assert [(r.domain, r.road, r.mib, r.expected_s) for r in p1.roads] == [
            ("n1", GiveWay.DISK, FLOOR_MIB + LOW_MIB, (FLOOR_MIB + LOW_MIB) / 1_000 * 50.0)
        ]

    scene(test)


def test_nobody_counts_on_the_memory_of_a_domain_that_moves() -> None:
    async def test(s: Scene) -> None:
        await with_low(s)
        assert not s.domain("n1").disk_obstacle
        leaves(s, "h2")
        s.daemon.saves.judge_soon()
        await asyncio.sleep(120)
        assert s.domain("n1").disk_obstacle == "it is on its way to h2"
        assert "n1 is not put to sleep for it: it is on its way to h2" in high(s)
        assert s.domain("n1").sleep is None
        s.daemon.apply_move(me.MoveRequested(s.daemon.now(), "n1", "", 0.0))
        await s.until(lambda: not s.domain("n1").disk_obstacle, "the hypervisor is asked again")
        assert high(s) == "accepted"

    scene(test)
