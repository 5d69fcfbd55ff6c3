"""`make fuzz`: mutated samples for each entry point, one table, exit status 1 if anything failed."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from pathlib import Path

from .driver import CORPUS, Outcome, inputs, run
from .targets import TARGETS

FOUND = Path(".fuzz")
"""Inputs that failed are written there."""
SEED = 1
INPUTS = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, help=f"for each target (default {INPUTS}; for slow targets fewer)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="longest run of each target (default: no limit)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="repeats a run (%(default)s)")
    parser.add_argument("--targets", default="", help="names with commas or spaces; default: all")
    asked = parser.parse_args()
    known = {target.name: target for target in TARGETS}
    names = asked.targets.replace(",", " ").split() or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"no target {', '.join(sorted(unknown))}; known: {', '.join(known)}")

    print(f"seed {asked.seed}, {asked.inputs or INPUTS} inputs for each target")
    print(f"{'target':20}{'inputs':>10}{'seconds':>9}{'per s':>9}{'refused':>9}{'lines':>7}{'MiB':>7}{'failures':>10}")
    failed = False
    for name in names:
        samples = [data for _, data in known[name].samples()]
        number = asked.inputs or int(INPUTS * known[name].share)
        outcome = run(known[name], inputs(samples, number, asked.seed, asked.seconds))
        print(_row(outcome), flush=True)
        for line in _told(outcome, asked.seed):
            print(line, flush=True)
        failed = failed or bool(outcome.failures)
    return 1 if failed else 0


def _row(o: Outcome) -> str:
    numbers = (
        f"{o.inputs:>10}{o.seconds:>9.1f}{o.inputs / max(o.seconds, 1e-6):>9.0f}{o.refused / max(o.inputs, 1):>9.0%}"
    )
    return f"{o.target:20}{numbers}{o.lines:>7}{o.grown_mib:>7.1f}{len(o.failures):>10}"


def _told(o: Outcome, seed: int) -> list[str]:
    """What failed, with the input in a file and how to keep it."""
    told = []
    for failure in o.failures.values():
        told += [f"--- {o.target}: {failure.kind}", failure.text.rstrip()]
        if failure.data is None:
            told.append(f"again: make fuzz TARGETS={o.target} SEED={seed} INPUTS={o.inputs}")
            continue
        FOUND.mkdir(exist_ok=True)
        path = FOUND / f"{o.target}-{hashlib.sha256(failure.data).hexdigest()[:12]}"
        path.write_bytes(failure.data)
        kept = (CORPUS / o.target).relative_to(Path.cwd()) if CORPUS.is_relative_to(Path.cwd()) else CORPUS / o.target
        told.append(f"input: {path}; keep it: cp {path} {kept}/NAME-OF-THE-ATTACK, then fix the reader")
    return told


if __name__ == "__main__":
    sys.exit(main())
