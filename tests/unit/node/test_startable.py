"""`magrathea-noded --check` knows all that a start needs. A start that cannot succeed ends at once with its cause."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon import main as noded
from node_daemon.configuration import read
from node_daemon.startable import obstacles
from scheduler_plugin.hub import keys

BASE = """\
[host]
name = "h1"
mode = "exclusive"
{host}
[hub]
{hub}
[paths]
run_dir = "{folder}/run"
state_dir = "{state}"
[control]
group = "{group}"
[domain.n1]
kind = "normal"
local.pid_file = "/run/n1.pid"
"""


def file(folder: Path, *, host: str = "", hub: str = "", state: str = "", group: str = "") -> Path:
    path = folder / "noded.toml"
    text = BASE.format(folder=folder, host=host, hub=hub, state=state or f"{folder}/state", group=group)
    path.write_text(text)
    return path


def tcp(folder: Path, endpoint: str = "tcp://head:17017", key: str = "host.key_secret") -> str:
    return f'endpoints = ["{endpoint}"]\nkey_file = "{folder}/{key}"\nhub_key_file = "{folder}/hub.key"'


def make_keys(folder: Path) -> None:
    keys.init(folder / "keys")
    keys.enrol(folder / "keys", "h1").rename(folder / "host.key_secret")
    (folder / "keys/hub.key").rename(folder / "hub.key")


def test_a_good_configuration_on_a_good_machine_has_no_obstacles(tmp_path: Path) -> None:
    make_keys(tmp_path)
    assert obstacles(read(file(tmp_path, hub=tcp(tmp_path)))) == []


OBSTACLES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "group": ({"group": "nobody-has-it"}, ("nobody-has-it", "groupadd")),
    "state": ({"state": "FOLDER/plain/state"}, ("FOLDER/plain is none", "`state_dir` in [paths]")),
    "no key": ({"key": "gone"}, ("FOLDER/gone", "magrathea keys enrol")),
    "bad key": ({"key": "plain"}, ("FOLDER/plain", "not a key file")),
    "long ipc": ({"endpoint": f"ipc:///{120 * 'x'}"}, ("107", "`endpoints` in [hub]")),
    "port": ({"endpoint": "tcp://head:70000"}, ("70000", "65535", "`endpoints` in [hub]")),
}


@pytest.mark.long
@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_is_named_with_its_value_and_its_fix(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_text("of somebody else")
    make_keys(tmp_path)
    wrong, words = OBSTACLES[name]
    wrong = {key: value.replace("FOLDER", str(tmp_path)) for key, value in wrong.items()}
    hub = {key: wrong.pop(key) for key in ("key", "endpoint") if key in wrong}
    done = check(file(tmp_path, hub=tcp(tmp_path, **hub), **wrong))
    assert done.returncode == noded.CANNOT_START
    for word in words:
        assert word.replace("FOLDER", str(tmp_path)) in done.stderr


@pytest.mark.parametrize("name", ["run/control.sock", "run/guest/n1.sock", "state/noded.lock"])
def test_what_is_in_the_way_is_named_and_stays(tmp_path: Path, name: str) -> None:
    path = file(tmp_path)
    in_the_way = read(path).run_dir / name.removeprefix("run/") if name.startswith("run/") else tmp_path / name
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.mkdir()
    [sentence] = obstacles(read(path))
    assert f"{in_the_way} is a directory" in sentence and "in [paths]" in sentence
    in_the_way.rmdir()
    if name.endswith(".sock"):
        in_the_way.write_text("a file that somebody needs")
        [sentence] = obstacles(read(path))
        assert f"{in_the_way} is a file, and a socket has to be there" in sentence


def test_an_empty_file_that_libvirt_wants_there_is_in_nobodys_way(tmp_path: Path) -> None:
    path = file(tmp_path)
    channel = read(path).guest_socket("n1")
    channel.parent.mkdir(parents=True)
    channel.touch()
    assert obstacles(read(path)) == []


def test_an_old_socket_is_in_nobodys_way(tmp_path: Path) -> None:
    path = file(tmp_path)
    read(path).control_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(read(path).control_socket))
    assert obstacles(read(path)) == []


def test_a_missing_binding_of_libvirt_is_found_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    [sentence] = obstacles(read(file(tmp_path, host='driver = "libvirt"')))
    assert "magrathea[libvirt]" in sentence


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the channels to QEMU's user")
def test_an_unknown_user_of_qemu_is_found_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", os)
    [sentence] = obstacles(read(file(tmp_path, host='driver = "libvirt"\nqemu_user = "nobody-is-it"')))
    assert "nobody-is-it" in sentence


def check(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "node_daemon.main", "--config", str(path), *(more or ("--check",))]
    return subprocess.run(argv, capture_output=True, text=True, timeout=BOUND_S)


@pytest.mark.long
def test_a_start_without_its_key_ends_with_cause_and_fix(tmp_path: Path) -> None:
    """It hung, because the context of ZeroMQ waited for a socket that nobody could close."""
    done = check(file(tmp_path, hub=tcp(tmp_path)), "--log-level", "info")
    assert done.returncode == noded.CANNOT_START
    assert f"{tmp_path}/host.key_secret" in done.stderr
    assert "magrathea keys enrol" in done.stderr
    assert not (tmp_path / "state").exists(), "nothing was opened"
