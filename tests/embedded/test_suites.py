"""What the suites report: which tests were run again, and what this machine cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import kept_reports
from tests.real_systems import HERE, RealSuite

ROOT = HERE.parent
FLAKY = """
tried = []
def test_that_needs_two_runs():
    tried.append(1)
    assert len(tried) == 2, "the first run fails"
"""
LACKING = """
import pytest
from pathlib import Path
from tests import conftest, real_systems
missing = lambda: "no such system here"
suite = real_systems.RealSuite(Path(__file__).parent / "real", missing, "MAGRATHEA_REQUIRE_NOTHING")
real_systems.HERE, real_systems.SUITES = Path(__file__).parent, (suite,)
from tests.conftest import pytest_ignore_collect, pytest_sessionfinish, pytest_terminal_summary
"""


def run_pytest(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in `folder`, which has its own configuration and ignores this repository's."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder, env={**inherited, "PYTHONPATH": str(ROOT), **environment}, text=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "with workers"])
def test_a_rerun_is_written_down_with_its_reason(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "test_flaky.py").write_text(FLAKY, encoding="utf-8")
    done = run_pytest(tmp_path, "-p", "tests.kept_reports", "--reruns", "1", *workers)
    assert done.returncode == 0, done.stdout
    head, *why = (tmp_path / kept_reports.FILES["rerun"]).read_text(encoding="utf-8").splitlines()
    assert head.startswith("== 20") and head.endswith("test_flaky.py::test_that_needs_two_runs (call)")
    assert any("the first run fails" in line for line in why)


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "with workers"])
def test_failures_are_written_down_also_those_before_a_test_begins(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "test_wrong.py").write_text("def test_it():\n    assert 1 == 2\n", encoding="utf-8")
    (tmp_path / "test_missing.py").write_text("import a_binding_that_is_missing\n", encoding="utf-8")
    done = run_pytest(tmp_path, "-p", "tests.kept_reports", "--continue-on-collection-errors", *workers)
    assert done.returncode == 1, done.stdout
    kept = (tmp_path / kept_reports.FILES["failed"]).read_text(encoding="utf-8")
    heads = sorted(line.split()[2] for line in kept.splitlines() if line.startswith("== "))
    assert heads == ["test_missing.py", "test_wrong.py::test_it"]
    assert "E   ModuleNotFoundError" in kept and "assert 1 == 2" in kept


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "with workers"])
@pytest.mark.parametrize(("required", "word", "code"), [("", "NOT RUN", 0), ("1", "FAILED", 1)])
def test_a_suite_that_this_machine_cannot_run_is_one_line(
    tmp_path: Path, workers: list[str], required: str, word: str, code: int
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "test_it.py").write_text("import a_binding_that_is_missing\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text(LACKING, encoding="utf-8")
    done = run_pytest(tmp_path, *workers, ".", MAGRATHEA_REQUIRE_NOTHING=required)
    said = [line for line in done.stdout.splitlines() if "no such system here" in line]
    assert said == [f"{tmp_path.name}/real: {word}: no such system here"], done.stdout
    assert done.returncode == code, done.stdout


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("tests", True),
        ("tests/openpbs", True),
        ("tests/openpbs/test_hub.py::test_it", True),
        ("tests/unit", False),
        ("tests/openpbs_like", False),
    ],
)
def test_only_requested_suites_count_as_missing(argument: str, wanted: bool) -> None:
    suite = RealSuite(ROOT / "tests" / "openpbs", lambda: "nothing", "MAGRATHEA_REQUIRE_NOTHING")
    config: Any = SimpleNamespace(args=[argument], invocation_params=SimpleNamespace(dir=ROOT))
    assert suite.wanted(config) is wanted


NOT_UP = """
import pytest
from tests.conftest import pytest_runtest_makereport
tried = []
class NoOpenPbs(Exception):
    pass
@pytest.fixture(scope="session")
def system():
    tried.append(1)
    raise NoOpenPbs(f"it does not come up, try {len(tried)}")
"""


def test_a_system_that_does_not_start_is_tried_once_and_reported_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(NOT_UP, encoding="utf-8")
    tests = "".join(f"def test_{number}(system): pass\n" for number in range(3))
    (tmp_path / "test_it.py").write_text(tests, encoding="utf-8")
    done = run_pytest(tmp_path, "--reruns", "1", "-o", "rerun_except=NoOpenPbs")
    assert done.returncode == 1 and "3 errors" in done.stdout, done.stdout
    assert done.stdout.count("def system():") == 1, "one whole report"
    short = "NoOpenPbs, reported at test_it.py::test_0: it does not come up, try 1"
    assert done.stdout.count(short) >= 2 and "try 2" not in done.stdout, done.stdout


def test_a_system_that_is_there_but_broken_fails_a_run_that_did_not_ask_for_it() -> None:
    there = RealSuite(ROOT / "tests" / "openpbs", lambda: "why", "MAGRATHEA_REQUIRE_NOTHING", lambda: "why")
    absent = RealSuite(ROOT / "tests" / "openpbs", lambda: "why", "MAGRATHEA_REQUIRE_NOTHING")
    assert there.required and not absent.required
