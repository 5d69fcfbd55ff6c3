"""Swap for tests that push memory out: the machine's own if it has some, else a zram device during the test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.leftovers import Kind, swap_alone, take
from magrathea_lab.waiting import BOUND_S

ZRAM = Path("/sys/block/zram0")
DEVICE = Path("/dev/zram0")
SIZE_MIB = 512


def swap_free_mib() -> int:
    found = [line.split() for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("SwapFree:")]
    return int(found[0][1]) // 1024 if found else 0


@contextlib.contextmanager
def swap() -> Iterator[None]:
    """Provide at least some hundred MiB of swap. Skips the test, with the reason, if that is impossible."""
    with swap_alone():  # there is one device, and tests may run in parallel
        if swap_free_mib() >= SIZE_MIB // 2:
            yield
            return
        if os.geteuid() != 0 or not DEVICE.exists() or (ZRAM / "disksize").read_text().strip() != "0":
            pytest.skip("this machine has no swap, and no unused zram device that a test may borrow (needs root)")
        taken = take(Kind.SWAP, str(DEVICE))
        try:
            (ZRAM / "disksize").write_text(f"{SIZE_MIB}M")
            subprocess.run(["mkswap", "-q", str(DEVICE)], check=True, capture_output=True, timeout=BOUND_S)
            subprocess.run(["swapon", str(DEVICE)], check=True, capture_output=True, timeout=BOUND_S)
            yield
        finally:
            taken.undo()


@contextlib.contextmanager
def no_swap() -> Iterator[None]:
    """No swap at all. Skips the test if the machine has its own swap."""
    with swap_alone():
        if swap_free_mib() > 0:
            pytest.skip("this machine has swap of its own, which no test turns off")
        yield
