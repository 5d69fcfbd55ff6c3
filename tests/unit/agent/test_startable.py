"""`magrathea-agent --check` knows what a start needs, and a start that cannot succeed ends with cause and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node_daemon import main as noded
from node_daemon.agent import start
from scheduler_plugin.hub import main as hub

LONG = 120 * "x"
OBSTACLES = {
    "socket below a file": ({"socket": "/plain/agent.sock"}, "plain is no directory"),
    "state below a file": ({"state": "/plain/state.json"}, "plain is no directory"),
    "state is a directory": ({"state": "/folder"}, "folder is a directory; name a file in it"),
    "socket is a file": ({"socket": "/plain"}, "plain is no socket"),
    "long socket": ({"socket": f"/{LONG}"}, "at most 107"),
    "long channel": ({"channel": f"/{LONG}"}, "at most 107"),
}


@pytest.mark.parametrize("arguments", [["--check"], []], ids=["check", "start"])
@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_is_named_and_nothing_is_moved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, arguments: list[str]
) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "c").write_text("")
    wrong, words = OBSTACLES[name]
    at = {name: f"{tmp_path}{path}" for name, path in {"socket": "/a", "state": "/s", "channel": "/c", **wrong}.items()}
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({**at, "channel": f"unix:{at['channel']}"}))
    wanted = start.BAD_CONFIGURATION if name.startswith("long") else start.CANNOT_START
    assert start.main(["--config", str(file), *arguments]) == wanted
    said = capfd.readouterr()
    assert words in said.out + said.err
    assert (tmp_path / "folder").is_dir() and (tmp_path / "plain").is_file()


@pytest.mark.parametrize(("channel", "words"), [("unix:{}/c", "c is no socket"), ("port:{}/c", "c is no device")])
def test_a_plain_file_is_no_channel(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], channel: str, words: str
) -> None:
    (tmp_path / "c").write_text("")
    file = tmp_path / "agent.json"
    paths = {"socket": f"{tmp_path}/a", "state": f"{tmp_path}/s", "channel": channel.format(tmp_path)}
    file.write_text(json.dumps(paths))
    assert start.main(["--config", str(file), "--check"]) == start.CANNOT_START
    assert words in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"channel": "J\xfcrgen"}', "byte 14 is not UTF-8; save the file as UTF-8"),
        (b" \n", "is empty; write {} for the defaults"),
    ],
)
def test_a_file_that_is_no_text_is_told_in_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    (tmp_path / "agent.json").write_bytes(content)
    assert start.main(["--config", str(tmp_path / "agent.json"), "--check"]) == start.BAD_CONFIGURATION
    assert words in capfd.readouterr().err


def test_all_programs_mean_the_same_by_an_exit_code() -> None:
    assert noded.BAD_CONFIGURATION == hub.BAD_CONFIGURATION == start.BAD_CONFIGURATION
    assert noded.CANNOT_START == hub.CANNOT_START == start.CANNOT_START
