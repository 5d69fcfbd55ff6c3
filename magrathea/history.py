"""A host's history, for people: what may be asked of it, and where it lies.

It is written by the node daemon (node_daemon/journal.py), event by event and decision by decision, and read through
the daemon; where that is down, from its file, which is never written to from here. history_sentences.py makes a
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
"""Entries that are told at most at a time."""


HistoryRow = tuple[float, str, str, str, str, bytes]


@dataclass(frozen=True, slots=True)
class Query:
    """The newest `limit` entries since then (Unix seconds) about a domain or a job, by its id or what is before the
    first dot of it; about everything where `about` is empty."""

    about: str = ""
    since: float = 0.0
    limit: int = 100


_SELECT = """
    SELECT at, kind, name, domain, job, data FROM history
    WHERE at >= ?1 AND (?2 = '' OR domain = ?2 OR job = ?2 OR substr(job, 1, length(?2) + 1) = ?2 || '.')
    ORDER BY id DESC LIMIT ?3
"""


class Unreadable(Exception):
    """The file cannot be read: which, why, and what to do."""


def select(connection: sqlite3.Connection, query: Query) -> list[HistoryEntry]:
    """What is asked for, oldest first. Raises sqlite3.Error."""
    values = (query.since, query.about, max(1, min(query.limit, MOST)))
    rows = connection.execute(_SELECT, values).fetchall()
    return [entry(row) for row in reversed(rows)]


def entry(row: HistoryRow) -> HistoryEntry:
    data = bytes(row[5]).decode(errors="replace")
    return HistoryEntry(at=row[0], kind=row[1], name=row[2], domain=row[3], job=row[4], data=data)


def matches(entry: HistoryEntry, query: Query) -> bool:
    """What `select` does, for entries that are not in the file yet."""
    about = ("", entry.domain, entry.job, entry.job.partition(".")[0])
    return entry.at >= query.since and query.about in about


def read_file(path: Path, query: Query) -> list[HistoryEntry]:
    """The same from a journal that no daemon has open. Raises Unreadable."""
    try:
        path.stat()  # sqlite does not say why it cannot open a file
        with path.open("rb"), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return select(connection, query)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Unreadable(f"{path}: {why}; run it as root, or name the file by --journal") from error


def is_about(snapshot: Snapshot, about: str) -> bool:
    """Whether the host is, or now has, what somebody asks about: a domain, a vnode, a job by all of its id or less."""
    domains = {name for domain in snapshot.domains for name in (domain.name, domain.vnode)}
    jobs = {job.id for domain in snapshot.domains for job in domain.jobs}
    return about in {snapshot.host, *domains, *jobs, *(id.partition(".")[0] for id in jobs)}
