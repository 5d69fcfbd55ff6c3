"""A planned sleep of the whole host while a domain is on its way to another host."""

from __future__ import annotations

from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.moves import MoveStage, Ownership

from .life_scene import Scene
from .test_host_sleep import boot_id as boot_id  # a fixture
from .test_host_sleep import calls, play, stages, until_over


def told(scene: Scene, number: int) -> None:
    """The hub's books: n1 is this host's."""
    record = Ownership("n1", number, scene.daemon.host.name, number)
    scene.daemon.apply_move(me.RecordsTold(scene.daemon.now(), (record,)))


def test_a_domain_on_its_way_is_called_back_and_put_to_sleep() -> None:
    async def test(scene: Scene) -> None:
        now = scene.daemon.now()
        scene.daemon.apply(ev.HubFound(now))
        told(scene, 1)
        asked = me.MoveRequested(now, "n1", "h2", now + 1_000)
        assert scene.daemon.apply_move(asked) == (ev.Accepted("n1"),)
        # so far only asked for; copies end in the same way, when the hypervisor has ended them
        report = await scene.daemon.host_sleep.begin(0.0)
        assert report.going_on and stages(scene)["n1"] == "stopping"
        (leaving,) = scene.daemon.place.moves.leaving
        assert leaving.called_off and leaving.stage is MoveStage.STAYING
        told(scene, 2)
        await until_over(scene)
        assert "n1" in calls(scene, "save") and set(stages(scene).values()) == {"asleep"}

    play(test, "unbooked_after_s = 0\n")
