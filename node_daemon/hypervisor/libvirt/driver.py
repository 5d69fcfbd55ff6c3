"""The driver for libvirt's domains: virtual machines of QEMU/KVM and Xen, containers of LXC.

Rule 1: the event loop never waits for libvirt. One thread reads; each domain has a thread for changes. Each thread has
its own connection (connection.py), and each call a deadline (worker_threads.py).
Rule 2: a reading is what libvirt reports now (reading.py). Without a connection `actual` raises `lost`; nothing is
guessed.
Rule 3: only configured domains are changed. All others are services, which are only counted (`others`). Configured
services are not changed either, but saved and booted if they are to sleep when the machine shuts down.
Rule 4: settings apply to the running domain only, so a domain always boots with what its definition says. A cap there
is the site's own: it is a ceiling, and "no cap" comes back to it (own_caps.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from magrathea import supervision
from magrathea.core.refusals import RefusalCode

from ..base import (
    CALL_DEADLINE_S,
    CPU,
    FLOOR_ADVICE,
    LIFE,
    MEMORY,
    MOVE,
    SAVE,
    DomainChange,
    DomainReading,
    DriverError,
    OnChange,
    Others,
    SaveNeeds,
    save_deadline_s,
)
from . import images
from .balloons import Balloons
from .connection import Connection, Link, ThreadConnection, translated
from .movable import DomainMemory, MovableMemory
from .own_caps import OwnCaps
from .pinning import OWN_MIB
from .reading import DOWN, KIB, UNREAD, Abilities, AllReadings, LibvirtReading, Reader
from .translation import CRASHED, is_paused, is_up
from .worker_threads import Worker

T = TypeVar("T")

log = logging.getLogger(__name__)

STARTED, STOPPED, CRASHED_EVENT = 2, 5, 8
"""Details of libvirt's lifecycle events with which a domain starts or ends."""


UNREAD_S = 0.5
"""A domain that could not be read is read again after this time: a domain that boots is readable within a second."""


class LibvirtDriver:
    """See `base.Driver`. `names`: libvirt's name of each configured domain. `services`: the domains of kind service.
    `sleepers`: those of them that may be saved and booted."""

    def __init__(
        self,
        host: str,
        uri: str,
        names: Mapping[str, str],
        services: frozenset[str] = frozenset(),
        sleepers: frozenset[str] = frozenset(),
    ) -> None:
        self._host = host
        self._uri = uri
        self._names = dict(names)
        self._ours = {libvirt_name: name for name, libvirt_name in names.items()}
        if len(self._ours) < len(self._names):
            raise DriverError(
                RefusalCode.BAD_VALUE, f"host {host}: two domains have the same `libvirt.name`; give each its own"
            )
        self._services = services
        self._untouched = services - sleepers
        self._link: Link | None = None
        self._reader = Worker("libvirt-read")
        self._workers = {name: Worker(f"libvirt-{name}") for name in names}
        self._connections: dict[str, ThreadConnection] = {}
        self._on_event: OnChange | None = None
        self._known: dict[str, LibvirtReading] = {}
        self._unread: Mapping[str, str] = {}
        self._again: asyncio.TimerHandle | None = None
        self._reported_up: dict[str, bool] = {}
        self._events = dict.fromkeys(names, 0)  # how many events each domain has had
        self._abilities: Abilities | None = None
        self._abilities_of: Connection | None = None
        """The connection that `_abilities` were read from. Another libvirtd may support more, or have other domains.

        Until it has answered, the old abilities stay: if they vanished for a moment, the plan would have nothing to do.
        """
        self._others = Others()
        self._away = self._moving = frozenset[str]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_caps: OwnCaps | None = None
        self._movable = MovableMemory()
        self._memory: Mapping[str, DomainMemory] = {}
        self._balloons = Balloons(self._of_domain, self._kept)

    # Capabilities

    @property
    def capabilities(self) -> frozenset[str]:
        found = self._abilities
        if found is None:
            return frozenset()
        able = {LIFE}
        if found.cpu is not None:
            able.add(CPU)
        if found.save:
            able.add(SAVE)
        if found.move:
            able.add(MOVE)
        if any(not memory.why for memory in self._memory.values()) or not self._memory:
            able.add(MEMORY)
        return frozenset(able)

    def notes(self) -> list[str]:
        said = []
        if self._link is not None:
            try:
                _ = self._link.connection
            except DriverError as error:
                said.append(error.text)
        said += [f"domain {name} cannot be read at present: {why}" for name, why in sorted(self._unread.items())]
        pinned = [(name, memory.why) for name, memory in sorted(self._memory.items()) if memory.why]
        said += [f"domain {name}: {why}. {FLOOR_ADVICE}" for name, why in pinned]
        lacking = self._abilities.undefined - self._away if self._abilities is not None else ()
        said += [
            f"domain {n}: libvirt at {self._uri} has no domain {self._names[n]}; define it" for n in sorted(lacking)
        ]
        return [*said, *(self._abilities.said if self._abilities is not None else ()), *self.limits()]

    def limits(self) -> list[str]:
        return list(self._abilities.limits) if self._abilities is not None else []

    def others(self) -> Others:
        return self._others

    def leave_out(self, away: Collection[str], moving: Collection[str]) -> None:
        self._away, self._moving = frozenset(away), frozenset(moving)

    # Starting and ending

    async def start(self, on_event: OnChange) -> None:
        self._on_event = on_event
        self._link = Link(self._uri, self._found, self._lost, self._happened)
        await self._link.start(CALL_DEADLINE_S)
        try:
            await self.actual()
        except DriverError as error:  # `notes` reports it, and the domains are reported when libvirt is back
            log.warning("%s; its domains are reported as soon as it answers", error)

    async def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in (self._reader, *self._workers.values()):
            worker.close()
        for connection in self._connections.values():
            connection.drop()
        if self._link is not None:
            await self._link.close()

    # Reading

    async def actual(self) -> dict[str, DomainReading]:
        link = self._linked()
        connection = link.connection
        known = self._abilities if self._abilities_of is connection else None
        reader = Reader(link.libvirt, self._names, self._services, self._movable, self._caps(link), self._moving)

        def read() -> tuple[Abilities, AllReadings]:
            abilities = known or reader.ask(connection, silent="LIFECYCLE" in link.unwatched)
            return abilities, reader.read(connection, abilities)

        events = dict(self._events)
        (self._abilities, now), balloons = await asyncio.gather(
            self._call(self._reader, "reading the domains", read), self._balloons.mib()
        )
        self._abilities_of = connection if self._abilities.sure else None
        self._others = now.others or self._others
        self._take(now, events)
        return {
            name: replace(one.actual, memory_mib=self._memory_mib(name, one, balloons))
            for name, one in now.found.items()
        }

    def _memory_mib(self, name: str, one: LibvirtReading, balloons: Mapping[str, int]) -> int | None:
        memory = self._memory.get(name)
        if one.actual.memory_mib is None or (memory is not None and memory.why):
            return self._balloons.last_known(name, None)
        return balloons[name] if name in balloons else self._balloons.last_known(name, one.actual.memory_mib)

    def _take(self, now: AllReadings, events: Mapping[str, int]) -> None:
        """Report what has changed. `events`: the number of each domain's events before the reading."""
        before, self._known = self._known, dict(now.found)
        memory = {n: self._movable.unless_kept(n, now.found[n].id, m) for n, m in now.memory.items()}
        self._memory = {**self._memory, **memory} if now.unread else memory
        unread, self._unread = self._unread, now.unread
        for name, why in now.unread.items():
            self._known[name] = before.get(name, UNREAD)
            log.log(logging.DEBUG if name in unread else logging.WARNING, "domain %s cannot be read: %s", name, why)
        if now.unread and (self._again is None or self._again.when() <= asyncio.get_running_loop().time()):
            self._again = asyncio.get_running_loop().call_later(UNREAD_S, self._look_soon)
        for name, one in now.found.items():
            if self._events[name] != events[name]:
                continue  # an event came during the reading, which may be older; the event's receiver reads again
            then = before.get(name, DOWN)
            if {then.actual.up, then.actual.known, one.actual.up, one.actual.known} == {True} and then.id != one.id:
                self._report(name, up=False)  # it went down and came up again without an event
            if self._reported_up.get(name) is not one.actual.up or (name in unread and name not in now.unread):
                self._report(name, up=one.actual.up)

    # Changing

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        self._check(domain)
        if percent is not None and percent < 1:
            raise DriverError(
                RefusalCode.BAD_VALUE, f"domain {domain}: a CPU cap of {percent} % would stop it; the least is 1"
            )
        found = await self._known_abilities()
        control = found.cpu
        if control is None:
            raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain}: {found.kind} cannot cap CPU")

        def work(one: Any) -> None:
            self._must_run(domain, one)
            own, vcpus = own_caps.of(domain, one, fresh=True), one.info()[3]
            parameters = control.parameters(percent, vcpus, own)
            one.setSchedulerParametersFlags(parameters, self._live)
            own_caps.covered.pop(domain, None)
            if percent is not None and control.percent(parameters, vcpus, own) is None:
                own_caps.covered[domain] = percent

        own_caps = self._caps(self._linked())
        await self._change(domain, f"capping the CPU of domain {domain}", work)

    def _caps(self, link: Link) -> OwnCaps:
        if self._own_caps is None:
            self._own_caps = OwnCaps(link.libvirt.libvirtError, int(link.libvirt.VIR_DOMAIN_AFFECT_CONFIG))
        return self._own_caps

    def nearest_cpu(self, percent: int | None) -> int | None:
        if self._abilities is None or self._abilities.cpu is None:
            return percent
        return self._abilities.cpu.nearest(percent)

    async def set_memory(self, domain: str, mib: int) -> None:
        self._check(domain)
        found = await self._known_abilities()
        memory = self._memory.get(domain)
        if memory is not None and memory.why:
            raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain}: {memory.why}; its memory is not moved")

        def work(one: Any) -> None:
            self._must_run(domain, one)
            most = one.maxMemory() // KIB
            if not 1 <= mib <= most:
                raise DriverError(
                    RefusalCode.BAD_VALUE, f"domain {domain}: {mib} MiB asked; it can have 1 to {most} MiB"
                )
            if is_qemu:
                own_mib = memory.own_mib if memory is not None else OWN_MIB
                self._balloons.about_to_set(domain, self._memory_stats(one), own_mib)
            one.setMemoryFlags(mib * KIB, self._live)

        is_qemu = found.kind.upper() == "QEMU"
        await self._change(domain, f"setting the memory of domain {domain}", work)
        if found.kind.upper() != "LXC":
            self._balloons.target_set(domain)

    def _memory_stats(self, one: Any) -> dict[str, int]:
        try:
            return dict(one.memoryStats())
        except self._error:
            return {}

    def _kept(self, domain: str, text: str) -> None:
        """QEMU has kept what the balloon took. It counts as pinned until the domain's next start, and the guest gets
        back what nobody else can have."""
        self._movable.keeps(domain, self._known[domain].id, text)
        log.error("domain %s: %s; its memory is not moved any more", domain, text)

        def deflate(one: Any) -> None:
            one.setMemoryFlags(one.maxMemory(), self._live)

        self._in_background(self._try(domain, f"giving domain {domain} its memory back", deflate))

    async def _try(self, domain: str, what: str, work: Callable[[Any], None]) -> None:
        try:
            await self._change(domain, what, work)
        except DriverError as error:
            log.warning("%s", error)

    async def boot(self, domain: str) -> None:
        def work(one: Any) -> None:
            state = one.state()[0]
            if is_up(state):
                return
            if state == CRASHED:  # libvirt keeps a crashed domain for people to look at
                one.destroy()
            images.start(self._error, one, domain, self._abilities is not None and self._abilities.save)

        known = self._known.get(domain)
        most_mib = (known.actual.max_memory_mib if known is not None else None) or 0
        await self._change(domain, f"booting domain {domain}", work, save_deadline_s(most_mib), saves=True)

    async def shutdown(self, domain: str) -> None:
        def work(one: Any) -> None:
            self._must_run(domain, one)
            one.shutdown()

        await self._change(domain, f"shutting down domain {domain}", work)

    async def destroy(self, domain: str) -> None:
        def work(one: Any) -> None:
            try:
                one.destroy()
            except self._error:
                if one.isActive():
                    raise

        # after SIGTERM libvirt waits up to 15 s for QEMU to end before it sends SIGKILL
        await self._change(domain, f"ending domain {domain}", work, 30.0)

    async def save(self, domain: str) -> None:
        def work(one: Any) -> None:
            self._must_run(domain, one)
            images.save(self._error, one, domain, self._link_constant("VIR_DOMAIN_SAVE_RUNNING"))

        seconds = save_deadline_s((await self.save_needs(domain)).mib)
        await self._change(domain, f"saving domain {domain}", work, seconds, saves=True)

    async def save_needs(self, domain: str) -> SaveNeeds:
        self._check(domain, saves=True)
        found = await self._abilities_to_save(domain)

        def work(one: Any) -> SaveNeeds:
            self._must_run(domain, one)
            connection = self._connections[domain].connection()
            return images.needs(self._error, connection, found.kind, self._uri, one)

        return await self._of_domain(domain, f"looking what saving domain {domain} takes", work, CALL_DEADLINE_S)

    async def image_fault(self, domain: str) -> str:
        self._check(domain)
        await self._abilities_to_save(domain)
        what = f"looking at the image of domain {domain}"
        return await self._of_domain(domain, what, lambda one: images.fault(self._error, one), CALL_DEADLINE_S)

    async def resume(self, domain: str) -> None:
        def work(one: Any) -> None:
            state, reason = one.state()
            if not is_up(state):
                self._must_run(domain, one)
            if state == self._link_constant("VIR_DOMAIN_PMSUSPENDED"):
                one.pMWakeup()
            elif is_paused(state, reason):
                one.resume()

        await self._change(domain, f"resuming domain {domain}", work)

    # Calls

    @property
    def _error(self) -> Any:
        return self._linked().libvirt.libvirtError

    @property
    def _live(self) -> int:
        return self._link_constant("VIR_DOMAIN_AFFECT_LIVE")

    def _link_constant(self, name: str) -> int:
        return int(getattr(self._linked().libvirt, name))

    def _linked(self) -> Link:
        if self._link is None:
            raise DriverError(RefusalCode.FAILED, f"the libvirt driver of {self._host} is not started, or is closed")
        return self._link

    def _check(self, domain: str, *, saves: bool = False) -> None:
        """Raises DriverError if the domain may not be changed. `saves`: it would be saved, or booted."""
        if domain not in self._names:
            raise DriverError(RefusalCode.NO_DOMAIN, f"host {self._host} has no domain {domain}")
        if domain in (self._untouched if saves else self._services):
            raise DriverError(RefusalCode.NOT_PERMITTED, f"domain {domain} is a service, which is never touched")

    def _must_run(self, domain: str, one: Any) -> None:
        if not one.isActive():
            raise DriverError(RefusalCode.DOMAIN_DOWN, f"domain {domain} on {self._host} is down")

    async def _known_abilities(self) -> Abilities:
        if self._abilities is None:
            await self.actual()
        assert self._abilities is not None
        return self._abilities

    async def _abilities_to_save(self, domain: str) -> Abilities:
        found = await self._known_abilities()
        if not found.save:
            raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain}: {found.kind} does not save domains to disk")
        return found

    async def _change(
        self, domain: str, what: str, work: Callable[[Any], None], seconds: float = CALL_DEADLINE_S, saves: bool = False
    ) -> None:
        self._check(domain, saves=saves)
        await self._of_domain(domain, what, work, seconds)

    async def _of_domain(self, domain: str, what: str, work: Callable[[Any], T], seconds: float) -> T:
        """Run `work` on the domain's libvirt object, in the domain's thread, and return its result."""
        link = self._linked()
        _ = link.connection  # raises at once if there is no connection
        own = self._connections.setdefault(domain, ThreadConnection(link))
        return await self._call(
            self._workers[domain], what, lambda: work(own.connection().lookupByName(self._names[domain])), seconds
        )

    async def _call(self, worker: Worker, what: str, work: Callable[[], T], seconds: float | None = None) -> T:
        link = self._linked()
        try:
            return await worker.call(CALL_DEADLINE_S if seconds is None else seconds, what, work)
        except link.libvirt.libvirtError as error:
            _ = link.connection  # if the connection is the cause, this raises `lost`
            raise translated(error, what) from error
        except SystemError as error:
            raise DriverError(RefusalCode.FAILED, f"{what} failed: {images.UNREADABLE}") from error

    # Events

    def _found(self, connection: Connection) -> None:
        self._look_soon(always_report=bool(self._reported_up))

    def _lost(self) -> None:
        for name, up in self._reported_up.items():
            self._report(name, up)  # "read again": the reader finds that nothing is known

    def _happened(self, libvirt_name: str, event: str, detail: int | None) -> None:
        name = self._ours.get(libvirt_name)
        if name is not None:
            self._events[name] += 1
            if event in ("LIFECYCLE", "DEVICE_ADDED", "DEVICE_REMOVED"):
                self._movable.changed(name)
        if name is None:
            self._look_soon()  # a service has started or ended
        elif event == "LIFECYCLE" and detail in (STOPPED, CRASHED_EVENT):
            self._report(name, up=False)
        elif event == "LIFECYCLE" and detail == STARTED:
            self._report(name, up=True)
        else:
            self._report(name, self._reported_up.get(name, False))

    def _report(self, name: str, up: bool) -> None:
        self._reported_up[name] = up
        if not up and name in self._known:
            self._known[name] = DOWN
        if self._on_event is not None and name not in self._services:
            self._on_event(DomainChange(name, up))

    def _look_soon(self, always_report: bool = False) -> None:
        self._in_background(self._look(always_report))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = supervision.start(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, always_report: bool) -> None:
        """Read everything. Reports domains that went up or down, and a change of the services.

        `always_report`: report something in any case, so that a reader that failed meanwhile reads again.
        """
        others = self._others
        try:
            await self.actual()
        except DriverError as error:
            log.warning("after a change: %s", error)
            return
        if (always_report or others != self._others) and self._on_event is not None:
            for name in sorted(self._names.keys() - self._services)[:1]:
                self._on_event(DomainChange(name, self._reported_up.get(name, False)))
