"""Moves libvirt's running virtual machines to another host, and reports what a move has left where.

Rule 1: libvirtd makes the move with the other libvirtd (PEER2PEER). So it goes on if this daemon ends, and its outcome
does not depend on this daemon.
Rule 2: the event loop never waits for libvirt. A move has a thread and a connection; watching and cancelling it have
others, since a call that hangs blocks its connection.
Rule 3: no post-copy, no throttling of the guest: these flags are never set. What ends a copy is `help_needed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from magrathea.core.passes import Help
from magrathea.core.refusals import RefusalCode

from ...base import CALL_DEADLINE_S, DriverError
from ...moving import (
    Arrival,
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
from ..connection import KEEPALIVE, binding, translated
from ..translation import NO_DOMAIN, PAUSED, RUNNING, is_up
from ..worker_threads import Worker, in_own_thread
from . import arriving, departing, watching
from .watching import IN, OUT

T = TypeVar("T")

log = logging.getLogger(__name__)

PREPARE_S = arriving.MAKE_S + CALL_DEADLINE_S
BY_MOVE = 2
"""libvirt's reason of PAUSED: a migration (libvirt-domain.h, VIR_DOMAIN_PAUSED_MIGRATION)."""


EMULATION_IS_SAFE = 9_000_000
"""From this version on (9.0) QEMU notices all writes of emulated processors to memory that it has already sent. Older
ones lose some (seen with 7.2: a process found its memory as it had been rounds before)."""


class LibvirtMover:
    """See `moving.DomainMover`. `uri`: this host's libvirt. `names`: libvirt's name of each domain that may move.

    `trusts_emulation`: move emulated domains live even if QEMU may lose what they write. Only for tests of the passes.
    """

    def __init__(self, host: str, uri: str, names: Mapping[str, str], trusts_emulation: bool = False) -> None:
        self._trusts_emulation = trusts_emulation
        self._host = host
        self._uri = uri
        self._names = dict(names)
        self._libvirt = binding()
        self._workers: dict[str, Worker] = {}
        self._connections: dict[str, Any] = {}

    def know(self, domain: str, name: str) -> None:
        """See `moving.DomainMover`."""
        self._names[domain] = name

    def close(self) -> None:
        """End the threads. Moves under way go on in libvirtd."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    # Before a move

    async def why_not_movable(self, domain: str, terms: Terms) -> list[str]:
        return await self._call(domain, "reading", lambda connection, one: self._reasons(one, terms)[0])

    async def departure(self, domain: str, terms: Terms) -> Departure:
        def work(connection: Any, one: Any) -> Departure:
            reasons, found = self._reasons(one, terms)
            if reasons or found is None:
                raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain} cannot be moved: {'; '.join(reasons)}")
            sizes = {disk.target: int(one.blockInfo(disk.target)[0]) for disk in found.copied}
            cpus, memory_mib = _most(one)
            needs = departing.departure(one.name(), one.UUIDString(), found, sizes)
            return replace(needs, cpus=cpus, memory_mib=memory_mib)

        return await self._call(domain, "reading", work)

    def _reasons(self, one: Any, terms: Terms) -> tuple[list[str], departing.XmlFindings | None]:
        if not one.isActive():
            return ["it is not running"], None
        kind = str(one.connect().getType())
        if kind.upper() != "QEMU":
            return [f"libvirt does not move running domains of {kind}; drain it"], None
        found = departing.look(one.XMLDesc(self._libvirt.VIR_DOMAIN_XML_MIGRATABLE), terms)
        reasons = list(found.reasons)
        if count := one.snapshotNum():
            fix = f"virsh snapshot-delete {one.name()} NAME"
            reasons.append(f"it has {count} snapshots, which libvirt cannot move; delete them: {fix}")
        if not found.channel:
            reasons.append("it has no guest channel; `magrathea host adopt` adds one")
        return reasons, found

    async def why_not_welcome(self, domain: str, departure: Departure, premises: Premises) -> list[str]:
        def work(connection: Any, one: Any | None) -> list[str]:
            return self._unwelcome(one, departure, premises)

        return await self._call(domain, "reading", work, may_lack=True)

    def _unwelcome(self, one: Any | None, departure: Departure, premises: Premises) -> list[str]:
        reasons = list(arriving.lacking(departure, premises))
        if one is not None and one.UUIDString() != departure.uuid:
            text = f"another domain of the name {departure.name} is defined here"
            reasons.append(f"{text} (UUID {one.UUIDString()}); undefine or rename it")
        elif one is not None and one.isActive():
            reasons.append("it is here already")
        elif one is not None and one.hasManagedSaveImage():
            reasons.append("an image of it is saved here; remove it: virsh managedsave-remove")
        return reasons

    async def prepare(self, domain: str, departure: Departure, premises: Premises) -> Arrival:
        def work(connection: Any, one: Any | None) -> Arrival:
            if reasons := self._unwelcome(one, departure, premises):
                text = f"domain {domain} cannot come to {self._host}: {'; '.join(reasons)}"
                raise DriverError(RefusalCode.NOT_SUPPORTED, text)
            try:
                return arriving.prepare(departure, premises)
            except (OSError, arriving.CannotMake) as error:
                text = f"what domain {domain} needs cannot be made on {self._host}: {error}"
                raise DriverError(RefusalCode.FAILED, text) from error

        return await self._call(domain, "preparing", work, PREPARE_S, may_lack=True)

    async def clear(self, domain: str, arrival: Arrival) -> None:
        def work(connection: Any, one: Any | None) -> None:
            if one is not None and one.isActive():
                raise DriverError(RefusalCode.BUSY, f"domain {domain} is on {self._host}; its files stay")
            try:
                arriving.clear(arrival)
            except OSError as error:
                raise DriverError(RefusalCode.FAILED, f"what was made for domain {domain}: {error}") from error

        await self._call(domain, "clearing", work, may_lack=True)

    # The move

    async def move(
        self, domain: str, departure: Departure, arrival: Arrival, destination: Destination, watcher: Watcher
    ) -> Moved:
        libvirt, name = self._libvirt, self._name(domain)

        def work() -> None:
            connection = self._open()
            try:
                one = connection.lookupByName(name)
                flags, parameters = self._order(one, departure, arrival, destination)
                one.migrateToURI3(destination.uri, parameters, flags)
            finally:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.close()

        moving = asyncio.ensure_future(in_own_thread(f"libvirt-move-{domain}", work))
        progress = await watching.watch(domain, self, watcher, moving)
        try:
            await moving
        except libvirt.libvirtError as error:
            return await self._ended(domain, progress, str(error))
        return Moved(MoveOutcome.GONE, progress)

    def _order(
        self, one: Any, departure: Departure, arrival: Arrival, destination: Destination
    ) -> tuple[int, dict[str, object]]:
        """Flags and parameters of the move. Raises libvirtError."""
        libvirt = self._libvirt
        words = ["PEER2PEER", "PERSIST_DEST", "UNDEFINE_SOURCE"]
        if self._may_run(one):
            words.append("LIVE")
        secure = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        parameters: dict[str, object] = {
            "destination_xml": departing.with_paths(one.XMLDesc(secure), arrival.paths),
        }
        if one.isPersistent():
            own = one.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
            parameters["persistent_xml"] = departing.with_paths(own, arrival.paths)
        if destination.memory_uri:
            parameters["migrate_uri"] = destination.memory_uri
        if destination.bandwidth_mib_s is not None:
            parameters["bandwidth"] = destination.bandwidth_mib_s
        if destination.encrypted:
            words.append("TLS")
        if destination.waits:
            words.append("PAUSED")
        if departure.disks:
            # with a full copy the destination's disk would no longer share its base image
            words.append("NON_SHARED_INC" if any(disk.backing for disk in departure.disks) else "NON_SHARED_DISK")
            parameters["migrate_disks"] = [disk.target for disk in departure.disks]
            if destination.disks_uri:
                parameters["disks_uri"] = destination.disks_uri
        flags = 0
        for word in words:
            flags |= int(getattr(libvirt, f"VIR_MIGRATE_{word}"))
        return flags, parameters

    def _may_run(self, one: Any) -> bool:
        """True if the domain may run while it is copied. Raises libvirtError."""
        if self._trusts_emulation or one.connect().getVersion() >= EMULATION_IS_SAFE:
            return True
        return not departing.look(one.XMLDesc(0), Terms()).is_emulated

    async def follow(self, domain: str, watcher: Watcher) -> Moved:
        progress = await watching.watch(domain, self, watcher, None)
        return await self._ended(domain, progress, "the daemon was restarted during the move")

    async def job(self, domain: str) -> tuple[Mapping[str, object] | None, bool]:
        """See `watching.Hands`."""
        try:
            return await self._call(domain, "reading", lambda connection, one: (dict(one.jobStats()), _is_running(one)))
        except DriverError as error:
            log.debug("domain %s: its move cannot be watched: %s", domain, error)
            return {} if error.code in (RefusalCode.NO_DOMAIN, RefusalCode.DOMAIN_DOWN) else None, False

    async def pause(self, domain: str) -> bool:
        """See `watching.Hands`. libvirt lets the domain run at the destination."""
        try:
            await self._call(domain, "pausing", lambda connection, one: one.suspend())
        except DriverError as error:
            log.warning("domain %s is not paused for the rest of its move: %s", domain, error)
            return False
        return True

    async def _ended(self, domain: str, progress: MoveProgress, why: str) -> Moved:
        """What this end knows after a move that did not report success."""
        try:
            presence = (await self.where_is(domain)).presence
        except DriverError as error:
            return Moved(MoveOutcome.UNKNOWN, progress, f"{why}; {error}")
        if presence is Presence.PAUSED and progress.help is Help.PAUSE_DOMAIN:
            await self._call(domain, "resuming", lambda connection, one: one.resume())
            presence = Presence.RUNNING
        outcome = MoveOutcome.STAYED if presence in (Presence.RUNNING, Presence.PAUSED) else MoveOutcome.UNKNOWN
        return Moved(outcome, progress, why)

    async def cancel(self, domain: str) -> bool:
        def work(connection: Any, one: Any) -> bool:
            try:
                one.abortJob()
            except self._libvirt.libvirtError as error:
                if error.get_error_code() == self._libvirt.VIR_ERR_OPERATION_INVALID:
                    return False  # there is no move
                raise
            return True

        return await self._call(domain, "cancelling", work)

    # What is so, and what is done about it

    async def where_is(self, domain: str, awaited: bool = False) -> Whereabouts:
        def work(connection: Any, one: Any | None) -> Whereabouts:
            if one is None:
                return Whereabouts(Presence.ABSENT)
            state, reason = one.state()
            operation = self._operation(one) if is_up(state) else None
            presence = _presence(state, reason, operation, awaited)
            cpus, memory_mib = _most(one) if is_up(state) else (0, 0)
            return Whereabouts(presence, bool(one.isPersistent()), one.UUIDString(), cpus, memory_mib)

        return await self._call(domain, "reading", work, may_lack=True)

    def _operation(self, one: Any) -> object:
        """libvirt's number for the job of a running domain; None if there is none. Raises libvirtError."""
        try:
            return one.jobStats().get("operation")
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                return IN  # of an incoming migration libvirt has no figures
            raise

    async def go_on_here(self, domain: str, awaited: bool = False) -> None:
        def work(connection: Any, one: Any) -> None:
            self._must_wait(domain, one, awaited)
            one.resume()

        await self._call(domain, "resuming", work)

    async def give_up(self, domain: str, awaited: bool = False) -> None:
        def work(connection: Any, one: Any | None) -> None:
            if one is None:
                return
            is_defined = one.isPersistent()
            if one.isActive():
                self._must_wait(domain, one, awaited)
                one.destroy()
            if is_defined:
                one.undefineFlags(self._libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)

        await self._call(domain, "ending", work, PREPARE_S, may_lack=True)

    def _must_wait(self, domain: str, one: Any, awaited: bool) -> None:
        """Raises DriverError unless the domain waits here to be told to run, or to end."""
        state, reason = one.state()
        presence = _presence(state, reason, self._operation(one), awaited)
        if presence not in (Presence.HELD, Presence.ARRIVED):
            text = f"domain {domain} on {self._host} is {presence}; it has not arrived, nor been left paused by a move"
            raise DriverError(RefusalCode.BUSY, text)

    async def standstill_s(self, domain: str) -> float | None:
        completed = self._libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | self._libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        stats = await self._call(domain, "reading", lambda connection, one: one.jobStats(completed))
        return stats["downtime"] / 1000 if stats.get("operation") == IN and "downtime" in stats else None

    # Calls

    def _name(self, domain: str) -> str:
        if domain not in self._names:
            raise DriverError(RefusalCode.NO_DOMAIN, f"host {self._host} has no domain {domain} that moves")
        return self._names[domain]

    def _open(self) -> Any:
        connection = self._libvirt.open(self._uri)
        connection.setKeepAlive(*KEEPALIVE)
        return connection

    async def _call(
        self,
        domain: str,
        doing: str,
        work: Callable[[Any, Any], T],
        seconds: float = CALL_DEADLINE_S,
        may_lack: bool = False,
    ) -> T:
        """Run `work(connection, domain)` in the domain's thread. `may_lack`: the domain may be None, if libvirt knows
        none of its name; else that raises DriverError `no-domain`."""
        name, what = self._name(domain), f"{doing} domain {domain}"
        worker = self._workers.setdefault(domain, Worker(f"libvirt-moves-{domain}"))

        def run() -> T:
            connection = self._connections.get(domain)
            if connection is None or not connection.isAlive():
                connection = self._connections[domain] = self._open()
            try:
                one = connection.lookupByName(name)
            except self._libvirt.libvirtError as error:
                if error.get_error_code() != NO_DOMAIN or not may_lack:
                    raise
                one = None
            return work(connection, one)

        try:
            return await worker.call(seconds, what, run)
        except self._libvirt.libvirtError as error:
            raise translated(error, what) from error
        except ET.ParseError as error:
            raise DriverError(RefusalCode.FAILED, f"{what}: libvirt's XML cannot be read: {error}") from error


def _most(one: Any) -> tuple[int, int]:
    """The CPUs and MiB that a running domain may have at most. Raises libvirtError."""
    return int(one.maxVcpus()), int(one.maxMemory()) // 1024


def _is_running(one: Any) -> bool:
    return bool(one.state()[0] == RUNNING)


def _presence(state: int, reason: int, operation: object, awaited: bool) -> Presence:
    """What libvirt's state means. `operation`: of the job under way; None if there is none. `awaited`: see there."""
    if not is_up(state):
        return Presence.ABSENT
    if operation == IN:
        return Presence.ARRIVING
    if state == PAUSED and reason == BY_MOVE:
        return Presence.SWITCHING if operation == OUT else Presence.HELD
    if operation == OUT:
        return Presence.LEAVING
    if state == PAUSED:
        return Presence.ARRIVED if awaited else Presence.PAUSED
    return Presence.RUNNING
