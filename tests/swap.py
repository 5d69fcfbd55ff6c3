"""Swap for tests that push memory out: the machine's own where it has some, else a zram device while it is needed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.leftovers import Kind, swap_alone, take

ZRAM = Path("/sys/block/zram0")
DEVICE = Path("/dev/zram0")
SIZE_MIB = 512


def swap_free_mib() -> int:
    found = [line.split() for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("SwapFree:")]
    return int(found[0][1]) // 1024 if found else 0


@contextlib.contextmanager
def swap() -> Iterator[None]:
    """At least some hundred MiB of swap. Skips the test, saying what the machine lacks, where there is none."""
    with swap_alone():  # one device, and tests may run side by side
        if swap_free_mib() >= SIZE_MIB // 2:
            yield
            return
        if os.geteuid() != 0 or not DEVICE.exists() or (ZRAM / "disksize").read_text().strip() != "0":
            pytest.skip("this machine has no swap, and no unused zram device that a test may borrow (needs root)")
        taken = take(Kind.SWAP, str(DEVICE))
        try:
            (ZRAM / "disksize").write_text(f"{SIZE_MIB}M")
            subprocess.run(["mkswap", "-q", str(DEVICE)], check=True, capture_output=True, timeout=30)
            subprocess.run(["swapon", str(DEVICE)], check=True, capture_output=True, timeout=30)
            yield
        finally:
            taken.undo()


@contextlib.contextmanager
def no_swap() -> Iterator[None]:
    """None at all; skips where the machine has some of its own."""
    with swap_alone():
        if swap_free_mib() > 0:
            pytest.skip("this machine has swap of its own, which no test turns off")
        yield
