"""Folds names for people, as ClusterShell does: node001 ... node140 become node[001-140].

ClusterShell itself would be a dependency for one function, and its import takes longer than `magrathea status` may take
in all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)
"""A name around its last number. Only names with the same text before and after the number are folded."""


def fold(names: Iterable[str]) -> str:
    """The set of names as text, sorted, separated by commas. Each name can be derived from it, with its leading
    zeros."""
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    single: list[str] = []
    for name in set(names):
        if found := _NUMBERED.fullmatch(name):
            groups[found[1], found[3]].add(found[2])
        else:
            single.append(name)
    folded = [f"{prefix}{part}{suffix}" for (prefix, suffix), digits in groups.items() for part in _parts(digits)]
    return ",".join(sorted([*single, *folded]))


def _parts(digits: set[str]) -> list[str]:
    """Groups of numbers that may be folded: those of one width if it has leading zeros (099 and 100), and all others
    together."""
    padded = {len(d) for d in digits if d[0] == "0" and len(d) > 1}
    by_width: dict[int, list[int]] = defaultdict(list)
    for d in digits:
        by_width[len(d) if len(d) in padded else 0].append(int(d))
    return [_brackets(sorted(numbers), width) for width, numbers in sorted(by_width.items())]


def _brackets(numbers: list[int], width: int) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:0{width}}"
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = (f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in ranges)
    return f"[{','.join(texts)}]"
