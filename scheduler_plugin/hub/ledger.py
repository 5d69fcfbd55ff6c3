"""The file that says what we have suspended in PBS, so that after a restart only that is resumed.

Written whole, by atomic rename, flushed to disk before a suspend is asked for. A file that cannot be read is put
aside: then only what hosts say was booked is taken over (books.py), and an admin is told.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

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
        if path.stat().st_size > MAX_BYTES:
            raise msgspec.DecodeError(f"{path.stat().st_size} bytes")
        return msgspec.json.decode(path.read_bytes(), type=_File).entries
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
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(_File(entries=entries)))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
