"""Moves: what is refused, what is declined, when deadlines act, and what the facts of a moved domain are.

What happens when parts fail in the middle is in tests/property/test_moves.py.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args, get_type_hints

import msgspec
import pytest

from magrathea.core import arrivals
from magrathea.core import events as ev
from magrathea.core import migration as mg
from magrathea.core import move_events as me
from magrathea.core.arrivals import Rules
from magrathea.core.model import (
    Amount,
    Closing,
    Coming,
    Ended,
    Host,
    JobKey,
    Lifecycle,
    Patience,
    Pause,
    Sleep,
    SleepCause,
)
from magrathea.core.moves import (
    HostWithMoves,
    Letting,
    Moves,
    MoveStage,
    Ownership,
    Parcel,
    Says,
    Transfer,
    Where,
    Word,
)
from magrathea.core.refusals import RefusalCode

from .builders import T, host, run, stop

FROM_A = Rules(welcome=frozenset({"a"}))


def named(name: str, mode: str = "counted", **domains: str) -> Host:
    return replace(host(mode, **domains), name=name)  # type: ignore[arg-type]


def owned(here: Host, domain: str = "n1", number: int = 1, owner: str = "") -> HostWithMoves:
    """The hub has said who owns the domain: this host, if nobody else is named."""
    return HostWithMoves(here, Moves((Ownership(domain, number, owner or here.name, 1),)))


def do(place: HostWithMoves, event: me.MoveEvent, rules: Rules = FROM_A) -> HostWithMoves:
    return mg.handle(place, event, rules)[0]


def asked(place: HostWithMoves, to: str = "b", until: float = T + 100, domain: str = "n1") -> HostWithMoves:
    return do(place, me.MoveRequested(T, domain, to, until))


def answer(place: HostWithMoves, to: str = "b", domain: str = "n1") -> RefusalCode | None:
    """The code of the refusal of a move; None if it is accepted."""
    _, (said, *_) = mg.handle(place, me.MoveRequested(T, domain, to, T + 100))
    return said.code if isinstance(said, ev.Refused) else None


def granted(number: int = 1, revision: int = 2, **flags: object) -> Ownership:
    """The hub's record of a move of n1 from a to b."""
    return Ownership("n1", number, "a", revision, replace(Transfer(number + 1, "a", "b"), **flags))  # type: ignore[arg-type]


def told(place: HostWithMoves, record: Ownership, rules: Rules = FROM_A) -> HostWithMoves:
    return do(place, me.RecordsTold(T, (record,)), rules)


def parcel(source: Host, *, final: bool = False, at: float = T, number: int = 2) -> me.ParcelTold:
    facts = source.domain("n1")
    assert facts
    return me.ParcelTold(T, Parcel(number, "a", at, final, facts))


def expecting(target: Host, source: Host, rules: Rules = FROM_A) -> HostWithMoves:
    """The target has heard of the move and has got the first facts."""
    place = told(HostWithMoves(target), granted(), rules)
    return do(do(place, parcel(source), rules), me.DomainFound(T, "n1", Where.ABSENT), rules)


# Asking


def test_a_domain_that_is_up_and_the_hosts_own_may_move() -> None:
    assert answer(owned(named("a", n1="normal"))) is None


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"lifecycle": Lifecycle.DOWN}, RefusalCode.NOT_MOVABLE),
        ({"lifecycle": Lifecycle.BOOTING}, RefusalCode.NOT_MOVABLE),
        ({"saving": True}, RefusalCode.NOT_MOVABLE),
        ({"frozen": True}, RefusalCode.NOT_MOVABLE),
        ({"sleep": Sleep(T, "for a test", SleepCause.ADMIN)}, RefusalCode.NOT_MOVABLE),
        ({"closing": Closing(False, Patience.DRAIN, T)}, RefusalCode.DOMAIN_CLOSING),
    ],
)
def test_a_domain_that_is_not_simply_up_may_not_move(facts: dict[str, object], code: RefusalCode) -> None:
    here = named("a", n1="normal")
    domain = here.domain("n1")
    assert domain
    assert answer(owned(here.having(replace(domain, **facts)))) is code  # type: ignore[arg-type]


def test_no_move_begins_without_the_hub_or_on_a_paused_host_or_of_an_unknown_domain() -> None:
    here = named("a", n1="normal")
    assert answer(HostWithMoves(here)) is RefusalCode.HUB_LOST, "the hub has no record of it"
    assert answer(owned(here, owner="c")) is RefusalCode.NOT_MOVABLE, "c has it"
    assert answer(owned(replace(here, hub_lost=True))) is RefusalCode.HUB_LOST
    assert answer(owned(replace(here, paused=Pause(T, "work")))) is RefusalCode.PAUSED
    assert answer(owned(here), domain="n9") is RefusalCode.UNKNOWN_DOMAIN


def test_a_repeated_request_is_answered_like_the_first_and_changes_nothing() -> None:
    once = asked(owned(named("a", n1="normal")))
    assert answer(once) is None
    assert mg.words(asked(once)) == mg.words(once) == (Word("n1", 1, Says.ASKS, "b"),)


def test_a_domain_that_stays_where_it_is_needs_no_move() -> None:
    place = owned(named("a", n1="normal"))
    assert answer(place, to="a") is None
    assert not asked(place, to="a").moves.leaving


def test_a_move_that_the_hub_denies_turns_back_and_the_number_must_grow_first() -> None:
    place = do(asked(owned(named("a", n1="normal"))), me.MoveDenied(T, "n1", 1, "b takes nobody"))
    assert mg.words(place) == (Word("n1", 1, Says.STAYS),)
    place = told(place, Ownership("n1", 2, "a", 2))
    assert not place.moves.leaving and place.moves.record("n1") == Ownership("n1", 2, "a", 2)


def test_a_denial_of_an_earlier_number_means_nothing() -> None:
    place = asked(owned(named("a", n1="normal"), number=5))
    assert do(place, me.MoveDenied(T, "n1", 4, "late")).moves == place.moves


def test_a_move_that_nobody_answers_turns_back_at_its_deadline() -> None:
    place = asked(owned(named("a", n1="normal")), until=T + 60)
    assert mg.next_deadline(place) == T + 60
    assert mg.words(do(place, me.Ticked(T + 59))) == mg.words(place)
    assert mg.words(do(place, me.Ticked(T + 60))) == (Word("n1", 1, Says.STAYS),)


def test_another_target_is_asked_for_only_after_the_first_move_is_off() -> None:
    place = told(asked(owned(named("a", n1="normal"))), granted())
    place = asked(place, to="c")
    assert mg.words(place) == (Word("n1", 1, Says.STAYS),)
    assert mg.words(told(place, Ownership("n1", 3, "a", 3))) == (Word("n1", 3, Says.ASKS, "c"),)


def test_a_target_that_declines_turns_the_move_back_with_its_reason() -> None:
    place = told(told(asked(owned(named("a", n1="normal"))), granted()), granted(revision=3, declined="no room"))
    assert mg.words(place) == (Word("n1", 1, Says.STAYS),)
    assert place.moves.leaving[0].why == "b: no room"


def test_a_copy_that_fails_is_tried_again_under_a_new_number_three_times_at_most() -> None:
    place, number = asked(owned(named("a", n1="normal"))), 1
    for _ in range(3):
        assert mg.words(place) == (Word("n1", number, Says.ASKS, "b"),)
        place = told(place, granted(number, revision=10 * number + 5, ready=True))
        assert mg.step(place, "n1", Where.RUNNING) is mg.MoveStep.COPY
        place = do(place, me.CopyOver(T, "n1", "the network is gone"))
        assert mg.step(place, "n1", Where.RUNNING) is None, "one copy under one number"
        place = do(place, me.DomainFound(T, "n1", Where.RUNNING))
        assert mg.words(place) == (Word("n1", number, Says.STAYS),)
        number += 2
        place = told(place, Ownership("n1", number, "a", 10 * number))
    assert not place.moves.leaving and mg.words(place) == (Word("n1", number, Says.OWNS),)


def test_a_copy_that_makes_no_progress_has_no_deadline() -> None:
    place = told(asked(owned(named("a", n1="normal"))), granted(ready=True))
    assert place.moves.leaving[0].stage is MoveStage.COPYING
    assert mg.next_deadline(place) is None


def test_an_admin_ends_a_copy_by_wanting_the_domain_here() -> None:
    place = asked(told(asked(owned(named("a", n1="normal"))), granted(ready=True)), to="a")
    assert mg.step(place, "n1", Where.RUNNING, copying=True) is mg.MoveStep.ABORT


def test_a_host_whose_journal_was_lost_finds_its_move_again_by_the_hubs_record() -> None:
    place = told(HostWithMoves(named("a", n1="normal")), granted(ready=True))
    assert mg.step(place, "n1", Where.RUNNING) is None, "it may have been copied under this number"
    assert mg.words(do(place, me.DomainFound(T, "n1", Where.RUNNING))) == (Word("n1", 1, Says.STAYS),)
    assert mg.words(do(place, me.DomainFound(T, "n1", Where.LEFT))) == (Word("n1", 2, Says.GONE, "b"),)
    gone = told(HostWithMoves(named("a")), granted(ready=True, letting=Letting.GONE))
    assert mg.words(gone) == (Word("n1", 2, Says.GONE, "b"),)


def test_deadlines_of_the_host_act_before_a_move_goes_on() -> None:
    here = run(named("a", n1="normal"), "n1", "1", confirmed=False, claimed_at=T)
    place = do(owned(here), me.Ticked(T + 100))
    assert not place.host.domains[0].jobs, "its claim has expired"


def test_a_claim_that_moves_gets_its_time_to_be_confirmed_again() -> None:
    source = run(named("a", n1="normal"), "n1", "1", confirmed=False, claimed_at=T - 59)
    place = expecting(named("b"), source)
    place = do(do(place, parcel(source, final=True)), me.DomainFound(T + 10, "n1", Where.RUNNING))
    domain = place.host.domain("n1")
    assert domain and domain.jobs[0].claimed_at == T + 10


# While it moves


def test_claims_are_refused_while_the_domain_moves_and_accepted_again_when_it_stays() -> None:
    place = asked(owned(named("a", n1="normal")))
    no = mg.refusal(place, "n1")
    assert no and no.code is RefusalCode.DOMAIN_MOVING
    assert mg.refusal(place, "n2") is None
    assert mg.refusal(asked(place, to="a"), "n1") is None


def test_claims_are_refused_at_the_target_until_the_facts_are_there() -> None:
    source = run(named("a", n1="normal"), "n1", "1", cpus=2)
    place = expecting(named("b", n2="normal"), source)
    no = mg.refusal(place, "n1")
    assert no and no.code is RefusalCode.DOMAIN_MOVING
    place = do(do(place, me.DomainFound(T, "n1", Where.RUNNING)), parcel(source, final=True))
    assert mg.refusal(place, "n1") is None and mg.may_act(place, "n1")


def test_standing_stops_arrive_with_the_facts() -> None:
    source = stop(run(named("a", n1="normal"), "n1", "1", cpus=2), "n1", "1", since=30)
    place = expecting(named("b", n2="normal"), source)
    place = do(do(place, parcel(source, final=True)), me.DomainFound(T, "n1", Where.RUNNING))
    before, after = source.domain("n1"), place.host.domain("n1")
    assert before and after and after.jobs == before.jobs and after.stopped
    assert after.preempted_s == before.preempted_s and place.moves.visitor("n1")


def test_a_domain_that_ends_before_it_is_copied_stays() -> None:
    place = told(asked(owned(named("a", n1="normal"))), granted())
    place = do(place, me.DomainFound(T, "n1", Where.OFF))
    assert mg.words(place) == (Word("n1", 1, Says.STAYS),)
    assert place.host.domain("n1"), "its facts end as always when a domain goes down"


def test_life_does_not_take_a_switch_over_for_an_end() -> None:
    place = told(asked(owned(named("a", n1="normal"))), granted(ready=True))
    assert mg.life_rests(place.moves, "n1") and not mg.life_rests(place.moves, "n2")


def test_old_facts_of_a_domain_that_is_another_hosts_are_dropped_only_if_nothing_of_it_is_here() -> None:
    place = told(owned(named("a", n1="normal")), Ownership("n1", 7, "c", 9))
    assert not mg.may_act(place, "n1")
    no = mg.refusal(place, "n1")
    assert no and no.code is RefusalCode.DOMAIN_MOVING and "c has n1" in no.text
    assert answer(place) is RefusalCode.NOT_MOVABLE
    assert do(place, me.DomainFound(T, "n1", Where.RUNNING)).host.domain("n1")
    assert do(place, me.DomainFound(T, "n1", Where.ABSENT)).host.domain("n1") is None


# Arriving


def test_a_host_takes_domains_only_from_hosts_that_its_configuration_names() -> None:
    place = told(HostWithMoves(named("b")), granted(), Rules(welcome=frozenset({"c"})))
    assert [(w.says, w.about) for w in mg.words(place)] == [(Says.DECLINES, "it takes no domains from a")]


def test_a_host_takes_no_domain_whose_name_it_has_in_use() -> None:
    (word,) = mg.words(told(HostWithMoves(named("b", n1="normal")), granted()))
    assert word.says is Says.DECLINES


def test_a_host_takes_only_so_many_at_once() -> None:
    one = Rules(welcome=frozenset({"a"}), most=1)
    place = told(HostWithMoves(named("b")), granted(), one)
    other = Ownership("n2", 1, "a", 2, Transfer(2, "a", "b"))
    assert [w.says for w in mg.words(told(place, other, one))] == [Says.DECLINES]


def test_facts_of_another_number_or_host_are_not_taken() -> None:
    source = named("a", n1="normal")
    place = told(HostWithMoves(named("b")), granted())
    wrong = (parcel(source, number=1), parcel(source, number=3))
    assert all(do(place, event).moves == place.moves for event in wrong)
    forged = replace(parcel(source).parcel, source="c")
    assert do(place, me.ParcelTold(T, forged)).moves == place.moves


def test_older_facts_never_replace_newer_ones_and_nothing_replaces_the_final_ones() -> None:
    older, newer = named("a", n1="normal"), run(named("a", n1="normal"), "n1", "1")
    place = told(HostWithMoves(named("b")), granted())
    place = do(do(place, parcel(newer, at=T + 5)), parcel(older, at=T + 4))
    assert place.moves.arriving[0].parcel and place.moves.arriving[0].parcel.facts.jobs
    place = do(do(place, parcel(newer, at=T + 5, final=True)), parcel(older, at=T + 9))
    assert place.moves.arriving[0].parcel and place.moves.arriving[0].parcel.final


@pytest.mark.parametrize(
    ("mode", "busy", "own", "fits"),
    [
        ("counted", "cpus=2", 6, True),
        ("counted", "cpus=3", 6, False),
        ("exclusive", "cpus=1", 1, False),
        ("exclusive", "", 8, True),
    ],
)
def test_a_domain_is_taken_only_if_it_fits_without_stopping_anybody(mode: str, busy: str, own: int, fits: bool) -> None:
    source = run(named("a", mode, n1="normal"), "n1", "1", cpus=own)
    target = named("b", mode, n2="normal")
    if busy:
        target = run(target, "n2", "2", cpus=int(busy.partition("=")[2]))
    place = expecting(target, source)
    assert mg.step(place, "n1", Where.ABSENT) is (mg.MoveStep.PREPARE if fits else None)
    assert [w.says for w in mg.words(place) if w.domain == "n1"] == ([] if fits else [Says.DECLINES])


def test_room_is_kept_for_a_domain_that_is_expected() -> None:
    source = run(named("a", n1="normal"), "n1", "1", cpus=6)
    place = expecting(named("b", n2="normal"), source)
    assert place.host.coming == (Coming("n1", Amount(6, 0), True),)
    other = replace(source, domains=(replace(source.domains[0], name="n3"),))
    assert arrivals.no_room(place.host, other.domains[0])


def test_an_arrival_that_does_not_come_gives_its_room_back() -> None:
    source = run(named("a", n1="normal"), "n1", "1", cpus=6)
    place = expecting(named("b", n2="normal"), source)
    due = mg.next_deadline(place)
    assert due == T + FROM_A.patience_s
    late = do(place, me.Ticked(due))
    assert late.host.coming == ()
    assert [w.says for w in mg.words(late) if w.domain == "n1"] == [Says.DECLINES]


def test_an_arrival_is_ready_only_if_nothing_of_the_domain_is_here() -> None:
    place = expecting(named("b"), named("a", n1="normal"))
    left_over = do(place, me.DomainFound(T, "n1", Where.ARRIVED))
    assert Says.READY not in [w.says for w in mg.words(do(left_over, me.RoomMade(T, "n1", 2)))]
    assert [w.says for w in mg.words(do(place, me.RoomMade(T, "n1", 2)))] == [Says.READY]


def test_what_cannot_be_prepared_is_declined() -> None:
    place = do(expecting(named("b"), named("a", n1="normal")), me.RoomMade(T, "n1", 2, "no such bridge"))
    assert [(w.says, w.about) for w in mg.words(place)] == [(Says.DECLINES, "no such bridge")]


def test_an_arrived_copy_does_not_run_before_the_hub_names_its_host_as_owner() -> None:
    place = do(expecting(named("b"), named("a", n1="normal")), me.RoomMade(T, "n1", 2))
    assert mg.step(place, "n1", Where.ARRIVED) is None
    place = told(place, granted(revision=3, ready=True, letting=Letting.GONE))
    assert mg.step(place, "n1", Where.ARRIVED) is None
    mine = Ownership("n1", 2, "b", 4, Transfer(2, "a", "b", True, letting=Letting.GONE, owed=True))
    assert mg.step(told(place, mine), "n1", Where.ARRIVED) is mg.MoveStep.RUN


def test_what_the_target_saw_before_the_source_let_go_says_nothing() -> None:
    place = do(expecting(named("b"), named("a", n1="normal")), me.RoomMade(T, "n1", 2))
    place = told(place, granted(revision=3, ready=True, letting=Letting.GONE))
    assert Says.LACKS not in [w.says for w in mg.words(place)]
    assert [w.says for w in mg.words(do(place, me.DomainFound(T, "n1", Where.ABSENT)))] == [Says.LACKS]
    assert [w.says for w in mg.words(do(place, me.DomainFound(T, "n1", Where.ARRIVED)))] == [Says.HERE]


def test_without_its_source_a_domain_that_is_here_gets_the_facts_that_came_before() -> None:
    source = run(named("a", n1="normal"), "n1", "1", cpus=2)
    place = do(expecting(named("b"), source), me.DomainFound(T, "n1", Where.RUNNING))
    assert place.host.domain("n1") is None
    due = mg.next_deadline(place)
    assert due == T + FROM_A.facts_s
    place, said = mg.handle(place, me.Ticked(due), FROM_A)
    assert place.host.domain("n1") and said == (me.MoveNoted("n1", me.MoveNote.OLD_FACTS, "a"),)


def test_a_cancelled_arrival_is_removed_but_never_what_runs() -> None:
    place = told(expecting(named("b"), named("a", n1="normal")), Ownership("n1", 3, "a", 3))
    assert mg.step(place, "n1", Where.ARRIVED) is mg.MoveStep.DISCARD
    assert mg.step(place, "n1", Where.RUNNING) is None
    assert not do(place, me.DomainFound(T, "n1", Where.ABSENT)).moves.arriving


# Facts on their way


def test_times_are_those_of_the_new_hosts_clock() -> None:
    here = run(named("a", n1="normal"), "n1", "1", cpus=2)
    facts = replace(here.domains[0], ended=(Ended(JobKey("9", 1), T - 5),), linger_until=T + 3)
    moved = arrivals.shifted(facts, 1000.0)
    assert moved.jobs[0].run_since == facts.jobs[0].run_since + 1000
    assert (moved.ended[0].at, moved.linger_until) == (T + 995, T + 1003)
    assert arrivals.shifted(moved, -1000.0) == facts
    place = told(HostWithMoves(replace(named("b"), now=T + 500)), granted())
    place = do(place, me.ParcelTold(T + 500, Parcel(2, "a", T, False, facts)))
    assert place.moves.arriving[0].parcel and place.moves.arriving[0].parcel.facts.linger_until == T + 503


def test_every_time_among_the_facts_is_known_as_one() -> None:
    """A fact that is new and a number of seconds must be sorted in: a time, or how long something takes."""
    spans = {"boot_limit_s", "preempted_s"}
    for kind, times in arrivals.TIMES.items():
        hints = get_type_hints(kind)
        seconds = {f.name for f in fields(kind) if float in (hints[f.name], *get_args(hints[f.name]))}
        assert seconds - spans == set(times), kind.__name__


def test_all_facts_of_moves_survive_the_journal() -> None:
    source = run(named("a", n1="normal"), "n1", "1", cpus=2)
    leaving = told(asked(owned(source)), granted(ready=True))
    leaving = do(do(leaving, me.CopyOver(T, "n1")), me.DomainFound(T, "n1", Where.LEFT))
    assert leaving.moves.leaving[0].sealed
    for place in (leaving, expecting(named("b", n2="normal"), source)):
        data = msgspec.json.encode(place)
        assert msgspec.json.decode(data, type=HostWithMoves) == place
