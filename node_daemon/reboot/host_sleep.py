"""Puts the host's domains to sleep before the machine shuts down, and sees to it that they come back (waking.py).

The core decides how a domain falls asleep and wakes (docs/rules.md, "Sleep"); plan.py, which domains and in which
order. This module asks for it, lets the saves begin in that order, and watches the time.

Rule 1: all chosen domains are asked to sleep at once, so that no job starts among them. `may_save` lets the saves begin
in the order of the plan, as many at a time as the configuration says.
Rule 2: when the time is over no save begins any more. A domain that is not being saved then stays awake. A save that
has begun may end.
Rule 3: who is just coming back from an earlier sleep is put to sleep again as soon as it is up. Who still waits for its
turn to come back sleeps on.
Rule 4: who is on its way to another host is called back and asked after that. Nobody is taken in meanwhile.
Rule 5: nobody needs to say when the machine has booted. The daemon knows the boot in which the sleep was begun
(records.py): in another boot it brings everything back, in the same one it goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

import msgspec

from magrathea import supervision
from magrathea.control import Denied
from magrathea.core import events as ev
from magrathea.core import life, migration
from magrathea.core import move_events as me
from magrathea.core.life import Save, Seen
from magrathea.core.model import Host, Kind, Lifecycle, SleepCause
from magrathea.core.moves import HostWithMoves
from magrathea.core.refusals import RefusalCode
from magrathea.core.sleeping import why_awake
from magrathea.core.stopping import in_line
from magrathea.host_sleep import HostSleepReport, SleeperReport, SleepStage

from ..configuration import NodedConfiguration
from ..hypervisor.base import SAVE, Driver, DriverError, save_deadline_s
from ..life.saves import Saves
from ..measured import Measured, Times
from ..switch.switch import Switch
from . import records
from .falling import Falling, report_of, size_mib
from .plan import Candidate, SleepPlan, Turn, candidates, duration_s, plan, turn_of
from .records import Records, SleepRecord
from .waking import Waking, defrost, is_of_shutdown

log = logging.getLogger(__name__)

REASON = "the machine shuts down"
IN_ORDER_S = 5.0
"""For so long nobody is saved before its turn: jobs stop, and PBS suspends them, in less. After that, whoever is ready.
"""
ANSWER_S = 2.0
"""Whoever asks for a sleep gets an answer after this time, even if the hypervisor is too slow for all domains to be
asked by then: `magrathea host sleep` waits 5 s for it."""


class DaemonForSleep(Protocol):
    """What a sleep of the whole host needs of the daemon."""

    configuration: NodedConfiguration
    driver: Driver
    switch: Switch
    saves: Saves

    @property
    def host(self) -> Host: ...

    @property
    def place(self) -> HostWithMoves: ...

    def apply_move(self, event: me.MoveEvent) -> tuple[me.Decision, ...] | None: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    def saves_may_begin(self) -> None:
        """A domain that had to wait may be saved now."""


class HostSleep:
    """The sleep of one host. Call `look_soon` after anything that may matter; it is cheap."""

    def __init__(self, daemon: DaemonForSleep) -> None:
        self._daemon = daemon
        folder = Path(daemon.configuration.paths.state_dir)
        self._records, self._times = Records(folder), Times(folder)
        self._falling: Falling | None = None
        self._falls: asyncio.Task[None] | None = None
        self._wakes: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._waking = Waking(daemon, self._records, self._changed)

    # What the daemon asks

    def start(self) -> None:
        """Go on with a sleep that was begun in this boot of the machine; bring back what sleeps since another one."""
        record, woken = self._records.sleep(), self._waking.begun_in_this_boot()
        if record is not None and record.boot == records.boot_id() and not woken:
            found = [self._again(name) for name in record.order]
            self._falling = self._begun(record.until, tuple(found))
            self._falls = supervision.start(self._go_on(self._falling, record))
        elif record is not None or self._waking.sleepers():
            if not woken:
                log.info("the machine has booted: what sleeps since its shutdown is brought back")
            self._wakes = supervision.start(self._waking.work(failed_too=not woken))

    async def close(self) -> None:
        tasks = [task for task in (self._falls, self._wakes) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def look_soon(self) -> None:
        self._changed.set()

    def may_save(self, name: str) -> bool:
        """Whether the save of a domain may begin now. A domain that is no part of the host's sleep need not wait."""
        falling = self._falling
        if falling is None or falling.of(name) is None or name in falling.ended or name in falling.granted:
            return True
        now = self._daemon.now()
        under_way = [n for n in falling.granted if n not in falling.ended]
        if now >= falling.until or len(under_way) >= self._daemon.configuration.shutdown.at_once:
            return False
        if self._next(falling) != name:
            return False
        falling.granted[name] = now
        self._daemon.saves_may_begin()  # those that may be saved beside it
        return True

    @property
    def going_on(self) -> bool:
        """True while the host falls asleep."""
        return self._falling is not None and self._falling.going_on

    def notes(self) -> list[str]:
        """What does not succeed at present, for people."""
        return [
            f"service {name} was put to sleep at a shutdown and does not come back: {error}; `magrathea host wake` "
            "tries it again"
            for name, error in self._waking.not_back.items()
        ]

    # What an admin asks

    def plan(self, deadline_s: float) -> HostSleepReport:
        """What `begin` would do now."""
        return self._planned(self._plan(deadline_s), deadline_s or self._daemon.configuration.shutdown.time_s)

    async def begin(self, deadline_s: float) -> HostSleepReport:
        """Put everything to sleep that is configured so, within `deadline_s` (0: as configured). Raises Denied."""
        daemon = self._daemon
        if self._falling is not None and self._falling.going_on:
            return self.report()
        if not (asked := [n for n in daemon.configuration.domain if daemon.configuration.sleeps_at_shutdown(n)]):
            return self.plan(deadline_s)
        if SAVE not in daemon.driver.capabilities:
            code = RefusalCode.LOST if daemon.host.driver_lost_at is not None else RefusalCode.NOT_SUPPORTED
            raise Denied(code, f"{', '.join(asked)} cannot be saved now; `magrathea status` and the log say why")
        if daemon.host.paused is not None:
            raise Denied(RefusalCode.PAUSED, "the host is paused, so nobody is stopped or saved; `magrathea unpause`")
        made = self._plan(deadline_s)
        now = daemon.now()
        until = now + (deadline_s or daemon.configuration.shutdown.time_s)
        names = [c.name for c in made.chosen]
        line = [d.name for d in reversed(in_line(daemon.host)) if d.in_line_to_wake]
        order = list(dict.fromkeys([*line, *self._asleep_before(names), *names]))
        services = [*self._waking.not_back, *(n for n in order if self._is_service(n))]
        record = SleepRecord(
            boot=records.boot_id(), until=until, order=order, services=list(dict.fromkeys(services)), asked=False
        )
        try:
            self._records.keep(record)
        except OSError as error:
            text = f"the sleep cannot be written down: {error}; after a boot nobody would know what to bring back"
            raise Denied(RefusalCode.JOURNAL, text) from error
        falling = self._falling = self._begun(until, made.chosen, made.left)
        for name in sorted(falling.restored & {x.domain for x in daemon.place.moves.leaving}):
            daemon.apply_move(me.MoveRequested(now, name, daemon.place.name, now))
        log.info("the host is put to sleep: %s; about %.0f s", ", ".join(names) or "nobody", made.expected_s)
        self._end_waking()
        self._leave_the_line(line)
        self._falls = supervision.start(self._go_on(falling, record))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await falling.asked.wait()
        return self.report()

    def report(self) -> HostSleepReport:
        """The last sleep of this host in this boot of the machine; without one, the plan."""
        falling, daemon = self._falling, self._daemon
        if falling is None:
            return self.plan(0.0)
        now = daemon.now()
        waiting = [c for c in falling.chosen if c.name not in falling.ended]
        rest_s = duration_s(waiting, daemon.configuration.shutdown.at_once)
        sleepers = [falling.ended.get(c.name) or self._on_the_way(falling, c) for c in falling.chosen]
        sleepers += [self._left(c, falling.until - now) for c in falling.left]
        return HostSleepReport(
            host=daemon.host.name,
            going_on=falling.going_on,
            expected_s=rest_s,
            left_s=max(0.0, falling.until - now),
            sleepers=sleepers,
        )

    def wake(self) -> list[str]:
        """Bring back what `begin` has put to sleep. Returns what becomes of each domain."""
        falling, self._falling = self._falling, None
        said = []
        for candidate in falling.chosen if falling is not None else ():
            domain = self._daemon.host.domain(candidate.name)
            if (
                candidate.name not in (falling.granted if falling else {})
                and domain is not None
                and domain.falls_asleep
            ):
                defrost(self._daemon, candidate.name)
                said.append(f"{candidate.name} stays awake")
        names = [*self._waking.services(), *(d.name for d in self._waking.sleepers())]
        said += [f"{name} is brought back" for name in names]
        self._changed.set()
        self._end_waking()
        self._wakes = supervision.start(self._wake_after(self._falls))
        return said or ["nobody sleeps since a shutdown of this host"]

    # Planning

    def _plan(self, deadline_s: float) -> SleepPlan:
        daemon, shutdown = self._daemon, self._daemon.configuration.shutdown
        names = [n for n in daemon.configuration.domain if daemon.configuration.sleeps_at_shutdown(n)]
        read = {n: r for n in names if (r := daemon.switch.readings.of(n)) is not None}
        up = [n for n in names if not self._is_service(n) or (n in read and read[n].up)]
        mib = {n: size for n, r in read.items() if (size := size_mib(r)) is not None}
        found = candidates(daemon.host, up, mib, self._times.measured(), daemon.now())
        return plan(found, deadline_s or shutdown.time_s, shutdown.at_once)

    def _planned(self, made: SleepPlan, time_s: float) -> HostSleepReport:
        sleepers = [report_of(c, SleepStage.AWAKE) for c in made.chosen]
        sleepers += [self._left(c, time_s) for c in made.left]
        return HostSleepReport(
            host=self._daemon.host.name, going_on=False, expected_s=made.expected_s, left_s=time_s, sleepers=sleepers
        )

    def _left(self, candidate: Candidate, time_s: float) -> SleeperReport:
        text = f"its save takes about {candidate.expected_s:.0f} s, and {max(0.0, time_s):.0f} s are left for all"
        return report_of(candidate, SleepStage.LEFT, text)

    def _again(self, name: str) -> Candidate:
        """A domain of a sleep that an earlier daemon has begun."""
        domain = self._daemon.host.domain(name)
        if domain is None:
            return Candidate(name, Turn.IDLE, 0, 0, 0.0, 0.0)
        return Candidate(name, turn_of(domain), domain.memory_mib, len(domain.jobs), 0.0, 0.0)

    def _asleep_before(self, chosen: list[str]) -> list[str]:
        """What an earlier sleep of this host has put to sleep, and nobody has brought back yet, in that order. The new
        record replaces the earlier one, and only the record tells which services have to come back."""
        record, found = self._records.sleep(), []
        for name in record.order if record is not None else ():
            domain, read = self._daemon.host.domain(name), self._daemon.switch.readings.of(name)
            saved = read is not None and read.saved and not read.up
            sleeps = saved if self._is_service(name) else domain is not None and domain.asleep
            if sleeps and name not in chosen:
                found.append(name)
        return found

    def _is_service(self, name: str) -> bool:
        table = self._daemon.configuration.domain.get(name)
        return table is not None and table.kind is Kind.SERVICE

    # Falling asleep

    def _begun(self, until: float, chosen: tuple[Candidate, ...], left: tuple[Candidate, ...] = ()) -> Falling:
        falling = Falling(self._daemon.now(), until, chosen, left)
        later = (d.name for d in self._daemon.host.workers if d.waking or self._moves(d.name))
        falling.restored.update(name for name in later if falling.of(name))
        return falling

    def _moves(self, name: str) -> bool:
        return migration.refusal(self._daemon.place, name) is not None

    def _leave_the_line(self, line: list[str]) -> None:
        """Let those that wait for their turn to come back sleep on: room would come just now, and they would be up when
        the machine goes down. They come back after the boot. `line`: the last one first, which gives nobody a turn."""
        for name in line:
            self._daemon.apply(ev.SleepRequested(self._daemon.now(), name, REASON, SleepCause.SHUTDOWN))

    async def _go_on(self, falling: Falling, record: SleepRecord) -> None:
        """Ask whom nobody has asked yet, not even an earlier daemon, and see to the rest."""
        if not record.asked and self._daemon.now() < falling.until:
            await self._ask_all(falling, record)
        falling.asked.set()
        await self._fall(falling)

    async def _ask_all(self, falling: Falling, record: SleepRecord) -> None:
        """Ask all chosen domains to sleep, unless the host is woken meanwhile."""
        for candidate in falling.chosen:
            domain = self._daemon.host.domain(candidate.name)
            if self._falling is not falling:
                return
            asleep = domain is not None and domain.asleep
            if candidate.turn is not Turn.SERVICE and not asleep and candidate.name not in falling.restored:
                await self._ask_to_sleep(falling, candidate)
        try:
            self._records.keep(msgspec.structs.replace(record, asked=True))
        except OSError as error:
            log.warning("a daemon that starts before the next boot asks all domains once more to sleep: %s", error)

    async def _ask_to_sleep(self, falling: Falling, candidate: Candidate) -> None:
        refusal = await self._daemon.saves.refusal(candidate.name)
        if self._falling is not falling:
            return  # the host was woken meanwhile
        if refusal:
            self._end(falling, candidate, SleepStage.FAILED, refusal.text)
            return
        within_s = self._daemon.configuration.shutdown.unbooked_after_s
        event = ev.SleepRequested(self._daemon.now(), candidate.name, REASON, SleepCause.SHUTDOWN, within_s)
        for decision in self._daemon.apply(event):
            if isinstance(decision, ev.Refused) and decision.domain == candidate.name:
                self._end(falling, candidate, SleepStage.FAILED, decision.text)

    async def _fall(self, falling: Falling) -> None:
        """See to it until everybody is through, or the host is woken."""
        while any(c.turn is not Turn.SERVICE for c in falling.chosen if c.name not in falling.ended):
            if self._falling is not falling:
                return
            await self._ask_restored(falling)
            self._look(falling)
            self._daemon.saves_may_begin()
            await self._waking.wait(falling.until - self._daemon.now())
        for candidate in falling.chosen:
            if self._falling is not falling:
                return
            if candidate.turn is Turn.SERVICE and candidate.name not in falling.ended:
                await self._save_service(falling, candidate)
        log.info("the host's sleep: %s", ", ".join(f"{r.name} {r.stage}" for r in falling.ended.values()))

    async def _ask_restored(self, falling: Falling) -> None:
        """Ask those that were coming back from an earlier sleep, or on their way elsewhere, and are simply up now."""
        for candidate in falling.chosen:
            domain = self._daemon.host.domain(candidate.name)
            later = domain is not None and (domain.waking or self._moves(candidate.name))
            if candidate.name in falling.restored and not later:
                falling.restored.discard(candidate.name)
                if domain is not None and domain.lifecycle is Lifecycle.UP:
                    await self._ask_to_sleep(falling, candidate)

    def _look(self, falling: Falling) -> None:
        now = self._daemon.now()
        for candidate in falling.chosen:
            if candidate.turn is Turn.SERVICE or candidate.name in falling.ended:
                continue
            domain = self._daemon.host.domain(candidate.name)
            granted_at = falling.granted.get(candidate.name)
            if candidate.name in falling.restored:
                if now >= falling.until:
                    self._end(falling, candidate, SleepStage.LEFT, "the time was over before it was simply up")
            elif domain is None or domain.sleep is None or domain.waking:
                text = f"it was not saved, was woken, or has moved away: `magrathea history {candidate.name}`"
                self._end(falling, candidate, SleepStage.FAILED, text)
            elif domain.asleep:
                self._fell_asleep(falling, candidate)
            elif not is_of_shutdown(domain):
                self._end(
                    falling, candidate, SleepStage.FAILED, f"somebody else puts it to sleep: {domain.drain_reason}"
                )
            elif granted_at is None and now >= falling.until:
                defrost(self._daemon, candidate.name)
                self._end(falling, candidate, SleepStage.LEFT, "the time was over before its save could begin")
            elif now >= falling.until + save_deadline_s(candidate.mib):
                defrost(self._daemon, candidate.name)
                self._end(falling, candidate, SleepStage.FAILED, f"its save does not end; see status of {domain.name}")

    def _fell_asleep(self, falling: Falling, candidate: Candidate) -> None:
        granted_at = falling.granted.get(candidate.name)
        took_s = self._daemon.now() - granted_at if granted_at is not None else 0.0
        if granted_at is not None and candidate.mib:
            self._times.measure(candidate.name, Measured(candidate.mib, took_s))
        self._end(falling, candidate, SleepStage.ASLEEP, "", took_s)

    def _end(
        self, falling: Falling, candidate: Candidate, stage: SleepStage, text: str = "", took_s: float = 0.0
    ) -> None:
        falling.ended[candidate.name] = report_of(candidate, stage, text, took_s)
        if stage is not SleepStage.ASLEEP:
            log.warning("%s is not put to sleep: %s", candidate.name, text)
        self._daemon.saves_may_begin()

    def _next(self, falling: Falling) -> str | None:
        """Whose save is to begin next: the first in the order whose jobs stand still."""
        waiting = [c for c in falling.chosen if c.name not in falling.granted and c.name not in falling.ended]
        if self._daemon.now() < falling.begun + IN_ORDER_S:
            waiting = waiting[:1]
        return next((c.name for c in waiting if self._is_ready(c.name)), None)

    def _is_ready(self, name: str) -> bool:
        host, domain = self._daemon.host, self._daemon.host.domain(name)
        if domain is None or not domain.falls_asleep or name in self._daemon.switch.progress.memory_moves():
            return False
        return isinstance(life.step(host, domain, Seen(up=True, was_up=True, agent=True)), Save)

    async def _save_service(self, falling: Falling, candidate: Candidate) -> None:
        began = self._daemon.now()
        read = self._daemon.switch.readings.of(candidate.name)
        if read is not None and not read.up:
            text = "" if read.saved else "it is down"
            self._end(falling, candidate, SleepStage.ASLEEP if read.saved else SleepStage.FAILED, text)
            return
        if began >= falling.until:
            self._end(falling, candidate, SleepStage.LEFT, "the time was over before its save could begin")
            return
        falling.granted[candidate.name] = began
        try:
            await self._daemon.driver.save(candidate.name)
        except DriverError as error:
            self._end(falling, candidate, SleepStage.FAILED, str(error))
            return
        self._fell_asleep(falling, candidate)

    def _on_the_way(self, falling: Falling, candidate: Candidate) -> SleeperReport:
        if candidate.name in falling.granted:
            return report_of(candidate, SleepStage.SAVING, "it is being saved")
        if candidate.name in falling.restored:
            text = "its move is called off" if self._moves(candidate.name) else "it is just coming back from a sleep"
            return report_of(candidate, SleepStage.STOPPING, text)
        domain = self._daemon.host.domain(candidate.name)
        if candidate.turn is Turn.SERVICE or domain is None or self._is_ready(candidate.name):
            return report_of(candidate, SleepStage.READY, "it waits for its turn")
        text = why_awake(self._daemon.host, domain) or "its memory is being moved"
        return report_of(candidate, SleepStage.STOPPING, text)

    # Within

    async def _wake_after(self, falls: asyncio.Task[None] | None) -> None:
        """Bring everything back. A service that is just being saved comes back when it is: until then it is up, and
        nobody would notice later that it is not."""
        if falls is not None:
            await asyncio.wait((falls,))
        await self._waking.work()

    def _end_waking(self) -> None:
        if self._wakes is not None:
            self._wakes.cancel()
