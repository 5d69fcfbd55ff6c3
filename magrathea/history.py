"""A host's history, for people: the possible questions, and where it is stored.

The node daemon writes it (node_daemon/journal.py), event by event and decision by decision. It is read through the
daemon; if that is down, directly from its file, which is never written to from here. history_sentences.py makes a
sentence of each entry.
"""

from __future__ import annotations

import heapq
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path

import msgspec

from magrathea import files, places
from magrathea.core import events as ev
from magrathea.core.move_events import MoveNoted
from magrathea.messages import MAX_BYTES, MOST_ENTRIES, HistoryEntry, Snapshot

DEFAULT_FILE = Path(places.NODED_STATE_DIR, places.JOURNAL)
MOST = MOST_ENTRIES
"""The largest number of entries in an answer."""
MAX_ANSWER_BYTES = MAX_BYTES - 4096
"""Longest entries in an answer, all together. Everything else in the message is short."""
MAX_DATA_BYTES = 16 * 1024
"""Data of an entry that is longer is shortened. Nobody reads more of one line, and a guest decides how long it is."""
BEGIN_BYTES = 1000
"""So much is left of it."""
LISTED_IDS = 10
LIST_DECISIONS = 100
"""Of a list of jobs, so many ids are kept, and so many decisions, which name the jobs added or gone: enough for people.
"""


HistoryRow = tuple[float, str, str, str, str, bytes]


@dataclass(frozen=True, slots=True)
class Query:
    """Asks for the newest `limit` entries since a time (Unix seconds) about a domain or a job.

    A job is given by its id, or by the part before the first dot. An empty `about` means everything.
    """

    about: str = ""
    since: float = 0.0
    limit: int = 100


_ALL = ("SELECT id FROM history WHERE id <= ?1 ORDER BY id DESC",)
_ABOUT = (
    "SELECT id FROM history WHERE domain = ?2 AND id <= ?1 ORDER BY id DESC",
    "SELECT id FROM history WHERE job = ?2 AND id <= ?1 ORDER BY id DESC",
    "SELECT id FROM history WHERE job >= ?2 || '.' AND job < ?2 || '/' AND +id <= ?1 ORDER BY +id DESC",
)
"""Each finds its rows by an index. The last one: jobs whose id begins with the words and a dot; the next sign is /. The
+ keeps SQLite from reading all rows in the order of their ids."""
_ROW = """
    SELECT at, kind, name, domain, job, CASE WHEN length(data) <= ?2 THEN data END, length(data)
    FROM history WHERE id = ?1
"""
READ_S = 2.0
"""Time limit for reading an answer. A client waits for 5 s."""
CHECK_STEPS = 10_000
"""Steps of SQLite between two looks at the clock; about 1 ms."""
NEWEST = 2**63 - 1
"""The largest id that SQLite may give."""


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
    added: int = 0
    gone: int = 0


Recorded = ev.Decision | MoveNoted
"""What the history keeps of decisions."""


def recorded(event: ev.Event | None, decisions: Sequence[Recorded]) -> list[tuple[str, object]]:
    """What the history keeps of an event and of what was decided, each with its kind.

    A guest may list thousands of new jobs each time. Of a list the first decisions about its jobs are kept, and the
    numbers of all; of those that PBS has denied, too. What happens to other domains is always kept.
    """
    if isinstance(event, ev.JobsDenied):
        return [("event", event), *(("decision", one) for one in _first(event.domain, decisions))]
    if not isinstance(event, ev.JobsReported):
        return [("event", one) for one in (event,) if one is not None] + [("decision", one) for one in decisions]
    notes = Counter(one.what for one in decisions if isinstance(one, ev.Noted))
    listed = JobsListed(
        at=event.at,
        domain=event.domain,
        jobs=len(event.jobs),
        suspended=sum(job.suspended for job in event.jobs),
        ending=sum(job.ending for job in event.jobs),
        added=notes[ev.Note.ADOPTED],
        gone=notes[ev.Note.MISSING] + notes[ev.Note.NEWER_RUN],
        ids=[job.key.id for job in event.jobs[:LISTED_IDS]],
    )
    return [("event", listed), *(("decision", one) for one in _first(event.domain, decisions))]


def _first(domain: str, decisions: Sequence[Recorded]) -> Iterator[Recorded]:
    """The first decisions about this domain, and all others."""
    left = LIST_DECISIONS
    for one in decisions:
        left -= one.domain == domain
        if left >= 0 or one.domain != domain:
            yield one


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


def newest_first(connection: sqlite3.Connection, query: Query, last: int = NEWEST) -> Iterator[HistoryEntry]:
    """The matching entries up to this id. Raises sqlite3.Error, TimeoutError.

    Rows are written in the order of their time, so the first one that is too old is the end.
    """
    end = time.monotonic() + READ_S
    connection.set_progress_handler(lambda: time.monotonic() > end, CHECK_STEPS)
    try:
        connection.execute("BEGIN")  # all statements see the same rows
        values = (last, query.about) if query.about else (last,)
        found = [connection.execute(ids, values) for ids in (_ABOUT if query.about else _ALL)]
        for id, _ in groupby(heapq.merge(*((row[0] for row in ids) for ids in found), reverse=True)):
            one = _entry_of(connection, id)
            if time.monotonic() > end:
                raise TimeoutError
            if one.at < query.since:
                return
            yield one
    except sqlite3.OperationalError as error:
        if time.monotonic() > end:
            raise TimeoutError from error
        raise


def _entry_of(connection: sqlite3.Connection, id: int) -> HistoryEntry:
    """Reads no more of a row than is shown: an older version may have written megabytes."""
    *row, data, length = connection.execute(_ROW, (id, MAX_DATA_BYTES)).fetchone()
    if data is None and length is not None:
        with connection.blobopen("history", "data", id, readonly=True) as blob:
            data = _encode(Shortened(length, blob.read(BEGIN_BYTES).decode(errors="replace")))
    return entry((*row, data if isinstance(data, bytes) else str(data).encode(errors="replace")))


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
    """The same test as `newest_first`, for entries that are not in the file yet."""
    about = ("", entry.domain, entry.job, entry.job.partition(".")[0])
    return entry.at >= query.since and query.about in about


def read_file(path: Path, query: Query, last: int = NEWEST, unwritten: Sequence[HistoryRow] = ()) -> list[HistoryEntry]:
    """The newest matching entries of a journal, as many as an answer holds, oldest first. Raises Unreadable.

    Works in any thread, also while a daemon has the file open: then `last` is the last row that counts, and `unwritten`
    come after it.
    """
    limit = max(1, min(query.limit, MOST))
    waiting = (one for row in reversed(unwritten) if matches(one := entry(row), query))
    try:
        files.read_named(path, 0)  # sqlite does not report why it cannot open a file, and waits for a pipe
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.isolation_level = None
            found = chain(waiting, newest_first(connection, query, last))
            return newest_within(islice(found, limit), MAX_ANSWER_BYTES)
    except TimeoutError as error:
        raise Unreadable(f"{path}: not read within {READ_S:g} s; ask for less with --limit, or try again") from error
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Unreadable(f"{path}: {why}; run this as root, or name the file with --journal") from error


def is_about(snapshot: Snapshot, about: str) -> bool:
    """True if `about` is the host, or a domain, vnode or job that it has now; a job may be shortened as in Query."""
    domains = {name for domain in snapshot.domains for name in (domain.name, domain.vnode)}
    jobs = {job.id for domain in snapshot.domains for job in domain.jobs}
    return about in {snapshot.host, *domains, *jobs, *(id.partition(".")[0] for id in jobs)}
