"""A guest's Python may be old, and has nothing beside its standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

AGENT = Path(__file__).resolve().parents[3] / "node_daemon" / "agent.py"


def test_the_agent_is_valid_python_36() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vermin import main; main()", "-t=3.6-", "--violations", str(AGENT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_agent_imports_the_standard_library_only() -> None:
    names = set()
    for node in ast.walk(ast.parse(AGENT.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add((node.module or "").partition(".")[0])
    assert names <= sys.stdlib_module_names


def test_the_agent_does_not_import_what_costs_memory() -> None:
    program = f"import sys; sys.path.insert(0, {str(AGENT.parent)!r}); import agent; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert not {"asyncio", "subprocess", "logging", "typing", "argparse", "ctypes"} & set(done.stdout.split())
