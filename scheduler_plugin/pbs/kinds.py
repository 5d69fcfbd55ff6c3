"""The kinds of PBS that the hub can connect to: `kind` in [pbs] of hub.toml. Each kind is an entry point.

Rule 1: the hub knows no kind by name. A package that provides a kind registers a function in the group `magrathea.pbs`,
under the word for the file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from .base import Connect

ENTRY_POINTS = "magrathea.pbs"


class KindSettings(Protocol):
    """What a kind may need of [pbs]. Each kind uses its own settings, and checks them."""

    @property
    def conf(self) -> str: ...

    @property
    def socket(self) -> str: ...

    @property
    def call_deadline_s(self) -> float: ...


MakeConnect = Callable[[KindSettings], Connect]
"""Returns a function that connects. Raises PbsError if that can never work."""


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def known() -> list[str]:
    """The possible values of `kind`."""
    return sorted(_points())


def connector(kind: str, settings: KindSettings) -> Connect:
    """A function that connects to a PBS of that kind, one of `known`. Raises PbsError if it can never work."""
    make: MakeConnect = _points()[kind].load()
    return make(settings)
