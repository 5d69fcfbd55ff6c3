"""The uid of a job's owner, whatever the directory of users does."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.agent import owners
from node_daemon.agent.cgroups import Cgroups
from node_daemon.agent.finder import Finder
from node_daemon.agent.loop import Loop
from node_daemon.agent.owners import Owners, Silence, local_uid, looked_up
from node_daemon.agent.signals import Signaller
from node_daemon.agent.state_file import StateFile
from node_daemon.agent.sweeper import Sweeper
from node_daemon.agent.table import Table

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an agent without root takes all jobs for its own user's")


def test_a_user_of_the_machine_itself_needs_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "looked_up", lambda owner, wait_s: pytest.fail("asked"))
    assert Owners().uid_of("nobody") == pwd.getpwnam("nobody").pw_uid


def test_others_are_looked_up_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "local_uid", lambda owner: None)
    monkeypatch.setattr(Owners, "LOOK_UP_S", BOUND_S)
    found = Owners()
    assert found.uid_of("games") == pwd.getpwnam("games").pw_uid
    assert found.uid_of("no such user") is None
    monkeypatch.setattr(owners, "looked_up", lambda owner, wait_s: pytest.fail("asked again"))
    assert found.uid_of("games") == pwd.getpwnam("games").pw_uid


def test_a_directory_that_hangs_holds_up_nothing_and_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "local_uid", lambda owner: None)
    monkeypatch.setattr(Owners, "LOOK_UP_S", BOUND_S)
    found = Owners()
    assert found.uid_of("games") is not None
    found.known = {name: (uid, 0.0) for name, (uid, _) in found.known.items()}  # it has expired
    monkeypatch.setattr(pwd, "getpwnam", lambda name: time.sleep(100 * BOUND_S))
    with pytest.raises(Silence):
        looked_up("games", 0.01)
    monkeypatch.setattr(Owners, "LOOK_UP_S", 0.01)
    assert found.uid_of("games") is not None
    assert found.uid_of("alice") is None
    monkeypatch.setattr(owners, "looked_up", lambda owner, wait_s: pytest.fail("asked at once"))
    assert found.uid_of("bob") is None
    assert found.uid_of("games") is not None


@pytest.mark.parametrize("line", ["", "alice", "alice:x", "alice:x:one:", "alice2:x:7:7", "# alice:x:7"])
def test_a_line_that_is_no_user_is_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "passwd").write_text(line + "\n")
    assert local_uid("alice", str(tmp_path / "passwd")) is None


def test_all_owners_of_a_list_together_have_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look-up may be slow without being silent."""
    asked: list[str] = []

    def answer(owner: str, wait_s: float) -> int:
        asked.append(owner)
        return 7

    monkeypatch.setattr(owners, "local_uid", lambda owner: None)
    monkeypatch.setattr(owners, "looked_up", answer)
    found = Owners()
    assert found.uid_of("alice", until=time.monotonic() + BOUND_S) == 7
    over = time.monotonic()
    assert found.uid_of("bob", until=over) is None
    assert found.uid_of("alice", until=over) == 7
    assert asked == ["alice"]
    assert found.uid_of("bob", until=time.monotonic() + BOUND_S) == 7, "the next list asks"


def test_a_look_up_that_no_signal_ends_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that reads a file of a server that is away. One that is not killed stands for it."""
    real = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: time.sleep(100 * BOUND_S))
    monkeypatch.setattr(owners, "dying", [])
    try:
        for _ in range(owners.MOST_DYING):
            with pytest.raises(Silence):
                looked_up("games", 0.01)
        before = list(owners.dying)
        with pytest.raises(Silence):
            looked_up("games", BOUND_S)
        assert owners.dying == before, "no further child was made"
    finally:
        for pid in owners.dying:
            real(pid, 9)
            os.waitpid(pid, 0)


def test_a_look_up_for_which_no_process_can_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(BlockingIOError):
        looked_up("games", BOUND_S)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_silent_directory_takes_no_jobs_owner_away() -> None:
    table = Table({}, Sweeper(Loop(), {}, Finder(Cgroups(()), ()), Signaller()), StateFile("/nowhere/state"))
    assert table.enter(("12.srv", 1), "alice", 7).uid == 7
    assert table.enter(("12.srv", 1), "alice", None).uid == 7
    assert table.enter(("12.srv", 1), "bob", None).uid is None
