"""What survives the agent, and how it handles a state file that is damaged or is no state file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from node_daemon.agent import state_file
from node_daemon.agent.jobs import Job
from node_daemon.agent.log import Log
from node_daemon.agent.state_file import StateFile


@pytest.fixture(autouse=True)
def a_log_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the lines of other tests would count for its rate."""
    monkeypatch.setattr(state_file, "log", Log())


def test_saved_data_is_loaded_unchanged(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state"))
    job = Job(("12.srv", 3), 0.0)
    job.owner, job.uid, job.order, job.listed, job.seen = "alice", 1000, "stop", True, True
    job.sessions, job.struck, job.groups, job.top = {5: 7}, {6: 8}, {5}, (5, 7)
    file.save([job])
    (loaded,) = StateFile(str(tmp_path / "state")).load()
    for name in ("key", "owner", "uid", "order", "listed", "seen", "sister", "top", "sessions", "struck", "groups"):
        assert getattr(loaded, name) == getattr(job, name), name


def test_pids_of_another_boot_mean_nothing(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state"))
    job = Job(("12.srv", 3), 0.0)
    job.order, job.sessions, job.struck = "stop", {5: 7}, {6: 8}
    file.boot = "another"
    file.save([job])
    (loaded,) = StateFile(str(tmp_path / "state")).load()
    assert (loaded.order, loaded.sessions, loaded.struck) == (None, {}, {})


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"version":2,"boot":"x","jobs":[]}', '{"version":1,"boot":"x","jobs":[1]}', "\0" * 100],
)
def test_a_damaged_state_file_is_put_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text)
    assert StateFile(str(path)).load() == []
    assert (tmp_path / "state.bad").read_text() == text


def test_a_state_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    StateFile(str(tmp_path / "missing" / "state")).save([])


def saved(path: Path, **changes: object) -> None:
    """A file with one job, as an agent writes it, with these fields of the job changed."""
    file = StateFile(str(path))
    job = Job(("12.srv", 3), 0.0)
    job.owner, job.uid, job.order, job.listed, job.stopped_at = "alice", 1000, "stop", True, 1.7e9
    job.sessions, job.struck, job.groups = {5: 7}, {6: 8}, {5}
    file.save([job])
    doc = json.loads(path.read_text())
    doc["jobs"][0].update(changes)
    path.write_text(json.dumps(doc))


@pytest.mark.parametrize(
    "changes",
    [
        {"stopped_at": 10**400},
        {"stopped_at": "never"},
        {"uid": 10**400},
        {"uid": -1},
        {"uid": 1 << 32},
        {"run": 10**400},
        {"sessions": [[5, 10**400]]},
        {"sessions": [[0, 7]]},
        {"struck": [[10**400, 8]]},
        {"struck": [[-1, 8]]},
        {"struck": [[1, 8]]},
        {"struck": [[True, 8]]},
        {"groups": [10**400]},
        {"groups": [0]},
        {"groups": [-1]},
        {"groups": ["5"]},
        {"top": 5},
        {"top": [5]},
        {"top": [1, 7]},
        {"sister": 1},
        {"owner": "x" * 300},
        {"owner": "a\0b"},
        {"order": ["stop"]},
        {"order": "kill"},
    ],
    ids=lambda changes: " ".join(f"{name}={value!r:.20}" for name, value in changes.items()),
)
def test_a_state_file_with_a_wrong_value_is_put_aside_and_the_field_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, object]
) -> None:
    path = tmp_path / "state"
    saved(path, **changes)
    text = path.read_text()
    assert StateFile(str(path)).load() == []
    assert (tmp_path / "state.bad").read_text() == text
    assert not path.exists()
    assert next(iter(changes)) in capfd.readouterr().err


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "1" * 5000])
def test_a_state_file_with_a_number_that_is_none_is_put_aside(tmp_path: Path, number: str) -> None:
    path = tmp_path / "state"
    saved(path, stopped_at=0.5)
    path.write_text(path.read_text().replace("0.5", number))
    assert StateFile(str(path)).load() == []
    assert (tmp_path / "state.bad").exists()


def made(kind: str, path: Path, other: Path) -> None:
    """Something other than our file, in the place of the state file."""
    match kind:
        case "link":
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to(other.with_name("nowhere"))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_file_that_is_no_state_file_is_put_aside_unread(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    path, other = tmp_path / "state", tmp_path / "other"
    saved(other)
    before = other.read_bytes()
    made(kind, path, other)
    file = StateFile(str(path))
    assert file.load() == []
    assert os.path.lexists(tmp_path / "state.bad")
    assert "put aside" in capfd.readouterr().err
    file.save([Job(("13.srv", 1), 0.0)])
    assert [job.id for job in StateFile(str(path)).load()] == ["13.srv"]
    assert other.read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_nothing_is_written_through_what_lies_in_the_new_files_place(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "state", tmp_path / "other"
    saved(other)
    before = other.read_bytes()
    made(kind, tmp_path / "state.new", other)
    StateFile(str(path)).save([Job(("13.srv", 1), 0.0)])
    assert [job.id for job in StateFile(str(path)).load()] == ["13.srv"]
    assert other.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_the_state_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "state"
    (tmp_path / "state.new").touch(0o666)
    before = os.umask(0)
    try:
        StateFile(str(path)).save([])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
