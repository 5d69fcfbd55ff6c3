"""The hub's books of who owns which domain (ownership.py), on disk, and what hosts are told of them.

Rule 1: what a host is told is on disk. If the disk fails, words still count, but no host is told of them until they are
written. Hosts say their words again until they are told.
Rule 2: a file that cannot be read is moved aside with an alert. Then hosts say what they own, and the new records are
newer than all lost ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from magrathea import files
from magrathea.core.moves import Ownership, Word
from magrathea.core.refusals import Refusal

from .ownership import MAX_BYTES, BadLedger, Ledger, Visits, decoded, encoded

log = logging.getLogger(__name__)

NAME = "owners.json"


class OwnersFile:
    """`directory`: the hub's own. `now`: Unix seconds; newer at each start than any revision of lost books."""

    def __init__(self, directory: Path, now: float) -> None:
        self._path = directory / NAME
        self._ledger = _load(self._path, int(now * 1000))
        self._unwritten = False

    def heard(
        self, host: str, words: Iterable[Word], visits: Visits, permit: Callable[[str], bool]
    ) -> list[tuple[Word, Refusal]]:
        """Take what a host says, and return the moves that are refused. `permit`: whether it may speak of a domain."""
        refused = []
        for word in words:
            if not permit(word.domain):
                continue
            heard = self._ledger.heard(host, word, visits)
            self._unwritten = self._unwritten or heard.changed
            if heard.refused is not None:
                refused.append((word, heard.refused))
        return refused

    def told(self, host: str, about: Iterable[str] = ()) -> tuple[Ownership, ...]:
        """What the host must know; nothing as long as the disk fails."""
        return self._ledger.told(host, about) if self._write() else ()

    def target(self, source: str, domain: str, number: int) -> str:
        """The host that a parcel of the source goes to; empty if it may send none under this number."""
        record = self._ledger.records.get(domain)
        transfer = record.transfer if record else None
        granted = transfer is not None and (transfer.number, transfer.source) == (number, source)
        return transfer.target if granted and transfer else ""

    def _write(self) -> bool:
        if self._unwritten:
            try:
                files.replace(self._path, encoded(self._ledger), sync=True)
            except OSError as error:
                log.error("ALERT the owners of domains cannot be written to %s: %s; no domain moves", self._path, error)
                return False
            self._unwritten = False
        return True


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
