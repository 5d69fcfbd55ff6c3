"""`magrathea drain`, `undrain`, `pause`, `unpause`, `clear`, `reload`: their requests, output and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea.cli import main
from tests.fakes.control_socket import answering

COMMANDS = (
    ["drain", "n1"],
    ["undrain", "n1"],
    ["pause"],
    ["unpause"],
    ["clear", "n1"],
    ["reload"],
    ["domain", "boot", "n1"],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        (["drain", "n1"], {"op": "drain", "domain": "n1", "reason": "by the admin"}),
        (["drain", "h1", "--reason", "new disk"], {"op": "drain", "domain": "h1", "reason": "new disk"}),
        (["undrain", "n1"], {"op": "undrain", "domain": "n1"}),
        (["pause"], {"op": "pause", "domain": "", "reason": "by the admin"}),
        (["pause", "h1", "--reason", "a look"], {"op": "pause", "domain": "h1", "reason": "a look"}),
        (["unpause"], {"op": "unpause", "domain": ""}),
        (["clear", "n1"], {"op": "clear", "domain": "n1"}),
        (["reload"], {"op": "reload"}),
        (
            ["domain", "freeze", "n1", "--with-jobs", "--reason", "new memory"],
            {"op": "domain", "do": "freeze", "domain": "n1", "with_jobs": True, "reason": "new memory"},
        ),
        *((["domain", do, "n1"], {"op": "domain", "do": do, "domain": "n1"}) for do in ("boot", "freeze", "defrost")),
        *(
            (["domain", do, "n1", *flags], {"op": "domain", "do": do, "domain": "n1", "when_idle": idle, "now": now})
            for do in ("shutdown", "reboot")
            for flags, idle, now in (([], False, False), (["--when-idle"], True, False), (["--now"], False, True))
        ),
    ],
)
def test_the_request_of_each_command(path: Path, command: list[str], request_: dict[str, object]) -> None:
    with answering(path, b'{"ok":true}\n') as questions:
        result = CliRunner().invoke(main.cli, [*command, "--socket", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(questions[0]) == request_


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refusal_and_an_absent_daemon_have_their_exit_codes(path: Path, command: list[str]) -> None:
    with answering(path, b'{"ok":false,"code":"not-permitted","text":"only root may"}\n'):
        result = CliRunner().invoke(main.cli, [*command, "--socket", str(path)])
    assert (result.exit_code, result.stderr) == (1, f"magrathea {command[0]}: refused (not-permitted): only root may\n")
    result = CliRunner().invoke(main.cli, [*command, "--socket", f"{path}.none"])
    assert result.exit_code == 3
    assert "no such socket" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_daemons_answer_is_shown_for_people_scripts_and_programs(path: Path, command: list[str]) -> None:
    answer = b'{"ok":true,"said":["`mode` in [host] stays","so does n1"]}\n'
    shown = {}
    for form in ("table", "plain", "json"):
        with answering(Path(f"{path}.{form}"), answer):
            result = CliRunner().invoke(main.cli, [*command, "--socket", f"{path}.{form}", "--format", form])
        shown[form] = result.stdout
    assert shown["table"] == shown["plain"] == "`mode` in [host] stays\nso does n1\n"
    assert json.loads(shown["json"]) == {"said": ["`mode` in [host] stays", "so does n1"]}
