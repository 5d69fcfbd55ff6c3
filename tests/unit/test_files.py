"""The daemons' files: no other user can read one, and no other user's link leads a daemon to another file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magrathea import files
from magrathea.core.model import Host, Mode
from node_daemon.hub_keys import HubError, load_pair
from node_daemon.journal import JournalError, open_journal
from node_daemon.main import CannotStart, take_lock
from scheduler_plugin.hub import keys, ledger
from scheduler_plugin.hub.main import lock

PRECIOUS = b"somebody else's"


@pytest.fixture(autouse=True)
def open_to_all() -> Iterator[None]:
    """The umask of a user who starts a daemon by hand."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(PRECIOUS)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_beside_the_journal_are_as_private_as_the_journal(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal.sqlite")
    journal.commit(Host("h1", Mode.COUNTED, 8, 4096), None, ())
    assert {path.name: mode(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"), 0o640
    )
    journal.close()


def test_the_journal_is_private_before_anything_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    monkeypatch.setattr("node_daemon.journal._prepare", lambda connection: modes.append(mode(tmp_path / "j.sqlite")))
    open_journal(tmp_path / "j.sqlite").close()
    assert modes == [0o640]


def test_a_journal_that_was_open_to_all_becomes_private(tmp_path: Path) -> None:
    database, log = tmp_path / "journal.sqlite", tmp_path / "journal.sqlite-wal"
    for path in (database, log):
        path.touch(0o644)
    journal = open_journal(database)
    assert {path: mode(path) for path in (database, log)} == {database: 0o640, log: 0o640}
    journal.close()


def _journal(path: Path) -> None:
    open_journal(path / "file").close()


def _noded_lock(path: Path) -> None:
    (path / "file").rename(path / "noded.lock")
    take_lock(path)


def _hub_lock(path: Path) -> None:
    (path / "file").rename(path / "lock")
    lock(path)


def _books(path: Path) -> None:
    (path / "file").rename(path / ledger.NAME)
    ledger.load(path)


@pytest.mark.parametrize(
    "use",
    [
        _journal,
        _noded_lock,
        _hub_lock,
        _books,
        lambda path: files.touch(path / "file", 0o644),
        lambda path: keys.read(path / "file"),
        lambda path: load_pair(str(path / "file"), str(path / "file")),
    ],
    ids=["journal", "daemon's lock", "hub's lock", "books", "heartbeat", "hub's key", "daemon's key"],
)
@pytest.mark.parametrize("what", ["link", "dangling link", "pipe"])
def test_no_link_is_followed_and_no_pipe_waited_for(
    tmp_path: Path, precious: Path, use: Callable[[Path], None], what: str
) -> None:
    os.utime(precious, (1, 1))
    folder = tmp_path / "folder"
    folder.mkdir()
    if what == "pipe":
        os.mkfifo(folder / "file")
    else:
        (folder / "file").symlink_to(precious if what == "link" else tmp_path / "nothing")
    with pytest.raises((OSError, JournalError, CannotStart, keys.KeysError, HubError), match=r"symbolic|regular"):
        use(folder)
    assert (precious.read_bytes(), precious.stat().st_mtime) == (PRECIOUS, 1)
    assert not (tmp_path / "nothing").exists()


def test_a_planted_file_is_replaced_and_not_written_to(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "books.json.new").symlink_to(precious)
    ledger.save(tmp_path, ledger.Kept([], {}))
    assert precious.read_bytes() == PRECIOUS
    assert ledger.load(tmp_path) == ledger.Kept([], {})
    assert mode(tmp_path / ledger.NAME) == 0o600


def test_a_new_file_is_private_before_it_has_its_name(tmp_path: Path) -> None:
    files.replace(tmp_path / "file", b"old", 0o644)
    files.replace(tmp_path / "file", b"new", sync=True)
    assert ((tmp_path / "file").read_bytes(), mode(tmp_path / "file")) == (b"new", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_lock_of_the_same_file_is_refused(tmp_path: Path) -> None:
    held = files.lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        files.lock(tmp_path / "lock")
    os.close(held)
    os.close(files.lock(tmp_path / "lock"))
