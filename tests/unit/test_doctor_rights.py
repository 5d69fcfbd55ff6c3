"""`magrathea doctor` without root, and with a driver that cannot do everything: what is no warning is none."""

from __future__ import annotations

import codecs
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magrathea import doctor
from magrathea.cli import doctor as cli
from magrathea.core.model import Mode
from magrathea.doctor import Check, Paths, Status
from magrathea.messages import Snapshot
from node_daemon.agent.configuration import Config
from node_daemon.agent.swaps import Swap
from node_daemon.configuration import read
from node_daemon.hypervisor.local.driver import LIMITS
from node_daemon.setup import doctor as node
from scheduler_plugin.setup import doctor as server

NOBODY = 65534


def as_nobody(ask: Callable[[], Iterator[Check]]) -> dict[str, tuple[str, str]]:
    """(status, cause) of each check, made by a process of user nobody."""
    codecs.lookup("idna")  # nobody may not import from where this Python may be
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = json.dumps({check.name: (check.status, check.cause) for check in ask()})
        except Exception as error:  # noqa: BLE001  it belongs to the test
            said = json.dumps({"defect": ("fail", repr(error))})
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = json.load(file)
    os.waitpid(child, 0)
    assert "defect" not in told, told
    return {name: (status, cause) for name, (status, cause) in told.items()}


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others may enter (pytest's own they may not), with one in it that they may not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "closed").mkdir(mode=0o700)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_root_a_host_says_what_it_could_not_look_at_and_fails_for_nothing_of_it(place: Path) -> None:
    file = place / "noded.toml"
    file.write_text(
        '[host]\nname = "h"\nmode = "exclusive"\n[domain.n1]\nkind = "normal"\nlocal.pid_file = "/p"\n'
        f'[hub]\nendpoints = ["tcp://127.0.0.1:1"]\nkey_file = "{place}/closed/key"\nhub_key_file = "{place}/hub.key"\n'
        f'[paths]\nrun_dir = "{place}/closed/run"\nstate_dir = "{place}/closed/state"\n'
    )
    said = as_nobody(lambda: node.host.checks(Paths(noded=file)))
    assert {name for name, (status, _) in said.items() if status == "skip"} == {"state", "guest-sockets", "keys"}
    file.chmod(0o600)
    assert as_nobody(lambda: node.host.checks(Paths(noded=file)))["configuration"][0] == "skip"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_root_a_guest_and_a_server_say_so_too(place: Path) -> None:
    agent = place / "agent.json"
    at = {
        "socket": f"{place}/closed/a.sock",
        "channel": f"unix:{place}/c.sock",
        "state": f"{place}/closed/state/s.json",
    }
    agent.write_text(json.dumps(at))
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(str(place / "c.sock"))
    (place / "c.sock").chmod(0o600)
    (place / "pbs.conf").write_text(f"PBS_START_MOM=1\nPBS_HOME={place}/closed\nPBS_EXEC=/opt/pbs\n")
    said = as_nobody(lambda: node.guest.checks(Paths(agent=agent, pbs=place / "pbs.conf")))
    assert {name for name, (status, _) in said.items() if status == "skip"} == {"channel", "agent", "state", "mom"}
    hub = place / "hub.toml"
    hub.write_text(
        f'[hub]\nlisten = ["ipc://{place}/closed/h"]\nstate_dir = "{place}/closed"\nkeys_dir = "{place}/closed/k"\n'
        f'heartbeat_file = "{place}/closed/beat"\ncontrol_socket = "{place}/none"\n'
    )
    said = as_nobody(lambda: server.part.checks(Paths(hub=hub, pbs=place / "pbs.conf")))
    assert {name for name, (status, _) in said.items() if status == "fail"} == {"hub-answers"}
    assert said["pbs"][0] == said["heartbeat"][0] == said["hub-ipc"][0] == "skip"


def test_what_the_local_driver_cannot_do_is_no_warning(tmp_path: Path) -> None:
    file = tmp_path / "noded.toml"
    file.write_text(
        '[host]\nname = "h"\nmode = "exclusive"\n[domain.n1]\nkind = "normal"\nmemory_mib = 100\n'
        'local.pid_file = "/p"\n[hub]\nendpoints = ["ipc:///run/hub"]\n'
    )
    snapshot = Snapshot(
        host="h",
        boot_id="b",
        revision=1,
        at=0,
        mode=Mode.EXCLUSIVE,
        cpus=1,
        memory_mib=1,
        domains=[],
        hub_connected=True,
        notes=[*LIMITS, "SetCpu of n1 fails"],
        limits=list(LIMITS),
    )
    checks = {check.cause: check.status for check in node.of_snapshot(read(file), snapshot) if check.cause}
    assert [checks[note] for note in LIMITS] == [Status.NOTE] * len(LIMITS)
    assert checks["SetCpu of n1 fails"] is Status.WARN
    assert node.guest_swap(100, Swap(0, 0, 0, 0)).status is Status.NOTE


@pytest.mark.parametrize(("status", "code"), [("note", 0), ("skip", 0), ("ok", 0), ("warn", 1), ("fail", 2)])
def test_notes_and_skipped_checks_do_not_count(status: str, code: int) -> None:
    assert cli.exit_code([Check("host", "x", Status(status), "text", "why", "how")]) == code


def test_a_file_in_the_place_of_the_sockets_folder_is_told(tmp_path: Path) -> None:
    file = tmp_path / "noded.toml"
    file.write_text(
        '[host]\nname = "h"\nmode = "exclusive"\n[domain.n1]\nkind = "normal"\nlocal.pid_file = "/p"\n'
        f'[paths]\nrun_dir = "{tmp_path}"\n'
    )
    (tmp_path / "guest").write_text("")
    [check] = [one for one in node.host.checks(Paths(noded=file)) if one.name == "guest-sockets"]
    assert check.status is Status.FAIL
    assert check.cause == f"{tmp_path}/guest is no directory"


def test_a_file_in_the_place_of_a_socket_or_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.writable("host", "state", tmp_path / "file", least_mib=0).cause == "it is no directory"
    at = {"socket": "/a.sock", "channel": f"unix:{tmp_path}/file", "state": "/s.json"}
    (tmp_path / "agent.json").write_text(json.dumps(at))
    check = node.channel(Config(str(tmp_path / "agent.json")))
    assert (check.status, check.cause) == (Status.FAIL, f"{tmp_path}/file is no socket")


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ("magrathea@head", "ok"),
        ("magrathea@HEAD", "ok"),
        ("magrathea@head.example.org", "ok"),
        ("magrathea@*.example.org", "ok"),
        ("magrathea@*", "ok"),
        ("magrathea", "ok"),
        ("magrathea@wrong-host", "fail"),
        ("magrathea@ead", "fail"),
        ("Magrathea@head", "fail"),
        ("magrathea@*.example.com", "fail"),
        ("magratheas@head,other@*", "fail"),
    ],
)
def test_an_operator_is_one_from_this_machine_as_pbs_compares_it(entries: str, status: str) -> None:
    hosts = {"head", "head.example.org"}
    check = server.operator("magrathea", {"operators": entries}, hosts)
    assert check.status == status
    if "wrong-host" in entries:
        assert "magrathea@wrong-host" in check.cause


def test_what_root_could_see_is_a_skip_only_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, closed in ((0, False), (NOBODY, True)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert doctor.is_closed(PermissionError()) is closed
        assert not doctor.is_closed(FileNotFoundError())
