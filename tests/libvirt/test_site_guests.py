"""Guests as sites have them: locked memory, processors that are not plugged in, caps of their own, other managers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import libvirt
import pytest

from magrathea_lab.rigs.guest import Guest, Job
from magrathea_lab.rigs.guest_host import Hypervisor, Size
from magrathea_lab.rigs.guest_host import machine as context
from magrathea_lab.waiting import BOUND_S, until
from node_daemon.hypervisor.base import DriverError
from node_daemon.hypervisor.libvirt import movable, pinning
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver
from node_daemon.setup import adopt

SIZE_MIB = 768
SMALL_MIB = 192


@pytest.fixture(scope="module")
def site_hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor({"n1": Size(SIZE_MIB, vcpus=2)}, may_lock=True) as made:
        yield made


@pytest.fixture
def changed(site_hypervisor: Hypervisor) -> Iterator[Callable[..., Guest]]:
    """Boots n1 with a changed definition; afterwards it has its own again."""
    guest = site_hypervisor.guests["n1"]
    before = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    def boot(xml: str) -> Guest:
        guest.end()
        site_hypervisor.connect().defineXML(xml)
        guest.boot()
        guest.wait(BOUND_S)
        return guest

    def change(**replaced: tuple[str, str]) -> Guest:
        xml = before
        for old, new in replaced.values():
            assert old in xml
            xml = xml.replace(old, new, 1)
        return boot(xml)

    yield change
    boot(before)


@asynccontextmanager
async def driver_of(hypervisor: Hypervisor) -> AsyncIterator[LibvirtDriver]:
    driver = LibvirtDriver("h1", hypervisor.uri, {"n1": hypervisor.guests["n1"].libvirt_name})
    try:
        await driver.start(lambda event: None)
        yield driver
    finally:
        await driver.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def locked(changed: Callable[..., Guest]) -> Guest:
    """QEMU's own option, as an administrator adds it. (libvirt's <locked/> needs a right that containers lack.)"""
    words = "<qemu:arg value='-overcommit'/><qemu:arg value='mem-lock=on'/>"
    return changed(
        names=("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' "),
        locked=("</domain>", f"<qemu:commandline>{words}</qemu:commandline></domain>"),
    )


def test_locked_memory_is_seen_in_the_running_qemu(
    site_hypervisor: Hypervisor, changed: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The XML is not looked at here: so it is with a device that an option or another program has pinned."""
    monkeypatch.setattr(movable, "pinned", lambda xml, network: "")
    monkeypatch.setattr(pinning, "by_arguments", lambda arguments: iter(()))
    locked(changed)

    async def work() -> None:
        async with driver_of(site_hypervisor) as driver:
            found = (await driver.actual())["n1"]
            assert found.up and found.memory_mib is None and found.max_memory_mib == SIZE_MIB
            assert any("locked or pinned" in note for note in driver.notes())
            with pytest.raises(DriverError, match="not-supported"):
                await driver.set_memory("n1", SMALL_MIB)

    run(work)


def test_what_nothing_shows_is_noticed_before_anybody_else_gets_the_memory(
    site_hypervisor: Hypervisor, changed: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movable, "pinned", lambda xml, network: "")
    monkeypatch.setattr(pinning.QemuProcess, "pins", lambda process, memory_mib: "")
    guest = locked(changed)

    async def work() -> None:
        async with driver_of(site_hypervisor) as driver:
            assert (await driver.actual())["n1"].memory_mib == SIZE_MIB
            await driver.set_memory("n1", SMALL_MIB)
            async with asyncio.timeout(BOUND_S):
                while (found := (await driver.actual())["n1"]).memory_mib is not None:
                    assert found.memory_mib > SMALL_MIB, "it is said to have given what the host still holds"
            assert found.max_memory_mib == SIZE_MIB
            assert any("QEMU still holds" in note for note in driver.notes())
            async with asyncio.timeout(BOUND_S):  # the guest gets its memory back
                while guest.domain.memoryStats()["actual"] >> 10 < SIZE_MIB:
                    await driver.actual()

    run(work)


def test_memory_that_is_not_pinned_moves(site_hypervisor: Hypervisor, changed: Callable[..., Guest]) -> None:
    """All of it is in use first, from the start."""
    changed(immediate=("<vcpu", "<memoryBacking><allocation mode='immediate'/></memoryBacking><vcpu"))

    async def work() -> None:
        async with driver_of(site_hypervisor) as driver:
            await driver.set_memory("n1", SMALL_MIB)
            async with asyncio.timeout(BOUND_S):
                while (await driver.actual())["n1"].memory_mib != SMALL_MIB:
                    await asyncio.sleep(0.05)
            assert driver.notes() == []
            await driver.set_memory("n1", SIZE_MIB)

    run(work)


def test_a_guest_with_half_its_processors_counts_these(
    site_hypervisor: Hypervisor, changed: Callable[..., Guest]
) -> None:
    guest = changed(half=("<vcpu placement='static'>2<", "<vcpu placement='static' current='1'>2<"))
    found = adopt.parse(guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), live=guest.domain.XMLDesc(0))
    assert (found.cpus, found.memory_mib) == (1, SIZE_MIB)
    guest.domain.setVcpusFlags(2, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    until(lambda: guest.domain.info()[3] == 2, "the second processor is plugged in")
    found = adopt.parse(guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), live=guest.domain.XMLDesc(0))
    assert found.cpus == 2


def test_a_cap_of_the_sites_own_is_what_a_switch_comes_back_to(
    site_hypervisor: Hypervisor, changed: Callable[..., Guest]
) -> None:
    """Also if the daemon is killed in between: the next one finds it in the definition."""
    tune = "<cputune><global_period>50000</global_period><global_quota>60000</global_quota></cputune>"
    guest = changed(capped=("<os>", f"{tune}<os>"))
    own = guest.domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    assert own["global_quota"] == 60000

    async def work() -> None:
        async with driver_of(site_hypervisor) as driver:
            assert (await driver.actual())["n1"].cpu_percent is None
            await driver.set_cpu("n1", 20)
            assert (await driver.actual())["n1"].cpu_percent == 20
        async with driver_of(site_hypervisor) as driver:
            assert (await driver.actual())["n1"].cpu_percent == 20
            await driver.set_cpu("n1", None)
            assert (await driver.actual())["n1"].cpu_percent is None

    run(work)
    assert guest.domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE) == own
    defined = guest.domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert (defined["global_quota"], defined["global_period"]) == (60000, 50000)


def test_a_balloon_that_somebody_else_sets_is_named_and_set_again(site_hypervisor: Hypervisor) -> None:
    with context(site_hypervisor, memory_mib=SIZE_MIB) as machine:
        domain = machine["n1"].domain
        job = machine["n1"].qsub(Job("1.srv"))  # while it runs, the domain is to have all its memory

        def noted() -> bool:
            """As by `virsh setmem` every now and then."""
            if domain.memoryStats()["actual"] >> 10 == SIZE_MIB:
                domain.setMemoryFlags(SMALL_MIB * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return any("virsh setmem" in note and "n1" in note for note in machine.status()["notes"])

        machine.until(noted, "a note names the domain")
        machine.until(lambda: domain.memoryStats()["actual"] >> 10 == SIZE_MIB, "it has its memory again")
        machine["n1"].qdel(job)


def test_a_guest_whose_only_swap_is_zram_is_named_with_what_that_takes_out(hypervisor: Hypervisor) -> None:
    """The guests of the other tests have 128 MiB of zram, which is nearly empty: half of it is assumed."""
    with context(hypervisor, domain={"n1": "swap_mib = 128\n"}) as machine:
        machine.until(
            lambda: any("(127 MiB of it are zram" in n and "takes 0 MiB" not in n for n in machine.status()["notes"]),
            "a note names the domain",
        )
