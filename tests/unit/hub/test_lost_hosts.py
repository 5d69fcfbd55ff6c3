"""An admin says that a host is switched off: what follows for each domain on its way, and who must not act on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core.moves import Letting, Ownership, Says, Transfer, Word
from scheduler_plugin.hub.lost_hosts import ending
from scheduler_plugin.hub.ownership import Ledger, Visits, decoded, encoded

VISITS = Visits({"b": frozenset({"a"})}, {"a": 2, "b": 2})


def moving(**flags: object) -> Ownership:
    """n1 is on its way from a to b."""
    transfer = replace(Transfer(5, "a", "b", ready=True), **flags)  # type: ignore[arg-type]
    return Ownership("n1", 5, "b", 9, transfer) if transfer.owed else Ownership("n1", 4, "a", 9, transfer)


COPIES, GONE, ENDED, OWED = (
    moving(),
    moving(letting=Letting.GONE),
    moving(letting=Letting.ENDED),
    moving(letting=Letting.GONE, owed=True),
)


@pytest.mark.parametrize("record", [COPIES, moving(ready=False), moving(declined="no room")])
@pytest.mark.parametrize(("run_copies", "letting"), [(False, Letting.ENDED), (True, Letting.GONE)])
def test_a_source_that_is_lost_has_let_go_and_the_target_says_what_it_has(
    record: Ownership, run_copies: bool, letting: Letting
) -> None:
    found = ending(record, "a", run_copies=run_copies)
    assert found and found.record and found.record.transfer
    assert found.record.transfer.letting is letting and found.record.number == record.number


@pytest.mark.parametrize("record", [GONE, ENDED, OWED])
@pytest.mark.parametrize("run_copies", [False, True])
def test_what_a_source_had_said_itself_stands(record: Ownership, run_copies: bool) -> None:
    found = ending(record, "a", run_copies=run_copies)
    assert found and found.record is None


@pytest.mark.parametrize("record", [GONE, ENDED])
def test_if_the_target_is_lost_that_did_not_own_it_yet_the_source_keeps_it_under_the_next_number(
    record: Ownership,
) -> None:
    found = ending(record, "b", run_copies=False)
    assert found and found.record == Ownership("n1", 6, "a", 9)


def test_if_the_target_is_lost_that_owned_it_nobody_has_it() -> None:
    found = ending(OWED, "b", run_copies=False)
    assert found and found.record == Ownership("n1", 6, "", 9)


def test_a_source_that_has_not_let_go_decides_by_itself() -> None:
    found = ending(COPIES, "b", run_copies=True)
    assert found and found.record is None


def test_a_domain_that_rests_or_moves_between_others_is_left_alone() -> None:
    assert ending(Ownership("n1", 4, "a", 9), "a", run_copies=True) is None
    assert ending(COPIES, "c", run_copies=True) is None


def test_all_moves_of_the_host_are_ended_and_no_others() -> None:
    other = Ownership("n2", 1, "c", 3, Transfer(2, "c", "d"))
    ledger = Ledger([GONE, other, Ownership("n3", 1, "b", 2)])
    assert [one.before.domain for one in ledger.host_lost("b", run_copies=False)] == ["n1"]
    assert ledger.records["n1"] == Ownership("n1", 6, "a", 10) and ledger.records["n2"] == other
    assert ledger.host_lost("b", run_copies=False) == [], "said again, it changes nothing"


def test_both_ends_are_told_also_the_source_of_a_domain_that_nobody_has() -> None:
    ledger = Ledger([OWED])
    ledger.host_lost("b", run_copies=False)
    ledger = decoded(encoded(ledger))
    assert ledger.told("a") == ledger.told("b") == (Ownership("n1", 6, "", 10),)


@pytest.mark.parametrize("run_copies", [False, True])
@pytest.mark.parametrize("record", [COPIES, GONE, OWED])
def test_nothing_that_the_lost_host_says_later_gets_the_domain_back(record: Ownership, run_copies: bool) -> None:
    for lost, other in (("a", "b"), ("b", "a")):
        ledger = Ledger([record])
        if not any(one.record for one in ledger.host_lost(lost, run_copies=run_copies)):
            continue
        for says in Says:
            for number in range(8 if ledger.records["n1"].owner else 6):
                before = ledger.records["n1"]
                ledger.heard(lost, Word("n1", number, says, other), VISITS)
                assert ledger.records["n1"] == before, (lost, says, number)
