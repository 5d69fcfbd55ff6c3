"""What vnodes show: values, differences, owners, leases."""

from __future__ import annotations

import pytest

from magrathea.core.model import Amount, Domain, Host, JobClass, Kind, Lifecycle, Mode, State
from magrathea.messages import Snapshot
from node_daemon.snapshot import Beside
from node_daemon.snapshot import snapshot as node_snapshot
from scheduler_plugin.hub import vnode_attributes
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.hub.vnode_attributes import (
    ACCEPTS,
    HOST,
    HOST_NCPUS,
    LOST,
    MEM,
    NCPUS,
    OFFLINE,
    PRIORITY,
    RANK,
    SIBLINGS,
    STATE,
)
from scheduler_plugin.pbs.base import Vnode
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, snapshot, vnode

from .simulated_hub import SimHub

PRIORITY_DOMAIN = domain("p1", kind=Kind.PRIORITY, state=State.WOULD_PREEMPT, accepts=[JobClass.PRIORITY], rank=-3)


UNBOUND = Bindings()


def vnodes_of(made: Snapshot) -> frozenset[str]:
    return frozenset(d.vnode for d in made.domains if d.kind is not Kind.SERVICE)


def of_h1(*vnodes: Vnode, allowed: dict[str, frozenset[str]] | None = None) -> vnode_attributes.Published:
    had = {v.name: v for v in vnodes}
    made = snapshot(domain("n1"), PRIORITY_DOMAIN)
    bindings = Bindings(allowed or {})
    return vnode_attributes.of_host(made, True, had, vnode_attributes.owners(had, {"h1": made}, bindings), bindings)


def test_all_that_a_domain_shows() -> None:
    shown = of_h1(vnode("n1"), vnode("p1")).wanted
    assert shown["n1"] == {
        STATE: "free",
        ACCEPTS: "preemptible,protected",
        RANK: "0",
        PRIORITY: "0",
        NCPUS: "4",
        MEM: "2048mb",
        HOST: "h1",
        SIBLINGS: "p1",
        HOST_NCPUS: "",
        OFFLINE: "",
    }
    assert shown["p1"][STATE] == "occupied-would-preempt"
    assert shown["p1"][ACCEPTS] == "priority"
    assert shown["p1"][RANK] == shown["p1"][PRIORITY] == "-3"


def test_nothing_accepted_and_no_sibling_are_words() -> None:
    shown = vnode_attributes.attributes_of(snapshot(lonely := domain("n1", accepts=[])), lonely, frozenset())
    assert shown[ACCEPTS] == shown[SIBLINGS] == "none"


def test_services_are_no_siblings_and_their_cpus_are_not_the_hosts() -> None:
    service = domain("s1", kind=Kind.SERVICE, ncpus=1, accepts=[])
    made = snapshot(domain("n1"), service, mode=Mode.COUNTED, cpus=8, services_cpus=1)
    shown = vnode_attributes.attributes_of(made, made.domains[0], vnodes_of(made))
    assert shown[SIBLINGS] == "none"
    assert shown[HOST_NCPUS] == "7"


@pytest.mark.parametrize(
    ("services", "others", "left"), [(2, 0, "14"), (12, 0, "4"), (0, 12, "4"), (10, 3, "3"), (10, 9, "0")]
)
def test_the_cpus_of_services_are_subtracted_from_the_hosts(services: int, others: int, left: str) -> None:
    """For a whole host, as its daemon reports it: the server's hook counts with it."""
    n1 = Domain("n1", Kind.NORMAL, 16, lifecycle=Lifecycle.UP, agent_lost_at=None)
    domains = (n1, Domain("s1", Kind.SERVICE, services)) if services else (n1,)
    host = Host("h1", Mode.COUNTED, 16, 4096, domains, others=Amount(others, 0))
    made = node_snapshot(host, Beside(boot_id="boot"))
    assert vnode_attributes.attributes_of(made, made.domains[0], vnodes_of(made))[HOST_NCPUS] == left


def test_a_host_that_counts_no_longer_shows_its_cpus_no_longer() -> None:
    wanted = of_h1(vnode("n1")).wanted["n1"]
    assert vnode_attributes.differences({HOST_NCPUS: wanted[HOST_NCPUS]}, {}) == {}
    assert vnode_attributes.differences({HOST_NCPUS: wanted[HOST_NCPUS]}, {HOST_NCPUS: "8"}) == {HOST_NCPUS: ""}


def test_ranks_are_clipped_for_priority_only() -> None:
    shown = vnode_attributes.attributes_of(snapshot(last := domain("n1", rank=-5000)), last, frozenset())
    assert (shown[RANK], shown[PRIORITY]) == ("-5000", "-1024")
    assert PRIORITY not in vnode_attributes.attributes_of(snapshot(last), last, frozenset(), set_priority=False)


def test_a_vnode_that_pbs_does_not_have_is_reported() -> None:
    found = of_h1(vnode("n1"))
    assert set(found.wanted) == {"n1"}
    assert "p1" in found.alerts[0]


def test_a_host_cannot_report_another_hosts_vnode() -> None:
    found = of_h1(vnode("n1", magrathea_host="h2"), vnode("p1"))
    assert set(found.wanted) == {"p1"}
    assert "belongs to host h2" in found.alerts[0]


def test_a_host_that_is_enrolled_for_some_vnodes_cannot_report_others() -> None:
    found = of_h1(vnode("n1"), vnode("p1"), allowed={"h1": frozenset({"p1"})})
    assert set(found.wanted) == {"p1"}
    assert "not enrolled" in found.alerts[0]


def test_a_vnode_without_a_host_accepts_all_classes() -> None:
    had = {"x": vnode("x", "offline")}
    assert vnode_attributes.of_nobody(had, {}, {}, UNBOUND, grace=True).wanted == {
        "x": {ACCEPTS: "priority,preemptible,protected", OFFLINE: ""}
    }


def test_a_vnode_of_a_host_that_was_always_silent_is_unknown_after_a_grace() -> None:
    had = {"n1": vnode("n1", magrathea_host="h1")}
    owner = vnode_attributes.owners(had, {}, UNBOUND)
    assert vnode_attributes.of_nobody(had, owner, {}, UNBOUND, grace=True).wanted == {}
    assert vnode_attributes.of_nobody(had, owner, {}, UNBOUND, grace=False).wanted == {"n1": LOST}


def test_a_vnode_that_its_host_no_longer_reports_accepts_nothing_and_is_reported() -> None:
    had = {"n1": vnode("n1", magrathea_host="h1"), "n9": vnode("n9", magrathea_host="h1")}
    hosts = {"h1": snapshot(domain("n1"))}
    found = vnode_attributes.of_nobody(had, vnode_attributes.owners(had, hosts, UNBOUND), hosts, UNBOUND, grace=False)
    assert found.wanted == {"n9": LOST}
    assert "n9" in found.alerts[0]


@pytest.mark.parametrize(
    ("attribute", "wanted", "have"),
    [
        (MEM, "2048mb", "2gb"),
        (MEM, "2048mb", "2097152kb"),
        (ACCEPTS, "preemptible,protected", "protected,preemptible"),
        (PRIORITY, "0", None),
        (NCPUS, "4", "4"),
    ],
)
def test_values_with_the_same_meaning_are_no_difference(attribute: str, wanted: str, have: str | None) -> None:
    assert vnode_attributes.same(attribute, wanted, have)


@pytest.mark.parametrize(
    ("attribute", "wanted", "have"),
    [
        (MEM, "2048mb", "2047mb"),
        (MEM, "2048mb", None),
        (ACCEPTS, "none", "priority"),
        (ACCEPTS, "none", None),
        (PRIORITY, "0", "5"),
        (PRIORITY, "5", None),
        (NCPUS, "4", None),
    ],
)
def test_values_with_another_meaning_are_a_difference(attribute: str, wanted: str, have: str | None) -> None:
    assert not vnode_attributes.same(attribute, wanted, have)


@pytest.mark.parametrize(
    ("changes", "have", "opens"),
    [
        ({ACCEPTS: "priority"}, {ACCEPTS: "none"}, True),
        ({ACCEPTS: "priority"}, {}, True),
        ({ACCEPTS: "none"}, {ACCEPTS: "priority"}, False),
        ({ACCEPTS: "protected"}, {ACCEPTS: "protected,preemptible"}, False),
        ({NCPUS: "4"}, {ACCEPTS: "priority", NCPUS: "2"}, True),
        ({NCPUS: "4"}, {ACCEPTS: "none", NCPUS: "2"}, False),
        ({NCPUS: "1"}, {ACCEPTS: "priority", NCPUS: "2"}, False),
        ({MEM: "2gb"}, {ACCEPTS: "priority", MEM: "1gb"}, True),
        ({RANK: "7", STATE: "free"}, {ACCEPTS: "priority"}, False),
    ],
)
def test_only_changes_that_let_a_job_start_wake_the_scheduler(
    changes: dict[str, str], have: dict[str, str], opens: bool
) -> None:
    assert vnode_attributes.opens(changes, have) is opens


def test_no_attribute_is_ever_a_vnodes_state() -> None:
    shown = {name for wanted in of_h1(vnode("n1"), vnode("p1")).wanted.values() for name in wanted}
    assert not shown & {"state", "comment", "resv_enable"}


def test_a_frozen_domains_vnode_must_be_offline_with_the_reason() -> None:
    had = {"p1": vnode("p1")}
    made = snapshot(domain("p1", kind=Kind.PRIORITY, state=State.FROZEN, accepts=[]))
    owner = vnode_attributes.owners(had, {"h1": made}, UNBOUND)
    wanted = vnode_attributes.of_host(made, True, had, owner, UNBOUND).wanted["p1"]
    assert wanted[OFFLINE].startswith("magrathea: ") and "magrathea domain defrost p1` on h1" in wanted[OFFLINE]
    assert OFFLINE not in vnode_attributes.of_host(made, False, had, owner, UNBOUND).wanted["p1"]


@pytest.mark.parametrize(
    ("state", "comment", "expected"),
    [
        (["free"], "", ""),
        (["free"], "magrathea: p1 is saved to disk", ""),
        (["offline", "down"], "magrathea: p1 is saved to disk", "magrathea: p1 is saved to disk"),
        (["offline"], "disk broken", vnode_attributes.SOMEBODYS),
        (["offline"], "", vnode_attributes.SOMEBODYS),
    ],
)
def test_the_comment_shows_who_set_a_vnode_offline(state: list[str], comment: str, expected: str) -> None:
    found = Vnode("p1", {"comment": comment} if comment else {}, frozenset(state))
    assert vnode_attributes.shown(found)[OFFLINE] == expected
    wishes = ("", "magrathea: p1 is saved to disk", "magrathea: another reason")
    differ = [wish for wish in wishes if vnode_attributes.differences({OFFLINE: wish}, vnode_attributes.shown(found))]
    assert differ == ([] if expected == vnode_attributes.SOMEBODYS else [wish for wish in wishes if wish != expected])


class TestLeases:
    def test_a_host_silent_for_three_heartbeats_is_unknown_until_the_next_one(self) -> None:
        pbs = FakePbs("n1")
        hub = SimHub(pbs)
        hub.says("h1", domain("n1"))
        assert hub.farm.leases(hub.at + 6.0) == []
        assert hub.farm.leases(hub.at + 6.1) == ["h1"]
        assert hub.farm.leases(hub.at + 7.0) == [], "told once"
        assert hub.farm.publication(hub.at, "h1")[0] == {"n1": LOST}
        assert hub.farm.heartbeat("h1", "boot", 1, hub.at + 8)
        assert hub.farm.publication(hub.at, "h1")[0]["n1"][STATE] == "free"

    def test_a_heartbeat_keeps_the_lease(self) -> None:
        hub = SimHub(FakePbs("n1"))
        hub.says("h1", domain("n1"))
        assert hub.farm.heartbeat("h1", "boot", 1, hub.at + 5)
        assert hub.farm.leases(hub.at + 10) == []

    def test_a_heartbeat_with_a_missing_revision_requests_it_and_renews_no_lease(self) -> None:
        hub = SimHub(FakePbs("n1"))
        assert not hub.farm.heartbeat("h1", "boot", 1, hub.at)
        hub.says("h1", domain("n1"))
        assert not hub.farm.heartbeat("h1", "boot", 2, hub.at + 5)
        assert not hub.farm.heartbeat("h1", "another boot", 1, hub.at + 5)
        assert hub.farm.leases(hub.at + 6.1) == ["h1"]

    def test_an_older_snapshot_of_the_same_daemon_is_dropped_and_a_new_daemons_first_is_not(self) -> None:
        hub = SimHub(FakePbs("n1"))
        assert hub.farm.snapshot(snapshot(domain("n1"), revision=5), hub.at, hub.at)
        assert not hub.farm.snapshot(snapshot(domain("n1"), revision=4), hub.at, hub.at)
        assert hub.farm.snapshot(snapshot(domain("n1"), revision=1, boot_id="new"), hub.at, hub.at)


def test_nothing_is_published_before_pbs_was_read() -> None:
    hub = SimHub(FakePbs("n1"), read=False)
    hub.says("h1", domain("n1"))
    assert hub.farm.publication(hub.at) == ({}, [])


def test_a_lasting_alert_is_logged_once() -> None:
    hub = SimHub(FakePbs("n1"))
    hub.says("h1", domain("n2"))
    assert hub.farm.publication(hub.at)[1] == []  # the snapshot itself has reported it
    hub.says("h1", domain("n1"))
    hub.farm.publication(hub.at)
    made = snapshot(domain("n2"), revision=9)
    hub.farm.snapshot(made, hub.at, hub.at)
    assert any("vnode n2" in alert for alert in hub.farm.publication(hub.at)[1])
    assert hub.farm.publication(hub.at)[1] == []
