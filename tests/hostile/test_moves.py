"""A host that was taken over, and domains that move: it gets no domain that its owner did not send to it, and it hands
none to a host that does not expect it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from magrathea.core.model import Domain, Kind
from magrathea.core.moves import Parcel, Says, Transfer, Word
from magrathea.core.refusals import RefusalCode
from magrathea.messages import MAX_BYTES, Message, encode
from magrathea.move_messages import MoveRefused, Ownerships, ParcelSent, parcel_of
from magrathea_lab.rigs import virtual_time
from scheduler_plugin.hub import lanes
from scheduler_plugin.hub.lanes import PARTS_SHARE, Lane
from scheduler_plugin.hub.movers import PARCEL_S_PER_MIB
from scheduler_plugin.hub.vnode_attributes import HOST
from tests.embedded import real_hub
from tests.embedded.real_hub import RealHub
from tests.fakes.host import FakeHost
from tests.fakes.mover import Copy
from tests.fakes.reports import domain
from tests.unit.node.moves_scene import Scene, play

EVERYTHING = [
    Word("n1", number, says, about) for says in Says for number in range(4) for about in ("", "evil", "h1", "h2")
]
"""All that can be said about the domain, under each number that it may have."""


def run(directory: Path, test: Callable[[RealHub, FakeHost, FakeHost, FakeHost], Awaitable[None]]) -> None:
    """n1 is h1's, which takes no domains; h2 takes them from h1 only. `evil` has the vnode e1."""

    async def started(world: RealHub) -> None:
        h1, h2, evil = world.host("h1", "n1"), world.host("h2", "p2"), world.host("evil", "e1")
        world.start()
        for host, vnode in ((h1, "n1"), (h2, "p2"), (evil, "e1")):
            await host.says(domain(vnode))
            await world.until(lambda v=vnode, n=host.name: world.shown(v, HOST) == n, "publication")  # type: ignore[misc]
        await h2.speaks(welcome=["h1"])
        await h1.speaks(Word("n1", 0, Says.OWNS))
        await h1.hears_record("n1", lambda r: r.owner == "h1")
        await test(world, h1, h2, evil)

    real_hub.run(directory, started, "n1", "p2", "e1", tcp=True)


def parcel(source: str, to: str, number: int = 2, name: str = "n1") -> bytes:
    return encode(parcel_of(Parcel(number, source, time.time(), True, Domain(name, Kind.NORMAL, 4)), to))


async def has_been_heard(evil: FakeHost) -> list[Ownerships]:
    """Wait until the hub has taken all that the host has sent. Returns the records that it was told meanwhile."""
    told: list[Ownerships] = []

    def right(message: object) -> bool:
        if isinstance(message, Ownerships):
            told.append(message)
        return isinstance(message, MoveRefused) and message.domain == "the-last-word"

    await evil.speaks(Word("the-last-word", 0, Says.ASKS, "h1"), welcome=["h1", "h2"])
    await evil.hears(right)
    return told


async def is_told_of_n1_only(h1: FakeHost, h2: FakeHost) -> None:
    """Whatever the hub has sent to h2 before a grant of n1 is heard by h2 first."""
    await grant(h1)
    heard: list[object] = []

    def until_told(message: object) -> bool:
        heard.append(message)
        return isinstance(message, Ownerships)

    last = await h2.hears(until_told)
    assert isinstance(last, Ownerships) and [record.domain for record in last.records] == ["n1"]
    assert not any(isinstance(message, ParcelSent) for message in heard)


async def grant(h1: FakeHost) -> None:
    await h1.speaks(Word("n1", 1, Says.ASKS, "h2"))
    await h1.hears_record("n1", lambda r: r.transfer == Transfer(2, "h1", "h2"))


@pytest.mark.parametrize("moving", [False, True], ids=["at-rest", "on-its-way"])
def test_a_host_that_was_taken_over_gets_no_domain_by_any_word_and_is_not_told_whose_it_is(
    tmp_path: Path, moving: bool
) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost, evil: FakeHost) -> None:
        if moving:
            await grant(h1)
        await evil.says(domain("e1"), domain("n1"))
        await evil.speaks(*EVERYTHING, welcome=["h1", "h2"])
        assert await has_been_heard(evil) == []
        await h1.speaks(Word("n1", 0, Says.OWNS))
        record = await h1.hears_record("n1", lambda r: True)
        assert (record.owner, record.number, record.transfer) == ("h1", 1, Transfer(2, "h1", "h2") if moving else None)
        assert world.shown("n1", HOST) == "h1"

    run(tmp_path, test)


def test_a_host_that_was_taken_over_cannot_push_its_domain_where_it_is_not_awaited(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost, evil: FakeHost) -> None:
        for target in ("h1", "h2", "evil"):
            await evil.speaks(Word("e1", 1, Says.ASKS, target), welcome=["h1", "h2", "evil"])
            refused = await evil.hears(lambda message: isinstance(message, MoveRefused))
            assert isinstance(refused, MoveRefused)
            assert refused.code in (RefusalCode.NO_VISITORS, RefusalCode.BUSY)
        await evil.speaks(Word("e1", 2, Says.GONE, "h2"), Word("e1", 1, Says.GONE, "h2"))
        await evil.sends(parcel("evil", "h2", 2, "e1"))
        await evil.sends(parcel("evil", "h2", 1, "e1"))
        await has_been_heard(evil)
        await is_told_of_n1_only(h1, h2)

    run(tmp_path, test)


@pytest.mark.parametrize("says", [Says.GONE, Says.ENDED])
def test_nor_by_saying_that_the_hubs_books_were_lost_in_the_midst_of_a_move(tmp_path: Path, says: Says) -> None:
    """Without a record, a source's last word makes one, as after a loss of the books."""

    async def test(world: RealHub, h1: FakeHost, h2: FakeHost, evil: FakeHost) -> None:
        await evil.speaks(Word("e1", 2, says, "h2"))
        await evil.sends(parcel("evil", "h2", 2, "e1"))
        await has_been_heard(evil)
        await is_told_of_n1_only(h1, h2)

    run(tmp_path, test)


def test_facts_go_only_from_the_source_of_a_granted_move_to_its_target(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost, evil: FakeHost) -> None:
        await grant(h1)
        for number in (1, 2, 3):
            for to in ("h1", "h2", "evil"):
                await evil.sends(parcel("evil", to, number))
                await evil.sends(parcel("h1", to, number))  # in another's name
        await has_been_heard(evil)
        await h1.sends(parcel("h1", "evil"))
        await h1.sends(parcel("h1", "h2", 1))
        await h1.sends(parcel("h1", "h2"))
        first = await h2.hears(lambda message: isinstance(message, ParcelSent))
        assert isinstance(first, ParcelSent) and (first.sender, first.number) == ("h1", 2)

    run(tmp_path, test)


def test_words_and_parcels_without_end_cost_their_sender_its_own_share(tmp_path: Path) -> None:
    async def test(world: RealHub, h1: FakeHost, h2: FakeHost, evil: FakeHost) -> None:
        flood = parcel("evil", "h2", 2, "e1")
        for _ in range(lanes.RATE_PER_S):
            await evil.speaks(*EVERYTHING, welcome=["h1", "h2"])
            await evil.sends(flood)
        await grant(h1)
        await evil.says(domain("e1", ncpus=3))
        await world.until(lambda: world.shown("e1", "resources_available.ncpus") == "3", "its snapshots do not wait")

    run(tmp_path, test)


def test_a_source_sends_no_more_than_some_mib_of_facts_a_second() -> None:
    passed: list[tuple[float, bytes]] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        big = b"x" * MAX_BYTES

        def handle(host: str, lane: Lane, message: bytes) -> None:
            passed.append((loop.time(), message))
            waiting.charge_later(host, PARCEL_S_PER_MIB * len(message) / 2**20, lane)

        waiting: lanes.Lanes[bytes] = lanes.Lanes(handle, loop.call_later, loop.time)
        kind = lanes.kind_of(memoryview(parcel("h1", "h2")))
        for _ in range(600):
            waiting.take("h1", kind, big, len(big))
            await asyncio.sleep(0.1)
        waiting.close()

    virtual_time.run(test())
    mib_per_s = len(passed) * MAX_BYTES / 2**20 / 60
    assert PARTS_SHARE / PARCEL_S_PER_MIB <= mib_per_s <= 5


# A source that sends another domain than the one that was checked


def sends(change: Callable[[ParcelSent], ParcelSent], *, first: bool = False) -> Callable[[Message], Message]:
    """What becomes of the source's parcels: all are changed, or all but the first."""
    seen: list[ParcelSent] = []

    def spoilt(message: Message) -> Message:
        if not isinstance(message, ParcelSent):
            return message
        seen.append(message)
        return change(message) if first or len(seen) > 1 else message

    return spoilt


def with_facts(**changes: object) -> Callable[[ParcelSent], ParcelSent]:
    def change(message: ParcelSent) -> ParcelSent:
        facts = {**msgspec.json.decode(message.facts), **changes}
        return msgspec.structs.replace(message, facts=msgspec.Raw(msgspec.json.encode(facts)))

    return change


def with_papers(old: str, new: str) -> Callable[[ParcelSent], ParcelSent]:
    return lambda message: msgspec.structs.replace(message, papers=message.papers.replace(old, new))


async def is_refused(scene: Scene, *words: str) -> None:
    """The domain stays with its source, which is told why."""
    await scene.hosts["a"].migrate("b")
    assert await scene.home() == "a"
    end = await scene.hosts["a"].end()
    assert not end.moved and all(word in end.text for word in words), end


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (with_facts(cpus=8), "cpus was 2 and is 8"),
        (with_facts(memory_mib=8000), "memory_mib was 0 and is 8000"),
        (with_facts(floor_mib=4000), "floor_mib"),
        (with_facts(kind="priority"), "kind"),
        (with_papers('"floor_mib":0', '"floor_mib":1'), "its papers are others"),
        (with_papers("0000-4000-8000", "0000-4000-8666"), "its papers are others"),
        (with_papers('"vnode":"n1"', '"vnode":"m1"'), "its papers are others"),
    ],
    ids=["cpus", "memory", "floor", "kind", "table", "uuid", "vnode"],
)
def test_later_facts_and_papers_must_be_those_that_were_checked(
    change: Callable[[ParcelSent], ParcelSent], word: str
) -> None:
    async def test(scene: Scene) -> None:
        scene.spoilt = sends(change)
        await is_refused(scene, "it is not what was checked", word)

    play(test)


def test_the_first_papers_must_be_those_of_the_facts_by_which_the_domain_fits() -> None:
    async def test(scene: Scene) -> None:
        scene.spoilt = sends(with_facts(cpus=1), first=True)
        await is_refused(scene, "`cpus` is 2 in its papers and 1 in its facts")

    play(test)


@pytest.mark.parametrize(
    ("copy", "word"),
    [
        (Copy(cpus=64), "its number of CPUs is 64, its papers say 2"),
        (Copy(memory_mib=65_536), "its memory in MiB is 65536, its papers say 512"),
        (Copy(uuid="another"), "its UUID is another"),
    ],
    ids=["cpus", "memory", "uuid"],
)
def test_what_the_hypervisor_receives_must_be_what_the_papers_say(copy: Copy, word: str) -> None:
    async def test(scene: Scene) -> None:
        scene.world.sends = copy
        await is_refused(scene, word)

    play(test)


def test_of_a_domain_that_is_there_already_what_was_checked_counts() -> None:
    """It cannot be sent back any more: the source has let go. The facts about its jobs are taken as they are."""

    def only_final(message: ParcelSent) -> ParcelSent:
        return with_facts(cpus=8, memory_mib=8000, kind="priority")(message) if message.final else message

    async def test(scene: Scene) -> None:
        scene.spoilt = sends(only_final)
        await scene.hosts["a"].migrate("b")
        await scene.until(scene.settled, "it has moved")
        domain = scene.hosts["b"].domain()
        assert domain is not None and (domain.kind, domain.cpus, domain.memory_mib) == (Kind.NORMAL, 2, 0)
        assert len(domain.jobs) == 1

    play(test)
