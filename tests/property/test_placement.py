"""Where a domain may go: never where it does not fit, never where nobody wants it, and the same for all that ask."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magrathea.core import placement
from magrathea.core.model import Amount, Kind, Mode
from magrathea.core.placement import HostRoom, Traveller

HOSTS = ("h1", "h2", "h3", "h4")
amounts = st.builds(Amount, st.integers(-2, 16), st.integers(-512, 4096))


@st.composite
def rooms(draw: st.DrawFn) -> list[HostRoom]:
    hosts = draw(st.lists(st.sampled_from(HOSTS), unique=True))
    return [
        HostRoom(
            host,
            draw(st.sampled_from(Mode)),
            draw(amounts),
            draw(st.integers(0, 16)),
            draw(st.sampled_from(["", "busy"])),
            draw(st.frozensets(st.sampled_from(HOSTS))),
            draw(st.sampled_from(["", "", "it is paused"])),
        )
        for host in hosts
    ]


@st.composite
def travellers(draw: st.DrawFn, name: str = "n1") -> Traveller:
    kind, has_jobs = draw(st.sampled_from(Kind)), draw(st.booleans())
    has_jobs = has_jobs and kind is not Kind.SERVICE
    size = Amount(draw(st.integers(1, 8)), draw(st.integers(0, 2048)))
    use = Amount(draw(st.integers(0, size.cpus)), draw(st.integers(0, 2048))) if has_jobs else Amount(0, 0)
    return Traveller(name, kind, size, use, draw(st.integers(0, 512)), has_jobs)


@given(travellers(), rooms())
def test_a_domain_goes_where_it_is_welcome_and_fits_or_nowhere(domain: Traveller, found: list[HostRoom]) -> None:
    choice, refused = placement.choose(domain, "h1", found), dict[str, str]()
    refused.update(choice.refused)
    for room in found:
        takes = room.host != "h1" and "h1" in room.welcome and not room.closed
        fits = takes and not placement.why_not(room, domain)
        assert (room.host in refused) is not fits
        assert fits or refused[room.host]
        if room.host == choice.host:
            assert fits and domain.need(room.mode).within(room.free)
    assert bool(choice.host) is (len(refused) < len(found))


@given(travellers(), rooms())
def test_room_that_was_promised_is_not_promised_again(domain: Traveller, found: list[HostRoom]) -> None:
    """However many such domains come one after the other, what they need together is there."""
    left = {room.host: room for room in found}
    for _ in range(12):
        choice = placement.choose(domain, "h1", left.values())
        if not choice.host:
            return
        left[choice.host] = placement.after(left[choice.host], domain)
    for room in found:
        taken = room.free - left[room.host].free
        assert taken.mib <= max(0, room.free.mib)
        assert taken.cpus <= max(0, room.free.cpus) or room.mode is Mode.EXCLUSIVE


def test_of_the_hosts_that_take_it_the_one_with_most_left_is_chosen() -> None:
    domain = Traveller("n1", Kind.NORMAL, Amount(2, 0), Amount(2, 100), 0, True)
    free = {"h2": Amount(3, 4000), "h3": Amount(8, 200), "h4": Amount(8, 300)}
    found = [HostRoom(host, Mode.COUNTED, left, 8, "", frozenset({"h1"})) for host, left in free.items()]
    assert placement.choose(domain, "h1", found).host == "h4"
    assert placement.choose(domain, "h1", found[:2]).host == "h3"
    assert placement.choose(domain, "h1", found[:1]).host == "h2"
