"""What survives the agent, and what is done with a state file that is damaged or not one."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_daemon.agent.jobs import Job
from node_daemon.agent.state_file import StateFile


def test_saved_data_is_loaded_unchanged(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "state"))
    job = Job(("12.srv", 3), 0.0)
    job.owner, job.uid, job.order, job.listed, job.seen = "alice", 1000, "stop", True, True
    job.sessions, job.struck, job.groups = {5: 7}, {6: 8}, {5}
    file.save([job])
    (loaded,) = StateFile(str(tmp_path / "state")).load()
    for name in ("key", "owner", "uid", "order", "listed", "seen", "sessions", "struck", "groups"):
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
