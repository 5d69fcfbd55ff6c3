"""The real daemon and its configuration: what a start and a reload do with it, and what the history shows of that."""

from __future__ import annotations

from magrathea.core.model import JobClass, State
from magrathea.core.refusals import RefusalCode
from magrathea.history_sentences import sentence
from node_daemon.configuration import read
from node_daemon.hypervisor.base import DriverError, OnChange
from node_daemon.journal import Journal
from tests.fakes.hypervisor import FakeDriver

from .life_scene import DOMAIN, Scene, guest, play


def told(scene: Scene) -> list[str]:
    """The history's sentences about new configurations."""
    journal = scene.daemon.journal
    assert isinstance(journal, Journal)
    return [sentence(entry) for entry in journal.history() if entry.name == "Reconfigured"]


def rewrite(scene: Scene, old: str, new: str) -> None:
    text = scene.path.read_text()
    assert old in text
    scene.path.write_text(text.replace(old, new))


def without(scene: Scene, name: str) -> None:
    head, *domains = scene.path.read_text().split("\n[domain.")
    scene.path.write_text("\n[domain.".join([head, *(d for d in domains if not d.startswith(f"{name}]"))]))


def with_domain(scene: Scene, name: str) -> None:
    scene.world.guests[name] = guest(name)
    table = DOMAIN.format(name=name, kind="normal", boot_s=60.0, end_s=60.0)
    scene.path.write_text(scene.path.read_text() + table)


def test_the_first_start_and_each_reload_that_changes_something_are_in_the_history() -> None:
    async def test(scene: Scene) -> None:
        first = "a new configuration: h1, exclusive, 4 CPUs, 3584 MiB; domains: n1 (normal), p1 (priority)"
        assert told(scene) == [first]
        assert await scene.daemon.reload() == []
        assert told(scene) == [first], "nothing has changed"
        rewrite(scene, "cpus = 4", "cpus = 3")
        assert await scene.daemon.reload() == []
        assert told(scene) == [first, first.replace("4 CPUs", "3 CPUs")]
        assert scene.daemon.host.cpus == 3

    play(test)


def test_a_reload_adds_a_domain_and_takes_one_away() -> None:
    async def test(scene: Scene) -> None:
        with_domain(scene, "n2")
        without(scene, "n1")
        assert await scene.daemon.reload() == ["n1 is forgotten: no longer configured, and it has no jobs"]
        await scene.until_state("n2", State.FREE)
        assert set(scene.daemon.channels) == {"n2", "p1"}

    play(test)


class BrokenDriver(FakeDriver):
    async def start(self, on_event: OnChange) -> None:
        raise DriverError(RefusalCode.FAILED, "this hypervisor does not answer")


def test_a_reload_with_domains_that_no_driver_accepts_changes_no_domain() -> None:
    async def test(scene: Scene) -> None:
        before = scene.daemon.host.domains
        driver = scene.daemon.driver
        with_domain(scene, "n2")
        rewrite(scene, "cpus = 4", "cpus = 3")
        scene.daemon._make_driver = lambda _: BrokenDriver(scene.world)
        (why,) = await scene.daemon.reload()
        assert why == "the domains' changes are not taken over: failed: this hypervisor does not answer"
        assert [d.name for d in scene.daemon.host.domains] == [d.name for d in before] == ["n1", "p1"]
        assert set(scene.daemon.channels) == set(scene.daemon.configuration.domain) == {"n1", "p1"}
        assert scene.daemon.host.cpus == 3, "the rest is taken over"
        assert scene.daemon.driver is driver

    play(test)


def test_a_start_without_a_domain_that_has_jobs_keeps_it_until_they_have_ended() -> None:
    async def test(scene: Scene) -> None:
        await scene.job("n1", JobClass.PROTECTED)
        without(scene, "n1")
        scene.configuration = read(scene.path)
        await scene.restart()
        assert scene.state("n1") is State.DRAINING
        await scene.until(lambda: scene.domain("n1").agent_lost_at is None, "its agent is heard all the same")
        scene.release("n1")
        assert scene.daemon.host.domain("n1") is None
        assert [d.name for d in scene.daemon.snapshot(1).domains] == ["p1"]

    play(test)
