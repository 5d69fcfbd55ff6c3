"""Machines that are switched off in the small world for moves (move_world.py), and what an admin says then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from magrathea.core import migration as mg
from magrathea.core import moves as mv
from magrathea.core.events import ConfiguredDomain
from magrathea.core.model import Domain, Kind
from magrathea.core.moves import Where
from scheduler_plugin.hub.ownership import Ledger, decoded, encoded

from .move_world import HOSTS, NAME, NONE, Copy, Message, World, ended, runs


def switched_off(world: World, name: str) -> Iterator[World]:
    """The machine of a host is off, with all that runs on it. What becomes of a copy depends on its phase."""
    copy = world.at(name)
    after = world.with_copy(name, Copy(Where.OFF, copy.stale, True) if copy.defined else NONE)
    after = after.having(name, replace(after.node(name), up=False, calls=False, result=None, off=True))
    under_way = world.copy
    if under_way is None or name not in (under_way.source, under_way.target):
        yield after
    elif name == under_way.source:
        after = replace(after, copy=None)
        yield after  # what had not arrived completely is cleaned up later; what had stays
    else:
        ends = [Where.RUNNING] if under_way.phase == "copying" else [Where.LEFT, Where.OFF]
        ends += [Where.RUNNING] if under_way.phase == "performed" else []
        for end in ends if under_way.phase != "killed" else [Where.OFF]:
            source = replace(world.at(under_way.source), where=end)
            yield ended(after.with_copy(under_way.source, source), under_way.source, "the target is away")


def back(world: World, name: str) -> World:
    """The machine is switched on again; its daemon starts later."""
    return world.having(name, replace(world.node(name), off=False))


def lost(world: World, name: str, *, run_copies: bool) -> World:
    """An admin tells the hub that a host is lost. `run_copies`: and that none of its guests ran on after its copy."""
    assert world.node(name).off and not (run_copies and any(copy.stale for _, copy in world.copies))
    ledger = Ledger(world.records)
    ledger.host_lost(name, run_copies=run_copies)
    return _booked(world, ledger)


def given_up(world: World) -> World:
    """An admin gives up the domain of a host that is off."""
    ledger = Ledger(world.records)
    ledger.give_up(NAME)
    return _booked(world, ledger)


def _booked(world: World, ledger: Ledger) -> World:
    ledger = decoded(encoded(ledger))
    records = tuple(ledger.records.values())
    if records == world.records:
        return world
    told: set[Message] = {("hub", name, record) for name, _ in world.nodes for record in records}
    (record,) = records
    ends = not record.owner or world.records[0].transfer is not None
    return replace(world, records=records, sent=world.sent | told, given_up=world.given_up or ends)


def configured(world: World, name: str) -> World:
    """A host reads its configuration. Only the first one's names the domain."""
    node = world.node(name)
    meant = ConfiguredDomain(NAME, Kind.NORMAL, 4)
    if node.off or name != HOSTS[0] or node.place.host.domain(NAME) or not mg.configured(node.place, (meant,)):
        return world
    host = mv.with_domain(node.place.host, Domain(NAME, Kind.NORMAL, 4))
    world = world.having(name, replace(node, place=replace(node.place, host=host)))
    return replace(world, sent=world.sent | {(name, "hub", word) for word in mg.words(world.node(name).place)})


def booted(world: World, name: str) -> World:
    """An admin boots the domain, which is down. If the host has just come back, it has heard the hub before."""
    place = world.node(name).place
    told = place.moves.record(NAME) in world.records
    if not told or mg.refusal(place, NAME) or place.host.domain(NAME) is None:
        return world
    return runs(world, name) if world.at(name).where in (Where.OFF, Where.ABSENT) else world
