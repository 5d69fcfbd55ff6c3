"""The owners of domains on disk: what hosts are told is written, and what is damaged is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea import files
from magrathea.core.moves import Ownership, Says, Transfer, Word
from magrathea.core.refusals import RefusalCode
from scheduler_plugin.hub.owners import NAME, OwnersFile
from scheduler_plugin.hub.ownership import Visits

VISITS = Visits({"b": frozenset({"a"})}, {"a": 2, "b": 2})
OWN = Word("n1", 0, Says.OWNS)
ASK = Word("n1", 1, Says.ASKS, "b")


def say(owners: OwnersFile, host: str, *words: Word) -> list[RefusalCode]:
    return [refused.code for _, refused in owners.heard(host, words, VISITS, lambda _: True)]


def test_what_hosts_are_told_survives_a_restart(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    assert say(owners, "a", OWN, ASK) == []
    told = owners.told("b")
    assert told == (Ownership("n1", 1, "a", 1002, Transfer(2, "a", "b")),)
    assert OwnersFile(tmp_path, 9.0).told("b") == told


def test_what_was_not_told_may_be_forgotten(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    assert OwnersFile(tmp_path, 2.0).told("a") == ()


def test_a_host_that_may_not_speak_of_a_domain_is_not_heard(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    owners.heard("a", [OWN], VISITS, lambda domain: domain != "n1")
    assert owners.told("a") == ()


def test_a_refused_move_is_answered(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    assert say(owners, "a", OWN, Word("n1", 1, Says.ASKS, "c")) == [RefusalCode.NO_VISITORS]


def test_while_the_disk_fails_no_host_is_told_and_afterwards_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owners = OwnersFile(tmp_path, 1.0)

    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        say(owners, "a", OWN, ASK)
        assert owners.told("a") == owners.told("b") == ()
        assert "ALERT" in caplog.text
    assert owners.told("a") == owners.told("b") != ()


def test_damaged_books_are_moved_aside_and_founded_again_with_newer_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    (old,) = owners.told("a")
    (tmp_path / NAME).write_bytes(b"{")
    again = OwnersFile(tmp_path, 2.0)
    assert "ALERT" in caplog.text and (tmp_path / "owners.damaged").exists()
    say(again, "a", Word("n1", 1, Says.ASKS, "b"))
    (new,) = again.told("a")
    assert new.revision > old.revision and new.transfer == old.transfer


def test_a_parcel_goes_only_where_the_move_goes_and_only_from_its_source(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    assert owners.target("a", "n1", 2) == "b"
    assert owners.target("b", "n1", 2) == owners.target("a", "n1", 1) == owners.target("a", "n2", 2) == ""
