"""How many small faults in the pure core its tests notice: `python -m bench.core_mutation`.

mutmut makes the mutants (one operator, constant or argument changed in each) and runs, for each of them, the tests
that reach the changed function. This script chooses a sample by `--seed` and lets mutmut test it in a copy of the tree.
The unit tests come first; the property tests (`small` profile) then try the mutants that these missed. The script
prints a table and the change that each survivor made. A survivor is a gap in the tests, or a change without an effect.
Exit code 1 if less than `--at-least` per cent were noticed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
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
NOTICED = {"killed", "timeout"}
UNIT = '"tests/unit/core"'
ARGUMENTS = "pytest_add_cli_args = ["
"""In pyproject.toml. The second round adds the property tests there."""


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


def row(title: str, tested: list[Mutant], survivors: set[str]) -> str:
    by_unit = sum(mutant.status in NOTICED for mutant in tested)
    by_all = sum(mutant.name not in survivors for mutant in tested)
    shares = "".join(f"{100 * noticed / len(tested):>14.1f} %" for noticed in (by_unit, by_all))
    return f"{title:<32}{len(tested):>8}{shares}"


def table(tested: list[Mutant], survivors: set[str]) -> str:
    """A line for each module and one for all. `tested`: by the unit tests; `survivors`: of all tests."""
    modules = sorted({mutant.module for mutant in tested})
    lines = [f"{'noticed by':<32}{'mutants':>8}{'unit tests':>16}{'or property':>16}"]
    lines += [row(module, [m for m in tested if m.module == module], survivors) for module in modules]
    return "\n".join([*lines, row("all", tested, survivors)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.core_mutation", description=__doc__)
    parser.add_argument("--mutants", type=int, default=300, metavar="N", help="how many to test (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    parser.add_argument("--processes", type=int, default=2, help="tested at the same time (default: 2)")
    parser.add_argument("--at-least", type=float, default=0, metavar="PERCENT", help="exit code 1 below this share")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="magrathea-mutation-") as directory:
        tree = Path(directory)
        copy(tree)
        children = ("--max-children", str(options.processes))
        progress("making mutants of magrathea/core")
        mutmut(tree, "run", FIRST, *children)
        names = sample(results(tree), options.mutants, options.seed)
        progress(f"testing {len(names)} of them with the unit tests")
        mutmut(tree, "run", *names, *children)
        tested = [mutant for mutant in results(tree) if mutant.name in set(names)]
        survivors = {mutant.name for mutant in tested if mutant.status not in NOTICED}
        if survivors:
            add_property_tests(tree / "pyproject.toml")
            progress(f"testing the {len(survivors)} survivors with the property tests, too")
            mutmut(tree, "run", *sorted(survivors), *children)
            survivors -= {mutant.name for mutant in results(tree) if mutant.status in NOTICED}
        for name in sorted(survivors):
            print(mutmut(tree, "show", name))
    print(table(tested, survivors))
    return 1 if 100 * (len(tested) - len(survivors)) < options.at_least * len(tested) else 0


def copy(tree: Path) -> None:
    """Copy what mutmut needs, because it works in the directory that it mutates."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def results(tree: Path) -> list[Mutant]:
    return mutants(mutmut(tree, "results", "--all", "True"))


def add_property_tests(project: Path) -> None:
    text = project.read_text(encoding="utf-8")
    if UNIT not in text or ARGUMENTS not in text:
        raise MutmutFailed(f"{project} lacks {UNIT} or {ARGUMENTS} in [tool.mutmut]")
    text = text.replace(UNIT, f'{UNIT}, "tests/property"')
    project.write_text(text.replace(ARGUMENTS, f'{ARGUMENTS}"--hypothesis-profile=small", '), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
