"""The node daemon: it turns what happens into facts, and lets its parts do what follows from them.

    event -> facts.py (machine.handle, journal) -> answer, and the switch looks for what is left to do

Everything but the facts is level-triggered. After any event, and after any restart, the daemon computes from the facts
what should be and compares it with what is (switch.py). Nothing is undone, nothing is resumed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from magrathea import supervision
from magrathea.configuration import ConfigurationError
from magrathea.core import events as ev
from magrathea.core import machine, migration
from magrathea.core import move_events as me
from magrathea.core.model import Amount, Host, JobKey
from magrathea.core.moves import HostWithMoves
from magrathea.core.plan import Step
from magrathea.core.readiness import Unready
from magrathea.core.refusals import RefusalCode
from magrathea.messages import MOST_REFUSED, RefusedClaim, Snapshot

from . import snapshot as snapshots
from .claims.claims import Claims
from .claims.pbs_says import PbsSays
from .clock import Clock
from .configuration import NodedConfiguration, changes, read
from .control_operations import Admin
from .decided import Decided, limited_log
from .evacuation.evacuation import Evacuation
from .facts import Facts, differs
from .hub_client import HubClient
from .hypervisor.base import Driver, DriverError, Others
from .hypervisor.moving import DomainMover
from .journal_store import JournalStore
from .life.life import Life
from .life.saves import Saves
from .life.script_runner import ScriptRunner
from .life.site_scripts import SiteScripts
from .listening import Listening
from .move_tables import rules
from .moves.absent import told
from .moves.domain_moves import DomainMoves
from .moves.papers import with_visitors
from .moves.requests import MoveRequests
from .reboot.host_sleep import HostSleep
from .switch.paging import MemorySettings
from .switch.switch import REFRESH_S, Switch

log = logging.getLogger(__name__)

TICK_S = 5.0
"""If the journal has failed, it is tried again and tidied that often."""
TIDY_TICKS = 12
"""Otherwise the journal is tidied each minute, and more often while there is more to prune than it prunes at once."""
RECONFIGURED = (ev.Note.KEPT, ev.Note.FORGOTTEN, ev.Note.RENAMED)
"""What the core notes about a new configuration, for the one who asked for the reload."""

MakeDriver = Callable[[NodedConfiguration], Driver]
MakeMover = Callable[[NodedConfiguration], DomainMover | None]
"""None: domains of this configuration's driver never move between hosts."""
Observe = Callable[[str], None]


class Daemon:
    """One host's daemon. `close` gives back everything that it holds, even after a failed `start`."""

    def __init__(
        self,
        configuration: NodedConfiguration,
        path: Path,
        make_driver: MakeDriver,
        observe: Observe = lambda name: None,
        make_clock: Callable[[float], Clock] = Clock,
        make_mover: MakeMover = lambda configuration: None,
    ) -> None:
        self.path = path
        self.observe = observe
        self.boot_id = secrets.token_hex(8)
        self.facts = Facts(
            configuration.journal_path, make_clock, lambda name: self.observe(name), lambda: self.hub.publish()
        )
        self._tables = configuration.domain
        """What the file says of its domains, without visitors."""
        self.configuration = with_visitors(configuration, self.facts.moves)
        self._make_driver = make_driver
        self.driver = told(make_driver(self.configuration), self.facts.place, self.configuration)
        self._changing = asyncio.Lock()
        self._noted: list[str] = []
        self._decided = Decided(self, self.facts.preempted_by())
        self._listening = Listening(self)
        self.channels = self._listening.channels
        self.switch = Switch(self, self.driver, self.channels, observe)
        self.claims = Claims(self)
        self.scripts = self._make_scripts()
        self.site_scripts = SiteScripts(self)
        self.saves = Saves(self)
        self.life = Life(self)
        self.host_sleep = HostSleep(self)
        mover = make_mover(self.configuration)
        self.moves = None if mover is None else DomainMoves(self, mover)
        self.move_requests = MoveRequests(self, self.moves)
        self.evacuation = Evacuation(self)
        self.hub: HubClient = self._make_hub()
        self.admin = Admin(self)
        self._refused: deque[RefusedClaim] = deque(maxlen=MOST_REFUSED)
        self._timer: asyncio.TimerHandle | None = None
        self._tick_task: asyncio.Task[None] | None = None

    # Facts

    @property
    def host(self) -> Host:
        return self.facts.host

    @property
    def memory_settings(self) -> MemorySettings:
        return self.configuration.memory_settings()

    @property
    def journal(self) -> JournalStore:
        return self.facts.journal

    def now(self) -> float:
        return self.facts.now()

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        """Make `event` a fact, and see to what follows. A claim is refused if it cannot be written to disk."""
        applied = self.facts.apply(event)
        if not applied.taken:
            return applied.decisions
        for decision in applied.decisions:
            if not ev.is_question(decision):
                self._decided.take(decision)
        if isinstance(event, ev.DomainStarted):
            self.saves.judge_soon()
        if applied.changed:
            self._facts_changed()
        self._arm()
        return applied.decisions

    def _facts_changed(self) -> None:
        self.hub.publish()
        self.switch.look_soon()
        self.life.look_soon()
        self.claims.inquirer.look_soon()
        self.host_sleep.look_soon()
        self.evacuation.look_soon()
        if self.moves is not None:
            self.moves.look_soon()

    # Moves between hosts

    @property
    def place(self) -> HostWithMoves:
        return self.facts.place

    def apply_move(self, event: me.MoveEvent) -> tuple[me.Decision, ...] | None:
        """Make `event` a fact about moves, and see to what follows. None if it cannot be written to disk."""
        host, moves = self.facts.host, self.facts.moves
        decisions = self.facts.apply_move(event, rules(self.configuration))
        for decision in decisions or ():
            if isinstance(decision, me.MoveNoted):
                log.info("%s: %s %s", decision.domain, decision.what, decision.text)
                self.move_requests.noted(decision)
            elif not ev.is_question(decision):
                self._decided.take(decision)
        if self.facts.moves != moves or differs(host, self.facts.host):
            self._facts_changed()
        self._arm()
        return decisions

    def closed_to_visitors(self) -> str:
        return "its machine is put to sleep for a shutdown" if self.host_sleep.going_on else self.evacuation.closed

    def life_rests(self, name: str) -> bool:
        return migration.life_rests(self.facts.moves, name)

    async def domains_changed(self) -> None:
        """Domains have come or gone by a move: drive, and listen to, those that are here."""
        async with self._changing:
            named = msgspec.structs.replace(self.configuration, domain=self._tables)
            for sentence in await self._use(with_visitors(named, self.facts.moves)):
                log.error("configuration: %s", sentence)

    def _arm(self) -> None:
        """Wake at the next deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = machine.next_deadline(self.host)
        if at is not None and self._tick_task is not None:
            wait = min(3600.0, max(0.0, at - self.now()) + 0.001)
            self._timer = asyncio.get_running_loop().call_later(wait, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.apply(ev.TimerFired(self.now()))

    # What is published

    def beside(self) -> snapshots.Beside:
        switch = [*self.switch.progress.notes(), *self.switch.interference.notes()]
        notes = [*self.hub.silent(), *self.driver.notes(), *switch, *self.claims.notes(), *self.life.notes()]
        notes += [
            *self.host_sleep.notes(),
            *self.saves.notes(),
            *(self.moves.notes() if self.moves is not None else ()),
        ]
        if self.facts.trouble:
            notes.append(f"the journal fails, no new jobs are taken: {self.facts.trouble}")
        return snapshots.Beside(
            boot_id=self.boot_id,
            actual=self.switch.actual(),
            read=self.switch.readings.domains,
            since=self.facts.since,
            vnodes={name: self.configuration.vnode(name) for name in self.configuration.domain},
            by=self._decided.preempted_by,
            moves=self.switch.progress.moves(),
            waits=self.claims.waits(),
            stopped_at=self.switch.progress.stopped_at(),
            lacks={d.name: self.switch.progress.lack(d.name) for d in self.host.domains if d.jobs},
            driver=self.configuration.host.driver,
            notes=tuple(notes),
            limits=tuple(self.driver.limits()),
            refused=tuple(self._refused),
            closed=self.claims.closed(),
            travels=self.move_requests.travels(),
            away=tuple(self.moves.away()) if self.moves is not None else (),
            evacuation=self.evacuation.view(),
        )

    def snapshot(self, revision: int) -> Snapshot:
        return snapshots.snapshot(self.host, self.beside(), revision)

    def refused(self, domain: str, key: JobKey, code: RefusalCode, text: str) -> None:
        """A claim was refused. The hub writes it into the job's comment, for its owner."""
        claim = RefusedClaim(id=key.id, run=key.run, domain=domain, code=code, text=text[:4096], at=self.host.now)
        self._refused.append(claim)
        self.hub.publish()

    async def parts_elsewhere(self, domain: str, key: JobKey, vnodes: list[str]) -> tuple[Unready, ...] | None:
        """The job's parts in vnodes of other hosts that are not ready, by the hubs. None if no hub answers."""
        here = {self.configuration.vnode(domain.name) for domain in self.host.domains}
        there = [vnode for vnode in vnodes if vnode not in here]
        return await self.hub.unready(domain, key, there) if there else ()

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        """Whether PBS has given the job to the domain, by the hubs.

        `claim`: a claim waits for the answer. If all hubs are too old to be asked, such a job counts as given, because
        nothing could be preempted otherwise. About any other job nothing is known then.
        """
        if self.hub.too_old_to_ask and not claim:
            return PbsSays(None)
        if self.hub.too_old_to_ask:
            limited_log.say("hub", "no hub can ask PBS about claimed jobs; upgrade it: until then guests are believed")
            return PbsSays(True)
        return await self.hub.given(key, self.configuration.vnode(domain), within_s, claim=claim)

    async def ask_before_wake(self, domain: str) -> None:
        await self.claims.inquirer.ask_before_wake(domain)

    def actual_changed(self) -> None:
        self.hub.publish()
        self.life.look_soon()

    def pushed_out(self, domain: str, mib: int, seconds: float) -> None:
        self.saves.pushed_out(domain, mib, seconds)

    def may_save(self, name: str) -> bool:
        return self.host_sleep.may_save(name)

    def saves_may_begin(self) -> None:
        self.life.look_soon()

    def step_begins(self, step: Step) -> None:
        self._decided.step_begins(step)

    def step_done(self, step: Step) -> None:
        self._decided.step_done(step)

    # Hub

    def _make_hub(self) -> HubClient:
        table = self.configuration.hub
        return HubClient(
            self.configuration.host.name,
            self.boot_id,
            table.endpoints,
            self.snapshot,
            on_books=lambda jobs: self._books(jobs),
            on_found=lambda: self._hub_event(ev.HubFound(self.now())),
            on_lost=lambda: self._hub_event(ev.HubLost(self.now())),
            key_file=table.key_file,
            hub_key_file=table.hub_key_file,
            on_history=lambda question: self.admin.answer_history(question),
            on_moves=None if self.moves is None else self.move_requests.heard,
        )

    def _books(self, jobs: tuple[ev.Booking, ...]) -> None:
        self.apply(ev.BooksReported(self.now(), jobs))

    def _hub_event(self, event: ev.Event) -> None:
        log.info("%s", "a hub answers" if isinstance(event, ev.HubFound) else "no hub answers: no new preemption")
        self.apply(event)

    # Hypervisor

    def driver_lost(self, why: str) -> None:
        if self.host.driver_lost_at is None:
            log.warning("the hypervisor does not answer, so its domains cannot be read: %s", why)
            self.apply(ev.DriverLost(self.now()))

    def _log_notes(self) -> None:
        """Log what the hypervisor cannot do, each sentence once, and again if it has changed."""
        before, self._noted = self._noted, self.driver.notes()
        for note in self._noted:
            if note not in before:
                log.info("%s", note)

    def driver_read(self, others: Others) -> None:
        self._log_notes()
        if self.host.driver_lost_at is not None:
            log.info("the hypervisor answers again")
            self.apply(ev.DriverFound(self.now()))
        seen = Amount(others.cpus, others.memory_mib)
        if seen != self.host.others:
            log.info("%d other domains have %d CPUs and %d MiB", others.domains, others.cpus, others.memory_mib)
            self.apply(ev.OthersSeen(self.now(), others.cpus, others.memory_mib))

    # Starting, ending, reading the configuration again

    async def start(self) -> None:
        """Start all parts. Raises OSError, DriverError, HubError."""
        self._tick_task = supervision.start(self._tick())
        self._reconfigure()
        self.apply(ev.DaemonStarted(self.now()))
        await self.driver.start(self.life.noticed)
        self._log_notes()
        await self.switch.readings.refresh()
        await self._listening.adjust()
        await self.admin.start()
        self.hub.start()
        self.claims.inquirer.start()
        self.host_sleep.start()
        if self.moves is not None:
            self.moves.start()
        self.evacuation.start()
        self.saves.judge_soon()
        self.switch.look_soon()

    async def close(self) -> None:
        if self._tick_task is not None:
            self._tick_task.cancel()
            self._tick_task = None
        self._arm()  # no more: what ends here causes events, and the journal is about to be closed
        await self.admin.close()
        await self.evacuation.close()
        await self.host_sleep.close()
        await self.move_requests.close()
        if self.moves is not None:
            await self.moves.close()
        await self.life.close()
        await self.saves.close()
        await self.switch.close()
        await self.hub.close()
        await self._listening.close()
        self.claims.close()
        await self.site_scripts.close()
        await self.scripts.close()
        await self.driver.close()
        self.facts.close()

    def _make_scripts(self) -> ScriptRunner:
        paths = self.configuration.paths
        return ScriptRunner(Path(paths.scripts) if paths.scripts else None, paths.script_time_limit_s)

    async def reload(self) -> list[str]:
        """Read the configuration again and take over what can be. Returns a sentence for each thing that cannot.

        Raises ConfigurationError; everything stays as it was then.
        """
        async with self._changing:
            named = read(self.path)
            change = changes(self.configuration, with_visitors(named, self.facts.moves), self.host)
            tables = change.configuration.domain
            self._tables = {n: t for n, t in tables.items() if n in named.domain or not self.facts.moves.visitor(n)}
            return [*change.kept, *await self._use(change.configuration)]

    async def _use(self, configuration: NodedConfiguration) -> list[str]:
        """Let this configuration replace the present one. Returns a sentence for each thing that it cannot change."""
        driver, before, said = self.driver, self.driver, list[str]()
        if configuration.drives() != self.configuration.drives():
            driver = told(self._make_driver(configuration), self.facts.place, configuration)
            try:
                await driver.start(self.life.noticed)
            except DriverError as error:
                said.append(f"the domains' changes are not taken over: {error}")
                configuration = msgspec.structs.replace(configuration, domain=self.configuration.domain)
                driver = before
        self.configuration = configuration
        said += self._reconfigure()
        if driver is not before:
            self.driver = driver
            self.switch.use_driver(driver)
            await before.close()
        await self._listening.adjust()
        self.scripts = self._make_scripts()
        self.admin.regroup()
        await self.switch.readings.refresh()
        self.saves.judge_soon()
        self.hub.publish()
        self.switch.look_soon()
        return said

    def _reconfigure(self) -> list[str]:
        """Let the configuration change the facts. Returns a sentence for each thing that it kept or removed."""
        decisions = self.apply(self.configuration.reconfigured(self.now()))
        notes = (d for d in decisions if isinstance(d, ev.Noted) and d.what in RECONFIGURED)
        return [f"{note.domain or self.host.name} is {note.what}: {note.text}" for note in notes]

    async def reload_logged(self) -> None:
        """Reload for SIGHUP, which gets its answer in the log."""
        try:
            said = await self.reload()
        except ConfigurationError as error:
            for problem in error.problems:
                log.error("configuration not taken over: %s", problem)
            return
        log.info("configuration read again: %s", self.path)
        for sentence in said:
            log.warning("configuration: %s", sentence)

    async def _tick(self) -> None:
        ticks, untidy = 0, False
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            self.facts.write_again()
            if ticks % TIDY_TICKS == 0 or self.facts.trouble or untidy:
                untidy = self.facts.tidy(self.configuration.journal.keep_days * 86400)
            if ticks % round(REFRESH_S / TICK_S) == 0:
                self.switch.readings.refresh_soon()
                self.saves.judge_soon()
            await self._listening.adjust()
