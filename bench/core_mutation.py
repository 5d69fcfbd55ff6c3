"""How many small faults in the pure core its unit tests notice: `python -m bench.core_mutation`.

mutmut makes the mutants (one operator, constant or argument changed in each) and runs, for each of them, the tests
that reach the changed function. This script chooses a sample by `--seed`, lets mutmut test it in a copy of the tree,
prints a table and the change that each survivor made. A survivor is either a gap in the tests or a change without an
effect. Exit code 1 if less than `--at-least` per cent were noticed.

The property test is left out: it would take minutes for each mutant.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .figure import progress

ROOT = Path(__file__).parents[1]
COPIED = ("magrathea", "magrathea_lab", "node_daemon", "scheduler_plugin", "tests", "pyproject.toml")
FIRST = "magrathea.core.states.*__mutmut_1"
"""A run for these few makes all mutants and measures the tests; the names of all are known afterwards."""

RESULT = re.compile(r"\s*(?P<name>(?P<module>magrathea\.core\.\w+)\.\S+): (?P<status>.+)")
NOTICED = {"killed", "timeout", "caught by type check"}


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    module: str
    status: str


class MutmutFailed(Exception):
    """mutmut ended with an error; the text is what it printed last."""


def mutmut(tree: Path, *arguments: str) -> str:
    program = Path(sys.executable).with_name("mutmut")
    done = subprocess.run([program, *arguments], cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MutmutFailed((done.stdout + done.stderr)[-4_000:])
    return done.stdout


def mutants(results: str) -> list[Mutant]:
    """What `mutmut results` printed, as data."""
    return [Mutant(found["name"], found["module"], found["status"]) for found in RESULT.finditer(results)]


def sample(every: Iterable[Mutant], count: int, seed: int) -> list[str]:
    """Names of `count` mutants, the same ones for the same seed and code; all of them if there are no more."""
    names = sorted(mutant.name for mutant in every)
    return names if count >= len(names) else sorted(Random(seed).sample(names, count))


def row(title: str, tested: list[Mutant]) -> str:
    noticed = sum(mutant.status in NOTICED for mutant in tested)
    return f"{title:<28}{len(tested):>8}{noticed:>9}{100 * noticed / len(tested):>8.1f} %"


def table(tested: list[Mutant]) -> str:
    """A line for each module and one for all."""
    lines = [f"{'module':<28}{'mutants':>8}{'noticed':>9}{'share':>10}"]
    lines += [row(module, [m for m in tested if m.module == module]) for module in sorted({m.module for m in tested})]
    others = Counter(mutant.status for mutant in tested if mutant.status not in NOTICED)
    return "\n".join([*lines, row("all", tested), *(f"{status}: {count}" for status, count in sorted(others.items()))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.core_mutation", description=__doc__)
    parser.add_argument("--mutants", type=int, default=400, metavar="N", help="how many to test (default: 400)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    parser.add_argument("--processes", type=int, default=2, help="tested at the same time (default: 2)")
    parser.add_argument("--at-least", type=float, default=0, metavar="PERCENT", help="exit code 1 below this share")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="magrathea-mutation-") as directory:
        tree = Path(directory)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        children = ("--max-children", str(options.processes))
        progress("making mutants of magrathea/core")
        mutmut(tree, "run", FIRST, *children)
        names = sample(mutants(mutmut(tree, "results", "--all", "True")), options.mutants, options.seed)
        progress(f"testing {len(names)} of them")
        mutmut(tree, "run", *names, *children)
        chosen = set(names)
        tested = [m for m in mutants(mutmut(tree, "results", "--all", "True")) if m.name in chosen]
        for mutant in tested:
            if mutant.status not in NOTICED:
                print(mutmut(tree, "show", mutant.name))
    print(table(tested))
    noticed = sum(mutant.status in NOTICED for mutant in tested)
    return 1 if 100 * noticed < options.at_least * len(tested) else 0


if __name__ == "__main__":
    sys.exit(main())
