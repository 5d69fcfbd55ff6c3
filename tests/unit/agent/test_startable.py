"""`magrathea-agent --check` knows what a start needs, and a start that cannot succeed ends with cause and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node_daemon.agent import start

LONG = 120 * "x"
OBSTACLES = {
    "socket below a file": ({"socket": "/plain/agent.sock"}, "plain is no directory"),
    "state below a file": ({"state": "/plain/state.json"}, "plain is no directory"),
    "state is a directory": ({"state": "/folder"}, "folder is a directory; name a file in it"),
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
    assert start.main(["--config", str(file), *arguments]) in (1, 2)
    said = capfd.readouterr()
    assert words in said.out + said.err
    assert (tmp_path / "folder").is_dir()
