"""The hub's shell: feeds the farm (farm.py) with reports of hosts and facts of PBS, and carries out its actions.

    node daemons <-> channel.py    publisher.py -> vnodes    call_pool.py + job_actions.py -> jobs    ledger.py -> disk

Everything here runs in one event loop. Only the publisher and the pool's workers are threads; they reach the loop by
call_soon_threadsafe only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, assert_never

from msgspec import structs

from magrathea import supervision
from magrathea.budget import Budget
from magrathea.control import Control, ControlRequest, Denied, granted
from magrathea.core.model import JobKey
from magrathea.core.refusals import RefusalCode
from magrathea.history import MOST, is_about
from magrathea.logs import RationedLog
from magrathea.messages import (
    HEARTBEAT_S,
    KNOWS_MOVES,
    BookEntry,
    Books,
    GivenAsked,
    Heartbeat,
    HistoryTold,
    PartsAsked,
    Resend,
    Snapshot,
    ToHub,
    encode,
    release,
)
from magrathea.move_messages import MoveWords, ParcelSent, RoomsAsked, RoomTold, WishRefused
from scheduler_plugin.pbs.base import Connect, PbsError

from . import ledger
from .books import Action, Look, Outcome, SetWalltime, Suspend
from .call_pool import CallPool
from .channel import HubChannel
from .comment_calls import comment_on, explain_in_time
from .configuration import HubConfiguration
from .connections import can_bear, raise_limit
from .farm import Farm
from .growing_pause import GrowingPause
from .histories import MOST_HOSTS, Histories
from .hook_files import HookFiles
from .host_questions import HostQuestions
from .job_actions import perform, spelled
from .keys import KeysError
from .lanes import Lane
from .move_log import MoveLog
from .movers import Movers
from .owners import OwnersFile
from .publisher import Publisher, Read
from .rooms import Rooms

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""The connection should end a call at its deadline. If it does not, the pool gives up the thread this much later."""
CLOSE_S = 3.0
HISTORY_COST_S = 0.1
"""A question about histories is charged this much, because it makes work for each host that is asked."""
SAVE_PER_ENTRY_S = 0.0003
"""The pause between two savings of the books, for each entry. One costs 9 us, so that saving takes 3 % of the time."""
TELL_PER_JOB_S = 0.0001
"""The pause between two messages to a host about its jobs, for each job."""
LOADS_AT_ONCE = 32
"""So many files of hosts' loads are written before other work has its turn: some milliseconds."""


class Hub:
    """`run` until its stop event is set. Raises OSError, ChannelError or KeysError if it cannot start."""

    def __init__(self, configuration: HubConfiguration, connect: Connect) -> None:
        self._configuration = configuration
        self._connect = connect
        self._id = secrets.token_hex(8)
        self._kick = asyncio.Event()
        self._told: dict[str, list[BookEntry]] = {}
        self._stale: set[str] = set()
        self._saved = ledger.Kept([], {})
        self._asked_on_disk: set[JobKey] = set()
        self._owed_on_disk: dict[JobKey, int | None] = {}
        self._save_due = False
        self._to_book: list[Action] = []
        """Suspensions that wait until they are on disk."""
        self._save_pace = GrowingPause(SAVE_PER_ENTRY_S)
        self._tell_paces = defaultdict[str, GrowingPause](lambda: GrowingPause(TELL_PER_JOB_S))
        self._calls: set[asyncio.Task[None]] = set()
        self._graced = False
        self._files = HookFiles(Path(configuration.hub.heartbeat_file))
        self._of_hosts = RationedLog(log, burst=50, period_s=10)
        self._working_since: float | None = None
        self._reading_jobs = False
        self._read_jobs_again = False
        self._looking_at_waking = False

    async def run(self, stop: asyncio.Event) -> None:
        settings = self._configuration.pbs
        self._loop = asyncio.get_running_loop()
        self._files.remove_loads()
        kept = ledger.load(self._configuration.state_dir)
        self._take_saved(kept)
        owners = OwnersFile(self._configuration.state_dir, time.time())
        self.farm = Farm(kept, self._loop.time(), owners.written, set_priority=settings.set_priority)
        self._channel = HubChannel(
            self._configuration.ipc,
            self._configuration.tcp,
            self._configuration.keys_dir,
            self._on_message,
            can_bear(raise_limit()),
            self._configuration.hub.connections_per_address,
        )
        self._channel.start()
        self._histories = Histories(self._channel.send)
        self._rooms = Rooms(lambda host: host in self.farm.hosts and self.farm.hosts[host].live)
        shell = self._channel, self._charged, self._follow_moves, MoveLog(time.time), self._rooms
        self._movers = Movers(self._configuration, owners, self.farm, *shell)
        self.farm.bind(self._channel.bindings)
        self._pool = CallPool(self._connect, settings.workers, settings.call_deadline_s + GRACE_S)
        # a claim waits for its answer, and the pool's threads may all wait for MoMs
        self._questions = CallPool(self._connect, 1, settings.call_deadline_s + GRACE_S, asks_server=True)
        self._answers = HostQuestions(
            *(self.farm, self._pool, self._questions, self._channel.send, self._charged, self._works)
        )
        budget = Budget(settings.publish_budget, settings.publish_burst_s, time.monotonic())
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._publisher = Publisher(
            self._connect, self._on_read, self._on_failed, budget, settings.compare_s, kept.offline
        )
        control = Control(
            Path(self._configuration.hub.control_socket),
            {"status": self._status, "history": self._history, "lost-plan": self._movers.losses.plan},
            {"lost": self._movers.losses.book},
            costs={"history": HISTORY_COST_S},
        )
        try:
            await control.start()
        except OSError as error:  # the socket is only for people who look; PBS still needs the hub
            log.error("ALERT nobody can ask this hub at %s: %s; fix `control_socket` in [hub]", control.path, error)
        log.info("listening at %s; %d jobs in the books", ", ".join(self._configuration.hub.listen), len(kept.entries))
        supervision.notify("READY=1")
        self._publisher.start()
        # only the last of these ends normally; the others end only with an error
        parts: list[asyncio.Future[Any]] = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._work()),
            asyncio.create_task(self._movers.run()),
            self._failed,
            asyncio.create_task(stop.wait()),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in [*parts, *self._calls]:
                part.cancel()
            await asyncio.gather(*parts, *self._calls, return_exceptions=True)
            self._save(self.farm.entries.kept)
            await control.close()
            await self._channel.close()
            self._pool.close()
            self._questions.close()
            await asyncio.to_thread(self._publisher.close, CLOSE_S)
            self.farm.entries.offline = self._publisher.offline
            self._save(self.farm.entries.kept)

    def compare(self) -> None:
        """Compare everything with PBS now, and read the keys again (SIGHUP)."""
        self._reload_keys()
        self._publisher.compare()

    async def _status(self, request: ControlRequest) -> bytes:
        """The hosts' last snapshots, and which jobs are booked."""
        return encode(structs.replace(self.farm.view(time.time()), **self._movers.views))

    async def _history(self, request: ControlRequest) -> bytes:
        """The histories of the hosts that have the job or domain in question, or had it before it moved lately; of all
        hosts if there is none."""
        live = {name: heard.snapshot for name, heard in self.farm.hosts.items() if heard.live}
        moved = self._movers.log.hosts_of(request.about)
        hosts = [n for n, snapshot in live.items() if n in moved or is_about(snapshot, request.about)] or list(live)
        if len(hosts) > MOST_HOSTS:
            raise Denied(
                RefusalCode.TOO_MANY, f"none of {len(hosts)} hosts has it now, and so many are not asked; name a host"
            )
        limit = min(request.limit, MOST // max(1, len(hosts)))
        told = await self._histories.ask(hosts, request.about, request.since, limit)
        return granted(hosts=told)

    # Messages of hosts

    def _on_message(self, host: str, message: ToHub, new: bool) -> None:
        if new:
            self._of_hosts.say(host, f"host {host} is connected", level=logging.INFO)
            self._told.pop(host, None)
            self._movers.connected(host)
            self._channel.send(host, self._greeting())
        match message:
            case Snapshot():
                if self.farm.snapshot(message, time.time(), self._loop.time()):
                    # the other hosts of its jobs may have to learn what it wants
                    self._stale |= {host} | self.farm.others(host)
                    self._files.write_load(host, self.farm.load(host))  # before a job may start because of it
                    self._publish(host)
                    self._kick.set()
            case HistoryTold():
                self._histories.told(host, message)
            case PartsAsked():
                self._start(self._answers.tell_parts(host, message, time.time()))
            case GivenAsked():
                self._start(self._answers.tell_given(host, message, time.time()))
            case Heartbeat():
                self._beat_heard(host, message)
            case MoveWords() | WishRefused():
                self._movers.said(host, message)
            case ParcelSent():
                self._movers.parcel(host, message)
            case RoomTold():
                self._rooms.said(host, message)
            case RoomsAsked():
                self._channel.send(host, self._rooms.answer(host, message))
            case _:
                assert_never(message)

    @contextlib.contextmanager
    def _charged(self, causes: Mapping[str, int], lane: Lane = Lane.REST) -> Iterator[None]:
        """Charge the time that the block takes to these hosts, in proportion. It must not await anything."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took_s = time.perf_counter() - began
            whole = sum(causes.values())
            for host, part in causes.items():
                self._channel.charge(host, took_s * part / whole, lane)

    def _beat_heard(self, host: str, beat: Heartbeat) -> None:
        self._movers.knows(host, beat.version)
        if beat.at:
            self.farm.machine(host, beat.at - time.time(), release(beat.version))
        was_live = host in self.farm.hosts and self.farm.hosts[host].live
        if not self.farm.heartbeat(host, beat.boot_id, beat.revision, self._loop.time()):
            self._channel.send(host, Resend())
        elif not was_live:
            self._of_hosts.say(host, f"host {host} is heard again", level=logging.INFO)
            self._publish(host)
            self._kick.set()

    def _greeting(self) -> Heartbeat:
        return Heartbeat(sender="hub", boot_id=self._id, revision=0, version=KNOWS_MOVES)

    def _tell_books(self, hosts: Iterable[str], again: bool = False) -> None:
        """Send hosts their books if these have changed; `again`: also if the host's snapshot does not show them."""
        for host in hosts:
            with self._charged({host: 1}):
                told = self.farm.books(host)
                heard = self.farm.hosts.get(host)
                if told is None or heard is None:
                    continue
                self._tell_paces[host].took_turn(self._loop.time(), sum(len(d.jobs) for d in heard.snapshot.domains))
                if told == self._told.get(host) and not (again and told != heard.believed_books):
                    continue
                books = Books(hub_id=self._id, acked_revision=heard.snapshot.revision, jobs=told)
                if self._channel.send(host, books):
                    self._told[host] = told

    # Vnodes

    def _publish(self, host: str | None = None) -> None:
        wanted, alerts = self.farm.publication(self._loop.time(), host)
        for alert in alerts:
            self._of_hosts.say(host, alert)
        if wanted:
            self._publisher.want(wanted)

    def _on_read(self, read: Read) -> None:
        """Runs in the publisher's thread."""
        self._loop.call_soon_threadsafe(self._read, read)

    def _on_failed(self, error: Exception) -> None:
        """Runs in the publisher's thread."""
        self._loop.call_soon_threadsafe(self._failed.set_exception, error)

    def _read(self, read: Read) -> None:
        self._touch()  # before publishing: the runjob hook refuses jobs without it
        self.farm.read_vnodes(read.vnodes, read.server)
        self._movers.give_up(self.farm.given_up(self._loop.time()))
        self._publish()
        self._start_reading_jobs()

    def _start_reading_jobs(self) -> None:
        """Read all jobs: now, or once more when the present reading has ended. Never twice at a time."""
        self._read_jobs_again = self._reading_jobs
        if not self._reading_jobs:
            self._reading_jobs = True
            self._start(self._jobs_in_turn())

    async def _jobs_in_turn(self) -> None:
        try:
            await self._read_jobs()
        finally:
            self._reading_jobs = False
        if self._read_jobs_again:
            self._start_reading_jobs()

    async def _read_jobs(self) -> None:
        asked_at, mono = time.time(), self._loop.time()
        try:
            jobs = await self._pool.run(lambda pbs: pbs.jobs())
        except PbsError as error:
            log.warning("jobs cannot be read: %s; again at the next comparison", error)
            if not self.farm.knows_pbs:
                self._loop.call_later(HEARTBEAT_S, self._start_reading_jobs)
            return
        self.farm.maintenance.answered(self._files.forgotten())
        self._log(self.farm.read_jobs(jobs, asked_at, mono))
        self._files.ask_to_forget(self.farm.maintenance.requests, again=True)
        self._stale |= self.farm.hosts.keys()
        self._kick.set()
        for number, host in enumerate(list(self.farm.hosts)):
            self._files.write_load(host, self.farm.load(host))
            if number % LOADS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _follow_moves(self, hosts: set[str]) -> None:
        """Let vnodes and jobs follow domains that are on their way to or from these hosts, or have come there."""
        for host in sorted(hosts & self.farm.hosts.keys()):
            self._files.write_load(host, self.farm.load(host))
            self._publish(host)
        self._stale |= hosts
        self._kick.set()

    # Jobs

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # then something is due
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes with the kick.
                async with asyncio.timeout(self._idle_s()):
                    await self._kick.wait()
            self._kick.clear()
            self._working_since = self._loop.time()
            causes = dict(self.farm.caused)
            with self._charged(causes):
                self.farm.maintenance.answered(self._files.forgotten())
                actions, notes = self.farm.actions(time.time())
                self.farm.caused.clear()
                self._log(notes)
                if self.farm.knows_pbs:
                    self._files.ask_to_forget(self.farm.maintenance.requests)
                self._to_book += [action for action in actions if self._must_save_before(action)]
                for action in actions:
                    if not self._must_save_before(action):
                        self._act(action)
            self._save_due = bool(self._to_book) or (self._save_due or not actions)
            if self._save_due and not self._save_pace.wait_s(self._loop.time()):
                await self._book()
            with self._charged(causes):
                for key, comment in self.farm.comments.refused_due().items():
                    self._start(explain_in_time(self._pool, self.farm.owners(comment.vnodes), key, comment))
                for key, comment in self.farm.comments.waiting_due().items():
                    self._start(comment_on(self._pool, self.farm.owners(comment.vnodes), key, comment))
            now = self._loop.time()
            stale = {host for host in self._stale if not self._tell_paces[host].wait_s(now)}
            self._stale -= stale
            self._tell_books(stale)
            self._working_since = None

    def _idle_s(self) -> float | None:
        """How long there is nothing to do unless something happens; None: for ever."""
        now, due = self._loop.time(), self.farm.next_due()
        waits = [self._tell_paces[host].wait_s(now) for host in self._stale]
        if due is not None:
            waits.append(max(0.0, due - time.time()))
        if self._save_due:
            waits.append(self._save_pace.wait_s(now))
        return min(waits, default=None)

    def _must_save_before(self, action: Action) -> bool:
        """True if it must be on disk first that we do this, and it is not there yet."""
        match action:
            case Suspend():
                return action.key not in self._asked_on_disk
            case SetWalltime():  # else a hub that dies now is followed by one that gives the same time back once more
                return self._owed_on_disk.get(action.key) != action.seconds
        return False

    async def _book(self) -> None:
        """Save the books, then do what had to wait for that."""
        self._save_due = False
        actions, self._to_book = self._to_book, []
        self.farm.entries.offline = self._publisher.offline
        kept = self.farm.entries.kept
        if kept != self._saved:
            await asyncio.to_thread(self._save, kept)
        self._save_pace.took_turn(self._loop.time(), len(kept.entries) + len(kept.paid))
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        level = logging.DEBUG if isinstance(action, Look) else logging.INFO  # any host can cause looks
        log.log(level, "job %s: %s", action.key, spelled(action))
        self._start(self._do(action))

    async def _do(self, action: Action) -> None:
        try:
            outcome = await self._pool.run(lambda pbs: perform(pbs, action), self.farm.payers(action))
        except PbsError as error:
            outcome = Outcome(action, False, False, None, None, time.time(), error)
        self._log(self.farm.outcome(outcome))
        self._stale |= self.farm.hosts_of([action.key])
        self._kick.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = supervision.start(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _save(self, kept: ledger.Kept) -> None:
        """Write the books to disk if they have changed. May run in a thread: nothing else saves meanwhile."""
        if kept == self._saved:
            return
        try:
            ledger.save(self._configuration.state_dir, kept)
            self._take_saved(kept)
        except OSError as error:
            log.error("ALERT the books cannot be written to %s: %s", self._configuration.hub.state_dir, error)

    def _take_saved(self, kept: ledger.Kept) -> None:
        self._saved = kept
        self._asked_on_disk = {entry.key for entry in kept.entries if entry.asked_at is not None}
        self._owed_on_disk = {entry.key: entry.walltime_s for entry in kept.entries}

    def _log(self, notes: Iterable[str]) -> None:
        for note in notes:
            log.log(logging.ERROR if note.startswith("ALERT") else logging.INFO, "%s", note)

    # Time

    async def _beat(self) -> None:
        while True:
            self._touch()
            self._reload_keys()
            for host in self.farm.leases(self._loop.time()):
                log.warning("host %s has not been heard for three heartbeats: its vnodes accept nothing", host)
                self._files.write_load(host, b"")
                self._publish(host)
                self._kick.set()
            if not self._graced and self._loop.time() - self.farm.started >= 3 * HEARTBEAT_S:
                self._graced = True
                self._publish()
            for host in self._channel.hosts:
                self._channel.send(host, self._greeting())
            self._movers.remind()
            self._tell_books(self._channel.hosts, again=True)
            if not self._looking_at_waking and (names := self.farm.look_at_waking(time.time())):
                self._looking_at_waking = True
                self._start(self._look_at_waking(names))
            await asyncio.sleep(HEARTBEAT_S)

    async def _look_at_waking(self, names: list[str]) -> None:
        """Ask PBS about vnodes whose domains have just come back: their jobs wait for their MoMs."""
        at = time.time()
        try:
            found = await self._pool.run(lambda pbs: [pbs.vnode(name) for name in names], self.farm.owners(names))
            self.farm.read_waking([vnode for vnode in found if vnode is not None], at)
            self._kick.set()
        except PbsError as error:
            log.info("vnodes %s: PBS cannot be asked: %s; again soon", ", ".join(names), error)
        finally:
            self._looking_at_waking = False

    def _reload_keys(self) -> None:
        try:
            self._channel.reload_keys()
        except KeysError as error:
            log.error("ALERT keys: %s; those read before stay valid", error)
        self.farm.bind(self._channel.bindings)

    def _works(self) -> bool:
        """False if PBS does not answer or the work on bookings hangs (disk, calls to PBS)."""
        limit_s = self._configuration.pbs.call_deadline_s
        hangs = self._working_since is not None and self._loop.time() - self._working_since > limit_s
        exhausted = self._pool.exhausted or self._questions.exhausted
        return not (hangs or exhausted) and self._publisher.healthy(limit_s)

    def _touch(self) -> None:
        """Touch the heartbeat file if the hub works. The runjob hook preempts nothing once this file is old."""
        if self._works():
            self._files.touch()
