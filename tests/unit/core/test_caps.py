"""When a preempted domain is capped, and when its cap is lifted (docs/rules.md, "Rules for both")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core.caps import NO_CAP, RELIEF_S, UNANSWERED_S, Cap, CapKind, Giving, preempted_cap
from magrathea.core.model import Host, Limits
from magrathea.core.plan import ActualDomain, SetCpu, steps

from .builders import claim, host, release, run

CAP = preempted_cap(Limits())
FULL_MIB, OUT_MIB = 2_000, 200
LEAVES = Giving(leaves=True)
FAILED = Giving(failed=True)
RETRIES = Giving(leaves=True, failed=True)


def preempted() -> Host:
    """n1 is preempted for p1; 1,800 of its 2,000 MiB must leave it."""
    h = host("exclusive", cpus=4, memory=4_000, n1="normal floor=200 swap=4000", p1="priority floor=200")
    return claim(run(h, "n1", "1", cpus=4, memory=1_000), "p1", "9", cpus=4).host


def cap_of_n1(h: Host, percent: int | None, memory_mib: int | None, giving: Giving, can_cap: bool = True) -> Cap | None:
    """The cap that the next step sets for n1; None: no step."""
    n1 = ActualDomain(percent, memory_mib, can_cap=can_cap, giving=giving)
    due = [s.cap for s in steps(h, {"n1": n1, "p1": ActualDomain(None, 200)}) if isinstance(s, SetCpu)]
    assert len(due) <= 1
    return due[0] if due else None


@pytest.mark.parametrize(
    ("percent", "giving", "cap"),
    [
        (None, Giving(), None),  # nothing has been tried yet
        (None, LEAVES, None),
        (None, Giving(unanswered_s=UNANSWERED_S - 1), None),
        (None, Giving(unanswered_s=UNANSWERED_S), CAP),
        (None, FAILED, CAP),
        (None, RETRIES, CAP),
        (10, Giving(), None),  # the agent may not answer at all
        (10, Giving(unanswered_s=1), None),
        (10, LEAVES, NO_CAP),
        (10, FAILED, None),
        (10, RETRIES, None),
        (5, LEAVES, NO_CAP),  # set by an earlier configuration
        (5, FAILED, CAP),
        (300, LEAVES, None),  # its own share, which it may use for the move
        (300, FAILED, CAP),
    ],
)
def test_the_cap_of_a_preempted_domain_before_its_memory_has_left(
    percent: int | None, giving: Giving, cap: Cap | None
) -> None:
    assert cap_of_n1(preempted(), percent, FULL_MIB, giving) == cap


@pytest.mark.parametrize(
    ("percent", "relieved_s", "cap"),
    [
        (None, None, CAP),
        (None, RELIEF_S - 1, None),
        (None, RELIEF_S, CAP),
        (10, RELIEF_S - 1, None),
        (10, None, None),
    ],
)
def test_the_cap_of_a_preempted_domain_after_its_memory_has_left(
    percent: int | None, relieved_s: float | None, cap: Cap | None
) -> None:
    assert cap_of_n1(preempted(), percent, OUT_MIB, Giving(relieved_s=relieved_s)) == cap


def test_a_guest_that_failed_to_give_is_also_relieved_before_its_cap() -> None:
    assert cap_of_n1(preempted(), None, FULL_MIB, Giving(failed=True, relieved_s=1.0)) is None


def test_if_memory_does_not_move_the_cap_comes_at_once() -> None:
    assert cap_of_n1(preempted(), None, None, Giving()) == CAP


@pytest.mark.parametrize("giving", [Giving(), LEAVES, FAILED])
def test_a_domain_that_cannot_be_capped_gets_no_step(giving: Giving) -> None:
    assert cap_of_n1(preempted(), None, OUT_MIB, giving, can_cap=False) is None
    assert cap_of_n1(preempted(), None, FULL_MIB, giving, can_cap=False) is None


def test_a_wanted_share_is_not_taken_for_the_cap_of_a_preempted_domain_of_the_same_size() -> None:
    """One CPU for each: the job's domain must give memory, and is nevertheless capped at its share."""
    h = host("counted", cpus=4, memory=4_000, n1="normal floor=200 swap=4000", p1="priority floor=200")
    h = replace(run(h, "n1", "1", cpus=1, memory=1_000), limits=Limits(preempted_cpu_percent=100))
    cap = cap_of_n1(h, None, FULL_MIB, LEAVES)
    assert cap == Cap(CapKind.SHARE, 100)


@pytest.mark.parametrize(("percent", "cap"), [(10, NO_CAP), (5, NO_CAP), (None, None), (100, None), (300, None)])
def test_an_idle_domain_keeps_a_share_but_no_cap_of_a_preempted_domain(percent: int | None, cap: Cap | None) -> None:
    """Also not the cap of an earlier configuration: its next job would run with it."""
    h = release(preempted(), "n1", "1")
    assert cap_of_n1(h, percent, OUT_MIB, Giving()) == cap
