"""All that the hub knows: what hosts reported, what PBS has, and what the hub did to jobs. And what follows from it.

Rule 1: no I/O and no clock. The hub's shell (hub.py) feeds it and carries out its results.
Rule 2: times are Unix seconds on the hub's clock. Leases are measured on `mono`, the monotonic clock.
Rule 3: before it has read PBS's vnodes and jobs once, it reports nothing about jobs to hosts and does nothing to jobs.
A hub that has just started would otherwise report that nothing is booked.
Rule 4: a report of a job counts only if PBS itself has that job on a vnode of the host that reports it. PBS is asked
about a job (Look) before anything follows from a report (job_reports.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from msgspec import structs

from magrathea.core.model import JobKey, State
from magrathea.messages import HEARTBEAT_S, BookEntry, DomainReport, FarmView, HostView, JobReport, Snapshot
from magrathea.pbs_text.states import DEAD_STATES, RUNNING_SUBSTATE
from scheduler_plugin.pbs.base import Attributes, PbsJob, Vnode

from . import vnode_attributes
from .bindings import Bindings
from .books import (
    DEFAULT_NODE_FAIL_REQUEUE_S,
    Action,
    LedgerEntry,
    Look,
    Outcome,
    Resume,
    Suspend,
    Truth,
    learned,
    step,
)
from .entries import Entries
from .host_loads import NO_LISTS, HostLoads
from .job_comments import JobComments
from .job_parts import JobParts
from .job_reports import BURST, OWN_BURST, PER_S, JobReports, Questions, SeenJob
from .job_wishes import Heard, JobWish, wish_of
from .ledger import Kept
from .maintenance import Maintenance
from .managed_vnodes import ManagedVnodes
from .ownership import Ledger
from .placements import Placements
from .publications import Publications
from .shares import Cause, Shares
from .transfers import Transfers, given_up

LEASE_S = 3 * HEARTBEAT_S
PUT_OFF_S = 0.2
OVER_S = 1.0
"""If a host has caused too many suspensions, the next one waits this long before it is tried again."""


class Farm:
    """See the module. `kept`: the ledger of earlier runs. `owned`: the records of owners that are on disk.

    If a method returns sentences, they are for the log.
    """

    def __init__(self, kept: Kept, started: float, owned: Ledger | None = None, *, set_priority: bool = True) -> None:
        self._owned = owned or Ledger()
        self.transfers = Transfers(self._owned, kept.owners)
        self._vnodes = ManagedVnodes(self.transfers)
        self.hosts: dict[str, Heard] = {}
        self.entries = Entries(kept)
        self.entries.owners = dict(self.transfers.owners)  # the last hub may have died before it wrote them here
        self._publications = Publications(self._vnodes, set_priority=set_priority)
        self.started = started
        self._heard_at: dict[str, float] = {}
        self._machines: dict[str, tuple[float, str]] = {}
        self._reports = JobReports()
        self._questions = Questions()
        self._suspensions = Shares(PER_S, BURST, OWN_BURST)
        self.placements = Placements(self._vnodes.speaks_in_pbs, self._vnodes.cause)
        self.caused: Counter[str] = Counter()
        """How much of the next `actions` each host causes, in jobs to look at. Whoever calls `actions` clears it."""
        self._seen: dict[JobKey, SeenJob] = {}
        self.parts = JobParts(self._vnodes, self._reports, self.hosts, self._seen)
        self._busy: set[JobKey] = set()
        self._touched: dict[JobKey, float] = {}
        self._dirty: set[JobKey] = set(self.entries)
        self._node_fail_requeue_s = DEFAULT_NODE_FAIL_REQUEUE_S
        self._vnodes_read = False
        self._jobs_read = False
        self.maintenance, self.comments, self._loads = Maintenance(), JobComments(), HostLoads()

    @property
    def knows_pbs(self) -> bool:
        return self._vnodes_read and self._jobs_read

    # What hosts report

    def snapshot(self, snapshot: Snapshot, now: float, mono: float) -> bool:
        """Take a host's snapshot. True if it is new; False if it is a late one of the same daemon."""
        name = snapshot.host
        before = self.hosts.get(name)
        self._heard_at[name] = mono
        if before is not None and before.snapshot.boot_id == snapshot.boot_id:
            if snapshot.revision < before.snapshot.revision:
                return False
            if snapshot.revision == before.snapshot.revision and before.live:
                return False
        self.hosts[name] = Heard(snapshot, True, now)
        self._vnodes.heard(before.snapshot if before else None, snapshot)
        if self._vnodes_read:  # before that nobody knows which host owns a vnode
            self.comments.heard(
                snapshot, {d.vnode for d in snapshot.domains if self._vnodes.speaks_in_pbs(name, d.vnode)}, mono
            )
        turned = self._sleep_as_heard(self.hosts[name]) if self._vnodes_read else set()
        self._loads.heard(before.snapshot if before else None, snapshot)
        concerned = self._reports.take(before.snapshot if before else None, snapshot, now)
        concerned |= {
            k for k, e in self.entries.items() if e.away and any(map(self._vnodes.by(name), self._vnodes_of(k)))
        }
        if turned:
            concerned |= {key for key in self.entries if turned & self._vnodes_of(key)}
        self.caused[name] += 1 + len(concerned)
        self._dirty |= concerned
        return True

    def _sleep_as_heard(self, heard: Heard) -> set[str]:
        """Take from a host's last snapshot who sleeps. Returns the vnodes of which that is new, or over."""
        snapshot = heard.snapshot
        own = [d.vnode for d in snapshot.domains if self._vnodes.speaks_in_pbs(snapshot.host, d.vnode)]
        return self.entries.sleepers.heard(snapshot, own, heard.received_at)

    def heartbeat(self, host: str, boot_id: str, revision: int, mono: float) -> bool:
        """Renew the host's lease and return True if we have its snapshot of this revision; if False, ask for it."""
        heard = self.hosts.get(host)
        if heard is None or heard.snapshot.boot_id != boot_id or heard.snapshot.revision < revision:
            return False
        self._heard_at[host] = mono
        if not heard.live:
            self._set_live(host, True)
        return True

    def machine(self, host: str, ahead_s: float, version: str) -> None:
        """Take what a heartbeat reports: how far the host's clock is ahead of ours, and its daemon's version."""
        self._machines[host] = (ahead_s, version)

    def ahead_s(self, host: str) -> float:
        """How far the host's clock is ahead of ours; 0 if it has not told."""
        return self._machines.get(host, (0.0, ""))[0]

    def leases(self, mono: float) -> list[str]:
        """Mark hosts whose lease has run out as silent, and report them."""
        late = [h for h, heard in self.hosts.items() if heard.live and mono - self._heard_at[h] > LEASE_S]
        for host in late:
            self._set_live(host, False)
        return late

    def _set_live(self, host: str, live: bool) -> None:
        heard = self.hosts[host]
        self.hosts[host] = replace(heard, live=live)
        if self.transfers.free:  # what was given up is no silent host's
            self._own()
        self._dirty |= {JobKey(j.id, j.run) for d in heard.snapshot.domains for j in d.jobs}
        self._dirty |= set(self.entries)

    def bind(self, enrolled: Bindings) -> None:
        """Set which host is enrolled for which vnodes from now on."""
        if enrolled != self._vnodes.enrolled:
            self._vnodes.enrolled = enrolled
            self._bind()

    def owners_changed(self, domains: Collection[str]) -> set[str]:
        """Follow the records of these domains. Returns the hosts that are concerned."""
        concerned = self.transfers.changed(domains)
        self.entries.owners = dict(self.transfers.owners)
        self._bind()
        self._dirty |= {key for key in self.entries if not self._vnodes_of(key).isdisjoint(domains)}
        return concerned

    def may_found(self, host: str, domain: str) -> bool:
        """True if the host may be the first to say that it owns the domain: it may speak of the vnode of that name."""
        return self._vnodes.speaks_in_pbs(host, domain)

    def may_ask_about(self, host: str, domain: str) -> bool:
        """True if the host is to know who owns the domain: it has moved, and may have been this host's, or may be."""
        known = domain in self.transfers.owners or domain in self.transfers.free
        return known and self._vnodes.enrolled.enrolled(host, domain)

    def free_for(self, host: str) -> set[str]:
        """The domains that were given up, and that the host may take back."""
        return {name for name in self.transfers.free if self._vnodes.enrolled.enrolled(host, name)}

    def given_up(self, mono: float) -> list[str]:
        """Domains that an admin has given up. None as long as silent hosts may still report (transfers.py)."""
        if mono - self.started < LEASE_S:
            return []
        on_record = {name: vnode.attributes.get(vnode_attributes.HOST, "") for name, vnode in self._vnodes.pbs.items()}
        records, owners = self._owned.records, self.transfers.owners
        return given_up(records, owners, on_record, lambda host, vnode: self._report(host, vnode) is not None)

    def _bind(self) -> None:
        if self._vnodes.bind():
            self._own()
            self._dirty |= self.entries.keys() | set(self._reports)

    def _own(self) -> None:
        silent = {name for name, heard in self.hosts.items() if not heard.live}
        self._vnodes.settle({name: heard.snapshot for name, heard in self.hosts.items()}, silent)

    # What PBS has

    def read_vnodes(self, vnodes: Iterable[Vnode], server: Mapping[str, str]) -> None:
        self._vnodes.pbs = {vnode.name: vnode for vnode in vnodes}
        self._own()
        self.entries.sleepers.keep(
            {name: host for name, host in self._vnodes.owner.items() if name in self._vnodes.pbs}
        )
        for heard in self.hosts.values():  # a vnode may be new, or another host's than when that snapshot came
            self._sleep_as_heard(heard)
        self._vnodes_read = True
        self._node_fail_requeue_s = float(server.get("node_fail_requeue", DEFAULT_NODE_FAIL_REQUEUE_S))
        self._dirty |= set(self.entries)

    def read_jobs(self, jobs: Iterable[PbsJob], asked_at: float, mono: float) -> list[str]:
        """Take all jobs that MoMs have, as they were at `asked_at` or later. What we touched since then is newer.

        `mono`: the same time. Returns alerts and notes about vnodes that are in maintenance for no job.
        """
        found = {job.id: job for job in jobs}
        self.placements.read(found, asked_at)
        self._loads.compared(self.hosts, self._vnodes.pbs, found.values(), self._vnodes.speaks, mono)
        keys = {key for key in self._reports if key in self._seen or self._reports.asking(key, ())} | set(self.entries)
        for key in keys:
            if key not in self._busy and self._touched.get(key, 0.0) < asked_at:
                self._seen[key] = SeenJob(found.get(key.id), asked_at)
        for key in self._seen.keys() - keys:
            del self._seen[key]
        self._touched = {key: at for key, at in self._touched.items() if key in keys}
        self.maintenance.keep(keys)
        self.entries.paid = {id: at for id, at in self.entries.paid.items() if id in found}
        self._jobs_read = True
        self._dirty |= keys
        return self._keep_up(found.values(), asked_at)

    def look_at_waking(self, now: float) -> list[str]:
        """Vnodes that PBS should be asked about now: their domains have come back from their sleep."""
        return self.entries.sleepers.to_look_at(now)

    def read_waking(self, vnodes: Collection[Vnode], at: float) -> None:
        """Take what PBS has shown of some vnodes, which it was asked for at `at`."""
        self._vnodes.pbs.update({vnode.name: vnode for vnode in vnodes if vnode.name in self._vnodes.pbs})
        back = self.entries.sleepers.looked(vnodes, at)
        self._dirty |= {key for key in self.entries if back & self._vnodes_of(key)}

    def _keep_up(self, jobs: Collection[PbsJob], at: float) -> list[str]:
        """See maintenance.py."""
        booked = {key.id for key, entry in self.entries.items() if entry.booked}
        ours = {name for job in jobs if job.suspended and job.id in booked for name in job.vnodes}
        others = {name for job in jobs if job.suspended and job.id not in booked for name in job.vnodes}
        by_id, speaks = self._reports.by_id(), self._vnodes.speaks
        mild = [
            job for job in jobs if any(self._reports.is_preemptible(key, job, speaks) for key in by_id.get(job.id, ()))
        ]
        preemptible = {name for job in mild for name in job.vnodes}
        said = self.maintenance.look(self._vnodes.pbs, self._vnodes.owner, ours, others, preemptible, at)
        for vnode in self.maintenance.to_touch:
            for job in (job for job in jobs if vnode in job.vnodes and job.substate == RUNNING_SUBSTATE):
                known = by_id.get(job.id, ())
                if (free := self._reports.touchable(job, known, speaks, self.entries)) is not None:
                    self.entries[free] = LedgerEntry(id=free.id, run=free.run, touch=True)
                    self._seen[free] = SeenJob(job, at)
                    self._dirty.add(free)
                    said.append(
                        f"vnode {vnode} is in maintenance for no job: {free} is suspended and resumed to end it"
                    )
                    break
        return said

    # Results: vnodes

    def publication(self, mono: float, host: str | None = None) -> tuple[dict[str, Attributes], list[str]]:
        """What the vnodes of one host, or of all, should show, and new alerts. Empty until PBS has been read."""
        if not self._vnodes_read:
            return {}, []
        if host is not None:
            wanted, alerts = self._publications.of_host(self.hosts[host])
        else:
            wanted, alerts = self._publications.of_all(self.hosts, grace=mono - self.started < LEASE_S)
        for sleeper in self.entries.sleepers:
            if sleeper.vnode in wanted:
                wanted[sleeper.vnode] = vnode_attributes.of_sleeper(wanted[sleeper.vnode], sleeper)
        return wanted, alerts

    def load(self, host: str) -> bytes:
        """What the runjob hook may know of a counted host's load (host_loads.py); empty if nothing."""
        return self._loads.file(self.hosts.get(host), self._vnodes.speaks)

    # Results: jobs

    def actions(self, now: float) -> tuple[list[Action], list[str]]:
        """Actions to carry out in PBS, at most one for each job, and notes. Each must be followed by `outcome`."""
        if not self.knows_pbs:
            self._dirty = self._reports.known(self._dirty) | (self._dirty & self.entries.keys())
            return [], []
        asked = self._questions.due.due(now)
        self.caused.update(host for key in asked for host in self._reports.hosts(key))
        due = self.entries.due.due(now) | asked
        waking = self.entries.sleepers.waking(now)
        todo: list[Action] = []
        notes: list[str] = []
        for key in sorted((self._dirty | due) - self._busy):
            self._believe_dark(key)
            before = self._unpaid(key)
            wish = self._wish(key, now)
            result = step(key, before, wish, self._truth(key, waking), now, self._node_fail_requeue_s)
            # a job with an entry needs no question: its own actions and each comparison ask PBS about it
            asking = self._reports.asking(key, self._counted(key)) if result.entry is None else ()
            causes = {self._vnodes.cause(host, vnode) for host, vnode in asking}
            action = result.action or (Look(key) if self._questions.ask(key, causes, now) else None)
            put_off_s = 0.0
            if isinstance(action, Suspend | Resume) and self.maintenance.puts_off(key, self._vnodes_of(key), now):
                put_off_s = PUT_OFF_S
            elif wish.stop and result.is_charged(new=before is None):
                put_off_s = 0.0 if self._suspensions.take(self._stops(key, wish), now) else OVER_S
            if put_off_s:
                entry = before or LedgerEntry(id=key.id, run=key.run)
                self._store(key, structs.replace(entry, not_before=now + put_off_s), now)
                continue
            self._store(key, result.entry, now)
            notes += result.notes
            if action is not None:
                if isinstance(action, Suspend):
                    self.maintenance.mark(self._vnodes_of(key))
                todo.append(replace(action, only_on=self._grounds(key, wish)))
                self._hold(key)
                self._touched[key] = now
        self._dirty &= self._busy
        return todo, notes

    def _hold(self, key: JobKey) -> None:
        """Keep the job from being due until the outcome of its action."""
        self._busy.add(key)
        for due in (self.entries.due, self._questions.due):
            due.hold(key)

    def _stops(self, key: JobKey, wish: JobWish) -> set[Cause]:
        """The hosts that want the job stopped, each with one of the job's vnodes."""
        return {self._vnodes.cause(host, next(iter(self._reports.vnodes(key, host)), "")) for host in wish.stoppers}

    def _unpaid(self, key: JobKey) -> LedgerEntry | None:
        """The job's entry, without the time that was paid since: by the entry of another run of that job."""
        entry = self.entries.get(key)
        until, run = self.entries.paid.get(key.id, (0.0, key.run))
        if entry is None or entry.stopped_at is None or run == key.run:
            return entry
        return structs.replace(entry, stopped_at=max(entry.stopped_at, until))

    def _believe_dark(self, key: JobKey) -> None:
        """If PBS has the job in a domain that went off, watch it: its MoM may come back without it."""
        seen = self._seen.get(key)
        if seen is not None and self._reports.went_dark(key, seen.job, seen.at, self._vnodes.speaks):
            self.entries.setdefault(key, LedgerEntry(id=key.id, run=key.run, away=True))

    def _grounds(self, key: JobKey, wish: JobWish) -> frozenset[str]:
        """The job's vnodes on the hosts that want the action; all of its vnodes if the hub itself wants it."""
        vnodes = self._vnodes_of(key)
        return frozenset(v for v in vnodes if self._vnodes.owner.get(v) in wish.stoppers) or vnodes

    def _vnodes_of(self, key: JobKey) -> frozenset[str]:
        """The job's vnodes as PBS has them."""
        seen = self._seen.get(key)
        return seen.vnodes if seen else frozenset()

    def outcome(self, outcome: Outcome) -> tuple[str, ...]:
        key = outcome.action.key
        self._busy.discard(key)
        for due in (self.entries.due, self._questions.due):
            due.release(key)
        self._touched[key] = outcome.at
        self._dirty.add(key)
        self.caused.update(self.payers(outcome.action))
        if outcome.looked:
            self._seen[key] = SeenJob(outcome.after, outcome.at)
        entry = self.entries.get(key)
        if entry is None:
            return ()
        result = learned(entry, outcome)
        self._store(key, result.entry, outcome.at)
        return result.notes

    def _store(self, key: JobKey, entry: LedgerEntry | None, now: float) -> None:
        before = self.entries.get(key)
        if before is not None and (before.booked or (before.stopped_at and (entry is None or not entry.stopped_at))):
            self.entries.paid[key.id] = (now, key.run)
        if entry is None:
            self.entries.pop(key, None)
            return
        # 0: nothing to wait for. Only entries with a time are due
        self.entries[key] = entry if entry.not_before > now else structs.replace(entry, not_before=0.0)

    def _counted(self, key: JobKey) -> dict[str, JobReport]:
        """The reports of the job that count, by host."""
        seen = self._seen.get(key)
        return self._reports.counted(key, seen.job if seen else None, self._vnodes.speaks)

    def _wish(self, key: JobKey, now: float) -> JobWish:
        seen = self._seen.get(key)
        vnodes = seen.job.vnodes if seen and seen.job else ()
        started_at = (seen.job.started_at if seen and seen.job else 0.0) or now
        concerned = frozenset(self.owners(vnodes))
        without_lists = frozenset(
            self._vnodes.owner[v] for v in vnodes if v in self._vnodes.owner and self._state(v) in NO_LISTS
        )
        running = (min(now, max(started_at, self.entries.paid.get(key.id, (0.0, 0))[0])), now)
        return wish_of(self._counted(key), self.hosts, concerned, without_lists, running)

    def _truth(self, key: JobKey, waking: frozenset[str]) -> Truth | None:
        seen = self._seen.get(key)
        if seen is None:
            return None
        states = [self._vnodes.pbs[v] for v in (seen.job.vnodes if seen.job else ()) if v in self._vnodes.pbs]
        ours = [v for v in states if v.maintenance_jobs is None or key.id in v.maintenance_jobs]
        return Truth(
            job=seen.job,
            at=seen.at,
            maintenance=any("maintenance" in v.state for v in ours),
            dead=any(v.state & DEAD_STATES for v in states),
            off=any(self._is_off(v.name) for v in states),
            silent=bool(states) and all(v.state & DEAD_STATES or self._is_off(v.name) for v in states),
            sleeper=self.entries.sleepers.of(v.name for v in states),
            waking=any(v.name in waking for v in states),
            moving=any(self._is_between_hosts(v.name) for v in states),
        )

    def _is_between_hosts(self, vnode: str) -> bool:
        """True if the vnode's domain is on its way, and no host has its facts in use: the source has said so, or it
        reports the domain no longer, and its word about that is late."""
        heard = self.hosts.get(self._vnodes.owner.get(vnode, ""))
        gone = vnode in self.transfers and heard is not None and heard.live and vnode not in heard.by_vnode
        return gone or self.transfers.let_go(vnode)

    def _is_off(self, vnode: str) -> bool:
        """True if the host reports the vnode's domain as down. PBS notices a killed guest only after a minute."""
        return self._state(vnode) is State.DOWN

    def _state(self, vnode: str) -> State | None:
        """The state of the vnode's domain as the host reports it; None if the host is silent."""
        domain = self._report(self._vnodes.owner.get(vnode, ""), vnode)
        return domain.state if domain else None

    def _report(self, host: str, vnode: str) -> DomainReport | None:
        """The host's report of the vnode's domain; None if it is silent, or reports none."""
        heard = self.hosts.get(host)
        return heard.by_vnode.get(vnode) if heard is not None and heard.live else None

    def next_due(self) -> float | None:
        """When to call `actions` again even if nothing happens; None if nothing is due."""
        times = self.entries.due.next(), self._questions.due.next()
        return min((at for at in times if at is not None), default=None)

    # Answers to hosts

    def books(self, host: str) -> list[BookEntry] | None:
        """All jobs of a host that are booked or held; None until PBS has been read or if the host is unknown."""
        if not self.knows_pbs or host not in self.hosts:
            return None
        told = []
        for domain in self.hosts[host].snapshot.domains:
            for job in domain.jobs:
                key = JobKey(job.id, job.run)
                entry = self.entries.get(key)
                booked = entry is not None and entry.booked
                if not booked and len(self._reports.hosts(key)) < 2:
                    continue
                reports = self._counted(key)
                held = any(other != host and r.stop for other, r in reports.items())
                if host in reports and (booked or held):
                    told.append(BookEntry(id=key.id, run=key.run, booked=booked, held=held))
        return told

    def looked(self, key: JobKey, job: PbsJob | None, at: float) -> None:
        """Take PBS's answer about one job, which was asked for at `at`."""
        if key not in self._busy and self._touched.get(key, 0.0) < at:
            self._seen[key] = SeenJob(job, at)
            self._dirty.add(key)

    def view(self, now: float) -> FarmView:
        """Everything that the hub knows about hosts, for people."""
        hosts = []
        for name, heard in sorted(self.hosts.items()):
            ahead_s, version = self._machines.get(name, (None, ""))
            hosts.append(HostView(live=heard.live, snapshot=heard.snapshot, ahead_s=ahead_s, version=version))
        booked = sorted({key.id for key, entry in self.entries.items() if entry.booked})
        return FarmView(at=now, knows_pbs=self.knows_pbs, hosts=hosts, booked=booked)

    def others(self, host: str) -> set[str]:
        """Hosts that share a job with this one."""
        keys = (JobKey(j.id, j.run) for d in self.hosts[host].snapshot.domains for j in d.jobs)
        shared = (self._counted(key) for key in keys if len(self._reports.hosts(key)) > 1)
        return {other for reports in shared if host in reports for other in reports} - {host}

    def owners(self, vnodes: Iterable[str]) -> set[str]:
        return self._vnodes.of(vnodes)

    def payers(self, action: Action) -> set[str]:
        """The hosts that an action is charged to: those that have the job, else those that report it."""
        return self.owners(action.only_on) or self.hosts_of([action.key])

    def hosts_of(self, keys: Iterable[JobKey]) -> set[str]:
        return {host for key in keys for host in self._reports.hosts(key)}
