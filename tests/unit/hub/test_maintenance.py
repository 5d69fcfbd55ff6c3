"""What PBS's server is made to forget, and vnodes that it has put into maintenance without a job."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from magrathea.core.model import JobClass
from scheduler_plugin.hub.books import Resume, Suspend
from scheduler_plugin.hub.maintenance import ALERT_LOOKS, EMPTIED, NAMED, PUT_OFF_MOST_S, QUIET_S
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, given_back, job, report, stopped

from .simulated_hub import SimHub

COMPARE_S = 60
RESTED_S = QUIET_S + COMPARE_S
"""At most so long after a preemption the hook is asked, if another preemption may follow."""


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs("n1", "p1", "x")
    pbs.put(job())
    return pbs


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    """A hub with a host that has clean vnodes."""
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [report()]), domain("p1"))
    hub.after(RESTED_S)
    hook(hub)
    return hub


def asked(hub: SimHub) -> dict[str, str]:
    return {name: when for name, (_, when) in hub.farm.maintenance.requests.items()}


def hook(hub: SimHub) -> None:
    """The hook has done everything that it was asked for."""
    hub.farm.maintenance.answered(
        {name: (number, EMPTIED) for name, (number, _) in hub.farm.maintenance.requests.items()}
    )


def restarted(pbs: FakePbs, name: str = "n1") -> None:
    """The server has restarted and shows an old name on the vnode."""
    pbs.vnodes[name] = pbs.vnodes[name].__class__(name, {}, frozenset({"maintenance"}), ("0.srv",))


def named(hub: SimHub) -> None:
    """The hook has done the first of its two runs."""
    hub.farm.maintenance.answered(
        {name: (number, NAMED) for name, (number, _) in hub.farm.maintenance.requests.items()}
    )


def requested(hub: SimHub) -> None:
    hub.farm.maintenance.mark(["n1"])
    hub.after(RESTED_S)
    assert asked(hub) == {"n1": "free"}


def test_a_new_hub_has_all_vnodes_of_its_hosts_cleaned_once_and_no_others(pbs: FakePbs) -> None:
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [report()]), domain("p1"))
    hub.after(COMPARE_S)
    assert asked(hub) == {"p1": "free"}, "on n1 is a job that may be preempted any moment"
    hub.after(COMPARE_S)
    assert asked(hub) == {"n1": "free", "p1": "free"}
    hook(hub)
    hub.after(5 * COMPARE_S)
    assert asked(hub) == {}


def test_after_each_preemption_its_vnode_is_cleaned_but_not_before_its_end(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.after(3 * COMPARE_S)
    assert hub.state() == "S" and asked(hub) == {}
    hub.says("h1", domain("n1", [given_back()]), domain("p1"))
    hub.after(RESTED_S - COMPARE_S)
    assert hub.state() == "R" and asked(hub) == {}
    hub.after(COMPARE_S)
    assert asked(hub) == {"n1": "free"}


def test_preemptions_in_close_succession_never_meet_the_hook(hub: SimHub, pbs: FakePbs) -> None:
    for _ in range(100):
        hub.says("h1", domain("n1", [stopped()]), domain("p1"))
        hub.settle(1)
        assert hub.state() == "S"
        hub.says("h1", domain("n1", [given_back()]), domain("p1"))
        hub.settle(1)
        hub.says("h1", domain("n1", [report()]), domain("p1"))
        hub.after(5)
        assert hub.state() == "R" and asked(hub) == {}


def test_a_vnode_without_a_preemptible_job_is_cleaned_at_once(hub: SimHub, pbs: FakePbs) -> None:
    """Nothing could end its maintenance after a restart of the server, and no preemption is possible there soon."""
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    pbs.end("1.srv")
    hub.says("h1", domain("n1"), domain("p1"))
    hub.after(COMPARE_S)
    assert asked(hub) == {"n1": "free"}


def test_a_preemption_withdraws_a_request_that_was_not_begun(hub: SimHub, pbs: FakePbs) -> None:
    requested(hub)
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    assert [type(action) for action in hub.settle(1)][:1] == [Suspend]
    assert asked(hub) == {}


def test_a_request_that_was_begun_in_the_moment_of_the_preemption_is_carried_on_before_its_end(
    hub: SimHub, pbs: FakePbs
) -> None:
    requested(hub)
    [(number, _)] = hub.farm.maintenance.requests.values()
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    hub.farm.maintenance.answered({"n1": (number, NAMED)})
    assert asked(hub) == {"n1": "ours"}
    hub.says("h1", domain("n1", [given_back()]), domain("p1"))
    hub.settle(10)
    assert hub.state() == "S", "its vnode would stay in maintenance"
    hook(hub)
    hub.settle(1)
    assert hub.state() == "R"


def test_an_admins_suspension_during_a_request_delays_the_hook(hub: SimHub, pbs: FakePbs) -> None:
    requested(hub)
    pbs.put(job("2.srv"))
    pbs.suspend_by_admin("2.srv")
    hub.after(COMPARE_S)
    named(hub)
    hub.after(COMPARE_S)
    assert asked(hub) == {"n1": "free"}


def test_no_suspend_while_the_hook_is_half_through(hub: SimHub, pbs: FakePbs) -> None:
    """If a job's suspension began and ended now, its vnode would stay in maintenance, with nobody to end it."""
    requested(hub)
    named(hub)
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    assert hub.settle(1) == [] and hub.state() == "R"
    hook(hub)
    assert [type(action) for action in hub.settle(1)][:1] == [Suspend]
    assert hub.state() == "S"


def test_a_hook_that_stays_half_done_does_not_delay_a_suspend_for_ever(hub: SimHub, pbs: FakePbs) -> None:
    requested(hub)
    named(hub)
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(PUT_OFF_MOST_S + 1)
    assert hub.state() == "S"


def test_vnodes_with_jobs_suspended_by_an_admin_are_never_touched(hub: SimHub, pbs: FakePbs) -> None:
    pbs.put(job("2.srv"))
    pbs.suspend_by_admin("2.srv")
    hub.after(10 * COMPARE_S)
    assert asked(hub) == {} and hub.notes == [] and hub.done == []
    pbs.resume_by_admin("2.srv")
    hub.after(RESTED_S)
    assert asked(hub) == {"n1": "free"}


def test_a_vnode_in_maintenance_for_nobody_is_emptied_and_a_job_touched(hub: SimHub, pbs: FakePbs) -> None:
    restarted(pbs)
    hub.after(2 * COMPARE_S)
    assert asked(hub) == {"n1": "stuck"} and hub.done == []
    hook(hub)
    pbs.vnodes["n1"] = pbs.vnodes["n1"].__class__("n1", {}, frozenset({"maintenance"}), ())
    assert [type(action) for action in [*hub.after(COMPARE_S), *hub.settle(1)]] == [Suspend, Resume]
    assert hub.state() == "R" and "maintenance" not in pbs.vnodes["n1"].state
    assert hub.farm.entries == {}
    hub.after(ALERT_LOOKS * COMPARE_S)
    assert not [note for note in hub.notes if note.startswith("ALERT")]


def test_a_touch_that_is_interrupted_by_the_hubs_end_is_carried_on(hub: SimHub, pbs: FakePbs) -> None:
    restarted(pbs)
    hub.after(2 * COMPARE_S)
    hook(hub)
    hub.read()
    (action,) = hub.actions()
    kept = hub.farm.entries.kept
    hub.carry_out(action)
    assert hub.state() == "S"
    new = SimHub(pbs, kept, hub.at)
    new.says("h1", domain("n1", [report()]), domain("p1"))
    new.after(COMPARE_S)
    assert hub.state() == "R"


def test_without_a_job_to_touch_an_admin_is_alerted_once(hub: SimHub, pbs: FakePbs) -> None:
    pbs.end("1.srv")
    pbs.put(job("3.srv", vnodes=("p1",)))
    hub.says("h1", domain("n1"), domain("p1"))
    restarted(pbs)
    for _ in range(2 * ALERT_LOOKS):
        hub.after(COMPARE_S)
        hook(hub)
    assert len([note for note in hub.notes if note.startswith("ALERT vnode n1")]) == 1
    assert hub.done == []


def test_a_protected_job_is_not_touched(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [replace(report(), cls=JobClass.PROTECTED)]), domain("p1"))
    restarted(pbs)
    for _ in range(2 * ALERT_LOOKS):
        hub.after(COMPARE_S)
        hook(hub)
    assert hub.done == []
