"""Suspending and resuming in PBS's books: each rule of scheduler_plugin/hub/books.py by name."""

from __future__ import annotations

import pytest

from magrathea.core.model import JobKey
from scheduler_plugin.hub import books, job_wishes
from scheduler_plugin.hub.books import Look, Requeue, Resume, SetComment, SetWalltime, Suspend
from scheduler_plugin.pbs.base import Code, PbsError
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, domain, given_back, job, report, stopped

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs("n1", "p1", "n2")
    pbs.put(job())
    return pbs


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    return SimHub(pbs)


def kinds(actions: list[books.Action]) -> list[type]:
    return [type(action) for action in actions]


def test_a_job_that_its_host_wants_stopped_is_admin_suspended_and_the_books_have_it(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    assert hub.actions() == [Suspend(KEY)]
    assert hub.books() == []
    hub.tell(hub.carry_out(Suspend(KEY)))
    hub.settle(1)
    assert hub.state() == "S"
    assert hub.books() == [("1.srv", True, False)]


def test_a_job_that_is_ready_is_admin_resumed_and_only_then_leaves_the_books(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    hub.says("h1", domain("n1", [given_back()]))
    assert hub.actions() == [Resume(KEY, plain=False)]
    assert hub.books() == [("1.srv", True, False)]
    hub.tell(hub.carry_out(Resume(KEY, plain=False)))
    hub.settle(1)
    assert hub.state() == "R"
    assert hub.books() == []
    assert hub.farm.entries == {}


def test_a_job_that_is_not_ready_is_not_resumed(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    hub.says("h1", domain("n1", [report(ready=False, stopped_since=NOW, booked=True)]))
    assert hub.after(300) == []
    assert hub.state() == "S"


def test_a_job_that_is_just_starting_is_tried_again_until_it_is_suspended(hub: SimHub, pbs: FakePbs) -> None:
    pbs.starting.add("1.srv")
    hub.says("h1", domain("n1", [stopped()]))
    tries = hub.settle(5)
    assert 5 <= len(tries) <= 15, "at most one a second, after a few quick ones"
    pbs.starting.clear()
    hub.settle(1.1)
    assert hub.state() == "S"
    assert hub.books() == [("1.srv", True, False)]


def test_a_job_that_ends_while_it_is_tried_is_forgotten(hub: SimHub, pbs: FakePbs) -> None:
    pbs.starting.add("1.srv")
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    pbs.end("1.srv")
    hub.says("h1", domain("n1"))
    hub.settle(10)
    hub.after(60)
    assert hub.farm.entries == {}


def test_the_last_wish_wins_over_a_suspend_that_is_still_under_way(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    [suspend] = hub.actions()
    hub.says("h1", domain("n1", [report()]))
    assert hub.actions() == [], "one call at a time for each job"
    hub.tell(hub.carry_out(suspend))
    hub.settle(1)
    assert hub.state() == "R"
    assert hub.farm.entries == {}


def test_the_last_wish_wins_over_a_resume_that_is_still_under_way(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    hub.says("h1", domain("n1", [given_back()]))
    [resume] = hub.actions()
    hub.says("h1", domain("n1", [stopped()]))
    assert hub.actions() == []
    hub.tell(hub.carry_out(resume))
    hub.settle(2)
    assert hub.state() == "S"
    assert hub.books() == [("1.srv", True, False)]


def test_a_late_run_of_a_job_is_not_suspended_for_an_earlier_one(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", run_version=2)
    hub.says("h1", domain("n1", [stopped(run=1)]))
    hub.settle(20)
    assert hub.state() == "R"
    assert pbs.count("admin_suspend") == 0


def test_a_hub_that_is_no_manager_books_without_run_versions(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", run_version=0)
    hub.says("h1", domain("n1", [stopped(run=3)]))
    hub.settle(1)
    assert hub.books() == [("1.srv", True, False)]
    hub.says("h1", domain("n1", [given_back(run=3)]))
    hub.settle(1)
    assert hub.state() == "R"
    assert hub.farm.entries == {}


def test_a_job_that_somebody_else_suspended_is_neither_booked_nor_resumed(hub: SimHub, pbs: FakePbs) -> None:
    pbs.suspend_by_admin("1.srv")
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(30)
    hub.after(60)
    assert hub.books() == []
    hub.says("h1", domain("n1", [report(ready=True, stopped_since=NOW)]))
    hub.settle(30)
    hub.after(120)
    assert hub.state() == "S"
    assert "1.srv" in pbs.admin
    assert pbs.count("admin_suspend") == pbs.count("admin_resume") == pbs.count("resume") == 0


def test_a_job_that_somebody_else_suspended_is_ours_once_he_has_resumed_it(hub: SimHub, pbs: FakePbs) -> None:
    pbs.suspend_by_admin("1.srv")
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(6)
    pbs.resume_by_admin("1.srv")
    hub.settle(6)
    assert hub.books() == [("1.srv", True, False)]


def test_an_admins_own_resume_of_a_preempted_job_is_met_by_a_new_suspend(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    pbs.resume_by_admin("1.srv")
    hub.after(61)
    assert hub.state() == "S"
    assert pbs.count("admin_suspend") == 2


def test_after_a_failed_admin_resume_a_plain_one_follows(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)

    def veto(operation: str, subject: str) -> None:
        if operation == "admin_resume" and subject in pbs.admin:
            pbs.lose_flag(subject)
            raise PbsError(Code.MOM_REJECTED, "preresume hook says no", transient=True)

    pbs.breaks = veto
    hub.says("h1", domain("n1", [given_back()]))
    done = hub.settle(10)
    assert [a for a in done if isinstance(a, Resume)][-1] == Resume(KEY, plain=True)
    assert pbs.jobs["1.srv"].substate == 45, "the scheduler resumes it"
    assert pbs.count("wake_scheduler") >= 1
    assert hub.books() == [("1.srv", True, False)]
    pbs.schedule()
    hub.settle(10)
    assert hub.state() == "R"
    assert hub.books() == []


def test_a_suspend_without_an_answer_is_looked_after_until_it_cannot_happen_any_more(hub: SimHub, pbs: FakePbs) -> None:
    def silent(operation: str, subject: str) -> None:
        if operation == "admin_suspend":
            raise PbsError(Code.PROTOCOL, "no answer", transient=True)

    pbs.breaks = silent
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    hub.says("h1", domain("n1", [report()]))  # lifted meanwhile, because it was not booked
    hub.settle(60)
    assert hub.state() == "R"
    pbs.suspend_by_admin("1.srv")  # the MoM answers again: our suspend takes effect after all
    hub.settle(6)
    assert hub.state() == "R"
    hub.after(books.DOUBT_S + 60)
    assert hub.farm.entries == {}


def test_a_resume_that_fails_is_tried_again_and_the_host_waits(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)

    def away(operation: str, subject: str) -> None:
        if operation == "admin_resume":
            raise PbsError(Code.NO_MOM, "no MoM", transient=True)

    pbs.breaks = away
    hub.says("h1", domain("n1", [given_back()]))
    tries = hub.settle(60)
    assert 3 <= len(tries) <= 12, "less and less often"
    assert hub.books() == [("1.srv", True, False)]
    pbs.breaks = lambda operation, subject: None
    hub.settle(31)
    assert hub.state() == "R"


def test_walltime_that_ran_before_the_booking_is_given_back(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", walltime_s=600)
    pbs.starting.add("1.srv")
    hub.says("h1", domain("n1", [stopped(since=NOW)]))
    hub.settle(12)
    pbs.starting.clear()
    hub.settle(2)
    lost_s = hub.farm.entries[KEY].seen_at - NOW
    assert 12 <= lost_s <= 14
    assert 12 <= pbs.jobs["1.srv"].walltime_s - 600 <= 14  # type: ignore[operator]


def test_less_than_a_second_is_not_given_back_nor_anything_to_a_job_without_a_limit(hub: SimHub, pbs: FakePbs) -> None:
    pbs.put(job("2.srv"))
    pbs.change("1.srv", walltime_s=600)
    hub.says("h1", domain("n1", [stopped(since=NOW - 0.5), stopped("2.srv", since=NOW - 50)]))
    hub.settle(2)
    assert pbs.count("set_walltime") == 0


def test_walltime_of_a_stop_that_was_never_booked_is_given_back_when_it_ends(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", walltime_s=600)
    pbs.starting.add("1.srv")
    hub.says("h1", domain("n1", [stopped(since=NOW)]))
    hub.settle(20)
    hub.says("h1", domain("n1", [report()]))
    hub.settle(5)
    assert hub.state() == "R"
    assert 19 <= pbs.jobs["1.srv"].walltime_s - 600 <= 22  # type: ignore[operator]


def test_walltime_of_a_stop_that_an_admin_unbooked_is_given_back(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", walltime_s=600)
    hub.says("h1", domain("n1", [stopped(since=NOW)]))
    hub.after(120)
    pbs.resume_by_admin("1.srv")
    hub.after(62)
    assert hub.state() == "S"
    assert 1 <= pbs.jobs["1.srv"].walltime_s - 600 <= 65  # type: ignore[operator]


def test_a_hosts_fast_clock_gives_no_extra_walltime(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", walltime_s=600)
    heard = job_wishes.Heard(snapshot_ahead(3600), True, NOW)
    wish = job_wishes.wish_of({"h1": stopped(since=NOW + 3597)}, {"h1": heard}, frozenset({"h1"}))
    assert wish.stopped_at == pytest.approx(NOW - 3)


def snapshot_ahead(seconds: float):  # type: ignore[no-untyped-def]
    from tests.fakes.reports import snapshot

    return snapshot(at=NOW + seconds)


def test_the_comment_names_the_preempting_job_and_is_restored_afterwards(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    comment = pbs.jobs["1.srv"].comment
    assert comment.startswith("preempted by 9.srv on h1 since ")
    hub.says("h1", domain("n1", [given_back()]))
    hub.settle(1)
    assert pbs.jobs["1.srv"].comment == "Job run at Thu"


def test_a_comment_that_cannot_be_set_holds_nothing_up(hub: SimHub, pbs: FakePbs) -> None:
    def no(operation: str, subject: str) -> None:
        if operation == "set_comment":
            raise PbsError(Code.NO_PERMISSION, "no")

    pbs.breaks = no
    hub.says("h1", domain("n1", [stopped()]))
    assert kinds(hub.settle(5)) == [Suspend, SetComment]
    hub.says("h1", domain("n1", [given_back()]))
    hub.settle(5)
    assert hub.state() == "R"
    assert hub.farm.entries == {}


def test_a_walltime_that_cannot_be_set_delays_no_resume_and_ends_in_an_alert(hub: SimHub, pbs: FakePbs) -> None:
    def no(operation: str, subject: str) -> None:
        if operation == "set_walltime":
            raise PbsError(Code.NO_PERMISSION, "no")

    pbs.breaks = no
    pbs.change("1.srv", walltime_s=600)
    hub.says("h1", domain("n1", [stopped(since=NOW - 30)]))
    hub.settle(5)
    hub.says("h1", domain("n1", [given_back()]))
    hub.settle(61)
    assert hub.state() == "R"
    hub.settle(900)
    assert any(note.startswith("ALERT") for note in hub.notes)
    assert hub.farm.entries == {}


def test_a_job_stopped_longer_than_the_limit_is_requeued(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    hub.says("h1", domain("n1", [report(stop=True, requeue=True, stopped_since=NOW, booked=True)]))
    hub.settle(1)
    assert hub.state() == "Q"
    assert pbs.admin == set()
    hub.says("h1", domain("n1"))
    hub.after(60)
    assert hub.farm.entries == {}


def test_a_job_that_forbids_it_is_not_requeued_but_reported_once(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", rerunnable=False)
    hub.says("h1", domain("n1", [report(stop=True, requeue=True, stopped_since=NOW)]))
    hub.after(300)
    assert hub.state() == "S"
    assert sum("not rerunnable" in note for note in hub.notes) == 1


def test_a_job_that_is_ending_is_left_alone(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", state="E", substate=51)
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(30)
    assert pbs.count("admin_suspend") == 0


def test_a_missing_permission_is_reported_and_rarely_tried_again(hub: SimHub, pbs: FakePbs) -> None:
    def no(operation: str, subject: str) -> None:
        if operation == "admin_suspend":
            raise PbsError(Code.NO_PERMISSION, "Unauthorized Request")

    pbs.breaks = no
    hub.says("h1", domain("n1", [stopped()]))
    tries = hub.settle(300)
    assert len([t for t in tries if isinstance(t, Suspend)]) <= 6
    assert any("Unauthorized" in note for note in hub.notes)


class TestSeveralHosts:
    @pytest.fixture(autouse=True)
    def two_hosts(self, pbs: FakePbs, hub: SimHub) -> None:
        pbs.change("1.srv", vnodes=("n1", "n2"))
        hub.says("h2", domain("n2", [report()]))

    def test_any_hosts_wish_suspends_it_and_the_other_hosts_see_it_as_held(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        assert hub.state() == "S"
        assert hub.books("h1") == [("1.srv", True, False)]
        assert hub.books("h2") == [("1.srv", True, True)]

    def test_it_is_resumed_when_no_host_wants_it_stopped_and_all_are_ready(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.says("h2", domain("n2", [stopped()]))
        hub.settle(1)
        hub.says("h1", domain("n1", [given_back()]))
        assert hub.settle(60) == []
        assert hub.books("h1") == [("1.srv", True, True)]
        hub.says("h2", domain("n2", [report(stopped_since=NOW, ready=False, booked=True)]))
        assert hub.settle(60) == []
        hub.says("h2", domain("n2", [given_back()]))
        hub.settle(1)
        assert hub.state() == "R"

    def test_the_wish_of_a_host_without_a_lease_still_delays_a_resume(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        hub.says("h1", domain("n1", [given_back()]))
        assert hub.actions() != []
        hub = SimHub(hub.pbs, hub.farm.entries.kept, hub.at)
        hub.says("h1", domain("n1", [given_back()]))
        assert hub.after(300) == [], "h2 was never heard by this hub"
        hub.says("h2", domain("n2", [report()]))
        hub.settle(1)
        assert hub.state() == "R"

    def test_a_live_host_that_does_not_list_the_job_for_a_minute_delays_nothing(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        hub.says("h2", domain("n2"))
        hub.says("h1", domain("n1", [given_back()]))
        hub.settle(30)
        assert hub.state() == "S"
        hub.after(120)
        assert hub.state() == "R"


class TestAfterARestartOfTheHub:
    def test_the_next_hub_resumes_what_the_last_one_booked(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        second = SimHub(pbs, hub.farm.entries.kept, hub.at)
        second.says("h1", domain("n1", [given_back()]))
        second.settle(1)
        assert hub.state() == "R"

    def test_a_suspend_that_was_asked_for_in_the_moment_of_the_crash_is_ours(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        [suspend] = hub.actions()
        kept = hub.farm.entries.kept  # on disk before the call
        hub.carry_out(suspend)
        second = SimHub(pbs, kept, hub.at)
        second.says("h1", domain("n1", [report(stopped_since=NOW, ready=True)]))
        second.settle(1)
        assert hub.state() == "R"

    def test_without_its_file_the_hub_uses_the_hosts_reports_of_booked_jobs(self, pbs: FakePbs) -> None:
        pbs.suspend_by_admin("1.srv")
        hub = SimHub(pbs)
        hub.says("h1", domain("n1", [stopped(booked=True)]))
        hub.read()
        hub.settle(1)
        assert hub.books() == [("1.srv", True, False)]
        hub.says("h1", domain("n1", [given_back()]))
        hub.settle(1)
        assert hub.state() == "R"

    def test_without_its_file_an_admins_own_suspend_is_not_taken_over(self, pbs: FakePbs) -> None:
        pbs.suspend_by_admin("1.srv")
        hub = SimHub(pbs)
        hub.says("h1", domain("n1", [stopped(booked=False)]))
        hub.after(120)
        assert hub.books() == []

    def test_hosts_get_no_books_before_pbs_was_read(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", [stopped()]))
        hub.settle(1)
        second = SimHub(pbs, hub.farm.entries.kept, hub.at, read=False)
        second.says("h1", domain("n1", [given_back()]))
        assert second.farm.books("h1") is None
        assert second.actions() == []
        second.read()
        assert second.books("h1") == [] or second.settle(1)


def test_a_reading_that_was_asked_for_before_a_suspend_does_not_undo_what_is_known(hub: SimHub, pbs: FakePbs) -> None:
    early = pbs.connect().jobs()
    asked_at = hub.at
    hub.at += 0.5
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle()
    assert hub.books() == [("1.srv", True, False)]
    hub.farm.read_jobs(early, asked_at, asked_at)
    hub.actions()
    assert hub.books() == [("1.srv", True, False)]


def test_nothing_is_asked_of_pbs_for_jobs_that_nobody_wants_stopped(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [report()]))
    hub.says("h2", domain("n2", [report("7.srv")]))
    assert hub.after(300) == []
    assert hub.farm.entries == {}
    assert pbs.count("job") == 0


def test_looks_are_rare(hub: SimHub, pbs: FakePbs) -> None:
    pbs.suspend_by_admin("1.srv")
    hub.says("h1", domain("n1", [stopped()]))
    done = hub.settle(60)
    assert len([a for a in done if isinstance(a, Look | Suspend)]) <= 15
    assert not any(isinstance(a, Requeue | SetWalltime) for a in done)
