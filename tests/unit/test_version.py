"""The version is stated once, in magrathea/__init__.py; all copies of it agree."""

from __future__ import annotations

import re
from importlib.metadata import version

from magrathea import __version__
from node_daemon.agent import VERSION
from tests.documents import ROOT


def test_the_installed_package_has_the_version_of_the_source() -> None:
    """If this fails after a change of the version, the environment is older than the source: `make setup`."""
    assert version("magrathea") == __version__


def test_the_agent_has_the_same_version() -> None:
    """The agent is copied into guests without the rest of the package, so it carries a copy of the number."""
    assert __version__ == VERSION


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == __version__
