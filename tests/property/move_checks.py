"""What must be true of the small world for moves (move_world.py) at every moment and in the end, and its next steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial

from magrathea.core import migration as mg
from magrathea.core import move_events as me
from magrathea.core import shares
from magrathea.core.model import Domain
from magrathea.core.moves import HostWithMoves, Letting, Where

from .move_losses import back, booted, configured, given_up, lost, switched_off
from .move_world import (
    NAME,
    Message,
    World,
    acted,
    call_returned,
    changed,
    claimed,
    cleaned,
    crashed,
    delivered,
    died,
    expired,
    failures,
    happened,
    hub_hears,
    looked,
    progressed,
    released,
    requested,
    restarted,
    sending,
    words,
)

# What must always be so.


def facts_of(place: HostWithMoves) -> Iterator[Domain]:
    """The domain's facts, where they count: in use, or sealed until the target has them."""
    if (domain := place.host.domain(NAME)) is not None:
        yield domain
    leaving = place.moves.leaving_of(NAME)
    if leaving is not None and leaving.sealed is not None:
        yield leaving.sealed


def check(world: World) -> None:
    running = [name for name, copy in world.copies if copy.where is Where.RUNNING]
    assert len(running) <= 1, f"the domain runs on {running}"
    assert not any(world.at(name).stale for name in running), f"an old copy runs on {running}"
    if world.given_up:
        return  # its facts are gone with a host; that host has old ones when it comes back, until it has heard the hub
    used = [name for name, node in world.nodes if node.place.host.domain(NAME) is not None]
    assert len(used) <= 1 or world.late, f"its facts are doubled: {used}"
    acting = [name for name, node in world.nodes if mg.may_act(node.place, NAME)]
    assert len(acting) <= 1 or world.late, f"{acting} act on it"
    all_facts = [facts for _, node in world.nodes for facts in facts_of(node.place)]
    assert all_facts, "its facts are lost"
    newest = max(facts.jobs[0].key.run for facts in all_facts)
    if used and not world.late:
        place = world.node(used[0]).place
        domain = place.host.domain(NAME)
        assert domain and domain.jobs[0].key.run == newest, "old facts are in use"


def able(world: World) -> list[str]:
    """Hosts with a copy that runs, or must go on because nothing can have run since it was made.

    Not the source if a complete copy has ended elsewhere: nobody can tell whether that one had run. The hypervisors
    themselves end the source once the target's has taken the copy. Not an arrived copy if the domain ended at its
    source, and nobody there knows whether it had gone on after the copy: then it may be too old.
    """
    taken = world.copy is not None and world.copy.phase in ("finished", "killed")
    ended_elsewhere = any(copy.where is Where.OFF for _, copy in world.copies)
    found = []
    for name, copy in world.copies:
        if world.given_up and copy.where is not Where.RUNNING:
            continue  # an admin has said so
        left = copy.where is Where.LEFT and not taken and not ended_elsewhere
        arrived = copy.where is Where.ARRIVED and (taken or not ended_elsewhere or known_complete(world))
        if not copy.stale and (left or arrived or copy.where is Where.RUNNING):
            found.append(name)
    return found


def known_complete(world: World) -> bool:
    """True if a daemon knows, or will hear, that its copy was complete when the domain ended there."""
    nodes = [node for _, node in world.nodes if not node.off]
    return any(node.result == "" or any(x.letting is Letting.GONE for x in node.place.moves.leaving) for node in nodes)


def outcome(world: World, known: dict[World, str], rounds: int = 40) -> str:
    """Where the domain is when everything works again, all messages arrive, and all that is under way ends; empty if it
    has ended. `known`: outcomes found so far. Raises AssertionError if it does not settle as it must.

    If a machine is off, it settles also if that stays so, and an admin says it.
    """
    if any(node.off for _, node in world.nodes):
        _outcome(world, known, rounds)
    for name, node in world.nodes:
        world = back(world, name) if node.off else world
    return _outcome(world, known, rounds)


def _outcome(world: World, known: dict[World, str], rounds: int) -> str:
    for name, node in world.nodes:
        if not (node.up or node.off):
            world = restarted(world, name)
    path = [replace(world, sent=frozenset())]
    while path[-1] not in known:
        assert len(path) < rounds, f"it does not settle in {rounds} rounds: {world}"
        world = one_round(path[-1])
        check(world)
        path.append(replace(world, sent=frozenset()))
        if path[-1] == path[-2]:
            known[path[-1]] = settled(world)
    where = known[path[-1]]
    for step in path:
        known[step] = where
        assert where or not able(step), f"a copy could run, and none does in the end: {step}"
    return where


def one_round(world: World) -> World:
    world = said_of_lost(cleaned(world))
    if world.copy is not None:
        world = progressed(world)
    for name, _ in world.nodes:
        world = configured(world, name)
        node = world.node(name)
        if node.off:
            continue
        if node.calls and node.result is not None:
            world = call_returned(world, name)
        world = acted(looked(world, name), name)
        place = world.node(name).place
        for word in words(place):
            world = hub_hears(world, name, word)
        for parcel, leaving in zip(mg.parcels(place), sending(place), strict=True):
            world = delivered(world, (name, leaving.to, parcel))
    for name, _ in world.nodes:
        for record in world.records:
            world = delivered(world, ("hub", name, record))
    return world


def said_of_lost(world: World) -> World:
    """What an admin says of machines that stay off. The others wait as long as they would wait for facts."""
    for name, node in world.nodes:
        if node.off:
            world = lost(world, name, run_copies=not any(copy.stale for _, copy in world.copies))
    (record,) = world.records
    if record.transfer is None and record.owner and world.node(record.owner).off:
        world = given_up(world)
    for name, node in world.nodes:
        if not node.off and any(other.off for _, other in world.nodes):
            world = expired(world, name)
    return world


def settled(world: World) -> str:
    """Where the domain is after everything has healed; empty if it ended. Raises AssertionError if anything is left."""
    (record,) = world.records
    assert record.transfer is None, f"a move is still under way: {world}"
    for name, node in world.nodes:
        if node.off:
            continue
        assert not node.place.moves.leaving and not node.place.moves.arriving, f"{name} is not done: {world}"
        copy = world.at(name)
        left = copy.where in (Where.LEFT, Where.ARRIVED, Where.INCOMING)
        assert not left, f"a copy is left on {name}: {world}"
        assert (node.place.host.domain(NAME) is not None) == (name == record.owner), f"facts and owner differ: {world}"
    home_is_off = world.node(world.nodes[0][0]).off
    assert record.owner or home_is_off, f"its home host does not take it back: {world}"
    running = [name for name, copy in world.copies if copy.where is Where.RUNNING]
    assert running in ([], [record.owner]), f"it runs on {running}, the owner is {record.owner}"
    return record.owner if running else ""


# All that can happen next.

Step = tuple[str, Callable[[], World]]


def ordinary(world: World) -> Iterator[Step]:
    """What parts do when nothing fails, and all that a network may do."""
    for message in sorted(world.sent, key=_order):
        yield f"deliver {_order(message)}", partial(delivered, world, message)
    for name, node in world.nodes:
        if node.off:
            yield f"{name} is switched on", partial(back, world, name)
            yield f"{name} is said to be lost", partial(lost, world, name, run_copies=False)
            if not any(copy.stale for _, copy in world.copies):
                yield f"{name} is said to be lost in one moment", partial(lost, world, name, run_copies=True)
            if world.records[0].owner == name and world.records[0].transfer is None:
                yield f"the domain of {name} is given up", partial(given_up, world)
            continue
        if not node.up:
            yield f"restart the daemon of {name}", partial(restarted, world, name)
            continue
        yield f"{name} reads its configuration", partial(configured, world, name)
        yield f"{name} looks", partial(looked, world, name)
        yield f"{name} acts", partial(acted, world, name)
        if node.calls and node.result is not None:
            yield f"the copy's call returns on {name}", partial(call_returned, world, name)
    if world.copy is not None:
        yield "the copy goes on", partial(progressed, world)
    yield "the hypervisors clean up", partial(cleaned, world)


@lru_cache(maxsize=100_000)
def _order(message: Message) -> str:
    return repr(message)


def faults(world: World) -> Iterator[Step]:
    """One part fails, or a deadline passes."""
    for name, node in world.nodes:
        if node.up:
            yield f"the daemon of {name} dies", partial(crashed, world, name)
            yield f"deadlines of {name} pass", partial(expired, world, name)
        for after in died(world, name):
            yield f"QEMU on {name} dies", partial(replace, after)
    for after in failures(world):
        yield "a hypervisor's daemon dies, or the network between two", partial(replace, after)


def losses(world: World) -> Iterator[Step]:
    """A machine is switched off. Only where copies arrive paused: otherwise nobody knows whether the lost one ran."""
    for name, node in world.nodes:
        if world.paused and not node.off:
            for after in switched_off(world, name):
                yield f"{name} is switched off", partial(replace, after)


def wishes(world: World) -> Iterator[Step]:
    """An admin wants the domain elsewhere, or one of its facts changes."""
    for name, node in world.nodes:
        if node.up:
            yield f"a fact changes on {name}", partial(changed, world, name)
            at = node.place.host.now
            yield f"its jobs must rest on {name}", partial(happened, world, name, me.JobsMustRest(at, NAME))
            yield f"it stands still on {name}", partial(happened, world, name, me.StandsStill(at, NAME))
            yield f"{name} is to boot it", partial(booted, world, name)
            for to, _ in world.nodes:
                yield f"{name} is to send it to {to}", partial(requested, world, name, to)


def jobs_beside(world: World) -> Iterator[Step]:
    """Jobs start and end in the siblings of the domain; some would take what is kept for it."""
    for name, node in world.nodes:
        if node.up:
            for size in ((1, 500), (7, 0), (1, 3_950)):
                yield f"a job of {size} asks for its start on {name}", partial(claimed, world, name, *size)
            yield f"a job ends on {name}", partial(released, world, name)


def nothing_given_twice(world: World) -> None:
    """What jobs hold and what moves keep fits into each host. Once a deadline has passed, a host keeps nothing for what
    may come all the same."""
    for name, node in world.nodes:
        host = node.place.host
        left = shares.unused(host)
        assert world.late or (left.cpus >= 0 and left.mib >= 0), f"{name} has given {left} too much: {host}"
