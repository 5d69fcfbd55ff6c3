"""Which jobs PBS is asked about although no claim waits for it, when, and what follows from the answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from magrathea.core.model import Host, JobKey, Lifecycle, Sleep, SleepCause
from node_daemon.claims.inquiries import (
    AGAIN_S,
    CHECK_S,
    CHECK_STOPPED_S,
    DENIED_S,
    DISTRUST_S,
    GIVEN_AGAIN_S,
    REMEMBER_S,
    UNKNOWN_MOST_S,
    UNKNOWN_S,
    YOUNG_S,
    Inquiries,
    Verdict,
)
from tests.unit.core.builders import HIGH, PROTECTED, T, get, host, key, run, set_domain, stop

MANY = 1000
GHOST = key("9")


def with_ghost(domain: str = "p1", **facts: object) -> Host:
    facts = {"given": False, "age": 100.0, **facts}
    return run(host("counted", n1="normal", n2="normal", p1="priority"), domain, "9", **facts)  # type: ignore[arg-type]


def asked_at(inquiries: Inquiries, h: Host, now: float, within_s: float = 2 * CHECK_S) -> float:
    """How long after `now` the job is asked about again."""
    at = inquiries.next_at(h)
    assert now <= at <= now + within_s
    assert inquiries.due(h, at - 0.01, MANY) == [] and inquiries.due(h, at, MANY) == [("p1", GHOST)]
    return at - now


def denied(inquiries: Inquiries, h: Host, now: float = T) -> float:
    """PBS says twice that it does not have the job. Returns when."""
    assert inquiries.answered(h, ("p1", GHOST), False, now) is Verdict.NOTHING
    now += asked_at(inquiries, h, now)
    assert inquiries.answered(h, ("p1", GHOST), False, now) is Verdict.DENIED
    return now


def test_a_job_that_nobody_was_asked_about_is_due_but_not_at_its_very_start() -> None:
    inquiries, h = Inquiries(), with_ghost(age=0.0, cls=HIGH)
    assert inquiries.due(h, T, MANY) == [("p1", GHOST)], "its domain may linger after it"
    h = with_ghost(age=0.0, cls=PROTECTED)
    assert asked_at(inquiries, h, T) == YOUNG_S
    assert inquiries.answered(h, ("p1", GHOST), True, T + YOUNG_S) is Verdict.GIVEN


def test_one_no_is_none() -> None:
    inquiries, h = Inquiries(), with_ghost()
    assert inquiries.answered(h, ("p1", GHOST), False, T) is Verdict.NOTHING
    assert asked_at(inquiries, h, T) == pytest.approx(AGAIN_S)
    assert inquiries.answered(h, ("p1", GHOST), True, T + AGAIN_S) is Verdict.GIVEN
    assert inquiries.answered(h, ("p1", GHOST), False, T + 5) is Verdict.NOTHING, "it is counted anew"
    assert inquiries.is_trusted(h, "p1", T + 5)


def test_a_silent_hub_is_no_no_and_is_asked_more_and_more_rarely() -> None:
    inquiries, h, now, pauses = Inquiries(), with_ghost(), T, []
    inquiries.answered(h, ("p1", GHOST), False, now)
    for _ in range(6):
        assert inquiries.answered(h, ("p1", GHOST), None, now) is Verdict.NOTHING
        pauses.append(asked_at(inquiries, h, now))
        now += pauses[-1]
    assert pauses == pytest.approx([UNKNOWN_S, 10, 20, 40, UNKNOWN_MOST_S, UNKNOWN_MOST_S])


@pytest.mark.parametrize(("siblings_stopped", "pause_s"), [(False, CHECK_S), (True, CHECK_STOPPED_S)])
def test_a_job_that_pbs_has_given_is_checked_and_more_often_while_siblings_are_stopped(
    siblings_stopped: bool, pause_s: float
) -> None:
    inquiries, h = Inquiries(), with_ghost(given=True, age=0.0)
    if siblings_stopped:
        h = stop(run(h, "n1", "1", age=0.0), "n1", "1")
        inquiries.answered(h, ("n1", key("1")), True, T + CHECK_S)
    assert asked_at(inquiries, h, T) == pause_s
    assert inquiries.answered(h, ("p1", GHOST), True, T + pause_s) is Verdict.GIVEN
    assert inquiries.answered(h, ("p1", GHOST), False, T + 2 * pause_s) is Verdict.NOTHING
    assert asked_at(inquiries, h, T + 2 * pause_s) == pytest.approx(GIVEN_AGAIN_S)
    assert inquiries.answered(h, ("p1", GHOST), False, T + 3 * pause_s) is Verdict.DENIED
    assert inquiries.is_trusted(h, "p1", T + 3 * pause_s), "a MoM that has lost an answer lists ended jobs, too"


def test_the_jobs_of_a_domain_that_sleeps_are_checked_as_often() -> None:
    """Nothing else tells that one was deleted."""
    inquiries, h = Inquiries(), with_ghost(given=True, age=0.0)
    h = set_domain(h, "p1", sleep=Sleep(T, "a new disk", SleepCause.ADMIN), lifecycle=Lifecycle.DOWN)
    assert asked_at(inquiries, h, T) == CHECK_STOPPED_S
    assert inquiries.answered(h, ("p1", GHOST), False, T + 10) is Verdict.NOTHING
    assert inquiries.answered(h, ("p1", GHOST), False, T + 20) is Verdict.DENIED


def test_what_pbs_has_denied_stays_out_as_long_as_it_is_listed_and_is_asked_about_now_and_then() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    h = set_domain(h, "p1", jobs=())
    for later_s in (0.0, REMEMBER_S, 10 * REMEMBER_S, 2 * DISTRUST_S):
        assert inquiries.left_out(h, "p1", [GHOST], now + later_s) == {GHOST}
    assert asked_at(inquiries, h, now) == pytest.approx(DENIED_S)
    assert inquiries.answered(h, ("p1", GHOST), True, now + DENIED_S) is Verdict.GIVEN
    assert inquiries.left_out(h, "p1", [GHOST], now + DENIED_S) == set(), "PBS has changed its mind"


def test_what_is_no_longer_listed_is_forgotten_after_a_while() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    h = set_domain(h, "p1", jobs=())
    assert inquiries.left_out(h, "p1", [], now + REMEMBER_S - 1) == set()
    assert inquiries.left_out(h, "p1", [GHOST], now + REMEMBER_S - 1) == {GHOST}
    assert inquiries.left_out(h, "p1", [], now + REMEMBER_S + 1) == set()
    assert inquiries.next_at(h) == math.inf


def test_new_jobs_of_a_guest_that_was_caught_count_when_pbs_has_given_them() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    new, other = key("10"), key("11")
    h = run(set_domain(h, "p1", jobs=()), "p1", "12", age=0.0)
    listed = [new, other, key("12")]
    assert inquiries.left_out(h, "p1", listed, now) == {new, other}, "the third was there before"
    assert set(inquiries.due(h, now, MANY)) == {("p1", new), ("p1", other)}
    inquiries.answered(h, ("p1", new), True, now)
    inquiries.answered(h, ("p1", other), False, now)
    assert inquiries.left_out(h, "p1", listed, now + 15) == {other}
    assert inquiries.left_out(h, "n1", [new], now) == set(), "it is another guest's"
    assert inquiries.due(run(h, "p1", "10", given=False), now + 15, MANY) == [("p1", new)], "it has its size from PBS"
    assert inquiries.is_trusted(h, "p1", now + DISTRUST_S)
    assert inquiries.left_out(h, "p1", [key("13")], now + DISTRUST_S) == set()


def test_without_a_hub_nothing_is_asked_and_everybody_is_believed() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    alone = replace(set_domain(h, "p1", jobs=()), hub_lost=True)
    assert inquiries.due(alone, now, MANY) == [] and inquiries.next_at(alone) == math.inf
    assert inquiries.is_trusted(alone, "p1", now)
    assert inquiries.left_out(alone, "p1", [GHOST, key("10")], now) == {GHOST}, "PBS has denied it"


def test_all_jobs_of_a_guest_that_was_caught_count_no_longer_until_pbs_has_given_them() -> None:
    inquiries, h = Inquiries(), with_ghost(cls=PROTECTED)
    facts = {"10": (False, PROTECTED), "11": (True, PROTECTED), "12": (False, HIGH)}
    for id, (was_given, cls) in facts.items():
        h = run(h, "p1", id, given=was_given, cls=cls)
    h = run(h, "n1", "13", given=False, cls=PROTECTED)
    now = T
    for verdict in (Verdict.NOTHING, Verdict.DENIED):
        assert inquiries.answered(h, ("p1", GHOST), False, now) is verdict
        now += AGAIN_S
    removed = inquiries.to_remove(h, "p1", [GHOST], now)
    assert removed == (key("10"), GHOST), "PBS has given the next one, and the last one was claimed"
    h = set_domain(h, "p1", jobs=tuple(job for job in get(h, "p1").jobs if job.key not in removed))
    assert ("p1", key("10")) in inquiries.due(h, now, MANY)
    inquiries.answered(h, ("p1", key("10")), True, now)
    assert inquiries.left_out(h, "p1", [GHOST, key("10")], now) == {GHOST}


def test_what_is_not_listed_any_more_is_not_asked_about_for_ever() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    h = set_domain(h, "p1", jobs=())
    inquiries.left_out(h, "p1", [key("10")], now)
    assert inquiries.due(h, now + REMEMBER_S, MANY) == [("p1", key("10"))]
    assert inquiries.due(h, now + REMEMBER_S + 1, MANY) == []


def test_who_lists_jobs_that_are_not_there_without_end_is_never_believed() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    h = set_domain(h, "p1", jobs=())
    for number in range(100):
        listed = [key(f"{number}"), key(f"{number + 1}")]
        assert inquiries.left_out(h, "p1", listed, now) == set(listed)
        for mark in inquiries.due(h, now, 1):
            inquiries.answered(h, mark, False, now)
        now += 15


def test_a_job_that_pbs_has_given_after_all_counts_although_it_was_denied() -> None:
    inquiries, h = Inquiries(), with_ghost()
    now = denied(inquiries, h)
    assert inquiries.left_out(run(h, "p1", "9"), "p1", [GHOST], now) == set(), "its claim has waited for PBS"


@pytest.mark.parametrize("ran", [True, False])
def test_a_claim_whose_start_fails_takes_no_running_jobs_away(ran: bool) -> None:
    """PBS takes the job back, and if another hook has rejected it, no event tells. Others have just begun."""
    inquiries, h = Inquiries(), with_ghost(cls=PROTECTED, launched=ran, confirmed=ran)
    h = run(h, "p1", "10", cls=PROTECTED, given=False)
    h = run(h, "p1", "11", cls=PROTECTED, given=False, launched=False, confirmed=False)
    now = T
    assert inquiries.answered(h, ("p1", GHOST), False, now) is Verdict.NOTHING
    now += AGAIN_S
    assert inquiries.answered(h, ("p1", GHOST), False, now) is Verdict.DENIED
    assert not inquiries.is_trusted(h, "p1", now)
    here = {key("10")} if ran else set()
    assert set(inquiries.to_remove(h, "p1", [GHOST], now)) == {GHOST, key("11"), *here}


def test_domains_take_turns() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    for number in range(50):
        h = run(h, "p1", f"{number}", given=False, cpus=0)
    for name in ("n1", "n2"):
        for number in range(2):
            h = run(h, name, f"{name}{number}", given=False, cpus=0)
    first = Inquiries().due(h, T, 6)
    assert [name for name, _ in first] == ["n1", "n2", "p1", "n1", "n2", "p1"]
    inquiries = Inquiries()
    order: list[str] = []
    for _ in range(3):
        (mark,) = inquiries.due(h, T, 1)
        inquiries.answered(h, mark, True, T)
        order.append(mark[0])
    assert order == ["n1", "n2", "p1"]


@pytest.mark.long
def test_new_jobs_of_a_domain_come_before_those_that_pbs_has_given() -> None:
    inquiries, h = Inquiries(), host("counted", p1="priority")
    for number in range(2000):
        h = run(h, "p1", f"{number}", cpus=0, age=2 * CHECK_S)
    h = run(h, "p1", "new", given=False, cpus=0, age=YOUNG_S)
    assert inquiries.due(h, T, 1) == [("p1", key("new"))]
    inquiries.answered(h, ("p1", key("7")), False, T)
    assert inquiries.due(h, T + GIVEN_AGAIN_S, 2) == [("p1", key("7")), ("p1", key("new"))]


def test_questions_about_jobs_that_are_gone_are_forgotten() -> None:
    inquiries = Inquiries()
    h = host("counted", p1="priority")
    for number in range(100):
        inquiries.answered(h, ("p1", JobKey(f"{number}.srv", 1)), False, T)
    assert inquiries.due(h, T, MANY) == []
    assert not inquiries._asked
