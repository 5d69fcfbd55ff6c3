"""A farm, a fake PBS and a clock that only tests move: the work of the hub's shell, without threads or sockets."""

from __future__ import annotations

from collections.abc import Iterable

from magrathea.core.moves import Ownership, Says, Word
from magrathea.messages import HEARTBEAT_S, BookEntry, DomainReport
from scheduler_plugin.hub.books import Action, LedgerEntry, Look, Outcome
from scheduler_plugin.hub.farm import Farm
from scheduler_plugin.hub.job_actions import perform
from scheduler_plugin.hub.ledger import Kept
from scheduler_plugin.hub.ownership import Ledger, Visits
from scheduler_plugin.hub.vnode_attributes import OFFLINE
from scheduler_plugin.pbs.base import PbsError
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, snapshot

HOSTS = ("h1", "h2", "h3")
VISITS = Visits({host: frozenset(HOSTS) for host in HOSTS}, dict.fromkeys(HOSTS, 2))
"""Each of them takes domains from the others."""


class SimHub:
    """`at`: the time on both clocks. `settle` carries out actions at once; a test can carry them out one by one."""

    def __init__(
        self,
        pbs: FakePbs,
        kept: Kept | Iterable[LedgerEntry] = (),
        at: float = NOW,
        *,
        read: bool = True,
        owned: Iterable[Ownership] = (),
    ) -> None:
        self.pbs = pbs
        self.at = at
        self.owned = Ledger(owned)
        self.farm = Farm(kept if isinstance(kept, Kept) else Kept(list(kept), {}), at, self.owned)
        self.notes: list[str] = []
        self.done: list[Action] = []
        self.revisions: dict[str, int] = {}
        if read:
            self.read()

    def read(self) -> None:
        """Compare with PBS."""
        connection = self.pbs.connect()
        self.farm.read_vnodes(connection.vnodes(), connection.server())
        self.notes += self.farm.read_jobs(connection.jobs(), self.at, self.at)

    def says(self, host: str, *domains: DomainReport) -> None:
        """Send a host's next snapshot."""
        self.revisions[host] = self.revisions.get(host, 0) + 1
        made = snapshot(*domains, host=host, revision=self.revisions[host], at=self.at)
        self.farm.snapshot(made, self.at, self.at)
        self.publish(host)

    def publish(self, host: str | None = None) -> list[str]:
        """Publish one host's vnodes, or all; return the alerts."""
        wanted, alerts = self.farm.publication(self.at, host)
        connection = self.pbs.connect()
        for name, attributes in wanted.items():
            connection.set_vnode(name, {key: value for key, value in attributes.items() if key != OFFLINE})
        return alerts

    def told(self, host: str, says: Says, number: int, about: str = "", domain: str = "n1") -> None:
        """A host says something about a move to this hub, which writes it at once."""
        if not self.owned.records.get(domain) and not self.farm.may_found(host, domain):
            return
        if self.owned.heard(host, Word(domain, number, says, about), VISITS).changed:
            for concerned in sorted(self.farm.owners_changed([domain]) & self.farm.hosts.keys()):
                self.publish(concerned)

    def actions(self) -> list[Action]:
        """What is due. PBS has answered before what the hub must ask about a job, because of a host's report."""
        found, notes = self.farm.actions(self.at)
        self.notes += notes
        asked: list[Action] = []
        others: list[Action] = []
        for action in found:
            is_asked = isinstance(action, Look) and action.key not in self.farm.entries
            (asked if is_asked else others).append(action)
        if not asked:
            return found
        for action in asked:
            self.tell(self._outcome(action))
        return others + self.actions()

    def carry_out(self, action: Action) -> Outcome:
        """Carry it out in PBS, without reporting it to the farm."""
        self.done.append(action)
        return self._outcome(action)

    def _outcome(self, action: Action) -> Outcome:
        try:
            outcome = perform(self.pbs.connect(), action)
        except PbsError as error:
            outcome = Outcome(action, False, False, None, None, self.at, error)
        return Outcome(
            action, outcome.done, outcome.looked, outcome.before, outcome.after, self.at, outcome.error
        )  # on the test's clock

    def tell(self, outcome: Outcome) -> None:
        self.notes += self.farm.outcome(outcome)

    def settle(self, until_s: float = 0.0) -> list[Action]:
        """Carry out all that is due, for `until_s` seconds without other events; return the actions."""
        before = len(self.done)
        end = self.at + until_s
        for _ in range(10_000):
            actions = self.actions()
            for action in actions:
                self.tell(self.carry_out(action))
            if actions:
                continue
            due = self.farm.next_due()
            if due is None or due > end:
                self.at = max(self.at, end)
                return self.done[before:]
            self.at = max(self.at, due)
        raise AssertionError(f"never at rest: {self.done[-5:]}")

    def look_at_waking(self) -> None:
        """Ask PBS about the vnodes that are waking, as the hub does with each of its heartbeats."""
        connection = self.pbs.connect()
        found = [connection.vnode(name) for name in self.farm.look_at_waking(self.at)]
        self.farm.read_waking([vnode for vnode in found if vnode is not None], self.at)

    def after(self, seconds: float) -> list[Action]:
        """Let time pass, with comparisons as in the hub; return the actions."""
        before = len(self.done)
        end = self.at + seconds
        while self.at < end:
            compare_at = min(self.at + 60.0, end)
            while self.at < compare_at and self.farm.entries.sleepers.waking(self.at):
                self.settle(min(HEARTBEAT_S, compare_at - self.at))
                self.look_at_waking()
            self.settle(compare_at - self.at)
            for host, heard in self.farm.hosts.items():
                if heard.live:
                    self.farm.heartbeat(host, heard.snapshot.boot_id, heard.snapshot.revision, self.at)
            self.read()
        self.settle()
        return self.done[before:]

    def books(self, host: str = "h1") -> list[tuple[str, bool, bool]]:
        """(job, booked, held) of each job in the host's books."""
        entries: list[BookEntry] | None = self.farm.books(host)
        assert entries is not None
        return [(entry.id, entry.booked, entry.held) for entry in entries]

    def state(self, id: str = "1.srv") -> str:
        return self.pbs.jobs[id].state
