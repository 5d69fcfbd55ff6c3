"""A host's history, for people: the possible questions, and where it is stored.

The node daemon writes it (node_daemon/journal.py), event by event and decision by decision. It is read through the
daemon; if that is down, directly from its file, which is never written to from here. history_sentences.py makes a
sentence of each entry.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from magrathea.core import events as ev
from magrathea.messages import MAX_BYTES, MOST_ENTRIES, HistoryEntry, Snapshot

DEFAULT_FILE = Path("/var/lib/magrathea/journal.sqlite")
MOST = MOST_ENTRIES
"""The largest number of entries in an answer."""
MAX_ANSWER_BYTES = MAX_BYTES - 4096
"""Longest entries in an answer, all together. Everything else in the message is short."""
MAX_DATA_BYTES = 16 * 1024
"""Data of an entry that is longer is shortened. Nobody reads more of one line, and a guest decides how long it is."""
BEGIN_BYTES = 1000
"""So much is left of it."""
LISTED_IDS = 10
"""Of a list of jobs, so many ids are kept: enough for people. Decisions name each job that was added or is gone."""


HistoryRow = tuple[float, str, str, str, str, bytes]


@dataclass(frozen=True, slots=True)
class Query:
    """Asks for the newest `limit` entries since a time (Unix seconds) about a domain or a job.

    A job is given by its id, or by the part before the first dot. An empty `about` means everything.
    """

    about: str = ""
    since: float = 0.0
    limit: int = 100


_SELECT = """
    SELECT at, kind, name, domain, job, data FROM history
    WHERE at >= ?1 AND (?2 = '' OR domain = ?2 OR job = ?2 OR substr(job, 1, length(?2) + 1) = ?2 || '.')
    ORDER BY id DESC LIMIT ?3
"""


class Shortened(msgspec.Struct, frozen=True):
    """Data of an entry that was too long."""

    shortened_from_bytes: int
    begin: str


class JobsListed(msgspec.Struct, frozen=True):
    """MoM's list as the history has it. The facts hold the jobs themselves."""

    at: float
    domain: str
    jobs: int
    suspended: int
    ending: int
    ids: list[str]


def recorded(what: ev.Event | ev.Decision) -> object:
    """What the history keeps of it."""
    if not isinstance(what, ev.JobsReported):
        return what
    suspended, ending = sum(job.suspended for job in what.jobs), sum(job.ending for job in what.jobs)
    ids = [job.key.id for job in what.jobs[:LISTED_IDS]]
    return JobsListed(what.at, what.domain, len(what.jobs), suspended, ending, ids)


_encode = msgspec.json.Encoder().encode


def row_data(what: object) -> bytes:
    """The data of an entry, with its length bounded."""
    return _fitting(_encode(what))


def _fitting(data: bytes) -> bytes:
    if len(data) <= MAX_DATA_BYTES:
        return data
    return _encode(Shortened(len(data), data[:BEGIN_BYTES].decode(errors="replace")))


class Unreadable(Exception):
    """The file cannot be read: the text says which, why, and how to fix it."""


def select(connection: sqlite3.Connection, query: Query) -> list[HistoryEntry]:
    """The matching entries, oldest first. Raises sqlite3.Error."""
    values = (query.since, query.about, max(1, min(query.limit, MOST)))
    rows = connection.execute(_SELECT, values).fetchall()
    return [entry(row) for row in reversed(rows)]


def entry(row: HistoryRow) -> HistoryEntry:
    data = _fitting(bytes(row[5])).decode(errors="replace")
    return HistoryEntry(at=row[0], kind=row[1], name=row[2], domain=row[3], job=row[4], data=data)


def newest_within(newest_first: Iterable[HistoryEntry], most_bytes: int) -> list[HistoryEntry]:
    """As many of the newest entries as fit in so many bytes, oldest first."""
    found, size = [], 0
    for one in newest_first:
        size += len(_encode(one)) + 1  # the comma
        if size > most_bytes:
            break
        found.append(one)
    return found[::-1]


def matches(entry: HistoryEntry, query: Query) -> bool:
    """The same test as `select`, for entries that are not in the file yet."""
    about = ("", entry.domain, entry.job, entry.job.partition(".")[0])
    return entry.at >= query.since and query.about in about


def read_file(path: Path, query: Query) -> list[HistoryEntry]:
    """The matching entries of a journal that no daemon has open. Raises Unreadable."""
    try:
        path.stat()  # sqlite does not report why it cannot open a file
        with path.open("rb"), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return select(connection, query)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Unreadable(f"{path}: {why}; run this as root, or name the file with --journal") from error


def is_about(snapshot: Snapshot, about: str) -> bool:
    """True if `about` is the host, or a domain, vnode or job that it has now; a job may be shortened as in Query."""
    domains = {name for domain in snapshot.domains for name in (domain.name, domain.vnode)}
    jobs = {job.id for domain in snapshot.domains for job in domain.jobs}
    return about in {snapshot.host, *domains, *jobs, *(id.partition(".")[0] for id in jobs)}
