"""One name, one thing: no two public classes of the product share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("magrathea", "node_daemon", "scheduler_plugin")
OWN_PYTHON = ("node_daemon/agent/", "scheduler_plugin/hooks/")
"""They run on a guest's or PBS's own Python, import nothing of the rest, and use the wire's names."""


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        where = str(path.relative_to(ROOT))
        if not where.startswith(OWN_PYTHON):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(where)
    assert len(places) > 150, "the classes are found"
    assert not {name: found for name, found in places.items() if len(found) > 1}
