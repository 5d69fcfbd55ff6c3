"""`magrathea host evacuate` and `return`: requests, output, progress and exit codes; and what other commands show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from magrathea.cli import main, view
from magrathea.evacuation_reports import EvacuationReport, EvacuationStage, LeaverReport
from magrathea.messages import EvacuationView, FarmView, HostView, encode
from node_daemon.evacuation import cli
from tests.fakes.control_socket import AT, PREEMPTION, answering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def leaver(name: str, fate: str, stage: str = "waiting", **more: object) -> dict[str, object]:
    return {"name": name, "fate": fate, "stage": stage, "mib": 512, "jobs": 2, **more}


def answer(*leavers: dict[str, object], going_on: bool = False, since: float = 0.0) -> bytes:
    report = {"host": "h1", "going_on": going_on, "leavers": list(leavers), "since": since}
    return json.dumps({"ok": True, "evacuation": report}).encode() + b"\n"


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main.cli, ["host", *words, "--socket", str(path)])


def test_a_dry_run_says_what_becomes_of_each_and_changes_nothing(path: Path) -> None:
    plan = answer(leaver("n1", "move", to="h2"), leaver("n2", "sleep", why="no host takes it (h2: too small)"))
    with answering(path, plan) as questions:
        result = run(path, "evacuate", "h1", "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(questions[0]) == {
        "op": "evacuate-plan",
        "domain": "h1",
        "do": "move",
        "reason": "by the admin",
    }
    assert result.output.splitlines() == [
        "h1: 2 domains; to evacuate",
        "  1. n1: moves to h2; 512 MiB, 2 jobs",
        "  2. n2: is put to sleep on disk; 512 MiB, 2 jobs (no host takes it (h2: too small))",
    ]


@pytest.mark.parametrize(("option", "wish"), [("--to-disk", "sleep"), ("--drain", "drain")])
def test_what_is_asked_for_is_in_the_request(path: Path, option: str, wish: str) -> None:
    with answering(path, answer(leaver("n1", wish, "over"), since=1.0)) as questions:
        result = run(path, "evacuate", "h1", option, "--reason", "new memory")
    asked = json.loads(questions[0])
    assert result.exit_code == 0 and (asked["op"], asked["do"], asked["reason"]) == ("evacuate", wish, "new memory")
    assert "h1: 1 domain; evacuated" in result.output


def test_what_still_runs_here_is_said_by_an_exit_code_of_its_own(path: Path) -> None:
    left = leaver("s1", "leave", "over", up=True, why="it is a service")
    down = leaver("n3", "leave", "over", why="it is down")
    with answering(path, answer(leaver("n1", "move", "over", to="h2"), down, left, since=1.0)):
        result = run(path, "evacuate", "h1", "--format", "plain")
    assert result.exit_code == cli.STILL_HERE
    assert result.output.splitlines()[-1] == "s1\tleave\t-\tover\t512\t2\tit is a service"
    with answering(Path(f"{path}2"), answer(down, since=1.0)):
        assert run(Path(f"{path}2"), "evacuate", "h1").exit_code == 0


def test_two_ways_at_once_are_wrong_usage(path: Path) -> None:
    result = run(path, "evacuate", "h1", "--drain", "--to-disk")
    assert result.exit_code == 2 and "give one of them" in result.output


def test_each_change_is_said_once_until_the_end() -> None:
    def report(stage: EvacuationStage, text: str) -> EvacuationReport:
        one = LeaverReport(name="n1", fate="move", to="h2", stage=stage, text=text)
        return EvacuationReport(host="h1", going_on=stage is not EvacuationStage.OVER, leavers=[one], since=1.0)

    first = report(EvacuationStage.WAITING, "waits for its turn")
    later = iter([first, report(EvacuationStage.GOING, "is being copied"), report(EvacuationStage.OVER, "is at h2")])
    said: list[str] = []
    last = cli.follow(first, lambda: next(later), said.append, lambda seconds: None)
    assert last.leavers[0].stage is EvacuationStage.OVER
    assert said == ["n1: waits for its turn", "n1: is being copied", "n1: is at h2"]


def test_an_evacuation_that_is_ended_meanwhile_ends_the_command() -> None:
    one = LeaverReport(name="n1", fate="drain", stage=EvacuationStage.GOING, text="it finishes 1.srv")
    report = EvacuationReport(host="h1", going_on=True, leavers=[one], since=1.0)
    said: list[str] = []
    assert cli.follow(report, lambda: None, said.append, lambda seconds: None) is report
    assert said[-1] == "the host has been taken back meanwhile"


def test_return_says_what_becomes_of_each(path: Path) -> None:
    with answering(path, json.dumps({"ok": True, "said": ["n1 takes jobs again"]}).encode() + b"\n") as questions:
        result = run(path, "return", "h1")
    assert json.loads(questions[0]) == {"op": "host-return", "domain": "h1"}
    assert (result.exit_code, result.output) == (0, "n1 takes jobs again\n")


@pytest.mark.parametrize(
    ("over", "returning", "word"), [(1, False, "evacuating"), (2, False, "evacuated"), (2, True, "returning")]
)
def test_status_and_hosts_show_a_host_that_is_evacuated(path: Path, over: int, returning: bool, word: str) -> None:
    known = EvacuationView(since=AT - 90, reason="new memory", over=over, of=2, returning=returning)
    snapshot = replace(PREEMPTION, evacuation=known)
    assert f"{word} for 90 s, {over} of 2 domains are through: new memory" in view.table(snapshot)
    farm = FarmView(at=AT, knows_pbs=True, hosts=[HostView(live=True, snapshot=snapshot)], booked=[])
    with answering(path, encode(farm) + b"\n"):
        result = CliRunner().invoke(main.cli, ["hosts", "--hub", str(path), "--format", "plain"])
    assert f"host\t{word}\t1\th1" in result.output
