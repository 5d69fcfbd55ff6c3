"""How a newly read configuration changes the facts, and which facts it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from magrathea.core.events import (
    AgentLost,
    Claimed,
    ConfiguredDomain,
    Decision,
    DefrostRequested,
    DrainEnded,
    DrainRequested,
    Noted,
    Reconfigured,
)
from magrathea.core.machine import handle
from magrathea.core.model import Amount, Domain, Host, Kind, Lifecycle, Limits, Mode
from magrathea.core.reconfiguration import UNKNOWN_HOST

from .builders import (
    LOW,
    T,
    accepts,
    after,
    ask,
    claim,
    get,
    host,
    key,
    later,
    listed,
    release,
    run,
    set_domain,
    state,
    stop,
    stopped,
    told,
    wanted,
)
from .sleepers import put_to_sleep


def meant(domain: Domain, **changes: Any) -> ConfiguredDomain:
    """The configuration of a domain as it is, except for `changes`."""
    sizes = (domain.cpus, domain.memory_mib, domain.floor_mib, domain.swap_mib, domain.boot_limit_s)
    return replace(ConfiguredDomain(domain.name, domain.kind, *sizes), **changes)


def as_it_is(h: Host, **changes: Any) -> Reconfigured:
    """The configuration of a host as it is, except for `changes`."""
    domains = tuple(meant(d) for d in h.domains)
    return replace(Reconfigured(h.now, h.name, h.mode, h.cpus, h.memory_mib, h.limits, domains), **changes)


def without(h: Host, name: str) -> Reconfigured:
    return as_it_is(h, domains=tuple(meant(d) for d in h.domains if d.name != name))


def with_changed(h: Host, name: str, **changes: Any) -> Reconfigured:
    return as_it_is(h, domains=tuple(meant(d, **(changes if d.name == name else {})) for d in h.domains))


def said(decisions: tuple[Decision, ...]) -> list[str]:
    return [f"{d.domain} {d.what}: {d.text}" for d in decisions if isinstance(d, Noted)]


def pair(n1: str = "normal", p1: str = "priority") -> Host:
    return host("exclusive", n1=n1, p1=p1)


def test_the_first_configuration_makes_a_host_of_which_nothing_else_is_known() -> None:
    h, decisions = handle(UNKNOWN_HOST, as_it_is(pair()))
    assert (h.name, h.mode, h.cpus, h.memory_mib, h.now) == ("h1", Mode.EXCLUSIVE, 8, 16_000, T)
    assert [(d.name, d.kind, d.cpus, d.lifecycle) for d in h.domains] == [
        ("n1", Kind.NORMAL, 8, Lifecycle.DOWN),
        ("p1", Kind.PRIORITY, 8, Lifecycle.DOWN),
    ]
    assert h.hub_lost and not decisions


def test_the_same_configuration_again_changes_nothing() -> None:
    h = run(stop(run(pair(), "n1", "1"), "n1", "1"), "p1", "9")
    assert handle(h, as_it_is(h)) == (h, ())


def test_sizes_and_limits_are_taken_over_and_facts_stay() -> None:
    h = set_domain(run(pair(), "n1", "1", cpus=2), "n1", unreclaimable_mib=7)
    event = replace(with_changed(h, "n1", cpus=4, memory_mib=900, floor_mib=50, swap_mib=60, boot_limit_s=9.0), cpus=6)
    new = after(h, replace(event, memory_mib=8_000, limits=Limits(min_run_s=9.0)))
    assert (new.cpus, new.memory_mib, new.limits.min_run_s) == (6, 8_000, 9.0)
    changed = replace(get(h, "n1"), cpus=4, memory_mib=900, floor_mib=50, swap_mib=60, boot_limit_s=9.0)
    assert get(new, "n1") == changed


def test_a_new_domain_is_down_until_somebody_finds_it_up() -> None:
    h = pair()
    new = after(h, as_it_is(h, domains=(*as_it_is(h).domains, ConfiguredDomain("a1", Kind.NORMAL, 2))))
    assert [d.name for d in new.domains] == ["a1", "n1", "p1"], "sorted by name"
    assert get(new, "a1").lifecycle is Lifecycle.DOWN


def test_a_domain_without_jobs_that_is_no_longer_configured_is_forgotten() -> None:
    h = pair()
    new, decisions = handle(h, without(h, "n1"))
    assert [d.name for d in new.domains] == ["p1"]
    assert told(decisions, "forgotten") == ["n1"]


def test_a_domain_with_jobs_that_is_no_longer_configured_drains_and_is_forgotten_with_its_last_job() -> None:
    h = run(run(pair(), "n1", "1"), "n1", "2")
    h, decisions = handle(h, without(h, "n1"))
    assert "n1 kept: no longer configured" in said(decisions)[0] and "1 (run 1), 2 (run 1)" in said(decisions)[0]
    assert (state(h, "n1"), accepts(h, "n1")) == ("draining", set())
    assert claim(h, "n1", "3").code == "domain-draining"
    h = release(h, "n1", "1")
    assert h.domain("n1")
    h, decisions = handle(h, Claimed(T, "n1", key("2"), LOW, 1))
    assert h.domain("n1"), "a repeated claim is answered as ever"
    h = release(h, "n1", "2")
    assert h.domain("n1") is None


def test_a_sleeper_in_line_that_is_no_longer_configured_does_not_try_to_come_back() -> None:
    h = put_to_sleep(run(host("exclusive", n1="normal", n2="normal"), "n1", "1"), "n1")
    h = ask(run(h, "n2", "2"), DefrostRequested(T, "n1", T)).host
    h, decisions = handle(h, without(h, "n1"))
    assert "then defrost it" in said(decisions)[0]
    h = release(h, "n2", "2")
    assert state(h, "n1") == "asleep" and claim(h, "n2", "3").ok


def test_its_jobs_are_stopped_and_continued_like_any_others() -> None:
    h = run(pair(), "n1", "1")
    h = claim(after(h, without(h, "n1")), "p1", "9").host
    assert stopped(h) == wanted(h) == {"1"}
    assert wanted(release(h, "p1", "9")) == set()


def test_a_domain_that_is_configured_again_takes_jobs_again_with_the_facts_it_had() -> None:
    h = run(pair(), "n1", "1")
    assert after(h, without(h, "n1"), as_it_is(h)) == h


def test_an_admin_who_ends_its_drain_does_not_let_jobs_into_a_domain_that_is_no_longer_configured() -> None:
    h = run(pair(), "n1", "1")
    h = after(h, without(h, "n1"), DrainEnded(T, "n1"))
    assert claim(h, "n1", "2").code == "domain-draining"


def test_a_drain_of_the_admins_own_outlasts_a_reload() -> None:
    h = after(run(pair(), "n1", "1"), DrainRequested(T, "n1", "new disk"))
    assert after(h, without(h, "n1"), as_it_is(h)) == h


def test_a_domain_that_nobody_configures_or_speaks_for_is_forgotten_with_its_jobs() -> None:
    h = run(pair(), "n1", "1")
    h = after(h, without(h, "n1"), AgentLost(T, "n1"))
    assert later(h, h.limits.agent_silent_s - 1).domain("n1")
    gone, decisions = handle(later(h, 0), replace(without(h, "n1"), at=T + h.limits.agent_silent_s))
    assert gone.domain("n1") is None
    assert told(decisions, "domain-down") == ["1"]
    assert later(after(run(pair(), "n1", "1"), AgentLost(T, "n1")), 900).domain("n1"), "a configured one stays"


def test_a_domain_with_jobs_keeps_its_kind_until_a_reload_without_them() -> None:
    h = run(pair(), "n1", "1")
    event = with_changed(h, "n1", kind=Kind.SERVICE)
    h, decisions = handle(h, event)
    assert get(h, "n1").kind is Kind.NORMAL
    assert "n1 kept: of kind normal, not service" in said(decisions)[0]
    assert get(after(release(h, "n1", "1"), event), "n1").kind is Kind.SERVICE


@pytest.mark.parametrize("facts", ["priority frozen", "priority saving", "priority restoring"])
def test_a_domain_that_is_saved_to_disk_stays_a_priority_domain(facts: str) -> None:
    h = pair(p1=facts)
    h, decisions = handle(h, with_changed(h, "p1", kind=Kind.NORMAL))
    assert get(h, "p1").kind is Kind.PRIORITY
    assert "p1 kept: of kind priority" in said(decisions)[0]


def test_a_domain_of_another_kind_does_not_linger_or_go_down_as_the_old_one_would() -> None:
    h = pair(p1="priority lingering=8")
    h = after(h, with_changed(h, "p1", kind=Kind.NORMAL))
    assert (get(h, "p1").linger_until, get(h, "p1").linger_size) == (None, Amount(0, 0))
    assert state(h, "n1") == "free"


def test_a_shorter_time_limit_ends_at_once_what_has_lasted_longer() -> None:
    h = claim(pair(), "n1", "1").host
    h = later(h, 30)
    short = replace(as_it_is(h), limits=Limits(claim_s=20))
    h, decisions = handle(h, short)
    assert told(decisions, "expired") == ["1"]
    assert not get(h, "n1").jobs


def test_a_host_that_becomes_exclusive_stops_jobs_beside_a_priority_job() -> None:
    h = run(run(host("counted", n1="normal", p1="priority"), "n1", "1"), "p1", "9")
    h = after(h, as_it_is(h, mode=Mode.EXCLUSIVE))
    assert stopped(h) == wanted(h) == {"1"}


def test_facts_of_a_host_of_another_name_become_those_of_the_configured_one() -> None:
    h = run(pair(), "n1", "1")
    new, decisions = handle(h, as_it_is(h, host="h2"))
    assert new == replace(h, name="h2")
    assert "renamed: the facts were those of host h1" in said(decisions)[0]


def test_moms_list_of_a_domain_that_was_forgotten_is_refused() -> None:
    h = pair()
    h = after(h, without(h, "n1"))
    assert listed(h, "n1", "1") == h
