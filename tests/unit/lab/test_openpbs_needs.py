"""What this machine lacks for a private OpenPBS is reported in one line that names the fix."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters import openpbs_needs

LDD = "\tlibical.so.3 => /lib/libical.so.3 (0x0)\n\tlibpq.so.5 => not found\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OpenPBS with its two set-uid programs, on a machine that permits everything."""
    (tmp_path / "sbin").mkdir()
    for name in ("pbs_server", "pbs_mom", "pbs_iff", "pbs_rcp"):
        (tmp_path / "sbin" / name).write_text("")
        (tmp_path / "sbin" / name).chmod(0o4755)
    root = tmp_path / "sbin/pbs_iff"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(openpbs_needs, "ROOT", root.stat().st_uid)
    answers(monkeypatch, ldd="", unshare="")
    return tmp_path


def answers(monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    """`ldd` prints its text; `unshare` fails with its text, if it has one."""

    def run(argv: list[str], **more: Any) -> Any:
        text = texts[argv[0]]
        failed = argv[0] == "unshare" and text
        return subprocess.CompletedProcess(argv, 1 if failed else 0, "" if failed else text, text if failed else "")

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")


def test_a_machine_that_has_everything_lacks_nothing(installed: Path) -> None:
    assert openpbs_needs.missing(str(installed)) is None


def test_a_missing_installation_is_not_a_broken_one(tmp_path: Path) -> None:
    assert openpbs_needs.broken(str(tmp_path)) is None
    assert openpbs_needs.missing(str(tmp_path)) == f"OpenPBS is not installed in {tmp_path}"


def test_other_users_than_root_are_told_that_it_needs_root(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "needs root" in (openpbs_needs.missing(str(installed)) or "")


@pytest.mark.parametrize("name", openpbs_needs.SET_UID)
def test_a_program_without_its_set_uid_bit_is_named_with_the_command_that_sets_it(installed: Path, name: str) -> None:
    (installed / name).chmod(0o755)
    file = installed / name
    why = f"{file} is not set-uid root; as root: chown root {file} && chmod 4755 {file}"
    assert openpbs_needs.missing(str(installed)) == why == openpbs_needs.broken(str(installed))


def test_programs_that_are_missing_are_named_by_their_packages(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool in ("ip", "psql") else tool)
    assert (openpbs_needs.missing(str(installed)) or "").endswith("--no-install-recommends iproute2 postgresql")


def test_a_library_that_is_missing_is_named(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ldd=LDD, unshare="")
    assert (openpbs_needs.missing(str(installed)) or "").endswith("not installed: libpq.so.5")


def test_forbidden_namespaces_are_reported_with_the_kernels_message(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, ldd="", unshare="unshare: unshare failed: Operation not permitted\n")
    why = openpbs_needs.missing(str(installed)) or ""
    assert "Operation not permitted" in why and "--privileged" in why
    assert os.linesep not in why
