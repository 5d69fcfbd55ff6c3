"""A small world for moves: hosts with their hypervisors, a hub and a network, as one value that can be compared.

Each action is one step of one part. Whatever could fail may fail between two of them.

- A message that was sent may be delivered at any time, any number of times, in any order, or never.
- A daemon has only its journal after a crash; `HostWithMoves` is all of it. The hub has its ledger.
- A copy goes through the phases that libvirt and QEMU have. At any of them each part may die, or the network between
  two hosts; what then becomes of both copies is what their hypervisors may do, the worst included. With `paused` the
  copy arrives paused (VIR_MIGRATE_PAUSED): then the source may even run again although the target has a complete copy,
  because the answer of the target's hypervisor was lost. Without it, such a hypervisor would run two copies by itself.
- A machine may be switched off, and come back at any time. Then an admin may tell the hub that it is lost, and give up
  what rests there; the first host, where the domain is at home, takes it back.
- `stale` is what no part can see: another copy has run since this one was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from magrathea.core import events as ev
from magrathea.core import machine
from magrathea.core import migration as mg
from magrathea.core import move_events as me
from magrathea.core.arrivals import Rules
from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, Kind, Lifecycle, Mode
from magrathea.core.moves import HostWithMoves, Leaving, Ownership, Parcel, Where, Word
from magrathea.core.refusals import RefusalCode
from scheduler_plugin.hub.ownership import Ledger, Visits, decoded, encoded

NAME = "n1"
START = 1_000.0
FAR = 1_000_000.0
"""An admin's deadline, so far away that only an expiry that a test asks for reaches it."""
HOSTS = ("a", "b", "c")
CPUS, MIB = 8, 4_000
"""What each host has."""


@dataclass(frozen=True)
class Copy:
    where: Where
    stale: bool = False
    defined: bool = False


NONE = Copy(Where.ABSENT)


@dataclass(frozen=True)
class Copying:
    """A copy under way. `phase`: `copying`, then `performed` (all is there, the source is paused), then `finished`
    (the target's hypervisor has taken it), then `killed` (the source's process is gone, its definition is not)."""

    source: str
    target: str
    phase: str = "copying"


@dataclass(frozen=True)
class Node:
    """A host. `calls`: its daemon waits for a copy's end. `result`: how that ended; None if it has not. `off`: its
    machine is switched off."""

    place: HostWithMoves
    up: bool = True
    off: bool = False
    calls: bool = False
    result: str | None = None


Message = tuple[str, str, Word | Ownership | Parcel | me.MoveDenied]
"""Sender, receiver, and what is said."""


@dataclass(frozen=True)
class World:
    nodes: tuple[tuple[str, Node], ...]
    copies: tuple[tuple[str, Copy], ...]
    records: tuple[Ownership, ...]
    sent: frozenset[Message]
    copy: Copying | None = None
    paused: bool = True
    late: bool = field(default=False)
    """A deadline has passed: facts may be older than the source's last ones."""
    given_up: bool = False
    """By an admin: its facts, and a copy that might have run, are gone with a host that was lost."""

    def node(self, name: str) -> Node:
        return dict(self.nodes)[name]

    def at(self, name: str) -> Copy:
        return dict(self.copies)[name]

    def having(self, name: str, node: Node) -> World:
        return replace(self, nodes=tuple((n, node if n == name else old) for n, old in self.nodes))

    def with_copy(self, name: str, copy: Copy) -> World:
        return replace(self, copies=tuple((n, copy if n == name else old) for n, old in self.copies))

    def sees(self, name: str) -> tuple[Where, bool]:
        """What the hypervisor of the host shows: the domain, and whether a copy from there is under way."""
        return self.at(name).where, self.copy is not None and self.copy.source == name


def a_domain(*, stopped: bool = False) -> Domain:
    job = Job(JobKey("1", 1), JobClass.PREEMPTIBLE, 2, 100, START - 100, START - 90, confirmed=True, launched=True)
    return Domain(NAME, Kind.NORMAL, 4, lifecycle=Lifecycle.UP, agent_lost_at=None, jobs=(job,))


def a_sibling(host: str) -> Domain:
    """A domain of this host that never moves, and could have all of the host for its jobs."""
    return Domain(f"m{host}", Kind.NORMAL, CPUS, lifecycle=Lifecycle.UP, agent_lost_at=None)


def new_world(hosts: int = 2, *, paused: bool = True, siblings: bool = False) -> World:
    """The domain runs on the first host, and the hub knows it."""
    names = HOSTS[:hosts]
    nodes = []
    ledger = Ledger()
    for name in names:
        domains = ((a_sibling(name),) if siblings else ()) + ((a_domain(),) if name == names[0] else ())
        nodes.append((name, Node(HostWithMoves(Host(name, Mode.COUNTED, CPUS, MIB, domains, now=START)))))
    copies = tuple((n, Copy(Where.RUNNING, defined=True) if n == names[0] else NONE) for n in names)
    world = World(tuple(nodes), copies, (), frozenset(), paused=paused)
    (word,) = words(nodes[0][1].place)
    assert ledger.heard(names[0], word, VISITS).changed
    world = replace(world, records=tuple(ledger.records.values()))
    for name in names:
        world = happened(world, name, me.RecordsTold(START, ledger.told(name)))
    return world


VISITS = Visits({name: frozenset(HOSTS) - {name} for name in HOSTS}, dict.fromkeys(HOSTS, 2))
RULES = {name: Rules(welcome=frozenset(HOSTS) - {name}) for name in HOSTS}


# What parts do.


def happened(world: World, name: str, event: me.MoveEvent) -> World:
    """The world after `event` at a host, which then says all that it has to say."""
    node = world.node(name)
    place, _ = mg.handle(node.place, event, RULES[name])
    if place == node.place:
        return world
    world = world.having(name, replace(node, place=place))
    said = {(name, "hub", word) for word in words(place)}
    parcels = {(name, leaving.to, parcel) for parcel, leaving in zip(mg.parcels(place), sending(place), strict=True)}
    return replace(world, sent=world.sent | said | parcels)


def words(place: HostWithMoves) -> list[Word]:
    """What the host says of the domain that moves."""
    return [word for word in mg.words(place) if word.domain == NAME]


def sending(place: HostWithMoves) -> list[Leaving]:
    return [x for x in place.moves.leaving if x.domain in {p.facts.name for p in mg.parcels(place)}]


def now(world: World, name: str) -> float:
    return world.node(name).place.host.now


def hub_hears(world: World, host: str, word: Word) -> World:
    """The hub takes a word, writes its ledger, and tells every host that it concerns. It may die after each of these:
    what is not written is not told, and what is not told is told later."""
    ledger = Ledger(world.records)
    heard = ledger.heard(host, word, VISITS)
    if heard.changed:
        ledger = decoded(encoded(ledger))
    records = tuple(ledger.records.values())
    told: set[Message] = {
        ("hub", name, record) for name, _ in world.nodes for record in ledger.told(name, {word.domain})
    }
    if heard.refused and heard.refused.code is not RefusalCode.BUSY:
        told |= {("hub", host, me.MoveDenied(START, word.domain, word.number, heard.refused.text))}
    for old, new in zip(world.records, records, strict=True):
        assert new.number >= old.number and new.revision >= old.revision, "a number went back"
    return replace(world, records=records, sent=world.sent | told)


def delivered(world: World, message: Message) -> World:
    sender, to, what = message
    if isinstance(what, Word):
        return hub_hears(world, sender, what)
    if not world.node(to).up:
        return world
    at = now(world, to)
    match what:
        case Ownership():
            return happened(world, to, me.RecordsTold(at, (what,)))
        case Parcel():
            return happened(world, to, me.ParcelTold(at, what))
        case _:
            return happened(world, to, replace(what, at=at))


def looked(world: World, name: str) -> World:
    where, copying = world.sees(name)
    return happened(world, name, me.DomainFound(now(world, name), NAME, where, copying))


def call_returned(world: World, name: str) -> World:
    node = world.node(name)
    assert node.calls and node.result is not None
    world = world.having(name, replace(node, calls=False, result=None))
    return happened(world, name, me.CopyOver(now(world, name), NAME, node.result))


def acted(world: World, name: str) -> World:
    """The host takes the step that its facts and its hypervisor's view demand."""
    node = world.node(name)
    where, copying = world.sees(name)
    at = now(world, name)
    match mg.step(node.place, NAME, where, copying=copying):
        case mg.MoveStep.PREPARE:
            arriving = node.place.moves.arriving_of(NAME)
            assert arriving
            return happened(world, name, me.RoomMade(at, NAME, arriving.number))
        case mg.MoveStep.COPY if not node.calls:
            leaving = node.place.moves.leaving_of(NAME)
            assert leaving and world.copy is None
            world = world.having(name, replace(node, calls=True))
            if world.at(leaving.to).where is not Where.ABSENT or world.node(leaving.to).off:
                return ended(world, name, "there is a domain of that name, or no answer")
            world = world.with_copy(leaving.to, Copy(Where.INCOMING))
            return replace(world, copy=Copying(name, leaving.to))
        case mg.MoveStep.ABORT:
            if world.copy is not None and world.copy.phase == "copying":
                return failed(world, Where.RUNNING, Where.ABSENT)
            if not node.calls and not copying:
                return happened(world, name, me.CopyOver(at, NAME, "nothing was begun"))
            return world
        case mg.MoveStep.RUN | mg.MoveStep.GO_ON:
            return runs(world, name)
        case mg.MoveStep.DISCARD:
            assert where is not Where.RUNNING
            return world.with_copy(name, NONE)
        case _:
            return world


def runs(world: World, name: str) -> World:
    """The copy on this host runs from now on; all others are older than it."""
    world = world.with_copy(name, replace(world.at(name), where=Where.RUNNING))
    for other, copy in world.copies:
        if other != name and copy.where in (Where.LEFT, Where.ARRIVED):
            world = world.with_copy(other, replace(copy, stale=True))
    return world


def ended(world: World, name: str, result: str) -> World:
    """The copy that the host's hypervisor made is over."""
    node = world.node(name)
    world = replace(world, copy=None)
    return world.having(name, replace(node, result=result)) if node.calls else world


# What the hypervisors do.


def progressed(world: World) -> World:
    """The copy's next phase, if nothing goes wrong."""
    copy = world.copy
    assert copy
    source, target = world.at(copy.source), world.at(copy.target)
    if copy.phase == "copying":
        world = world.with_copy(copy.source, replace(source, where=Where.LEFT))
        return replace(world, copy=replace(copy, phase="performed"))
    if copy.phase == "performed":
        world = world.with_copy(copy.target, replace(target, where=Where.ARRIVED, defined=True))
        world = world if world.paused else runs(world, copy.target)
        return replace(world, copy=replace(copy, phase="finished"))
    if copy.phase == "finished":
        world = world.with_copy(copy.source, replace(source, where=Where.OFF))
        return replace(world, copy=replace(copy, phase="killed"))
    return ended(world.with_copy(copy.source, NONE), copy.source, "")


def failed(world: World, source: Where, target: Where, *, result: str = "it failed") -> World:
    """The copy ends with these of both hosts' copies."""
    copy = world.copy
    assert copy
    before = world.at(copy.target)
    defined = target in (Where.OFF, Where.ARRIVED, Where.RUNNING)
    world = world.with_copy(copy.target, NONE if target is Where.ABSENT else Copy(target, before.stale, defined))
    ran = before.where is not Where.RUNNING and target is Where.RUNNING
    if ran:
        world = runs(world, copy.target)
    if source is Where.ABSENT:
        world = world.with_copy(copy.source, NONE)
    else:
        world = world.with_copy(copy.source, replace(world.at(copy.source), where=source))
    if source is Where.RUNNING:
        world = runs(world, copy.source)
    return ended(world, copy.source, result)


def failures(world: World) -> Iterator[World]:
    """All that may become of a copy when a daemon of the hypervisors dies, or the network between them."""
    copy = world.copy
    if copy is None:
        return
    target = world.at(copy.target)
    if copy.phase == "copying":
        yield failed(world, Where.RUNNING, Where.ABSENT)
        yield failed(world, Where.RUNNING, Where.INCOMING)  # the target's hypervisor has not noticed yet
    elif copy.phase == "performed":
        yield failed(world, Where.RUNNING, Where.ABSENT)
        yield failed(world, Where.LEFT, Where.ABSENT)
        yield failed(world, Where.LEFT, Where.INCOMING)
        if world.paused:
            yield failed(world, Where.LEFT, Where.ARRIVED)
            yield failed(world, Where.RUNNING, Where.ARRIVED)
        else:
            yield failed(world, Where.LEFT, Where.RUNNING)
    elif copy.phase == "finished":
        yield failed(world, Where.LEFT, target.where)
        yield failed(world, Where.OFF, target.where)
        yield failed(world, Where.OFF, target.where, result="")  # only the source's daemon knows that it was complete
        if world.paused and target.where is Where.ARRIVED:
            yield failed(world, Where.RUNNING, Where.ARRIVED)
    else:
        yield failed(world, Where.OFF, target.where, result="")


def died(world: World, name: str) -> Iterator[World]:
    """The process of the domain's copy on this host is killed."""
    copy, under_way = world.at(name), world.copy
    if copy.where in (Where.ABSENT, Where.OFF):
        return
    off = Copy(Where.OFF, defined=True) if copy.defined else NONE
    after = world.with_copy(name, off)
    if under_way is None:
        yield after
    elif name == under_way.source:
        if under_way.phase == "copying":
            gone = replace(after, copy=None).with_copy(under_way.target, NONE)
            yield ended(gone, name, "the domain ended")
        elif under_way.phase == "performed":  # the hypervisors go on, or not
            yield replace(after, copy=replace(under_way, phase="performed"))
            yield ended(after.with_copy(under_way.target, NONE), name, "the domain ended")
        else:
            yield after
    elif under_way.phase == "copying":
        yield failed(after, Where.RUNNING, Where.ABSENT)
    elif under_way.phase == "performed":
        yield failed(after, Where.RUNNING, Where.ABSENT)
        yield failed(after, Where.LEFT, Where.ABSENT)
    else:
        yield after


def cleaned(world: World) -> World:
    """Hypervisors end incoming copies whose source is gone."""
    for name, copy in world.copies:
        if copy.where is Where.INCOMING and (world.copy is None or world.copy.target != name):
            world = world.with_copy(name, NONE)
    return world


# Faults of daemons.


def crashed(world: World, name: str) -> World:
    return world.having(name, replace(world.node(name), up=False, calls=False, result=None))


def restarted(world: World, name: str) -> World:
    world = world.having(name, replace(world.node(name), up=True))
    return happened(world, name, me.Restarted(now(world, name)))


def requested(world: World, name: str, to: str) -> World:
    at = now(world, name)
    return happened(world, name, me.MoveRequested(at, NAME, to, at + FAR))


def expired(world: World, name: str) -> World:
    """All deadlines of the host pass."""
    due = mg.next_deadline(world.node(name).place)
    return world if due is None else replace(happened(world, name, me.Ticked(due)), late=True)


def changed(world: World, name: str) -> World:
    """One of the domain's jobs ends, or another starts: a fact changes where the domain's facts are."""
    node = world.node(name)
    domain = node.place.host.domain(NAME)
    if (
        domain is None
        or not domain.jobs
        or not mg.may_act(node.place, NAME)
        or world.at(name).where is not Where.RUNNING
    ):
        return world
    run = 1 + max((job.key.run for job in domain.jobs), default=0)
    job = replace(domain.jobs[0], key=JobKey("1", run), preemptions=domain.jobs[0].preemptions + 1)
    host = node.place.host.having(replace(domain, jobs=(job,)))
    at = host.now + 1
    world = world.having(name, replace(node, place=replace(node.place, host=replace(host, now=at))))
    parcels = tuple(mg.parcels(world.node(name).place))
    leaving = sending(world.node(name).place)
    return replace(world, sent=world.sent | {(name, x.to, p) for p, x in zip(parcels, leaving, strict=True)})


def claimed(world: World, name: str, cpus: int, mib: int) -> World:
    """A protected job of this size asks for its start beside the domain, on this host. It gets what there is."""
    node = world.node(name)
    host = node.place.host
    run = 1 + max((job.key.run for d in host.domains if d.name != NAME for job in d.jobs), default=0)
    event = ev.Claimed(host.now, f"m{name}", JobKey("2", run), JobClass.PROTECTED, cpus, mib)
    return world.having(name, replace(node, place=replace(node.place, host=machine.handle(host, event)[0])))


def released(world: World, name: str) -> World:
    """The oldest job beside the domain ends."""
    node = world.node(name)
    host = node.place.host
    first = next((job.key for d in host.domains if d.name != NAME for job in d.jobs), None)
    if first is None:
        return world
    after, _ = machine.handle(host, ev.Released(host.now, f"m{name}", first))
    return world.having(name, replace(node, place=replace(node.place, host=after)))
