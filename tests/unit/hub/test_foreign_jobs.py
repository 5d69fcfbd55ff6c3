"""A host's report of a job counts only if PBS has that run of the job on a vnode of that host."""

from __future__ import annotations

import pytest

from magrathea.core.model import JobKey, State
from magrathea.messages import JobReport
from node_daemon.agent import parts
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.hub.books import Look, Requeue, Suspend
from scheduler_plugin.hub.job_reports import BURST, OWN_BURST, PER_S
from scheduler_plugin.hub.job_wishes import MAX_REPORTED_WARN_S
from scheduler_plugin.hub.shares import OWN_PER_S
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, domain, given_back, job, report, stopped

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)
LIES = [
    stopped(),
    stopped(booked=True),
    stopped(since=1.0),
    report(stop=True, requeue=True, stopped_since=1.0),
    report(requeue=True),
    report(stopped_since=NOW),
    given_back(),
]


@pytest.fixture
def pbs() -> FakePbs:
    """A job on n2, which belongs to h2; h1 has n1."""
    pbs = FakePbs("n1", "n2", "free")
    pbs.put(job(vnodes=("n2",), walltime_s=600))
    return pbs


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    hub = SimHub(pbs)
    hub.farm.bind(Bindings({"h1": frozenset({"n1"}), "h2": frozenset({"n2"})}))
    hub.says("h2", domain("n2", [report()]))
    return hub


def untouched(hub: SimHub) -> bool:
    found = hub.pbs.jobs["1.srv"]
    kept = job(vnodes=found.vnodes, walltime_s=600, run=found.run_version)
    return found == kept and not hub.farm.entries and hub.books("h2") == []


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("where", ["n1", "n2", "free", "nowhere"])
def test_a_job_on_another_hosts_vnode_is_not_touched_and_its_host_gets_no_entry(
    hub: SimHub, lie: JobReport, where: str
) -> None:
    hub.says("h1", domain("own", [lie], vnode=where))
    hub.after(200)
    assert untouched(hub) and hub.books("h1") == []


def test_a_host_without_a_list_has_no_word_about_jobs_on_vnodes_of_others_either(hub: SimHub) -> None:
    hub.farm.bind(Bindings())
    for where in ("n1", "n2", "free"):
        hub.says("h1", domain("own", [stopped()], vnode=where))
        hub.after(100)
    assert untouched(hub)


def test_a_job_on_a_vnode_that_nobody_manages_is_not_touched(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", vnodes=("free",))
    hub.says("h1", domain("n1", [stopped()]))
    hub.after(100)
    assert untouched(hub)


def test_an_earlier_run_of_a_job_is_no_longer_the_hosts(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", run_version=2, vnodes=("n1",))
    hub.says("h1", domain("n1", [stopped(run=1)]))
    hub.after(100)
    assert hub.state() == "R" and pbs.count("admin_suspend") == 0
    assert hub.farm._counted(KEY) == {}


def test_a_job_that_has_gone_elsewhere_since_it_was_seen_is_not_suspended_though_runs_cannot_be_read(
    hub: SimHub, pbs: FakePbs
) -> None:
    pbs.change("1.srv", vnodes=("n1",), run_version=0)
    hub.says("h1", domain("n1", [stopped()]))
    [suspend] = hub.actions()
    pbs.change("1.srv", vnodes=("n2",))
    hub.tell(hub.carry_out(suspend))
    hub.after(100)
    assert untouched(hub)


def test_a_wrong_word_does_not_hold_up_the_resume_of_another_hosts_job(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [report(stopped_since=NOW)]))
    hub.says("h2", domain("n2", [stopped()]))
    hub.settle(1)
    assert hub.state() == "S"
    hub.says("h2", domain("n2", [given_back()]))
    hub.settle(1)
    assert hub.state() == "R"


def test_a_foreign_job_in_a_domain_that_is_off_is_not_watched_or_requeued(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [report()]))
    hub.says("h1", domain("n1", state=State.DOWN, accepts=[]))
    hub.says("h2", domain("n2"))  # not yet or no longer there: its own host and PBS decide that
    hub.after(400)
    assert untouched(hub)


def touchable(hub: SimHub) -> JobKey | None:
    farm = hub.farm
    return farm._reports.touchable(hub.pbs.jobs["1.srv"], [KEY], farm._vnodes.speaks, farm.entries)


def test_a_foreign_job_is_not_suspended_to_end_the_maintenance_of_its_vnode(hub: SimHub) -> None:
    hub.says("h2", domain("n2"))
    hub.says("h1", domain("n1", [report()]))
    assert touchable(hub) is None
    hub.says("h2", domain("n2", [report()]))
    assert touchable(hub) == KEY


def test_pbs_is_asked_before_anything_is_done_and_a_job_that_has_just_started_is_there(
    hub: SimHub, pbs: FakePbs
) -> None:
    pbs.put(job("2.srv", vnodes=("n1",)))
    hub.says("h1", domain("n1", [stopped("2.srv")]))
    assert hub.farm.actions(hub.at)[0] == [Look(JobKey("2.srv", 1))]
    hub.tell(hub.carry_out(Look(JobKey("2.srv", 1))))
    assert hub.actions() == [Suspend(JobKey("2.srv", 1))]


def test_a_question_that_pbs_does_not_answer_is_asked_again(hub: SimHub, pbs: FakePbs) -> None:
    pbs.put(job("2.srv", vnodes=("n1",)))
    hub.says("h1", domain("n1", [stopped("2.srv")]))
    hub.farm.actions(hub.at)
    silent = hub.carry_out(Look(JobKey("2.srv", 1)))
    hub.tell(type(silent)(silent.action, False, False, None, None, hub.at))
    hub.settle(2)
    assert hub.state("2.srv") == "S"


@pytest.mark.long
def test_each_host_has_its_own_limit_of_questions(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped(f"{n}.none") for n in range(1000)]))
    pbs.put(job("2.srv", vnodes=("n2",)))
    hub.says("h2", domain("n2", [report(), stopped("2.srv")]))
    hub.settle(1)
    assert hub.state("2.srv") == "S"
    for _ in range(20):
        hub.says("h1", domain("n1", [stopped(f"{n}.none") for n in range(1000)]))
        hub.settle(1)
    assert pbs.count("job") <= BURST + OWN_BURST + 21 * (PER_S + OWN_PER_S) + 10
    assert len(hub.farm.entries) == 1


@pytest.mark.long
def test_a_host_that_changes_its_mind_all_the_time_causes_so_many_suspensions_and_no_more(
    hub: SimHub, pbs: FakePbs
) -> None:
    ids = [f"{n}.own" for n in range(200)]
    for id in ids:
        pbs.put(job(id, vnodes=("n1",)))
    began = hub.at
    for _ in range(30):
        hub.says("h1", domain("n1", [stopped(id) for id in ids]))
        hub.settle(0.3)
        hub.says("h1", domain("n1", [report(id) for id in ids]))
        hub.settle(0.3)
    assert pbs.count("admin_suspend") <= BURST + OWN_BURST + (PER_S + OWN_PER_S) * (hub.at - began) + 2
    assert pbs.count("admin_suspend") < 30 * len(ids)
    hub.says("h2", domain("n2", [stopped()]))
    hub.settle(0.5)
    assert hub.state() == "S", "another host has its own share"
    hub.says("h1", domain("n1", [stopped(id) for id in ids]))
    hub.settle(60)
    assert {hub.state(id) for id in ids} == {"S"}, "what is over is late, not lost"


@pytest.mark.long
def test_the_largest_domain_is_suspended_at_once(hub: SimHub, pbs: FakePbs) -> None:
    ids = [f"{n}.own" for n in range(parts.MAX_JOBS)]
    for id in ids:
        pbs.put(job(id, vnodes=("n1",)))
    hub.says("h1", domain("n1", [stopped(id) for id in ids]))
    asked = [action for action in hub.farm.actions(hub.at)[0] if isinstance(action, Look)]
    for action in asked:
        hub.tell(hub.carry_out(action))
    suspends = [action for action in hub.farm.actions(hub.at)[0] if isinstance(action, Suspend)]
    assert len(asked) == len(suspends) == parts.MAX_JOBS == BURST


def test_a_jobs_own_guest_is_believed_about_it_and_its_sibling_on_the_same_host_is_not(
    hub: SimHub, pbs: FakePbs
) -> None:
    hub.farm.bind(Bindings())
    hub.says("h2", domain("n2", [report()]), domain("free", [stopped()]))
    hub.after(100)
    assert untouched(hub)
    hub.says("h2", domain("n2", [stopped()]), domain("free", [report()]))
    hub.settle(1)
    assert hub.state() == "S"


class TestTimes:
    @pytest.fixture(autouse=True)
    def late(self, pbs: FakePbs) -> None:
        """A suspend that takes effect only after the host has stopped the job; the job started 100 s ago."""
        pbs.starting.add("1.srv")

    def given_s(self, hub: SimHub) -> int:
        found = hub.pbs.jobs["1.srv"].walltime_s
        assert found is not None
        return found - 600

    @staticmethod
    def stopped_and_given_back(hub: SimHub) -> None:
        hub.says("h2", domain("n2", [stopped(since=1.0)]))
        hub.after(10)
        hub.says("h2", domain("n2", [given_back()]))
        hub.after(10)
        hub.says("h2", domain("n2"))
        hub.after(70)

    def test_a_job_gets_no_more_walltime_back_than_it_has_run(self, hub: SimHub) -> None:
        hub.says("h2", domain("n2", [stopped(since=1.0)]))
        hub.settle(10)
        hub.pbs.starting.clear()
        hub.settle(2)
        assert 100 <= self.given_s(hub) <= 113

    def test_it_gets_the_same_time_back_once(self, hub: SimHub) -> None:
        hub.pbs.starting.clear()
        for _ in range(20):
            self.stopped_and_given_back(hub)
        assert hub.state() == "R"
        assert 100 <= self.given_s(hub) <= 100 + 20 * 81

    def test_it_gets_the_same_time_back_once_though_the_hub_is_restarted(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.starting.clear()
        began = hub.at
        for _ in range(10):
            self.stopped_and_given_back(hub)
            hub = SimHub(pbs, hub.farm.entries.kept, hub.at)
            hub.farm.bind(Bindings({"h1": frozenset({"n1"}), "h2": frozenset({"n2"})}))
        assert hub.state() == "R"
        assert 100 <= self.given_s(hub) <= 100 + hub.at - began

    @pytest.mark.parametrize("since", [NOW + 1e9, 0.0, 2.0**36])
    def test_no_time_makes_the_hub_stumble(self, hub: SimHub, since: float) -> None:
        hub.says("h2", domain("n2", [stopped(since=since)]))
        hub.settle(10)
        hub.pbs.starting.clear()
        hub.settle(2)
        assert hub.state() == "S"
        assert hub.pbs.jobs["1.srv"].comment.startswith("preempted by ")
        assert 0 <= self.given_s(hub) <= 113

    def test_a_warning_that_never_ends_delays_a_suspend_by_five_minutes_at_most(self, hub: SimHub) -> None:
        hub.pbs.starting.clear()
        hub.says("h2", domain("n2", [report(stop=True, stopped_since=NOW, warned_until=NOW + 1e9)]))
        hub.after(MAX_REPORTED_WARN_S + 5)
        assert hub.state() == "S"


def test_the_comment_of_a_preempted_job_is_one_short_line_of_ascii(hub: SimHub, pbs: FakePbs) -> None:
    from msgspec import structs

    evil = "9.srv\nvariables = x\x1b[2J\u202e\u017e\0" + "y" * 4000
    hub.says("h2", domain("n2", [structs.replace(stopped(), preempted_by=evil)]))
    hub.settle(1)
    text = pbs.jobs["1.srv"].comment
    assert text.startswith("preempted by 9.srv variables") and " since " in text
    assert text.isascii() and text.isprintable() and len(text) <= 250


class TestHonest:
    @pytest.fixture(autouse=True)
    def two_hosts(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.change("1.srv", vnodes=("n1", "n2"))

    def test_each_host_of_a_job_has_a_word(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        assert hub.state() == "S"
        assert hub.books("h1") == [("1.srv", True, False)]
        assert hub.books("h2") == [("1.srv", True, True)]

    def test_and_may_have_it_requeued(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", [report(stop=True, requeue=True, stopped_since=NOW)]))
        assert Requeue(KEY) in hub.settle(2)

    def test_a_job_that_was_rerun_is_suspended_in_its_new_run(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        pbs.connect().rerun("1.srv", force=True)
        hub.says("h1", domain("n1"))
        hub.says("h2", domain("n2"))
        pbs.put(job(run=2, vnodes=("n1",)))
        hub.says("h1", domain("n1", [stopped(run=2)]))
        hub.settle(10)
        assert hub.state() == "S"
        assert hub.books("h1") == [("1.srv", True, False)]

    def test_a_hub_that_starts_again_continues_with_what_is_booked(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        second = SimHub(pbs, hub.farm.entries.kept, hub.at)
        second.says("h1", domain("n1", [stopped(booked=True)]))
        second.says("h2", domain("n2", [report(held_elsewhere=True, booked=True)]))
        second.settle(1)
        assert second.books("h2") == [("1.srv", True, True)]
        second.says("h1", domain("n1", [given_back()]))
        second.settle(1)
        assert second.state() == "R"
