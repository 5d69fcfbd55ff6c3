"""Exclusive hosts: one domain at a time (docs/rules.md, "Exclusive hosts")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import states
from magrathea.core.model import Limits, State, StoppedBy

from .builders import (
    HIGH,
    LOW,
    OLD_S,
    PROTECTED,
    T,
    accepts,
    after,
    claim,
    get_job,
    go_on,
    host,
    job_ids,
    later,
    launch,
    release,
    run,
    set_domain,
    state,
    stop,
    stopped,
    wanted,
)


def test_a_sibling_with_jobs_blocks_a_normal_domain() -> None:
    h = run(host("exclusive", n1="normal", n2="normal"), "n1", "1")
    assert state(h, "n2") is State.OCCUPIED
    assert claim(h, "n2", "2").code == "host-busy"


def test_a_sibling_with_only_stopped_jobs_also_blocks_a_normal_domain() -> None:
    h = stop(run(host("exclusive", n1="normal", n2="normal", p1="priority"), "n1", "1"), "n1", "1")
    assert state(h, "n2") is State.OCCUPIED
    assert claim(h, "n2", "2").code == "host-busy"


def test_a_sibling_with_only_jobs_stopped_by_us_does_not_block_a_priority_domain() -> None:
    h = stop(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "n1", "1")
    assert state(h, "p1") is State.FREE
    assert claim(h, "p1", "9").ok


def test_a_sibling_with_jobs_stopped_by_pbs_blocks_a_priority_domain() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1", stopped_since=T - 9, stopper=StoppedBy.PBS)
    assert state(h, "p1") is State.OCCUPIED
    assert claim(h, "p1", "9").code == "host-busy"


def test_an_unknown_sibling_without_jobs_blocks_nobody() -> None:
    h = host("exclusive", n1="normal", n2="normal unknown", p1="priority")
    assert state(h, "n1") is State.FREE
    assert state(h, "p1") is State.FREE


def test_an_unknown_sibling_with_jobs_blocks_everybody_and_is_not_preempted() -> None:
    h = run(host("exclusive", n1="normal", n2="normal unknown", p1="priority"), "n2", "1")
    assert state(h, "n1") is State.OCCUPIED
    assert state(h, "p1") is State.OCCUPIED
    assert claim(h, "p1", "9").code == "host-busy"


def test_the_stopped_jobs_of_an_unknown_sibling_count_as_stopped() -> None:
    h = stop(run(host("exclusive", n2="normal unknown", p1="priority"), "n2", "1"), "n2", "1")
    assert state(h, "p1") is State.FREE


def test_a_service_blocks_nobody() -> None:
    h = host("exclusive", n1="normal", s1="service cpus=2")
    assert state(h, "n1") is State.FREE
    assert claim(h, "n1", "1", cpus=6).ok


def test_another_job_may_join_a_running_domain() -> None:
    h = run(host("exclusive", n1="normal", n2="normal"), "n1", "1", cpus=2)
    h = claim(h, "n1", "2", cls=PROTECTED, cpus=2).host
    assert job_ids(h, "n1") == {"1", "2"}


def test_every_domain_is_free_again_after_the_last_job() -> None:
    h = run(host("exclusive", n1="normal", n2="normal", p1="priority"), "n1", "1")
    h = release(h, "n1", "1")
    assert [state(h, d) for d in ("n1", "n2", "p1")] == [State.FREE] * 3


def test_a_priority_domain_would_preempt_if_every_blocker_is_stoppable() -> None:
    h = run(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "n1", "2")
    assert state(h, "p1") is State.WOULD_PREEMPT
    assert accepts(h, "p1") == {HIGH}


def test_a_priority_claim_stops_every_job_of_every_blocker() -> None:
    # only a restore or an adopted list leads to two running normal domains, not claims
    h = run(run(run(host("exclusive", n1="normal", n2="normal", p1="priority"), "n1", "1"), "n1", "2"), "n2", "3")
    answer = claim(h, "p1", "9")
    assert answer.ok
    assert answer.victims == ("n1", "n2")
    assert stopped(answer.host) == wanted(answer.host) == {"1", "2", "3"}
    job = get_job(answer.host, "n1", "1")
    assert (job.stopped_since, job.stopper, job.booked) == (T, StoppedBy.US, False)


def test_the_other_domains_of_a_host_are_occupied_while_a_priority_job_runs() -> None:
    h = run(host("exclusive", n1="normal", n2="normal", p1="priority", p2="priority"), "p1", "9")
    assert state(h, "n1") is State.OCCUPIED
    assert state(h, "p2") is State.OCCUPIED
    assert claim(h, "p2", "8").code == "host-busy"


@pytest.mark.parametrize("cls", [PROTECTED])
def test_one_job_that_cannot_be_stopped_protects_its_whole_domain(cls: object) -> None:
    h = run(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "n1", "2", cls=PROTECTED)
    assert state(h, "p1") is State.OCCUPIED
    refused = claim(h, "p1", "9")
    assert refused.code == "host-busy"
    assert stopped(refused.host) == set()


def test_one_blocker_that_cannot_be_stopped_saves_the_others_too() -> None:
    h = run(run(host("exclusive", n1="normal", n2="normal", p1="priority"), "n1", "1"), "n2", "2", cls=PROTECTED)
    assert claim(h, "p1", "9").code == "host-busy"
    assert stopped(claim(h, "p1", "9").host) == set()


def test_a_preempted_domain_resumes_when_the_priority_job_ends() -> None:
    h = claim(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "p1", "9").host
    h = launch(h, "p1", "9")
    assert wanted(later(h, 500)) == {"1"}
    h = release(later(h, 500), "p1", "9")
    assert wanted(h) == set()
    assert state(h, "n1") is State.PREEMPTED, "until it really runs again"
    h = go_on(h, "n1", "1")
    assert stopped(h) == set()
    assert state(later(h, 6), "n1") is State.RUNNING_PREEMPTIBLE


def test_it_stays_stopped_until_the_last_priority_job_of_any_domain_ends() -> None:
    h = stop(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "n1", "1")
    h = run(run(h, "p1", "8"), "p1", "9")
    h = release(h, "p1", "8")
    assert wanted(h) == {"1"}
    assert wanted(release(h, "p1", "9")) == set()


def test_a_preempted_job_may_end() -> None:
    h = claim(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "p1", "9").host
    h = release(h, "n1", "1")
    assert job_ids(h, "n1") == set()
    assert state(h, "n1") is State.OCCUPIED


def test_an_expired_claim_leads_back_without_undo_code() -> None:
    h = claim(run(host("exclusive", n1="normal", p1="priority"), "n1", "1"), "p1", "9").host
    h = later(h, 61)
    assert job_ids(h, "p1") == set()
    assert wanted(h) == set()


def test_while_a_priority_domain_lingers_normal_domains_are_occupied_and_priority_ones_are_not_kept_out() -> None:
    h = host("exclusive", n1="normal", p1="priority lingering", p2="priority")
    assert state(h, "n1") is State.OCCUPIED
    assert claim(h, "n1", "1").code == "host-lingers"
    assert state(h, "p1") is state(h, "p2") is State.FREE
    assert claim(h, "p2", "9").ok
    assert state(later(h, 31), "n1") is State.FREE


def test_a_preempted_domain_stays_stopped_while_a_priority_domain_lingers() -> None:
    h = stop(run(host("exclusive", n1="normal", p1="priority lingering"), "n1", "1"), "n1", "1")
    assert wanted(h) == {"1"}
    assert wanted(later(h, 31)) == set()


def test_with_a_frozen_sibling_a_normal_domain_accepts_only_preemptible_jobs() -> None:
    h = host("exclusive", n1="normal", p1="priority frozen")
    assert state(h, "n1") is State.FREE
    assert accepts(h, "n1") == {LOW}
    assert claim(h, "n1", "1", cls=PROTECTED).code == "host-reserved"
    assert claim(h, "n1", "1", cls=LOW).ok
    running = run(h, "n1", "1")
    assert accepts(running, "n1") == {LOW}
    assert claim(running, "n1", "2", cls=PROTECTED).code == "host-reserved"


def test_a_priority_domain_does_not_care_about_a_frozen_sibling() -> None:
    h = host("exclusive", n1="normal", p1="priority frozen", p2="priority")
    assert accepts(h, "p2") == {HIGH}
    assert claim(h, "p2", "9").ok


def test_the_floor_of_a_blocker_must_fit() -> None:
    # 1,000 MiB; the normal domain needs at least 900, which leaves too little for a job of 200
    h = run(host("exclusive", memory=1_000, n1="normal floor=900", p1="priority floor=50"), "n1", "1")
    assert claim(h, "p1", "9", memory=200).code == "memory"
    assert stopped(claim(h, "p1", "9", memory=200).host) == set()


def test_a_domains_own_floor_is_no_jobs() -> None:
    """Guest, MoM and agent need it: a job of all the memory would never get what it asked for."""
    h = host("exclusive", memory=1_000, n1="normal floor=100", p1="priority floor=50")
    assert claim(h, "p1", "9", memory=850).ok
    assert claim(h, "p1", "9", memory=851).code == "memory"
    p1 = h.domain("p1")
    assert p1 is not None
    assert states.published(h, p1).mib == 850, "and PBS sends none"


def test_blockers_are_not_preempted_if_their_floors_leave_no_room_for_the_domain() -> None:
    h = run(host("exclusive", memory=1_000, n1="normal floor=900", p1="priority floor=200"), "n1", "1")
    assert state(h, "p1") is State.OCCUPIED
    assert claim(h, "p1", "9").code == "memory"


def test_a_repeated_preemption_counts_each_time() -> None:
    h = run(host("exclusive", n1="normal", p1="priority", limits=Limits(min_run_s=5)), "n1", "1")
    for turn in range(3):
        h = claim(h, "p1", f"9{turn}").host
        assert get_job(h, "n1", "1").preemptions == turn + 1
        h = go_on(release(later(h, 10), "p1", f"9{turn}"), "n1", "1")
        h = later(h, 10)
    assert get_job(h, "n1", "1").preempted_s == pytest.approx(30)


def test_the_same_facts_give_the_same_answer_whatever_came_before() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1")
    went_round = go_on(release(claim(h, "p1", "9").host, "p1", "9"), "n1", "1")
    went_round = later(went_round, OLD_S)
    fresh = run(replace(host("exclusive", n1="normal", p1="priority"), now=T + OLD_S), "n1", "1")
    for h in (went_round, fresh):
        assert state(h, "p1") is State.WOULD_PREEMPT
    assert after(went_round) == went_round


def test_a_domain_that_is_down_does_not_block() -> None:
    h = host("exclusive", n1="normal", n2="normal down", p1="priority down")
    assert state(h, "n1") is State.FREE


def test_a_lingering_that_has_run_out_is_nothing() -> None:
    h = set_domain(host("exclusive", n1="normal", p1="priority"), "p1", linger_until=T - 1)
    assert state(later(h, 0), "n1") is State.FREE
