"""Shared by all suites: hypothesis's profiles, the tests that need a real system, and the summary at the end.

Hypothesis has four profiles (`pytest --hypothesis-profile=NAME`). `check`, for `make check`, and `small`, for `make
mutation`, always use the same examples; `default` is for `make test`; `thorough` is for a night. `check` also leaves
out rows of long tables of tests (tables.py), and tests with the mark `long`. Tests state multiples of a profile's
number, no numbers of their own. No profile has a deadline: an example's time depends on the machine more than on the
code.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from magrathea_lab import leftovers

from . import kept_reports, real_systems

HERE = Path(__file__).parent
LONGEST_FIRST = ("openpbs", "libvirt", "embedded")
"""With several workers the run ends with quick tests, so that no worker waits long for another's last test."""
LONGEST_FILES = ("test_guests.py", "test_walk_through.py", "test_install.py", "test_crash.py", "test_scenarios.py")
"""They start systems of their own, or crash each part after each step. All tests of a file run in the same worker."""
EXAMPLES = {"check": 12, "small": 25, "default": 200, "thorough": 4_000}
"""All property tests together take seconds with `check` and `small`, a minute with `default`, a quarter of an hour with
`thorough`."""

for name, number in EXAMPLES.items():
    settings.register_profile(
        name,
        max_examples=number,
        derandomize=name in ("check", "small"),  # a failure of `make check` must come from the change, not from chance
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )
settings.load_profile("default")


RUN = pytest.StashKey[tuple[leftovers.Taken, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    kept_reports.pytest_configure(config)
    config.stash[RUN] = leftovers.begin_run()


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"cleared: {line}" for line in config.stash[RUN][1]]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[RUN][0].undo()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what cannot be run: libvirt's binding may be missing."""
    suites = [suite for suite in real_systems.SUITES if suite.has(collection_path)]
    return True if any(suite.lacks is not None for suite in suites) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_real(item.path):
            item.add_marker("real")
    items.sort(key=lambda item: _place(item.path))


# Asked once for each file, not for each of its tests: each worker sorts all tests.


@cache
def _is_real(file: Path) -> bool:
    return any(suite.has(file) for suite in real_systems.SUITES)


@cache
def _place(file: Path) -> tuple[int, int]:
    return _index(file.relative_to(HERE).parts[0], LONGEST_FIRST), _index(file.name, LONGEST_FILES)


def _index(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)


FIRST_TIME: dict[BaseException, str] = {}
"""Failures of fixtures that several tests share, with the first test that met them."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A system that does not start fails each of its tests. The first one shows why, the others refer to it."""
    report = yield
    if call.when == "setup" and call.excinfo is not None and report.failed:
        error = call.excinfo.value
        first = FIRST_TIME.setdefault(error, item.nodeid)
        if first != item.nodeid:
            report.longrepr = f"{type(error).__name__}, reported at {first}: {str(error).partition(chr(10))[0]}"
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    suites = real_systems.left_out(session.config)
    if suites and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        failed = any(suite.required for suite in suites)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for suite in real_systems.left_out(config):
        word = "FAILED" if suite.required else "NOT RUN"
        terminalreporter.write_line(
            f"{suite.name}: {word}: {suite.lacks}", red=suite.required, yellow=not suite.required
        )
