"""What hosts tell each other of a domain that moves, whom they refuse, and what a look at a hypervisor means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from magrathea.core.moves import Arriving, Moves, Visitor, Where
from node_daemon.configuration import NodedConfiguration, read
from node_daemon.hypervisor.moving import Arrival, CopiedDisk, Departure, Presence, Whereabouts
from node_daemon.moves import looks
from node_daemon.moves.papers import (
    Papers,
    PapersRefused,
    Room,
    destination,
    papers_of,
    premises,
    read_papers,
    read_room,
    room_of,
    unacceptable,
    with_visitors,
)

TEXT = """
[host]
name = "h1"
mode = "counted"
cpus = 8
driver = "libvirt"
[hub]
endpoints = ["ipc:///run/hub.ipc"]
[paths]
run_dir = "/run/magrathea"
[visitors]
hosts = ["h2"]
address = "qemu+tls://h1/system"
disks = ["/disks"]
renamed = ["/there=/here"]
[moves]
hosts = ["h2"]
[domain.n1]
kind = "normal"
libvirt.name = "guest1"
shutdown_time_limit_s = 77
"""
DEPARTURE = Departure("guest1", "uuid-1", "/run/n1.sock", (CopiedDisk("vda", "/disks/a", "raw", 5),), bridges=("br0",))


@pytest.fixture
def c(tmp_path: Path) -> NodedConfiguration:
    (tmp_path / "noded.toml").write_text(TEXT)
    return read(tmp_path / "noded.toml")


def test_papers_arrive_whole_with_the_domains_own_table(c: NodedConfiguration) -> None:
    read_back = read_papers(papers_of(c, "n1", DEPARTURE).encoded())
    assert read_back.departure == DEPARTURE
    table = read_back.table
    assert (table.vnode, table.cpus, table.libvirt and table.libvirt.name) == ("n1", 8, "guest1")
    assert table.shutdown_time_limit_s == 77


def test_a_visitor_is_driven_like_a_domain_of_the_configuration(c: NodedConfiguration) -> None:
    papers = papers_of(c, "n1", DEPARTURE).encoded()
    there = msgspec.structs.replace(c, domain={})
    found = with_visitors(there, Moves(visitors=(Visitor("n1", papers),)))
    assert found.libvirt_name("n1") == "guest1" and found.vnode("n1") == "n1"
    assert with_visitors(there, Moves(visitors=(Visitor("n1", "no papers"),))).domain == {}
    assert with_visitors(c, Moves(visitors=(Visitor("n1", papers),))) is c, "the configuration's own table counts"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("v1", {}, "its name in libvirt, guest1, is that of this host's domain n1"),
        ("v1", {"name": "v1", "vnode": "N1"}, "its vnode N1 is that of this host's domain n1"),
        ("v1", {"name": "v1", "vnode": "x1"}, "only a domain whose vnode has its name"),
        ("n1", {"name": "v1"}, "this host's configuration says guest1"),
        ("v1", {"name": "v1", "vnode": "v1", "uuid": ""}, "no UUID"),
        ("v" * 200, {"name": "v1", "vnode": "v" * 200}, "shorten `run_dir`"),
    ],
)
def test_papers_that_name_what_is_anothers_are_refused(
    c: NodedConfiguration, name: str, changes: dict[str, str], words: str
) -> None:
    papers = papers_of(c, "n1", DEPARTURE)
    departure = replace(
        papers.departure, name=changes.get("name", "guest1"), uuid=changes.get("uuid", papers.departure.uuid)
    )
    table = msgspec.structs.replace(papers.table, vnode=changes.get("vnode", "n1"))
    assert words in unacceptable(c, name, Papers(departure=departure, table=table))
    assert unacceptable(c, "n1", papers) == "", "it comes home"


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"departure": 1}'])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(PapersRefused):
        read_papers(text)
    with pytest.raises(PapersRefused):
        read_room(text)


def test_a_room_leads_the_source_there(c: NodedConfiguration) -> None:
    room = read_room(room_of(c.visitors, Arrival({"/a": "/b"}, ("/b",))).encoded())
    assert room.arrival == Arrival({"/a": "/b"}, ("/b",))
    way = destination(c, room)
    assert (way.uri, way.waits, way.encrypted, way.bandwidth_mib_s) == ("qemu+tls://h1/system", True, False, None)
    assert premises(c, "n1").renamed == {"/there": "/here"}


@pytest.mark.parametrize(
    "room",
    [
        Room(uri=""),
        Room(uri="qemu+ext:///system?command=/tmp/evil"),
        Room(uri="qemu+ssh://h2/system?command=/tmp/evil"),
        Room(uri="qemu+ssh://-oProxyCommand=evil/system"),
        Room(uri="qemu+ssh://-v/system"),
        Room(uri="qemu+tcp://h2/system"),
        Room(uri="qemu+unix:///system?socket=/run/libvirt/libvirt-sock"),
        Room(uri="qemu+tls://h2/system", memory_uri="unix:///run/memory"),
        Room(uri="qemu+tls://h2/system", disks_uri="exec:evil"),
    ],
    ids=lambda room: f"{room.uri} {room.memory_uri}{room.disks_uri}",
)
def test_a_source_goes_only_by_ways_that_its_configuration_permits(c: NodedConfiguration, room: Room) -> None:
    with pytest.raises(PapersRefused):
        destination(c, room)


ARRIVING = Arriving("n1", 2, "h2", 100.0)
PREPARED = replace(ARRIVING, room="{}", ready=True)


@pytest.mark.parametrize(
    ("presence", "defined", "where"),
    [
        (Presence.ABSENT, False, Where.ABSENT),
        (Presence.ABSENT, True, Where.OFF),
        (Presence.RUNNING, True, Where.RUNNING),
        (Presence.PAUSED, True, Where.RUNNING),
        (Presence.LEAVING, True, Where.RUNNING),
        (Presence.SWITCHING, True, Where.RUNNING),
        (Presence.HELD, True, Where.LEFT),
        (Presence.ARRIVING, False, Where.INCOMING),
        (Presence.ARRIVED, True, Where.ARRIVED),
    ],
)
def test_what_a_hypervisor_shows_has_one_meaning(presence: Presence, defined: bool, where: Where) -> None:
    assert looks.where(Whereabouts(presence, defined, "uuid-1")) is where
    assert looks.where_arriving(Whereabouts(presence, defined, "uuid-1"), PREPARED, "uuid-1") is where


def test_another_domain_of_the_name_is_never_taken_for_the_one_that_comes() -> None:
    running = Whereabouts(Presence.RUNNING, True, "uuid-of-another")
    assert looks.where_arriving(running, ARRIVING, "uuid-1") is Where.OFF, "the arrival is declined"
    assert looks.where_arriving(running, replace(ARRIVING, cancelled=True), "uuid-1") is Where.ABSENT, "and it is left"
    assert looks.where_arriving(running, PREPARED, "uuid-1") is Where.ABSENT


def test_what_was_not_prepared_here_has_not_come_by_the_move() -> None:
    same = Whereabouts(Presence.PAUSED, True, "uuid-1")
    assert looks.where_arriving(same, ARRIVING, "uuid-1") is Where.OFF
    assert not looks.is_awaited(ARRIVING) and looks.is_awaited(PREPARED)
    assert not looks.is_awaited(replace(PREPARED, ran=True)) and not looks.is_awaited(None)
