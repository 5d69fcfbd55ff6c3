"""A hypervisor that does not answer, and its domains that nobody configured."""

from __future__ import annotations

import pytest

from magrathea.core.events import DriverFound, DriverLost, OthersSeen

from .builders import LOW, PROTECTED, T, accepts, after, claim, host, job_ids, later, run, state

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


@both
def test_a_hypervisor_that_does_not_answer_makes_its_domains_unknown_after_a_while_and_forgets_no_job(
    mode: str,
) -> None:
    h = after(run(host(mode, n1="normal", p1="priority"), "n1", "1", cpus=2), DriverLost(T))
    assert state(h, "n1") != "unknown"
    silent = later(h, h.limits.agent_silent_s)
    assert (state(silent, "n1"), state(silent, "p1")) == ("unknown", "unknown")
    assert accepts(silent, "n1") == accepts(silent, "p1") == set()
    assert job_ids(silent, "n1") == {"1"}
    refusal = claim(silent, "p1", "9")
    assert (refusal.code, "libvirtd" in refusal.text) == ("domain-unknown", True)
    found = after(silent, DriverFound(silent.now))
    assert state(found, "n1") == state(h, "n1")


def test_losing_it_twice_does_not_restart_the_grace_time() -> None:
    h = after(host("exclusive", n1="normal"), DriverLost(T))
    h = after(later(h, 20), DriverLost(T + 20))
    assert h.driver_lost_at == T


def test_the_sizes_of_unconfigured_domains_are_subtracted_while_they_run() -> None:
    h = run(host("counted", cpus=8, n1="normal"), "n1", "1", cpus=2)
    h = after(h, OthersSeen(T, cpus=5, memory_mib=1_000))
    assert claim(h, "n1", "2", cpus=2, cls=PROTECTED).code == "cpus"
    assert h.without_services.mib == h.memory_mib - 1_000
    assert claim(after(h, OthersSeen(T, 2, 0)), "n1", "2", cpus=2, cls=LOW).ok


def test_more_services_than_cpus_leave_nothing_and_break_nothing() -> None:
    h = after(host("counted", cpus=8, n1="normal", p1="priority"), OthersSeen(T, cpus=12, memory_mib=99_999))
    assert accepts(h, "n1") == accepts(h, "p1") == set()


@both
@pytest.mark.parametrize(
    ("asked", "code", "numbers"),
    [
        ({"cpus": 4}, "cpus", ("4 CPUs asked for", "3 left", "of its 8 CPUs services have 5")),
        ({"cpus": 3, "memory": 3_500}, "memory", ("3500 MiB asked for", "services have 1000")),
        ({"cpus": 9}, "bad-request", ("9 CPUs", "has 8")),
    ],
)
def test_a_job_larger_than_services_leave_is_refused_with_the_numbers(
    mode: str, asked: dict[str, int], code: str, numbers: tuple[str, ...]
) -> None:
    h = after(host(mode, cpus=8, memory=4_000, n1="normal"), OthersSeen(T, cpus=5, memory_mib=1_000))
    refusal = claim(h, "n1", "1", cls=LOW, **asked)
    assert refusal.code == code
    assert [part for part in numbers if part not in refusal.text] == []


@both
def test_configured_services_are_reported_with_the_others(mode: str) -> None:
    h = after(host(mode, cpus=8, n1="normal", dns="service cpus=2"), OthersSeen(T, cpus=1, memory_mib=0))
    refusal = claim(h, "n1", "1", cls=LOW, cpus=6)
    assert refusal.code == "cpus"
    assert "of its 8 CPUs services have 3" in refusal.text
