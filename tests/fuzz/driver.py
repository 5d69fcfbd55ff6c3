"""Feed a target, and notice what must not happen.

An input fails if the target
- raises anything but the errors that the table names for it, or
- takes more than SLOW_S of CPU time.
A run fails if the process's memory has grown by more than GROWTH_MIB, or if more lines reach stderr than
FLOOD_LINES and FLOOD_LINES_PER_S. The product's loggers write there, before the ration that all lines share.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from magrathea.logs import Formatter

from .mutations import mutated

CORPUS = Path(__file__).parents[1] / "hostile" / "corpus"

SLOW_S = 2.0
"""Inputs of at most 64 KiB take milliseconds; this is far more than what a busy machine adds."""
GROWTH_MIB = 64.0
"""Far more than the allocator's noise; with a million inputs it shows a loss of 70 bytes each."""
FLOOD_LINES, FLOOD_LINES_PER_S = 100, 10.0
"""The agent's log allows itself 40 lines at once and 5 a second."""
WARM_INPUTS = 500
"""After these, caches and compiled patterns are there, and growth is measured."""
LOOK_INPUTS = 250
MOST_FAILURES = 20
"""Different ones of a target; then its run ends."""

Reader = Callable[[bytes], None]
"""It may have an attribute `close`, which is called at the end."""


@dataclass(frozen=True)
class Target:
    """`make`: opens the entry point, with a folder that it may use. `refusals`: the errors that mean "no".

    `lines`: how many lines of the log each input may cause. 0 is right for whatever can come again and again; what is
    read once in a program's life may report its damage, and a whole program logs what it does. `share`: how many of the
    usual inputs it gets, because it is slow.
    """

    name: str
    make: Callable[[Path], Reader]
    refusals: tuple[type[Exception], ...] = ()
    lines: int = 0
    share: float = 1.0

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name

    def samples(self) -> list[tuple[str, bytes]]:
        return [(path.name, path.read_bytes()) for path in sorted(self.corpus.iterdir())]


@dataclass(frozen=True)
class Failure:
    """`kind`: what tells failures apart. `data`: the input; None if it was no single one."""

    kind: str
    text: str
    data: bytes | None = None


@dataclass
class Outcome:
    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    lines: int = 0
    grown_mib: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, failure: Failure) -> None:
        self.failures.setdefault(failure.kind, failure)


def inputs(samples: Sequence[bytes], number: int, seed: int, within_s: float = math.inf) -> Iterator[bytes]:
    """So many inputs, or fewer if `within_s` seconds have passed."""
    random, end = Random(seed), time.monotonic() + within_s
    for _ in range(number):
        if time.monotonic() > end:
            return
        yield mutated(samples, random)


def run(target: Target, data: Iterable[bytes], growth_mib: float = GROWTH_MIB, slow_s: float = SLOW_S) -> Outcome:
    """Feed the target with all of `data`."""
    outcome = Outcome(target.name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder, _stderr() as new_lines:
        read = target.make(Path(folder))
        first_mib = _memory_mib()
        for one in data:
            _feed(target, read, one, outcome, slow_s)
            if outcome.inputs == WARM_INPUTS:
                first_mib = _memory_mib()
            if outcome.inputs % LOOK_INPUTS == 0 or len(outcome.failures) >= MOST_FAILURES:
                _look(target, outcome, new_lines, first_mib, began, growth_mib)
                if len(outcome.failures) >= MOST_FAILURES or {"growth", "flood"} & set(outcome.failures):
                    break
        _look(target, outcome, new_lines, first_mib, began, growth_mib)
        getattr(read, "close", lambda: None)()
    return outcome


def _feed(target: Target, read: Reader, data: bytes, outcome: Outcome, slow_s: float) -> None:
    outcome.inputs += 1
    began_s = time.process_time()
    try:
        read(data)
    except target.refusals:
        outcome.refused += 1
    except Exception as error:  # noqa: BLE001  this is what we look for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        outcome.add(Failure(kind, "".join(traceback.format_exception(error)), data))
    used_s = time.process_time() - began_s
    if used_s > slow_s:
        outcome.add(Failure("slow", f"an input of {len(data)} bytes took {used_s:.1f} s of CPU time\n", data))


def _look(
    target: Target, outcome: Outcome, new_lines: Callable[[], int], first_mib: float, began: float, growth_mib: float
) -> None:
    outcome.seconds = time.monotonic() - began
    outcome.lines += new_lines()
    outcome.grown_mib = max(outcome.grown_mib, _memory_mib() - first_mib)
    if outcome.grown_mib > growth_mib:
        text = f"memory grew by {outcome.grown_mib:.0f} MiB in {outcome.inputs} inputs; {growth_mib:.0f} are allowed\n"
        outcome.add(Failure("growth", text))
    if outcome.lines > target.lines * outcome.inputs + FLOOD_LINES + FLOOD_LINES_PER_S * outcome.seconds:
        text = f"{outcome.lines} lines on stderr in {outcome.inputs} inputs and {outcome.seconds:.1f} s\n"
        outcome.add(Failure("flood", text))


def _memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _memory_folder() -> str | None:
    """A folder without a disk, if there is one: some targets write a file for each input."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class _Direct(logging.Handler):
    """Writes to descriptor 2, as a daemon's handler does."""

    def emit(self, record: logging.LogRecord) -> None:
        os.write(2, (self.format(record) + "\n").encode("utf-8", "replace"))


@contextmanager
def _stderr() -> Iterator[Callable[[], int]]:
    """Catch descriptor 2. Gives a function that returns how many lines have come since its last call."""
    handler = _Direct()
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    saved = os.dup(2)
    with tempfile.TemporaryFile("ab+", dir=_memory_folder()) as file:

        def new_lines() -> int:
            file.seek(0)
            number = file.read().count(b"\n")
            file.truncate(0)
            return number

        os.dup2(file.fileno(), 2)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield new_lines
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            os.dup2(saved, 2)
            os.close(saved)
