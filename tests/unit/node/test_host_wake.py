"""Domains that come back after a planned sleep, and a sleep that begins while they do. Time is virtual."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobClass, JobKey, SleepCause, State
from node_daemon.reboot import records

from .life_scene import Scene
from .test_host_sleep import boot_id as boot_id
from .test_host_sleep import boots_anew, calls, job, play, stages, until_it_goes_on, until_over

__all__ = ["boot_id"]


async def sleeps(scene: Scene) -> None:
    await scene.daemon.host_sleep.begin(0.0)
    await until_over(scene)


async def tried(scene: Scene, name: str, times: int) -> None:
    """So often a restore of the domain has failed."""
    await scene.until(lambda: calls(scene, "boot").count(name) == times, f"{name} was tried {times} times")
    await scene.until(lambda: scene.state(name) is State.ASLEEP, f"{name} sleeps on")


def test_a_failed_restore_is_tried_again_at_a_boot_and_if_an_admin_asks_but_by_no_restart_of_the_daemon(
    boot_id: Path,
) -> None:
    async def test(scene: Scene) -> None:
        await sleeps(scene)
        scene.world["n1"].fails["boot"] = "restore-failed"
        await boots_anew(scene, boot_id)
        await tried(scene, "n1", 1)
        for _ in range(2):
            await scene.restart()
            await asyncio.sleep(60.0)
        await tried(scene, "n1", 1)
        scene.daemon.host_sleep.wake()
        await tried(scene, "n1", 2)
        await scene.restart()
        await asyncio.sleep(60.0)
        await tried(scene, "n1", 2)
        await boots_anew(scene, boot_id)
        await tried(scene, "n1", 1)
        scene.world["n1"].fails.clear()
        assert "n1 is brought back" in scene.daemon.host_sleep.wake()
        await scene.until(lambda: scene.domain("n1").sleep is None, "n1 is awake")

    play(test)


def test_a_daemon_that_dies_while_all_are_brought_back_goes_on_with_that(boot_id: Path) -> None:
    """Also in the boot in which they were put to sleep."""

    async def test(scene: Scene) -> None:
        await sleeps(scene)
        scene.daemon.host_sleep.wake()
        await scene.until(lambda: bool(calls(scene, "boot")), "the first is restored")
        await scene.restart()
        await scene.until(lambda: all(g.up for g in scene.world.guests.values()), "all are up")

    play(test)


def test_a_service_that_an_admin_has_ended_is_not_started_by_a_restart_because_a_domain_is_not_back(
    boot_id: Path,
) -> None:
    async def test(scene: Scene) -> None:
        await sleeps(scene)
        scene.world["n1"].fails["boot"] = "restore-failed"
        await boots_anew(scene, boot_id)
        await tried(scene, "n1", 1)
        await scene.until(lambda: scene.domain("p1").sleep is None and scene.domain("n2").sleep is None, "the others")
        await asyncio.sleep(60.0)
        scene.world.end("s1")
        await scene.restart()
        await asyncio.sleep(60.0)
        assert not scene.world["s1"].up

    play(test)


def test_who_waits_for_its_turn_to_come_back_sleeps_on_when_the_machine_shuts_down(boot_id: Path) -> None:
    """Its turn would come just when the others are saved."""

    async def test(scene: Scene) -> None:
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        scene.want(ev.SleepRequested(scene.daemon.now(), "n1", "new disk", SleepCause.ADMIN, 0.0))
        await scene.until_state("n1", State.ASLEEP)
        await job(scene, "p1", "2.srv", JobClass.PRIORITY)
        scene.want(ev.DefrostRequested(scene.daemon.now(), "n1", scene.daemon.now() + 60.0))
        await asyncio.sleep(10.0)
        assert scene.domain("n1").in_line_to_wake
        await sleeps(scene)
        await asyncio.sleep(60.0)
        assert scene.state("n1") is State.ASLEEP and not scene.world["n1"].up
        await boots_anew(scene, boot_id)
        await until_it_goes_on(scene, "p1")
        scene.want(ev.Released(scene.daemon.now(), "p1", JobKey("2.srv", 1)))
        await until_it_goes_on(scene, "n1")

    play(test, "unbooked_after_s = 0\n", mode="exclusive", more=())


@pytest.mark.parametrize("restarted", [False, True])
def test_who_is_just_being_restored_is_put_to_sleep_again_when_it_is_up(boot_id: Path, restarted: bool) -> None:
    async def test(scene: Scene) -> None:
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        await sleeps(scene)
        scene.world["n1"].registers = False
        scene.daemon.host_sleep.wake()
        await scene.until(lambda: scene.domain("n1").waking, "n1 is being restored")
        report = await scene.daemon.host_sleep.begin(0.0)
        assert "n1" in [one.name for one in report.sleepers]
        if restarted:
            await scene.restart()
        await asyncio.sleep(20.0)
        assert scene.domain("n1").waking and stages(scene)["n1"] not in ("asleep", "failed")
        scene.world["n1"].registers = True
        scene.world.agent("n1")
        await until_over(scene)
        assert stages(scene)["n1"] == "asleep" and scene.state("n1") is State.ASLEEP
        assert [j.key.id for j in scene.domain("n1").jobs] == ["1.srv"]
        await boots_anew(scene, boot_id)
        await until_it_goes_on(scene, "n1")

    play(test, "unbooked_after_s = 0\n")


def test_a_lost_record_is_replaced_so_that_a_failed_restore_is_not_tried_at_each_start(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        await sleeps(scene)
        (Path(scene.configuration.paths.state_dir) / records.SLEEP).unlink()
        scene.world["n1"].fails["boot"] = "restore-failed"
        await boots_anew(scene, boot_id)
        await tried(scene, "n1", 1)
        await scene.restart()
        await asyncio.sleep(60.0)
        await tried(scene, "n1", 1)

    play(test)
