"""Input from outside is bounded, and its types are checked, before it is used."""

from __future__ import annotations

import json
import mmap
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.rigs.agent_rig import state
from magrathea_lab.waiting import until
from node_daemon.agent import VERSION
from node_daemon.agent.configuration import CONFIG_VARIABLE, DEFAULT_CGROUPS, DEFAULT_CONFIG, Config
from node_daemon.agent.lines import BadValue
from node_daemon.agent.log import Log
from node_daemon.agent.procfs import memory_report, read_file
from node_daemon.agent.start import main, options
from node_daemon.agent.values import Unusable, job_key, seconds


def refused(doc: dict[str, Any]) -> bool:
    with pytest.raises(BadValue):
        job_key(doc)
    return True


def test_the_job_ids_that_pbs_makes_are_taken() -> None:
    for id in ("12.srv", "7[3].pbs-server.example.org", "1234567.a_b"):
        assert job_key({"id": id, "run": 0}) == (id, 0)


@pytest.mark.parametrize(
    "id", ["", "../../etc", "a/b", "12 srv", "12\n", "-x", "12.srv\0", "1" * 256, "..", 12, None, True]
)
def test_a_job_id_that_pbs_does_not_make_is_refused(id: object) -> None:
    assert refused({"id": id, "run": 1})


@pytest.mark.parametrize("run", [-1, 1 << 31, True, "1", 1.0, None])
def test_a_run_version_out_of_bounds_is_refused(run: object) -> None:
    assert refused({"id": "12.srv", "run": run})


def test_a_time_out_of_bounds_is_brought_within_them() -> None:
    assert seconds({"s": 1e300}, "s", 1, 0, 5) == 5
    assert seconds({"s": -1}, "s", 1, 0.5, 5) == 0.5
    assert seconds({}, "s", 1, 0, 5) == 1
    with pytest.raises(BadValue):
        seconds({"s": "1"}, "s", 1, 0, 5)


# Configuration


def config(tmp_path: Path, **values: object) -> Config:
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(values))
    return Config(str(path))


def test_an_empty_configuration_is_the_default_one(tmp_path: Path) -> None:
    found = config(tmp_path)
    assert (found.channel_kind, found.channel_path) == ("port", "/dev/virtio-ports/org.magrathea.0")
    assert found.job_cgroups == DEFAULT_CGROUPS


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sockte": "/x"}, "sockte"),
        ({"socket": "x"}, "socket"),
        ({"socket": 1}, "socket"),
        ({"channel": "tcp:1.2.3.4"}, "channel"),
        ({"channel": "unix:relative"}, "channel"),
        ({"script_time_limit_s": 0}, "script_time_limit_s"),
        ({"script_time_limit_s": True}, "script_time_limit_s"),
        ({"job_cgroups": ["/sys/fs/cgroup/pbs"]}, "job_cgroups"),
        ({"job_cgroups": "x"}, "job_cgroups"),
        ({"environment": {"A=B": "c"}}, "environment"),
        ({"environment": {"A": 1}}, "environment"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    with pytest.raises(Unusable, match=named):
        config(tmp_path, **values)


def test_the_configuration_is_found_by_option_then_variable_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    assert options([]) == ("run", DEFAULT_CONFIG)
    monkeypatch.setenv(CONFIG_VARIABLE, "/b")
    assert options([]) == ("run", "/b")
    assert options(["--config", "/c", "--check"]) == ("check", "/c")
    assert options(["--config=/d"]) == ("run", "/d")
    for wrong in (["--config"], ["--frobnicate"], ["x"]):
        with pytest.raises(Unusable):
            options(wrong)


def test_check_help_and_version_are_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"socket": str(tmp_path / "s"), "state": str(tmp_path / "t"), "channel": f"unix:{tmp_path}/c"})
    )
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "c"))
        assert main(["--config", str(tmp_path / "a.json"), "--check"]) == 0
    assert "ok" in capsys.readouterr().out
    (tmp_path / "a.json").write_text('{"channel": "unix:/nowhere/at/all"}')
    assert main(["--config", str(tmp_path / "a.json"), "--check"]) == 3
    assert "/nowhere/at/all" in capsys.readouterr().out
    assert main(["--config", str(tmp_path / "missing"), "--check"]) == 2
    assert main(["--help"]) == 0
    assert "stay stopped" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert VERSION in capsys.readouterr().out


# /proc


def test_the_memory_report_is_in_mib_and_adds_up() -> None:
    found = memory_report()
    assert 0 < found["available_mib"] <= found["total_mib"]
    assert 0 <= found["unreclaimable_mib"] < found["total_mib"]


def test_a_file_longer_than_a_page_is_read_whole() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # its memory does not change
    try:
        until(lambda: state(other.pid) == "S", "it waits")
        path = f"/proc/{other.pid}/smaps"
        found = read_file(path, 1 << 20)
        assert len(found) > mmap.PAGESIZE
        assert found == Path(path).read_bytes()
    finally:
        other.communicate(b"\n")


def test_the_log_is_bounded_and_counts_omitted_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log()
    for number in range(500):
        log.info(f"line {number} \x1b[31m")
    log.tokens = 2
    log.info("last")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) < 2 * log.BURST
    assert "suppressed" in lines[-1]
    assert "\x1b" not in "".join(lines)
