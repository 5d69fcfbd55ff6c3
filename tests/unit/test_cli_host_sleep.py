"""`magrathea host sleep` and `wake`: requests, output, progress and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from magrathea.cli import main
from magrathea.host_sleep import HostSleepReport, SleeperReport, SleepStage
from node_daemon.reboot import cli
from tests.fakes.control_socket import answering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def sleeper(name: str, stage: str, text: str = "", took_s: float = 0.0) -> dict[str, object]:
    return {"name": name, "stage": stage, "mib": 512, "jobs": 2, "expected_s": 7.0, "took_s": took_s, "text": text}


def answer(*sleepers: dict[str, object], going_on: bool = False) -> bytes:
    report = {"host": "h1", "going_on": going_on, "expected_s": 14.0, "left_s": 300.0, "sleepers": list(sleepers)}
    return json.dumps({"ok": True, "sleep": report}).encode() + b"\n"


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main.cli, ["host", *words, "--socket", str(path)])


def test_a_dry_run_shows_the_order_and_the_time_and_changes_nothing(path: Path) -> None:
    plan = answer(sleeper("n1", "awake"), sleeper("p1", "awake"), sleeper("n2", "left", "its save takes about 99 s"))
    with answering(path, plan) as questions:
        result = run(path, "sleep", "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(questions[0]) == {"op": "host-sleep-plan"}
    lines = result.output.splitlines()
    assert lines[0] == "h1: 2 domains to put to sleep, about 14 s; 300 s are left"
    assert [line.split(":")[0] for line in lines[1:3]] == ["  1. n1", "  2. p1"]
    assert "left to the ordinary shutdown: n2" in lines[3] and "about 99 s" in lines[3]


def test_all_asleep_is_a_success(path: Path) -> None:
    with answering(path, answer(sleeper("n1", "asleep", took_s=6.5))) as questions:
        result = run(path, "sleep", "--deadline", "120")
    assert json.loads(questions[0]) == {"op": "host-sleep", "deadline_s": 120.0}
    assert result.exit_code == 0 and "n1: asleep after 6.5 s" in result.output


@pytest.mark.parametrize("stage", ["left", "failed"])
def test_a_domain_that_is_not_asleep_is_said_by_its_own_exit_code(path: Path, stage: str) -> None:
    with answering(path, answer(sleeper("n1", "asleep"), sleeper("n2", stage, "the disk is full"))):
        result = run(path, "sleep")
    assert result.exit_code == cli.NOT_ALL and "n2: not asleep: the disk is full" in result.output


def test_each_change_is_said_once_until_the_end() -> None:
    def report(stage: SleepStage, *, going_on: bool = True) -> HostSleepReport:
        one = SleeperReport(name="n1", stage=stage, mib=512, jobs=1, expected_s=7.0, text="1.srv must stop")
        return HostSleepReport(host="h1", going_on=going_on, expected_s=7.0, left_s=60.0, sleepers=[one])

    later = iter([report(SleepStage.STOPPING), report(SleepStage.SAVING), report(SleepStage.ASLEEP, going_on=False)])
    said: list[str] = []
    last = cli.follow(report(SleepStage.STOPPING), lambda: next(later), said.append, lambda seconds: None)
    assert last.sleepers[0].stage is SleepStage.ASLEEP
    assert [line.split(", ")[0] for line in said] == [
        "n1: 1.srv must stop",
        "n1: is saved now",
        "n1: asleep after 0.0 s",
    ]


def test_nobody_to_put_to_sleep_is_no_failure_of_a_shutdown(path: Path) -> None:
    with answering(path, answer()):
        result = run(path, "sleep")
    assert result.exit_code == 0 and "nobody is to sleep" in result.output


def test_at_a_shutdown_only_a_machine_that_stops_puts_anybody_to_sleep(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(path, answer(sleeper("n1", "asleep"))) as questions:
        monkeypatch.setattr(cli, "machine_stops", lambda: False)
        result = run(path, "sleep", "--at-shutdown")
        assert (result.exit_code, questions) == (0, []) and "stay awake" in result.output
        monkeypatch.setattr(cli, "machine_stops", lambda: True)
        assert run(path, "sleep", "--at-shutdown").exit_code == 0 and len(questions) == 1


@pytest.mark.parametrize(("said", "stops"), [("stopping", True), ("running", False), ("degraded", False)])
def test_systemd_says_whether_the_machine_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, stops: bool
) -> None:
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\n[ "$*" = is-system-running ] && echo {said}\nexit 1\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert cli.machine_stops() is stops


def test_json_and_plain_have_the_last_report(path: Path) -> None:
    with answering(path, answer(sleeper("n1", "asleep", took_s=6.5))):
        told = json.loads(run(path, "sleep", "--format", "json").output)
        plain = run(path, "sleep", "--format", "plain").output
    assert told["sleepers"][0]["stage"] == "asleep" and told["host"] == "h1"
    assert plain == "n1\tasleep\t512\t2\t7.0\t6.5\t-\n"


def test_a_refusal_and_an_absent_daemon_have_their_exit_codes(path: Path) -> None:
    with answering(path, b'{"ok":false,"code":"paused","text":"the host is paused"}\n'):
        for command in ("sleep", "wake"):
            assert run(path, command).exit_code == 1
    for command in ("sleep", "wake"):
        assert run(path, command).exit_code == 3


def test_a_wake_asks_once(path: Path) -> None:
    with answering(path, b'{"ok":true,"said":["n1 is brought back"]}\n') as questions:
        result = run(path, "wake")
    assert json.loads(questions[0]) == {"op": "host-wake"}
    assert (result.exit_code, result.output) == (0, "n1 is brought back\n")
