"""Whatever happens in whatever order, the books become right, and suspends of others are never undone.

Two hosts share one job; each has one of its own. Hosts change their wishes, admins suspend and resume, calls fail
before, after or instead of taking effect. The hub is killed at any moment, and started again with what is on disk.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from magrathea.messages import JobReport
from scheduler_plugin.hub.books import Action, Outcome, Suspend
from scheduler_plugin.pbs.base import Code, PbsError
from tests.fakes.pbs import FakePbs, nothing_breaks
from tests.fakes.reports import NOW, domain, job, report, stopped

from .simulated_hub import SimHub

JOBS = {"1.srv": ("n1",), "2.srv": ("n1", "n2"), "3.srv": ("n2",)}
HOSTS = {"h1": "n1", "h2": "n2"}
RELAYED = ("admin_suspend", "admin_resume", "resume", "set_walltime", "set_comment")

jobs = st.sampled_from(sorted(JOBS))
hosts = st.sampled_from(sorted(HOSTS))


class Books(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.pbs = FakePbs("n1", "n2")
        for id, vnodes in JOBS.items():
            self.pbs.put(job(id, vnodes=vnodes, walltime_s=1000))
        self.wants: dict[tuple[str, str], bool] = {}
        self.foreign: set[str] = set()
        self.unclear: set[str] = set()
        self.under_way: list[Action] = []
        self.hub = SimHub(self.pbs)
        for host in HOSTS:
            self.speak(host)

    def speak(self, host: str) -> None:
        """Send the host's snapshot. As in the core, a job is stopped while it is wanted so, booked or held."""
        told = {e.id: e for e in self.hub.farm.books(host) or []} if host in self.hub.farm.hosts else {}
        reports: list[JobReport] = []
        for id, vnodes in JOBS.items():
            if HOSTS[host] not in vnodes or id not in self.pbs.jobs:
                continue
            entry = told.get(id)
            booked = entry.booked if entry else False
            if self.wants.get((host, id)):
                reports.append(stopped(id, booked=booked))
            elif booked:
                reports.append(report(id, ready=True, stopped_since=NOW, booked=True))
            else:
                reports.append(report(id))
        self.hub.says(host, domain(HOSTS[host], reports))

    @rule(host=hosts, id=jobs, stop=st.booleans())
    def wish(self, host: str, id: str, stop: bool) -> None:
        if HOSTS[host] in JOBS[id]:
            self.wants[host, id] = stop
            self.speak(host)

    @rule(id=jobs)
    def an_admin_suspends(self, id: str) -> None:
        if id in self.pbs.jobs and self.pbs.jobs[id].state == "R" and not self.ours_under_way(id):
            self.pbs.suspend_by_admin(id)
            self.foreign.add(id)

    @rule(id=jobs)
    def an_admin_resumes(self, id: str) -> None:
        if id in self.pbs.admin:
            self.pbs.resume_by_admin(id)
            self.foreign.discard(id)
            self.unclear.discard(id)

    def ours_under_way(self, id: str) -> bool:
        """True if the hub may be acting on the job now. Then nobody can tell to whom a suspend belongs."""
        wanted = any(stop for (_, wanted), stop in self.wants.items() if wanted == id)
        return wanted or any(key.id == id for key in self.hub.farm.entries)

    @rule(id=jobs)
    def a_job_ends(self, id: str) -> None:
        self.pbs.end(id)
        self.foreign.discard(id)
        for host in HOSTS:
            self.wants.pop((host, id), None)
            self.speak(host)

    @rule(seconds=st.sampled_from([0.05, 1.0, 10.0, 61.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.hub.at += seconds

    @rule()
    def begin_what_is_due(self) -> None:
        self.under_way += self.hub.actions()

    @rule(choice=st.randoms(use_true_random=False), how=st.sampled_from(["well", "refused", "unheard", "in vain"]))
    def carry_one_out(self, choice: random.Random, how: str) -> None:
        if not self.under_way:
            return
        action = self.under_way.pop(choice.randrange(len(self.under_way)))
        if how == "refused":
            self.pbs.breaks = refuse
        elif how == "in vain":
            self.pbs.breaks = lose
        outcome = self.hub.carry_out(action)
        self.pbs.breaks = nothing_breaks
        if how == "unheard":  # it was done, but the answer was lost
            error = PbsError(Code.PROTOCOL, "no answer", transient=True)
            outcome = Outcome(action, False, False, None, None, self.hub.at, error)
        self.hub.tell(outcome)

    @rule()
    def compare(self) -> None:
        self.hub.read()

    @rule()
    def the_hub_is_killed_and_starts_again(self) -> None:
        revisions, at = self.hub.revisions, self.hub.at
        # recorded but not done yet, and an admin was quicker: afterwards nobody can tell to whom the suspend belongs
        asked = {action.key.id for action in self.under_way if isinstance(action, Suspend)}
        self.unclear |= self.foreign & asked
        self.foreign -= asked
        self.under_way = []
        self.hub = SimHub(self.pbs, self.hub.farm.entries.kept, at)
        self.hub.revisions = revisions
        for host in HOSTS:
            self.speak(host)
        self.hub.read()

    @rule()
    def quiet_makes_everything_right(self) -> None:
        self.hub.at += 0.01
        for action in self.under_way:
            self.hub.tell(self.hub.carry_out(action))
        self.under_way = []
        for _ in range(4):
            for host in HOSTS:
                self.speak(host)
            self.hub.after(70)
            self.pbs.schedule()
        for id, found in self.pbs.jobs.items():
            wanted = any(self.wants.get((host, id)) for host in HOSTS)
            if id in self.unclear:
                continue
            if id in self.foreign:
                assert found.state == "S", f"{id}: an admin's suspend was undone"
            else:
                assert found.state == ("S" if wanted else "R"), f"{id}: wanted stopped: {wanted}; {found}"
                told = {e.id: e.booked for host in HOSTS for e in self.hub.farm.books(host) or []}
                assert told.get(id, False) == wanted

    @invariant()
    def one_call_at_a_time_for_each_job(self) -> None:
        keys = [action.key for action in getattr(self, "under_way", [])]
        assert len(keys) == len(set(keys))

    @invariant()
    def nobody_elses_suspend_is_undone(self) -> None:
        for id in getattr(self, "foreign", ()):
            assert self.pbs.jobs[id].state == "S"


def refuse(operation: str, subject: str) -> None:
    if operation in RELAYED:
        raise PbsError(Code.BAD_STATE, "refused")


def lose(operation: str, subject: str) -> None:
    if operation in RELAYED:
        raise PbsError(Code.NO_MOM, "no MoM", transient=True)


Books.TestCase.settings = settings(stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestBooks = Books.TestCase
