"""How libvirt is asked for a move, and what its states mean (node_daemon/hypervisor/libvirt/moving/mover.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from node_daemon.hypervisor.libvirt.moving.mover import LibvirtMover, _presence
from node_daemon.hypervisor.libvirt.moving.watching import IN, OUT
from node_daemon.hypervisor.libvirt.translation import CRASHED, PAUSED, RUNNING, SHUT_OFF
from node_daemon.hypervisor.moving import Arrival, CopiedDisk, Departure, Destination, Presence
from tests.fakes.libvirt import libvirt

CHANNEL = "/run/magrathea/guest/n1.sock"
PLAIN = Departure("n1", "u", CHANNEL)
RAW = CopiedDisk("vda", "/vm/n1.img", "raw", 2**30)
OVERLAY = CopiedDisk("vdb", "/vm/n1.qcow2", "qcow2", 2**30, "/golden/d12.img", "raw")
MOVED = {"/vm/n1.img": "/srv/n1.img"}


class Domain:
    """A domain of libvirt's, as far as it is asked before a move."""

    def __init__(self, kind: str = "kvm", version: int = 7_002_022, persistent: bool = True) -> None:
        self._kind, self._version, self._persistent = kind, version, persistent

    def XMLDesc(self, flags: int) -> str:
        which = "own" if flags & libvirt.VIR_DOMAIN_XML_INACTIVE else "live"
        return f"<domain type='{self._kind}' id='{which}'><devices><source file='/vm/n1.img'/></devices></domain>"

    def isPersistent(self) -> bool:
        return self._persistent

    def connect(self) -> Any:
        return SimpleNamespace(getVersion=lambda: self._version)


def order(
    domain: Domain, departure: Departure = PLAIN, destination: Destination | None = None
) -> tuple[set[str], dict[str, object]]:
    """The flags' names and the parameters."""
    mover = LibvirtMover("h1", "test:///default", {"n1": "n1"})
    found = mover._order(domain, departure, Arrival(MOVED), destination or Destination("qemu+tls://h2/system"))
    flags, parameters = found
    names = {
        name.removeprefix("VIR_MIGRATE_"): int(getattr(libvirt, name))
        for name in dir(libvirt)
        if name.startswith("VIR_MIGRATE_") and isinstance(getattr(libvirt, name), int)
    }
    assert flags == sum(value for value in names.values() if flags & value)
    return {name for name, value in names.items() if flags & value}, parameters


BASIC = {"PEER2PEER", "LIVE", "PERSIST_DEST", "UNDEFINE_SOURCE"}


def test_the_domain_runs_is_never_throttled_and_belongs_to_the_other_host_afterwards() -> None:
    flags, parameters = order(Domain())
    assert flags == BASIC
    assert parameters.keys() == {libvirt.VIR_MIGRATE_PARAM_DEST_XML, libvirt.VIR_MIGRATE_PARAM_PERSIST_XML}
    for parameter, which in (("DEST_XML", "live"), ("PERSIST_XML", "own")):
        xml = str(parameters[getattr(libvirt, f"VIR_MIGRATE_PARAM_{parameter}")])
        assert f'id="{which}"' in xml and '"/srv/n1.img"' in xml


def test_a_transient_domain_stays_transient() -> None:
    assert order(Domain(persistent=False))[1].keys() == {libvirt.VIR_MIGRATE_PARAM_DEST_XML}


def test_an_emulated_domain_stands_still_unless_qemu_notices_all_its_writes() -> None:
    assert order(Domain("qemu"))[0] == BASIC - {"LIVE"}
    assert order(Domain("qemu", version=9_000_000))[0] == BASIC


def test_encryption_addresses_and_bandwidth_are_as_the_destination_wants() -> None:
    destination = Destination("qemu+tls://h2/system", "tcp://10.0.0.2", encrypted=True, bandwidth_mib_s=100)
    flags, parameters = order(Domain(), destination=destination)
    assert flags == BASIC | {"TLS"}
    assert parameters[libvirt.VIR_MIGRATE_PARAM_URI] == "tcp://10.0.0.2"
    assert parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] == 100


def test_a_domain_that_waits_arrives_paused() -> None:
    assert order(Domain(), destination=Destination("qemu+tls://h2/system", waits=True))[0] == BASIC | {"PAUSED"}


@pytest.mark.parametrize(
    ("disks", "flag"), [((RAW,), "NON_SHARED_DISK"), ((RAW, OVERLAY), "NON_SHARED_INC"), ((OVERLAY,), "NON_SHARED_INC")]
)
def test_only_the_disks_of_the_departure_are_copied(disks: tuple[CopiedDisk, ...], flag: str) -> None:
    departure = Departure("n1", "u", CHANNEL, disks)
    flags, parameters = order(Domain(), departure, Destination("qemu+tls://h2/system", disks_uri="tcp://10.0.0.2"))
    assert flags == BASIC | {flag}
    assert parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] == [disk.target for disk in disks]
    assert parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] == "tcp://10.0.0.2"


BY_USER, BY_MOVE = 1, 2


@pytest.mark.parametrize(
    ("state", "reason", "operation", "presence"),
    [
        (SHUT_OFF, 0, None, Presence.ABSENT),
        (CRASHED, 0, None, Presence.ABSENT),
        (RUNNING, 1, None, Presence.RUNNING),
        (RUNNING, 1, 3, Presence.RUNNING),  # being saved
        (PAUSED, BY_USER, None, Presence.PAUSED),
        (RUNNING, 1, OUT, Presence.LEAVING),
        (PAUSED, BY_USER, OUT, Presence.LEAVING),
        (PAUSED, BY_MOVE, OUT, Presence.SWITCHING),
        (PAUSED, BY_MOVE, None, Presence.HELD),
        (PAUSED, BY_MOVE, IN, Presence.ARRIVING),
        (RUNNING, 1, IN, Presence.ARRIVING),
    ],
)
def test_libvirts_state_tells_what_the_domain_is_here(
    state: int, reason: int, operation: int | None, presence: Presence
) -> None:
    assert _presence(state, reason, operation, False) is presence
    assert _presence(state, reason, operation, True) is (Presence.ARRIVED if presence is Presence.PAUSED else presence)
