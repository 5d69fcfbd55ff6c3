"""`magrathea domain migrate`: requests, output, progress and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from magrathea import client
from magrathea.cli import main, migrate
from magrathea.control import refusal
from magrathea.core.refusals import RefusalCode
from magrathea.move_reports import MoveEnd, MovePlan, MoveReport, MovesAnswer
from tests.fakes.control_socket import answering

PLAN = {"domain": "n1", "source": "h1", "hosts": ["h2"], "memory_mib": 512, "jobs": 2, "disks": []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def answer(**fields: object) -> bytes:
    return json.dumps({"ok": True, "now": 100.0, **fields}).encode() + b"\n"


def ended(*, moved: bool, text: str) -> dict[str, object]:
    return {"domain": "n1", "moved": moved, "at": 100.5, "text": text}


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main.cli, ["domain", "migrate", "n1", *words, "--socket", str(path)])


def test_a_dry_run_shows_what_would_move_and_changes_nothing(path: Path) -> None:
    plan = {**PLAN, "disks": [{"path": "/disks/n1.qcow2", "mib": 2048}]}
    with answering(path, answer(plan=plan)) as questions:
        result = run(path, "--to", "h2", "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(questions[0]) == {"op": "migrate-plan", "domain": "n1", "to": "h2"}
    assert result.output.splitlines() == [
        "n1: from h1 to h2, with 512 MiB and 2 jobs, 1 disk copied",
        "  copied with it: /disks/n1.qcow2, 2048 MiB",
    ]


def test_a_move_that_succeeds(path: Path) -> None:
    with answering(path, answer(plan=PLAN, ended=[ended(moved=True, text="it is at h2 now")])) as questions:
        result = run(path)
    assert json.loads(questions[0]) == {"op": "migrate", "domain": "n1"}
    assert result.exit_code == 0 and result.output.splitlines()[-1] == "n1: it is at h2 now"


def test_a_domain_that_stays_is_said_by_its_own_exit_code(path: Path) -> None:
    stayed = ended(moved=False, text="it stays here: h2: the bridge br0 is missing here")
    with answering(path, answer(plan=PLAN, ended=[stayed])):
        result = run(path, "--format", "json")
    assert result.exit_code == migrate.NOT_MOVED
    assert json.loads(result.output)["text"] == stayed["text"]


@pytest.mark.parametrize("code", ["not-movable", "not-supported", "no-visitors", "domain-moving", "hub-lost"])
def test_a_refusal_has_its_code_and_its_reason(path: Path, code: str) -> None:
    refused = refusal(RefusalCode(code), "because of that") + b"\n"
    with answering(path, refused):
        result = run(path)
    assert result.exit_code == 1 and f"refused ({code}): because of that" in result.output


def report(text: str) -> MoveReport:
    return MoveReport(domain="n1", source="h1", target="h2", stage="copying", text=text)


def test_each_change_is_said_once_until_the_end() -> None:
    end = MoveEnd(domain="n1", moved=True, at=103.0, text="it is at h2 now")
    old = MoveEnd(domain="n1", moved=False, at=50.0, text="it stays here: an earlier move")
    later = iter(
        [
            MovesAnswer(now=101.0, moves=[report("10 %")], ended=[old]),
            MovesAnswer(now=102.0, moves=[report("90 %")], ended=[old]),
            MovesAnswer(now=103.0, ended=[end]),
        ]
    )
    said: list[str] = []
    first = MovesAnswer(now=100.0, moves=[report("10 %")], ended=[old])
    assert migrate.follow(first, "n1", lambda: next(later), said.append, lambda seconds: None) == end
    assert said == ["n1: 10 %", "n1: 90 %", "n1: it is at h2 now"]


def test_a_daemon_that_is_restarted_meanwhile_is_waited_for() -> None:
    end = MoveEnd(domain="n1", moved=True, at=103.0, text="it is at h2 now")
    away = [client.Unreachable(Path("/run/control.sock"), "it is not there", "start it")]

    def look() -> MovesAnswer:
        if away:
            raise away.pop()
        return MovesAnswer(now=103.0, ended=[end])

    first = MovesAnswer(now=100.0, moves=[report("10 %")])
    assert migrate.follow(first, "n1", look, lambda text: None, lambda seconds: None) == end


def test_a_daemon_that_was_restarted_right_after_the_move_knows_where_the_domain_is() -> None:
    first = MovesAnswer(now=100.0, moves=[report("90 %")])
    said: list[str] = []
    end = migrate.follow(
        first, "n1", lambda: MovesAnswer(now=103.0, elsewhere={"n1": "h2"}), said.append, lambda seconds: None
    )
    assert end.moved and said[-1] == "n1: it is at h2 now"


@pytest.mark.parametrize("try_next", [True, False])
def test_the_next_host_is_tried_only_if_one_did_not_take_it_or_the_copy_failed(try_next: bool) -> None:
    asked: list[str] = []

    def ask(op: str, **fields: str) -> MovesAnswer:
        asked.append(fields.get("to", ""))
        plan = (
            MovePlan(domain="n1", source="h1", hosts=["h2", "h3"], memory_mib=1, jobs=0) if not fields["to"] else None
        )
        end = MoveEnd(domain="n1", moved=fields["to"] == "h3", at=101.0, text="an end", try_next=try_next)
        return MovesAnswer(now=100.0, plan=plan, ended=[end])

    assert migrate._moved(ask, "n1", "", lambda text: None).moved is try_next
    assert asked == (["", "h3"] if try_next else [""])
