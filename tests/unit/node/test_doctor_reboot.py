"""`magrathea doctor` on a host that puts its domains to sleep when the machine shuts down."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea.doctor import Status
from node_daemon.configuration import NodedConfiguration, read
from node_daemon.setup import doctor_domains, doctor_reboot
from node_daemon.setup.doctor_reboot import judged_time, judged_unit, seconds
from tests.fakes.libvirt import URI, only_domains, xml

GOOD = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}


def configured(tmp_path: Path, shutdown: str) -> NodedConfiguration:
    file = tmp_path / "noded.toml"
    file.write_text(f"""
[host]
name = "h1"
mode = "exclusive"
driver = "libvirt"
uri = "{URI}"
[shutdown]
{shutdown}
[domain.n1]
kind = "normal"
""")
    return read(file)


def systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("unit", "status", "words"),
    [
        (GOOD, Status.OK, ""),
        ({**GOOD, "LoadState": "not-found"}, Status.WARN, "not installed"),
        ({**GOOD, "ActiveState": "inactive"}, Status.WARN, "inactive"),
        ({**GOOD, "UnitFileState": "disabled"}, Status.WARN, "disabled"),
        ({}, Status.WARN, "not installed"),
    ],
)
def test_the_unit_must_be_active_and_enabled(unit: dict[str, str], status: Status, words: str) -> None:
    check = judged_unit(["n1"], unit)
    assert check.status is status and words in check.cause


def test_the_configured_time_must_end_before_systemd_forces_the_machine_off() -> None:
    assert list(judged_time(300.0, {"reboot.target": 1800.0, "poweroff.target": None})) == []
    [check] = judged_time(1800.0, {"reboot.target": 1800.0, "poweroff.target": 3600.0})
    assert check.status is Status.WARN and "reboot.target is 1800 s" in check.cause


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30min", 1800.0), ("1h 30min", 5400.0), ("1min 30s", 90.0), ("500ms", 0.5), ("infinity", None), ("", None)],
)
def test_times_are_read_as_systemd_prints_them(text: str, expected: float | None) -> None:
    assert seconds(text) == expected


def test_systemd_is_asked_only_if_somebody_is_to_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(
        tmp_path, monkeypatch, f"echo asked >>{tmp_path}/asked; echo LoadState=not-found; echo JobTimeoutUSec=1min"
    )
    assert list(doctor_reboot.shutdown(configured(tmp_path, 'domains = "leave"'))) == []
    assert not (tmp_path / "asked").exists()
    checks = list(doctor_reboot.shutdown(configured(tmp_path, 'domains = "sleep"')))
    assert [c.name for c in checks] == ["sleep-unit", "sleep-reboot", "sleep-poweroff"]


def test_a_systemd_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(tmp_path, monkeypatch, "exit 1")
    [check] = doctor_reboot.shutdown(configured(tmp_path, 'domains = "sleep"'))
    assert check.status is Status.WARN and "could not be looked at" in check.text


@pytest.mark.parametrize(("shutdown", "warned"), [('domains = "sleep"', True), ('domains = "leave"', False)])
def test_autostart_would_restore_a_sleeper_before_its_turn(tmp_path: Path, shutdown: str, warned: bool) -> None:
    c = configured(tmp_path, shutdown)
    with only_domains(xml("n1")) as connection:
        connection.lookupByName("n1").setAutostart(1)
        checks = {check.name: check for check in doctor_domains.domains(c)}
    assert ("autostart-n1" in checks) is warned
    if warned:
        assert (
            checks["autostart-n1"].status is Status.WARN
            and "virsh autostart --disable n1" in checks["autostart-n1"].fix
        )
