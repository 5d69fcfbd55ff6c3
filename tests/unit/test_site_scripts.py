"""docs/site-scripts.md agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

from node_daemon.life.script_runner import NAMES

TEXT = (Path(__file__).parents[2] / "docs" / "site-scripts.md").read_text()


def test_each_occasion_is_there_and_no_other() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE) == [*NAMES]
