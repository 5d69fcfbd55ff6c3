"""Boot, shutdown, reboot, pauses by others: the facts, what the hypervisor reports, and the next step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import states
from magrathea.core.events import (
    AgentConnected,
    BootRequested,
    DomainBooting,
    DomainEvent,
    DomainHalted,
    DomainStarted,
    DomainStopped,
    DomainWentOn,
    DrainEnded,
    FreezeEnded,
    FreezeRequested,
    ImageLost,
    PauseRequested,
    ShutdownRequested,
    TimerFired,
)
from magrathea.core.life import Boot, GoOn, LifeStep, PowerOff, Register, Save, Seen, learned, step
from magrathea.core.machine import handle
from magrathea.core.model import Host, Lifecycle, Limits, Patience, State
from magrathea.core.plan import ActualDomain, Orders, steps
from magrathea.core.stopping import wanted_stopped

from .builders import (
    LOW,
    PROTECTED,
    T,
    accepts,
    after,
    ask,
    claim,
    defrost,
    get,
    host,
    job_ids,
    key,
    later,
    listed,
    release,
    run,
    set_domain,
    state,
    told,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])
DRAIN, IDLE, NOW = Patience.DRAIN, Patience.IDLE, Patience.NOW


def why(h: Host, domain: str) -> str:
    return states.why(h, get(h, domain))


def shutdown(h: Host, domain: str, patience: Patience = DRAIN, *, reboot: bool = False) -> Host:
    return ask(h, ShutdownRequested(h.now, domain, reboot, patience)).host


# Boot


@both
def test_a_boot_asked_for_boots_within_the_domains_own_limit(mode: str) -> None:
    h = set_domain(host(mode, n1="normal down", n2="normal"), "n1", boot_limit_s=20.0)
    answer = ask(h, BootRequested(T, "n1"))
    assert answer.ok and state(answer.host, "n1") is State.BOOTING
    assert accepts(answer.host, "n2") == set(), "while a domain boots nobody on its host accepts"
    h, decisions = handle(answer.host, TimerFired(T + 20))
    assert state(h, "n1") is State.DOWN and told(decisions, "boot-failed") == ["n1"]
    assert "did not register" in why(h, "n1")
    assert accepts(h, "n2") == {LOW, PROTECTED}


@both
def test_a_repeated_boot_or_a_boot_of_a_domain_that_is_up_changes_nothing(mode: str) -> None:
    h = host(mode, n1="normal down", n2="normal")
    booting = ask(h, BootRequested(T, "n1")).host
    assert ask(booting, BootRequested(T, "n1")).host == booting
    assert ask(h, BootRequested(T, "n2")).ok and ask(h, BootRequested(T, "n2")).host == h


@both
def test_why_it_is_down_is_forgotten_when_it_boots(mode: str) -> None:
    h = after(host(mode, n1="normal"), DomainStopped(T, "n1", "QEMU was killed"))
    assert why(h, "n1") == "n1 is down: QEMU was killed"
    assert get(ask(h, BootRequested(T, "n1")).host, "n1").down_why == ""


@both
@pytest.mark.parametrize(
    ("text", "event", "code"),
    [
        ("priority frozen", BootRequested(T, "d1"), "domain-frozen"),
        ("priority frozen", ShutdownRequested(T, "d1"), "domain-frozen"),
        ("priority saving", ShutdownRequested(T, "d1"), "domain-frozen"),
        ("service cpus=1", BootRequested(T, "d1"), "wrong-kind"),
        ("service cpus=1", ShutdownRequested(T, "d1"), "wrong-kind"),
    ],
)
def test_impossible_boots_and_shutdowns_are_refused(mode: str, text: str, event: DomainEvent, code: str) -> None:
    h = host(mode, d1=text, n1="normal")
    assert ask(h, event).code == code
    assert ask(h, event).host == h


@both
@pytest.mark.parametrize("event", [BootRequested(T, "p1"), ShutdownRequested(T, "p1"), FreezeRequested(T, "p1")])
def test_on_a_paused_host_no_domains_life_is_changed(mode: str, event: DomainEvent) -> None:
    h = after(host(mode, p1="priority"), PauseRequested(T, "maintenance"))
    assert ask(h, event).code == "paused"


# Shutdown and reboot


@both
def test_a_shutdown_drains_first(mode: str) -> None:
    h = shutdown(run(host(mode, n1="normal"), "n1", "1"), "n1")
    assert state(h, "n1") is State.DRAINING and why(h, "n1") == "to be shut down"
    assert claim(h, "n1", "2").code == "domain-draining"
    assert not get(h, "n1").must_go_down
    h = release(h, "n1", "1")
    assert get(h, "n1").must_go_down
    h = after(h, DomainStopped(T, "n1"))
    assert state(h, "n1") is State.DOWN and why(h, "n1") == "n1 is down: it was shut down on request"
    assert get(h, "n1").closing is None


@both
def test_a_shutdown_now_waits_for_no_job_and_takes_none(mode: str) -> None:
    h = shutdown(run(host(mode, n1="normal"), "n1", "1"), "n1", NOW)
    assert get(h, "n1").must_go_down and job_ids(h, "n1") == {"1"}
    assert claim(h, "n1", "2").code == "domain-draining"
    h, decisions = handle(h, DomainStopped(T, "n1"))
    assert told(decisions, "domain-down") == ["1"]


@both
def test_a_shutdown_when_idle_lets_jobs_in_until_there_is_none(mode: str) -> None:
    h = shutdown(run(host(mode, n1="normal"), "n1", "1"), "n1", IDLE)
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE
    h = release(claim(h, "n1", "2").host, "n1", "1")
    assert not get(h, "n1").must_go_down
    h = release(h, "n1", "2")
    assert get(h, "n1").must_go_down
    assert claim(h, "n1", "3").code == "domain-draining", "no job slips in between"


@both
def test_a_shutdown_may_be_made_more_urgent_or_given_up(mode: str) -> None:
    h = shutdown(run(host(mode, n1="normal"), "n1", "1"), "n1")
    assert get(shutdown(h, "n1", NOW), "n1").must_go_down
    given_up = after(h, DrainEnded(T, "n1"))
    assert get(given_up, "n1").closing is None
    assert claim(given_up, "n1", "2").ok


@both
def test_a_reboot_goes_down_and_boots(mode: str) -> None:
    h = shutdown(host(mode, n1="normal"), "n1", reboot=True)
    assert why(h, "n1") == "to be rebooted"
    h = after(h, DomainStopped(T + 5, "n1"))
    assert state(h, "n1") is State.BOOTING and get(h, "n1").closing is None
    assert get(h, "n1").boot_until == T + 5 + get(h, "n1").boot_limit_s
    assert state(after(h, DomainStopped(T + 6, "n1", "panicked")), "n1") is State.DOWN, "once"


@both
def test_a_domain_that_is_about_to_go_down_is_neither_booted_nor_frozen(mode: str) -> None:
    h = shutdown(run(host(mode, p1="priority"), "p1", "9"), "p1")
    assert ask(h, BootRequested(T, "p1")).code == "domain-closing"
    assert ask(h, FreezeRequested(T, "p1")).code == "domain-closing"


@both
def test_a_shutdown_leaves_no_lingering(mode: str) -> None:
    h = shutdown(run(host(mode, p1="priority", limits=Limits(linger_s=30)), "p1", "9"), "p1")
    assert get(release(h, "p1", "9"), "p1").linger_until is None


@both
def test_a_domain_that_drained_for_an_admin_drains_on_when_it_is_back_from_disk(mode: str) -> None:
    h = after(host(mode, p1="priority draining"), FreezeRequested(T, "p1"), FreezeEnded(T, "p1"))
    assert state(h, "p1") is State.FROZEN
    h = after(defrost(h, "p1").host, DomainStarted(T, "p1"), AgentConnected(T, "p1"))
    assert state(h, "p1") is State.DRAINING and why(h, "p1") == "maintenance"


@both
def test_a_failed_restore_is_shown_in_the_domains_reason(mode: str) -> None:
    h = defrost(host(mode, p1="priority frozen cpus=4"), "p1").host
    failed = after(h, DomainStopped(T + 2, "p1", "its restore failed: no such file; its image is kept"))
    assert state(failed, "p1") is State.FROZEN
    assert "its image is kept" in why(failed, "p1")
    assert "its image is kept" in why(later(h, 301), "p1")
    assert get(defrost(failed, "p1").host, "p1").down_why == "", "it is tried anew"


# Paused by others


@both
def test_a_domain_paused_by_others_is_unknown_its_jobs_are_kept_and_not_stoppable(mode: str) -> None:
    h = after(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4), DomainHalted(T, "n1"))
    assert state(h, "n1") is State.UNKNOWN and job_ids(h, "n1") == {"1"}
    assert "paused by somebody else" in why(h, "n1")
    assert claim(h, "n1", "2").code == "domain-unknown"
    assert claim(h, "p1", "9").code in ("host-busy", "cpus")
    back = after(h, DomainWentOn(T + 5, "n1"))
    assert state(back, "n1") is State.RUNNING_PREEMPTIBLE
    assert claim(back, "p1", "9").victims == ("n1",)


def test_an_agent_that_is_away_gets_no_orders_and_all_of_them_when_it_is_back() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1")
    h = after(claim(h, "p1", "9").host, DomainHalted(T, "n1"))
    assert wanted_stopped(h) == {("n1", key("1"))}
    actual = {"n1": ActualDomain(), "p1": ActualDomain()}
    assert not [s for s in steps(h, actual) if isinstance(s, Orders)]
    told_then = [s for s in steps(after(h, DomainWentOn(T, "n1")), actual) if isinstance(s, Orders)]
    assert [s.keys for s in told_then] == [(key("1"),)]


@both
def test_only_domains_that_are_up_can_be_paused(mode: str) -> None:
    h = host(mode, n1="normal down")
    assert after(h, DomainHalted(T, "n1")) == h


# What the present state implies

UP, DOWN = Seen(up=True, was_up=True, agent=True), Seen(up=False, was_up=False)
FRESH = Seen(up=True, was_up=False)
"""The domain was down at the previous look."""


@pytest.mark.parametrize(
    ("text", "seen", "expected"),
    [
        ("priority", UP, None),
        ("priority", DOWN, DomainStopped),
        ("priority", replace(UP, paused_externally=True), DomainHalted),
        ("priority saving", replace(UP, paused_externally=True), None),
        ("priority saving", replace(DOWN, saved=True), FreezeEnded),
        ("priority saving", DOWN, DomainStopped),
        ("priority", replace(DOWN, saved=True), DomainStopped),
        ("priority booting", FRESH, None),
        ("priority booting", DOWN, None),
        ("priority booting", replace(DOWN, was_up=True), DomainStopped),
        ("priority booting", replace(FRESH, leads=False), DomainStarted),
        ("priority restoring", replace(DOWN, saved=True), None),
        ("priority restoring", DOWN, ImageLost),
        ("priority down", DOWN, None),
        ("priority down", FRESH, DomainBooting),
        ("priority down", replace(FRESH, agent=True), None),
        ("priority down", replace(FRESH, was_up=None), DomainStarted),
        ("priority down", replace(FRESH, was_up=True), None),
        ("priority down", replace(FRESH, leads=False), DomainStarted),
        ("priority down", replace(DOWN, leads=False), None),
        ("priority frozen", replace(DOWN, saved=True), None),
        ("priority frozen", DOWN, ImageLost),
        ("priority frozen", FRESH, DomainBooting),
        ("priority frozen", replace(FRESH, was_up=None), DomainBooting),
        ("priority frozen", replace(FRESH, was_up=None, agent=True), None),
        ("priority frozen", replace(FRESH, was_up=True), ImageLost),
    ],
)
def test_what_the_hypervisor_reports_becomes_events(text: str, seen: Seen, expected: type[DomainEvent] | None) -> None:
    h = host("exclusive", p1=text)
    event = learned(h, get(h, "p1"), seen)
    assert type(event) is (expected or type(None))
    if event is not None:
        once = after(h, event)
        again = learned(once, get(once, "p1"), seen)
        assert again is None or type(again) is not expected, "what was learned is known"


def test_the_end_of_a_pause_becomes_an_event() -> None:
    h = set_domain(host("exclusive", p1="priority"), "p1", paused_externally=True)
    assert type(learned(h, get(h, "p1"), UP)) is DomainWentOn


def test_a_reboot_of_a_domain_that_is_down_boots_it() -> None:
    h = shutdown(host("exclusive", n1="normal down"), "n1", reboot=True)
    event = learned(h, get(h, "n1"), DOWN)
    assert isinstance(event, DomainStopped)
    assert get(after(h, event), "n1").lifecycle is Lifecycle.BOOTING


# The next step


@pytest.mark.parametrize(
    ("text", "seen", "expected"),
    [
        ("priority", UP, None),
        ("priority booting", DOWN, Boot),
        ("priority booting", FRESH, None),
        ("priority booting", UP, Register),
        ("priority booting", replace(DOWN, leads=False), None),
        ("priority restoring", replace(DOWN, saved=True), Boot),
        ("priority restoring", replace(FRESH, paused_externally=True), GoOn),
        ("priority down", UP, Register),
        ("priority down", DOWN, None),
        ("priority saving", UP, Save),
        ("priority saving", replace(UP, agent=False), Save),
        ("priority frozen", replace(DOWN, saved=True), None),
        ("priority frozen", replace(UP, was_up=None), Register),
    ],
)
def test_the_next_step(text: str, seen: Seen, expected: type[LifeStep] | None) -> None:
    h = host("exclusive", p1=text)
    assert type(step(h, get(h, "p1"), seen)) is (expected or type(None))
    paused = after(h, PauseRequested(T, "maintenance"))
    still = expected if expected is Register else None
    assert type(step(paused, get(paused, "p1"), seen)) is (still or type(None)), "a paused host only looks"


@pytest.mark.parametrize(("patience", "expected"), [(DRAIN, None), (IDLE, None), (NOW, PowerOff)])
def test_power_goes_off_when_nothing_is_waited_for(patience: Patience, expected: type[LifeStep] | None) -> None:
    h = shutdown(run(host("exclusive", n1="normal"), "n1", "1"), "n1", patience)
    assert type(step(h, get(h, "n1"), UP)) is (expected or type(None))
    h = release(h, "n1", "1")
    assert type(step(h, get(h, "n1"), UP)) is PowerOff
    assert step(h, get(h, "n1"), DOWN) is None


def test_nothing_is_saved_while_it_has_jobs() -> None:
    h = after(run(host("exclusive", p1="priority"), "p1", "9"), FreezeRequested(T, "p1"))
    assert step(h, get(h, "p1"), UP) is None
    h = release(h, "p1", "9")
    assert type(step(h, get(h, "p1"), UP)) is Save


def test_a_boot_past_its_limit_that_is_to_go_down_is_ended() -> None:
    """The fact is down, but its machine runs: a shutdown nevertheless ends it."""
    h = shutdown(later(host("exclusive", n1="normal booting"), 301), "n1")
    seen = Seen(up=True, was_up=True)
    assert learned(h, get(h, "n1"), seen) is None
    assert type(step(h, get(h, "n1"), seen)) is PowerOff
    event = learned(h, get(h, "n1"), replace(seen, up=False))
    assert isinstance(event, DomainStopped) and get(after(h, event), "n1").closing is None


def test_a_job_that_comes_back_with_its_domain_from_an_image_is_found_again_at_once() -> None:
    h = after(run(host("exclusive", n1="normal"), "n1", "1"), DomainStopped(T, "n1", "saved by somebody"))
    h = after(h, BootRequested(T, "n1"), DomainStarted(T + 1, "n1"), AgentConnected(T + 1, "n1"))
    assert job_ids(listed(h, "n1", "1"), "n1") == {"1"}
