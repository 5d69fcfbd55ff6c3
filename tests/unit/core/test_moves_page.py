"""docs/moves.md names everything that the code knows about moves, and nothing else."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from magrathea.core.migration import MoveStep
from magrathea.core.moves import MoveStage, Says, Where

PAGE = Path(__file__).resolve().parents[3] / "docs" / "moves.md"


def rows(heading: str) -> list[str]:
    """The first column of the table below the heading."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert rest, f"the page has no heading {heading}"
    return re.findall(r"^\| `([\w-]+)` \|", rest.partition("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("The source", MoveStage),
        ("What hosts say to the hub", Says),
        ("What a hypervisor shows", Where),
        ("What a host does", MoveStep),
    ],
)
def test_each_table_has_the_words_of_the_code_in_their_order(heading: str, words: type[StrEnum]) -> None:
    assert rows(heading) == [word.value for word in words]
