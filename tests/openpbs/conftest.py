"""One private OpenPBS cluster, with Magrathea on it, for the whole session.

Where OpenPBS is missing the summary says so in one line; with MAGRATHEA_REQUIRE_OPENPBS=1 such a run fails, so that
nothing passes because it was skipped. The same of what real guests need, for test_guests.py alone, with
MAGRATHEA_REQUIRE_LIBVIRT=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from magrathea_lab.clusters import openpbs_needs
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import ANOTHER, COUNTED, EXCLUSIVE
from magrathea_lab.guests import needs

HERE = Path(__file__).parent
REQUIRED = os.environ.get("MAGRATHEA_REQUIRE_OPENPBS") == "1"
WHY_NOT = openpbs_needs.missing()
GUESTS_REQUIRED = os.environ.get("MAGRATHEA_REQUIRE_LIBVIRT") == "1"
NO_GUESTS = needs.missing() if WHY_NOT is None else None
"""What this machine lacks for real guests beside OpenPBS, or None."""
GUESTS = HERE / "test_guests.py"
collect_ignore = [str(GUESTS)] if needs.missing() is not None else []
"""It cannot even be imported without libvirt's binding."""

EAGER = replace(ANOTHER, limits={"min_run_s": 0.0})
"""Stops a job as soon as the agent sees a process of it."""

_left_out = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without OpenPBS take this folder's tests out of the run; the summary and the exit code speak of them."""
    global _left_out
    if NO_GUESTS is not None:
        items[:] = [item for item in items if item.path != GUESTS]  # named on the command line
    if WHY_NOT is None:
        return
    mine = [item for item in items if HERE in item.path.parents]
    _left_out = len(mine)
    items[:] = [item for item in items if HERE not in item.path.parents]
    config.hook.pytest_deselected(items=mine)


def _guests_left_out(config: pytest.Config) -> bool:
    """Whether this run would have had test_guests.py."""
    wanted = [Path(config.invocation_params.dir, word.partition("::")[0]).resolve() for word in config.args]
    return NO_GUESTS is not None and any(path == GUESTS or path in GUESTS.parents for path in wanted)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _guests_left_out(session.config) and GUESTS_REQUIRED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if _left_out and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if REQUIRED else pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _guests_left_out(config):
        word = "FAILED" if GUESTS_REQUIRED else "NOT RUN"
        line = f"tests/openpbs/{GUESTS.name}: {word}: {NO_GUESTS}"
        terminalreporter.write_line(line, red=GUESTS_REQUIRED, yellow=not GUESTS_REQUIRED)
    if _left_out:
        line = f"tests/openpbs: {'FAILED' if REQUIRED else 'NOT RUN'}: {_left_out} tests: {WHY_NOT}"
        terminalreporter.write_line(line, red=REQUIRED, yellow=not REQUIRED)


@pytest.fixture(scope="session")
def _fleet() -> Iterator[OpenPbsCluster]:
    with OpenPbsCluster([EXCLUSIVE, COUNTED, EAGER]) as fleet:
        yield fleet


@pytest.fixture
def fleet(_fleet: OpenPbsCluster) -> Iterator[OpenPbsCluster]:
    """The cluster with all parts running and all domains free, before and after the test."""
    yield _fleet
    _fleet.restore()
