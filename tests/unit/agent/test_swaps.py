"""Swap that takes memory away, and swap that only compresses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_daemon.agent.swaps import ASSUMED_SHARE, Swap, swap

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ZRAM = "/dev/zram0                              partition\t2097152\t\t0\t\t100\n"
DISK = "/dev/vda                                partition\t1048576\t\t0\t\t-2\n"
FILE = "/swap\\040file                           file\t\t1048576\t\t0\t\t-3\n"
MIB = 1 << 20


def seen(tmp_path: Path, lines: str, data_mib: int = 0, used_mib: int = 0) -> Swap:
    (tmp_path / "swaps").write_text(HEAD + lines)
    (tmp_path / "zram0").mkdir(exist_ok=True)
    figures = f"{data_mib * MIB} {used_mib * MIB // 2} {used_mib * MIB} 0 0 0 0 0 0\n"
    (tmp_path / "zram0" / "mm_stat").write_text(figures)
    return swap(str(tmp_path / "swaps"), str(tmp_path))


def test_a_disk_takes_all_that_it_has_room_for(tmp_path: Path) -> None:
    found = seen(tmp_path, DISK + FILE)
    assert (found.real, found.zram, found.takes()) == (2048, 0, 2048)


def test_zram_takes_what_it_saves(tmp_path: Path) -> None:
    found = seen(tmp_path, ZRAM, data_mib=400, used_mib=100)
    assert (found.real, found.zram, found.zram_used, found.takes()) == (0, 2048, 100, 1536)


def test_zram_takes_nothing_of_what_cannot_be_compressed(tmp_path: Path) -> None:
    assert seen(tmp_path, ZRAM, data_mib=400, used_mib=410).takes() == 0
    assert seen(tmp_path, ZRAM + DISK, data_mib=400, used_mib=410).takes() == 1024


def test_as_long_as_zram_is_nearly_empty_a_share_is_assumed(tmp_path: Path) -> None:
    assert seen(tmp_path, ZRAM, data_mib=1, used_mib=1).takes() == 2048 * ASSUMED_SHARE


@pytest.mark.parametrize("lines", ["", "garbage\n", "/dev/vda partition many 0 0\n", "\xff\xfe 1 2"])
def test_what_cannot_be_understood_is_no_swap(tmp_path: Path, lines: str) -> None:
    assert seen(tmp_path, lines).takes() == 0
    assert swap(str(tmp_path / "none")).takes() == 0


def test_zram_without_figures_counts_as_a_device_like_others(tmp_path: Path) -> None:
    (tmp_path / "swaps").write_text(HEAD + ZRAM)
    assert swap(str(tmp_path / "swaps"), str(tmp_path / "nothing")).real == 2048
