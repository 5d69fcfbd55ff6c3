"""The owners of domains on disk: what hosts are told is written, and what is damaged is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea import files
from magrathea.core.moves import Letting, Ownership, Says, Transfer, Word
from magrathea.core.refusals import RefusalCode
from scheduler_plugin.hub.owners import NAME, OwnersFile
from scheduler_plugin.hub.ownership import Visits

VISITS = Visits({"b": frozenset({"a"})}, {"a": 2, "b": 2})
OWN = Word("n1", 0, Says.OWNS)
ASK = Word("n1", 1, Says.ASKS, "b")


def say(owners: OwnersFile, host: str, *words: Word) -> list[RefusalCode]:
    return [refused.code for _, refused in owners.heard(host, words, VISITS, lambda _: True)]


def written(owners: OwnersFile) -> OwnersFile:
    """With all on disk that the disk takes."""
    if (what := owners.unwritten()) is not None:
        (owners.has_written if owners.write(what) else owners.has_failed)(what)
    return owners


def told(owners: OwnersFile, host: str) -> tuple[Ownership, ...]:
    return written(owners).written.told(host)


def test_what_hosts_are_told_survives_a_restart(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    assert say(owners, "a", OWN, ASK) == []
    found = told(owners, "b")
    assert found == (Ownership("n1", 1, "a", 1002, Transfer(2, "a", "b")),)
    assert told(OwnersFile(tmp_path, 9.0), "b") == found


def test_what_was_not_told_may_be_forgotten(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    assert told(OwnersFile(tmp_path, 2.0), "a") == ()


def test_a_host_that_may_not_speak_of_a_domain_is_not_heard(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    owners.heard("a", [OWN], VISITS, lambda domain: domain != "n1")
    assert owners.unwritten() is None
    assert told(owners, "a") == ()


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
        assert told(owners, "a") == told(owners, "b") == ()
        assert "ALERT" in caplog.text
    assert told(owners, "a") == told(owners, "b") != ()


def test_damaged_books_are_moved_aside_and_founded_again_with_newer_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    (old,) = told(owners, "a")
    (tmp_path / NAME).write_bytes(b"{")
    again = OwnersFile(tmp_path, 2.0)
    assert "ALERT" in caplog.text and (tmp_path / "owners.damaged").exists()
    say(again, "a", Word("n1", 1, Says.ASKS, "b"))
    (new,) = told(again, "a")
    assert new.revision > old.revision and new.transfer == old.transfer


def test_a_parcel_goes_only_where_the_move_goes_and_only_from_its_source(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    assert owners.target("a", "n1", 2) == "", "hosts do not know of it yet"
    written(owners)
    assert owners.target("a", "n1", 2) == "b"
    assert owners.target("b", "n1", 2) == owners.target("a", "n1", 1) == owners.target("a", "n2", 2) == ""


def test_what_is_said_while_the_books_are_written_is_written_next(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN)
    first = owners.unwritten()
    assert first is not None and owners.write(first)
    say(owners, "a", ASK)
    owners.has_written(first)
    (record,) = owners.written.told("a")
    assert record.transfer is None
    (record,) = told(owners, "a")
    assert record.transfer is not None


def test_a_domain_that_was_given_up_is_on_the_disk_without_an_owner_and_who_had_it_is_told(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK, Word("n1", 1, Says.STAYS))
    owners.give_up(["n1"])
    found = told(owners, "a")
    assert (
        [(record.owner, record.number) for record in found]
        == [("", 4)]
        == [(record.owner, record.number) for record in told(OwnersFile(tmp_path, 9.0), "a")]
    )
    say(owners, "b", OWN)
    assert told(owners, "a") == found, "the number is that of an unknown domain"
    say(owners, "b", Word("n1", 4, Says.OWNS))
    (new,) = told(owners, "b")
    assert (new.owner, new.number) == ("b", 5) and new == told(owners, "a")[0]


def test_only_a_host_that_may_report_the_vnode_takes_back_what_was_given_up(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN)
    owners.give_up(["n1"])
    owners.heard("c", [Word("n1", 2, Says.OWNS)], VISITS, lambda _: False)
    assert told(owners, "a")[0].owner == ""


def test_what_an_admin_says_of_a_lost_host_is_written(tmp_path: Path) -> None:
    owners = OwnersFile(tmp_path, 1.0)
    say(owners, "a", OWN, ASK)
    assert [one.before.domain for one in owners.endings("a", run_copies=False)] == ["n1"]
    assert told(owners, "b")[0].transfer == Transfer(2, "a", "b"), "nothing has changed yet"
    owners.host_lost("a", run_copies=False)
    assert told(owners, "b") == told(OwnersFile(tmp_path, 9.0), "b")
    assert told(owners, "b")[0].transfer == Transfer(2, "a", "b", letting=Letting.ENDED)
