"""`make check` tries some rows of the long tables of tests, all others try every row."""

from __future__ import annotations

import pytest

from tests import tables


@pytest.fixture(params=[False, True], ids=["all", "quick"])
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(tables, "is_check", lambda: request.param)
    return bool(request.param)


def test_crossed_columns(quick: bool) -> None:
    rows = tables.crossed("abc", (1, 2))
    assert len(rows) == len(set(rows)) == (3 if quick else 6)
    assert {row[0] for row in rows} == set("abc") and {row[1] for row in rows} == {1, 2}


def test_some_rows(quick: bool) -> None:
    assert list(tables.some(range(10))) == ([0, 4, 8, 9] if quick else list(range(10)))
    assert list(tables.some("x")) == ["x"] and list(tables.some("")) == []
