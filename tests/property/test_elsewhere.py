"""Preempted domains that go on elsewhere, under random load: hosts of the real core, the real rule, the real records.

The potential is the sum of the CPUs of all jobs that are stopped. Each move makes it smaller, and stops nobody. So
while the load stays as it is, moves come to an end, and no two hosts exchange domains.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from magrathea.core import arrivals, machine, stopping
from magrathea.core import events as ev
from magrathea.core.model import Domain, Host, JobClass, JobKey, Kind, Lifecycle, Mode
from magrathea.core.moves import Ownership, Transfer, with_domain, without_domain
from node_daemon.snapshot import Beside, snapshot
from scheduler_plugin.hub.configuration import ElsewhereTable
from scheduler_plugin.hub.elsewhere import ElsewhereVerdict, HostNow, verdicts
from scheduler_plugin.hub.trips import Trips

START = 10_000.0
MOVE_S = 5.0
TABLE = ElsewhereTable(after_s=60, rest_s=600)
PLACE = st.integers(0, 99)
SETTLED_S = 100.0
"""Later than every minimum run and every time for which young jobs protect a domain."""


class Farm(RuleBasedStateMachine):
    """Up to four hosts. Each takes domains from all others."""

    @initialize(modes=st.lists(st.sampled_from(Mode), min_size=2, max_size=4), cpus=st.sampled_from((4, 8)))
    def begin(self, modes: list[Mode], cpus: int) -> None:
        self.now, self.ids = START, 0
        self.hosts: dict[str, Host] = {}
        self.records: dict[str, Ownership] = {}
        self.moved_at: dict[str, float] = {}
        self.since_load: list[tuple[str, str, str]] = []
        """The moves since the load changed last: domain, from, to."""
        for number, mode in enumerate(modes, 1):
            own = [Domain(f"n{number}", Kind.NORMAL, cpus), Domain(f"m{number}", Kind.NORMAL, cpus)]
            own += [Domain(f"p{number}", Kind.PRIORITY, cpus), Domain(f"q{number}", Kind.PRIORITY, cpus)]
            up = (replace(one, lifecycle=Lifecycle.UP, agent_lost_at=None) for one in own)
            domains = tuple(sorted(up, key=lambda one: one.name))
            self.hosts[f"h{number}"] = Host(f"h{number}", mode, cpus, 16_000, domains, now=self.now)
            self.records |= {one.name: Ownership(one.name, 1, f"h{number}", 1) for one in own}
        self.trips = Trips(Path("/nonexistent"), MappingProxyType({}), lambda: self.now)

    # The load

    @rule(host=PLACE, place=PLACE, cpus=st.integers(1, 4))
    def submit(self, host: int, place: int, cpus: int) -> None:
        """A job asks to start in some domain."""
        name = sorted(self.hosts)[host % len(self.hosts)]
        self._submit(name, self.hosts[name].domains[place % len(self.hosts[name].domains)], cpus)

    @rule(host=PLACE, low=st.integers(1, 8), high=st.integers(1, 8))
    def preempt(self, host: int, low: int, high: int) -> None:
        """A job asks to start in a normal domain; when it is old, one in a priority domain."""
        name = sorted(self.hosts)[host % len(self.hosts)]
        for kind, cpus in ((Kind.NORMAL, low), (Kind.PRIORITY, high)):
            domain = next((d for d in self.hosts[name].domains if d.kind is kind), None)
            if domain is not None:
                self._submit(name, domain, cpus)
            self.time_passes(SETTLED_S)

    def _submit(self, name: str, domain: Domain, cpus: int) -> None:
        self.ids += 1
        key = JobKey(f"{self.ids}.srv", 1)
        cls = JobClass.PRIORITY if domain.kind is Kind.PRIORITY else JobClass.PREEMPTIBLE
        self._happens(name, ev.Claimed(self.now, domain.name, key, cls, cpus, 100))
        if self.hosts[name].domain(domain.name) != domain:
            self._happens(name, ev.JobLaunched(self.now, domain.name, key))
        self.since_load.clear()
        self._settle()

    @rule(host=PLACE, place=PLACE)
    def end(self, host: int, place: int) -> None:
        """A job that runs ends."""
        name = sorted(self.hosts)[host % len(self.hosts)]
        jobs = [(d.name, j.key) for d in self.hosts[name].domains for j in d.running]
        if jobs:
            domain, key = jobs[place % len(jobs)]
            self._happens(name, ev.Released(self.now, domain, key))
            self.since_load.clear()
            self._settle()

    @rule(seconds=st.sampled_from((1.0, 30.0, 61.0, 300.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._settle()

    # The rule

    @rule()
    def move(self) -> None:
        """The hub looks, and what it wishes for is done."""
        self._moves()

    @rule()
    def move_until_nothing_moves(self) -> None:
        """With a load that stays as it is, there are no more moves than domains are preempted."""
        self.now += SETTLED_S + TABLE.rest_s
        self._settle()
        preempted = sum(bool(d.stopped) for host in self.hosts.values() for d in host.domains)
        before, count = self._potential(), 0
        while moves := self._moves():
            count += len(moves)
            self.now += TABLE.rest_s + TABLE.after_s
            self._settle()
            assert self._potential() < before
            before = self._potential()
            assert count <= preempted

    def _moves(self) -> list[ElsewhereVerdict]:
        places = {name: self._place(name) for name in self.hosts}
        found = [v for v in verdicts(TABLE, places, self.records, self.trips, self.now) if v.to]
        ends = [end for verdict in found for end in (verdict.host, verdict.to)]
        assert len(ends) == len(set(ends)), "a host has one move at a time"
        for verdict in found:
            self._move(verdict)
        return found

    def _place(self, name: str) -> HostNow:
        return HostNow(snapshot(self.hosts[name], Beside("boot")), self.now, frozenset(self.hosts) - {name})

    def _move(self, verdict: ElsewhereVerdict) -> None:
        source, target = self.hosts[verdict.host], self.hosts[verdict.to]
        domain = source.domain(verdict.domain)
        assert domain is not None and domain.stopped
        last = self.moved_at.get(domain.name, -TABLE.rest_s)
        assert self.now >= last + TABLE.rest_s, "no domain moves twice in a row within that time"
        assert arrivals.no_room(target, domain) == ""
        before, stopped = self._potential(), self._stopped()
        mine = {job.key.id for job in domain.stopped}
        record = self.records[domain.name]
        self._tell(replace(record, transfer=Transfer(record.number + 1, verdict.host, verdict.to, ready=True)))
        self.now += MOVE_S
        self.hosts[verdict.host] = without_domain(source, domain.name)
        arrived = replace(arrivals.as_arrived(domain, self.now), agent_lost_at=None)
        self.hosts[verdict.to] = with_domain(target, arrived)
        self._tell(Ownership(domain.name, record.number + 1, verdict.to, record.revision + 2))
        self.moved_at[domain.name] = self.now
        self._settle()
        assert self._stopped() <= stopped - mine, "all its jobs go on, and none is stopped for it"
        assert self._potential() <= before - sum(job.cpus for job in domain.stopped)
        assert not any((to, back) == (verdict.host, verdict.to) for _, back, to in self.since_load), "to and fro"
        self.since_load.append((domain.name, verdict.host, verdict.to))

    def _tell(self, record: Ownership) -> None:
        self.records[record.domain] = record
        self.trips.follow(record.domain, record, 100)

    # The hosts

    def _happens(self, name: str, event: ev.Event) -> None:
        self.hosts[name], _ = machine.handle(self.hosts[name], event)

    def _settle(self) -> None:
        """Deadlines take effect, and jobs that need not be stopped go on."""
        for name in self.hosts:
            self._happens(name, ev.TimerFired(self.now))
            while resumed := self._resumed(name):
                for domain, keys in resumed.items():
                    self._happens(name, ev.JobsContinued(self.now, domain, keys))

    def _resumed(self, name: str) -> dict[str, tuple[JobKey, ...]]:
        host = self.hosts[name]
        wanted = stopping.wanted_stopped(host)
        found = {d.name: tuple(j.key for j in d.stopped if (d.name, j.key) not in wanted) for d in host.domains}
        return {domain: keys for domain, keys in found.items() if keys}

    def _stopped(self) -> set[str]:
        return {job.key.id for host in self.hosts.values() for d in host.domains for job in d.stopped}

    def _potential(self) -> int:
        return sum(job.cpus for host in self.hosts.values() for d in host.domains for job in d.stopped)

    @invariant()
    def every_domain_is_on_one_host(self) -> None:
        if hasattr(self, "hosts"):
            names = [d.name for host in self.hosts.values() for d in host.domains]
            assert sorted(names) == sorted(self.records)


Farm.TestCase.settings = settings(
    deadline=None, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestFarm = Farm.TestCase


def test_what_is_tried_above_does_move_domains() -> None:
    farm = Farm()
    farm.begin(modes=[Mode.EXCLUSIVE, Mode.COUNTED, Mode.EXCLUSIVE], cpus=8)
    farm.preempt(0, 4, 4)
    farm.preempt(2, 4, 4)
    assert farm._potential() == 8
    farm.move_until_nothing_moves()
    assert farm.since_load == [("m1", "h1", "h2"), ("m3", "h3", "h2")] and farm._potential() == 0
