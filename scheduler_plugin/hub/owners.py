"""The hub's books of who owns which domain (ownership.py), on disk, and what hosts are told of them.

Rule 1: what a host is told is on disk. If the disk fails, words still count, but no host is told of them until they are
written. Hosts say their words again until they are told.
Rule 2: a file that cannot be read is moved aside with an alert. Then hosts say what they own, and the new records are
newer than all lost ones.
Rule 3: writing may take long, so the hub does it in a thread. Words are taken meanwhile, and written afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from magrathea import files
from magrathea.core.moves import Ownership, Word
from magrathea.core.refusals import Refusal

from .lost_hosts import Ending
from .ownership import MAX_BYTES, BadLedger, Ledger, Visits, decoded, encoded

log = logging.getLogger(__name__)

NAME = "owners.json"


class Unwritten(NamedTuple):
    """What is to be written: the whole ledger, and which of its records are new. `former`: who had these domains."""

    data: bytes
    records: dict[str, Ownership]
    former: dict[str, tuple[str, ...]]


class OwnersFile:
    """`directory`: the hub's own. `now`: Unix seconds; newer at each start than any revision of lost books.

    `written`: the records on disk.
    """

    def __init__(self, directory: Path, now: float) -> None:
        self._path = directory / NAME
        self._ledger = _load(self._path, int(now * 1000))
        self._changed: set[str] = set()
        self.written = Ledger(self._ledger.records.values(), 0, self._ledger.former)

    def heard(
        self, host: str, words: Iterable[Word], visits: Visits, may_found: Callable[[str], bool]
    ) -> list[tuple[Word, Refusal]]:
        """Take what a host says, and return the moves that are refused.

        `may_found`: whether it may own a domain that nobody owns.
        """
        refused = []
        for word in words:
            record = self._ledger.records.get(word.domain)
            if (record is None or not record.owner) and not may_found(word.domain):
                continue
            heard = self._ledger.heard(host, word, visits)
            if heard.changed:
                self._changed.add(word.domain)
            if heard.refused is not None:
                refused.append((word, heard.refused))
        return refused

    def give_up(self, domains: Iterable[str]) -> None:
        """Let nobody own these domains."""
        for domain in domains:
            self._ledger.give_up(domain)
            self._changed.add(domain)

    def endings(self, lost: str, *, run_copies: bool) -> list[Ending]:
        """What would follow if the host were lost."""
        return self._ledger.endings(lost, run_copies=run_copies)

    def host_lost(self, lost: str, *, run_copies: bool) -> list[Ending]:
        """Book that the host is lost. Returns what follows."""
        endings = self._ledger.host_lost(lost, run_copies=run_copies)
        self._changed.update(one.before.domain for one in endings if one.record is not None)
        return endings

    def knows(self, domain: str) -> bool:
        """True if there is a record, even if it is not on disk yet."""
        return domain in self._ledger.records

    def unwritten(self) -> Unwritten | None:
        """What must be written now; None if nothing. It must be followed by `has_written` or `has_failed`."""
        if not self._changed:
            return None
        changed, self._changed = self._changed, set()
        ledger = self._ledger
        former = {name: ledger.former[name] for name in changed if name in ledger.former}
        return Unwritten(encoded(ledger), {name: ledger.records[name] for name in changed}, former)

    def write(self, what: Unwritten) -> bool:
        """Write it. False if the disk fails. May run in a thread, one at a time."""
        try:
            files.replace(self._path, what.data, sync=True)
        except OSError as error:
            log.error("ALERT the owners of domains cannot be written to %s: %s; no domain moves", self._path, error)
            return False
        return True

    def has_written(self, what: Unwritten) -> None:
        self.written.follow(what.records, what.former)

    def has_failed(self, what: Unwritten) -> None:
        self._changed.update(what.records)

    def target(self, source: str, domain: str, number: int) -> str:
        """The host that a parcel of the source goes to; empty if it may send none under this number."""
        record = self.written.records.get(domain)
        transfer = record.transfer if record else None
        granted = transfer is not None and (transfer.number, transfer.source) == (number, source)
        return transfer.target if granted and transfer else ""


def _load(path: Path, base: int) -> Ledger:
    """The ledger on disk; an empty one at the first start. Raises OSError if the directory cannot be used."""
    try:
        return decoded(files.read(path, MAX_BYTES + 1))
    except FileNotFoundError:
        return Ledger(base=base)
    except BadLedger as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.error(
            "ALERT %s is damaged (%s), now %s: hosts say again which domains they own", path, error, aside.name
        )  # fmt: skip
        return Ledger(base=base)
