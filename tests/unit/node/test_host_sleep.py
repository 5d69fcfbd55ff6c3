"""A planned sleep of the whole host under the real daemon: order, time, and what comes back. Time is virtual."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from magrathea import client
from magrathea.control import Denied
from magrathea.core import events as ev
from magrathea.core.model import JobClass, JobKey, SleepCause, State
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.host_sleep import SleepStage
from node_daemon.hypervisor.base import MEMORY, SAVE
from node_daemon.measured import SAVES, Times
from node_daemon.reboot import records

from . import life_scene
from .life_scene import Scene

SHUTDOWN = '[shutdown]\ndomains = "sleep"\nservices = "sleep"\n'


@pytest.fixture(autouse=True)
def boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that has the boot id of this machine."""
    file = tmp_path / "boot_id"
    file.write_text("boot-1\n")
    monkeypatch.setattr(records, "BOOT_ID", file)
    return file


def play(
    test: Callable[[Scene], Awaitable[None]],
    shutdown: str = "",
    *,
    mode: str = "counted",
    more: tuple[tuple[str, str], ...] = (("n2", "normal"), ("s1", "service")),
) -> None:
    life_scene.play(test, mode=mode, host='driver = "libvirt"', tables=SHUTDOWN + shutdown, more=more)


async def job(scene: Scene, domain: str, id: str, cls: JobClass) -> None:
    """A job that has run for a minute."""
    key = JobKey(id, 1)
    scene.want(ev.Claimed(scene.daemon.now(), domain, key, cls, 1))
    scene.want(ev.JobLaunched(scene.daemon.now(), domain, key))
    await asyncio.sleep(60.0)


def stages(scene: Scene) -> dict[str, str]:
    return {one.name: one.stage.value for one in scene.daemon.host_sleep.report().sleepers}


async def until_over(scene: Scene) -> None:
    await scene.until(lambda: not scene.daemon.host_sleep.report().going_on, "the host's sleep is over")


async def until_it_goes_on(scene: Scene, name: str) -> None:
    def goes_on() -> bool:
        return scene.domain(name).sleep is None and not scene.domain(name).stopped

    await scene.until(goes_on, f"{name} is awake and its job goes on")


def calls(scene: Scene, what: str) -> list[str]:
    return [call.partition(" ")[2] for call in scene.world.calls if call.startswith(f"{what} ")]


async def boots_anew(scene: Scene, boot_id: Path) -> None:
    """The machine boots: what was up and not saved is down. A hub is there."""
    await scene.daemon.close()
    for guest in scene.world.guests.values():
        if guest.up:
            scene.world.end(guest.name)
    boot_id.write_text(f"{boot_id.read_text().strip()}+1\n")
    scene.world.calls.clear()
    scene.daemon = scene._daemon()
    await scene.daemon.start()
    scene.daemon.apply(ev.HubFound(scene.daemon.now()))


def test_all_are_stopped_at_once_and_saved_one_after_the_other_in_the_order_of_the_plan() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "p1", "1.srv", JobClass.PRIORITY)
        await job(scene, "n1", "2.srv", JobClass.PREEMPTIBLE)
        for guest in scene.world.guests.values():
            guest.save_s = 20.0
        began = scene.daemon.now()
        report = await scene.daemon.host_sleep.begin(0.0)
        assert report.going_on and [one.name for one in report.sleepers] == ["n1", "p1", "n2", "s1"]
        assert all(scene.domain(name).falls_asleep for name in ("n1", "n2", "p1"))
        await until_over(scene)
        assert calls(scene, "save") == ["n1", "p1", "n2", "s1"]
        assert set(stages(scene).values()) == {"asleep"}
        assert scene.daemon.now() - began >= 80.0, "one after the other"
        assert all(scene.state(name) is State.ASLEEP for name in ("n1", "n2", "p1"))
        assert [j.key.id for j in scene.domain("p1").jobs] == ["1.srv"]

    play(test, "unbooked_after_s = 0\n")


def test_a_claim_after_the_shutdown_has_begun_is_refused() -> None:
    async def test(scene: Scene) -> None:
        scene.world["n1"].save_s = 20.0
        await scene.daemon.host_sleep.begin(0.0)
        claim = ev.Claimed(scene.daemon.now(), "p1", JobKey("9.srv", 1), JobClass.PRIORITY, 1)
        assert [type(d) for d in scene.daemon.apply(claim)] == [ev.Refused]

    play(test)


def test_as_many_are_saved_at_once_as_configured() -> None:
    async def test(scene: Scene) -> None:
        for guest in scene.world.guests.values():
            guest.save_s = 20.0
        await scene.daemon.host_sleep.begin(0.0)
        await scene.until(lambda: len(calls(scene, "save")) == 2, "two saves have begun")
        await asyncio.sleep(10.0)
        assert len(calls(scene, "save")) == 2
        await until_over(scene)

    play(test, "at_once = 2\n")


def test_without_a_hub_the_saves_wait_for_one_and_then_begin() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        began = scene.daemon.now()
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        assert scene.state("n1") is State.ASLEEP and scene.daemon.now() - began >= 45.0

    play(test, "unbooked_after_s = 45\n")


@pytest.mark.long
def test_when_the_time_is_over_no_save_begins_and_who_waits_stays_awake() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        await job(scene, "p1", "2.srv", JobClass.PRIORITY)
        scene.world["n1"].save_s = 90.0
        await scene.daemon.host_sleep.begin(60.0)
        await until_over(scene)
        assert stages(scene) == {"n1": "asleep", "p1": "left", "n2": "left", "s1": "left"}
        assert calls(scene, "save") == ["n1"]
        await until_it_goes_on(scene, "p1")

    play(test, "unbooked_after_s = 0\n")


def test_what_does_not_fit_is_left_before_it_begins() -> None:
    async def test(scene: Scene) -> None:
        times = {name: {"mib": 1024, "seconds": 10.0} for name in ("n2", "p1", "s1")}
        times["n1"] = {"mib": 1, "seconds": 40.0}
        state = Path(scene.configuration.paths.state_dir)
        (state / SAVES).write_text(json.dumps(times))
        scene.world.capabilities |= {MEMORY}
        await scene.daemon.switch.readings.refresh()
        await job(scene, "p1", "1.srv", JobClass.PRIORITY)
        plan = scene.daemon.host_sleep.plan(85.0)
        assert not plan.going_on
        asked = {one.name: one.stage for one in plan.sleepers}
        assert (asked["p1"], asked["s1"], asked["n1"]) == (SleepStage.AWAKE, SleepStage.AWAKE, SleepStage.LEFT), plan

    play(test)


def test_after_a_boot_all_come_back_services_first_and_in_the_reverse_order(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "p1", "1.srv", JobClass.PRIORITY)
        await job(scene, "n1", "2.srv", JobClass.PREEMPTIBLE)
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        await boots_anew(scene, boot_id)
        await scene.until(lambda: all(g.up for g in scene.world.guests.values()), "all are up")
        assert calls(scene, "boot") == ["s1", "p1", "n1", "n2"]
        for name, id in (("p1", "1.srv"), ("n1", "2.srv")):
            await until_it_goes_on(scene, name)
            assert [j.key.id for j in scene.domain(name).jobs] == [id]
        await scene.until(lambda: not (Path(scene.configuration.paths.state_dir) / records.SLEEP).exists(), "forgotten")

    play(test)


def test_on_an_exclusive_host_the_preempted_one_comes_back_when_the_other_is_through(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        await job(scene, "p1", "2.srv", JobClass.PRIORITY)
        assert scene.state("n1") is State.PREEMPTED
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        await boots_anew(scene, boot_id)
        await scene.until_state("p1", State.RUNNING_PRIORITY)
        await asyncio.sleep(60.0)
        assert scene.state("n1") is State.ASLEEP and not scene.world["n1"].up
        scene.want(ev.Released(scene.daemon.now(), "p1", JobKey("2.srv", 1)))
        await until_it_goes_on(scene, "n1")

    play(test, mode="exclusive", more=())


def test_a_restart_of_the_daemon_alone_wakes_nobody_and_a_wake_does(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        await scene.restart()
        await asyncio.sleep(60.0)
        assert scene.state("n1") is State.ASLEEP and calls(scene, "boot") == []
        assert scene.daemon.host_sleep.wake() == [f"{name} is brought back" for name in ("s1", "p1", "n2", "n1")]
        await scene.until(lambda: all(g.up for g in scene.world.guests.values()), "all are up")

    play(test)


def test_a_daemon_that_dies_meanwhile_goes_on_with_the_sleep() -> None:
    async def test(scene: Scene) -> None:
        for guest in scene.world.guests.values():
            guest.save_s = 20.0
        await scene.daemon.host_sleep.begin(0.0)
        await scene.until(lambda: "asleep" in stages(scene).values(), "the first sleeps")
        await scene.restart()
        await until_over(scene)
        assert set(stages(scene).values()) == {"asleep"}, scene.daemon.host_sleep.report()
        assert not any(g.up for g in scene.world.guests.values())

    play(test)


def test_who_was_put_to_sleep_by_an_admin_stays_asleep_after_a_boot(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        scene.want(ev.SleepRequested(scene.daemon.now(), "n2", "new disk", SleepCause.ADMIN, 0.0))
        await scene.until_state("n2", State.ASLEEP)
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        await boots_anew(scene, boot_id)
        await scene.until(lambda: scene.world["n1"].up and scene.world["p1"].up, "the others are back")
        await asyncio.sleep(60.0)
        assert scene.state("n2") is State.ASLEEP and not scene.world["n2"].up

    play(test)


def test_a_service_that_does_not_come_back_keeps_nobody_else_and_is_noted(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        scene.world["s1"].fails["boot"] = "restore-failed"
        await boots_anew(scene, boot_id)
        await scene.until(lambda: scene.world["n1"].up, "n1 is back")
        assert any("service s1" in note for note in scene.daemon.host_sleep.notes())
        scene.world["s1"].fails.clear()
        await scene.until(lambda: scene.domain("n2").sleep is None, "all domains are back")
        scene.daemon.host_sleep.wake()
        await scene.until(lambda: scene.world["s1"].up and not scene.daemon.host_sleep.notes(), "s1 is back")

    play(test)


def test_a_domain_that_cannot_be_saved_is_told_and_keeps_nobody_else() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        scene.world["n1"].fails["save"] = "failed"
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        assert stages(scene) == {"n1": "failed", "p1": "asleep", "n2": "asleep", "s1": "asleep"}
        await until_it_goes_on(scene, "n1")

    play(test, "unbooked_after_s = 0\n")


def test_a_domain_whose_image_has_no_room_is_not_even_stopped() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        scene.world.image_room_mib = 10
        report = await scene.daemon.host_sleep.begin(0.0)
        failed = [one for one in report.sleepers if one.stage is SleepStage.FAILED]
        assert [one.name for one in failed] == ["n1", "n2", "p1"] and "10 MiB left" in failed[0].text
        assert not scene.domain("n1").stopped and scene.domain("n1").sleep is None
        await until_over(scene)

    play(test)


def test_a_wake_in_the_midst_gives_the_sleep_up() -> None:
    async def test(scene: Scene) -> None:
        scene.world["n1"].save_s = 30.0
        await job(scene, "p1", "1.srv", JobClass.PRIORITY)
        await scene.daemon.host_sleep.begin(0.0)
        await asyncio.sleep(1.0)
        said = scene.daemon.host_sleep.wake()
        assert "p1 stays awake" in said
        await until_it_goes_on(scene, "p1")
        await asyncio.sleep(120.0)
        assert all(g.up for g in scene.world.guests.values())

    play(test)


def test_how_long_saves_take_is_kept_for_the_next_plan() -> None:
    async def test(scene: Scene) -> None:
        scene.world.capabilities |= {MEMORY}
        await scene.daemon.switch.readings.refresh()
        scene.world["n1"].save_s = 25.0
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        measured = Times(Path(scene.configuration.paths.state_dir)).measured()["n1"]
        assert 25.0 <= measured.seconds < 27.0 and measured.mib > 0

    play(test)


def test_a_paused_host_and_one_that_cannot_save_refuse() -> None:
    async def test(scene: Scene) -> None:
        scene.daemon.apply(ev.PauseRequested(scene.daemon.now(), "a look"))
        with pytest.raises(Denied) as caught:
            await scene.daemon.host_sleep.begin(0.0)
        assert caught.value.code == RefusalCode.PAUSED
        scene.world.capabilities -= {SAVE}
        with pytest.raises(Denied) as caught:
            await scene.daemon.host_sleep.begin(0.0)
        assert caught.value.code == RefusalCode.NOT_SUPPORTED

    play(test)


def test_a_damaged_record_counts_as_absent_and_what_sleeps_since_a_shutdown_comes_back(boot_id: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        (Path(scene.configuration.paths.state_dir) / records.SLEEP).write_bytes(b"\x00 no json")
        await boots_anew(scene, boot_id)
        await scene.until(lambda: all(scene.world[name].up for name in ("n1", "n2", "p1")), "the domains are back")
        assert not scene.world["s1"].up, "nobody knows that it was put to sleep"

    play(test)


def test_a_record_that_cannot_be_removed_ends_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / records.SLEEP).mkdir()
    records.Records(tmp_path).forget()
    assert "cannot be removed" in caplog.text


def test_a_service_that_sleeps_already_comes_back_after_a_second_sleep_and_a_boot(boot_id: Path) -> None:
    """`magrathea host sleep && systemctl reboot`: at the shutdown the unit asks once more."""

    async def test(scene: Scene) -> None:
        for _ in range(2):
            await scene.daemon.host_sleep.begin(0.0)
            await until_over(scene)
        assert not any(g.up for g in scene.world.guests.values())
        await boots_anew(scene, boot_id)
        await scene.until(lambda: all(g.up for g in scene.world.guests.values()), "all are back")
        assert calls(scene, "boot")[0] == "s1"

    play(test)


def test_a_service_that_is_just_being_saved_comes_back_if_the_host_is_woken() -> None:
    async def test(scene: Scene) -> None:
        scene.world["s1"].save_s = 20.0
        await scene.daemon.host_sleep.begin(0.0)
        await scene.until(lambda: calls(scene, "save")[-1:] == ["s1"], "s1 is being saved")
        for _ in range(2):
            scene.daemon.host_sleep.wake()
            await asyncio.sleep(1.0)
        await asyncio.sleep(30.0)
        await scene.until(lambda: all(g.up for g in scene.world.guests.values()), "all are up")

    play(test)


def test_the_record_of_an_earlier_sleep_ends_no_sleep_of_an_admin_when_the_daemon_starts() -> None:
    async def test(scene: Scene) -> None:
        await scene.daemon.host_sleep.begin(0.0)
        await until_over(scene)
        scene.want(ev.DefrostRequested(scene.daemon.now(), "n1", scene.daemon.now() + 60.0))
        await scene.until(lambda: scene.domain("n1").sleep is None, "n1 is awake")
        await asyncio.sleep(600.0)
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        scene.want(ev.SleepRequested(scene.daemon.now(), "n1", "new disk", SleepCause.ADMIN))
        await scene.restart()
        await asyncio.sleep(20.0)
        assert scene.domain("n1").falls_asleep, "it waits for PBS's books as before"

    play(test)


def test_a_daemon_that_dies_before_it_has_asked_anybody_puts_them_to_sleep_when_it_is_back() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        scene.world["n1"].fails["save-needs"] = "lost"
        began = asyncio.ensure_future(scene.daemon.host_sleep.begin(0.0))
        while not (Path(scene.configuration.paths.state_dir) / records.SLEEP).exists():
            await asyncio.sleep(0)
        began.cancel()
        scene.world["n1"].fails.clear()
        await scene.restart()
        await until_over(scene)
        assert set(stages(scene).values()) == {"asleep"}, scene.daemon.host_sleep.report()

    play(test, "unbooked_after_s = 0\n")


def test_a_slow_hypervisor_does_not_keep_the_answer_from_the_command_that_systemd_waits_for() -> None:
    """Without an answer within 5 s the command ends, and systemd goes on to stop the daemon and libvirt."""

    async def test(scene: Scene) -> None:
        known = scene.daemon.saves.refusal

        async def refusal(name: str) -> Refusal | None:
            await asyncio.sleep(2.0)
            return await known(name)

        scene.daemon.saves.refusal = refusal  # type: ignore[method-assign]
        began = scene.daemon.now()
        report = await scene.daemon.host_sleep.begin(0.0)
        assert report.going_on and scene.daemon.now() - began <= client.DEADLINE_S / 2
        await until_over(scene)
        assert set(stages(scene).values()) == {"asleep"}

    play(test)


@pytest.mark.long
def test_who_is_given_up_because_its_save_does_not_end_is_not_saved_later() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv", JobClass.PREEMPTIBLE)
        scene.world["n1"].fails["save"] = "timeout"
        await scene.daemon.host_sleep.begin(30.0)
        await until_over(scene)
        assert stages(scene)["n1"] == "failed"
        scene.world["n1"].fails.clear()
        await until_it_goes_on(scene, "n1")
        await asyncio.sleep(60.0)
        assert scene.world["n1"].up

    play(test, "unbooked_after_s = 0\n")
