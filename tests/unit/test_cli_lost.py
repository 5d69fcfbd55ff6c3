"""`magrathea host lost`: requests, output, the question before, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from magrathea.cli import main
from magrathea.control import refusal
from magrathea.core.refusals import RefusalCode
from tests.fakes.control_socket import answering

MOVE = {
    "domain": "n1",
    "source": "h1",
    "target": "h2",
    "stage": "h1 copies it",
    "text": "it has ended on h1",
    "booked": True,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.sock"


def answer(*moves: object) -> bytes:
    return json.dumps({"ok": True, "moves": moves}).encode() + b"\n"


def run(path: Path, *words: str, says: str | None = None) -> Result:
    return CliRunner().invoke(main.cli, ["host", "lost", "h1", *words, "--hub", str(path)], input=says)


def asked(questions: list[bytes]) -> list[object]:
    return [json.loads(question) for question in questions if question]


def test_a_dry_run_shows_what_would_follow_and_changes_nothing(path: Path) -> None:
    with answering(path, answer(MOVE)) as questions:
        result = run(path, "--dry-run")
    assert asked(questions) == [{"op": "lost-plan", "about": "h1"}]
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "domain  from  to  stage         what follows",
        "n1      h1    h2  h1 copies it  it has ended on h1",
    ]


def test_it_is_booked_after_a_yes(path: Path) -> None:
    with answering(path, answer(MOVE)) as questions:
        result = run(path, "--run-copies", says="y\n")
    assert asked(questions) == [{"op": op, "about": "h1", "do": "run-copies"} for op in ("lost-plan", "lost")]
    assert result.exit_code == 0 and "Is h1 switched off" in result.output


@pytest.mark.parametrize("says", ["n\n", "\n", ""])
def test_nothing_is_booked_without_a_yes(path: Path, says: str) -> None:
    with answering(path, answer(MOVE)) as questions:
        result = run(path, says=says)
    assert asked(questions) == [{"op": "lost-plan", "about": "h1"}] and result.exit_code == 1


def test_with_yes_nobody_is_asked(path: Path) -> None:
    with answering(path, answer(MOVE)) as questions:
        result = run(path, "--yes", "--format", "plain")
    assert [one["op"] for one in asked(questions)] == ["lost-plan", "lost"]  # type: ignore[index]
    assert result.output == "n1\th1\th2\th1 copies it\tit has ended on h1\tyes\n"


def test_if_nothing_moves_there_nothing_is_asked_nor_changed(path: Path) -> None:
    with answering(path, answer()):
        result = run(path)
    assert (result.exit_code, result.output) == (0, "no domain is on its way to or from h1\n")


def test_programs_get_the_answer_as_it_is(path: Path) -> None:
    with answering(path, answer(MOVE)):
        result = run(path, "--yes", "--format", "json")
    assert json.loads(result.output) == [MOVE]


def test_a_host_that_is_heard_is_not_lost(path: Path) -> None:
    with answering(path, refusal(RefusalCode.HOST_HEARD, "its daemon was heard 3 s ago") + b"\n"):
        result = run(path, "--yes")
    assert result.exit_code == 1 and "refused (host-heard)" in result.output


def test_without_a_hub(path: Path) -> None:
    assert run(path, "--yes").exit_code == 3
