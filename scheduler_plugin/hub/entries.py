"""The books' entries by job, with what follows from all of them: which are due, and what goes to the disk. Pure."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from magrathea.core.model import JobKey

from .books import LedgerEntry
from .due_times import DueTimes
from .ledger import Kept, Paid
from .sleepers import Sleepers


class Entries(MutableMapping[JobKey, LedgerEntry]):
    """`due`: when which entry is due. `paid`: the same time is paid once, even for another run: PBS may not show which
    run a job is in. `sleepers`: domains that sleep with their jobs.
    `offline`: the vnodes that the hub has set offline (publisher.py). `owners`: of domains that have moved."""

    def __init__(self, kept: Kept) -> None:
        self._entries = {entry.key: entry for entry in kept.entries}
        self.due = DueTimes()
        self.sleepers = Sleepers(kept.sleepers)
        self.offline: frozenset[str] = frozenset(kept.offline)
        self.owners: dict[str, str] = dict(kept.owners)
        self.paid: Paid = dict(kept.paid)
        for key, entry in self._entries.items():
            self._time(key, entry)

    def _time(self, key: JobKey, entry: LedgerEntry) -> None:
        if entry.not_before:
            self.due.set(key, entry.not_before)
        else:  # it waits for nothing
            self.due.drop(key)

    def __getitem__(self, key: JobKey) -> LedgerEntry:
        return self._entries[key]

    def __setitem__(self, key: JobKey, entry: LedgerEntry) -> None:
        self._entries[key] = entry
        self._time(key, entry)

    def __delitem__(self, key: JobKey) -> None:
        del self._entries[key]
        self.due.drop(key)

    def __iter__(self) -> Iterator[JobKey]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: JobKey, default: LedgerEntry | None = None) -> LedgerEntry | None:  # type: ignore[override]
        return self._entries.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    @property
    def kept(self) -> Kept:
        """What must survive a restart of the hub. As long as a job is booked, its entry says so and is enough."""
        entries = [entry for _, entry in sorted(self._entries.items())]
        booked = {entry.id for entry in entries if entry.booked}
        return Kept(
            [e for e in entries if e.asked_at is not None or e.walltime_s is not None or e.away],
            {id: paid for id, paid in self.paid.items() if id not in booked},
            self.sleepers.kept,
            tuple(sorted(self.offline)),
            self.owners,
        )
