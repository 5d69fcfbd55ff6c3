"""The file that records which jobs the hub has suspended in PBS, so that after a restart it resumes only those.

It also records which domains sleep with their jobs: their hosts may be off while the hub restarts. It has the owners of
domains that have moved, in case their own file is lost (owners.py). And it records until when each job's walltime was
given back or did not run: else a host could have it given back again after each restart.

The whole file is written at once, by atomic rename, and flushed to disk before the hub asks for a suspend. A file that
cannot be read is moved aside with an alert. Then the hub takes over only jobs that hosts report as booked (books.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE
from magrathea.job_ids import is_job_id
from magrathea.text import printable

from .books import LedgerEntry
from .sleepers import Sleeper

log = logging.getLogger(__name__)

NAME = "books.json"
MAX_BYTES = 256 * 1024 * 1024
"""A million jobs need less."""


Paid = dict[str, tuple[float, int]]
"""By job id: walltime before this time was given back or did not run, and by which run's entry that was."""


class Kept(NamedTuple):
    """What must survive a restart of the hub. `offline`: the vnodes that it has set offline. `owners`: of domains that
    have moved."""

    entries: list[LedgerEntry]
    paid: Paid
    sleepers: tuple[Sleeper, ...] = ()
    offline: tuple[str, ...] = ()
    owners: Mapping[str, str] = MappingProxyType({})


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: int = 1
    entries: list[LedgerEntry] = []
    paid: Paid = {}
    sleepers: tuple[Sleeper, ...] = ()
    offline: tuple[str, ...] = ()
    owners: dict[str, str] = {}


def load(directory: Path) -> Kept:
    """What was saved; nothing at the first start. Raises OSError if the directory cannot be used."""
    path = directory / NAME
    try:
        data = files.read(path, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise msgspec.DecodeError(f"more than {MAX_BYTES} bytes")
        return _with_good_ids(path, msgspec.json.decode(data, type=_File))
    except FileNotFoundError:
        return Kept([], {})
    except UNDECODABLE as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.error(
            "ALERT %s is damaged (%s), now %s: jobs that neither it nor a host remembers stay suspended until somebody "
            "resumes them (qsig -s admin-resume)", path, error, aside.name
        )  # fmt: skip
        return Kept([], {})


def _with_good_ids(path: Path, file: _File) -> Kept:
    """Without entries of jobs that PBS cannot have: an older hub may have taken their ids from a host."""
    bad = [entry.id for entry in file.entries if not is_job_id(entry.id)]
    if bad:
        log.error(
            "ALERT %s names %d jobs by ids that PBS never makes (the first: %s); these entries are dropped",
            path, len(bad), printable(repr(bad[0]), 80)
        )  # fmt: skip
    return Kept(
        [entry for entry in file.entries if is_job_id(entry.id)],
        {id: paid for id, paid in file.paid.items() if is_job_id(id)},
        file.sleepers,
        file.offline,
        file.owners,
    )


def save(directory: Path, kept: Kept) -> None:
    """Write it to disk. Raises OSError."""
    path = directory / NAME
    owners = dict(kept.owners)
    file = _File(entries=kept.entries, paid=kept.paid, sleepers=kept.sleepers, offline=kept.offline, owners=owners)
    files.replace(path, msgspec.json.encode(file), sync=True)
