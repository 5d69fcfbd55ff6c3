"""The hypervisors of hosts between which domains move, in memory, and each host's mover.

Like real ones they outlive the daemons: a copy goes on if the daemon that began it dies. Whatever is done to a domain,
they check that it never runs twice, and never from a copy that is too old.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from magrathea.core.refusals import RefusalCode
from node_daemon.hypervisor.base import DriverError
from node_daemon.hypervisor.moving import (
    Arrival,
    CopiedDisk,
    Departure,
    Destination,
    Moved,
    MoveOutcome,
    MoveProgress,
    Premises,
    Presence,
    Terms,
    Watcher,
    Whereabouts,
)

CALL_S = 0.001
COPY_S, SWITCH_S = 3.0, 0.2
UUID = "4c7b1f3e-0000-4000-8000-000000000001"
DISK = "/disks/n1.qcow2"
CPUS, MEMORY_MIB = 2, 512
RUNNING = (Presence.RUNNING, Presence.LEAVING)


@dataclass(frozen=True)
class Copy:
    """A domain on one host. `age`: how often the domain had been let run when this copy was made."""

    presence: Presence = Presence.ABSENT
    defined: bool = False
    age: int = 0
    uuid: str = UUID
    cpus: int = CPUS
    memory_mib: int = MEMORY_MIB


NOTHING = Copy()


@dataclass
class Job:
    """A copy under way."""

    source: str
    target: str
    task: asyncio.Task[str] | None = None


@dataclass
class Hypervisors:
    """`copies`: by host and domain. `files`: by host. `fails`: asked before each phase of a copy (`copying`,
    `performed`, `finished`); it may change `copies` and return why the copy ends. `story`: what was done."""

    copies: dict[tuple[str, str], Copy] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    fails: Callable[[str], str] = lambda phase: ""
    reasons: list[str] = field(default_factory=list)
    """Why nothing may leave."""
    unwelcome: str = ""
    """Why nothing may come."""
    jobs: dict[str, Job] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    ran: int = 1
    sends: Copy = field(default_factory=Copy)
    """What the sources' hypervisors send as the definition of a domain."""

    def at(self, host: str, domain: str) -> Copy:
        return self.copies.get((host, domain), NOTHING)

    def put(self, host: str, domain: str, copy: Copy) -> None:
        was = self.at(host, domain)
        self.copies[host, domain] = copy
        self.story.append(f"{host}: {domain} is {copy.presence}{' and defined' if copy.defined else ''}")
        running = [key for key, one in self.copies.items() if one.presence in RUNNING and key[1] == domain]
        assert len(running) <= 1, (running, self.story)
        if copy.presence in RUNNING and was.presence not in RUNNING:
            assert copy.age == self.ran, ("an old copy runs", self.story)
            self.ran += 1
            self.copies[host, domain] = replace(copy, age=self.ran)

    def running(self, domain: str) -> list[str]:
        return [host for (host, name), one in self.copies.items() if name == domain and one.presence in RUNNING]

    async def copied(self, domain: str, source: str, target: str, seen: Callable[[MoveProgress], None]) -> str:
        """Why the copy has failed; empty if it has not."""
        if self.at(target, domain) != NOTHING and self.at(target, domain).presence is not Presence.ABSENT:
            return "there is a domain of that name"
        self.put(source, domain, replace(self.at(source, domain), presence=Presence.LEAVING))
        self.put(target, domain, replace(self.sends, presence=Presence.ARRIVING))
        for part in range(10):
            await asyncio.sleep(COPY_S / 10)
            seen(MoveProgress(COPY_S, (part + 1) * 10 * 2**20, (9 - part) * 10 * 2**20, 1))
            if part == 5 and (why := self.fails("copying")):
                return self._failed(domain, source, target, why)
            if self.at(source, domain).presence is not Presence.LEAVING:
                return self._failed(domain, source, target, "it was cancelled")
        here = self.at(source, domain)
        self.put(source, domain, replace(here, presence=Presence.SWITCHING))
        await asyncio.sleep(SWITCH_S)
        if why := self.fails("performed"):
            return why
        self.put(target, domain, replace(self.sends, presence=Presence.ARRIVED, defined=True, age=here.age))
        await asyncio.sleep(SWITCH_S)
        if why := self.fails("finished"):
            return why
        self.put(source, domain, NOTHING)
        return ""

    def _failed(self, domain: str, source: str, target: str, why: str) -> str:
        self.put(source, domain, replace(self.at(source, domain), presence=Presence.RUNNING))
        self.put(target, domain, NOTHING)
        return why


class FakeMover:
    """The mover of one daemon at `host`. See `moving.DomainMover`."""

    def __init__(self, world: Hypervisors, host: str) -> None:
        self.world = world
        self.host = host
        self.names: dict[str, str] = {}

    def know(self, domain: str, name: str) -> None:
        self.names[domain] = name

    def close(self) -> None:
        return

    async def _call(self, domain: str) -> Copy:
        await asyncio.sleep(CALL_S)
        return self.world.at(self.host, domain)

    async def why_not_movable(self, domain: str, terms: Terms) -> list[str]:
        await self._call(domain)
        return list(self.world.reasons)

    async def departure(self, domain: str, terms: Terms) -> Departure:
        await self._call(domain)
        return Departure(
            self.names[domain],
            UUID,
            "/run/there.sock",
            (CopiedDisk("vda", DISK, "qcow2", 2**30),),
            cpus=CPUS,
            memory_mib=MEMORY_MIB,
        )

    async def why_not_welcome(self, domain: str, departure: Departure, premises: Premises) -> list[str]:
        return [self.world.unwelcome] if self.world.unwelcome else []

    async def prepare(self, domain: str, departure: Departure, premises: Premises) -> Arrival:
        await self._call(domain)
        if self.world.unwelcome:
            raise DriverError(RefusalCode.NOT_SUPPORTED, self.world.unwelcome)
        made = tuple(disk.path for disk in departure.disks)
        files = self.world.files.setdefault(self.host, set())
        if taken := files & set(made):
            raise DriverError(RefusalCode.NOT_SUPPORTED, f"{taken} exists here; remove it if nobody needs it")
        files |= set(made)
        return Arrival({departure.channel: premises.channel}, made)

    async def clear(self, domain: str, arrival: Arrival) -> None:
        if (await self._call(domain)).presence is not Presence.ABSENT:
            raise DriverError(RefusalCode.BUSY, "it is here; its files stay")
        self.world.files.setdefault(self.host, set()).difference_update(arrival.made)
        self.world.story.append(f"{self.host}: files of {domain} are removed")

    async def move(
        self, domain: str, departure: Departure, arrival: Arrival, destination: Destination, watcher: Watcher
    ) -> Moved:
        await self._call(domain)
        assert destination.waits
        target = destination.uri.split("//")[1].split("/")[0]
        work = self.world.copied(domain, self.host, target, watcher.progressed)
        job = self.world.jobs[domain] = Job(self.host, target, asyncio.get_running_loop().create_task(work))
        assert job.task is not None
        why = await asyncio.shield(job.task)
        return self._ended(domain, why) if why else Moved(MoveOutcome.GONE, MoveProgress())

    def _ended(self, domain: str, why: str) -> Moved:
        here = self.world.at(self.host, domain).presence is Presence.RUNNING
        return Moved(MoveOutcome.STAYED if here else MoveOutcome.UNKNOWN, MoveProgress(), why)

    async def follow(self, domain: str, watcher: Watcher) -> Moved:
        job = self.world.jobs.get(domain)
        if job is not None and job.task is not None:
            with contextlib.suppress(Exception):
                await asyncio.shield(job.task)
        return self._ended(domain, "the daemon was restarted during the move")

    async def cancel(self, domain: str) -> bool:
        copy = await self._call(domain)
        if copy.presence is not Presence.LEAVING:
            return False
        self.world.put(self.host, domain, replace(copy, presence=Presence.RUNNING))
        return True

    async def where_is(self, domain: str, awaited: bool = False) -> Whereabouts:
        copy = await self._call(domain)
        presence = copy.presence
        if presence is Presence.ARRIVED and not awaited:
            presence = Presence.PAUSED
        known = copy.defined or presence is not Presence.ABSENT
        return Whereabouts(presence, copy.defined, copy.uuid if known else "", copy.cpus, copy.memory_mib)

    async def go_on_here(self, domain: str, awaited: bool = False) -> None:
        copy = await self._waiting(domain, awaited)
        self.world.put(self.host, domain, replace(copy, presence=Presence.RUNNING))

    async def give_up(self, domain: str, awaited: bool = False) -> None:
        if (await self._call(domain)).presence is not Presence.ABSENT:
            await self._waiting(domain, awaited)
        self.world.put(self.host, domain, NOTHING)

    async def _waiting(self, domain: str, awaited: bool) -> Copy:
        copy = await self._call(domain)
        if copy.presence is Presence.HELD or (copy.presence is Presence.ARRIVED and awaited):
            return copy
        raise DriverError(RefusalCode.BUSY, f"{domain} on {self.host} is {copy.presence}")

    async def standstill_s(self, domain: str) -> float | None:
        return None
