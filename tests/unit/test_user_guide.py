"""The user's guide explains every comment that a job can show: those that the hub sets, and those of refusals."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from magrathea.core.refusals import TABLE, Section
from node_daemon.claims.claims import WAITS
from scheduler_plugin.hub import job_comments
from tests.documents import ROOT

GUIDE = (ROOT / "docs/user-guide.md").read_text()
CODES = GUIDE.partition("### The codes")[2].partition("\n## ")[0]
HUB = ROOT / "scheduler_plugin/hub"
LEAST = 5
"""Shorter pieces between the values of a comment say nothing."""


def pieces(value: ast.expr, function: ast.AST) -> list[str] | None:
    """The constant text in an expression; None if it has none, because it comes from elsewhere."""
    if isinstance(value, ast.Subscript):
        value = value.value
    if isinstance(value, ast.Name):
        made = [n.value for n in ast.walk(function) if isinstance(n, ast.Assign) and _is(n.targets[0], value.id)]
        return [piece for one in made for piece in pieces(one, function) or []] or None
    parts = value.values if isinstance(value, ast.JoinedStr) else [value]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)] or None


def _is(target: ast.expr, name: str) -> bool:
    return isinstance(target, ast.Name) and target.id == name


def comments(path: Path) -> Iterator[tuple[str, list[str] | None]]:
    """(the expression, its constant pieces) of each comment that the file makes."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if call.func.id == "SetComment":
                yield ast.unparse(call.args[1]), pieces(call.args[1], function)
            elif call.func.id == "comment":
                yield ast.unparse(call.args[0]), pieces(call.args[0], function)


def test_each_comment_of_the_hub_is_explained() -> None:
    """Those without a text of their own are the job's old one, what it waits for (below), and a constant."""
    found = [one for path in sorted(HUB.glob("*.py")) for one in comments(path)]
    assert {what for what, text in found if text is None} == {"entry.comment", "job.waits", "OVER"}
    told = [text for _, text in found if text is not None]
    assert len(told) >= 3
    for text in [*told, [job_comments.OVER]]:
        for piece in text:
            if len(piece.strip(" :;,")) >= LEAST:
                assert piece.strip(" :;,") in GUIDE, piece


def test_what_a_started_job_waits_for_is_explained() -> None:
    assert all(f"| `magrathea: {what}: ...` |" in GUIDE for what in WAITS)


def test_each_code_that_a_job_can_show_is_in_the_table_once_and_no_other() -> None:
    shown = {meaning.code.value for meaning in TABLE if meaning.section in (Section.SERVER_HOOK, Section.CLAIM)}
    listed = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"(?m)^\| [^|]* \| (`.*) \|$", CODES)))
    assert sorted(listed) == sorted(shown)


def test_comments_are_shown_by_an_option_that_shows_them() -> None:
    assert "qstat -s\n" in GUIDE
    assert "qstat -u $USER" not in GUIDE


def test_each_state_in_which_a_job_waits_or_stands_is_in_the_table() -> None:
    states = set(re.findall(r"(?m)^\| `([A-Z])`", GUIDE))
    assert {"Q", "W", "R", "S", "H"} <= states
