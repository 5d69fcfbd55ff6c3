"""Jobs of guests or hosts that are gone: when they are requeued, when not, and who is informed (hub/books.py)."""

from __future__ import annotations

import pytest

from magrathea.core.model import JobKey, State
from scheduler_plugin.hub.books import UNLISTED_S, Requeue, Resume
from scheduler_plugin.pbs.base import Code, PbsError
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, given_back, job, report, stopped

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)
FAIL_REQUEUE_S = 310.0
LONG_S = 1000.0


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs("n1", "p1", "n2")
    pbs.put(job())
    return pbs


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    """A hub with a booked job."""
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    return hub


def alerts(hub: SimHub) -> list[str]:
    return [note for note in hub.notes if note.startswith("ALERT")]


def resumes(pbs: FakePbs) -> int:
    return pbs.count("admin_resume") + pbs.count("resume")


def test_while_all_moms_are_down_it_is_not_requeued_but_reported(hub: SimHub, pbs: FakePbs) -> None:
    """PBS would never start it again."""
    pbs.put_vnode("n1", "down")
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(FAIL_REQUEUE_S - 70)
    assert alerts(hub) == []
    hub.after(LONG_S)
    assert hub.state() == "S" and pbs.count("rerun") == resumes(pbs) == 0
    [alert] = alerts(hub)
    assert "n1" in alert and "qrerun -W force 1.srv" in alert
    assert "n1 is down" in pbs.jobs["1.srv"].comment


@pytest.mark.parametrize("down_s", [0.0, 100.0, LONG_S])
def test_it_is_requeued_when_its_guest_is_back_without_it(hub: SimHub, pbs: FakePbs, down_s: float) -> None:
    """Also if PBS has not noticed yet that the guest was gone."""
    if down_s:
        pbs.put_vnode("n1", "down")
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(down_s)
    pbs.put_vnode("n1", "free")
    hub.says("h1", domain("n1"))
    hub.after(UNLISTED_S - 1)
    assert hub.state() == "S", "MoM's list has not had time to say that it is there"
    hub.after(70)
    assert hub.state() == "Q" and resumes(pbs) == 0 and pbs.never_again == set()
    hub.after(60)
    assert hub.farm.entries == {}


def test_a_guest_that_is_back_with_its_job_has_it_resumed(hub: SimHub, pbs: FakePbs) -> None:
    """MoM was restarted with -p, or the guest was restored from an image."""
    pbs.put_vnode("n1", "down")
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(LONG_S)
    pbs.put_vnode("n1", "free")
    hub.says("h1", domain("n1"))
    hub.after(20)
    hub.says("h1", domain("n1", [given_back()]))
    hub.after(1)
    assert hub.state() == "R" and pbs.count("rerun") == 0
    assert pbs.jobs["1.srv"].comment == job().comment


def test_without_its_agent_nothing_is_known_about_a_guests_jobs(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(60)
    for state in (State.BOOTING, State.UNKNOWN):
        hub.says("h1", domain("n1", state=state))
        hub.after(300)
    assert hub.state() == "S" and pbs.count("rerun") == resumes(pbs) == 0


def test_a_job_with_another_mom_that_is_there_is_requeued_after_node_fail_requeue(pbs: FakePbs) -> None:
    pbs.put(job(vnodes=("n1", "n2")))
    hub = SimHub(pbs)
    hub.says("h2", domain("n2", [report()]))
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    pbs.put_vnode("n1", "down")
    hub.after(FAIL_REQUEUE_S - 70)
    assert hub.state() == "S"
    hub.after(140)
    assert hub.state() == "Q" and pbs.never_again == set()


def test_if_pbs_requeues_nothing_we_neither_requeue_nor_report(hub: SimHub, pbs: FakePbs) -> None:
    pbs.fail_requeue_s = 0
    pbs.put_vnode("n1", "down")
    hub.after(LONG_S)
    assert hub.state() == "S" and alerts(hub) == []


def test_a_mom_that_goes_in_the_moment_of_the_rerun_is_noticed(hub: SimHub, pbs: FakePbs) -> None:
    """The last comparison may be a minute old."""
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(1)
    hub.says("h1", domain("n1"))
    hub.after(UNLISTED_S - 1)
    hub.at += 2
    hub.read()
    [requeue] = hub.actions()
    assert requeue == Requeue(KEY)
    pbs.put_vnode("n1", "down")
    hub.tell(hub.carry_out(requeue))
    assert hub.state() == "S" and pbs.count("rerun") == 0
    pbs.put_vnode("n1", "free")
    hub.after(120)
    assert hub.state() == "Q" and pbs.never_again == set()


def test_a_rerun_without_an_answer_of_mom_is_repeated(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", substate=63)
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(60)
    hub.says("h1", domain("n1"))
    hub.after(UNLISTED_S + 70)
    assert hub.state() == "Q"


def test_a_hub_that_was_away_learns_from_the_failed_resume(hub: SimHub, pbs: FakePbs) -> None:
    """The hub has seen neither the guest's end nor PBS's reaction."""

    def unknown_to_mom(operation: str, subject: str) -> None:
        if operation == "admin_resume":
            raise PbsError(Code.INTERNAL, "admin-resume of job 1.srv: System error occurred")

    new = SimHub(pbs, hub.farm.entries.kept, hub.at)
    new.says("h1", domain("n1"))
    pbs.breaks = unknown_to_mom
    new.after(300)
    assert new.state() == "Q"
    assert [type(action) for action in new.done if not isinstance(action, Requeue)].count(Resume) == 1


def test_an_admin_is_alerted_once_about_a_job_that_may_not_be_rerun(hub: SimHub, pbs: FakePbs) -> None:
    pbs.change("1.srv", rerunnable=False)
    hub.says("h1", domain("n1", state=State.DOWN))
    hub.after(60)
    hub.says("h1", domain("n1"))
    hub.after(LONG_S)
    assert hub.state() == "S" and resumes(pbs) == 0
    assert len(alerts(hub)) == 1 and "not rerunnable" in alerts(hub)[0]


def test_a_job_that_may_not_be_rerun_is_booked_again_after_an_admins_resume_even_beyond_the_limit(
    hub: SimHub, pbs: FakePbs
) -> None:
    pbs.change("1.srv", rerunnable=False)
    hub.read()
    hub.says("h1", domain("n1", [report(stop=True, requeue=True, stopped_since=hub.at, booked=True)]))
    hub.after(60)
    pbs.resume_by_admin("1.srv")
    hub.after(60)
    assert hub.state() == "S" and len(alerts(hub)) == 1


class TestJobsThatRan:
    """PBS itself requeues them after node_fail_requeue, or when a MoM comes back with its files. It does not if the
    guest comes back earlier and without the files."""

    @pytest.fixture
    def hub(self, pbs: FakePbs) -> SimHub:
        hub = SimHub(pbs)
        hub.says("h1", domain("n1", [report()]))
        hub.settle(1)
        return hub

    @pytest.mark.parametrize("hub_restarts", [False, True])
    def test_a_job_is_requeued_if_its_guest_came_back_without_it(
        self, hub: SimHub, pbs: FakePbs, hub_restarts: bool
    ) -> None:
        hub.says("h1", domain("n1", state=State.DOWN))
        hub.after(5)
        assert hub.state() == "R" and hub.done == []
        hub = SimHub(pbs, hub.farm.entries.kept, hub.at) if hub_restarts else hub
        hub.says("h1", domain("n1"))
        hub.after(UNLISTED_S - 1)
        assert hub.state() == "R"
        hub.after(70)
        assert hub.state() == "Q" and pbs.never_again == set()
        hub.after(60)
        assert hub.farm.entries == {}

    def test_a_job_continues_if_its_guest_came_back_with_it(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", state=State.DOWN))
        hub.after(60)
        hub.says("h1", domain("n1", [report()]))
        hub.after(LONG_S)
        assert hub.state() == "R" and hub.done == [] and hub.farm.entries == {}

    def test_while_no_mom_is_there_it_is_left_to_pbs(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.put_vnode("n1", "down")
        hub.says("h1", domain("n1", state=State.DOWN))
        hub.after(LONG_S)
        assert hub.state() == "R" and hub.done == [] and alerts(hub) == []

    def test_a_job_that_was_deleted_meanwhile_is_forgotten(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", domain("n1", state=State.DOWN))
        pbs.end("1.srv")
        hub.after(60)
        assert hub.farm.entries == {}
