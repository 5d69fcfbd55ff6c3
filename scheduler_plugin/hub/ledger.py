"""The file that records which jobs the hub has suspended in PBS, so that after a restart it resumes only those.

The whole file is written at once, by atomic rename, and flushed to disk before the hub asks for a suspend. A file that
cannot be read is moved aside with an alert. Then the hub takes over only jobs that hosts report as booked (books.py).
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE

from .books import LedgerEntry

log = logging.getLogger(__name__)

NAME = "books.json"
MAX_BYTES = 256 * 1024 * 1024
"""A million jobs need less."""


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: int = 1
    entries: list[LedgerEntry] = []


def load(directory: Path) -> list[LedgerEntry]:
    """The entries that were saved; [] at the first start. Raises OSError if the directory cannot be used."""
    path = directory / NAME
    try:
        data = files.read(path, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise msgspec.DecodeError(f"more than {MAX_BYTES} bytes")
        return msgspec.json.decode(data, type=_File).entries
    except FileNotFoundError:
        return []
    except UNDECODABLE as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.error(
            "ALERT %s is damaged (%s), now %s: jobs that neither it nor a host remembers stay suspended until somebody "
            "resumes them (qsig -s admin-resume)", path, error, aside.name
        )  # fmt: skip
        return []


def save(directory: Path, entries: list[LedgerEntry]) -> None:
    """Write the entries to disk. Raises OSError."""
    path = directory / NAME
    files.replace(path, msgspec.json.encode(_File(entries=entries)), sync=True)
