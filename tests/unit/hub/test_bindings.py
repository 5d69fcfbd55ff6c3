"""To which host a vnode belongs: a name is bound to a host, whichever host reports it first."""

from __future__ import annotations

import pytest

from magrathea.core.model import Kind
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, LOST, SIBLINGS, STATE
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, vnode

from .simulated_hub import SimHub

BOUND = Bindings({"h1": frozenset({"p1"}), "h2": frozenset({"n1", "n2"})})


@pytest.mark.parametrize(
    ("host", "name", "permitted"),
    [
        ("h1", "p1", True),
        ("h1", "n1", False),
        ("h1", "free", False),
        ("h2", "n1", True),
        ("unbound", "free", True),
        ("unbound", "n1", False),
    ],
)
def test_which_host_may_report_which_vnode(host: str, name: str, permitted: bool) -> None:
    assert BOUND.permit(host, name) is permitted
    assert Bindings().permit(host, name)


def hub(bindings: Bindings = BOUND) -> SimHub:
    made = SimHub(FakePbs("n1", "n2", "p1", "free"))
    made.farm.bind(bindings)
    return made


def shown(made: SimHub, name: str, attribute: str) -> str | None:
    return made.pbs.vnodes[name].attributes.get(attribute)


@pytest.mark.parametrize("hostile", ["h1", "unbound"])
def test_a_name_that_nobody_has_reported_yet_is_kept_for_its_host(hostile: str) -> None:
    made = hub()
    made.says(hostile, domain("n1"), domain("p1"))
    made.says("h2", domain("n1"), domain("n2"))
    assert shown(made, "n1", HOST) == shown(made, "n2", HOST) == "h2"
    _, alerts = made.farm.publication(made.at, "h2")
    assert alerts == []


def test_the_same_though_the_hub_reads_pbs_in_between() -> None:
    made = hub()
    made.says("h1", domain("n1"), domain("p1"))
    made.read()
    made.says("h2", domain("n1"), domain("n2"))
    made.read()
    assert shown(made, "n1", HOST) == "h2"


def test_a_service_does_not_use_up_a_name() -> None:
    made = hub(Bindings())
    made.says("h1", domain("n1", kind=Kind.SERVICE, accepts=[]), domain("p1"))
    made.says("h2", domain("n1"))
    assert shown(made, "n1", HOST) == "h2"


def test_foreign_siblings_are_not_named() -> None:
    made = hub()
    made.says("h1", domain("p1"), domain("n1"), domain("free"), domain("nowhere"))
    assert shown(made, "p1", SIBLINGS) == "none"
    made.says("h2", domain("n1"), domain("n2"))
    assert shown(made, "n1", SIBLINGS) == "n2"


def test_siblings_that_belong_to_another_host_are_not_named_without_lists_either() -> None:
    made = hub(Bindings())
    made.says("h2", domain("n1"), domain("n2"))
    made.says("h1", domain("p1"), domain("n1"), domain("n2"))
    assert shown(made, "p1", SIBLINGS) == "none"


def test_a_later_binding_overrides_a_report_and_a_record() -> None:
    made = hub(Bindings())
    made.says("h1", domain("n1"), domain("p1"))
    assert shown(made, "n1", HOST) == "h1"
    made.farm.bind(BOUND)
    made.says("h2", domain("n1"), domain("n2"))
    assert shown(made, "n1", HOST) == "h2"
    made.read()
    wanted, _ = made.farm.publication(made.at + 100)
    assert wanted["n1"][HOST] == "h2"


def test_a_vnode_that_a_foreign_host_reports_is_lost_as_long_as_its_own_is_silent_about_it() -> None:
    made = hub()
    made.pbs.vnodes["n1"] = vnode("n1", magrathea_host="h2", magrathea_accepts="protected")
    made.read()
    made.says("h2", domain("n2"))
    made.says("h1", domain("n1"), domain("p1"))
    wanted, alerts = made.farm.publication(made.at + 100)
    assert wanted["n1"] == LOST
    assert any("h2, which does not report it" in alert for alert in alerts)


def test_a_vnode_that_its_recorded_host_may_not_name_any_more_accepts_nothing() -> None:
    made = hub(Bindings({"h1": frozenset({"p1"})}))
    made.pbs.vnodes["n1"] = vnode("n1", magrathea_host="h1", magrathea_accepts="protected")
    made.read()
    made.says("h1", domain("n1"), domain("p1"))
    wanted, _ = made.farm.publication(made.at + 100)
    assert (wanted["n1"][STATE], wanted["n1"][ACCEPTS]) == ("unknown", "none")
