"""What the daemon needs of a journal, and what replaces one that cannot be opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from magrathea.core.events import Event
from magrathea.core.model import Host
from magrathea.core.moves import Moves
from magrathea.history import Recorded

from .journal_schema import JournalError


@dataclass(frozen=True, slots=True)
class Since:
    """The state a domain is in, and since when (Unix seconds)."""

    state: str
    since: float


class JournalStore(Protocol):
    """What the daemon needs of a journal."""

    def commit(
        self,
        host: Host,
        event: Event | None,
        decisions: Sequence[Recorded],
        states: dict[str, Since] | None = None,
        moves: Moves | None = None,
    ) -> None:
        """Write the facts to disk, with what led to them. `moves`: None if they are as before. Raises JournalError."""

    def note(self, at: float, event: Event | None, decisions: Sequence[Recorded]) -> None:
        """Keep this for the history; it is written later."""

    def tidy(self, keep_since: float) -> bool:
        """Prune the history and shorten the log. Raises JournalError."""

    def close(self) -> None:
        """Close the file."""


class NoJournal:
    """Replaces a journal that cannot be opened. Every commit fails with the reason, until a restart."""

    def __init__(self, error: JournalError) -> None:
        self._error = error

    def commit(
        self,
        host: Host,
        event: Event | None,
        decisions: Sequence[Recorded],
        states: dict[str, Since] | None = None,
        moves: Moves | None = None,
    ) -> None:
        raise self._error

    def note(self, at: float, event: Event | None, decisions: Sequence[Recorded]) -> None:
        """There is nowhere to keep it; the log has it."""

    def tidy(self, keep_since: float) -> bool:
        raise self._error

    def close(self) -> None:
        """Nothing is open."""
