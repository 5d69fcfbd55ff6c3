"""The results of `magrathea doctor` from files and values; neither PBS nor a daemon is needed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from magrathea import __version__, doctor
from magrathea.cli import doctor as cli
from magrathea.configuration import ConfigurationError
from magrathea.core.model import Mode
from magrathea.doctor import Check, Part, Paths, Status
from magrathea.messages import ElsewhereView, FarmView, HostView, Snapshot
from magrathea_lab.waiting import BOUND_S
from node_daemon.configuration import NodedConfiguration, read
from node_daemon.setup import doctor as node
from scheduler_plugin.setup import doctor as server
from scheduler_plugin.setup.setup_model import InstallOptions, Present

AGENT = {"socket": "{0}/agent.sock", "channel": "unix:{0}/channel.sock", "state": "{0}/state/agent.json"}


def noded(tmp_path: Path, domains: str, host: str = "memory_mib = 8000\nreserve_mib = 0") -> NodedConfiguration:
    file = tmp_path / "noded.toml"
    file.write_text(f'[host]\nname = "h"\nmode = "exclusive"\n{host}\n[paths]\nrun_dir = "{tmp_path}"\n{domains}')
    return read(file)


def domain(name: str, kind: str, **sizes: int) -> str:
    rows = "".join(f"{key} = {value}\n" for key, value in sizes.items())
    return f'[domain.{name}]\nkind = "{kind}"\nlocal.pid_file = "/p/{name}"\n{rows}'


def found(checks: Iterator[Check]) -> dict[str, Status]:
    result = {}
    for check in checks:
        assert check.status is Status.OK or (check.cause and check.fix), check
        assert check.name not in result
        result[check.name] = check.status
    return result


@pytest.mark.parametrize(
    ("n1", "p1", "status"),
    [
        ({"memory_mib": 7000, "floor_mib": 500, "swap_mib": 6500}, {"memory_mib": 7500, "floor_mib": 500}, "ok"),
        ({"memory_mib": 7000, "floor_mib": 500, "swap_mib": 6000}, {"memory_mib": 7500, "floor_mib": 500}, "warn"),
        ({"memory_mib": 7000, "floor_mib": 500, "swap_mib": 6500}, {"memory_mib": 7600, "floor_mib": 500}, "fail"),
    ],
)
def test_a_priority_domain_gets_the_memory_that_floors_and_stopped_jobs_leave(
    tmp_path: Path, n1: dict[str, int], p1: dict[str, int], status: str
) -> None:
    c = noded(tmp_path, domain("n1", "normal", **n1) + domain("p1", "priority", **p1))
    assert found(node.memory(c, 16000))["memory-p1"] == status


def test_a_file_with_more_memory_than_the_machine_has_fails(tmp_path: Path) -> None:
    c = noded(tmp_path, domain("n1", "normal"))
    assert found(node.memory(c, 4000)) == {"memory": Status.FAIL}
    assert found(node.memory(c, 8000)) == {"memory": Status.OK}


def test_a_normal_domain_that_has_memory_to_give_needs_swap(tmp_path: Path) -> None:
    one = domain("n1", "normal", memory_mib=100) + domain("n2", "normal", memory_mib=100, swap_mib=50)
    assert found(node.swap(noded(tmp_path, one + domain("p1", "priority", memory_mib=9)))) == {"swap-n1": Status.WARN}


def test_without_its_daemon_a_host_shows_how_to_start_it(tmp_path: Path) -> None:
    noded(tmp_path, domain("n1", "normal") + '[hub]\nendpoints = ["ipc:///nowhere/hub.ipc"]\n')
    checks = found(node.host.checks(Paths(noded=tmp_path / "noded.toml")))
    assert checks["daemon"] is checks["hub"] is checks["guest-sockets"] is Status.FAIL
    assert checks["configuration"] is Status.OK


def test_a_bad_file_is_one_failure_and_no_exception(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("[host")
    with pytest.raises(ConfigurationError):
        read(bad)
    for part in (node.host, node.guest):
        assert found(part.checks(Paths(noded=bad, agent=bad))) == {"configuration": Status.FAIL}


def agent_file(tmp_path: Path) -> Path:
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({key: value.format(tmp_path) for key, value in AGENT.items()}))
    (tmp_path / "state").mkdir()
    return file


def test_a_guest_without_agent_or_mom_reports_it(tmp_path: Path) -> None:
    checks = found(node.guest.checks(Paths(agent=agent_file(tmp_path), pbs=tmp_path / "none")))
    assert checks["agent"] is checks["channel"] is Status.FAIL
    assert checks["mom"] is Status.WARN and checks["configuration"] is Status.OK


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("$clienthost srv\n", []),
        ("$suspendsig STOP\n", ["ok"]),
        ("$suspendsig SIGTSTP SIGCONT\n", ["ok"]),
        ("$suspendsig 19\n", ["ok"]),
        ("$suspendsig USR1\n", ["warn"]),
        ("$suspendsig 10 18\n", ["warn"]),
        ("$suspendsig STOP USR2\n", ["warn"]),
        ("$suspendsig\n", ["warn"]),
    ],
)
def test_moms_own_signal_for_a_suspend_is_judged(tmp_path: Path, config: str, expected: list[str]) -> None:
    (tmp_path / "config").write_text(config)
    assert [check.status.value for check in node.suspend_signal(tmp_path / "config")] == expected
    assert list(node.suspend_signal(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("answer", "mode", "expected"),
    [
        (b'{"ok":true,"connected":true}\n', 0o600, {"agent": "ok", "agent-socket": "ok", "connected": "ok"}),
        (b'{"ok":true,"connected":false}\n', 0o666, {"agent": "ok", "agent-socket": "warn", "connected": "fail"}),
        (b"[]\n", 0o600, {"agent": "fail"}),
        (b"rubbish", 0o600, {"agent": "fail"}),
        (b"", 0o600, {"agent": "fail"}),
    ],
)
def test_an_agent_is_judged_by_its_answer(tmp_path: Path, answer: bytes, mode: int, expected: dict[str, str]) -> None:
    import threading

    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(mode)
        listening.listen()
        listening.settimeout(BOUND_S)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert found(node.agent_socket(path)) == expected
        thread.join(10)


def test_the_server_reports_what_keeps_jobs_from_starting() -> None:
    vnode = {"resources_available.magrathea_host": "h1", "resources_available.magrathea": "unknown"}
    now = Present(server={"scheduling": "False", "pbs_version": "23.06"}, vnodes={"n1": vnode})
    checks = found(server.of_pbs(now))
    assert checks == {"pbs": Status.OK, "scheduling": Status.WARN, "vnode-n1": Status.FAIL}


def test_a_missing_installation_is_one_failure_and_each_wrong_item_is_one() -> None:
    assert found(server.of_installation(Present(), InstallOptions(), installed=False)) == {"install": Status.FAIL}
    checks = found(server.of_installation(Present(), InstallOptions(), installed=True))
    assert checks["resource-magrathea_accepts"] is checks["hook-magrathea_mom"] is checks["server"] is Status.FAIL


@pytest.mark.parametrize(("age_s", "status"), [(None, "fail"), (31.0, "fail"), (29.0, "ok")])
def test_the_hub_is_alive_as_long_as_its_file_is_young(age_s: float | None, status: str) -> None:
    assert server.beat(Path("/b"), age_s, 30.0).status == status


@pytest.mark.parametrize(
    ("user", "attributes", "status"),
    [
        ("root", {}, "ok"),
        ("magrathea", {"operators": "x@h,magrathea@h"}, "ok"),
        ("magrathea", {"managers": "magrathea@*"}, "ok"),
        ("magrathea", {"operators": "magratheas@h"}, "fail"),
    ],
)
def test_the_hubs_user_is_an_operator(user: str, attributes: dict[str, str], status: str) -> None:
    assert server.operator(user, attributes, {"h"}).status == status


def heard(name: str, *, live: bool = True, ahead_s: float | None = 0.0, version: str = __version__) -> HostView:
    empty = Snapshot(host=name, boot_id="b", revision=1, at=0, mode=Mode.EXCLUSIVE, cpus=1, memory_mib=1, domains=[])
    return HostView(live=live, snapshot=empty, ahead_s=ahead_s, version=version)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (heard("h"), {"host-h": "ok", "clock-h": "ok"}),
        (heard("h", ahead_s=1.9), {"host-h": "ok", "clock-h": "ok"}),
        (heard("h", ahead_s=2.1), {"host-h": "ok", "clock-h": "warn"}),
        (heard("h", ahead_s=-3600), {"host-h": "ok", "clock-h": "warn"}),
        (heard("h", ahead_s=None, version=""), {"host-h": "ok"}),
        (heard("h", version="0.0.9"), {"host-h": "ok", "clock-h": "ok", "version-h": "warn"}),
        (heard("h", live=False, ahead_s=9), {"host-h": "fail"}),
    ],
)
def test_the_server_compares_its_clock_and_version_with_each_hosts(host: HostView, expected: dict[str, str]) -> None:
    assert found(server.of_hosts(FarmView(at=0, knows_pbs=True, hosts=[host], booked=[]))) == expected


def test_the_server_names_what_keeps_preempted_domains_from_going_elsewhere() -> None:
    def view(fix: str) -> FarmView:
        one = ElsewhereView(domain="n1", host="h", to="", since=0, text="no host takes domains from h", fix=fix)
        return FarmView(at=0, knows_pbs=True, hosts=[], booked=[], elsewhere=[one])

    assert found(server.of_elsewhere(0.0, view("name h in [visitors]"))) == {}
    assert found(server.of_elsewhere(60.0, view("name h in [visitors]"))) == {"elsewhere-n1": "warn"}
    assert found(server.of_elsewhere(60.0, view(""))) == {"elsewhere": "ok"}


def test_secrets_are_their_owners_only(tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert doctor.private("host", "keys", key).status is Status.FAIL
    key.write_text("x")
    key.chmod(0o640)
    assert doctor.private("host", "keys", key).status is Status.FAIL
    key.chmod(0o600)
    assert doctor.private("host", "keys", key).status is Status.OK


def test_a_directory_is_there_and_has_room(tmp_path: Path) -> None:
    assert doctor.writable("host", "state", tmp_path, least_mib=0).status is Status.OK
    assert doctor.writable("host", "state", tmp_path, least_mib=2**40).status is Status.FAIL
    assert doctor.writable("host", "state", tmp_path / "none").status is Status.FAIL


def test_the_clock_is_judged_by_the_kernel() -> None:
    assert doctor.clock("host").status in (Status.OK, Status.WARN)


# The command


def part(name: str, here: str, *statuses: Status) -> Part:
    made = [Check(name, f"c{i}", status, "text", "why", "how") for i, status in enumerate(statuses)]
    return Part(name, lambda paths: here, lambda paths: iter(made))


def run(monkeypatch: pytest.MonkeyPatch, known: list[Part], *args: str) -> Any:
    monkeypatch.setattr(cli, "parts", lambda: known)
    monkeypatch.setattr(doctor, "clock", lambda name: Check(name, "clock", Status.OK, "set"))
    return CliRunner().invoke(cli.command, list(args))


@pytest.mark.parametrize(("worst", "code"), [(Status.OK, 0), (Status.WARN, 1), (Status.FAIL, 2)])
def test_the_exit_code_is_the_worst_of_all(monkeypatch: pytest.MonkeyPatch, worst: Status, code: int) -> None:
    for form in cli.FORMS:
        assert run(monkeypatch, [part("host", "x", Status.OK, worst)], "--format", form).exit_code == code


def test_only_parts_that_are_here_or_requested_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [part("host", "a file is here", Status.OK), part("guest", "", Status.FAIL)]
    checked = {c["part"] for c in json.loads(run(monkeypatch, known, "--format", "json").output)}
    assert checked == {"host"}
    assert run(monkeypatch, known, "--part", "guest").exit_code == 2
    assert run(monkeypatch, [part("guest", "")]).exit_code == 2, "nothing is here, and that is told"


def test_plain_has_six_columns_and_one_line_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    output = run(monkeypatch, [part("host", "x", Status.WARN)], "--format", "plain").output
    assert {line.count("\t") for line in output.splitlines()} == {5}
    assert "warn\thost\tc0\ttext\twhy\thow" in output


def test_the_parts_are_found_by_their_entry_points() -> None:
    assert [one.name for one in cli.parts()] == ["guest", "host", "server"]
