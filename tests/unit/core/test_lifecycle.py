"""Domains start and end; freezing, draining, faults, agents and the hub."""

from __future__ import annotations

import pytest

from magrathea.core.events import (
    AgentConnected,
    AgentLost,
    DomainBooting,
    DomainStarted,
    DomainStopped,
    DrainEnded,
    DrainRequested,
    FaultCleared,
    Faulted,
    FreezeEnded,
    FreezeRequested,
    HubFound,
    HubLost,
    ImageLost,
    TimerFired,
)
from magrathea.core.machine import handle
from magrathea.core.model import Lifecycle, Limits, State

from .builders import (
    HIGH,
    LOW,
    PROTECTED,
    T,
    accepts,
    after,
    claim,
    defrost,
    get,
    host,
    job_ids,
    later,
    launch,
    listed,
    release,
    run,
    state,
    stop,
    stopped,
    told,
    wanted,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


@both
def test_going_down_releases_its_jobs(mode: str) -> None:
    h = run(run(host(mode, n1="normal", n2="normal"), "n1", "1"), "n1", "2")
    h, decisions = handle(h, DomainStopped(T, "n1"))
    assert job_ids(h, "n1") == set()
    assert sorted(told(decisions, "domain-down")) == ["1", "2"]
    assert state(h, "n1") is State.DOWN
    assert state(h, "n2") is State.FREE


@both
def test_a_domain_boots_starts_and_takes_jobs_once_its_agent_is_there(mode: str) -> None:
    h = host(mode, n1="normal down")
    h = after(h, DomainBooting(T, "n1", T + 300))
    assert state(h, "n1") is State.BOOTING
    h = after(h, DomainStarted(T + 20, "n1"))
    assert get(h, "n1").lifecycle is Lifecycle.UP
    h = after(h, AgentConnected(T + 21, "n1"))
    assert state(h, "n1") is State.FREE
    assert accepts(h, "n1") == {LOW, PROTECTED}


@both
def test_a_started_domain_without_an_agent_is_unknown_after_its_grace(mode: str) -> None:
    h = after(host(mode, n1="normal down"), DomainBooting(T, "n1", T + 300), DomainStarted(T + 20, "n1"))
    assert state(later(h, 10), "n1") is not State.UNKNOWN
    assert state(later(h, 31), "n1") is State.UNKNOWN


@both
def test_a_boot_that_takes_longer_than_its_limit_is_down_again(mode: str) -> None:
    h = after(host(mode, n1="normal down", n2="normal"), DomainBooting(T, "n1", T + 300))
    assert accepts(h, "n2") == set()
    h, decisions = handle(h, TimerFired(T + 301))
    assert state(h, "n1") is State.DOWN
    assert accepts(h, "n2") == {LOW, PROTECTED}
    assert told(decisions, "boot-failed") == ["n1"]


@both
def test_an_agent_that_comes_back_within_the_grace_time_changes_nothing(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1")
    back = after(h, AgentLost(T, "n1"), AgentConnected(T, "n1"))
    assert back == h


@both
def test_a_domain_without_a_connected_agent_is_not_stoppable(mode: str) -> None:
    h = run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4)
    h = after(h, AgentLost(T, "n1"))
    assert state(h, "p1") is State.OCCUPIED
    assert claim(h, "p1", "9").code in ("host-busy", "cpus")


@both
def test_an_unknown_domain_keeps_its_jobs_and_is_itself_again_with_its_agent(mode: str) -> None:
    h = run(host(mode, n1="normal"), "n1", "1")
    h = later(after(h, AgentLost(T, "n1")), 3_600)
    assert state(h, "n1") is State.UNKNOWN
    assert job_ids(h, "n1") == {"1"}
    assert state(after(h, AgentConnected(h.now, "n1")), "n1") is State.RUNNING_PREEMPTIBLE


@both
def test_an_agent_may_connect_before_the_driver_sees_its_domain_up(mode: str) -> None:
    h = host(mode, n1="normal down")
    one = after(h, AgentConnected(T, "n1"), DomainStarted(T, "n1"))
    assert one == after(h, DomainStarted(T, "n1"), AgentConnected(T, "n1"))
    assert state(one, "n1") is State.FREE


@both
def test_a_second_loss_of_the_agent_does_not_restart_the_grace_time(mode: str) -> None:
    h = after(host(mode, n1="normal"), AgentLost(T, "n1"), AgentLost(T + 20, "n1"))
    assert state(later(h, 15), "n1") is State.UNKNOWN


@both
def test_draining_finishes_its_jobs_and_takes_no_more(mode: str) -> None:
    h = after(run(host(mode, n1="normal", n2="normal"), "n1", "1"), DrainRequested(T, "n1", "maintenance"))
    assert state(h, "n1") is State.DRAINING
    assert claim(h, "n1", "2").code == "domain-draining"
    assert job_ids(h, "n1") == {"1"}
    h = after(h, DrainEnded(T, "n1"))
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE


@both
def test_a_draining_domain_may_be_preempted(mode: str) -> None:
    h = run(host(mode, cpus=4, n1="normal draining", p1="priority"), "n1", "1", cpus=4)
    answer = claim(h, "p1", "9")
    assert answer.ok and answer.victims == ("n1",)
    assert state(answer.host, "n1") is State.PREEMPTED


@both
def test_a_drain_leaves_no_lingering(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority draining", limits=Limits(linger_s=30)), "p1", "9")
    assert get(release(h, "p1", "9"), "p1").linger_until is None


@both
def test_a_fault_ends_when_it_is_cleared(mode: str) -> None:
    h = after(host(mode, n1="normal", n2="normal"), Faulted(T, "n1", "cannot set CPUs"))
    assert state(h, "n1") is State.FAULT
    assert accepts(h, "n2") == set()
    h = after(h, FaultCleared(T, "n1"))
    assert [state(h, d) for d in ("n1", "n2")] == [State.FREE, State.FREE]


@both
def test_freezing_finishes_the_jobs_first(mode: str) -> None:
    h = after(run(host(mode, n1="normal", p1="priority"), "p1", "9"), FreezeRequested(T, "p1"))
    assert state(h, "p1") is State.DRAINING
    assert claim(h, "p1", "8").code == "domain-draining"
    h = release(h, "p1", "9")
    assert state(h, "p1") is State.DRAINING, "until it is saved"
    h = after(h, FreezeEnded(T, "p1"))
    assert state(h, "p1") is State.FROZEN


@both
def test_a_freeze_that_failed_leaves_the_domain_as_it_was(mode: str) -> None:
    h = host(mode, n1="normal", p1="priority")
    assert after(h, FreezeRequested(T, "p1"), FreezeEnded(T, "p1", failed="disk full")) == h


@both
def test_a_boot_ends_the_saving(mode: str) -> None:
    """The domain went down and up again while it was being saved: the image is older than what runs now."""
    saving = after(host(mode, n1="normal", p1="priority"), FreezeRequested(T, "p1"))
    h = after(saving, DomainBooting(T + 1, "p1", T + 300), FreezeEnded(T + 2, "p1"))
    assert state(h, "p1") is State.BOOTING
    assert not get(h, "p1").saving and not get(h, "p1").frozen
    assert get(later(h, 300), "p1").lifecycle is Lifecycle.DOWN, "no boot for ever"
    assert get(after(h, DomainStarted(T + 3, "p1")), "p1").lifecycle is Lifecycle.UP


@both
@pytest.mark.parametrize("text", ["normal", "normal down", "priority down", "priority frozen", "service cpus=1"])
def test_impossible_freezes_are_refused(mode: str, text: str) -> None:
    h = host(mode, n1=text)
    assert after(h, FreezeRequested(T, "n1")) == h


@both
def test_frozen_is_cleared_when_the_restore_succeeds(mode: str) -> None:
    h = defrost(host(mode, n1="normal", p1="priority frozen cpus=4"), "p1").host
    assert state(h, "p1") is State.BOOTING
    assert get(h, "p1").frozen, "until it has worked"
    h = after(h, DomainStarted(T + 3, "p1"), AgentConnected(T + 3, "p1"))
    assert state(h, "p1") is State.FREE
    assert not get(h, "p1").frozen


@both
def test_a_restore_that_fails_leaves_it_frozen(mode: str) -> None:
    h = defrost(host(mode, n1="normal", p1="priority frozen cpus=4"), "p1").host
    for failed in (later(h, 301), after(h, DomainStopped(T + 9, "p1"))):
        assert state(failed, "p1") is State.FROZEN
        assert get(failed, "p1").lifecycle is Lifecycle.DOWN


@both
def test_frozen_is_cleared_when_the_image_is_gone(mode: str) -> None:
    h = after(host(mode, n1="normal", p1="priority frozen"), ImageLost(T, "p1"))
    assert state(h, "p1") is State.DOWN
    assert accepts(h, "n1") == {LOW, PROTECTED}


def test_a_restore_preempts_the_borrowers() -> None:
    h = run(host("counted", n1="normal", p1="priority frozen cpus=4"), "n1", "1", cpus=8)
    answer = defrost(h, "p1")
    assert answer.ok and answer.victims == ("n1",)
    assert wanted(answer.host) == {"1"}
    assert wanted(later(answer.host, 60)) == {"1"}, "as long as the restore takes"
    assert wanted(later(answer.host, 301)) == set(), "it failed"


def test_a_restore_resumes_nobody_until_it_is_over() -> None:
    h = host("counted", cpus=4, n1="normal", n2="normal", p1="priority", p2="priority frozen cpus=2")
    h = run(run(stop(run(h, "n1", "1"), "n1", "1"), "n2", "2", cpus=3), "p1", "9")
    answer = defrost(h, "p2")
    assert answer.victims == ("n2",), "which has one CPU more than is needed"
    assert wanted(answer.host) == {"1", "2"}
    assert wanted(after(answer.host, DomainStarted(T + 3, "p2"))) == {"2"}
    assert wanted(later(answer.host, 301)) == {"2"}, "it failed"


def test_a_restore_that_takes_the_free_cpus_lets_no_smaller_domain_pass() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority frozen cpus=4")
    h = run(run(h, "n1", "1", cpus=6), "n2", "2", cpus=4)
    h = stop(stop(h, "n1", "1", since=200), "n2", "2", since=100)
    assert wanted(h) == {"2"}, "the longest preempted goes on"
    answer = defrost(h, "p1")
    assert answer.ok and answer.victims == ()
    assert wanted(answer.host) == {"1", "2"}, "what is left would do for the second, which is not its turn"
    assert wanted(later(answer.host, 301)) == {"2"}


def test_on_an_exclusive_host_a_restore_needs_no_cpus_and_the_first_claim_preempts() -> None:
    h = run(host("exclusive", n1="normal", p1="priority frozen"), "n1", "1", cpus=8)
    h = defrost(h, "p1").host
    assert stopped(h) == set()
    h = after(h, DomainStarted(T + 3, "p1"), AgentConnected(T + 3, "p1"))
    assert claim(h, "p1", "9").victims == ("n1",)


def test_a_restore_that_nobody_makes_room_for_is_refused() -> None:
    h = run(host("counted", n1="normal", p1="priority frozen cpus=4"), "n1", "1", cpus=8, cls=PROTECTED)
    answer = defrost(h, "p1")
    assert answer.code == "cpus"
    assert answer.host == h


@both
@pytest.mark.parametrize("text", ["priority", "priority down", "normal", "service cpus=1"])
def test_a_restore_of_a_domain_that_is_not_frozen_is_refused(mode: str, text: str) -> None:
    h = host(mode, n1=text)
    assert not defrost(h, "n1").ok
    assert defrost(h, "n1").host == h


@both
def test_a_repeated_restore_is_answered_like_the_first(mode: str) -> None:
    first = defrost(run(host(mode, n1="normal", p1="priority frozen cpus=4"), "n1", "1", cpus=8), "p1")
    again = defrost(first.host, "p1")
    assert again.ok
    assert again.host == first.host


def test_a_just_restored_domain_lingers_with_its_reserve() -> None:
    h = run(host("counted", n1="normal", p1="priority frozen cpus=4", limits=Limits(linger_s=30)), "n1", "1", cpus=8)
    h = defrost(h, "p1").host
    h = after(h, DomainStarted(T + 3, "p1"), AgentConnected(T + 3, "p1"))
    assert wanted(h) == {"1"}
    assert claim(h, "p1", "9", cpus=4).ok
    assert wanted(later(h, 31)) == set()


@both
def test_without_its_hub_a_node_daemon_starts_no_new_preemption(mode: str) -> None:
    h = run(host(mode, hub=False, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4)
    assert state(h, "p1") is State.OCCUPIED
    answer = claim(h, "p1", "9")
    assert answer.code == "hub-lost"
    assert stopped(answer.host) == set()
    assert claim(after(h, HubFound(T)), "p1", "9").ok


@both
def test_without_its_hub_everything_else_continues(mode: str) -> None:
    h = host(mode, hub=False, n1="normal", p1="priority")
    assert claim(h, "n1", "1").ok
    assert claim(h, "p1", "9").ok


def test_without_the_hub_only_claims_that_need_it_are_refused() -> None:
    h = run(host("counted", hub=False, cpus=8, n1="normal", n2="normal", p1="priority"), "n1", "1", cpus=3)
    h = run(h, "n2", "2", cpus=3, cls=PROTECTED)
    assert claim(h, "n2", "3", cpus=3).code == "cpus", "a normal job preempts nobody anyway"
    assert claim(h, "p1", "9", cpus=6).code == "cpus", "with a hub there would be 5"
    assert claim(h, "p1", "9", cpus=5).code == "hub-lost"


@both
def test_losing_the_hub_ends_no_preemption_under_way(mode: str) -> None:
    h = claim(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4), "p1", "9").host
    h = after(launch(h, "p1", "9"), HubLost(T))
    assert wanted(h) == {"1"}
    assert wanted(release(h, "p1", "9")) == set()


@both
@pytest.mark.parametrize(
    "event",
    [
        DomainBooting(T, "nowhere", T + 9),
        DomainBooting(T, "n3", T),
        DomainStarted(T, "nowhere"),
        DomainStopped(T, "nowhere"),
        AgentConnected(T, "nowhere"),
        AgentLost(T, "nowhere"),
        DrainRequested(T, "nowhere", "x"),
        DrainEnded(T, "nowhere"),
        Faulted(T, "nowhere", "x"),
        FaultCleared(T, "nowhere"),
        FreezeRequested(T, "nowhere"),
        FreezeEnded(T, "nowhere"),
        ImageLost(T, "nowhere"),
        FreezeEnded(T, "n1"),
        ImageLost(T, "p1"),
    ],
    ids=lambda e: f"{type(e).__name__}-{e.domain}",
)
def test_an_event_that_makes_no_sense_changes_nothing(mode: str, event: object) -> None:
    h = host(mode, n1="normal", n3="normal down", p1="priority")
    assert after(h, event) == h  # type: ignore[arg-type]


@both
def test_a_jobs_list_from_a_domain_that_boots_is_not_lost_when_it_is_up(mode: str) -> None:
    h = after(host(mode, n1="normal booting"), DomainStarted(T, "n1"), AgentConnected(T, "n1"))
    assert job_ids(listed(h, "n1", "5"), "n1") == {"5"}


@both
def test_a_priority_domain_that_goes_down_gives_everything_back(mode: str) -> None:
    h = claim(run(host(mode, cpus=4, n1="normal", p1="priority"), "n1", "1", cpus=4), "p1", "9").host
    h = after(launch(h, "p1", "9"), DomainStopped(T, "p1"))
    assert wanted(h) == set()
    assert state(h, "p1") is State.DOWN


@both
def test_going_down_ends_the_lingering(mode: str) -> None:
    h = after(host(mode, n1="normal", p1="priority lingering"), DomainStopped(T, "p1"))
    assert accepts(h, "n1") == {LOW, PROTECTED}


@both
def test_a_stopped_job_of_a_domain_that_goes_down_is_gone(mode: str) -> None:
    h = stop(run(run(host(mode, n1="normal", p1="priority"), "n1", "1"), "p1", "9"), "n1", "1")
    h = after(h, DomainStopped(T, "n1"))
    assert stopped(h) == wanted(h) == set()
    assert get(h, "n1").preempted_s == pytest.approx(100)


@both
def test_high_is_taken_by_any_of_several_priority_domains(mode: str) -> None:
    h = host(mode, n1="normal", p1="priority", p2="priority")
    for domain in ("p1", "p2"):
        assert accepts(h, domain) == {HIGH}
        assert claim(h, domain, "9").ok


@both
def test_a_boot_and_a_claim_may_run_out_of_time_at_the_same_moment(mode: str) -> None:
    h = claim(host(mode, n1="normal"), "n1", "1").host
    h = after(h, DomainBooting(T, "n1", T + h.limits.claim_s))
    h, decisions = handle(h, TimerFired(T + h.limits.claim_s))
    assert (get(h, "n1").lifecycle, job_ids(h, "n1")) == (Lifecycle.DOWN, set())
    assert told(decisions, "domain-down") == ["1"] and told(decisions, "expired") == []
