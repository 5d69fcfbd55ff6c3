"""Which room the hub tells a host of."""

from __future__ import annotations

from magrathea.core.model import Amount, Mode
from magrathea.core.placement import HostRoom
from magrathea.messages import decode_to_host, decode_to_hub, encode
from magrathea.move_messages import RoomsAsked, RoomsTold, RoomTold, room_of
from scheduler_plugin.hub.rooms import Rooms

ROOM = HostRoom("h2", Mode.COUNTED, Amount(-1, 4096), 8, "n7", frozenset({"h1"}))


def told(rooms: Rooms, host: str, *hosts: str) -> tuple[HostRoom, ...]:
    answer = decode_to_host(encode(rooms.answer(host, RoomsAsked(sender=host, id=7, hosts=list(hosts)))))
    assert isinstance(answer, RoomsTold) and answer.id == 7
    return answer.rooms_for(host)


def said(room: HostRoom) -> RoomTold:
    message = decode_to_hub(encode(room_of(room)))
    assert isinstance(message, RoomTold) and message.room == room
    return message


def test_a_host_is_told_what_the_other_has_said_last() -> None:
    rooms = Rooms(lambda host: True)
    rooms.said("h2", said(HostRoom("h2", Mode.EXCLUSIVE, Amount(8, 0), 8, "", frozenset({"h1"}))))
    rooms.said("h2", said(ROOM))
    assert told(rooms, "h1", "h2") == (ROOM,)


def test_a_host_learns_nothing_of_those_that_do_not_take_its_domains() -> None:
    rooms = Rooms(lambda host: True)
    rooms.said("h2", said(ROOM))
    (room,) = told(rooms, "h3", "h2")
    assert room.free == Amount(0, 0) and room.whole_cpus == 0 and not room.with_jobs
    assert room.closed == "it takes no domains from h3"


def test_a_silent_host_takes_nobody() -> None:
    rooms = Rooms(lambda host: False)
    rooms.said("h2", said(ROOM))
    assert [room.closed for room in told(rooms, "h1", "h2", "h9")] == ["the hub does not hear it"] * 2


def test_figures_beyond_all_bounds_can_be_sent() -> None:
    message = room_of(HostRoom("h2", Mode.COUNTED, Amount(-(2**60), 2**60), 2**60))
    assert (message.cpus, message.mib) == (-(2**40), 2**40)
    said(message.room)
