"""The libvirt driver on libvirt's own test hypervisor: lifecycle, memory, saving, services, a fake for CPU."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from magrathea.core.refusals import RefusalCode
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, MOVE, SAVE, DomainChange, DomainReading, DriverError, Others
from node_daemon.hypervisor.libvirt import driver as libvirt_driver
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver
from tests.fakes.libvirt import KIB, URI, faked, libvirt, only_domains, xml


@pytest.fixture
def connection() -> Iterator[Any]:
    with only_domains(xml("m1"), xml("m2")) as made:
        yield made


class Heard:
    """The driver's events."""

    def __init__(self) -> None:
        self.events: list[DomainChange] = []
        self._came = asyncio.Event()

    def __call__(self, event: DomainChange) -> None:
        self.events.append(event)
        self._came.set()

    async def until(self, event: DomainChange) -> None:
        async with asyncio.timeout(BOUND_S):
            while event not in self.events:
                self._came.clear()
                await self._came.wait()

    def clear(self) -> None:
        self.events.clear()


@contextlib.asynccontextmanager
async def started(
    names: dict[str, str] | None = None,
    services: frozenset[str] = frozenset(),
    sleepers: frozenset[str] = frozenset(),
) -> AsyncIterator[tuple[LibvirtDriver, Heard]]:
    driver = LibvirtDriver("h1", URI, names or {"n1": "m1", "p1": "m2"}, services, sleepers)
    heard = Heard()
    try:
        await driver.start(heard)
        yield driver, heard
    finally:
        await driver.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def refused(work: Awaitable[None]) -> str:
    with pytest.raises(DriverError) as caught:
        await work
    return caught.value.code


def test_it_reports_each_domain_at_the_start_and_when_it_goes_up_or_down(connection: Any) -> None:
    async def work() -> None:
        connection.lookupByName("m2").destroy()
        async with started() as (driver, heard):
            assert heard.events == [DomainChange("n1", True), DomainChange("p1", False)]
            found = await driver.actual()
            assert (found["n1"].up, found["n1"].memory_mib, found["n1"].max_memory_mib) == (True, 1024, 1024)
            assert not found["p1"].up
            heard.clear()
            await driver.boot("p1")
            await heard.until(DomainChange("p1", True))
            await driver.boot("p1")  # a domain that is up stays up
            heard.clear()
            connection.lookupByName("m1").destroy()
            await heard.until(DomainChange("n1", False))
            assert not (await driver.actual())["n1"].up

    run(work)


def test_it_destroys_and_shuts_down_domains_and_refuses_calls_for_domains_that_are_down(connection: Any) -> None:
    async def work() -> None:
        async with started() as (driver, heard):
            await driver.shutdown("n1")
            await heard.until(DomainChange("n1", False))
            assert await refused(driver.shutdown("n1")) == "domain-down"
            assert await refused(driver.set_memory("n1", 512)) == "domain-down"
            assert await refused(driver.save("n1")) == "domain-down"
            assert await refused(driver.resume("n1")) == "domain-down"
            await driver.destroy("n1")
            await driver.destroy("p1")
            assert not any(d.up for d in (await driver.actual()).values())
            assert await refused(driver.boot("n7")) == "no-domain"

    run(work)


def test_memory_is_set_and_read_and_impossible_figures_are_refused(connection: Any) -> None:
    async def work() -> None:
        async with started() as (driver, _):
            await driver.set_memory("n1", 512)
            assert (await driver.actual())["n1"].memory_mib == 512
            assert connection.lookupByName("m1").info()[2] == 512 * KIB
            assert await refused(driver.set_memory("n1", 2048)) == "bad-value"
            assert await refused(driver.set_memory("n1", 0)) == "bad-value"

    run(work)


def test_a_domain_with_a_silent_balloon_has_no_less_than_it_had_grown_to(connection: Any) -> None:
    """libvirt gets no figures from a QEMU that hangs: its own may be older than the balloon's move."""

    async def hangs(*asked: Any) -> Any:
        raise DriverError(RefusalCode.TIMEOUT, "it hangs")

    async def work() -> None:
        async with started({"n1": "m1"}) as (driver, _):
            behind_its_back = connection.lookupByName("m1").setMemoryFlags
            await driver.set_memory("n1", 512)
            for mib in (512, 768):
                behind_its_back(mib * KIB, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                assert (await driver.actual())["n1"].memory_mib == mib
            driver._balloons._ask = hangs
            behind_its_back(512 * KIB, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            for _ in range(2):
                assert (await driver.actual())["n1"].memory_mib == 768

    run(work)


def test_a_domain_is_saved_to_disk_and_comes_back_from_there(connection: Any) -> None:
    async def work() -> None:
        async with started() as (driver, heard):
            assert {LIFE, MEMORY, SAVE} <= driver.capabilities
            await driver.save("p1")
            await heard.until(DomainChange("p1", False))
            found = (await driver.actual())["p1"]
            assert (found.up, found.saved) == (False, True)
            await driver.boot("p1")
            found = (await driver.actual())["p1"]
            assert (found.up, found.saved, found.paused_externally) == (True, False, False)

    run(work)


def test_a_domain_that_somebody_pauses_is_up_and_paused_until_it_is_resumed(connection: Any) -> None:
    async def work() -> None:
        async with started() as (driver, heard):
            heard.clear()
            connection.lookupByName("m1").suspend()
            await heard.until(DomainChange("n1", True))  # an event that means "read again"
            found = (await driver.actual())["n1"]
            assert (found.up, found.paused_externally) == (True, True)
            await driver.resume("n1")
            await driver.resume("n1")
            assert not (await driver.actual())["n1"].paused_externally

    run(work)


def test_a_domain_that_restarts_unseen_is_reported_as_down_and_up(connection: Any) -> None:
    async def work() -> None:
        async with started() as (driver, heard):
            await driver.actual()
            assert driver._link is not None
            driver._link._on_event = lambda name, event, detail: None  # as if the connection had been lost meanwhile
            heard.clear()
            connection.lookupByName("m1").destroy()
            connection.lookupByName("m1").create()
            await driver.actual()
            assert heard.events == [DomainChange("n1", False), DomainChange("n1", True)]

    run(work)


def test_a_domain_that_libvirt_does_not_have_is_down_and_reported(connection: Any) -> None:
    async def work() -> None:
        async with started({"n1": "m1", "n9": "nobody"}) as (driver, _):
            assert not (await driver.actual())["n9"].up
            assert any("nobody" in note for note in driver.notes())
            assert await refused(driver.boot("n9")) == "no-domain"

    run(work)


def test_twelve_services_are_counted_while_they_run_and_never_touched(connection: Any) -> None:
    async def work() -> None:
        for number in range(12):
            connection.defineXML(xml(f"service{number}", 256, 1)).create()
        async with started() as (driver, heard):
            assert (await driver.actual()).keys() == {"n1", "p1"}
            assert driver.others() == Others(12, 12, 12 * 256)
            heard.clear()
            connection.lookupByName("service3").destroy()
            async with asyncio.timeout(BOUND_S):
                while driver.others().domains == 12:
                    await asyncio.sleep(0.01)
            assert driver.others() == Others(11, 11, 11 * 256)
            assert heard.events  # so that somebody reads again
            connection.lookupByName("service3").create()
            async with asyncio.timeout(BOUND_S):
                while driver.others().domains == 11:
                    await asyncio.sleep(0.01)
            assert all(connection.lookupByName(f"service{n}").isActive() for n in range(12))

    run(work)


def test_who_arrives_is_no_service_and_who_has_left_is_not_missed(connection: Any) -> None:
    async def work() -> None:
        connection.defineXML(xml("visitor", 256, 1)).create()
        async with started({"n1": "m1", "p1": "m2", "n9": "m9"}) as (driver, _):
            assert driver.others() == Others(1, 1, 256)
            assert any("no domain m9" in note for note in driver.notes())
            driver.leave_out(away={"n9"}, moving={"visitor"})
            await driver.actual()
            assert driver.others() == Others()
            assert not any("no domain m9" in note for note in driver.notes())

    run(work)


def test_a_configured_service_is_counted_once_by_the_configuration_and_never_touched(connection: Any) -> None:
    async def work() -> None:
        async with started({"n1": "m1", "dns": "m2"}, frozenset({"dns"})) as (driver, heard):
            assert driver.others() == Others()
            assert [event.name for event in heard.events] == ["n1"]
            for call in (driver.destroy("dns"), driver.set_memory("dns", 100), driver.set_cpu("dns", 10)):
                assert await refused(call) == "not-permitted"
            for call in (driver.save("dns"), driver.boot("dns")):
                assert await refused(call) == "not-permitted"

    run(work)


def test_a_service_that_sleeps_at_a_shutdown_is_saved_and_booted_and_otherwise_not_touched(connection: Any) -> None:
    async def work() -> None:
        names, service = {"n1": "m1", "dns": "m2"}, frozenset({"dns"})
        async with started(names, service, sleepers=service) as (driver, _):
            await driver.save("dns")
            assert connection.lookupByName("m2").hasManagedSaveImage()
            reading = (await driver.actual())["dns"]
            assert reading.saved and not reading.up
            await driver.boot("dns")
            assert (await driver.actual())["dns"].up
            for call in (driver.destroy("dns"), driver.set_memory("dns", 100), driver.set_cpu("dns", 10)):
                assert await refused(call) == "not-permitted"

    run(work)


def test_the_test_hypervisor_offers_a_weight_or_nothing_and_reports_it(connection: Any) -> None:
    async def work() -> None:
        async with started() as (driver, _):
            if CPU in driver.capabilities:
                assert any("weight" in note for note in driver.notes())
            else:
                assert any("cannot cap CPU" in note for note in driver.notes())
                assert await refused(driver.set_cpu("n1", 10)) == "not-supported"
            assert await refused(driver.set_cpu("n1", 0)) == "bad-value"

    run(work)


def test_without_libvirtd_the_domains_are_unknown_and_that_is_reported(tmp_path: Any) -> None:
    async def work() -> None:
        driver = LibvirtDriver("h1", f"qemu:///system?socket={tmp_path}/none", {"n1": "m1"})
        heard = Heard()
        await driver.start(heard)
        assert await refused(driver.set_cpu("n1", 10)) == "lost"
        with pytest.raises(DriverError) as caught:
            await driver.actual()
        assert caught.value.code == "lost"
        assert heard.events == []
        assert any("cannot be reached" in note for note in driver.notes())
        await driver.close()

    run(work)


def test_two_domains_of_one_name_are_refused() -> None:
    with pytest.raises(DriverError, match="same"):
        LibvirtDriver("h1", URI, {"n1": "m1", "n2": "m1"})


# What libvirt's test hypervisor lacks: other schedulers, and calls that hang


def test_xen_caps_by_its_cap_and_its_own_first_domain_is_no_service(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "Xen", {"weight": 256, "cap": 0})
        connection.defineXML(xml("Domain-0", 4096, 8)).create()
        connection.defineXML(xml("dns", 256, 1)).create()
        fake.ids["Domain-0"] = 0
        async with started() as (driver, _):
            assert driver.capabilities == {CPU, MEMORY, LIFE, SAVE}
            assert driver.notes() == ["running domains of Xen are not moved to other hosts: only QEMU's can be"]
            assert driver.others() == Others(1, 1, 256), "the host's own system is no service, dns is one"
            await driver.set_cpu("n1", 10)
            assert fake.schedulers == {"m1": {"weight": 256, "cap": 10}, "m2": {"weight": 256, "cap": 0}}
            assert (await driver.actual())["n1"].cpu_percent == driver.nearest_cpu(10) == 10
            await driver.set_cpu("n1", None)
            assert (await driver.actual())["n1"].cpu_percent is None

    run(work)


def test_xen_moves_memory_and_saves_to_disk(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        faked(monkeypatch, "Xen", {"weight": 256, "cap": 0})
        async with started() as (driver, heard):
            await driver.set_memory("n1", 512)
            assert (await driver.actual())["n1"].memory_mib == 512
            await driver.save("p1")
            await heard.until(DomainChange("p1", False))
            assert (await driver.actual())["p1"].saved
            await driver.boot("p1")
            assert (await driver.actual())["p1"].up

    run(work)


def test_if_there_is_only_a_weight_it_is_used_and_reported(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "Xen", {"weight": 256})
        async with started() as (driver, _):
            assert any("by weight" in note for note in driver.notes())
            await driver.set_cpu("n1", 3)
            assert fake.schedulers["m1"] == {"weight": 26}
            assert (await driver.actual())["n1"].cpu_percent == driver.nearest_cpu(3) == 10
            await driver.set_cpu("n1", None)
            assert fake.schedulers["m1"] == {"weight": 256}
            assert (await driver.actual())["n1"].cpu_percent is None

    run(work)


@pytest.mark.long
def test_a_hanging_domain_delays_neither_reading_nor_the_others_nor_the_loop(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        monkeypatch.setattr(libvirt_driver, "CALL_DEADLINE_S", 0.3)
        fake = faked(monkeypatch, "QEMU", {"global_quota": -1, "global_period": 100000})
        async with started() as (driver, _):
            fake.hung.set()
            assert await refused(driver.set_memory("n1", 512)) == "timeout"
            assert await refused(driver.set_memory("n1", 600)) == "timeout"  # it waits behind the first
            await driver.set_memory("p1", 700)
            assert (await driver.actual())["n1"].memory_mib == 1024
            assert fake.set == [700]
            fake.free.set()
            fake.hung.clear()
            await driver.set_memory("n1", 800)
            assert fake.set == [700, 512, 800]  # a call that timed out before it began never takes effect

    run(work)


OPERATION_TIMEOUT, NO_DOMAIN, RPC = 68, 42, 38
QEMU = {"global_quota": -1, "global_period": 100000}


@pytest.mark.parametrize(("number", "may_pass"), [(55, True), (84, False)])
def test_the_way_to_cap_cpu_is_read_again_while_it_may_change(
    connection: Any, monkeypatch: pytest.MonkeyPatch, number: int, may_pass: bool
) -> None:
    """A libvirtd that has just started has not found its domains' control groups yet, and reports that it cannot
    cap."""

    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        fake.fails = {f"{name}.{word}": number for name in fake.schedulers for word in ("live", "config")}
        async with started() as (driver, _):
            assert CPU not in driver.capabilities
            assert any("cannot cap CPU" in note for note in driver.notes())
            fake.fails.clear()
            await driver.actual()
            assert (CPU in driver.capabilities) is may_pass
            assert (driver.notes() == []) is may_pass

    run(work)


@pytest.mark.long
def test_a_domain_that_cannot_be_read_costs_only_its_own_facts_and_is_read_again(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        async with started() as (driver, heard):
            heard.clear()
            fake.fails["m1.info"] = OPERATION_TIMEOUT
            found = await driver.actual()
            assert found["n1"] == DomainReading(up=True, known=False)
            assert found["p1"] == DomainReading(True, None, 1024, max_memory_mib=1024)
            assert any("n1 cannot be read" in note for note in driver.notes())
            fake.raised.clear()
            await eventually(lambda: fake.raised["m1.info"] >= 3, "it is read again, in vain")
            assert heard.events == [], "nothing has happened"
            fake.fails.clear()
            await heard.until(DomainChange("n1", True))  # an event that means "read again"
            assert (await driver.actual())["n1"].known
            assert heard.events == [DomainChange("n1", True)]
            assert driver.notes() == []

    run(work)


def test_a_service_that_cannot_be_read_is_counted_as_before(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        connection.defineXML(xml("dns", 256, 1)).create()
        async with started() as (driver, _):
            fake.fails["dns.info"] = OPERATION_TIMEOUT
            assert all(one.known for one in (await driver.actual()).values())
            assert driver.others() == Others(1, 1, 256)

    run(work)


def test_a_libvirtd_that_dies_while_it_is_read_takes_no_domain_down(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        async with started() as (driver, heard):
            heard.clear()
            fake.fails |= {f"m1.{call}": RPC for call in ("state", "info", "isActive")}
            with pytest.raises(DriverError) as caught:
                await driver.actual()
            assert caught.value.code == "failed"
            assert heard.events == []

    run(work)


def test_a_domain_that_is_undefined_while_it_is_read_is_down(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        async with started() as (driver, heard):
            fake.fails |= {f"m1.{call}": NO_DOMAIN for call in ("state", "info", "isActive")}
            assert (await driver.actual())["n1"] == DomainReading(up=False)
            assert DomainChange("n1", False) in heard.events

    run(work)


def test_a_new_connection_keeps_the_old_abilities_until_it_has_answered(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a driver had no abilities for a moment, there would be nothing to do: memory would seem to have moved."""

    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        async with started() as (driver, _):
            link = driver._link
            assert link is not None
            fake.listing.clear()
            fake.kind = "LXC"  # even another hypervisor
            before = link.connection
            link._lost.set()
            async with asyncio.timeout(BOUND_S):
                while link._connection in (None, before):
                    await asyncio.sleep(0.01)
            assert driver.capabilities == {CPU, MEMORY, LIFE, SAVE, MOVE}
            fake.listing.set()
            async with asyncio.timeout(BOUND_S):
                while SAVE in driver.capabilities:
                    await asyncio.sleep(0.01)

    run(work)


def test_the_way_to_cap_cpu_is_found_while_domains_are_booting(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", QEMU)
        fake.fails = {"m1.live": 55, "m2.live": 55}
        async with started() as (driver, heard):
            assert CPU in driver.capabilities
            assert not any(one.known for one in (await driver.actual()).values())
            heard.clear()
            fake.fails.clear()
            await heard.until(DomainChange("n1", True))
            assert (await driver.actual())["n1"].known

    run(work)


def test_a_sites_own_cap_is_what_a_switch_comes_back_to(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        fake = faked(monkeypatch, "QEMU", {"global_period": 100_000, "global_quota": 400_000})
        own = dict(fake.defined["m1"])
        async with started() as (driver, _):
            assert (await driver.actual())["n1"].cpu_percent is None
            for percent in (10, 700):
                await driver.set_cpu("n1", percent)
                assert (await driver.actual())["n1"].cpu_percent == percent == driver.nearest_cpu(percent)
            assert fake.schedulers["m1"] == own, "a cap above the site's own is the site's own"
            await driver.set_cpu("n1", 10)
        async with started() as (driver, _):  # another daemon, after a crash
            assert (await driver.actual())["n1"].cpu_percent == 10
            await driver.set_cpu("n1", None)
            assert fake.schedulers["m1"] == own == fake.defined["m1"]
            assert (await driver.actual())["n1"].cpu_percent is None

    run(work)
