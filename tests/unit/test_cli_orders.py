"""`magrathea drain`, `undrain`, `clear`, `reload`, `history`: what they ask, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea.cli import main

from .fake_control import answering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        (["drain", "n1"], {"op": "drain", "domain": "n1", "reason": "by the admin"}),
        (["drain", "n1", "--reason", "new disk"], {"op": "drain", "domain": "n1", "reason": "new disk"}),
        (["undrain", "n1"], {"op": "undrain", "domain": "n1"}),
        (["clear", "n1"], {"op": "clear", "domain": "n1"}),
        (["reload"], {"op": "reload"}),
        (["history", "n1", "-n", "5"], {"op": "history", "domain": "n1", "limit": 5}),
    ],
)
def test_what_a_command_asks_of_the_daemon(path: Path, command: list[str], request_: dict[str, object]) -> None:
    with answering(path, b'{"ok":true}\n') as questions:
        result = CliRunner().invoke(main.cli, [*command, "--socket", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(questions[0]) == request_


@pytest.mark.parametrize("command", [["drain", "n1"], ["undrain", "n1"], ["clear", "n1"], ["reload"], ["history"]])
def test_a_refusal_and_an_absent_daemon_have_their_exit_codes(path: Path, command: list[str]) -> None:
    with answering(path, b'{"ok":false,"code":"not-permitted","text":"only root may"}\n'):
        result = CliRunner().invoke(main.cli, [*command, "--socket", str(path)])
    assert (result.exit_code, result.stderr) == (1, f"magrathea {command[0]}: refused (not-permitted): only root may\n")
    result = CliRunner().invoke(main.cli, [*command, "--socket", f"{path}.none"])
    assert result.exit_code == 3
    assert "no such socket" in result.stderr


def test_what_the_daemon_says_to_a_reload_is_shown(path: Path) -> None:
    with answering(path, b'{"ok":true,"said":["`mode` in [host] stays"]}\n'):
        result = CliRunner().invoke(main.cli, ["reload", "--socket", str(path)])
    assert result.stdout == "`mode` in [host] stays\n"


def test_history_is_lines_with_stable_columns(path: Path) -> None:
    entries = [
        {
            "at": 1_800_000_000.25,
            "kind": "event",
            "name": "Claimed",
            "domain": "n1",
            "job": "1.s",
            "data": '{"cpus":1}',
        },
        {"at": 1_800_000_001.0, "kind": "event", "name": "HubLost", "domain": None, "job": None, "data": "{}"},
    ]
    with answering(path, json.dumps({"ok": True, "entries": entries}).encode() + b"\n"):
        result = CliRunner().invoke(main.cli, ["history", "--socket", str(path)])
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0][0].endswith(".250")
    assert [line[1:] for line in lines] == [
        ["event", "Claimed", "n1", "1.s", '{"cpus":1}'],
        ["event", "HubLost", "-", "-", "{}"],
    ]
