"""The kinds of PBS that the hub can connect to: `kind` in [pbs] of hub.toml, each found by its entry point.

Rule 1: the hub knows no kind by name. A package that brings one registers a function in the group `magrathea.pbs`,
under the word that stands in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from .base import Connect

ENTRY_POINTS = "magrathea.pbs"


class KindSettings(Protocol):
    """What a kind may need of [pbs]; each takes its own and checks it."""

    @property
    def conf(self) -> str: ...

    @property
    def socket(self) -> str: ...

    @property
    def call_deadline_s(self) -> float: ...


MakeConnect = Callable[[KindSettings], Connect]
"""Returns how to connect. Raises PbsError if that can never work."""


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def known() -> list[str]:
    """The words that `kind` may be."""
    return sorted(_points())


def connector(kind: str, settings: KindSettings) -> Connect:
    """How to connect to a PBS of that kind, one of `known`. Raises PbsError if it can never work."""
    make: MakeConnect = _points()[kind].load()
    return make(settings)
