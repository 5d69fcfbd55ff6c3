"""The machine's swap: what of it takes memory away, and what only compresses it (zram)."""

import os

from .procfs import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List

MOST_DEVICES = 64
ASSUMED_SHARE = 0.5  # of what zram holds stays in memory, as long as it holds too little to tell
TELLING_BYTES = 16 << 20


class Swap:
    """The swap devices that are on, in MiB.

    `real`: on disks and the like. `zram`: in compressed memory. `zram_used`: memory that zram takes up now, for
    `zram_holds` MiB of data.
    """

    def __init__(self, real: int, zram: int, zram_holds: int, zram_used: int) -> None:
        self.real = real
        self.zram = zram
        self.zram_holds = zram_holds
        self.zram_used = zram_used

    def share(self) -> float:
        """How much of what goes to zram stays in memory: 1 if nothing of it can be compressed."""
        if self.zram_holds << 20 < TELLING_BYTES:
            return ASSUMED_SHARE
        return min(1.0, float(self.zram_used) / self.zram_holds)

    def takes(self) -> int:
        """How much memory leaves the machine if all of the swap is used."""
        return self.real + int(self.zram * (1.0 - self.share()))

    def report(self) -> "Dict[str, int]":
        return {"zram_mib": self.zram, "zram_used_mib": self.zram_used, "swap_takes_mib": self.takes()}


def swap(proc: str = "/proc/swaps", block: str = "/sys/block") -> Swap:
    """The swap that is on. What cannot be read counts as real swap; no file at all as no swap."""
    try:
        lines = read_file(proc).decode("utf-8", "replace").split("\n")[1 : 1 + MOST_DEVICES]
    except OSError:
        return Swap(0, 0, 0, 0)
    real = zram = holds = used = 0
    for line in lines:
        words = line.split()
        if len(words) < 3 or not words[2].isdigit():
            continue
        figures = _zram(os.path.join(block, os.path.basename(words[0]), "mm_stat"))
        if words[0].startswith("/dev/zram") and figures:
            zram += int(words[2])
            holds += figures[0]
            used += figures[2]
        else:
            real += int(words[2])
    return Swap(real >> 10, zram >> 10, holds >> 20, used >> 20)


def _zram(path: str) -> "List[int]":
    """The first figures of mm_stat in bytes: data, compressed data, memory that is used. Empty if there are none."""
    try:
        words = read_file(path, 4096).split()
    except OSError:
        return []
    return [int(word) for word in words[:3]] if len(words) >= 3 and all(w.isdigit() for w in words[:3]) else []
