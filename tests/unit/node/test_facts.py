"""The door to the facts: what counts while the journal fails, and what is written when it works again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.arrivals import Rules
from magrathea.core.model import JobClass, JobKey, Kind
from magrathea.core.moves import Ownership, Parcel, Transfer, Where
from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.core_configurations import configuration
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


# Moves


def own(facts: Facts) -> None:
    """The hub has said that n1 is this host's."""
    assert facts.apply_move(me.RecordsTold(T, (Ownership("n1", 1, "h1", 1),)), Rules()) is not None


def test_a_fact_about_a_move_is_on_disk_when_it_counts(facts: Facts) -> None:
    own(facts)
    assert facts.apply_move(me.MoveRequested(T, "n1", "h2", T + 60), Rules()) == (ev.Accepted("n1"),)
    assert facts.moves.leaving and facts.journal.moves() == facts.moves  # type: ignore[attr-defined]
    assert committed == ["commit RecordsTold", "commit MoveRequested"]


def test_without_its_journal_no_fact_about_a_move_changes(facts: Facts) -> None:
    own(facts)
    before = facts.moves
    full_disk(facts)
    assert facts.apply_move(me.MoveRequested(T, "n1", "h2", T + 60), Rules()) is None
    assert facts.moves is before and facts.trouble


def test_claims_for_a_domain_that_moves_are_refused(facts: Facts) -> None:
    own(facts)
    facts.apply_move(me.MoveRequested(T, "n1", "h2", T + 60), Rules())
    for event in (ev.Claimed(T, "n1", JobKey("9", 1), JobClass.PREEMPTIBLE, 1, 0), ev.ShutdownRequested(T, "n1")):
        applied = facts.apply(event)
        (refused,) = applied.decisions
        assert isinstance(refused, ev.Refused) and refused.code is RefusalCode.DOMAIN_MOVING
        assert not applied.taken
    facts.apply(ev.Released(T, "n1", KEY))
    assert not facts.host.domains[0].jobs, "its jobs may end"


def test_a_host_grants_nothing_about_a_domain_that_another_host_has(facts: Facts) -> None:
    facts.apply_move(me.RecordsTold(T, (Ownership("n1", 2, "h2", 3),)), Rules())
    for event in (
        ev.Claimed(T, "n1", JobKey("9", 1), JobClass.PREEMPTIBLE, 1, 0),
        ev.BootRequested(T, "n1"),
        ev.ShutdownRequested(T, "n1"),
        ev.FreezeRequested(T, "n1"),
    ):
        (refused,) = facts.apply(event).decisions
        assert isinstance(refused, ev.Refused) and "h2 has n1" in refused.text


def test_a_domain_that_has_left_survives_a_restart_and_its_configuration_does_not_bring_it_back(
    facts: Facts, tmp_path: Path
) -> None:
    own(facts)
    domain = facts.host.domain("n1")
    facts.apply_move(me.MoveRequested(T, "n1", "h2", T + 60), Rules())
    granted = Ownership("n1", 1, "h1", 2, Transfer(2, "h1", "h2", ready=True))
    facts.apply_move(me.RecordsTold(T, (granted,)), Rules())
    facts.apply_move(me.CopyOver(T, "n1"), Rules())
    facts.apply_move(me.DomainFound(T, "n1", Where.ABSENT), Rules())
    facts.close()
    again = Facts(tmp_path / "journal.sqlite", Clock, committed.append, lambda: None)
    assert domain and again.host.domain("n1") is None
    assert again.moves.leaving[0].sealed == replace(domain, still_since=T), "its guest has stood still since the copy"
    again.apply(configuration(again.host, T))
    named = replace(configuration(again.host, T), domains=(ev.ConfiguredDomain("n1", Kind.NORMAL, 8),))
    again.apply(named)
    assert again.host.domain("n1") is None


def test_a_visitor_stays_although_no_configuration_names_it(facts: Facts) -> None:
    (n1, _) = facts.host.domains
    visitor = replace(n1, name="v1")
    record = Ownership("v1", 1, "h2", 1, Transfer(2, "h2", "h1"))
    welcome = Rules(welcome=frozenset({"h2"}))
    facts.apply_move(me.RecordsTold(T, (record,)), welcome)
    facts.apply_move(me.ParcelTold(T, Parcel(2, "h2", T, True, visitor)), welcome)
    facts.apply_move(me.DomainFound(T, "v1", Where.RUNNING), welcome)
    facts.apply(replace(configuration(facts.host, T), domains=(ev.ConfiguredDomain("n1", Kind.NORMAL, 8),)))
    found = facts.host.domain("v1")
    assert found and found.configured and found.jobs == n1.jobs
