"""Records why a test was run again: .reruns.log has the time, the test, and the full report of its first failure.

The suites on real systems may run a test again (Makefile, AGAIN). If a test is in this file twice in ten runs, the test
itself has a fault.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

NAME = ".reruns.log"


class Reruns:
    """Appends to the file, because two suites may run at the same time."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]  # pytest-rerunfailures' own
            when = datetime.now().astimezone().isoformat(timespec="seconds")
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"== {when} {report.nodeid} ({report.when})\n{report.longreprtext}\n")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # only the controller gets all reports
        config.pluginmanager.register(Reruns(config.rootpath / NAME))
