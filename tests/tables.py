"""Long tables of tests: all rows in `make test`, some in `make check` (hypothesis's profile `check`, see conftest.py).

@pytest.mark.parametrize(("at", "how"), crossed(range(50), HOWS))
@pytest.mark.parametrize("nth", some(range(1, 70)))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeVar

from hypothesis import settings

T = TypeVar("T")


def is_check() -> bool:
    """True in `make check`. The profile is known when tests are collected."""
    return settings.get_current_profile_name() == "check"


def crossed(*columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Each value of a column with each of the others; in `make check` each value at least once."""
    if not is_check():
        return list(product(*columns))
    longest = max(map(len, columns))
    return [tuple(column[row % len(column)] for column in columns) for row in range(longest)]


def some(rows: Sequence[T], each: int = 4) -> Sequence[T]:
    """All rows; in `make check` the first, the last, and each fourth between them."""
    return (
        [row for number, row in enumerate(rows) if number % each == 0 or number == len(rows) - 1]
        if is_check()
        else rows
    )
