"""The guest as a machine: only its own clock and its own power are changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.agent.lines import BadValue
from node_daemon.agent.loop import Loop
from node_daemon.agent.machine import Machine


def machine(is_guest: bool = True, power_off: list[str] | None = None) -> Machine:
    return Machine(Loop(), is_guest, power_off or [])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The values that the clock was set to."""
    sets: list[float] = []
    monkeypatch.setattr(time, "clock_settime", lambda which, unix_s: sets.append(unix_s))
    return sets


def test_a_clock_that_stood_still_is_set(clock: list[float]) -> None:
    now = time.time() + 3600
    assert machine().set_clock(now) == {"ok": True, "set": True}
    assert clock == [now]


def test_a_clock_that_is_right_is_left_alone(clock: list[float]) -> None:
    assert machine().set_clock(time.time() + 0.1) == {"ok": True, "set": False}
    assert clock == []


def test_the_clock_of_a_machine_that_may_be_the_host_is_never_set(clock: list[float]) -> None:
    assert machine(is_guest=False, power_off=["/bin/true"]).set_clock(time.time() + 3600)["code"] == "not-permitted"
    assert clock == []


def test_a_time_that_is_none_is_refused(clock: list[float]) -> None:
    for unix_s in (0.0, -1.0, 1e12, float("inf")):
        with pytest.raises(BadValue):
            machine().set_clock(unix_s)
    assert clock == []


def test_only_guests_and_machines_with_a_configured_command_offer_to_power_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine().can() == ["clock", "power"]
    assert machine(is_guest=False).can() == []
    assert machine(is_guest=False, power_off=["/bin/true"]).can() == ["power"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine().can() == []
    assert machine(is_guest=False, power_off=["/bin/true"]).can() == ["power"]


def test_a_failed_power_off_is_reported() -> None:
    assert machine(is_guest=False).power_off()["code"] == "not-supported"


@pytest.mark.parametrize(
    ("systemd", "there", "expected"),
    [
        (True, {"/usr/bin/systemctl"}, ["/usr/bin/systemctl", "--no-block", "poweroff"]),
        (False, {"/sbin/shutdown", "/sbin/poweroff"}, ["/sbin/shutdown", "-h", "now"]),
        (False, {"/sbin/poweroff"}, ["/sbin/poweroff"]),
        (False, set(), []),
    ],
)
def test_the_way_that_the_guest_knows_is_taken(
    monkeypatch: pytest.MonkeyPatch, systemd: bool, there: set[str], expected: list[str]
) -> None:
    monkeypatch.setattr(Machine, "_systemd", staticmethod(lambda: systemd))
    monkeypatch.setattr(os, "access", lambda path, mode: path in there)
    assert machine()._command() == expected


def test_its_command_is_run_after_the_answer_and_is_reaped(tmp_path: Path) -> None:
    done = tmp_path / "done"
    before = {child.pid for child in psutil.Process().children()}
    here = machine(is_guest=False, power_off=["/usr/bin/env", "sh", "-c", f"echo $PATH > {done}"])
    assert here.power_off() == {"ok": True}
    assert not done.exists()
    loop = here.loop
    end = time.monotonic() + BOUND_S
    while loop.timers and time.monotonic() < end:
        loop.turn()
    assert done.read_text() == ":".join(Machine.PLACES) + "\n"
    assert {child.pid for child in psutil.Process().children()} <= before
