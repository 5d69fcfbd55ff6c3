"""One name, one thing: no two public classes of the product share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("magrathea", "node_daemon", "scheduler_plugin")
HOOKS = "scheduler_plugin/hooks/"
"""They run in PBS's own Python and use PBS's names."""
SHARED = {"Job": "the facts of a job's part on a host; and its processes, as the agent sees them in the guest"}
"""Names that stand for two things, and which: the same thing of the world, seen from two places."""


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        where = str(path.relative_to(ROOT))
        if not where.startswith(HOOKS):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(where)
    assert len(places) > 200, "the classes are found"
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in SHARED} == {}
    assert twice.keys() == SHARED.keys(), "an exception that is no longer needed"
