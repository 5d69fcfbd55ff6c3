"""The libvirt driver and memory that cannot be moved: it has all that it may have, and nobody is given it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.base import MEMORY, DomainReading
from node_daemon.hypervisor.libvirt import movable
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver
from tests.fakes.libvirt import FakeLibvirt, faked, only_domains, xml
from tests.unit.node.test_libvirt_driver import QEMU, refused, run, started


@pytest.fixture
def connection() -> Iterator[Any]:
    with only_domains(xml("m1"), xml("m2")) as made:
        yield made


@pytest.fixture
def fake(connection: Any, monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    return faked(monkeypatch, "QEMU", QEMU)


def test_a_domain_without_a_balloon_has_all_that_it_may_have(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        faked(monkeypatch, "QEMU", QEMU)
        connection.lookupByName("m1").destroy()
        connection.lookupByName("m1").undefine()
        connection.defineXML(xml("m1").replace("model='virtio'", "model='none'")).create()
        async with started() as (driver, _):
            assert (await driver.actual())["n1"] == DomainReading(True, None, None, max_memory_mib=1024)
            assert await refused(driver.set_memory("n1", 512)) == "not-supported"
            assert any("floor_mib" in note for note in driver.notes())

    run(work)


FUNCTION = "<hostdev type='pci'/>"


def test_a_domain_with_a_device_has_all_that_it_may_have(fake: FakeLibvirt) -> None:
    async def work() -> None:
        fake.plugged["m1"] = FUNCTION
        async with started() as (driver, _):
            assert (await driver.actual())["n1"] == DomainReading(True, None, None, max_memory_mib=1024)
            assert (await driver.actual())["p1"].memory_mib == 1024
            assert await refused(driver.set_memory("n1", 512)) == "not-supported"
            [note] = [note for note in driver.notes() if "n1" in note]
            assert "remove the <hostdev>" in note and "floor_mib" in note
            assert MEMORY in driver.capabilities

    run(work)


@pytest.mark.parametrize("kind", ["Xen", "LXC"])
def test_other_hypervisors_domains_are_judged_as_adopt_does(
    connection: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, kind, {"weight": 256, "cap": 0})
        fake.plugged["m1"] = FUNCTION
        async with started() as (driver, _):
            assert any("domain n1: a passed-through PCI device" in note for note in driver.notes())

    run(work)


def test_a_device_that_is_plugged_in_later_pins_memory_from_then_on(fake: FakeLibvirt) -> None:
    async def work() -> None:
        async with started() as (driver, _):
            assert (await driver.actual())["n1"].memory_mib == 1024
            fake.plugged["m1"] = FUNCTION
            driver._happened("m1", "DEVICE_ADDED", None)
            assert (await driver.actual())["n1"].memory_mib is None
            del fake.plugged["m1"]
            driver._happened("m1", "DEVICE_REMOVED", None)
            assert (await driver.actual())["n1"].memory_mib == 1024

    run(work)


def test_a_change_without_an_event_is_seen_in_time(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movable, "REREAD_S", 0.0)
    monkeypatch.setattr(movable, "AGAIN_S", 0.0)

    async def work() -> None:
        async with started() as (driver, _):
            fake.plugged["m1"] = FUNCTION
            assert (await driver.actual())["n1"].memory_mib is None

    run(work)


def test_a_qemu_that_keeps_what_its_balloon_took_counts_as_pinned_until_its_next_start(fake: FakeLibvirt) -> None:
    async def gives(driver: LibvirtDriver, mib: int) -> int | None:
        await driver.set_memory("n1", mib)
        return (await driver.actual())["n1"].memory_mib

    async def work() -> None:
        async with started() as (driver, _):
            assert await gives(driver, 512) == 512, "it has given it back"
            assert await gives(driver, 1024) == 1024
            driver._balloons._moving.clear()
            fake.held_mib["m1"] = 1300
            assert await gives(driver, 256) is None
            assert any("QEMU still holds 1300 MiB" in note for note in driver.notes())
            assert (await driver.actual())["n1"].max_memory_mib == 1024
            async with asyncio.timeout(BOUND_S):
                while fake.set[-1] != 1024:  # the guest gets back what nobody else can have
                    await asyncio.sleep(0.01)
            fake.ids["m1"] = 77
            driver._happened("m1", "LIFECYCLE", 2)
            assert (await driver.actual())["n1"].memory_mib == 1024, "another run of the domain"

    run(work)
