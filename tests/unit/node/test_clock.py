"""The host's clock over restarts of the daemon and reboots of the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobClass, JobKey
from node_daemon.clock import Clock
from node_daemon.configuration import read
from node_daemon.facts import Facts
from tests.samples import on_a_host

LOW, HIGH = JobKey("1.srv", 1), JobKey("2.srv", 1)
DEPLOY = Path(__file__).parents[3] / "deploy"
DAY_S = 86400.0


@dataclass
class Machine:
    """Its two clocks: the wall clock, and the seconds since it was booted."""

    wall: float = 1_800_000_000.0
    since_boot: float = 40 * DAY_S

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.since_boot += seconds

    def reboots(self, takes_s: float, wall_error_s: float = 0.0) -> None:
        """Off and on again; `wall_error_s`: its wall clock is wrong by so much afterwards."""
        self.wall += takes_s + wall_error_s
        self.since_boot = 20.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(time, "time", lambda: made.wall)
    monkeypatch.setattr(time, "clock_gettime", lambda _: made.since_boot)
    return made


def test_after_a_reboot_time_goes_on_by_the_wall_clock(machine: Machine) -> None:
    clock = Clock()
    machine.passes(100.0)
    last = clock.now()
    machine.reboots(takes_s=300.0)
    assert Clock(at_least=last).now() - last == pytest.approx(300.0)


def test_after_a_reboot_with_a_wall_clock_far_behind_time_does_not_go_back(machine: Machine) -> None:
    last = Clock().now()
    machine.reboots(takes_s=300.0, wall_error_s=-10 * 365 * DAY_S)
    clock = Clock(at_least=last)
    assert clock.now() == pytest.approx(last)
    machine.wall += 10 * 365 * DAY_S  # NTP sets it: that moves no deadline
    machine.passes(5.0)
    assert clock.now() - last == pytest.approx(5.0)


def facts(folder: Path) -> Facts:
    return Facts(folder / "journal.sqlite", Clock, lambda name: None, lambda: None)


def test_seconds_preempted_and_since_times_are_right_over_a_reboot(machine: Machine, tmp_path: Path) -> None:
    configuration = read(on_a_host(DEPLOY / "noded.toml", tmp_path))
    before = facts(tmp_path)
    before.apply(configuration.reconfigured(before.now()))
    before.apply(ev.HubFound(before.now()))
    for name in ("n1", "p1"):
        before.apply(ev.DomainStarted(before.now(), name))
        before.apply(ev.AgentConnected(before.now(), name))
    before.apply(ev.Claimed(before.now(), "n1", LOW, JobClass.PREEMPTIBLE, 1))
    before.apply(ev.JobLaunched(before.now(), "n1", LOW))
    machine.passes(60.0)
    stopped_at = before.now()
    before.apply(ev.Claimed(stopped_at, "p1", HIGH, JobClass.PRIORITY, 1))
    assert before.since["n1"].state == "preempted"
    before.close()

    machine.reboots(takes_s=300.0)
    after = facts(tmp_path)
    after.apply(ev.DaemonStarted(after.now()))
    assert after.since["n1"].since == stopped_at
    assert after.now() - after.since["n1"].since == pytest.approx(300.0)
    for name in ("n1", "p1"):
        after.apply(ev.AgentConnected(after.now(), name))
    machine.passes(10.0)
    after.apply(ev.Released(after.now(), "p1", HIGH))
    after.apply(ev.JobsContinued(after.now(), "n1", (LOW,)))
    domain = after.host.domain("n1")
    assert domain is not None and (job := domain.job(LOW)) is not None
    assert job.stopped_since is None and job.preempted_s == pytest.approx(310.0)
    after.close()
