"""PBS's requirements on hooks: for each file, and for the full text that PBS gets."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler_plugin.setup.hook_texts import HOOKS, SHARED, hook_text, written
from scheduler_plugin.setup.install import OURS

FILES = sorted(HOOKS.glob("*.py"))
NAMES = [file.stem for file in FILES]
each_hook = pytest.mark.parametrize("name", NAMES)


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found is not None, f"{name} is not installed; make setup installs it"
    return found


def test_there_are_the_three_of_them() -> None:
    assert NAMES == ["magrathea_mom", "magrathea_server", "magrathea_vnodes"]


@each_hook
def test_a_hook_runs_on_python_3_6(name: str, tmp_path: Path) -> None:
    program = [tool("vermin"), "-q", "-t=3.6-", "--no-tips", str(written(name, tmp_path))]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@each_hook
def test_nothing_that_a_hook_uses_is_left_out(name: str, tmp_path: Path) -> None:
    program = [tool("ruff"), "check", "--isolated", "--select=F,E9", str(written(name, tmp_path))]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@each_hook
def test_a_hook_imports_the_standard_library_and_pbs_only(name: str) -> None:
    names: set[str] = set()
    for entry in ast.walk(ast.parse(hook_text(name))):
        if isinstance(entry, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in entry.names}
        elif isinstance(entry, ast.ImportFrom):
            names.add((entry.module or "").partition(".")[0])
    assert names <= {"pbs", "_socket", "json", "os", "stat", "sys", "time"}


@each_hook
def test_each_definition_comes_once_and_install_knows_the_hook_as_ours(name: str) -> None:
    text = hook_text(name)
    defined = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(set(defined)) == len(defined)
    assert OURS in text.splitlines()[0]


def test_a_hook_gets_its_own_part_of_the_shared_modules_and_no_more() -> None:
    mom, server, vnodes = (hook_text(name) for name in NAMES)
    assert "def size_bytes" in mom and "def size_bytes" not in server
    assert "def duration_s" not in mom + server
    assert vnodes == (HOOKS / "magrathea_vnodes.py").read_text()


def test_the_shared_modules_import_nothing_but_each_other() -> None:
    found = []
    for module in ("amounts", "words", "select", "placement"):
        tree = ast.parse((HOOKS.parents[1] / "magrathea" / "pbs_text" / f"{module}.py").read_text())
        found += [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert found, "they import each other"
    assert all(isinstance(node, ast.ImportFrom) and (node.module or "").startswith(SHARED) for node in found)
