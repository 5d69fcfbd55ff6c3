"""A host is emptied by sleep and drain, and taken back, under the real daemon. Time is virtual; moves are tested with
two daemons in tests/embedded/test_evacuation.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from magrathea.control import ControlRequest, Denied
from magrathea.core import events as ev
from magrathea.core.evacuation import Fate
from magrathea.core.model import JobClass, JobKey, State
from magrathea.core.refusals import RefusalCode
from magrathea.evacuation_reports import EvacuationStage
from node_daemon.hub_client import HubClient
from node_daemon.hypervisor.base import CPU, LIFE, SAVE

from . import life_scene
from .life_scene import Scene

SERVICES = '[shutdown]\nservices = "sleep"\n'
MORE = (("n2", "normal"), ("s1", "service"))
REASON = "new memory"
ALL = frozenset({CPU, LIFE, SAVE})


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub answers."""
    monkeypatch.setattr(HubClient, "connected", property(lambda self: True))


def play(test: Callable[[Scene], Awaitable[None]], tables: str = SERVICES, capabilities: frozenset[str] = ALL) -> None:
    async def with_hub(scene: Scene) -> None:
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await test(scene)

    life_scene.play(
        with_hub, mode="counted", host='driver = "libvirt"', tables=tables, more=MORE, capabilities=capabilities
    )


async def job(scene: Scene, domain: str, id: str, cls: JobClass = JobClass.PREEMPTIBLE) -> JobKey:
    key = JobKey(id, 1)
    scene.want(ev.Claimed(scene.daemon.now(), domain, key, cls, 1))
    scene.want(ev.JobLaunched(scene.daemon.now(), domain, key))
    await asyncio.sleep(10.0)
    return key


def booked(scene: Scene) -> None:
    """The hub has suspended all stopped jobs in PBS."""
    stopped = [j.key for d in scene.daemon.host.workers for j in d.stopped]
    scene.daemon.apply(ev.BooksReported(scene.daemon.now(), tuple(ev.Booking(key, booked=True) for key in stopped)))


def fates(scene: Scene) -> dict[str, tuple[str, str]]:
    report = scene.daemon.evacuation.report()
    assert report is not None
    return {one.name: (one.fate, one.stage.value) for one in report.leavers}


async def until_over(scene: Scene) -> None:
    def over() -> bool:
        booked(scene)
        report = scene.daemon.evacuation.report()
        return report is not None and not report.going_on

    await scene.until(over, "the host is evacuated")


async def until_back(scene: Scene) -> None:
    await scene.until(lambda: scene.daemon.evacuation.report() is None, "the host is taken back")


def test_all_that_can_sleep_sleeps_in_the_order_that_was_shown_services_last() -> None:
    async def test(scene: Scene) -> None:
        await job(scene, "n1", "1.srv")
        await job(scene, "p1", "2.srv", JobClass.PRIORITY)
        plan = await scene.daemon.evacuation.plan(Fate.MOVE)
        assert [(one.name, one.fate) for one in plan.leavers] == [
            ("p1", "sleep"),
            ("n1", "sleep"),
            ("n2", "sleep"),
            ("s1", "sleep"),
        ]
        assert scene.daemon.evacuation.report() is None, "a plan changes nothing"
        report = await scene.daemon.evacuation.begin(Fate.MOVE, REASON)
        assert [one.name for one in report.leavers] == [one.name for one in plan.leavers]
        assert all(scene.domain(name).draining for name in ("n1", "n2", "p1")), "nothing new lands here"
        await until_over(scene)
        assert [call for call in scene.world.calls if call.startswith("save")][-1] == "save s1"
        assert all(scene.state(name) is State.ASLEEP for name in ("n1", "n2", "p1"))
        assert scene.domain("n1").job(JobKey("1.srv", 1)) and scene.world["s1"].saved
        said = scene.daemon.evacuation.back()
        assert said == [f"{name} is brought back" for name in ("p1", "n1", "n2", "s1")]
        await until_back(scene)
        await scene.until_state("n2", State.FREE, State.OCCUPIED)
        scene.daemon.apply(ev.BooksReported(scene.daemon.now(), ()))
        await scene.until(lambda: not scene.domain("n1").stopped and scene.world["s1"].up, "all is back")
        assert not any(scene.domain(name).draining for name in ("n1", "n2", "p1"))

    play(test)


def test_with_drain_jobs_end_here_and_nothing_is_saved() -> None:
    async def test(scene: Scene) -> None:
        key = await job(scene, "n1", "1.srv")
        await scene.daemon.evacuation.begin(Fate.DRAIN, REASON)
        await asyncio.sleep(60.0)
        assert fates(scene) == {
            "n1": ("drain", "going"),
            "n2": ("drain", "over"),
            "p1": ("drain", "over"),
            "s1": ("leave", "over"),
        }
        assert scene.state("n1") is State.DRAINING and "save" not in " ".join(scene.world.calls)
        scene.want(ev.Released(scene.daemon.now(), "n1", key))
        await until_over(scene)
        assert scene.daemon.evacuation.back()[0] == "n1 takes jobs again"
        await until_back(scene)
        assert scene.state("n1") is State.FREE

    play(test)


def test_a_driver_that_saves_nothing_drains() -> None:
    async def test(scene: Scene) -> None:
        plan = await scene.daemon.evacuation.plan(Fate.SLEEP)
        assert {one.fate for one in plan.leavers if one.name != "s1"} == {"drain"}
        assert "saves no domains" in plan.leavers[0].why

    play(test, "", capabilities=frozenset({CPU, LIFE}))


def test_a_save_that_fails_makes_the_domain_finish_its_jobs() -> None:
    async def test(scene: Scene) -> None:
        scene.world["n1"].fails["save"] = RefusalCode.FAILED
        await job(scene, "n1", "1.srv")
        await scene.daemon.evacuation.begin(Fate.SLEEP, REASON)

        def drains() -> bool:
            booked(scene)
            return fates(scene)["n1"] == ("drain", "going")

        await scene.until(drains, "n1 finishes its jobs")
        scene.daemon.apply(ev.BooksReported(scene.daemon.now(), ()))
        await scene.until(lambda: not scene.domain("n1").stopped, "its job goes on")
        report = scene.daemon.evacuation.report()
        assert report and next(one.why for one in report.leavers if one.name == "n1")

    play(test)


def test_a_daemon_that_starts_anew_goes_on_where_it_was() -> None:
    async def test(scene: Scene) -> None:
        for guest in scene.world.guests.values():
            guest.save_s = 20.0
        await scene.daemon.evacuation.begin(Fate.SLEEP, REASON)
        await scene.until_state("n1", State.ASLEEP)
        await scene.restart()
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await until_over(scene)
        assert all(scene.state(name) is State.ASLEEP for name in ("n1", "n2", "p1"))
        scene.daemon.evacuation.back()
        await scene.restart()
        scene.daemon.apply(ev.HubFound(scene.daemon.now()))
        await until_back(scene)
        for name in ("n1", "n2", "p1"):
            await scene.until(lambda name=name: not scene.domain(name).draining, f"{name} takes jobs again")  # type: ignore[misc]

    play(test)


def test_what_an_admin_had_drained_or_put_to_sleep_before_stays_so() -> None:
    async def test(scene: Scene) -> None:
        scene.want(ev.DrainRequested(scene.daemon.now(), "n1", "new disk"))
        await scene.daemon.evacuation.begin(Fate.DRAIN, REASON)
        await until_over(scene)
        assert scene.domain("n1").draining == "new disk"
        said = scene.daemon.evacuation.back()
        assert said[0] == "n1 drains on (new disk); `magrathea undrain n1` ends that"
        await until_back(scene)
        assert scene.domain("n1").draining == "new disk" and not scene.domain("n2").draining

    play(test)


def test_a_domain_that_comes_up_meanwhile_leaves_too() -> None:
    async def test(scene: Scene) -> None:
        scene.world.end("n2")
        await scene.until_state("n2", State.DOWN)
        await scene.daemon.evacuation.begin(Fate.SLEEP, REASON)
        await until_over(scene)
        assert fates(scene)["n2"] == ("leave", "over")
        scene.world.start("n2")
        await scene.until(lambda: scene.state("n2") is State.ASLEEP, "n2 is put to sleep")

    play(test)


def test_whoever_wakes_a_domain_meanwhile_keeps_it() -> None:
    async def test(scene: Scene) -> None:
        await scene.daemon.evacuation.begin(Fate.SLEEP, REASON)
        await until_over(scene)
        scene.defrost("n1")
        await scene.until(lambda: fates(scene)["n1"] == ("drain", "over"), "n1 stays awake")
        assert scene.state("n1") is State.DRAINING

    play(test)


def test_a_new_evacuation_is_refused_without_a_hub_and_on_a_paused_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        monkeypatch.setattr(HubClient, "connected", property(lambda self: False))
        for wish in (Fate.MOVE, Fate.SLEEP):
            with pytest.raises(Denied) as denied:
                await scene.daemon.evacuation.begin(wish, REASON)
            assert denied.value.code is RefusalCode.HUB_LOST
        scene.daemon.apply(ev.PauseRequested(scene.daemon.now(), "for a test"))
        with pytest.raises(Denied) as denied:
            await scene.daemon.evacuation.begin(Fate.DRAIN, REASON)
        assert denied.value.code is RefusalCode.PAUSED
        assert scene.daemon.evacuation.report() is None

    play(test)


def test_undrain_is_refused_while_the_host_is_evacuated() -> None:
    async def test(scene: Scene) -> None:
        await scene.daemon.evacuation.begin(Fate.DRAIN, REASON)
        with pytest.raises(Denied) as denied:
            await scene.daemon.admin._undrain(ControlRequest(op="undrain", domain="n1"))
        assert "magrathea host return h1" in str(denied.value)

    play(test)


def test_the_snapshot_says_how_far_it_is() -> None:
    async def test(scene: Scene) -> None:
        assert scene.daemon.evacuation.view() is None
        await scene.daemon.evacuation.begin(Fate.DRAIN, REASON)
        view = scene.daemon.snapshot(1).evacuation
        assert view == scene.daemon.evacuation.view()
        report = scene.daemon.evacuation.report()
        assert report and all(one.stage is EvacuationStage.OVER for one in report.leavers)

    play(test)
