"""The job that demo and scenarios submit: it really computes, shows its progress, and proves that nothing was lost.

    python work.py STEPS PAUSE_S FILE [HOLD_MIB]

Each step finds the next PRIMES_A_STEP prime numbers by trial division and writes the number of steps done to FILE. The
job ends earlier, after its current step, if a file with FILE's name and the suffix FINISH exists. At the end it prints
its result, how often it was started, and the longest time between two steps.

With HOLD_MIB it also holds that much incompressible memory. It checks a piece of it in each step and all of it at the
end, and prints whether every byte was unchanged.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

PRIMES_A_STEP = 200
PAUSE_S = 0.05
"""Pause between two steps, for all jobs of demo and scenarios."""

FINISH = ".finish"
STARTED_ONCE = "started 1 times"
"""In the output of a job that was never requeued while it ran. A refused start does not count: nothing has run."""


def result(steps: int) -> str:
    """What a job of so many steps must print first, computed in another way (a sieve)."""
    count = steps * PRIMES_A_STEP
    size = max(100, count * 20)  # the n-th prime is below n * 20 for all n below 10^7
    composite = bytearray(size)
    found = []
    for number in range(2, size):
        if not composite[number]:
            found.append(number)
            composite[number * number :: number] = b"\1" * len(range(number * number, size, number))
    return f"{count} primes, the last one {found[count - 1]}"


PAGE, MIB = 4096, 1 << 20


def held(mib: int) -> str:
    """What a job that holds `mib` MiB prints at the end if no byte has changed."""
    return f"{mib} MiB held, byte for byte as written"


class MarkedMemory:
    """Memory full of noise, with a different mark in each page."""

    def __init__(self, mib: int) -> None:
        self._noise = os.urandom(MIB)
        self._blocks = [self._block(number) for number in range(mib)]
        self.changed = 0

    def _block(self, number: int) -> bytearray:
        block = bytearray(self._noise)
        for page in range(MIB // PAGE):
            struct.pack_into("<Q", block, page * PAGE, number * (MIB // PAGE) + page)
        return block

    def look(self, number: int) -> None:
        """Check MiB number `number`."""
        if self._blocks and self._blocks[number % len(self._blocks)] != self._block(number % len(self._blocks)):
            self.changed += 1

    def verdict(self) -> str:
        for number in range(len(self._blocks)):
            self.look(number)
        return f"{self.changed} MiB have CHANGED" if self.changed else held(len(self._blocks))


def next_prime(primes: list[int]) -> int:
    """The next prime. `primes` are all primes before it."""
    candidate = primes[-1] + 1 if primes else 2
    while True:
        for p in primes:
            if p * p > candidate:
                return candidate
            if candidate % p == 0:
                break
        else:
            return candidate
        candidate += 1


def main(steps: int, pause_s: float, path: Path, hold_mib: int = 0) -> None:
    starts, finish = path.with_suffix(".starts"), path.with_suffix(FINISH)
    with starts.open("a", encoding="ascii") as file:
        file.write("started\n")
    memory = MarkedMemory(hold_mib)
    primes: list[int] = []
    longest, last = 0.0, time.monotonic()
    with path.open("w", encoding="ascii") as file:
        for step in range(1, steps + 1):
            while len(primes) < step * PRIMES_A_STEP:
                primes.append(next_prime(primes))
            memory.look(step)
            file.seek(0)
            file.write(f"{step:12d}\n")
            file.flush()
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            if finish.exists():
                break
            time.sleep(pause_s)
    print(f"{len(primes)} primes, the last one {primes[-1]}")  # noqa: T201  it is the job's output
    print(f"started {len(starts.read_text(encoding='ascii').splitlines())} times")  # noqa: T201
    if hold_mib:
        print(memory.verdict())  # noqa: T201
    print(f"longest pause {longest:.2f} s")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), int((sys.argv[4:] or ["0"])[0]))
