"""How much work code does, counted instead of timed: seconds depend on the machine and on what else runs there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def lines_run(call: Callable[[], T]) -> tuple[T, int]:
    """What `call` returns, and how many lines of Python it has run, repeated ones each time."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call(), count
    finally:
        sys.settrace(before)


class CountedText(str):
    """A text that counts the characters copied out of it, and out of what was copied. `copied` is a shared counter."""

    copied: list[int]

    def _take(self, part: str) -> CountedText:
        self.copied[0] += len(part)
        return counted(part, self.copied)

    def __getitem__(self, key: Any) -> CountedText:
        return self._take(super().__getitem__(key))

    def split(self, *arguments: Any) -> list[str]:
        return [self._take(part) for part in super().split(*arguments)]

    def partition(self, separator: str) -> tuple[str, str, str]:
        begin, found, rest = super().partition(separator)
        return self._take(begin), found, self._take(rest)

    def strip(self, *arguments: Any) -> CountedText:
        return self._take(super().strip(*arguments))

    def rstrip(self, *arguments: Any) -> CountedText:
        return self._take(super().rstrip(*arguments))

    def lstrip(self, *arguments: Any) -> CountedText:
        return self._take(super().lstrip(*arguments))

    def lower(self) -> CountedText:
        return self._take(super().lower())

    def replace(self, *arguments: Any) -> CountedText:
        return self._take(super().replace(*arguments))


def counted(text: str, copied: list[int]) -> CountedText:
    """`text`, counting in `copied`."""
    found = CountedText(text)
    found.copied = copied
    return found
