"""What becomes of the domains of a host that is evacuated: one fate each, no host overfilled, nobody tried twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magrathea.core import evacuation, placement
from magrathea.core.evacuation import WAYS, DecidedFate, Fate, LeavingTurn, Resident
from magrathea.core.model import Amount, Kind, Mode
from magrathea.core.placement import HostRoom

from .test_placement import HOSTS, rooms, travellers

reasons = st.sampled_from(["", "", "it cannot"])
wishes = st.sampled_from(list(WAYS))


@st.composite
def residents(draw: st.DrawFn) -> list[Resident]:
    found = []
    for number in range(draw(st.integers(0, 8))):
        traveller = draw(travellers(f"n{number}"))
        service = traveller.kind is Kind.SERVICE
        turn = (
            LeavingTurn.SERVICE
            if service
            else draw(st.sampled_from(list(LeavingTurn)[:-1]))
            if traveller.has_jobs
            else LeavingTurn.IDLE
        )
        tried = draw(st.frozensets(st.sampled_from(HOSTS), max_size=2))
        found.append(Resident(traveller, turn, draw(reasons), draw(reasons), draw(reasons), tried))
    return found


@given(residents(), rooms(), wishes)
def test_each_domain_has_one_fate_that_it_can_have(here: list[Resident], there: list[HostRoom], wish: Fate) -> None:
    decided = evacuation.plan(here, "h1", there, wish)
    assert sorted(one.domain for one in decided) == sorted(r.name for r in here)
    by_name = {r.name: r for r in here}
    for one in decided:
        resident = by_name[one.domain]
        service = resident.traveller.kind is Kind.SERVICE
        assert (one.fate is Fate.MOVE) is bool(one.to)
        assert one.to != "h1" and one.to not in resident.tried
        assert one.fate in WAYS[wish] or one.fate is Fate.LEAVE
        assert one.fate is not Fate.MOVE or not (resident.no_move or resident.rests)
        assert one.fate is not Fate.SLEEP or not (resident.no_sleep or resident.rests)
        assert one.fate is not Fate.DRAIN or not (service or resident.rests)
        assert one.fate is not Fate.LEAVE or resident.rests or service
        assert one.why or one.fate is wish


@given(residents(), rooms(), wishes)
def test_no_host_gets_more_than_it_has_room_for(here: list[Resident], there: list[HostRoom], wish: Fate) -> None:
    by_name = {r.name: r.traveller for r in here}
    left = {room.host: room for room in there}
    for one in evacuation.plan(here, "h1", there, wish):
        if one.to:
            room, guest = left[one.to], by_name[one.domain]
            assert "h1" in room.welcome and not room.closed and not placement.why_not(room, guest)
            left[one.to] = placement.after(room, guest)
    for room in there:
        taken = room.free - left[room.host].free
        assert taken.mib <= max(0, room.free.mib)
        assert taken.cpus <= max(0, room.free.cpus) or room.mode is Mode.EXCLUSIVE


@given(residents(), rooms())
def test_the_order_is_that_of_the_turns(here: list[Resident], there: list[HostRoom]) -> None:
    by_name = {r.name: r for r in here}
    order = [by_name[one.domain] for one in evacuation.plan(here, "h1", there, Fate.MOVE)]
    assert order == sorted(order, key=lambda r: (bool(r.rests), r.turn, r.name))


@given(residents(), rooms(), wishes)
def test_a_fate_that_fails_again_and_again_ends(here: list[Resident], there: list[HostRoom], wish: Fate) -> None:
    """Each time something else is tried, and what is left in the end needs nobody's help."""
    for resident in here:
        seen: list[DecidedFate] = []
        while True:
            one = evacuation.decide(resident, "h1", there, wish)
            assert (one.fate, one.to) not in [(other.fate, other.to) for other in seen]
            seen.append(one)
            if one.fate is Fate.MOVE:
                resident = _without(resident, to=one.to)
            elif one.fate is Fate.SLEEP:
                resident = _without(resident, no_sleep="its save failed")
            else:
                break
        assert len(seen) <= len(HOSTS) + 2


def _without(r: Resident, *, to: str = "", no_sleep: str = "") -> Resident:
    tried = r.tried | {to} if to else r.tried
    return Resident(r.traveller, r.turn, r.rests, r.no_move, no_sleep or r.no_sleep, tried)


def test_those_who_wait_least_gladly_get_the_room() -> None:
    def resident(name: str, turn: LeavingTurn) -> Resident:
        return Resident(placement.Traveller(name, Kind.NORMAL, Amount(2, 0), Amount(2, 100), 0, True), turn)

    here = [
        resident("n1", LeavingTurn.PREEMPTIBLE),
        resident("n2", LeavingTurn.PROTECTED),
        resident("n3", LeavingTurn.PREEMPTED),
    ]
    room = HostRoom("h2", Mode.COUNTED, Amount(3, 1000), 8, "", frozenset({"h1"}))
    found = {one.domain: one for one in evacuation.plan(here, "h1", [room], Fate.MOVE)}
    assert (found["n2"].fate, found["n2"].to) == (Fate.MOVE, "h2")
    assert found["n1"].fate is found["n3"].fate is Fate.SLEEP
    assert "h2: it needs 2 CPUs and 100 MiB, and 1 and 900 are free" in found["n1"].why
