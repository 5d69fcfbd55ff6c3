"""What the control socket offers: the status, the history, and an admin's commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import msgspec

from magrathea.configuration import ConfigurationError
from magrathea.control import Control, ControlRequest, Denied, granted
from magrathea.core import events as ev
from magrathea.core import states
from magrathea.core.model import Domain, Host, Lifecycle, Patience, SleepCause
from magrathea.core.refusals import RefusalCode
from magrathea.history import Query
from magrathea.messages import HistoryAsked, HistoryEntry, HistoryTold, Snapshot, encode
from magrathea.preview import TooLong, outlook

from .configuration import NodedConfiguration
from .evacuation.evacuation import Evacuation
from .evacuation.requests import EvacuationRequests
from .hub_client import HubClient
from .hypervisor.base import LIFE, SAVE, Driver
from .journal import Journal, JournalError
from .journal_store import JournalStore
from .life.saves import Saves
from .moves.requests import MoveRequests
from .reboot.host_sleep import HostSleep
from .snapshot import fitting
from .switch.switch import Switch

MOST_CHUNKS = 1000
"""Largest number of chunks of a preview. Each costs as much as a claim."""
READERS = 2
"""Histories that are read at once, each in a thread."""
HISTORY_WAIT_S = 2.0
"""How long a question waits for others to be read."""
HISTORY_COST_S = 0.05
"""A stranger's question about the history is charged this much beside what it takes of the loop: other threads read."""
PREVIEW_S = 4.0
"""Time limit of a preview. The command waits for 5 s."""


class DaemonForControl(Protocol):
    """What the control socket needs of the daemon."""

    configuration: NodedConfiguration
    driver: Driver
    switch: Switch
    saves: Saves
    hub: HubClient
    host_sleep: HostSleep
    move_requests: MoveRequests
    evacuation: Evacuation

    @property
    def host(self) -> Host: ...

    @property
    def journal(self) -> JournalStore: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    def snapshot(self, revision: int) -> Snapshot: ...

    async def reload(self) -> list[str]: ...


class Admin:
    """The operations, and the socket that offers them."""

    def __init__(self, daemon: DaemonForControl) -> None:
        self._daemon = daemon
        self._previewing = False
        self._readers = asyncio.Semaphore(READERS)
        evacuation = EvacuationRequests(daemon.evacuation)
        self._control = Control(
            daemon.configuration.control_socket,
            reading={
                "status": self._status,
                "ping": self._ping,
                "history": self._history,
                "preview": self._preview,
                "host-sleep-plan": self._sleep_plan,
                "host-sleep-report": self._sleep_report,
                "moves": daemon.move_requests.report,
                "migrate-plan": daemon.move_requests.plan,
                "evacuate-plan": evacuation.plan,
                "evacuation": evacuation.report,
            },
            changing={
                "drain": self._drain,
                "undrain": self._undrain,
                "pause": self._pause,
                "unpause": self._unpause,
                "clear": self._clear,
                "domain": self._life,
                "reload": self._reload,
                "host-sleep": self._sleep,
                "host-wake": self._wake,
                "migrate": daemon.move_requests.migrate,
                "evacuate": evacuation.evacuate,
                "host-return": evacuation.take_back,
            },
            group=daemon.configuration.control.group,
            costs={"history": HISTORY_COST_S},
        )

    async def start(self) -> None:
        await self._control.start()

    async def close(self) -> None:
        await self._control.close()

    def regroup(self) -> None:
        """The configured group may have changed."""
        self._control.group = self._daemon.configuration.control.group

    async def _status(self, request: ControlRequest) -> bytes:
        snapshot = self._daemon.snapshot(self._daemon.hub.revision)
        return encode(fitting(msgspec.structs.replace(snapshot, at=self._daemon.now())))

    async def _ping(self, request: ControlRequest) -> bytes:
        return granted()

    async def _history(self, request: ControlRequest) -> bytes:
        return await self._in_thread(self._entries(request.about, request.since, request.limit), _granted_entries)

    async def answer_history(self, question: HistoryAsked) -> bytes:
        """The answer to a hub, which was asked elsewhere: an encoded HistoryTold."""

        def told(entries: list[HistoryEntry], trouble: str = "") -> bytes:
            return encode(HistoryTold(sender=self._daemon.host.name, id=question.id, entries=entries, trouble=trouble))

        try:
            return await self._in_thread(self._entries(question.about, question.since, question.limit), told)
        except Denied as error:
            return told([], str(error))

    def _entries(self, about: str, since: float, limit: int) -> Callable[[], list[HistoryEntry]]:
        """Reads the newest entries about a job, a domain or the host, as many as fit in an answer. Raises Denied."""
        journal = self._daemon.journal
        if not isinstance(journal, Journal):
            raise Denied(RefusalCode.JOURNAL, "the journal cannot be read; the status says why")
        try:
            return journal.reading(Query("" if self._is_host(about) else about, since, limit))
        except JournalError as error:
            raise Denied(RefusalCode.JOURNAL, str(error)) from error

    async def _in_thread(
        self, read: Callable[[], list[HistoryEntry]], encoded: Callable[[list[HistoryEntry]], bytes]
    ) -> bytes:
        """Read and encode a history while the loop goes on. Raises Denied."""
        try:
            async with asyncio.timeout(HISTORY_WAIT_S):
                await self._readers.acquire()
        except TimeoutError as error:
            raise Denied(RefusalCode.BUSY, "too many histories are asked for; try again in some seconds") from error
        try:
            return await asyncio.to_thread(lambda: encoded(read()))
        except JournalError as error:
            raise Denied(RefusalCode.JOURNAL, str(error)) from error
        finally:
            self._readers.release()

    async def _preview(self, request: ControlRequest) -> bytes:
        """What each domain would answer to such a submission now, and where it would go. Nothing is changed."""
        if (asked := sum(chunk.number for chunk in request.chunks)) > MOST_CHUNKS:
            raise Denied(RefusalCode.BAD_REQUEST, f"{asked} chunks are asked for; {MOST_CHUNKS} can be looked at")
        if self._previewing:
            raise Denied(RefusalCode.BUSY, "another preview is being worked out; try again in some seconds")
        host = replace(self._daemon.host, now=self._daemon.now())
        vnodes = {name: self._daemon.configuration.vnode(name) for name in self._daemon.configuration.domain}
        end, takes = time.monotonic() + PREVIEW_S, self._daemon.saves.estimates()
        self._previewing = True
        try:  # in a thread: it computes for so long that no claim could be answered in the meantime
            found = await asyncio.to_thread(
                outlook, host, vnodes, request.cls, request.chunks, lambda: time.monotonic() > end, takes
            )
        except TooLong as error:
            raise Denied(RefusalCode.BUSY, f"not worked out within {PREVIEW_S:g} s; ask for fewer chunks") from error
        finally:
            self._previewing = False
        return encode(found)

    async def _drain(self, request: ControlRequest) -> bytes:
        said = []
        for name in self._meant(request.domain):
            self._event(ev.DrainRequested(self._daemon.now(), name, request.reason))
            said.append(f"{name} takes no more jobs; {_left(self._domain(name))}")
        return granted(said=said)

    async def _undrain(self, request: ControlRequest) -> bytes:
        if self._daemon.evacuation.closed:
            name = self._daemon.host.name
            text = f"{name} is evacuated, so all its domains drain; `magrathea host return {name}` ends that"
            raise Denied(RefusalCode.BAD_REQUEST, text)
        said = []
        for name in self._meant(request.domain):
            before = self._domain(name)
            self._event(ev.DrainEnded(self._daemon.now(), name))
            said.append(f"{name} takes jobs again" if before and before.drain_reason else f"{name} was not draining")
        return granted(said=said)

    async def _pause(self, request: ControlRequest) -> bytes:
        self._only_host(request)
        self._daemon.apply(ev.PauseRequested(self._daemon.now(), request.reason))
        host = self._daemon.host
        stopped = sum(len(domain.stopped) for domain in host.domains)
        stay = f"; {stopped} stopped job{'' if stopped == 1 else 's'} will stay so" if stopped else ""
        return granted(said=[f"{host.name} is paused: nobody is stopped or continued, nothing is moved{stay}"])

    async def _unpause(self, request: ControlRequest) -> bytes:
        self._only_host(request)
        was = self._daemon.host.paused
        self._daemon.apply(ev.PauseEnded(self._daemon.now()))
        host = self._daemon.host
        return granted(said=[f"{host.name} acts again" if was else f"{host.name} was not paused"])

    async def _clear(self, request: ControlRequest) -> bytes:
        before = self._domain(request.domain)
        self._event(ev.FaultCleared(self._daemon.now(), request.domain))
        self._daemon.switch.clear(request.domain)
        fault = f" was in fault: {before.fault};" if before and before.fault else " was not in fault;"
        return granted(said=[f"{request.domain}{fault} what had failed is tried again now"])

    async def _life(self, request: ControlRequest) -> bytes:
        """Boot, shutdown, reboot, freeze or defrost. Granting makes it a wish; the answer does not wait until it is
        done."""
        name, now = request.domain, self._daemon.now()
        if request.now and request.when_idle:
            raise Denied(RefusalCode.BAD_REQUEST, "`now` waits for no job and `when_idle` for all: give one of them")
        if request.with_jobs and request.do != "freeze":
            raise Denied(RefusalCode.BAD_REQUEST, "`with_jobs` is for `freeze` only")
        patience = Patience.NOW if request.now else Patience.IDLE if request.when_idle else Patience.DRAIN
        before = self._domain(name)
        freeze: ev.DomainEvent = ev.FreezeRequested(now, name)
        if request.with_jobs:
            freeze = ev.SleepRequested(now, name, request.reason or "by the admin", SleepCause.ADMIN)
        wishes: dict[str, tuple[str, ev.DomainEvent]] = {
            "boot": (LIFE, ev.BootRequested(now, name)),
            "shutdown": (LIFE, ev.ShutdownRequested(now, name, False, patience)),
            "reboot": (LIFE, ev.ShutdownRequested(now, name, True, patience)),
            "freeze": (SAVE, freeze),
            "defrost": (SAVE, ev.DefrostRequested(now, name, now + (before.boot_limit_s if before else 0.0))),
        }
        if request.do not in wishes:
            raise Denied(RefusalCode.BAD_REQUEST, f"`do` is {request.do[:64]!r}; known: {', '.join(wishes)}")
        ability, event = wishes[request.do]
        if ability not in self._daemon.driver.capabilities and self._daemon.host.driver_lost_at is not None:
            raise Denied(
                RefusalCode.LOST, "the hypervisor does not answer, so nothing is known of what it can do; see the log"
            )
        if ability not in self._daemon.driver.capabilities:
            driver = self._daemon.configuration.host.driver
            text = (
                f"the {driver} driver of {self._daemon.host.name} cannot {request.do} domains; see its notes in status"
            )
            raise Denied(RefusalCode.NOT_SUPPORTED, text)
        if request.do == "freeze" and before is not None and before.lifecycle is Lifecycle.UP:
            await self._needs_room(name)
        victims = self._event(event)
        host, after = self._daemon.host, self._domain(name)
        assert after is not None, "an unknown domain is refused"
        beside = f"; preempted for it: {', '.join(victims)}" if victims else ""
        return granted(said=[f"{name} is {states.state_of(host, after)}: {states.why(host, after)}{beside}"])

    async def _needs_room(self, name: str) -> None:
        """Raises Denied if the domain cannot be saved to disk now."""
        if refusal := await self._daemon.saves.refusal(name):
            raise Denied(refusal.code, refusal.text)

    async def _sleep_plan(self, request: ControlRequest) -> bytes:
        return granted(sleep=self._daemon.host_sleep.plan(request.deadline_s))

    async def _sleep_report(self, request: ControlRequest) -> bytes:
        return granted(sleep=self._daemon.host_sleep.report())

    async def _sleep(self, request: ControlRequest) -> bytes:
        """Begin to put the host's domains to sleep. The answer does not wait until they are."""
        return granted(sleep=await self._daemon.host_sleep.begin(request.deadline_s))

    async def _wake(self, request: ControlRequest) -> bytes:
        return granted(said=self._daemon.host_sleep.wake())

    async def _reload(self, request: ControlRequest) -> bytes:
        try:
            return granted(said=await self._daemon.reload())
        except ConfigurationError as error:
            raise Denied(RefusalCode.CONFIGURATION, str(error)) from error

    def _domain(self, name: str) -> Domain | None:
        return self._daemon.host.domain(name)

    def _is_host(self, name: str) -> bool:
        """Whether the name means the host. If a domain has the host's name, the domain is meant."""
        host = self._daemon.host
        return name == host.name and host.domain(name) is None

    def _meant(self, name: str) -> list[str]:
        """The domain of that name; if it is the host's name, all domains that take jobs."""
        host = self._daemon.host
        if self._is_host(name):
            return [domain.name for domain in host.workers if domain.configured]
        return [name]

    def _only_host(self, request: ControlRequest) -> None:
        name = self._daemon.host.name
        if request.domain not in ("", name):
            raise Denied(
                RefusalCode.WRONG_HOST, f"this is host {name}, and only a whole host is paused, not {request.domain}"
            )

    def _event(self, event: ev.DomainEvent) -> tuple[str, ...]:
        """Make the event a fact. Returns who is preempted for it. Raises Denied if the core refuses."""
        victims: tuple[str, ...] = ()
        for decision in self._daemon.apply(event):
            if isinstance(decision, ev.Refused) and decision.domain == event.domain:
                raise Denied(decision.code, decision.text)
            if isinstance(decision, ev.Accepted) and decision.domain == event.domain:
                victims = decision.victims
        return victims


def _granted_entries(entries: list[HistoryEntry]) -> bytes:
    return granted(entries=entries)


def _left(domain: Domain | None) -> str:
    """What a draining domain waits for."""
    jobs = [job.key.id for job in domain.jobs] if domain else []
    return f"it finishes {', '.join(jobs)}" if jobs else "it has none"
