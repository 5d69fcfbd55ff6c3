"""A guest's Python may be old, and has only its standard library."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).resolve().parents[3] / "node_daemon" / "agent"


@pytest.mark.long
def test_the_agent_is_valid_python_36() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vermin import main; main()", "-t=3.6-", "--violations", str(AGENT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", sorted(AGENT.glob("*.py")), ids=lambda path: path.stem)
def test_the_agent_imports_the_standard_library_and_itself_only(module: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1)
            if node.level == 0:
                names.add((node.module or "").partition(".")[0])
    assert names <= sys.stdlib_module_names


def test_the_agent_does_not_import_modules_that_cost_memory() -> None:
    program = f"import sys; sys.path.insert(0, {str(AGENT.parent)!r}); import agent.start; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert "agent.sweeper" in found
    assert not {"asyncio", "subprocess", "logging", "typing", "argparse", "ctypes", "socket"} & found


def test_the_folder_runs_under_any_name_and_nothing_comes_from_the_working_directory(tmp_path: Path) -> None:
    folder = tmp_path / "some-other-name"
    shutil.copytree(AGENT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for place in (tmp_path / "cwd", folder, tmp_path):
        place.mkdir(exist_ok=True)
        (place / "tty.py").write_text("raise SystemExit('taken from the wrong place')\n")
    (tmp_path / "cwd" / "json.py").write_text("raise SystemExit('taken from the wrong place')\n")
    run = [sys.executable, "-I", "-S", str(folder), "--version"]
    done = subprocess.run(run, cwd=tmp_path / "cwd", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("magrathea-agent ")
