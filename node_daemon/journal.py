"""The journal: the host's facts on disk, and a history for people.

Rule 1: the facts are one row, the whole Host as JSON, replaced with each commit. After a restart they are the
truth; events and decisions are history only and may be pruned.
Rule 2: what `commit` has returned from is on disk (WAL, `synchronous=FULL`), so an answer that follows it holds.
Rule 3: seconds that jobs were preempted are kept for good, per job and domain, by value and not by addition, so
that writing them twice changes nothing.
Rule 4: no failure here loses what runs. `commit` raises JournalError and leaves the facts on disk as they were; the
daemon goes on with those in memory, refuses new claims, and tries again.

A journal that is damaged is never overwritten: `open_journal` says so and what to do, and the daemon works with
what facts can still be read, or none.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from magrathea import files
from magrathea.core.events import Decision, Event, Note, Noted
from magrathea.core.model import Host, JobKey
from magrathea.decoding import UNDECODABLE
from magrathea.history import HistoryRow, Query, entry, matches, select
from magrathea.messages import HistoryEntry

SCHEMA = 3
"""PRAGMA user_version of what this program writes; older ones are migrated at opening, newer ones refused."""

ALL = Query()

MODE = 0o640
"""The history names users' jobs: it is for root, and for a group that an admin gives the file to."""

CHECKPOINT_PAGES = 512
"""`tidy` writes the log back when it has more pages: at quiet times, so that a claim seldom pays for it."""

AUTOCHECKPOINT_PAGES = 8192
"""Where nothing is ever quiet a commit does it itself (32 MiB of log)."""

PRUNE_ROWS = 2000
"""Rows of history that one `tidy` removes at most: about 10 ms."""

_MIGRATIONS: dict[int, str] = {
    # 0 -> 1
    0: """
        CREATE TABLE facts (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL, host BLOB NOT NULL);
        CREATE TABLE history (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
                              domain TEXT NOT NULL, job TEXT NOT NULL, data BLOB NOT NULL);
        CREATE INDEX history_at ON history (at);
        CREATE TABLE preempted (domain TEXT NOT NULL, job TEXT NOT NULL, run INTEGER NOT NULL,
                                seconds REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (domain, job, run)) WITHOUT ROWID;
    """,
    # 1 -> 2: since when a domain has been in its state is shown to people, and should survive a restart
    1: "CREATE TABLE states (domain TEXT PRIMARY KEY, state TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;",
    # 2 -> 3: a fact got the name that says what it is. Within a JSON text every quote is escaped, so this is the key.
    2: """UPDATE facts SET host = CAST(replace(host, '"halted":', '"paused_externally":') AS BLOB);""",
}


class JournalError(Exception):
    """The journal cannot be read or written: which file, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Since:
    """The state a domain is in, and since when (Unix seconds)."""

    state: str
    since: float


class JournalStore(Protocol):
    """What the daemon needs of a journal."""

    def commit(
        self, host: Host, event: Event | None, decisions: Sequence[Decision], states: dict[str, Since] | None = None
    ) -> None:
        """Put it on disk. Raises JournalError."""

    def note(self, at: float, event: Event | None, decisions: Sequence[Decision]) -> None:
        """Keep it for later."""

    def tidy(self, keep_since: float) -> bool:
        """Prune and shorten. Raises JournalError."""

    def close(self) -> None:
        """Give the file back."""


_facts = msgspec.json.Decoder(Host)
_noted = msgspec.json.Decoder(Noted)
_encode = msgspec.json.Encoder().encode


class Journal:
    """An open journal; one connection, used from one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._waiting: list[HistoryRow] = []

    # Reading

    def facts(self) -> Host | None:
        """The facts of the last commit, or None in a new journal. Raises JournalError."""
        row = self._one("SELECT host FROM facts")
        if row is None:
            return None
        try:
            return _facts.decode(row[0])
        except (*UNDECODABLE, TypeError) as error:  # TypeError: neither text nor bytes
            raise JournalError(f"{self.path}: the facts in it cannot be read: {error}; {_USUAL_FIX}") from error

    def states(self) -> dict[str, Since]:
        """Each domain's state at the last commit."""
        return {row[0]: Since(row[1], row[2]) for row in self._all("SELECT domain, state, since FROM states")}

    def preempted_s(self) -> dict[tuple[str, str, int], float]:
        """Seconds preempted by (domain, job id, run version), of every job that ever was."""
        rows = self._all("SELECT domain, job, run, seconds FROM preempted")
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    def history(self, query: Query = ALL) -> list[HistoryEntry]:
        """The newest entries, oldest of them first. Raises JournalError."""
        try:
            entries = select(self._connection, query)
        except sqlite3.Error as error:
            raise self._failed(error) from error
        waiting = (entry(row) for row in self._waiting)
        return [*entries, *(e for e in waiting if matches(e, query))][-query.limit :]

    def preempted_by(self, domain: str, key: JobKey) -> str:
        """What the job was last preempted for; empty where the history no longer knows."""
        rows = self._all(
            "SELECT data FROM history WHERE domain = ? AND job = ? AND name = 'Noted' ORDER BY id DESC LIMIT 100",
            (domain, key.id),
        )
        for (data,) in rows:
            try:
                noted = _noted.decode(data)
            except UNDECODABLE:  # written by another version
                continue
            if noted.key == key and noted.what is Note.PREEMPTED:
                return noted.text
        return ""

    # Writing

    def commit(
        self, host: Host, event: Event | None, decisions: Sequence[Decision], states: dict[str, Since] | None = None
    ) -> None:
        """Facts, what led to them, and `states` that have changed, on disk. Raises JournalError."""
        rows = self._rows(host.now, event, decisions)
        try:
            with self._connection:  # a transaction: all or nothing
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute(
                    "INSERT INTO facts VALUES (1, ?1, ?2) ON CONFLICT (one) DO UPDATE SET at = ?1, host = ?2",
                    (host.now, _encode(host)),
                )
                self._write_history([*self._waiting, *rows])
                self._write_preempted(host, decisions)
                for domain, since in (states or {}).items():
                    self._connection.execute(
                        "INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (domain, since.state, since.since)
                    )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._waiting.clear()

    def note(self, at: float, event: Event | None, decisions: Sequence[Decision]) -> None:
        """Keep for the next commit or `tidy` what changed no fact (a refusal): it is history, and no answer waits."""
        self._waiting.extend(self._rows(at, event, decisions))
        del self._waiting[:-1000]  # a flood of refusals leaves its last thousand

    def tidy(self, keep_since: float) -> bool:
        """Write what waits, prune history older than `keep_since`, shorten the log. True if more is to be pruned.

        Raises JournalError.
        """
        try:
            if self._waiting:
                with self._connection:
                    self._connection.execute("BEGIN IMMEDIATE")
                    self._write_history(self._waiting)
                self._waiting.clear()
            with self._connection:
                removed = self._connection.execute(
                    "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE at < ? LIMIT ?)",
                    (keep_since, PRUNE_ROWS),
                ).rowcount
            wal = self.path.with_name(self.path.name + "-wal")
            if wal.exists() and wal.stat().st_size > CHECKPOINT_PAGES * 4096:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return removed >= PRUNE_ROWS

    def close(self) -> None:
        with suppress(sqlite3.Error):  # closing checkpoints; on a full disk the log simply stays
            self._connection.close()

    # Within

    def _rows(self, at: float, event: Event | None, decisions: Sequence[Decision]) -> list[HistoryRow]:
        happened = [("event", event)] if event is not None else []
        return [
            (
                at,
                kind,
                type(what).__name__,
                getattr(what, "domain", ""),
                key.id if (key := getattr(what, "key", None)) is not None else "",
                _encode(what),
            )
            for kind, what in [*happened, *(("decision", d) for d in decisions)]
        ]

    def _write_history(self, rows: Sequence[HistoryRow]) -> None:
        self._connection.executemany(
            "INSERT INTO history (at, kind, name, domain, job, data) VALUES (?, ?, ?, ?, ?, ?)", rows
        )

    def _write_preempted(self, host: Host, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if not isinstance(decision, Noted) or decision.key is None or decision.preempted_s <= 0:
                continue
            domain = host.domain(decision.domain)
            job = domain.job(decision.key) if domain else None
            # Of a job that is still here its facts have the sum; of one that is gone, the decision has.
            seconds = job.preempted_s if job else decision.preempted_s
            if seconds > 0:
                self._connection.execute(
                    "INSERT INTO preempted VALUES (?1, ?2, ?3, ?4, ?5) "
                    "ON CONFLICT DO UPDATE SET seconds = max(seconds, ?4), at = ?5",
                    (decision.domain, decision.key.id, decision.key.run, seconds, host.now),
                )

    def _one(self, statement: str) -> tuple[bytes] | None:
        rows = self._all(statement)
        return rows[0] if rows else None

    def _all(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> JournalError:
        return JournalError(f"{self.path}: {error}; {_fix(error)}")


_USUAL_FIX = "put it aside or bring back a copy, then restart magrathea-noded; jobs are found again by MoM's list"


def _fix(error: sqlite3.Error) -> str:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return "make room on that file system; it is tried again every few seconds"
    if "readonly" in text or "unable to open" in text:
        return "give magrathea-noded's user the right to write there"
    if "locked" in text:
        return "another program holds it; is a second magrathea-noded running?"
    return _USUAL_FIX


def open_journal(path: Path) -> Journal:
    """Open or make it, and migrate it. Raises JournalError: damaged, no right, no room, or of a newer program."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _make_private(path)
        connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, cached_statements=32)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"{path}: cannot be opened: {error}; is its folder there, and may I write it?") from error
    try:
        _prepare(connection)
        _migrate(path, connection)
    except sqlite3.Error as error:
        connection.close()
        raise JournalError(f"{path}: {error}; {_fix(error)}") from error
    except JournalError:
        connection.close()
        raise
    return Journal(path, connection)


def _make_private(path: Path) -> None:
    """Make the file, or take back what others may do with it and with what lies beside it. Raises OSError.

    SQLite gives its `-wal` and `-shm` the mode that the database has when it makes them.
    """
    for name in (path.name, path.name + "-wal", path.name + "-shm"):
        with suppress(FileNotFoundError):  # of the two beside it
            flags = os.O_RDWR | (os.O_CREAT if name == path.name else 0)
            descriptor = files.open_regular(path.with_name(name), flags, MODE)
            try:
                if os.fstat(descriptor).st_mode & 0o777 & ~MODE:
                    os.fchmod(descriptor, MODE)
            finally:
                os.close(descriptor)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
    connection.execute("PRAGMA cache_size = -1024")
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(f"damaged: {problem}")


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise JournalError(
            f"{path}: its schema is {version}, this magrathea-noded knows {SCHEMA}; install the newer one again"
        )
    while version < SCHEMA:
        script = _MIGRATIONS[version]
        version += 1
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.rollback()
            raise


def salvage(path: Path) -> Host | None:
    """The facts of a damaged journal, if they can still be read; the file is not touched."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            row = connection.execute("SELECT host FROM facts").fetchone()
        return None if row is None else _facts.decode(row[0])
    except (sqlite3.Error, *UNDECODABLE, TypeError):
        return None


class NoJournal:
    """Stands for a journal that cannot be opened: every commit fails with the reason, until a restart."""

    def __init__(self, error: JournalError) -> None:
        self._error = error

    def commit(
        self, host: Host, event: Event | None, decisions: Sequence[Decision], states: dict[str, Since] | None = None
    ) -> None:
        raise self._error

    def note(self, at: float, event: Event | None, decisions: Sequence[Decision]) -> None:
        """Nowhere to keep it: the log has it."""

    def tidy(self, keep_since: float) -> bool:
        raise self._error

    def close(self) -> None:
        """Nothing is open."""
