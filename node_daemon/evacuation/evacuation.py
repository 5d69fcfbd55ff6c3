"""Evacuates the host, and takes it back: asks for moves, sleeps and drains, one after the other, and watches them.

    core/evacuation.py decides -> evacuation.json -> moves, sleeps, drains -> what the facts say -> decides anew

Rule 1: level-triggered. Each round looks at the facts of each domain. Only the decided fates are remembered, on disk,
so a daemon that starts in the midst goes on.
Rule 2: nothing new lands here: all domains that take jobs are drained at once, and no visitor is taken. The drain is
lifted in the very step in which a domain's move begins: from then on its claims are refused because it moves, and at
its new host it takes jobs. A drain that an admin had begun before stays with the domain.
Rule 3: what does not come about is decided anew for that domain alone, without what was tried. A refusal that passes
by itself (no hub, a busy host) only makes it wait.
Rule 4: an admin who wakes or calls back a domain meanwhile is not overruled: it finishes its jobs, or goes elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path

from msgspec.structs import replace

from magrathea import supervision
from magrathea.control import Denied
from magrathea.core import evacuation, migration, placement
from magrathea.core import events as ev
from magrathea.core.evacuation import DecidedFate, Fate
from magrathea.core.model import Domain, Kind, Lifecycle, SleepCause
from magrathea.core.refusals import RefusalCode
from magrathea.evacuation_reports import EvacuationReport, EvacuationStage, LeaverReport
from magrathea.messages import EvacuationView

from ..hypervisor.base import DriverError
from . import progress, returning
from .needs import DaemonForEvacuation
from .records import EvacuationFile, EvacuationRecord, Leaver
from .residents import PASSING, resident, residents, rooms

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Longest time between two rounds; a change of a fact brings an earlier one."""


class Evacuation:
    """The evacuation of one host. Call `look_soon` after anything that may matter; it is cheap."""

    def __init__(self, daemon: DaemonForEvacuation) -> None:
        self._daemon = daemon
        self._records = EvacuationFile(Path(daemon.configuration.paths.state_dir))
        self._record = self._records.read()
        self._changed = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None
        self._calls: dict[str, asyncio.Task[None]] = {}
        """Saves and boots of services that are under way."""
        self._waits: dict[str, str] = {}
        """Why a domain's turn has not come although it should have."""

    # What the daemon asks

    def start(self) -> None:
        if self._record is not None:
            self._rounds = supervision.start(self._go_on())

    async def close(self) -> None:
        tasks = [*self._calls.values(), *([self._rounds] if self._rounds is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def look_soon(self) -> None:
        self._changed.set()

    @property
    def host_name(self) -> str:
        return self._daemon.host.name

    @property
    def closed(self) -> str:
        """Why no domain may come here; empty if one may."""
        return "it is being evacuated" if self._record is not None and not self._record.returning else ""

    def view(self) -> EvacuationView | None:
        """For the snapshot; None if the host is not evacuated."""
        record = self._record
        if record is None:
            return None
        over = sum(self._report(leaver).stage is EvacuationStage.OVER for leaver in record.leavers)
        return EvacuationView(
            since=record.since,
            reason=record.reason,
            over=over,
            of=len(record.leavers),
            returning=record.returning,
        )

    def report(self) -> EvacuationReport | None:
        record = self._record
        if record is None:
            return None
        leavers = [self._report(leaver) for leaver in record.leavers]
        going_on = any(one.stage is not EvacuationStage.OVER for one in leavers)
        host = self._daemon.host.name
        return EvacuationReport(host=host, going_on=going_on, leavers=leavers, since=record.since, reason=record.reason)

    # What an admin asks

    async def plan(self, wish: Fate) -> EvacuationReport:
        """What would become of each domain now. Nothing is changed. Raises Denied."""
        found = [progress.planned(self._daemon, one) for one in await self._planned(wish)]
        return EvacuationReport(host=self._daemon.host.name, going_on=False, leavers=found)

    async def begin(self, wish: Fate, reason: str) -> EvacuationReport:
        """Evacuate the host. If that was begun already, only report. Raises Denied."""
        if (record := self._record) is not None and record.returning:
            text = f"{self._daemon.host.name} is just being taken back; wait until its services are up"
            raise Denied(RefusalCode.BUSY, text)
        if record is None:
            decided = await self._planned(wish)
            leavers = [Leaver(domain=one.domain, fate=one.fate, to=one.to, why=one.why[:4096]) for one in decided]
            begun = EvacuationRecord(since=self._daemon.now(), wish=wish, reason=reason, leavers=leavers)
            try:
                self._records.keep(begun)
            except OSError as error:
                text = f"the evacuation cannot be written down: {error}; after a restart nobody would go on with it"
                raise Denied(RefusalCode.JOURNAL, text) from error
            self._record = begun
            log.info("the host is evacuated: %s", "; ".join(f"{x.domain}: {x.fate} {x.to}" for x in leavers))
            self._drain_all()
            self._rounds = supervision.start(self._go_on())
            self._daemon.hub.publish()
        report = self.report()
        assert report
        return report

    def back(self) -> list[str]:
        """Take the host back. Returns what becomes of each domain."""
        record, host = self._record, self._daemon.host.name
        if record is None:
            return [f"{host} is not evacuated"]
        self._keep(replace(record, returning=True))
        said = [progress.farewell(self._daemon, record, leaver) for leaver in record.leavers]
        self._changed.set()
        self._daemon.hub.publish()
        return said

    async def _planned(self, wish: Fate) -> tuple[DecidedFate, ...]:
        daemon = self._daemon
        if daemon.host.paused is not None:
            raise Denied(RefusalCode.PAUSED, "the host is paused, so nothing is moved or saved; `magrathea unpause`")
        if wish is not Fate.DRAIN and not daemon.hub.connected:
            text = "no hub answers, so no domain can be moved, and no job suspended in PBS; start the hub, or let the "
            raise Denied(RefusalCode.HUB_LOST, f"{text}jobs end: --drain")
        names = [domain.name for domain in daemon.host.domains]
        here = await residents(daemon, names, wish)
        there = await rooms(daemon) if wish is Fate.MOVE else ()
        return evacuation.plan(here, daemon.host.name, there, wish)

    # Rounds

    async def _go_on(self) -> None:
        while self._record is not None:
            self._changed.clear()
            if not self._daemon.host_sleep.going_on:
                await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    async def _round(self) -> None:
        record = self._record
        assert record
        if record.returning:
            self._return(record)
            return
        await self._meet_new(record)
        self._drain_all()
        for leaver in list(self._record.leavers if self._record else ()):
            if self._record is None or self._record.returning:
                return
            await self._see_to(leaver)

    async def _meet_new(self, record: EvacuationRecord) -> None:
        """Decide about domains that are here only since now, and about those that have come up."""
        for domain in self._daemon.host.domains:
            known = record.of(domain.name)
            up = known is not None and known.fate is Fate.LEAVE and domain.lifecycle is Lifecycle.UP
            if known is None or (up and domain.kind is not Kind.SERVICE):
                await self._decide(known or Leaver(domain=domain.name, fate=record.wish))

    def _drain_all(self) -> None:
        record, daemon = self._record, self._daemon
        if record is None:
            return
        free = [
            domain.name
            for domain in daemon.host.workers
            if not domain.draining and migration.refusal(daemon.place, domain.name) is None
        ]
        if new := [name for name in free if name not in record.drained]:
            self._keep(replace(record, drained=[*record.drained, *new]))
        for name in free:
            daemon.apply(ev.DrainRequested(daemon.now(), name, progress.drain_reason(record)))

    async def _see_to(self, leaver: Leaver) -> None:
        daemon, name = self._daemon, leaver.domain
        domain = daemon.host.domain(name)
        if daemon.place.moves.leaving_of(name) is not None:  # also one that is about to stay: how it ends is not known
            if leaver.fate is Fate.MOVE:
                self._changed_to(replace(leaver, asked=True))
            return
        if domain is None or self._report(leaver).stage is EvacuationStage.OVER:
            return
        if migration.refusal(daemon.place, name) is not None or name in self._calls:
            return
        if leaver.fate is Fate.MOVE:
            await self._see_to_move(leaver, domain)
        elif leaver.fate is Fate.SLEEP and domain.kind is Kind.SERVICE:
            self._see_to_service(leaver)
        elif leaver.fate is Fate.SLEEP:
            await self._see_to_sleep(leaver, domain)

    async def _see_to_move(self, leaver: Leaver, domain: Domain) -> None:
        daemon, name = self._daemon, leaver.domain
        if leaver.asked:
            end = daemon.move_requests.ended(name)
            why = f"{leaver.to}: {end.text}" if end is not None else f"its move to {leaver.to} came to nothing"
            await self._decide(replace(leaver, tried=[*leaver.tried, leaver.to]), why)
            return
        under_way = len(daemon.place.moves.leaving)
        if under_way >= daemon.configuration.moves.at_once or domain.lifecycle is not Lifecycle.UP:
            return
        try:
            await daemon.move_requests.begin(name, leaver.to, lambda: self._lift(name))
        except Denied as no:
            if self._waits_for(name, no.code, str(no)):
                return
            await self._decide(replace(leaver, tried=[*leaver.tried, leaver.to]), str(no))
            return
        self._changed_to(replace(leaver, asked=True))

    async def _see_to_sleep(self, leaver: Leaver, domain: Domain) -> None:
        daemon, name = self._daemon, leaver.domain
        if domain.sleep is not None:
            self._changed_to(replace(leaver, asked=True))
            return
        if leaver.asked:
            await self._stays_awake(leaver, f"it was not saved, or was woken: `magrathea history {name}`")
            return
        # a domain without its agent may never be saved: nobody waits for it
        falling = sum(d.falls_asleep and d.agent_lost_at is None for d in daemon.host.workers)
        if falling >= daemon.configuration.shutdown.at_once or domain.lifecycle is not Lifecycle.UP:
            return
        no = await daemon.saves.refusal(name)
        if no is None:
            record = self._record
            reason = progress.drain_reason(record) if record is not None else ""
            event = ev.SleepRequested(daemon.now(), name, reason, SleepCause.EVACUATION)
            refused = [d for d in daemon.apply(event) if isinstance(d, ev.Refused) and d.domain == name]
            if not refused:
                self._changed_to(replace(leaver, asked=True))
                return
            code, text = refused[0].code, refused[0].text
        else:
            code, text = no.code, no.text
        if not self._waits_for(name, code, text):
            await self._stays_awake(leaver, text)

    def _see_to_service(self, leaver: Leaver) -> None:
        """Save a service, after all others are through: they may need it until then."""
        record, name = self._record, leaver.domain
        services = {d.name for d in self._daemon.host.domains if d.kind is Kind.SERVICE}
        others = [one for one in (record.leavers if record else ()) if one.domain not in services]
        if any(self._report(one).stage is not EvacuationStage.OVER for one in others):
            return

        async def save() -> None:
            try:
                await self._daemon.driver.save(name)
            except DriverError as error:
                if not self._waits_for(name, error.code, error.text):
                    await self._stays_awake(leaver, error.text)
            else:
                await self._daemon.switch.readings.refresh()  # else the next round would see it up still
                self._changed_to(replace(leaver, asked=True))

        if leaver.asked:
            self._call(name, self._stays_awake(leaver, "somebody has started it again"))
        else:
            self._call(name, save())

    async def _stays_awake(self, leaver: Leaver, why: str) -> None:
        await self._decide(replace(leaver, asked=False, no_sleep=why[:4096]), why)

    async def _decide(self, leaver: Leaver, failed: str = "") -> None:
        """Decide about this domain alone, less what others have been promised. `failed`: why it is decided anew."""
        daemon, record = self._daemon, self._record
        if record is None:
            return
        here = await resident(daemon, leaver, record.wish)
        if here is None:
            return
        there = await rooms(daemon) if record.wish is Fate.MOVE else ()
        for other in record.leavers:
            promised = daemon.host.domain(other.domain)
            if other.fate is Fate.MOVE and not other.asked and promised is not None and other.domain != leaver.domain:
                there = evacuation.with_guest(there, other.to, placement.traveller(promised))
        decided = evacuation.decide(here, daemon.host.name, there, record.wish)
        why = "; ".join(part for part in (failed, decided.why) if part)
        if failed:
            log.info("%s: %s; now: %s %s", leaver.domain, failed, decided.fate, decided.to)
        self._waits.pop(leaver.domain, None)
        self._changed_to(leaver.decided(decided, why))
        self._changed.set()

    # Taking back

    def _return(self, record: EvacuationRecord) -> None:
        for leaver in returning.steps(self._daemon, record):
            self._changed_to(leaver)
        for name in returning.services(self._daemon, record):
            if name not in self._calls:
                self._call(name, self._boot(name))
        record = self._record or record
        if not self._calls and not returning.left(self._daemon, record):
            self._records.forget()
            self._record = None
            self._waits.clear()
            log.info("the host is taken back")
            self._daemon.hub.publish()

    async def _boot(self, name: str) -> None:
        try:
            await self._daemon.driver.boot(name)
        except DriverError as error:
            if not self._waits_for(name, error.code, error.text):
                log.error("service %s does not come back: %s; boot it by hand", name, error)
                self._woken(name)
            else:
                await asyncio.sleep(LOOK_S)
        else:
            self._woken(name)

    def _woken(self, name: str) -> None:
        leaver = self._record.of(name) if self._record is not None else None
        if leaver is not None:
            self._changed_to(replace(leaver, woken=True))

    # Within

    def _report(self, leaver: Leaver) -> LeaverReport:
        return progress.report(self._daemon, leaver, self._waits.get(leaver.domain, ""))

    def _lift(self, name: str) -> None:
        """The domain takes jobs again as far as this evacuation is concerned: its move begins."""
        record, domain = self._record, self._daemon.host.domain(name)
        if record is not None and domain is not None and domain.draining == progress.drain_reason(record):
            self._daemon.apply(ev.DrainEnded(self._daemon.now(), name))

    def _waits_for(self, name: str, code: RefusalCode, text: str) -> bool:
        """True if the refusal passes by itself: the domain waits, and the report says for what."""
        passes = code in PASSING
        if passes:
            self._waits[name] = text
        return passes

    def _changed_to(self, leaver: Leaver) -> None:
        if self._record is not None and self._record.of(leaver.domain) != leaver:
            self._keep(self._record.having(leaver))

    def _keep(self, record: EvacuationRecord) -> None:
        """Write it down. If the disk fails, this daemon goes on, and the next one begins again where the file is."""
        self._record = record
        try:
            self._records.keep(record)
        except OSError as error:
            log.error("the evacuation cannot be written down: %s", error)
        self._daemon.hub.publish()

    def _call(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = self._calls[name] = supervision.start(work)

        def done(_: object) -> None:
            self._calls.pop(name, None)
            self._changed.set()

        task.add_done_callback(done)
