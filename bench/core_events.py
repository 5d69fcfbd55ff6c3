"""The pure core under random events: does every invariant hold, and how many events a second does it handle?

`python -m bench.core_events --events 1000000 [--seed N] [--processes N] [--json]`. The checks are those of
`make test` (magrathea_lab/rigs/core_world.py). Sequence number i of a run depends on `--seed` and i alone, so
`--seed N --only i` repeats a failure. A broken sequence ends early; more sequences follow until all events are done.
Exit code 1 if an invariant is broken. The number and events of each broken sequence go to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random

from magrathea.core.machine import handle
from magrathea_lab.rigs.core_histories import a_host, an_event
from magrathea_lab.rigs.core_world import Broken, World

from .figure import Figure, as_json, table

EVENTS_PER_SEQUENCE = 60
SEQUENCES_PER_TASK = 50
QUICK_EVENTS = 5_000
FULL_EVENTS = 30_000
"""For the table of all figures. A run of a million events takes `--events 1000000`."""


@dataclass(frozen=True, slots=True)
class Tally:
    events: int = 0
    swaps: int = 0
    restarts: int = 0
    preemptions: int = 0
    broken: tuple[tuple[int, str], ...] = ()
    """Number of the sequence; the invariant that does not hold, with the events that led there."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.events + other.events,
            self.swaps + other.swaps,
            self.restarts + other.restarts,
            self.preemptions + other.preemptions,
            self.broken + other.broken,
        )


def sequence(seed: int, number: int, events: int = EVENTS_PER_SEQUENCE) -> Tally:
    """One random host and `events` random events; now and then a restart, and two events swapped."""
    random = Random(f"{seed} {number}")
    world = World(a_host(random), thorough=False)
    done = swaps = restarts = preemptions = 0
    try:
        while done < events:
            event = an_event(random, world.host)
            done += 1  # counted before the check, because an event that breaks something is checked, too
            preemptions += sum(getattr(d, "what", "") == "preempted" for d in world.do(event))
            if random.random() < 0.1:
                now = world.host.now
                world.swap(an_event(random, world.host, now), an_event(random, world.host, now))
                swaps += 1
            if random.random() < 0.01:
                world.restart(agents_back=random.random() < 0.7)
                restarts += 1
        world.calm_down()
    except Broken as broken:
        return Tally(done, swaps, restarts, preemptions, ((number, str(broken)),))
    return Tally(done, swaps, restarts, preemptions)


def _task(work: tuple[int, range]) -> Tally:
    seed, numbers = work
    return sum((sequence(seed, number) for number in numbers), Tally())


def explore(events: int, seed: int, processes: int) -> tuple[Tally, float]:
    """Run at least `events` events with all checks. Returns the tally and the seconds."""
    begin, tally, first = time.perf_counter(), Tally(), 0
    while tally.events < events:
        end = first + -(-(events - tally.events) // EVENTS_PER_SEQUENCE)
        tally += _sequences(seed, range(first, end), processes)
        first = end
    return tally, time.perf_counter() - begin


def _sequences(seed: int, numbers: range, processes: int) -> Tally:
    work = [(seed, numbers[i : i + SEQUENCES_PER_TASK]) for i in range(0, len(numbers), SEQUENCES_PER_TASK)]
    if processes <= 1:
        return sum(map(_task, work), Tally())
    with ProcessPoolExecutor(processes) as pool:
        return sum(pool.map(_task, work), Tally())


def bare_rate(seed: int, events: int) -> float:
    """Events a second of `handle` alone, without checks."""
    random = Random(seed)
    host, spent = a_host(random), 0.0
    for number in range(events):
        if number % EVENTS_PER_SEQUENCE == 0:
            host = a_host(random)
        event = an_event(random, host)
        begin = time.perf_counter()
        host, _ = handle(host, event)
        spent += time.perf_counter() - begin
    return events / spent


def figures(quick: bool) -> list[Figure]:
    return _figures(QUICK_EVENTS if quick else FULL_EVENTS, seed=1, processes=os.cpu_count() or 1)[0]


def _figures(events: int, seed: int, processes: int) -> tuple[list[Figure], Tally]:
    tally, seconds = explore(events, seed, processes)
    what = f"{tally.preemptions} jobs stopped, {tally.swaps} swaps, {tally.restarts} restarts, seed {seed}"
    which = ", ".join(str(number) for number, _ in tally.broken)
    repeat = f"repeat each by --seed {seed} --only I, I = {which}" if which else ""
    return [
        Figure("core: random events checked", tally.events, "events", f">= {events}", tally.events >= events, what),
        Figure("core: invariants broken", len(tally.broken), "sequences", "0", not tally.broken, repeat),
        Figure("core: rate with all checks", tally.events / seconds, "events/s", note=f"{processes} processes"),
        Figure("core: rate of handle alone", bare_rate(seed, 3_000), "events/s", note="one process"),
    ], tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=FULL_EVENTS, help="how many, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, metavar="I", help="only sequence I, to repeat a failure")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EVENTS} events")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args()
    if options.only is not None:
        tally = sequence(options.seed, options.only)
        sys.stdout.write("" if tally.broken else "all invariants hold\n")
        return _told(tally)
    measured, tally = _figures(QUICK_EVENTS if options.quick else options.events, options.seed, options.processes)
    sys.stdout.write((as_json(measured) if options.json else table(measured)) + "\n")
    return _told(tally)


def _told(tally: Tally) -> int:
    """Print every broken sequence to standard error. Returns the exit code."""
    for number, story in tally.broken:
        sys.stderr.write(f"sequence {number}: {story}\n")
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
