"""A domain changes its host, and the hub's other books follow: its vnode, its siblings, its jobs, whose word counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from magrathea.core.model import JobClass, JobKey, Mode, State
from magrathea.core.moves import Says
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.hub.books import UNLISTED_S, Resume, SetWalltime, Suspend
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, LOST, SIBLINGS, STATE
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import asleep, domain, given_back, job, report, snapshot, stopped, vnode

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)
LISTS = Bindings({"h1": frozenset({"n1", "p1"}), "h2": frozenset({"p2"})})
LONG_S = 1000.0


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs("n1", "p1", "p2")
    pbs.put(job(walltime_s=3600))
    return pbs


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    """n1 and p1 are on h1, p2 on h2, and h1 has said that n1 is its own."""
    hub = SimHub(pbs)
    hub.farm.bind(LISTS)
    hub.says("h1", domain("n1", [report()]), domain("p1"))
    hub.says("h2", domain("p2"))
    hub.read()
    hub.told("h1", Says.OWNS, 0)
    return hub


def shown(hub: SimHub, name: str, attribute: str = ACCEPTS) -> str | None:
    return hub.pbs.vnodes[name].attributes.get(attribute)


def granted(hub: SimHub) -> None:
    hub.told("h1", Says.ASKS, 1, "h2")
    hub.told("h2", Says.READY, 2)


def left(hub: SimHub) -> None:
    """h1 has let go: the facts are in no host's use."""
    granted(hub)
    hub.says("h1", domain("p1"))
    hub.told("h1", Says.GONE, 2, "h2")


def moved(hub: SimHub, *jobs: object) -> None:
    left(hub)
    hub.told("h2", Says.HERE, 2)
    hub.says("h2", domain("p2"), domain("n1", jobs))  # type: ignore[arg-type]
    hub.told("h2", Says.ADOPTED, 2)


def test_from_the_grant_until_the_facts_are_adopted_the_vnode_accepts_nothing(hub: SimHub) -> None:
    assert shown(hub, "n1") == "preemptible,protected"
    hub.told("h1", Says.ASKS, 1, "h2")
    assert (shown(hub, "n1"), shown(hub, "n1", STATE)) == ("none", "free")
    steps: tuple[Callable[[], object], ...] = (
        lambda: hub.told("h2", Says.READY, 2),
        lambda: hub.says("h1", domain("n1", [report()]), domain("p1")),
        lambda: hub.says("h1", domain("p1")),
        lambda: hub.told("h1", Says.GONE, 2, "h2"),
        lambda: hub.told("h2", Says.HERE, 2),
        lambda: hub.says("h2", domain("p2"), domain("n1", [report()])),
    )
    for step in steps:
        step()
        assert hub.publish() == []
        assert (shown(hub, "n1"), shown(hub, "n1", STATE)) == ("none", "free")
    hub.told("h2", Says.ADOPTED, 2)
    assert (shown(hub, "n1"), shown(hub, "n1", HOST)) == ("preemptible,protected", "h2")


def test_it_is_a_sibling_wherever_it_runs_or_may_run(hub: SimHub) -> None:
    def siblings() -> tuple[str | None, ...]:
        hub.publish()
        return tuple(shown(hub, name, SIBLINGS) for name in ("p1", "p2", "n1"))

    assert siblings() == ("n1", "none", "p1")
    hub.told("h1", Says.ASKS, 1, "h2")
    assert siblings() == ("n1", "none", "p1")
    hub.told("h2", Says.READY, 2)
    assert siblings() == ("n1", "n1", "p1")
    hub.says("h1", domain("p1"))
    hub.told("h1", Says.GONE, 2, "h2")
    assert siblings() == ("n1", "n1", "p1"), "it may still go on at its source"
    hub.told("h2", Says.HERE, 2)
    assert siblings()[:2] == ("none", "n1")
    hub.says("h2", domain("p2"), domain("n1", [report()]))
    hub.told("h2", Says.ADOPTED, 2)
    assert siblings() == ("none", "n1", "p2")


def test_a_target_that_declines_is_free_again_and_the_source_has_its_domain(hub: SimHub) -> None:
    granted(hub)
    hub.told("h2", Says.DECLINES, 2, "no room")
    assert (shown(hub, "n1"), shown(hub, "p2", SIBLINGS)) == ("none", "none")
    hub.told("h1", Says.STAYS, 1)
    assert (shown(hub, "n1"), shown(hub, "n1", HOST)) == ("preemptible,protected", "h1")


def test_if_nothing_arrived_the_source_has_vnode_and_jobs_again(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    left(hub)
    hub.told("h2", Says.LACKS, 2)
    hub.says("h1", domain("n1", [given_back()]), domain("p1"))
    assert (shown(hub, "n1"), shown(hub, "n1", HOST), shown(hub, "p1", SIBLINGS)) == (
        *("preemptible,protected", "h1", "n1"),
    )
    assert hub.settle(1)[0] == Resume(KEY, False) and hub.state() == "R"


@pytest.mark.parametrize("early", ["snapshot", "words"])
def test_the_targets_words_and_its_snapshot_may_come_in_any_order(hub: SimHub, early: str) -> None:
    left(hub)
    if early == "snapshot":
        hub.says("h2", domain("p2"), domain("n1", [report()]))
        assert hub.publish() == [] and shown(hub, "n1", HOST) == "h1"
    hub.told("h2", Says.HERE, 2)
    hub.told("h2", Says.ADOPTED, 2)
    if early == "words":
        assert shown(hub, "n1") == "none"
        hub.says("h2", domain("p2"), domain("n1", [report()]))
    assert (shown(hub, "n1"), shown(hub, "n1", HOST)) == ("preemptible,protected", "h2")


def test_the_old_owner_publishes_nothing_after_it_has_let_go(hub: SimHub) -> None:
    granted(hub)
    hub.told("h1", Says.GONE, 2, "h2")
    hub.says("h1", domain("n1", state=State.RUNNING, accepts=[JobClass.PROTECTED], ncpus=99), domain("p1"))
    assert (shown(hub, "n1"), shown(hub, "n1", STATE), shown(hub, "n1", "resources_available.ncpus")) == (
        *("none", "free", "4"),
    )
    hub.told("h2", Says.HERE, 2)
    hub.says("h2", domain("p2"), domain("n1"))
    hub.told("h2", Says.ADOPTED, 2)
    hub.says("h1", domain("n1", state=State.DOWN, accepts=[]), domain("p1"))
    hub.publish()
    assert (shown(hub, "n1"), shown(hub, "n1", STATE)) == ("preemptible,protected", "free")


def test_a_sleeper_that_its_host_lets_go_of_is_published_without_its_state(hub: SimHub) -> None:
    hub.says("h1", asleep("n1", [report()]), domain("p1"))
    granted(hub)
    hub.told("h1", Says.GONE, 2, "h2")
    hub.says("h1", asleep("n1", [report()]), domain("p1"))
    assert shown(hub, "n1") == "none" and shown(hub, "n1", STATE) == "asleep"


def test_the_binding_follows_the_owner_there_and_back(hub: SimHub) -> None:
    may = hub.farm._vnodes.bindings.permit
    assert may("h1", "n1") and not may("h2", "n1")
    moved(hub)
    may = hub.farm._vnodes.bindings.permit
    assert may("h2", "n1") and not may("h1", "n1")
    hub.told("h2", Says.ASKS, 2, "h1")
    hub.told("h1", Says.HERE, 3)
    may = hub.farm._vnodes.bindings.permit
    assert may("h1", "n1") and not may("h2", "n1")


def test_a_host_without_a_record_speaks_only_of_vnodes_that_are_its_own(hub: SimHub) -> None:
    for host, name in (("h2", "p1"), ("h1", "p2"), ("h1", "unknown"), ("h3", "p1")):
        hub.told(host, Says.OWNS, 0, domain=name)
        assert name not in hub.owned.records


@pytest.mark.parametrize("says", [Says.GONE, Says.STAYS, Says.HERE, Says.ADOPTED, Says.LACKS, Says.ASKS])
def test_words_about_foreign_domains_change_nothing(hub: SimHub, says: Says) -> None:
    granted(hub)
    before = dict(hub.owned.records)
    for number in range(4):
        hub.told("h3", says, number, "h3")
    assert hub.owned.records == before


def test_if_the_owners_are_lost_only_the_last_one_may_say_that_it_owns_the_domain(hub: SimHub, pbs: FakePbs) -> None:
    moved(hub)
    new = SimHub(pbs, hub.farm.entries.kept, hub.at)
    new.farm.bind(LISTS)
    for host in ("h1", "h2"):
        new.says(host, domain("n1"), domain("p1" if host == "h1" else "p2"))
    assert shown(new, "n1", HOST) == "h2"
    new.told("h1", Says.OWNS, 1)
    assert not new.owned.records
    new.told("h2", Says.OWNS, 2)
    assert new.owned.records["n1"].owner == "h2"


def test_the_books_of_jobs_name_the_owners_again_if_a_hub_died_before_it_wrote_them_there(
    hub: SimHub, pbs: FakePbs
) -> None:
    moved(hub)
    new = SimHub(pbs, (), hub.at, owned=hub.owned.records.values())
    assert new.farm.entries.kept.owners == {"n1": "h2"}


def test_the_next_hub_knows_the_owner_from_the_file(hub: SimHub, pbs: FakePbs) -> None:
    moved(hub)
    new = SimHub(pbs, (), hub.at, owned=hub.owned.records.values())
    new.farm.bind(LISTS)
    new.says("h1", domain("n1"), domain("p1"))
    new.says("h2", domain("n1"), domain("p2"))
    assert shown(new, "n1", HOST) == "h2" and shown(new, "p1", SIBLINGS) == "none"


def test_who_once_had_a_domain_may_know_who_has_it_and_nobody_else(hub: SimHub) -> None:
    assert not hub.farm.may_ask_about("h1", "n1"), "it has not moved"
    moved(hub)
    assert hub.farm.may_ask_about("h1", "n1")
    assert not hub.farm.may_ask_about("h2", "p1") and not hub.farm.may_ask_about("h3", "n1")


def test_an_admin_gives_a_domain_up_by_taking_its_vnode_from_a_host_that_does_not_report_it(hub: SimHub) -> None:
    moved(hub)
    hub.says("h2", domain("p2"))
    assert hub.farm.given_up(hub.at + LONG_S) == []
    hub.pbs.vnodes["n1"] = vnode("n1")
    hub.read()
    assert hub.farm.given_up(hub.at) == [], "silent hosts may still report"
    assert hub.farm.given_up(hub.at + LONG_S) == ["n1"]
    hub.says("h2", domain("p2"), domain("n1"))
    assert hub.farm.given_up(hub.at + LONG_S) == []
    del hub.pbs.vnodes["n1"]
    hub.says("h2", domain("p2"))
    hub.read()
    assert hub.farm.given_up(hub.at + LONG_S) == [], "a vnode that is away may come back"


def given_up(hub: SimHub) -> None:
    """n1 has moved to h2, which is lost, and an admin gives it up."""
    moved(hub)
    hub.pbs.vnodes["n1"] = vnode("n1")
    hub.says("h2", domain("p2"))
    hub.read()
    for name in hub.farm.given_up(hub.at + LONG_S):
        hub.owned.give_up(name)
        hub.farm.owners_changed([name])


def test_a_domain_that_was_given_up_is_taken_back_by_the_host_at_home_with_its_vnode(hub: SimHub) -> None:
    given_up(hub)
    assert (hub.owned.records["n1"].owner, hub.owned.records["n1"].number) == ("", 3)
    assert hub.farm.given_up(hub.at + LONG_S) == [], "once"
    assert hub.farm.free_for("h1") == {"n1"} and hub.farm.free_for("h2") == set()
    assert hub.farm.may_ask_about("h1", "n1") and not hub.farm.may_ask_about("h3", "n1")
    hub.says("h1", domain("n1", state=State.DOWN, accepts=[]), domain("p1"))
    hub.read()
    hub.told("h1", Says.OWNS, 3)
    assert (hub.owned.records["n1"].owner, hub.owned.records["n1"].number) == ("h1", 4)
    assert shown(hub, "n1", HOST) == "h1" and hub.farm.free_for("h1") == set()
    assert hub.farm.given_up(hub.at + LONG_S) == [], "it is reported again"


def test_a_host_that_may_not_report_the_vnode_cannot_take_back_a_domain_that_was_given_up(hub: SimHub) -> None:
    given_up(hub)
    hub.says("h2", domain("n1"), domain("p2"))
    hub.read()
    for host in ("h2", "h3"):
        assert not hub.farm.may_found(host, "n1")


@pytest.mark.parametrize("lost", ["h0", "h2"])
def test_a_report_of_a_host_that_is_lost_does_not_keep_the_vnode_from_its_home(lost: str, pbs: FakePbs) -> None:
    """Without lists each may report it."""
    hub = SimHub(pbs)
    hub.says("h1", domain("p1"))
    hub.says(lost, domain("n1", [report()]), domain("p2"))
    hub.told(lost, Says.OWNS, 0)
    hub.at += LONG_S
    hub.says("h1", domain("p1"))
    assert hub.farm.leases(hub.at) == [lost]
    hub.pbs.vnodes["n1"] = vnode("n1")
    hub.read()
    assert hub.farm.given_up(hub.at) == ["n1"]
    hub.owned.give_up("n1")
    hub.farm.owners_changed(["n1"])
    hub.read()
    hub.says("h1", domain("n1", state=State.DOWN, accepts=[]), domain("p1"))
    hub.told("h1", Says.OWNS, 2)
    assert hub.owned.records["n1"].owner == "h1" and shown(hub, "n1", HOST) == "h1"


def test_a_lost_host_that_is_heard_again_may_report_what_was_given_up_until_its_home_takes_it_back(
    pbs: FakePbs,
) -> None:
    hub = SimHub(pbs)
    hub.says("h2", domain("n1", [report()]), domain("p2"))
    hub.told("h2", Says.OWNS, 0)
    hub.at += LONG_S
    assert hub.farm.leases(hub.at) == ["h2"]
    hub.pbs.vnodes["n1"] = vnode("n1")
    hub.read()
    hub.owned.give_up("n1")
    hub.farm.owners_changed(["n1"])
    hub.read()
    assert "n1" not in hub.farm._vnodes.owner
    hub.publish("h2")
    snapshot = hub.farm.hosts["h2"].snapshot
    assert hub.farm.heartbeat("h2", snapshot.boot_id, snapshot.revision, hub.at)
    hub.publish("h2")
    assert hub.farm.may_found("h2", "n1"), "without lists it may: somebody has to report it"


def test_the_next_hub_knows_that_a_domain_was_given_up(hub: SimHub, pbs: FakePbs) -> None:
    given_up(hub)
    new = SimHub(pbs, hub.farm.entries.kept, hub.at, owned=hub.owned.records.values())
    new.farm.bind(LISTS)
    assert new.farm.free_for("h1") == {"n1"} and new.farm.entries.kept.owners == {}


def test_a_domain_of_which_the_owners_are_lost_can_be_given_up_too(hub: SimHub, pbs: FakePbs) -> None:
    moved(hub)
    hub.pbs.vnodes["n1"] = vnode("n1")
    new = SimHub(pbs, hub.farm.entries.kept, hub.at)
    new.farm.bind(LISTS)
    assert new.farm.given_up(new.at + LONG_S) == ["n1"]


def test_what_is_booked_stays_booked_however_long_no_host_has_the_facts(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    assert hub.state() == "S"
    before = len(hub.done)
    left(hub)
    pbs.put_vnode("n1", "down")
    hub.after(LONG_S)
    hub.told("h2", Says.HERE, 2)
    hub.after(LONG_S)
    assert hub.state() == "S" and hub.done[before:] == [] and KEY in hub.farm.entries
    pbs.put_vnode("n1", "free")
    hub.says("h2", domain("p2"), domain("n1", [stopped()]))
    hub.told("h2", Says.ADOPTED, 2)
    hub.after(LONG_S)
    assert hub.state() == "S" and hub.books("h2") == [("1.srv", True, False)] and hub.books("h1") == []
    hub.says("h2", domain("p2"), domain("n1", [given_back()]))
    hub.settle(1)
    assert hub.state() == "R" and hub.done.count(Suspend(KEY)) == 1


def test_the_same_over_a_restart_of_the_hub(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    left(hub)
    new = SimHub(pbs, hub.farm.entries.kept, hub.at, owned=hub.owned.records.values())
    new.farm.bind(LISTS)
    new.says("h1", domain("p1"))
    new.says("h2", domain("p2"))
    new.after(LONG_S)
    assert new.state() == "S" and new.done == []
    new.told("h2", Says.HERE, 2)
    new.says("h2", domain("p2"), domain("n1", [given_back()]))
    new.told("h2", Says.ADOPTED, 2)
    new.settle(1)
    assert new.state() == "R"


def test_between_the_targets_words_and_its_snapshot_its_jobs_are_not_given_up(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    left(hub)
    hub.after(LONG_S)
    hub.told("h2", Says.HERE, 2)
    hub.told("h2", Says.ADOPTED, 2)
    hub.after(UNLISTED_S - 1)
    assert hub.state() == "S"


def test_a_stop_that_could_not_be_booked_before_is_booked_at_the_target_with_the_time_it_has_cost(
    hub: SimHub, pbs: FakePbs
) -> None:
    pbs.starting.add("1.srv")
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(10)
    assert hub.state() == "R"
    left(hub)
    hub.settle(20)
    pbs.starting.discard("1.srv")
    hub.told("h2", Says.HERE, 2)
    hub.says("h2", domain("p2"), domain("n1", [stopped()]))
    hub.told("h2", Says.ADOPTED, 2)
    done = hub.settle(10)
    assert hub.state() == "S"
    [limit] = [action for action in done if isinstance(action, SetWalltime)]
    assert 3629 <= limit.seconds <= 3632


def test_another_hosts_wish_for_the_same_job_waits_until_the_target_has_it(pbs: FakePbs) -> None:
    pbs.put(job(vnodes=("n1", "n3")))
    pbs.vnodes["n3"] = FakePbs("n3").vnodes["n3"]
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [report()]), domain("p1"))
    hub.says("h2", domain("p2"))
    hub.says("h3", domain("n3", [report()]))
    hub.told("h1", Says.OWNS, 0)
    left(hub)
    hub.says("h3", domain("n3", [stopped()]))
    hub.settle(30)
    assert hub.state() == "R"
    hub.told("h2", Says.HERE, 2)
    hub.says("h2", domain("p2"), domain("n1", [report()]))
    hub.told("h2", Says.ADOPTED, 2)
    hub.settle(1)
    assert hub.state() == "S"


def test_a_job_that_is_deleted_on_the_way_is_forgotten(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(1)
    left(hub)
    pbs.end("1.srv")
    hub.after(61)
    assert hub.farm.entries == {}


@pytest.mark.parametrize("end", [left, moved])
def test_a_report_of_the_old_owner_does_not_count(hub: SimHub, end: Callable[[SimHub], None]) -> None:
    end(hub)
    before = len(hub.done)
    hub.says("h1", domain("n1", [stopped()]), domain("p1"))
    hub.settle(30)
    assert hub.state() == "R" and Suspend(KEY) not in hub.done[before:]


def test_the_hook_asks_pbs_about_a_domain_on_its_way_at_both_ends(pbs: FakePbs) -> None:
    """The files about hosts' loads do not name it, as long as the target has not reported it over a comparison."""
    pbs.change("1.srv", exec_vnode="(n1:ncpus=1)")
    hub = SimHub(pbs)

    def says(host: str, *domains: object) -> None:
        hub.revisions[host] = hub.revisions.get(host, 0) + 1
        made = snapshot(*domains, host=host, revision=hub.revisions[host], at=hub.at, mode=Mode.COUNTED)  # type: ignore[arg-type]
        hub.farm.snapshot(made, hub.at, hub.at)
        hub.publish(host)

    says("h1", domain("n1", [report()]), domain("p1"))
    says("h2", domain("p2"))
    hub.read()
    hub.told("h1", Says.OWNS, 0)
    hub.read()
    assert b'"n1"' in hub.farm.load("h1")
    granted(hub)
    says("h1", domain("p1"))
    hub.told("h1", Says.GONE, 2, "h2")
    assert b'"n1"' not in hub.farm.load("h1") and b'"n1"' not in hub.farm.load("h2")
    hub.told("h2", Says.HERE, 2)
    says("h2", domain("p2"), domain("n1", [report()]))
    hub.told("h2", Says.ADOPTED, 2)
    assert b'"n1"' not in hub.farm.load("h2")
    hub.read()
    assert b'"n1"' in hub.farm.load("h2")


def test_a_silent_source_or_target_changes_nothing_about_whose_the_vnode_is(hub: SimHub) -> None:
    left(hub)
    hub.farm.leases(hub.at + 100)
    hub.publish()
    assert shown(hub, "n1") == "none" and shown(hub, "p1") == "none"
    hub.told("h2", Says.HERE, 2)
    hub.publish()
    assert shown(hub, "n1") == LOST[ACCEPTS]
