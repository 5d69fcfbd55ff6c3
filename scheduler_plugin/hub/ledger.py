"""The file that says what we have suspended in PBS, so that after a restart only that is resumed.

Written whole, by atomic rename, flushed to disk before a suspend is asked for. A file that cannot be read is put
aside: then only what hosts say was booked is taken over (books.py), and an admin is told.
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
"""A million jobs take less."""


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: int = 1
    entries: list[LedgerEntry] = []


def load(directory: Path) -> list[LedgerEntry]:
    """What was kept; [] for the first start. Raises OSError if the directory cannot be used."""
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
    """Raises OSError."""
    path = directory / NAME
    files.replace(path, msgspec.json.encode(_File(entries=entries)), sync=True)
