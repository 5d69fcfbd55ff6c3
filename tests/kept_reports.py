"""Keeps the reports of tests that failed: .reruns.log of those that were run again, .failures.log of the others.

Each report has the time, the test and the traceback. The suites on real systems may run a test again (Makefile, AGAIN).
If a test is in .reruns.log twice in ten runs, the test itself has a fault.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

FILES = {"rerun": ".reruns.log", "failed": ".failures.log"}
"""By a report's outcome. `rerun` is pytest-rerunfailures' own."""


class KeptReports:
    """Appends to the files, because two suites may run at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._keep(report.outcome, f"{report.nodeid} ({report.when})", report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._keep(report.outcome, f"{report.nodeid} (collect)", report.longreprtext)

    def _keep(self, outcome: str, name: str, text: str) -> None:
        if outcome in FILES:
            when = datetime.now().astimezone().isoformat(timespec="seconds")
            with (self._folder / FILES[outcome]).open("a", encoding="utf-8") as file:
                file.write(f"== {when} {name}\n{text}\n")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # only the controller gets all reports
        config.pluginmanager.register(KeptReports(config.rootpath))
