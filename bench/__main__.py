"""All figures, one table: `python -m bench [--quick] [--json] [NAME...]`.

Exit code 0: every target met; 1: one missed, or a script failed; a figure that could not be measured says why.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback

from magrathea_lab import leftovers

from .figure import Figure, as_json, missing, table

SCRIPTS = (
    *(
        "core_events",
        "core_growth",
        "claim",
        "guest_flood",
        "forkstorm",
        "openpbs",
        "job_end",
        "runjob_hook",
        "idle",
        "agent_start",
        "status_time",
    ),
    *("guests", "memory", "sleep"),
)
"""In this order; each module has `figures(quick)`."""


def measure(name: str, quick: bool) -> list[Figure]:
    """A script's figures. If it fails, one line reports that, and the other scripts still run."""
    began = time.monotonic()
    sys.stderr.write(f"bench: {name} ...\n")
    try:
        found: list[Figure] = importlib.import_module(f"bench.{name}").figures(quick)
    except Exception as error:  # noqa: BLE001 - one broken script must not take the other figures with it
        traceback.print_exc()
        return [Figure(name, None, "", "", False, f"failed: {type(error).__name__}: {error}")]
    sys.stderr.write(f"bench: {name}: {time.monotonic() - began:.0f} s\n")
    return found or [missing(name, "", "", "the script measured nothing")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("name", nargs="*", help=f"only these of: {', '.join(SCRIPTS)}")
    options = parser.parse_args()
    if unknown := set(options.name) - set(SCRIPTS):
        parser.error(f"no script {', '.join(sorted(unknown))}; there are: {', '.join(SCRIPTS)}")
    taken, cleared = leftovers.begin_run()
    for line in cleared:
        sys.stderr.write(f"bench: cleared first: {line}\n")
    try:
        figures = [f for name in options.name or SCRIPTS for f in measure(name, options.quick)]
    finally:
        taken.undo()
    print(as_json(figures) if options.json else table(figures))
    return 1 if any(f.met is False for f in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
