"""What all suites share: a test that was run once more (Makefile, AGAIN) says what had failed the first time."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_sep("_", f"run once more: {report.nodeid} ({report.when})")
        terminalreporter.write_line(report.longreprtext)
