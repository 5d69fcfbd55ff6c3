"""A move in any order of messages, with late snapshots, restarts of the hub and time in between: what the hub has
booked stays booked once, the vnode is closed on the way, and the runjob hook knows the domain wherever it may run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from magrathea.core.model import JobKey
from magrathea.core.moves import Says
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.hub.books import Requeue, Resume, Suspend
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, SIBLINGS
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, given_back, job, stopped

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)
LISTS = Bindings({"h1": frozenset({"n1", "p1"}), "h2": frozenset({"p2"})})


@dataclass
class Travel:
    """n1 and its booked job on the way from h1 to h2. `facts`: the host that has them; empty: neither."""

    hub: SimHub = field(default_factory=lambda: Travel.begun())
    facts: str = "h1"

    @staticmethod
    def begun() -> SimHub:
        pbs = FakePbs("n1", "p1", "p2")
        pbs.put(job())
        hub = SimHub(pbs)
        hub.farm.bind(LISTS)
        hub.says("h1", domain("n1", [stopped()]), domain("p1"))
        hub.says("h2", domain("p2"))
        hub.read()
        hub.settle(1)
        hub.told("h1", Says.OWNS, 0)
        return hub

    def snapshot(self, host: str) -> None:
        mine = [domain("n1", [stopped(booked=True)])] if self.facts == host else []
        self.hub.says(host, *mine, domain("p1" if host == "h1" else "p2"))

    def stale(self) -> None:
        """The source's last snapshot comes again, or the source lies."""
        self.hub.says("h1", domain("n1", [given_back()]), domain("p1"))

    def restart(self) -> None:
        old = self.hub
        self.hub = SimHub(old.pbs, old.farm.entries.kept, old.at, owned=old.owned.records.values())
        self.hub.revisions = old.revisions
        self.hub.farm.bind(LISTS)
        self.hub.done = old.done
        for host in ("h1", "h2"):
            self.snapshot(host)

    def seal(self) -> None:
        """The source takes the facts out of use; from here on they are in a parcel."""
        self.facts = ""
        self.snapshot("h1")

    def adopt(self) -> None:
        self.facts = "h2"

    def holds(self) -> None:
        """What must be true at any time."""
        hub = self.hub
        hub.publish()
        record = hub.owned.records["n1"]
        shown = {name: hub.pbs.vnodes[name].attributes for name in ("n1", "p1", "p2")}
        if record.transfer is not None:
            assert shown["n1"][ACCEPTS] == "none"
            if record.owner == "h1":
                assert shown["p1"][SIBLINGS] == "n1"
            if record.owner == "h2" or (record.transfer.ready and not record.transfer.declined):
                assert shown["p2"][SIBLINGS] == "n1"
        assert KEY in hub.farm.entries and hub.farm.entries[KEY].booked
        assert hub.state() == "S"
        assert not any(isinstance(action, Resume | Requeue) for action in hub.done)
        assert hub.done.count(Suspend(KEY)) == 1


Step = Callable[[Travel], object]

MOVE: list[Step] = [
    lambda t: t.hub.told("h1", Says.ASKS, 1, "h2"),
    lambda t: t.hub.told("h2", Says.READY, 2),
    Travel.seal,
    lambda t: t.hub.told("h1", Says.GONE, 2, "h2"),
    lambda t: t.hub.told("h2", Says.HERE, 2),
    Travel.adopt,
    lambda t: t.snapshot("h2"),
    lambda t: t.hub.told("h2", Says.ADOPTED, 2),
]
RETURN: list[Step] = [
    lambda t: t.hub.told("h2", Says.LACKS, 2),
    lambda t: setattr(t, "facts", "h1"),
    lambda t: t.snapshot("h1"),
]
BETWEEN: dict[str, Step] = {
    "a snapshot of h1": lambda t: t.snapshot("h1"),
    "a snapshot of h2": lambda t: t.snapshot("h2"),
    "the hub acts": lambda t: t.hub.settle(1),
    "a minute": lambda t: t.hub.after(61),
    "half an hour": lambda t: t.hub.after(1800),
    "PBS is read": lambda t: t.hub.read(),
    "the hub restarts": Travel.restart,
    "a word again": lambda t: t.hub.told("h1", Says.GONE, 2, "h2"),
    "an old word": lambda t: t.hub.told("h2", Says.READY, 2),
}
stops = st.lists(st.lists(st.sampled_from(sorted(BETWEEN)), max_size=3), min_size=len(MOVE), max_size=len(MOVE))


@given(stops, st.booleans(), st.booleans())
def test_a_booked_job_stays_booked_once_and_no_other_job_starts_beside_it(
    between: list[list[str]], swapped: bool, returns: bool
) -> None:
    steps = [*MOVE[:6], MOVE[7], MOVE[6]] if swapped else list(MOVE)
    steps = [*MOVE[:4], *RETURN] if returns else steps
    travel = Travel()
    travel.holds()
    for step, others in zip(steps, between, strict=False):
        step(travel)
        travel.holds()
        record = travel.hub.owned.records["n1"]
        late = record.transfer is None and travel.hub.farm._report(record.owner, "n1") is None
        for other in others:
            if late and BETWEEN[other] in (BETWEEN["a minute"], BETWEEN["half an hour"]):
                continue  # a host that owns a domain and does not report it for a minute has lost its jobs
            BETWEEN[other](travel)
            travel.holds()
    owner = "h1" if returns else "h2"
    travel.snapshot(owner)
    travel.hub.settle(1)
    travel.holds()
    assert travel.hub.books(owner) == [("1.srv", True, False)]
    travel.hub.says(owner, domain("n1", [given_back()]), domain("p1" if returns else "p2"))
    travel.hub.settle(1)
    assert travel.hub.state() == "R"


@given(stops)
def test_the_source_changes_nothing_by_reports_after_it_has_let_go(between: list[list[str]]) -> None:
    travel = Travel()
    for number, (step, others) in enumerate(zip(MOVE, between, strict=True)):
        step(travel)
        if number >= 3:  # the hub has heard that the source has let go
            travel.stale()
            travel.hub.settle(1)
            travel.holds()
            for other in others:
                if other not in ("a minute", "half an hour"):
                    BETWEEN[other](travel)
            travel.holds()
