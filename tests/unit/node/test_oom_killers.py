"""`magrathea doctor` in a guest names the programs that would kill a stopped job, and says what to set."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea.doctor import Status
from node_daemon.setup import oom_killers


def machine(proc: Path, *names: str) -> Path:
    for pid, name in enumerate(names, 10):
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "comm").write_bytes(name.encode() + b"\n")
    (proc / "99").mkdir()  # a process that has just gone
    return proc


@pytest.mark.parametrize(
    ("name", "fix"),
    [("earlyoom", "EARLYOOM_ARGS"), ("systemd-oomd", "ManagedOOMPreference=omit"), ("nohang", "nohang")],
)
def test_a_program_that_kills_when_memory_is_short_is_named_with_its_fix(tmp_path: Path, name: str, fix: str) -> None:
    check = oom_killers.check(machine(tmp_path, "systemd", name, "pbs_mom"), lambda: False)
    assert check.status is Status.WARN and name in check.cause and fix in check.fix


def test_a_guest_without_any_is_all_right(tmp_path: Path) -> None:
    check = oom_killers.check(machine(tmp_path, "systemd", "earlyoomx", "j\xfcrgen"), lambda: False)
    assert check.status is Status.OK


def test_an_oomd_that_watches_nothing_kills_nobody(tmp_path: Path) -> None:
    proc = machine(tmp_path, "systemd-oomd")
    assert oom_killers.check(proc, lambda: True).status is Status.OK


@pytest.mark.parametrize(
    ("said", "nothing"),
    [
        ("Swap Monitored CGroups:\nMemory Pressure Monitored CGroups:\n", True),
        ("Swap Monitored CGroups:\n        Path: /\nMemory Pressure Monitored CGroups:\n", False),
        ("", False),
    ],
)
def test_oomctl_says_what_oomd_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, nothing: bool
) -> None:
    tool = tmp_path / "oomctl"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert oom_killers.watches_nothing() is nothing
