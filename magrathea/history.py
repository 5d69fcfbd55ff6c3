"""A host's history, for people: the possible questions, and where it is stored.

The node daemon writes it (node_daemon/journal.py), event by event and decision by decision. It is read through the
daemon; if that is down, directly from its file, which is never written to from here. history_sentences.py makes a
sentence of each entry.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from magrathea.messages import MOST_ENTRIES, HistoryEntry, Snapshot

DEFAULT_FILE = Path("/var/lib/magrathea/journal.sqlite")
MOST = MOST_ENTRIES
"""The largest number of entries in an answer."""


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


class Unreadable(Exception):
    """The file cannot be read: the text says which, why, and how to fix it."""


def select(connection: sqlite3.Connection, query: Query) -> list[HistoryEntry]:
    """The matching entries, oldest first. Raises sqlite3.Error."""
    values = (query.since, query.about, max(1, min(query.limit, MOST)))
    rows = connection.execute(_SELECT, values).fetchall()
    return [entry(row) for row in reversed(rows)]


def entry(row: HistoryRow) -> HistoryEntry:
    data = bytes(row[5]).decode(errors="replace")
    return HistoryEntry(at=row[0], kind=row[1], name=row[2], domain=row[3], job=row[4], data=data)


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
