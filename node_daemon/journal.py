"""The journal: the host's facts on disk, and a history for people.

Rule 1: the facts are one row, the whole Host as JSON, replaced by each commit. After a restart they are the truth.
Events and decisions are only history and may be pruned.
Rule 2: when `commit` returns, everything is on disk (WAL, `synchronous=FULL`). An answer given after it stays valid.
Rule 3: the seconds that jobs were preempted are kept for good, per job and domain. The total is written, not added to,
so that writing it twice changes nothing.
Rule 4: a failing journal harms no running job. `commit` raises JournalError and leaves the facts on disk as they were.
The daemon goes on with the facts in memory, refuses new claims, and tries again.

A damaged journal is never overwritten. `open_journal` reports it with the fix. The daemon works with the facts that
can still be read, or with none.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from magrathea import files
from magrathea.budget import Budget
from magrathea.core.events import (
    AgentConnected,
    AgentLost,
    Claimed,
    Event,
    JobLaunched,
    JobsContinued,
    JobsDenied,
    JobsGiven,
    JobsReported,
    MemoryReported,
    Note,
    Noted,
    Released,
)
from magrathea.core.model import Host, JobKey
from magrathea.core.moves import Moves
from magrathea.decoding import UNDECODABLE
from magrathea.history import HistoryRow, Query, Recorded, Unreadable, read_file, recorded, row_data
from magrathea.job_ids import is_job_id
from magrathea.messages import HistoryEntry
from magrathea.text import printable

from .journal_schema import DAMAGED, migrate
from .journal_schema import SCHEMA as SCHEMA
from .journal_schema import JournalError as JournalError
from .journal_store import Since

log = logging.getLogger(__name__)

T = TypeVar("T")

ALL = Query()

MODE = 0o640
"""The history names users' jobs. Only root may read it, and a group to which an admin gives the file."""

CHECKPOINT_PAGES = 512
"""`tidy` writes the log back when it has more pages. That happens at quiet times, so that claims seldom wait for it."""

AUTOCHECKPOINT_PAGES = 8192
"""On a host that is never quiet, a commit writes the log back at this size (32 MiB)."""

PRUNE_ROWS = 2000
"""One `tidy` removes at most so many rows of history, which takes about 10 ms."""

BUSY_MS = 1000
"""How long a statement waits for another program that has the file open."""

NOTES_PER_S, NOTES_BURST = 1.0, 100.0
"""Refusals and the like that the history has of one domain. Honest guests cause some each minute."""

ROWS_PER_S, ROWS_BURST = 15.0, 50_000.0
"""Rows of the history that one guest may cause, for ever and at once: a job makes five. What happens to jobs of other
domains is always kept, and so is what admins do."""
OF_GUESTS = (
    Claimed,
    JobLaunched,
    Released,
    JobsReported,
    JobsGiven,
    JobsDenied,
    JobsContinued,
    MemoryReported,
    AgentConnected,
    AgentLost,
)
"""Events that a guest can cause as often as it likes."""

READMITTED = 0.01
"""Share of ROWS_BURST that must be free again before more of that domain is kept: each gap costs a row."""


_facts = msgspec.json.Decoder(Host)
_moves = msgspec.json.Decoder(Moves)
_noted = msgspec.json.Decoder(Noted)
_encode = msgspec.json.Encoder().encode


class Journal:
    """An open journal; one connection, used from one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._waiting: list[HistoryRow] = []
        self._rations: dict[str, Budget] = {}
        self._kept: dict[str, Budget] = {}
        self._left_out: dict[str, int] = {}

    # Reading

    def facts(self) -> Host | None:
        """The facts of the last commit, or None in a new journal. Raises JournalError."""
        row = self._one("SELECT host FROM facts")
        if row is None:
            return None
        try:
            return _with_good_ids(self.path, _facts.decode(row[0]))
        except (*UNDECODABLE, TypeError) as error:  # TypeError: neither text nor bytes
            raise JournalError(f"{self.path}: the facts in it cannot be read: {error}; {_USUAL_FIX}") from error

    def moves(self) -> Moves:
        """The facts about moves of the last commit; none in a new journal. Raises JournalError."""
        row = self._one("SELECT moves FROM moves")
        if row is None:
            return Moves()
        try:
            return _moves.decode(row[0])
        except (*UNDECODABLE, TypeError) as error:
            raise JournalError(f"{self.path}: the moves in it cannot be read: {error}; {_USUAL_FIX}") from error

    def states(self) -> dict[str, Since]:
        """Each domain's state at the last commit."""
        return {row[0]: Since(row[1], row[2]) for row in self._all("SELECT domain, state, since FROM states")}

    def preempted_s(self) -> dict[tuple[str, str, int], float]:
        """How long each job that ever ran was preempted, by (domain, job id, run version)."""
        rows = self._all("SELECT domain, job, run, seconds FROM preempted")
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    def history(self, query: Query = ALL) -> list[HistoryEntry]:
        """The newest entries, in the order in which they happened. Raises JournalError."""
        return self.reading(query)()

    def reading(self, query: Query) -> Callable[[], list[HistoryEntry]]:
        """A function that reads the history as it is now, for another thread. It, too, raises JournalError.

        It has a connection of its own: the daemon's loop never waits for somebody who looks.
        """
        last = self._all("SELECT max(id) FROM history")[0][0] or 0
        unwritten = tuple(self._waiting)

        def read() -> list[HistoryEntry]:
            try:
                return read_file(self.path, query, last, unwritten)
            except Unreadable as error:
                raise JournalError(str(error)) from error

        return read

    def preempted_by(self, domain: str, key: JobKey) -> str:
        """What the job was last preempted for; empty if the history no longer has it."""
        rows = self._all(
            "SELECT data FROM history WHERE +domain = ? AND job = ? AND name = 'Noted' ORDER BY id DESC LIMIT 100",
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
        self,
        host: Host,
        event: Event | None,
        decisions: Sequence[Recorded],
        states: dict[str, Since] | None = None,
        moves: Moves | None = None,
    ) -> None:
        """Write the facts, what led to them, and the `states` and `moves` that have changed. Raises JournalError."""
        rows = self._rationed(host.now, event, decisions)
        try:
            with self._connection:  # a transaction: all or nothing
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute(
                    "INSERT INTO facts VALUES (1, ?1, ?2) ON CONFLICT (one) DO UPDATE SET at = ?1, host = ?2",
                    (host.now, _encode(host)),
                )
                if moves is not None:
                    self._connection.execute("INSERT OR REPLACE INTO moves VALUES (1, ?)", (_encode(moves),))
                self._write_history([*self._waiting, *rows])
                self._write_preempted(host, decisions)
                for domain, since in (states or {}).items():
                    self._connection.execute(
                        "INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (domain, since.state, since.since)
                    )
        except DAMAGED as error:
            raise self._failed(error) from error
        self._waiting.clear()

    def note(self, at: float, event: Event | None, decisions: Sequence[Recorded]) -> None:
        """Keep something that changed no fact (a refusal) for the next commit or `tidy`. No answer waits for it.

        A guest may cause as many as it likes; of those of one domain, the history has NOTES_PER_S. The log counts all.
        """
        ration = self._rations.setdefault(getattr(event, "domain", ""), Budget(NOTES_PER_S, NOTES_BURST, at))
        if ration.take(at):
            self._waiting.extend(self._rows(at, event, decisions))
            del self._waiting[:-1000]

    def tidy(self, keep_since: float) -> bool:
        """Write what waits, prune history older than `keep_since`, and shorten the log. True if there is more to prune.

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
                self._checkpoint()
        except DAMAGED as error:
            raise self._failed(error) from error
        return removed >= PRUNE_ROWS

    def _checkpoint(self) -> None:
        """Shorten the log, unless somebody reads: then the next `tidy` does. The loop waits for no reader."""
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def close(self) -> None:
        with suppress(*DAMAGED):  # closing writes the log back; on a full disk it simply stays
            self._connection.close()

    # Within

    def _rows(self, at: float, event: Event | None, decisions: Sequence[Recorded]) -> list[HistoryRow]:
        return [
            (
                at,
                kind,
                type(what).__name__,
                getattr(what, "domain", ""),
                key.id if (key := getattr(what, "key", None)) is not None else "",
                row_data(what),
            )
            for kind, what in recorded(event, decisions)
        ]

    def _rationed(self, at: float, event: Event | None, decisions: Sequence[Recorded]) -> list[HistoryRow]:
        """The rows of a commit, as many as the domain that caused it may have."""
        rows, cause = self._rows(at, event, decisions), getattr(event, "domain", "")
        if not cause or not isinstance(event, OF_GUESTS):
            return rows
        budget = self._kept.setdefault(cause, Budget(ROWS_PER_S, ROWS_BURST, at))
        if budget.wait_s(at, reserve=READMITTED if cause in self._left_out else 0.0):
            others = [row for row in rows if row[3] != cause]
            self._left_out[cause] = self._left_out.get(cause, 0) + len(rows) - len(others)
            return others
        if left_out := self._left_out.pop(cause, 0):
            rows = self._rows(at, None, [Noted(cause, Note.LEFT_OUT, None, f"{left_out} entries of it")]) + rows
        budget.spend(len(rows))
        return rows

    def _write_history(self, rows: Sequence[HistoryRow]) -> None:
        self._connection.executemany(
            "INSERT INTO history (at, kind, name, domain, job, data) VALUES (?, ?, ?, ?, ?, ?)", rows
        )

    def _write_preempted(self, host: Host, decisions: Sequence[Recorded]) -> None:
        for decision in decisions:
            if not isinstance(decision, Noted) or decision.key is None or decision.preempted_s <= 0:
                continue
            domain = host.domain(decision.domain)
            job = domain.job(decision.key) if domain else None
            # If the job is still here, its facts hold the total; if it is gone, the decision does.
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
        except DAMAGED as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> JournalError:
        return JournalError(f"{self.path}: {error}; {_fix(error)}")


_USUAL_FIX = "move it aside or restore a copy, then restart magrathea-noded; MoM's list brings the jobs back"


def _fix(error: Exception) -> str:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return "make room on that file system; magrathea-noded tries again every few seconds"
    if "readonly" in text or "unable to open" in text:
        return "give magrathea-noded's user the right to write there"
    if "locked" in text:
        return "another program holds it; is a second magrathea-noded running?"
    return _USUAL_FIX


def open_journal(path: Path) -> Journal:
    """Open the journal, create it if it is missing, and migrate it if it is old.

    Raises JournalError: it is damaged, there is no right or no room, or a newer program has written it.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _make_private(path)
        connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, cached_statements=32)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"{path}: cannot be opened: {error}; is its folder there, and may I write it?") from error
    try:
        _prepare(connection)
        migrate(path, connection)
    except DAMAGED as error:
        connection.close()
        raise JournalError(f"{path}: {error}; {_fix(error)}") from error
    except JournalError:
        connection.close()
        raise
    return Journal(path, connection)


def _make_private(path: Path) -> None:
    """Create the file, or take other users' rights to it and its companions away. Raises OSError.

    SQLite gives its `-wal` and `-shm` files the mode that the database has when it creates them.
    """
    for name in (path.name, path.name + "-wal", path.name + "-shm"):
        with suppress(FileNotFoundError):  # its companions need not be there
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


def salvage(path: Path) -> Host | None:
    """The facts in a damaged journal, if they can still be read. The file is not changed."""
    host = _salvaged(path, "SELECT host FROM facts", _facts)
    return None if host is None else _with_good_ids(path, host)


def salvage_moves(path: Path) -> Moves:
    """The same of the facts about moves; none if they cannot be read."""
    return _salvaged(path, "SELECT moves FROM moves", _moves) or Moves()


def _salvaged(path: Path, statement: str, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        files.read_named(path, 0)  # sqlite waits for a pipe
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            row = connection.execute(statement).fetchone()
        return None if row is None else decoder.decode(row[0])
    except (OSError, sqlite3.Error, *UNDECODABLE, TypeError):
        return None


def _with_good_ids(path: Path, host: Host) -> Host:
    """Without jobs that PBS cannot have: an older daemon may have taken them from a guest, and the hub refuses them."""
    bad = [job.key.id for domain in host.domains for job in domain.jobs if not is_job_id(job.key.id)]
    if not bad:
        return host
    first = printable(repr(bad[0]), 80)
    log.error(
        "%s names %d jobs by ids that PBS never makes (the first: %s); they are dropped", path, len(bad), first
    )  # fmt: skip
    domains = (
        replace(domain, jobs=tuple(job for job in domain.jobs if is_job_id(job.key.id))) for domain in host.domains
    )
    return replace(host, domains=tuple(domains))
