"""The journal's tables, and how an older journal gets those of today."""

from __future__ import annotations

import sqlite3
from pathlib import Path

SCHEMA = 6
"""PRAGMA user_version that this program writes. Older journals are migrated when opened, newer ones refused."""

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
    # 1 -> 2: people see since when a domain has been in its state; that should survive a restart
    1: "CREATE TABLE states (domain TEXT PRIMARY KEY, state TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;",
    # 2 -> 3: a fact got the name that says what it is. Within a JSON text every quote is escaped, so this is the key.
    2: """UPDATE facts SET host = CAST(replace(host, '"halted":', '"paused_externally":') AS BLOB);""",
    # 3 -> 4: everybody may ask for the history of a job or domain; without an index each question reads all rows
    3: """
        CREATE INDEX IF NOT EXISTS history_domain ON history (domain);
        CREATE INDEX IF NOT EXISTS history_job ON history (job);
    """,
    # 4 -> 5: the facts may hold a domain that sleeps with its jobs. An older program must not read them: for it that
    # domain would be down, and its image nobody's.
    4: "",
    # 5 -> 6: a domain's facts may be on their way to another host, and no longer among the host's
    5: "CREATE TABLE moves (one INTEGER PRIMARY KEY CHECK (one = 1), moves BLOB NOT NULL);",
}


DAMAGED = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises for a damaged file. SQLite's message may quote bytes of the file that are not UTF-8, and then
Python cannot even make its own error of it."""


class JournalError(Exception):
    """The journal cannot be read or written. The text names the file, the cause and the fix."""


def migrate(path: Path, connection: sqlite3.Connection) -> None:
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
        except DAMAGED:
            if connection.in_transaction:
                connection.rollback()
            raise
