"""The journal: what it keeps, and what happens if it is damaged, full, old or too new."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from magrathea.core import events as ev
from magrathea.core.model import (
    Domain,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Mode,
    Sleep,
    SleepCause,
    StoppedBy,
)
from magrathea.core.refusals import RefusalCode
from magrathea.history import Query, newest_first
from magrathea.history_sentences import sentence
from magrathea_lab.waiting import BOUND_S
from node_daemon import journal as journals
from node_daemon.journal import (
    CHECKPOINT_PAGES,
    NOTES_BURST,
    NOTES_PER_S,
    ROWS_PER_S,
    SCHEMA,
    Journal,
    JournalError,
    open_journal,
    salvage,
)
from node_daemon.journal_store import NoJournal, Since

KEY = JobKey("1.srv", 1)


def host(now: float = 10.0, **job: object) -> Host:
    base = {"cls": JobClass.PREEMPTIBLE, "cpus": 2, "memory_mib": 100, "claimed_at": 1.0, "run_since": 1.0}
    one = Job(KEY, **{**base, **job})  # type: ignore[arg-type]
    n1 = Domain("n1", Kind.NORMAL, 4, lifecycle=Lifecycle.UP, jobs=(one,), linger_until=3.5)
    return Host("h1", Mode.COUNTED, 8, 4096, (n1, Domain("p1", Kind.PRIORITY, 4)), now=now)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def again(journal: Journal) -> Journal:
    journal.close()
    return open_journal(journal.path)


def test_a_job_by_an_id_that_pbs_never_makes_is_dropped_and_nothing_else_is(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    facts = host()
    n1 = facts.domains[0]
    evil = replace(n1.jobs[0], key=JobKey("5[900,1-1000]@,7\n<3>x", 1))
    journal.commit(replace(facts, domains=(n1.having(evil), facts.domains[1])), None, [])
    assert again(journal).facts() == salvage(journal.path) == facts
    assert "names 1 jobs by ids that PBS never makes" in caplog.text


def test_a_new_journal_has_no_facts(journal: Journal) -> None:
    assert journal.facts() is None and journal.history() == [] and journal.states() == {}


def test_the_facts_come_back_as_they_were(journal: Journal) -> None:
    facts = host(stopped_since=4.0, stopper=StoppedBy.US, booked=True, preempted_s=1.25)
    journal.commit(facts, None, ())
    assert again(journal).facts() == facts


def test_a_commit_is_on_disk_before_it_returns(journal: Journal) -> None:
    pragmas = {p: journal._connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


def test_the_history_names_event_decision_domain_and_job(journal: Journal) -> None:
    event = ev.Claimed(10.0, "n1", KEY, JobClass.PREEMPTIBLE, 2)
    journal.commit(host(), event, (ev.Accepted("n1", KEY),))
    journal.note(11.0, ev.Released(11.0, "p1", KEY), ())
    journal.commit(host(12.0), None, ())
    entries = [(e.at, e.kind, e.name, e.domain, e.job) for e in journal.history()]
    assert entries == [
        (10.0, "event", "Claimed", "n1", "1.srv"),
        (10.0, "decision", "Accepted", "n1", "1.srv"),
        (11.0, "event", "Released", "p1", "1.srv"),
    ]
    assert [e.name for e in journal.history(Query(about="p1"))] == ["Released"]


def steps(journal: Journal, query: Query) -> int:
    """How many hundreds of steps SQLite takes for it."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    class Counted(sqlite3.Connection):
        def set_progress_handler(self, handler: object, n: int) -> None:
            super().set_progress_handler(step, 100)

    with closing(sqlite3.connect(journal.path, factory=Counted)) as connection:
        list(newest_first(connection, query))
    return count


def test_a_question_about_few_rows_reads_few_rows(journal: Journal) -> None:
    """Everybody on the host may ask, for names that are not there, too."""
    decisions = [ev.Accepted("n1", JobKey(f"{n}.srv", 1)) for n in range(20_000)]
    journal.commit(host(), None, decisions)
    journal.commit(host(20.0), None, [ev.Accepted("p1", JobKey("7.other", 1))])
    for query, found in {
        Query("nosuch"): 0, Query("p1"): 1, Query("7"): 2, Query("7.srv"): 1, Query("19"): 1, Query(since=15.0): 1,
        Query("n1", since=1e9): 0, Query("n1", limit=3): 3, Query(limit=3): 3,
    }.items():  # fmt: skip
        assert len(journal.history(query)) == found, query
    for query in (Query("nosuch"), Query("p1"), Query("7"), Query("7.srv"), Query(since=15.0), Query("n1", since=1e9)):
        assert steps(journal, query) < 10, query


def test_a_reader_sees_the_history_of_the_moment_in_which_he_asked(journal: Journal) -> None:
    journal.commit(host(), None, (ev.Accepted("n1", KEY),))
    journal.note(11.0, ev.Released(11.0, "p1", KEY), ())
    read = journal.reading(Query())
    journal.commit(host(12.0), None, (ev.Accepted("n1", JobKey("2.srv", 1)),))
    assert [entry.name for entry in read()] == ["Accepted", "Released"]


@pytest.mark.long
def test_who_reads_the_file_does_not_delay_the_shortening_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_daemon.journal.BUSY_MS", int(1000 * BOUND_S))
    journal = open_journal(tmp_path / "journal.sqlite")
    journal.commit(host(), None, [ev.Accepted("n1", JobKey(f"{n}.srv", 1)) for n in range(40_000)])
    assert journal.path.with_name("journal.sqlite-wal").stat().st_size > CHECKPOINT_PAGES * 4096
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM history").fetchone()
        journal.commit(host(12.0), None, ())
        began = time.monotonic()
        journal.tidy(0.0)
        assert time.monotonic() - began < BOUND_S, "it has waited for the reader"
    journal.tidy(0.0)
    assert journal.path.with_name("journal.sqlite-wal").stat().st_size == 0
    journal.close()


def test_a_list_of_thousands_of_new_jobs_is_a_hundred_rows(journal: Journal) -> None:
    keys = [JobKey(f"{n}.srv", 1) for n in range(4000)]
    for at in (10.0, 12.0):
        decisions = [*(ev.Noted("n1", ev.Note.ADOPTED, key) for key in keys), ev.Noted("n1", ev.Note.MISSING, KEY)]
        journal.commit(host(at), ev.JobsReported(at, "n1", tuple(map(ev.ReportedJob, keys))), decisions)
    entries = journal.history(Query(limit=10_000))
    assert len(entries) == 202
    assert sentence(entries[0]).endswith("and 3990 more (4000 added, 1 gone)")


def test_a_flood_of_refusals_is_rationed_by_domain(journal: Journal) -> None:
    """The channel lets 200 lines a second through."""
    for n in range(5000):
        at = 10.0 + n / 200
        journal.note(at, ev.Released(at, "n1", KEY), (ev.Refused("n1", RefusalCode.UNKNOWN_JOB, "no", KEY),))
        if n % 20 == 0:
            journal.commit(host(at), None, ())
    journal.note(40.0, ev.Released(40.0, "p1", KEY), (ev.Refused("p1", RefusalCode.UNKNOWN_JOB, "no", KEY),))
    rows = Counter(entry.domain for entry in journal.history(Query(limit=10_000)))
    assert 200 <= rows["n1"] <= 2 * (NOTES_BURST + 5000 / 200 * NOTES_PER_S)
    assert rows["p1"] == 2


@pytest.mark.long
def test_a_flood_of_changes_is_rationed_by_the_domain_that_causes_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does to its siblings' jobs is kept, and how much was left out."""
    monkeypatch.setattr(journals, "ROWS_BURST", 1000.0)
    for n in range(3000):
        at = 10.0 + n / 100
        stops = (ev.Noted("p1", ev.Note.PREEMPTED, KEY, "for n1"),) if n % 500 == 0 else ()
        journal.commit(host(at), ev.Released(at, "n1", KEY), (ev.Noted("n1", ev.Note.RELEASED, KEY), *stops))
    rows = Counter(entry.domain for entry in journal.history(Query(limit=20_000)))
    assert 1000 <= rows["n1"] <= 1000 + 30 * ROWS_PER_S + 60
    assert rows["p1"] == 6
    journal.commit(host(40.0), ev.DrainRequested(40.0, "n1", "a repair"), ())
    assert "a repair" in str(next(iter(journal.history(Query(limit=1)))).data), "an admin's order is kept"
    journal.commit(host(1000.0), ev.Released(1000.0, "n1", KEY), ())
    told = [sentence(entry) for entry in journal.history(Query(limit=2))]
    assert "left out" in told[0] and "entries of it" in told[0]


def test_history_is_pruned_and_preempted_seconds_are_kept_for_good(journal: Journal) -> None:
    journal.commit(host(10.0), None, (ev.Noted("n1", ev.Note.RELEASED, KEY, "", 7.5),))
    # if the facts still have the job, they count; else the decision does
    journal.commit(Host("h1", Mode.COUNTED, 8, 4096, now=11.0), None, (ev.Noted("n1", ev.Note.RELEASED, KEY, "", 7.5),))
    journal.tidy(keep_since=1000.0)
    assert journal.history() == []
    assert again(journal).preempted_s() == {("n1", "1.srv", 1): 7.5}


def test_preempted_seconds_written_twice_are_counted_once(journal: Journal) -> None:
    facts = host(preempted_s=5.0)
    for _ in range(2):
        journal.commit(facts, None, (ev.Noted("n1", ev.Note.CONTINUED, KEY, "", 3.0),))
    assert journal.preempted_s() == {("n1", "1.srv", 1): 5.0}


def test_the_preempting_job_is_found_again(journal: Journal) -> None:
    journal.commit(host(), None, (ev.Noted("n1", ev.Note.PREEMPTED, KEY, "9.srv (run 1)"),))
    assert again(journal).preempted_by("n1", KEY) == "9.srv (run 1)"


def test_notes_of_an_earlier_version_are_read(journal: Journal) -> None:
    """The words are those in all hosts' journals."""
    words = "preempted continued adopted boot-failed freeze-failed released expired missing domain-down newer-run"
    for word in words.split():
        data = f'{{"domain":"n1","what":"{word}","key":["1.srv",1],"text":"9.srv (run 1)","preempted_s":0.0}}'
        row = (1.0, "decision", "Noted", "n1", "1.srv", data.encode())
        journal._connection.execute(
            "INSERT INTO history (at, kind, name, domain, job, data) VALUES (?, ?, ?, ?, ?, ?)", row
        )
    assert again(journal).preempted_by("n1", KEY) == "9.srv (run 1)"
    told = [sentence(one) for one in again(journal).history()]
    assert told[0] == "stopped for 9.srv" and told[-1] == "newer run: 9.srv (run 1)" and len(told) == 10
    assert not any("{" in one for one in told)


def test_states_keep_their_since(journal: Journal) -> None:
    journal.commit(host(), None, (), {"n1": Since("free", 3.0)})
    journal.commit(host(), None, (), {"n1": Since("running", 4.0)})
    assert again(journal).states() == {"n1": Since("running", 4.0)}


def test_an_old_journal_is_migrated_and_keeps_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = open_journal(path)
    paused = host().having(replace(host().domains[0], paused_externally=True, down_why='"halted": by "halted":'))
    journal.commit(paused, None, ())
    journal.close()
    with sqlite3.connect(path) as connection:  # as version 1 left it
        connection.executescript("DROP TABLE moves; DROP TABLE states")
        connection.executescript("DROP INDEX history_domain; DROP INDEX history_job")
        facts = connection.execute("SELECT host FROM facts").fetchone()[0]
        old = facts.replace(b'"paused_externally":', b'"halted":')
        assert old != facts
        connection.execute("UPDATE facts SET host = ?", (old,))
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    migrated = open_journal(path)
    assert migrated.facts() == paused and migrated.states() == {}
    migrated.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA
        indexes = {row[1] for row in connection.execute("PRAGMA index_list(history)")}
        assert indexes == {"history_at", "history_domain", "history_job"}
    connection.close()


def test_a_sleep_comes_back_as_it_was_and_no_older_program_takes_the_sleeper_for_down(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    sleep = Sleep(1_000.0, "a new disk", SleepCause.SHUTDOWN, wakes=True, books_until=1_020.0)
    facts = host(stopped_since=2.0, stopper=StoppedBy.US)
    asleep = facts.having(replace(facts.domains[0], sleep=sleep, lifecycle=Lifecycle.DOWN))
    journal = open_journal(path)
    journal.commit(asleep, ev.SleepRequested(1_000.0, "n1", "a new disk", SleepCause.SHUTDOWN, 20.0), ())
    assert again(journal).facts() == asleep
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] > 4
    connection.close()


def test_a_journal_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    open_journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="schema is 99"):
        open_journal(path)


def filled(path: Path) -> bytes:
    journal = open_journal(path)
    for n in range(200):
        journal.commit(host(float(n)), ev.TimerFired(float(n)), ())
    journal.close()
    return path.read_bytes()


def test_a_damaged_journal_is_named_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    data = bytearray(filled(path))
    data[4096 * 3 : 4096 * 6] = b"\xff" * 4096 * 3
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"journal\.sqlite.*(damaged|malformed)"):
        open_journal(path)
    assert path.read_bytes() == bytes(data)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, but long enough to look at it" * 100)
    with pytest.raises(JournalError, match="move it aside"):
        open_journal(path)
    assert salvage(path) is None


def test_the_readable_facts_of_a_damaged_journal_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    data = bytearray(filled(path))
    pages = len(data) // 4096
    data[4096 * (pages - 2) :] = b"\xff" * len(data[4096 * (pages - 2) :])  # history, at the end
    path.write_bytes(data)
    with pytest.raises(JournalError):
        open_journal(path)
    assert salvage(path) == host(199.0)


def test_facts_that_cannot_be_read_are_an_error_and_not_an_empty_host(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = open_journal(path)
    journal.commit(host(), None, ())
    journal._connection.execute("UPDATE facts SET host = ?", (b'{"name": 5}',))
    with pytest.raises(JournalError, match="facts in it cannot be read"):
        journal.facts()
    journal.close()


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may grow beyond this, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = 256 * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_a_commit_fails_clearly_and_the_facts_before_it_stay(journal: Journal, small_files: int) -> None:
    last = None
    with pytest.raises(JournalError, match="make room"):
        for n in range(1000):
            journal.commit(host(float(n)), ev.DrainRequested(float(n), "n1", "x" * 5000), ())
            last = host(float(n))
    assert last is not None and journal.facts() == last
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[1], before[1]))  # there is room again
    journal.commit(host(5000.0), None, ())
    assert again(journal).facts() == host(5000.0)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_missing_right_to_write_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(JournalError, match=r"may I write it|right to write"):
        open_journal(tmp_path / "journal.sqlite")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be opened"):
        open_journal(tmp_path / "file" / "journal.sqlite")


def test_no_journal_refuses_every_commit_with_the_reason() -> None:
    with pytest.raises(JournalError, match="why"):
        NoJournal(JournalError("why")).commit(host(), None, ())


def test_a_damaged_schema_whose_message_is_no_utf_8_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    open_journal(path).close()
    row = b"tablestatesstates"  # type, name and table, before the statement
    data = path.read_bytes().replace(row, b"table\xff\xfeatesstates")
    path.write_bytes(data.replace(b"CREATE TABLE states", b"CREATE TABLE ((ates"))
    with pytest.raises(JournalError, match=r"journal\.sqlite: "):
        open_journal(path)
    assert salvage(path) is None
