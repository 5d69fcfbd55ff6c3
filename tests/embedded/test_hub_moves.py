"""Two hosts that the test plays move a domain through the real hub: its words, its records, its parcels, its files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from magrathea import client, files
from magrathea.core.model import Domain, Kind, State
from magrathea.core.moves import Ownership, Parcel, Says, Transfer, Word
from magrathea.core.refusals import RefusalCode
from magrathea.messages import KNOWS_MOVES, Heartbeat, encode
from magrathea.move_messages import MoveRefused, Ownerships, ParcelSent, parcel_of
from magrathea.move_reports import LostAnswer, LostMove
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import farm, movers, owners
from scheduler_plugin.hub import hub as shell
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, SIBLINGS
from tests.embedded import real_hub
from tests.embedded.real_hub import RealHub
from tests.fakes.host import FakeHost
from tests.fakes.reports import domain, given_back, job, stopped, vnode

BEAT_S = 0.1


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HEARTBEAT_S", BEAT_S)
    monkeypatch.setattr(farm, "LEASE_S", BOUND_S)
    monkeypatch.setattr(movers, "AGAIN_S", BEAT_S)


def run(directory: Path, test: Callable[[RealHub, FakeHost, FakeHost], Awaitable[None]]) -> None:
    """Run `test` with a hub and two hosts: n1 and p1 are h1's, p2 is h2's, which takes domains from h1."""

    async def started(world: RealHub) -> None:
        h1, h2 = world.host("h1", "n1", "p1"), world.host("h2", "p2")
        world.pbs.put(job())
        world.start()
        await h1.says(domain("n1", [stopped(since=time.time())]), domain("p1"))
        await h1.hears_books("1.srv")
        await h2.says(domain("p2"))
        await world.until(lambda: world.shown("p2", HOST) == "h2" and world.shown("n1", HOST) == "h1", "publication")
        await h2.speaks(welcome=["h1"])
        await h1.speaks(Word("n1", 0, Says.OWNS), welcome=["h2"])
        await h1.hears_record("n1", lambda r: (r.owner, r.number, r.transfer) == ("h1", 1, None))
        await test(world, h1, h2)

    real_hub.run(directory, started, "n1", "p1", "p2", tcp=True)


def parcel(number: int = 2, *, final: bool = False) -> ParcelSent:
    return parcel_of(Parcel(number, "h1", time.time(), final, Domain("n1", Kind.NORMAL, 4)), "h2")


async def insists(host: FakeHost, word: Word, right: Callable[[Ownership], bool]) -> None:
    """Say the word again and again, as hosts do, until the hub tells what is right."""
    welcome = ["h2"] if host.name == "h1" else ["h1"]
    while True:
        await host.speaks(word, welcome=welcome)
        message = await host.hears(lambda message: isinstance(message, Ownerships | Heartbeat))
        told = message.records if isinstance(message, Ownerships) else []
        if any(right(one.record) for one in told if one.domain == word.domain):
            return


async def asks(h1: FakeHost, h2: FakeHost) -> None:
    await insists(h1, Word("n1", 1, Says.ASKS, "h2"), lambda r: r.transfer == Transfer(2, "h1", "h2"))
    await h2.hears_record("n1", lambda r: r.transfer == Transfer(2, "h1", "h2"))


async def lets_go(h1: FakeHost, h2: FakeHost) -> None:
    await insists(h2, Word("n1", 2, Says.READY), lambda r: r.transfer is not None and r.transfer.ready)
    await h1.hears_record("n1", lambda r: r.transfer is not None and r.transfer.ready)
    await h1.says(domain("p1"))
    await insists(
        h1, Word("n1", 2, Says.GONE, "h2"), lambda r: r.transfer is not None and r.transfer.letting is not None
    )


async def arrives(h1: FakeHost, h2: FakeHost) -> None:
    await insists(h2, Word("n1", 2, Says.HERE), lambda r: r.owner == "h2")
    await h2.says(domain("p2"), domain("n1", [stopped(since=time.time(), booked=True)]))
    await insists(h2, Word("n1", 2, Says.ADOPTED), lambda r: (r.owner, r.number, r.transfer) == ("h2", 2, None))
    await insists(h1, Word("n1", 2, Says.GONE, "h2"), lambda r: (r.owner, r.number, r.transfer) == ("h2", 2, None))


def test_a_domain_changes_its_host_with_its_vnode_its_facts_and_its_booked_job(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        await asks(h1, h2)
        await world.until(lambda: world.shown("n1", ACCEPTS) == "none", "the vnode is closed")
        sent = parcel()
        await h1.sends(encode(sent))
        assert await h2.hears(lambda message: isinstance(message, ParcelSent)) == sent
        view = await asyncio.to_thread(client.farm, world.control)
        assert [(m.domain, m.source, m.target, m.over) for m in view.moves] == [("n1", "h1", "h2", False)]
        await lets_go(h1, h2)
        await h1.sends(encode(parcel(final=True)))
        await h2.hears(lambda message: isinstance(message, ParcelSent) and message.final)
        await arrives(h1, h2)
        await world.until(lambda: world.shown("n1", HOST) == "h2", "its vnode is h2's")
        await world.until(lambda: world.shown("n1", ACCEPTS) == "preemptible,protected", "it accepts jobs again")
        assert (world.shown("p1", SIBLINGS), world.shown("p2", SIBLINGS)) == ("none", "n1")
        assert world.pbs.jobs["1.srv"].state == "S"
        await h2.says(domain("p2"), domain("n1", [given_back()]))
        await h2.hears_books()
        assert world.pbs.jobs["1.srv"].state == "R" and world.pbs.count("admin_suspend") == 1
        view = await asyncio.to_thread(client.farm, world.control)
        assert [(m.over, m.text) for m in view.moves] == [(True, "moved to h2")]

    run(tmp_path, test)


@pytest.mark.parametrize("lost", [False, True], ids=["books-kept", "owners-lost"])
def test_a_hub_killed_in_the_midst_goes_on_by_its_books_or_by_what_hosts_say(tmp_path: Path, lost: bool) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        await asks(h1, h2)
        await lets_go(h1, h2)
        assert world.task is not None and world.hub is not None
        world.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await world.task
        before = world.hub._movers._owners.written.records["n1"].revision
        if lost:
            (world.directory / "state" / owners.NAME).unlink()
        world.start()
        await h1.says(domain("p1"))
        await h2.says(domain("p2"))
        if lost:  # the source's word counts only if the target takes domains from it, so that is said first
            await h2.speaks(welcome=["h1"])
            await insists(h1, Word("n1", 2, Says.GONE, "h2"), lambda r: r.revision > before)
        await arrives(h1, h2)
        await world.until(lambda: world.shown("n1", HOST) == "h2", "its vnode is h2's")

    run(tmp_path, test)


def test_after_a_move_the_owner_is_known_over_a_restart_and_the_old_one_is_told(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        await asks(h1, h2)
        await lets_go(h1, h2)
        await arrives(h1, h2)
        await world.end()
        world.start()
        await h1.says(domain("n1"), domain("p1"))
        await h1.speaks(Word("n1", 0, Says.OWNS))
        assert (await h1.hears_record("n1", lambda r: True)).owner == "h2"
        await h2.says(domain("p2"), domain("n1"))
        await world.until(lambda: world.shown("p2", SIBLINGS) == "n1", "it is published as h2's")
        assert world.shown("n1", HOST) == "h2"

    run(tmp_path, test)


def test_while_the_disk_fails_nothing_moves_and_afterwards_all_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        real, failed = files.replace, asyncio.Event()
        loop = asyncio.get_running_loop()

        def full(path: Path, *args: object, **more: object) -> None:
            if path.name == owners.NAME and not failed.is_set():
                loop.call_soon_threadsafe(failed.set)
                raise OSError("the disk is full")
            real(path, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(files, "replace", full)
        await h1.speaks(Word("n1", 1, Says.ASKS, "h2"))
        await asyncio.wait_for(failed.wait(), BOUND_S)
        for host in (h1, h2):
            await host.hears_record("n1", lambda r: r.transfer is not None)

    run(tmp_path, test)


def test_a_refused_move_is_answered_with_its_reason_and_shown(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        async def refused(word: Word) -> RefusalCode:
            await h1.speaks(word)
            message = await h1.hears(lambda message: isinstance(message, MoveRefused))
            assert isinstance(message, MoveRefused) and (message.domain, message.number) == (word.domain, word.number)
            return message.code

        assert await refused(Word("n1", 1, Says.ASKS, "h9")) is RefusalCode.BUSY, "h9 may still say what it takes"
        assert await refused(Word("p1", 1, Says.ASKS, "h1")) is RefusalCode.NO_VISITORS
        assert await refused(Word("unknown", 0, Says.ASKS, "h2")) is RefusalCode.NOT_MOVABLE
        view = await asyncio.to_thread(client.farm, world.control)
        assert {(m.domain, m.text.partition(":")[0]) for m in view.moves} == {
            ("p1", "refused (no-visitors)"),
            ("unknown", "refused (not-movable)"),
        }

    run(tmp_path, test)


def test_a_host_is_lost_only_if_it_is_silent_and_then_the_other_one_need_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        async def ask(op: str) -> list[LostMove]:
            answer = await asyncio.to_thread(client.ask, world.control, {"op": op, "about": "h2"})
            return msgspec.json.decode(answer, type=LostAnswer).moves

        await asks(h1, h2)
        await lets_go(h1, h2)
        await h2.beats()
        for op in ("lost-plan", "lost"):
            with pytest.raises(client.RequestRefused) as refused:
                await ask(op)
            assert refused.value.code == RefusalCode.HOST_HEARD
        monkeypatch.setattr(farm, "LEASE_S", 0.0)  # h2 is silent from now on
        assert [(move.domain, move.booked) for move in await ask("lost-plan")] == [("n1", True)]
        assert [(move.domain, move.booked) for move in await ask("lost")] == [("n1", True)]
        await h1.hears_record("n1", lambda r: (r.owner, r.number, r.transfer) == ("h1", 3, None))
        await h2.hears_record("n1", lambda r: (r.owner, r.number, r.transfer) == ("h1", 3, None))
        assert await ask("lost") == []

    run(tmp_path, test)


def test_a_domain_that_an_admin_gives_up_is_taken_back_by_its_home_and_never_by_who_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        await asks(h1, h2)
        await lets_go(h1, h2)
        await arrives(h1, h2)
        await world.until(lambda: world.shown("n1", HOST) == "h2", "its vnode is h2's")
        await h2.says(domain("p2"))
        hub = world.hub
        assert hub is not None
        await world.until(lambda: "n1" not in hub.farm.hosts["h2"].by_vnode, "h2 does not report it")
        world.pbs.vnodes["n1"] = vnode("n1")
        monkeypatch.setattr(farm, "LEASE_S", 0.0)
        hub.compare()
        for host in (h1, h2):
            await host.hears_record("n1", lambda r: (r.owner, r.number, r.transfer) == ("", 3, None))
        monkeypatch.setattr(farm, "LEASE_S", BOUND_S)
        await insists(h2, Word("n1", 3, Says.OWNS), lambda r: r.owner == "")
        await h1.says(domain("n1", state=State.DOWN, accepts=[]), domain("p1"))
        await insists(h1, Word("n1", 3, Says.OWNS), lambda r: (r.owner, r.number) == ("h1", 4))
        await h2.hears_record("n1", lambda r: r.owner == "h1")
        await world.until(lambda: world.shown("n1", HOST) == "h1", "its vnode is h1's")

    run(tmp_path, test)


def test_a_host_that_does_not_know_such_messages_is_sent_none(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        h2.version = "0.0.9"
        await h2.beats()
        await h1.speaks(Word("n1", 1, Says.ASKS, "h2"))
        await h1.hears_record("n1", lambda r: r.transfer is not None)
        beats = 0
        while beats < 5:
            message = await h2.hears(lambda message: True)
            assert not isinstance(message, Ownerships)
            beats += isinstance(message, Heartbeat)
        h2.version = KNOWS_MOVES
        await h2.beats()
        await h2.hears_record("n1", lambda r: r.transfer is not None)

    run(tmp_path, test)


def test_the_hub_says_with_its_heartbeats_that_it_knows_moves(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost) -> None:
        beat = await h1.hears(lambda message: isinstance(message, Heartbeat))
        assert isinstance(beat, Heartbeat) and beat.version == KNOWS_MOVES

    run(tmp_path, test)
