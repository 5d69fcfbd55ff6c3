"""Each import rule of pyproject.toml fails when an import breaks it, and the present tree breaks none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S

ROOT = Path(__file__).resolve().parents[2]
LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--cache-dir", "cache"]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]

BREACHES = [
    ("scheduler_plugin/pbs/base.py", "from node_daemon import clock", "Imports go down"),
    ("node_daemon/clock.py", "import scheduler_plugin.pbs.base", "Imports go down"),
    ("node_daemon/clock.py", "from magrathea_lab import processes", "Imports go down"),
    ("magrathea/client.py", "from node_daemon import clock", "Imports go down"),
    ("magrathea_lab/fleet.py", "from bench import figure", "Imports go down"),
    ("magrathea/core/plan.py", "import time", "The core has no I/O"),
    ("magrathea/core/plan.py", "from magrathea import messages", "The core has no I/O"),
    ("node_daemon/agent/log.py", "import msgspec", "The agent needs"),
    ("node_daemon/agent/log.py", "from node_daemon import clock", "The agent needs"),
    ("node_daemon/agent/wire.py", "from . import values", "Both ends of a guest channel"),
    ("magrathea/core/events.py", "from . import machine", "In the core:"),
    ("magrathea/core/caps.py", "from . import shares", "In the core:"),
    ("scheduler_plugin/hub/books.py", "from scheduler_plugin.setup import install", "Beside PBS"),
    ("node_daemon/hypervisor/local/cgroups.py", "from ..libvirt import driver", "Neither hypervisor driver"),
    ("magrathea_lab/guests/xml.py", "from ..clusters import keeper", "In the lab"),
    ("magrathea/qstat.py", "from magrathea.cli import view", "Nothing imports in a circle"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything that the rules are about."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in RULES["root_packages"]:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@contextmanager
def added(file: Path, line: str) -> Iterator[None]:
    before = file.read_text()
    file.write_text(f"{before}\n{line}\n")
    try:
        yield
    finally:
        file.write_text(before)


def broken(tree: Path) -> tuple[int, list[str]]:
    """The exit code, and the names of the broken rules."""
    done = subprocess.run(LINT, cwd=tree, capture_output=True, text=True, env={"COLUMNS": "500"}, timeout=BOUND_S)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.returncode, [line for line in done.stdout.splitlines() if " BROKEN" in line]


def test_the_tree_keeps_all_rules(tree: Path) -> None:
    assert broken(tree) == (0, [])


@pytest.mark.long
@pytest.mark.parametrize(("file", "line", "rule"), BREACHES)
def test_a_forbidden_import_is_found(tree: Path, file: str, line: str, rule: str) -> None:
    with added(tree / file, line):
        code, rules = broken(tree)
    assert code == 1
    assert any(name.startswith(rule) for name in rules), rules


def test_every_rule_has_been_seen_to_fail() -> None:
    names = {contract["name"] for contract in RULES["contracts"]}
    assert [name for name in names if not any(name.startswith(rule) for _, _, rule in BREACHES)] == []
