"""The hub's books of who owns which domain: who may say what, what each word changes, and what is kept on disk."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magrathea.core.moves import Letting, Ownership, Says, Transfer, Word
from magrathea.core.refusals import RefusalCode
from scheduler_plugin.hub.ownership import (
    MOST_FORMER,
    MOST_NUMBER,
    BadLedger,
    Ledger,
    Visits,
    WordOutcome,
    decoded,
    encoded,
)

VISITS = Visits({"b": frozenset({"a", "c"}), "c": frozenset({"a"})}, {"a": 2, "b": 2, "c": 2})


def a_ledger(*records: Ownership) -> Ledger:
    return Ledger(records or (Ownership("n1", 1, "a", 1),))


def moving(**flags: object) -> Ledger:
    """n1 is on its way from a to b."""
    transfer = replace(Transfer(2, "a", "b"), **flags)  # type: ignore[arg-type]
    owed = bool(flags.get("owed"))
    return a_ledger(Ownership("n1", 2 if owed else 1, "b" if owed else "a", 5, transfer))


def say(ledger: Ledger, host: str, says: Says, number: int, about: str = "") -> WordOutcome:
    return ledger.heard(host, Word("n1", number, says, about), VISITS)


def test_the_host_that_speaks_first_of_a_new_domain_owns_it() -> None:
    ledger = Ledger()
    assert say(ledger, "a", Says.OWNS, 0).changed
    assert ledger.records["n1"] == Ownership("n1", 1, "a", 1)
    assert not say(ledger, "b", Says.OWNS, 9).changed, "others cannot take it over"


def test_who_had_a_domain_before_is_told_who_has_it_over_a_restart_and_wherever_it_moves_on() -> None:
    ledger = moving(ready=True, letting=Letting.GONE)
    assert say(ledger, "b", Says.HERE, 2).changed and say(ledger, "b", Says.ADOPTED, 2).changed
    ledger = decoded(encoded(ledger))
    assert [record.owner for record in ledger.told("a")] == ["b"]
    assert ledger.moving("a") == 0
    assert say(ledger, "b", Says.ASKS, 2, "c").changed is False, "c takes domains from a only"
    ledger.heard("b", Word("n1", 2, Says.ASKS, "c"), Visits({"c": frozenset({"b"})}))
    assert say(ledger, "c", Says.HERE, 3).changed
    ledger = decoded(encoded(ledger))
    assert [record.owner for host in ("a", "b") for record in ledger.told(host)] == ["c", "c"]
    say(ledger, "c", Says.ADOPTED, 3)
    ledger.heard("c", Word("n1", 3, Says.ASKS, "a"), Visits({"a": frozenset({"c"})}))
    say(ledger, "a", Says.ADOPTED, 4)
    assert ledger.former["n1"] == ("b", "c"), "it has it again"


@pytest.mark.parametrize(("host", "says"), [("a", Says.STAYS), ("b", Says.LACKS)])
def test_a_target_whose_move_came_to_nothing_is_told_so(host: str, says: Says) -> None:
    ledger = moving(ready=True, letting=Letting.GONE if says is Says.LACKS else None)
    assert say(ledger, host, says, 2 if says is Says.LACKS else 1).changed
    assert decoded(encoded(ledger)).told("b") == (ledger.records["n1"],)
    assert ledger.moving("b") == 0


def test_only_the_last_hosts_that_had_a_domain_are_told() -> None:
    ledger = a_ledger()
    hosts = ["a", *(f"h{n}" for n in range(2 * MOST_FORMER))]
    for number, (source, target) in enumerate(pairwise(hosts), 1):
        ledger.heard(source, Word("n1", number, Says.ASKS, target), Visits({target: frozenset({source})}))
        say(ledger, target, Says.ADOPTED, number + 1)
    assert ledger.records["n1"].owner == hosts[-1]
    assert ledger.former["n1"] == tuple(hosts[-1 - MOST_FORMER : -1])


# A domain is given up.


def given_up() -> Ledger:
    """n1 has moved from a to b, and b is lost."""
    ledger = moving(ready=True, letting=Letting.GONE)
    say(ledger, "b", Says.ADOPTED, 2)
    ledger.give_up("n1")
    return decoded(encoded(ledger))


def test_a_domain_that_is_given_up_keeps_its_record_under_the_next_number_and_all_who_had_it_are_told() -> None:
    ledger = given_up()
    assert ledger.records["n1"] == Ownership("n1", 3, "", 7)
    assert ledger.told("a") == ledger.told("b") == (ledger.records["n1"],) and ledger.told("c") == ()


def test_a_host_takes_it_back_under_the_number_after_that_and_others_are_still_told() -> None:
    ledger = given_up()
    assert say(ledger, "a", Says.OWNS, 3).changed
    assert ledger.records["n1"] == Ownership("n1", 4, "a", 8) and ledger.former["n1"] == ("b",)
    assert not say(ledger, "b", Says.OWNS, 3).changed, "it has an owner again"


def test_no_old_word_gets_a_domain_that_was_given_up() -> None:
    for host in ("a", "b", "c"):
        for says in Says:
            for number in (0, 1, 2, 4):
                assert not say(given_up(), host, says, number, "b").changed, (host, says, number)
            assert say(given_up(), host, says, 3, "b").changed == (says is Says.OWNS)


def test_a_domain_of_which_the_books_were_lost_is_given_up_under_a_number_that_is_newer_than_any() -> None:
    ledger = Ledger(base=1_000_000)
    ledger.give_up("n1")
    assert ledger.records["n1"] == Ownership("n1", 1_000_001, "", 1_000_001)


def test_the_books_of_an_older_hub_name_one_former_host() -> None:
    old = {"version": 1, "records": [RECORD], "former": {"n1": "b"}}
    ledger = decoded(msgspec.json.encode(old))
    assert ledger.former == {"n1": ("b",)} and [record.owner for record in ledger.told("b")] == ["a"]


def test_a_granted_move_is_granted_once() -> None:
    ledger = a_ledger()
    assert say(ledger, "a", Says.ASKS, 1, "b").changed
    assert ledger.records["n1"].transfer == Transfer(2, "a", "b")
    assert say(ledger, "a", Says.ASKS, 1, "b") == WordOutcome(False)
    assert say(ledger, "a", Says.ASKS, 1, "c") == WordOutcome(False), "first the other move must be off"


@pytest.mark.parametrize(
    ("host", "number", "to"),
    [("b", 1, "c"), ("c", 1, "b"), ("a", 0, "b"), ("a", 2, "b")],
    ids=["not its domain", "not its domain, to a host that takes its domains", "an old number", "no number of its own"],
)
def test_only_the_owner_may_ask_for_a_move_and_only_with_its_number(host: str, number: int, to: str) -> None:
    ledger = a_ledger()
    assert say(ledger, host, Says.ASKS, number, to) == WordOutcome(False)


@pytest.mark.parametrize("to", ["a", "d", ""], ids=["itself", "unknown", "none"])
def test_a_move_to_a_host_that_does_not_name_the_source_is_refused(to: str) -> None:
    heard = say(a_ledger(), "a", Says.ASKS, 1, to)
    assert heard.refused and heard.refused.code is RefusalCode.NO_VISITORS and not heard.changed


def test_a_host_moves_and_takes_only_so_many_at_once() -> None:
    others = [Ownership(f"x{n}", 1, "c", 1, Transfer(2, "c", "b")) for n in range(2)]
    ledger = a_ledger(Ownership("n1", 1, "a", 1), *others)
    heard = say(ledger, "a", Says.ASKS, 1, "b")
    assert heard.refused and heard.refused.code is RefusalCode.BUSY
    assert say(ledger, "a", Says.ASKS, 1, "c").refused is not None, "c sends two"
    ledger.heard("c", Word("x0", 1, Says.STAYS), VISITS)
    assert say(ledger, "a", Says.ASKS, 1, "b").changed


def test_a_word_of_a_third_host_changes_nothing() -> None:
    for flags in ({}, {"ready": True}, {"ready": True, "letting": Letting.GONE}, {"owed": True}):
        for says in Says:
            for number in range(4):
                assert not say(moving(**flags), "c", says, number, "b").changed, (flags, says, number)


def test_a_word_about_another_number_changes_nothing() -> None:
    about_the_move = set(Says) - {Says.OWNS, Says.ASKS, Says.STAYS}
    for says in about_the_move:
        for host in ("a", "b"):
            assert not say(moving(letting=Letting.GONE), host, says, 1).changed
            assert not say(moving(letting=Letting.GONE), host, says, 3).changed


def test_the_target_has_the_domain_when_it_says_so_and_the_source_is_done_when_its_facts_are_there() -> None:
    ledger = moving(ready=True, letting=Letting.GONE)
    assert say(ledger, "b", Says.HERE, 2).changed
    record = ledger.records["n1"]
    assert (record.owner, record.number, record.transfer and record.transfer.owed) == ("b", 2, True)
    assert not say(ledger, "b", Says.LACKS, 2).changed, "it had it"
    assert say(ledger, "b", Says.ADOPTED, 2).changed
    assert ledger.records["n1"] == Ownership("n1", 2, "b", 7)


def test_the_target_may_lack_the_domain_only_after_the_source_has_let_go() -> None:
    assert not say(moving(ready=True), "b", Says.LACKS, 2).changed
    ledger = moving(ready=True, letting=Letting.ENDED)
    assert say(ledger, "b", Says.LACKS, 2).changed
    assert ledger.records["n1"] == Ownership("n1", 3, "a", 6)


def test_the_source_cannot_keep_what_it_has_let_go() -> None:
    assert say(moving(ready=True), "a", Says.STAYS, 1).changed
    assert not say(moving(ready=True, letting=Letting.GONE), "a", Says.STAYS, 1).changed


def test_a_domain_that_stays_gets_a_new_number_so_that_a_late_question_finds_no_hearing() -> None:
    ledger = a_ledger()
    assert say(ledger, "a", Says.STAYS, 1).changed
    assert ledger.records["n1"].number == 2
    assert not say(ledger, "a", Says.ASKS, 1, "b").changed
    assert not say(ledger, "a", Says.STAYS, 1).changed


def test_each_host_is_told_of_its_domains_of_their_moves_and_of_what_it_asked() -> None:
    ledger = Ledger([Ownership("n1", 1, "a", 5, Transfer(2, "a", "b")), Ownership("n2", 1, "c", 1)])
    assert [r.domain for r in ledger.told("a")] == ["n1"]
    assert [r.domain for r in ledger.told("b")] == ["n1"]
    assert [r.domain for r in ledger.told("b", {"n2", "n9"})] == ["n1", "n2"]


# The books are lost.


def test_lost_books_are_founded_again_by_what_hosts_say_and_are_newer_than_the_lost_ones() -> None:
    ledger = Ledger(base=1000)
    say(ledger, "a", Says.OWNS, 7)
    assert ledger.records["n1"] == Ownership("n1", 7, "a", 1001)


def test_a_move_that_was_under_way_when_the_books_were_lost_is_found_again() -> None:
    ledger = Ledger(base=1000)
    assert not say(ledger, "b", Says.HERE, 8).changed, "the target cannot know what became of the source"
    assert say(ledger, "a", Says.GONE, 8, "b").changed
    assert say(ledger, "b", Says.HERE, 8).changed and say(ledger, "b", Says.ADOPTED, 8).changed
    assert ledger.records["n1"] == Ownership("n1", 8, "b", 1003)


@pytest.mark.parametrize("number", [-1, MOST_NUMBER, 2**70])
def test_an_impossible_number_founds_nothing(number: int) -> None:
    assert not say(Ledger(), "a", Says.OWNS, number).changed
    assert not say(Ledger(), "a", Says.GONE, number, "b").changed


WORDS = st.builds(
    Word, st.sampled_from(("n1", "n2")), st.integers(0, 6), st.sampled_from(Says), st.sampled_from(("a", "b", "c", ""))
)


@given(st.lists(st.tuples(st.sampled_from(("a", "b", "c")), WORDS), max_size=60))
def test_whatever_hosts_say_numbers_only_grow_and_the_books_stay_sound(said: list[tuple[str, Word]]) -> None:
    ledger = Ledger()
    for host, word in said:
        before = dict(ledger.records)
        changed = ledger.heard(host, word, VISITS).changed
        assert changed == (ledger.records != before)
        for name, record in ledger.records.items():
            old = before.get(name, record)
            assert record.number >= old.number and record.revision >= old.revision
            assert record.number > old.number or record.owner == old.owner, "a new owner, a new number"
        assert decoded(encoded(ledger)).records == ledger.records
        assert not ledger.heard(host, word, VISITS).changed, "a repeated word changes nothing"


# On disk.


def test_no_host_can_make_the_books_unreadable_by_a_number_that_grows_beyond_all_bounds() -> None:
    """The next hub would move them aside, with the records of all hosts."""
    ledger = Ledger()
    say(ledger, "a", Says.OWNS, MOST_NUMBER - 2)
    for _ in range(4):
        say(ledger, "a", Says.STAYS, ledger.records["n1"].number)
    assert decoded(encoded(ledger)).records == ledger.records


@pytest.mark.parametrize("says", [Says.GONE, Says.ENDED])
def test_nor_by_a_target_whose_name_is_too_long(says: Says) -> None:
    ledger = Ledger()
    say(ledger, "a", says, 5, "x" * 256)
    assert decoded(encoded(ledger)).records == ledger.records == {}


def test_the_books_are_read_as_they_were_written() -> None:
    ledger = Ledger([*moving(ready=True, letting=Letting.GONE).records.values(), Ownership("n2", 4, "c", 9)], base=77)
    again = decoded(encoded(ledger))
    assert (again.records, again.base, again.moving("b")) == (ledger.records, 77, 1)


RECORD = {"domain": "n1", "number": 1, "owner": "a", "revision": 1}
TRANSFER = {"number": 2, "source": "a", "target": "b"}


@pytest.mark.parametrize(
    "records",
    [
        [{**RECORD, "number": 0}],
        [{**RECORD, "number": "1"}],
        [{**RECORD, "owner": "", "transfer": TRANSFER}],
        [{**RECORD, "domain": "n" * 256}],
        [{**RECORD, "more": 1}],
        [RECORD, RECORD],
        [{**RECORD, "transfer": {**TRANSFER, "target": "a"}}],
        [{**RECORD, "transfer": {**TRANSFER, "number": 3}}],
        [{**RECORD, "transfer": {**TRANSFER, "source": "c"}}],
        [{**RECORD, "transfer": {**TRANSFER, "owed": True}}],
        [{**RECORD, "transfer": {**TRANSFER, "letting": "lost"}}],
        [{**RECORD, "transfer": {**TRANSFER, "declined": "x" * 1001}}],
    ],
)
def test_books_that_cannot_be_so_are_refused(records: list[object]) -> None:
    with pytest.raises(BadLedger):
        decoded(msgspec.json.encode({"version": 1, "records": records}))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}x", b'{"version":2}', b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_books_are_refused(data: bytes) -> None:
    with pytest.raises(BadLedger):
        decoded(data)
