"""The moves of node daemons: two daemons' rooms and the hub's books move a domain, and any of them may die."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from magrathea.control import Denied
from magrathea.core.model import Lifecycle
from magrathea.core.refusals import RefusalCode
from magrathea.messages import Message
from magrathea.move_messages import ParcelSent
from magrathea.move_reports import MovesAnswer
from node_daemon.hypervisor.moving import Presence
from tests.fakes.mover import COPY_S, DISK, NOTHING, Copy
from tests.unit.node.moves_scene import N1, Scene, play


async def moved(scene: Scene) -> str:
    """Let n1 move from a to b, and return where it is in the end."""
    a = scene.hosts["a"]
    try:
        answer = await a.migrate("b")
        assert answer.plan is not None and answer.plan.jobs == 1
    except asyncio.CancelledError:
        assert not a.alive
    return await scene.home()


def test_a_domain_moves_with_its_jobs_and_its_files() -> None:
    async def test(scene: Scene) -> None:
        a, b = scene.hosts["a"], scene.hosts["b"]
        assert await moved(scene) == "b"
        end = await a.end()
        assert end.moved and "b" in end.text
        assert (a.moves.away(), b.moves.away()) == ({N1: "b"}, {})
        told = [(await host.ask(host.requests.report, N1, "")).elsewhere for host in (a, b)]
        assert told[0][N1] == "b" and N1 not in told[1]
        domain = b.domain()
        assert domain is not None and domain.lifecycle is Lifecycle.UP and domain.cpus == 2
        assert N1 in b.configuration.domain
        assert (scene.world.files["a"], scene.world.files["b"]) == (set(), {DISK})

    play(test)


def test_the_cap_of_a_preempted_domain_is_off_before_its_copy_begins() -> None:
    """A hypervisor copies within the cap: the domain, paused for the copy, would be away ten times as long."""

    async def test(scene: Scene) -> None:
        await moved(scene)
        story = [line.partition(" and ")[0] for line in scene.world.story]
        assert story.index(f"a: {N1} has no cap") < story.index(f"a: {N1} is {Presence.LEAVING}")

    play(test)


def test_it_comes_back_and_goes_again() -> None:
    async def test(scene: Scene) -> None:
        for here, there in (("a", "b"), ("b", "a"), ("a", "b")):
            await scene.hosts[here].migrate(there)
            assert await scene.home() == there
            assert scene.world.files[there] == {DISK} and not scene.world.files[here]

    play(test)


def steps_of_a_move() -> list[str]:
    return play(moved)[1]


@pytest.mark.long
def test_whoever_dies_after_any_step_the_domain_runs_once_and_all_agree() -> None:
    steps = steps_of_a_move()
    assert {step.split(":")[0] for step in steps} == {"a", "b", "hub"}
    homes = {step: play(moved, kill=step)[0] for step in steps}
    assert set(homes.values()) <= {"a", "b"} and "b" in homes.values()
    last = {step: home for step, home in homes.items() if "hub" in step}
    assert set(last.values()) == {"b"}, f"the hub's death only delays a move: {last}"


@pytest.mark.parametrize(
    ("phase", "source", "target", "ends_at"),
    [
        ("copying", Presence.RUNNING, None, {"b"}),
        ("performed", Presence.RUNNING, None, {"b"}),
        ("performed", Presence.HELD, None, {"a"}),
        ("performed", Presence.HELD, Presence.ARRIVED, {"b"}),
        ("performed", Presence.RUNNING, Presence.ARRIVED, {"b"}),
        ("finished", Presence.HELD, Presence.ARRIVED, {"b"}),
    ],
    ids=lambda value: str(value),
)
def test_whatever_a_copy_that_fails_leaves_the_domain_runs_once(
    phase: str, source: Presence, target: Presence | None, ends_at: set[str]
) -> None:
    async def test(scene: Scene) -> str:
        left = ["the network is down"]

        def fails(now: str) -> str:
            if now != phase or not left:
                return ""
            world = scene.world
            here = world.at("a", N1)
            world.put("b", N1, Copy(target, True, here.age) if target else NOTHING)
            if here.presence is not Presence.LEAVING:
                world.put("a", N1, replace(here, presence=source, age=world.ran))
            return left.pop()

        scene.world.fails = fails
        return await moved(scene)

    assert play(test)[0] in ends_at


def test_a_copy_that_always_fails_leaves_the_domain_where_it_is() -> None:
    async def test(scene: Scene) -> None:
        scene.world.fails = lambda phase: "the network is down"
        assert await moved(scene) == "a"
        end = await scene.hosts["a"].end()
        assert not end.moved and end.try_next and "the network is down" in end.text
        assert scene.world.files["b"] == set(), "what was made for it is removed"

    play(test)


def test_a_host_that_lacks_something_declines_and_the_reason_comes_back() -> None:
    async def test(scene: Scene) -> None:
        scene.world.unwelcome = "the bridge br7 is missing here"
        assert await moved(scene) == "a"
        end = await scene.hosts["a"].end()
        assert end.try_next and "br7" in end.text

    play(test)


def test_a_host_that_is_put_to_sleep_declines() -> None:
    async def test(scene: Scene) -> None:
        scene.hosts["b"].closed = "its machine is put to sleep for a shutdown"
        assert await moved(scene) == "a"
        assert "b: its machine is put to sleep" in (await scene.hosts["a"].end()).text

    play(test)


def test_a_host_that_cannot_read_the_facts_declines_at_once() -> None:
    def spoilt(message: Message) -> Message:
        if isinstance(message, ParcelSent):
            return msgspec.structs.replace(message, facts=msgspec.Raw(b'{"name": "n1", "kind": "newer"}'))
        return message

    async def test(scene: Scene) -> None:
        scene.spoilt = spoilt
        a = scene.hosts["a"]
        began = a.now()
        assert await moved(scene) == "a"
        end = await a.end()
        assert "b: its facts cannot be read here" in end.text and "newer" in end.text
        assert end.at < began + a.configuration.moves.patience_s / 10, (
            "the source does not wait until its patience ends"
        )

    play(test)


def test_a_host_that_takes_nobody_from_there_is_refused_by_the_hub() -> None:
    async def test(scene: Scene) -> None:
        b = scene.hosts["b"]
        nobody = msgspec.structs.replace(b.configuration.visitors, hosts=[])
        b.configuration = msgspec.structs.replace(b.configuration, visitors=nobody)
        await asyncio.sleep(5)
        assert await moved(scene) == "a"
        assert "takes no domains from a" in (await scene.hosts["a"].end()).text

    play(test)


async def copying(scene: Scene) -> MovesAnswer:
    """Let n1 move to b, until its copy is under way."""
    a = scene.hosts["a"]
    await a.migrate("b")
    await scene.until(lambda: a.moves.copies.progress(N1), "it is copied")
    await asyncio.sleep(COPY_S / 2)
    return await a.ask(a.requests.report, N1, "")


def test_the_progress_is_reported_and_the_domain_takes_no_jobs() -> None:
    async def test(scene: Scene) -> None:
        report = (await copying(scene)).move(N1)
        assert report is not None and (report.source, report.target, report.stage) == ("a", "b", "copying")
        assert report.percent and f"{report.percent} %" in report.text
        travel = scene.hosts["a"].requests.travels()[N1]
        assert (travel.stage, travel.percent) == ("copying", report.percent)
        assert any("n1 is to come from a" in note for note in scene.hosts["b"].moves.notes())
        await scene.home()
        assert scene.hosts["b"].requests.travels() == {} == scene.hosts["a"].requests.travels()

    play(test)


def test_a_move_turns_back_if_somebody_asks_for_it() -> None:
    async def test(scene: Scene) -> None:
        await copying(scene)
        await scene.hosts["a"].migrate("a")
        assert await scene.home() == "a"
        end = await scene.hosts["a"].end()
        assert not end.moved and not end.try_next and "somebody asked for that" in end.text
        assert scene.world.files["b"] == set()

    play(test)


def test_a_move_goes_elsewhere_if_somebody_asks_for_it() -> None:
    async def test(scene: Scene) -> None:
        await copying(scene)
        await scene.hosts["a"].migrate("c")
        assert await scene.home() == "c"
        assert scene.world.files == {"a": set(), "b": set(), "c": {DISK}}

    play(test, names=("a", "b", "c"))


def test_a_domain_on_its_way_is_no_service_and_one_that_has_left_is_not_missed() -> None:
    async def test(scene: Scene) -> None:
        a, b = scene.hosts["a"], scene.hosts["b"]
        await copying(scene)
        assert a.left_out[1] == b.left_out[1] == {N1}
        assert await scene.home() == "b"
        await scene.until(
            lambda: (list(a.left_out[0]), a.left_out[1], b.left_out[1]) == ([N1], set(), set()), "it is over"
        )

    play(test)


def test_a_copy_waits_for_memory_that_is_on_its_way() -> None:
    async def test(scene: Scene) -> None:
        scene.memory_moves = {N1}
        await scene.hosts["a"].migrate("b")
        await asyncio.sleep(60)
        assert scene.world.running(N1) == ["a"] and not scene.world.jobs
        scene.memory_moves = set()
        assert await scene.home() == "b"

    play(test)


def test_a_visitor_is_still_known_after_a_restart_of_its_new_host() -> None:
    async def test(scene: Scene) -> None:
        await moved(scene)
        scene.hosts["b"].die()
        assert await scene.home() == "b"
        b = scene.hosts["b"]
        assert b.configuration.libvirt_name(N1) == N1 and b.configuration.domain[N1].cpus == 2

    play(test)


def test_what_the_hub_says_may_be_lost() -> None:
    async def test(scene: Scene) -> None:
        count = iter(range(10_000))
        scene.lost = lambda to, message: next(count) % 3 != 0
        assert await moved(scene) == "b"

    play(test)


def test_a_move_that_nobody_grants_in_time_is_given_up() -> None:
    async def test(scene: Scene) -> None:
        scene.lost = lambda to, message: to == "b"
        await scene.hosts["a"].migrate("b")
        end = await scene.hosts["a"].end()
        assert not end.moved and "no answer in time" in end.text
        scene.lost = lambda to, message: False
        assert await scene.home() == "a"

    play(test)


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        ("x", RefusalCode.NO_VISITORS, "to b only"),
        ("a", RefusalCode.BAD_REQUEST, "not on its way"),
    ],
)
def test_a_request_that_names_no_host_for_it_is_refused(to: str, code: RefusalCode, words: str) -> None:
    async def test(scene: Scene) -> None:
        with pytest.raises(Denied) as caught:
            await scene.hosts["a"].migrate(to)
        assert caught.value.code is code and words in str(caught.value)

    play(test)


def test_a_mistyped_host_does_not_end_a_move_that_is_under_way() -> None:
    async def test(scene: Scene) -> None:
        await copying(scene)
        with pytest.raises(Denied) as caught:
            await scene.hosts["a"].migrate("bb")
        assert caught.value.code is RefusalCode.NO_VISITORS and "to b, c only" in str(caught.value)
        assert await scene.home() == "b"

    play(test, names=("a", "b", "c"))


def test_what_keeps_a_domain_here_is_told_at_once() -> None:
    async def refused(scene: Scene, domain: str = N1, to: str = "") -> Denied:
        with pytest.raises(Denied) as caught:
            await scene.hosts["a"].migrate(to, domain)
        return caught.value

    async def test(scene: Scene) -> None:
        a = scene.hosts["a"]
        assert (await refused(scene, "n7")).code is RefusalCode.UNKNOWN_DOMAIN
        scene.world.reasons = ["a PCI device is passed through to it", "disk vdb is of this host"]
        no = await refused(scene)
        assert no.code is RefusalCode.NOT_SUPPORTED and "PCI" in str(no) and "vdb" in str(no)
        scene.world.reasons = []
        nowhere = msgspec.structs.replace(a.configuration.moves, hosts=[])
        with_hosts, a.configuration = a.configuration, msgspec.structs.replace(a.configuration, moves=nowhere)
        assert "`hosts` in [moves]" in str(await refused(scene))
        a.configuration = with_hosts
        await a.migrate("b")
        assert (await refused(scene)).code is RefusalCode.DOMAIN_MOVING
        await scene.home()

    play(test)
