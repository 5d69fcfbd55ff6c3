"""A job that is warned before its stop is not suspended earlier in PBS: PBS's own SIGSTOP would shorten its time."""

from __future__ import annotations

import pytest

from scheduler_plugin.hub.books import SetWalltime, Suspend
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, domain, job, report

from .simulated_hub import SimHub


@pytest.fixture
def hub() -> SimHub:
    pbs = FakePbs("n1", "p1", "n2")
    pbs.put(job())
    return SimHub(pbs)


def test_the_suspend_waits_until_its_time_is_over(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [report(stop=True, stopped_since=NOW, warned_until=NOW + 2)]))
    assert hub.settle(1.9) == []
    assert Suspend in [type(action) for action in hub.settle(0.2)]


def test_the_time_counts_from_the_snapshot_not_from_the_hosts_clock(hub: SimHub) -> None:
    hub.at += 1000  # the host's clock is 1000 s behind
    made = [report(stop=True, stopped_since=NOW, warned_until=NOW + 2)]
    hub.at, late = NOW, hub.at
    hub.says("h1", domain("n1", made))
    heard = hub.farm.hosts["h1"]
    hub.farm.hosts["h1"] = type(heard)(heard.snapshot, True, late)
    hub.at = late
    assert hub.settle(1.9) == []
    assert Suspend in [type(action) for action in hub.settle(0.2)]


def test_a_stop_that_ends_before_that_is_never_booked(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [report(stop=True, stopped_since=NOW, warned_until=NOW + 2)]))
    hub.settle(1)
    hub.says("h1", domain("n1", [report()]))
    assert hub.settle(10) == []
    assert hub.farm.entries == {}


def test_the_time_of_the_warning_is_no_walltime_that_was_lost(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [report(stop=True, stopped_since=NOW, warned_until=NOW + 2)]))
    assert SetWalltime not in [type(action) for action in hub.settle(10)]
