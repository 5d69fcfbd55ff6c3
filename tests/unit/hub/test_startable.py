"""`magrathea-hub --check` knows all that a start needs, and a start that cannot succeed ends at once with the cause."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea import places
from magrathea.surroundings import cannot_listen
from scheduler_plugin.hub import keys, startable
from scheduler_plugin.hub.main import CANNOT_START, lock, main

BASE = """\
[hub]
listen = [{listen}]
state_dir = "{folder}/state"
keys_dir = "{folder}/keys"
heartbeat_file = "{heartbeat}"
control_socket = "{control}"
[pbs]
kind = "standin"
socket = "{folder}/pbs.sock"
"""


def file(folder: Path, *, listen: str = "", heartbeat: str = "", control: str = "") -> Path:
    path = folder / "hub.toml"
    text = BASE.format(
        folder=folder,
        listen=f'"{listen or f"ipc://{folder}/hub.ipc"}"',
        heartbeat=heartbeat or f"{folder}/heartbeat",
        control=control or f"{folder}/control.sock",
    )
    path.write_text(text)
    return path


def check(path: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["--config", str(path), "--check"])
    return done.exit_code, done.output


def test_a_good_configuration_on_a_good_machine_is_ok(tmp_path: Path) -> None:
    assert check(file(tmp_path)) == (0, f"{tmp_path}/hub.toml: ok\n")


LONG = "FOLDER/" + 120 * "x"
OBSTACLES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "heartbeat": ({"heartbeat": "FOLDER/plain/beat"}, ("FOLDER/plain", "`heartbeat_file` in [hub]")),
    "no folder of the heartbeat": ({"heartbeat": "FOLDER/none/beat"}, ("FOLDER/none does not exist", "install -d")),
    "no folder of the socket": ({"listen": "ipc://FOLDER/none/h"}, ("FOLDER/none does not exist", "`listen` in [hub]")),
    "control": ({"control": "FOLDER/plain/sock"}, ("FOLDER/plain", "`control_socket` in [hub]")),
    "socket is a file": ({"control": "FOLDER/plain"}, ("FOLDER/plain is a file", "`control_socket` in [hub]")),
    "ipc is a file": ({"listen": "ipc://FOLDER/plain"}, ("FOLDER/plain is a file", "`listen` in [hub]")),
    "heartbeat is a folder": ({"heartbeat": "FOLDER/folder"}, ("is a directory", "`heartbeat_file` in [hub]")),
    "heartbeat is a pipe": ({"heartbeat": "FOLDER/pipe"}, ("is a pipe", "`heartbeat_file` in [hub]")),
    "long control": ({"control": LONG}, ("107", "`control_socket` in [hub]")),
    "long ipc": ({"listen": f"ipc://{LONG}"}, ("107", "`listen` in [hub]")),
}


@pytest.mark.parametrize("arguments", [["--check"], []], ids=["check", "start"])
@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_is_named_with_its_value_and_its_fix(tmp_path: Path, name: str, arguments: list[str]) -> None:
    (tmp_path / "plain").write_text("of somebody else")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    wrong, words = OBSTACLES[name]
    path = file(tmp_path, **{key: value.replace("FOLDER", str(tmp_path)) for key, value in wrong.items()})
    done = CliRunner().invoke(main, ["--config", str(path), *arguments])
    assert done.exit_code == CANNOT_START, done.output
    for word in words:
        assert word.replace("FOLDER", str(tmp_path)) in done.output
    assert (tmp_path / "plain").is_file() and (tmp_path / "folder").is_dir(), "nobody has removed it"


def test_a_port_that_somebody_else_has_is_told_but_not_that_of_the_hub_that_runs(tmp_path: Path) -> None:
    keys.init(tmp_path / "keys")
    keys.enrol(tmp_path / "keys", "h1")
    with socket.create_server(("127.0.0.1", 0)) as other:
        path = file(tmp_path, listen=f"tcp://127.0.0.1:{other.getsockname()[1]}")
        code, said = check(path)
        assert code == CANNOT_START
        assert f"127.0.0.1:{other.getsockname()[1]}" in said
        assert "ss -ltnp" in said
        held = lock(tmp_path / "state")
        assert check(path)[0] == 0
        os.close(held)


def test_a_port_that_is_none_is_told(tmp_path: Path) -> None:
    keys.init(tmp_path / "keys")
    code, said = check(file(tmp_path, listen="tcp://*:70000"))
    assert (code, "65535" in said) == (CANNOT_START, True)


def test_a_name_at_which_nobody_can_listen_is_told(tmp_path: Path) -> None:
    keys.init(tmp_path / "keys")
    code, said = check(file(tmp_path, listen="tcp://nosuch.invalid:17017"))
    assert (code, "nosuch.invalid is no interface of this machine" in said) == (CANNOT_START, True)
    for name in ("lo", "localhost"):
        assert "interface" not in cannot_listen(f"tcp://{name}:17017", "")


@pytest.mark.parametrize("name", ["books.json", "lock", "owners.json"])
def test_books_and_lock_are_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "state" / name).mkdir(parents=True)
    code, said = check(file(tmp_path))
    assert (code, f"{tmp_path}/state/{name} is a directory" in said) == (CANNOT_START, True)


def test_books_at_the_former_default_place_are_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = tmp_path / "former"
    former.mkdir()
    monkeypatch.setattr(startable, "FORMER_STATE_DIR", former)
    monkeypatch.setattr(places, "HUB_STATE_DIR", f"{tmp_path}/state")
    path = file(tmp_path)
    assert check(path)[0] == 0
    (former / "books.json").write_text("{}")
    code, said = check(path)
    assert code == CANNOT_START
    assert f'write state_dir = "{former}" in [hub]' in said
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "books.json").write_text("{}")
    assert check(path)[0] == 0
