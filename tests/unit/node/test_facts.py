"""The door to the facts: what counts while the journal fails, and what is written when it works again."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobClass, JobKey
from magrathea.core.refusals import RefusalCode
from node_daemon.clock import Clock
from node_daemon.facts import Facts
from node_daemon.journal import PRUNE_ROWS, JournalError
from node_daemon.journal_store import JournalStore
from tests.unit.core.builders import T, host, run

KEY = JobKey("1", 1)


class FullDisk:
    """A journal on a disk that is full until `works`."""

    def __init__(self, journal: JournalStore) -> None:
        self.journal = journal
        self.works = False
        self.written: list[ev.Decision] = []

    def commit(self, *args: object) -> None:
        if not self.works:
            raise JournalError("the disk is full")
        decisions = args[2]
        assert isinstance(decisions, list)
        self.written += decisions


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    """With an old job in n1; p1 is free."""
    made = Facts(tmp_path / "journal.sqlite", Clock, committed.append, lambda: troubles.append(1))
    troubles.clear()
    committed.clear()
    made.host = run(host("exclusive", n1="normal", p1="priority"), "n1", "1", cpus=1)
    return made


troubles: list[int] = []
committed: list[str] = []


def full_disk(facts: Facts) -> FullDisk:
    disk = FullDisk(facts.journal)
    facts.journal.close()
    facts.journal = disk  # type: ignore[assignment]
    return disk


def test_a_fact_is_on_disk_when_it_counts(facts: Facts) -> None:
    applied = facts.apply(ev.Released(T, "n1", KEY))
    assert applied.taken and applied.changed
    assert committed == ["commit Released"]
    assert facts.journal.facts() == facts.host  # type: ignore[attr-defined]


def test_without_its_journal_a_host_refuses_claims_and_nothing_changes(facts: Facts) -> None:
    full_disk(facts)
    before = facts.host
    applied = facts.apply(ev.Claimed(T, "p1", JobKey("9", 1), JobClass.PRIORITY, 1, 0))
    (refused,) = applied.decisions
    assert isinstance(refused, ev.Refused) and refused.code is RefusalCode.JOURNAL
    assert "the disk is full" in refused.text
    assert not applied.taken and facts.host is before


def test_without_its_journal_a_release_counts_and_is_written_later(facts: Facts) -> None:
    disk = full_disk(facts)
    applied = facts.apply(ev.Released(T, "n1", KEY))
    assert applied.taken and applied.changed
    assert not facts.host.domains[0].jobs
    assert facts.trouble == "the disk is full"
    facts.apply(ev.HubLost(T))
    assert troubles == [1], "reported once"
    disk.works = True
    facts.write_again()
    assert facts.trouble == "" and troubles == [1, 1]
    assert set(applied.decisions) <= set(disk.written)
    committed.clear()
    facts.write_again()
    assert committed == [], "there is nothing left to write"


def test_what_changes_nothing_is_not_committed(facts: Facts) -> None:
    facts.apply(ev.TimerFired(T))  # the states of the host are new to the journal
    committed.clear()
    applied = facts.apply(ev.TimerFired(T + 1))
    assert not applied.changed and committed == []


def test_tidying_goes_on_while_there_is_more_to_prune(tmp_path: Path) -> None:
    facts = Facts(tmp_path / "journal.sqlite", Clock, lambda name: None, lambda: None)
    for _ in range(2):
        facts.journal.commit(facts.host, ev.HubLost(1.0), [ev.Noted("n1", ev.Note.RELEASED)] * (PRUNE_ROWS - 1))
    assert facts.tidy(keep_s=0.0)
    assert facts.tidy(keep_s=0.0)
    assert not facts.tidy(keep_s=0.0)
    facts.close()
