"""What PBS demands of the hook files themselves."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOOKS = sorted((Path(__file__).parents[3] / "scheduler_plugin/hooks").glob("*.py"))


def test_there_are_the_three_of_them() -> None:
    assert [file.name for file in HOOKS] == ["magrathea_mom.py", "magrathea_server.py", "magrathea_vnodes.py"]


@pytest.mark.parametrize("file", HOOKS, ids=lambda file: file.name)
def test_a_hook_is_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 270


@pytest.mark.parametrize("file", HOOKS, ids=lambda file: file.name)
def test_a_hook_runs_on_python_3_6(file: Path) -> None:
    vermin = shutil.which("vermin", path=str(Path(sys.executable).parent)) or shutil.which("vermin")
    assert vermin is not None, "vermin is not installed; make setup installs it"
    done = subprocess.run([vermin, "-q", "-t=3.6-", "--no-tips", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", HOOKS, ids=lambda file: file.name)
def test_a_hook_imports_the_standard_library_and_pbs_only(file: Path) -> None:
    names: set[str] = set()
    for entry in ast.walk(ast.parse(file.read_text())):
        if isinstance(entry, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in entry.names}
        elif isinstance(entry, ast.ImportFrom):
            names.add((entry.module or "").partition(".")[0])
    assert names <= {"pbs", "_socket", "json", "os", "time"}
