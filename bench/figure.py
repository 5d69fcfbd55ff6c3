"""Figures: what a benchmark returns, and how they are printed.

Every script of this folder has `def figures(quick: bool) -> list[Figure]` and runs alone, too:
`python -m bench.claim [--quick] [--json]`. A rival is measured in the same run and has a line of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    `target`: the goal, for people ("<= 10"; empty: no goal, the figure is for comparison). `met`: whether the goal is
    reached; None if there is none or nothing could be measured. `value`: None if not measured; `note` then says why.
    """

    name: str
    value: float | None
    unit: str
    target: str = ""
    met: bool | None = None
    note: str = ""


def at_most(name: str, value: float, unit: str, limit: float, note: str = "") -> Figure:
    """A figure that should not be above `limit`."""
    return Figure(name, value, unit, f"<= {limit:g}", value <= limit, note)


def below(name: str, value: float, unit: str, limit: float, note: str = "") -> Figure:
    """A figure that should be under `limit`."""
    return Figure(name, value, unit, f"< {limit:g}", value < limit, note)


def missing(name: str, unit: str, target: str, why: str) -> Figure:
    """A figure that could not be measured here, and why."""
    return Figure(name, None, unit, target, None, why)


def progress(text: str) -> None:
    """Print what is being measured, because some of it takes minutes."""
    sys.stderr.write(f"bench: {text} ...\n")
    sys.stderr.flush()


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` % of them do not exceed (nearest rank). Raises ValueError."""
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))  # rounded up
    return ordered[int(rank) - 1]


def number(value: float | None) -> str:
    """A figure for people: four significant digits, no exponent."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def table(figures: Iterable[Figure]) -> str:
    """The figures as lines of text, columns aligned."""
    said = {True: "met", False: "MISSED", None: ""}
    rows = [("figure", "value", "unit", "goal", "", "note")]
    rows += [(f.name, number(f.value), f.unit, f.target, said[f.met], f.note) for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), row[1].rjust(widths[1]), *(row[i].ljust(widths[i]) for i in (2, 3, 4)), row[5]]
        ).rstrip()
        for row in rows
    )


def as_json(figures: Iterable[Figure]) -> str:
    return json.dumps([asdict(f) for f in figures], indent=1)


def run(measure: Callable[[bool], list[Figure]], doc: str | None) -> int:
    """The command line of a script: `--quick`, `--json`. Returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args()
    figures = measure(options.quick)
    sys.stdout.write((as_json(figures) if options.json else table(figures)) + "\n")
    return 1 if any(f.met is False for f in figures) else 0
