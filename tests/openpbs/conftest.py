"""One private OpenPBS cluster for the whole session. Where OpenPBS is missing the summary says so, in one line.

With MAGRATHEA_REQUIRE_OPENPBS=1 a run without OpenPBS fails: nothing passes because it was skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_plugin.standin.openpbs_cluster import Cluster, unavailable

HERE = Path(__file__).parent
REQUIRED = os.environ.get("MAGRATHEA_REQUIRE_OPENPBS") == "1"
WHY_NOT = unavailable()

_left_out = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without OpenPBS take this folder's tests out of the run; the summary and the exit code speak of them."""
    global _left_out
    if WHY_NOT is None:
        return
    mine = [item for item in items if HERE in item.path.parents]
    _left_out = len(mine)
    items[:] = [item for item in items if HERE not in item.path.parents]
    config.hook.pytest_deselected(items=mine)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _left_out and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if REQUIRED else pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        word = "FAILED" if REQUIRED else "NOT RUN"
        terminalreporter.write_line(
            f"tests/openpbs: {word}: {_left_out} tests: {WHY_NOT}", red=REQUIRED, yellow=not REQUIRED
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster(["n1", "p1", "n2", "p2"]) as cluster:
        yield cluster
