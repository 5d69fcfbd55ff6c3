"""The driver alone on a real QEMU: every ability, read back from libvirt; failures are reported with their reason."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from magrathea_lab.rigs.guest_host import Hypervisor
from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, MOVE, SAVE, DomainChange, DomainReading, DriverError, Others
from node_daemon.hypervisor.libvirt import driver as libvirt_driver
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver

Work = Callable[[LibvirtDriver, list[DomainChange]], Coroutine[Any, Any, None]]


@pytest.fixture
def drive(hypervisor: Hypervisor) -> Iterator[Callable[[Work], None]]:
    """Run a piece of work with a driver that has n1 only; p1 counts as a service."""

    def run(work: Work) -> None:
        async def all_of_it() -> None:
            uri, name = hypervisor.libvirtd.uri(), hypervisor.guests["n1"].libvirt_name
            driver = LibvirtDriver("h1", uri, {"n1": name})
            events: list[DomainChange] = []
            try:
                await driver.start(events.append)
                await work(driver, events)
            finally:
                await driver.close()

        asyncio.run(all_of_it())

    yield run
    hypervisor.restore()


async def until(condition: Callable[[DomainReading], bool], driver: LibvirtDriver, name: str = "n1") -> None:
    end = time.monotonic() + BOUND_S
    while not condition(found := (await driver.actual())[name]):
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)


async def refused(work: Awaitable[None]) -> str:
    with pytest.raises(DriverError) as caught:
        await work
    return caught.value.code


def test_qemu_can_do_everything_and_there_are_no_notes(drive: Callable[[Work], None]) -> None:
    async def work(driver: LibvirtDriver, events: list[DomainChange]) -> None:
        assert driver.capabilities == {CPU, MEMORY, LIFE, SAVE, MOVE}
        assert driver.notes() == []
        assert set(events) == {DomainChange("n1", True)}
        assert driver.others() == Others(1, 1, 256)
        for percent in (5, 10, 150, None):
            await driver.set_cpu("n1", percent)
            assert (await driver.actual())["n1"].cpu_percent == percent

    drive(work)


def test_the_balloon_moves_and_reports_its_progress(drive: Callable[[Work], None]) -> None:
    async def work(driver: LibvirtDriver, events: list[DomainChange]) -> None:
        events.clear()
        await driver.set_memory("n1", 200)
        await until(lambda d: d.memory_mib == 200, driver)
        assert DomainChange("n1", True) in events
        await driver.set_memory("n1", 256)
        await until(lambda d: d.memory_mib == 256, driver)
        assert await refused(driver.set_memory("n1", 257)) == "bad-value"

    drive(work)


def test_a_restored_guest_continues_where_it_was_and_its_agent_reconnects(
    hypervisor: Hypervisor, drive: Callable[[Work], None]
) -> None:
    guest = hypervisor.guests["n1"]
    guest.sh("echo here > /tmp/mark")

    async def work(driver: LibvirtDriver, events: list[DomainChange]) -> None:
        await driver.save("n1")
        await until(lambda d: d.saved and not d.up, driver)
        events.clear()
        await driver.boot("n1")
        found = (await driver.actual())["n1"]
        assert found == DomainReading(True, None, found.memory_mib, max_memory_mib=256)
        assert found.memory_mib in (255, 256)  # it may have been saved before libvirt knew the balloon's last MiB
        assert DomainChange("n1", True) in events

    drive(work)
    assert guest.sh("cat /tmp/mark") == "here\n"


def test_a_damaged_image_is_kept_and_reported(hypervisor: Hypervisor, drive: Callable[[Work], None]) -> None:
    async def work(driver: LibvirtDriver, events: list[DomainChange]) -> None:
        await driver.save("n1")
        image = next((hypervisor.libvirtd.folder / "lib" / "qemu" / "save").glob("*.save"))
        with image.open("r+b") as file:
            file.truncate(image.stat().st_size // 2)
        assert await refused(driver.boot("n1")) == "restore-failed"
        found = (await driver.actual())["n1"]
        assert (found.up, found.saved) == (False, True)

    drive(work)


def test_pausing_ending_and_booting_are_seen(hypervisor: Hypervisor, drive: Callable[[Work], None]) -> None:
    async def work(driver: LibvirtDriver, events: list[DomainChange]) -> None:
        hypervisor.guests["n1"].domain.suspend()
        await until(lambda d: d.up and d.paused_externally, driver)
        await driver.resume("n1")
        await until(lambda d: d.up and not d.paused_externally, driver)
        await driver.shutdown("n1")  # nothing in this guest reacts to the power button
        await driver.destroy("n1")
        await until(lambda d: not d.up, driver)
        assert await refused(driver.set_cpu("n1", 10)) == "domain-down"
        await driver.boot("n1")
        await until(lambda d: d.up, driver)

    drive(work)


def test_a_qemu_that_hangs_delays_only_its_own_changes(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        names = {name: guest.libvirt_name for name, guest in hypervisor.guests.items()}
        driver = LibvirtDriver("h1", hypervisor.uri, names)
        qemu = hypervisor.libvirtd.qemu(names["p1"])
        try:
            await driver.start(lambda event: None)
            os.kill(qemu, signal.SIGSTOP)
            assert await refused(driver.set_memory("p1", 200)) == "timeout"
            with monkeypatch.context() as patch:
                patch.setattr(libvirt_driver, "CALL_DEADLINE_S", BOUND_S)
                hanging = asyncio.create_task(driver.set_memory("p1", 200))
                found = await driver.actual()
                assert found["n1"].known and found["p1"].up
                await driver.set_memory("n1", 250)
                await driver.set_cpu("n1", 50)
                assert not hanging.done(), "and meanwhile p1's has hung"
                os.kill(qemu, signal.SIGCONT)
                await hanging
            await driver.set_memory("p1", 220)
            await until(lambda d: d.memory_mib == 220, driver, name="p1")
        finally:
            os.kill(qemu, signal.SIGCONT)
            await driver.close()

    try:
        asyncio.run(work())
    finally:
        hypervisor.restore()


def test_a_call_during_which_libvirtd_is_killed_is_lost_and_may_be_tried_again(
    hypervisor: Hypervisor, drive: Callable[[Work], None]
) -> None:
    async def work(driver: LibvirtDriver, events: list[DomainChange]) -> None:
        await driver.set_cpu("n1", 50)
        hypervisor.libvirtd.kill_libvirtd(signal.SIGSTOP)
        calling = asyncio.create_task(refused(driver.set_cpu("n1", 40)))
        await asyncio.sleep(0.3)
        hypervisor.libvirtd.kill_libvirtd()
        assert await calling == "lost"
        hypervisor.libvirtd.start_libvirtd()
        end = time.monotonic() + BOUND_S
        while True:
            try:
                await driver.set_cpu("n1", 30)
                break
            except DriverError as error:
                assert error.code == "lost" and time.monotonic() < end, error
                await asyncio.sleep(0.05)
        await until(lambda d: d.cpu_percent == 30, driver)

    drive(work)
