"""What every hypervisor driver must do (node_daemon/hypervisor/base.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol

import pytest

from magrathea.core.refusals import RefusalCode
from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, SAVE, DomainChange, DomainReading, Driver, DriverError


class DriverSite(Protocol):
    """A hypervisor with the domains n1, which is up with its largest memory, and p1, which is down."""

    @property
    def less_mib(self) -> int:
        """A memory size that n1 can shrink to, if the driver moves memory."""

    def driver(self) -> Driver:
        """A new driver of both domains."""

    async def start(self, name: str) -> None:
        """Start the domain without the driver."""

    async def end(self, name: str) -> None:
        """Kill the domain."""

    async def pause(self, name: str) -> None:
        """Pause the domain without the driver. Called only if the driver boots and shuts down domains."""

    def run(self, work: Coroutine[Any, Any, None]) -> None: ...


class Driven:
    """A started driver, and what it has reported."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.told: list[DomainChange] = []

    def can(self, *capabilities: str) -> bool:
        return set(capabilities) <= self.driver.capabilities

    async def reading(self, name: str) -> DomainReading:
        return (await self.driver.actual())[name]

    async def until(self, name: str, condition: Callable[[DomainReading], bool]) -> None:
        """Read the domain until the condition is true."""
        found = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BOUND_S):
                while not condition(found := await self.reading(name)):
                    await asyncio.sleep(0.02)
                return
        raise AssertionError(f"{name} is never so: {found}")

    async def until_told(self, *changes: DomainChange) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BOUND_S):
                while not set(changes) <= set(self.told):
                    await asyncio.sleep(0.02)
                return
        raise AssertionError(f"{changes} never told: {self.told}")


@contextlib.asynccontextmanager
async def driven(site: DriverSite) -> AsyncIterator[Driven]:
    made = Driven(site.driver())
    try:
        await made.driver.start(made.told.append)
        yield made
    finally:
        await made.driver.close()


async def refusal(call: Awaitable[object]) -> RefusalCode:
    with pytest.raises(DriverError) as refused:
        await call
    assert refused.value.text
    return refused.value.code


UP, DOWN = DomainChange("n1", up=True), DomainChange("p1", up=False)


async def its_start_reports_each_domain(site: DriverSite) -> None:
    async with driven(site) as d:
        assert set(d.told) == {UP, DOWN}


async def all_configured_domains_are_read_and_no_others(site: DriverSite) -> None:
    async with driven(site) as d:
        found = await d.driver.actual()
        assert {name: (one.up, one.known) for name, one in found.items()} == {"n1": (True, True), "p1": (False, True)}
        assert d.driver.others().domains == 0


async def domains_that_start_and_end_are_reported_and_read(site: DriverSite) -> None:
    async with driven(site) as d:
        await site.start("p1")
        await d.until_told(DomainChange("p1", up=True))
        assert (await d.reading("p1")).up
        await site.end("n1")
        await d.until_told(DomainChange("n1", up=False))
        assert not (await d.reading("n1")).up


async def nothing_is_reported_after_its_end(site: DriverSite) -> None:
    async with driven(site) as d:
        pass
    d.told.clear()
    async with driven(site) as later:
        await site.end("n1")
        await later.until_told(DomainChange("n1", up=False))
    assert d.told == []


async def a_cap_is_set_read_back_and_removed(site: DriverSite) -> None:
    async with driven(site) as d:
        if not d.can(CPU):
            assert await refusal(d.driver.set_cpu("n1", 10)) == RefusalCode.NOT_SUPPORTED
            return
        for _ in range(2):
            await d.driver.set_cpu("n1", 10)
            assert (await d.reading("n1")).cpu_percent == d.driver.nearest_cpu(10)
        for _ in range(2):
            await d.driver.set_cpu("n1", None)
            assert (await d.reading("n1")).cpu_percent is None


async def a_cap_stays_when_the_driver_ends(site: DriverSite) -> None:
    async with driven(site) as first:
        if not first.can(CPU):
            return
        await first.driver.set_cpu("n1", 10)
    async with driven(site) as second:
        assert (await second.reading("n1")).cpu_percent == second.driver.nearest_cpu(10)


async def memory_comes_to_the_amount_that_was_set(site: DriverSite) -> None:
    async with driven(site) as d:
        if not d.can(MEMORY):
            assert await refusal(d.driver.set_memory("n1", site.less_mib)) == RefusalCode.NOT_SUPPORTED
            return
        most = (await d.reading("n1")).max_memory_mib
        assert most is not None
        for mib in (site.less_mib, site.less_mib, most):
            await d.driver.set_memory("n1", mib)
            await d.until("n1", lambda one, mib=mib: one.memory_mib == mib)  # type: ignore[misc]


async def impossible_figures_are_refused(site: DriverSite) -> None:
    async with driven(site) as d:
        if d.can(CPU):
            assert [await refusal(d.driver.set_cpu("n1", percent)) for percent in (0, -5)] == [
                RefusalCode.BAD_VALUE
            ] * 2
        if d.can(MEMORY):
            most = (await d.reading("n1")).max_memory_mib or 0
            assert [await refusal(d.driver.set_memory("n1", mib)) for mib in (0, most + 1)] == [
                RefusalCode.BAD_VALUE
            ] * 2


async def a_domain_that_nobody_configured_is_refused(site: DriverSite) -> None:
    async with driven(site) as d:
        calls: list[Callable[[str], Awaitable[object]]]
        calls = [d.driver.boot, d.driver.shutdown, d.driver.destroy, d.driver.save, d.driver.resume]
        calls += [d.driver.save_needs, d.driver.image_fault]
        for call in calls:
            assert await refusal(call("n9")) == RefusalCode.NO_DOMAIN
        assert await refusal(d.driver.set_cpu("n9", 10)) == RefusalCode.NO_DOMAIN
        assert await refusal(d.driver.set_memory("n9", 100)) == RefusalCode.NO_DOMAIN


async def calls_that_it_cannot_do_are_refused_and_noted(site: DriverSite) -> None:
    async with driven(site) as d:
        lacking: dict[str, tuple[Callable[[str], Awaitable[object]], ...]] = {
            LIFE: (d.driver.boot, d.driver.shutdown, d.driver.resume),
            SAVE: (d.driver.save, d.driver.save_needs, d.driver.image_fault),
        }
        for capability, calls in lacking.items():
            for call in () if d.can(capability) else calls:
                assert await refusal(call("n1")) == RefusalCode.NOT_SUPPORTED
        if not d.can(CPU, MEMORY, LIFE, SAVE):
            assert d.driver.notes()


async def calls_for_running_domains_are_refused_if_the_domain_is_down(site: DriverSite) -> None:
    async with driven(site) as d:
        needed: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            (CPU, lambda: d.driver.set_cpu("p1", 10)),
            (MEMORY, lambda: d.driver.set_memory("p1", site.less_mib)),
            (LIFE, lambda: d.driver.shutdown("p1")),
            (LIFE, lambda: d.driver.resume("p1")),
            (SAVE, lambda: d.driver.save("p1")),
            (SAVE, lambda: d.driver.save_needs("p1")),
        ]
        for capability, call in needed:
            if d.can(capability):
                assert await refusal(call()) == RefusalCode.DOMAIN_DOWN


async def a_domain_is_destroyed_as_often_as_one_likes(site: DriverSite) -> None:
    async with driven(site) as d:
        await d.driver.destroy("n1")
        await d.until_told(DomainChange("n1", up=False))
        assert not (await d.reading("n1")).up
        await d.driver.destroy("n1")


async def a_domain_is_booted_and_asked_to_shut_down(site: DriverSite) -> None:
    async with driven(site) as d:
        if not d.can(LIFE):
            return
        for _ in range(2):
            await d.driver.boot("p1")
            assert (await d.reading("p1")).up
        await d.until_told(DomainChange("p1", up=True))


async def a_domain_that_is_asked_to_shut_down_ends(site: DriverSite) -> None:
    async with driven(site) as d:
        if not d.can(LIFE):
            return
        await d.driver.shutdown("n1")
        await d.until("n1", lambda one: not one.up)


async def a_domain_is_saved_to_disk_and_restored(site: DriverSite) -> None:
    async with driven(site) as d:
        if not d.can(SAVE, LIFE):
            return
        needs = await d.driver.save_needs("n1")
        assert needs.mib > 0 and not needs.obstacle
        assert await d.driver.image_fault("n1") == "", "it is up"
        await d.driver.save("n1")
        found = await d.reading("n1")
        assert (found.up, found.saved, found.image_fault) == (False, True, "")
        assert await d.driver.image_fault("n1") == ""
        await d.driver.boot("n1")
        found = await d.reading("n1")
        assert (found.up, found.saved, found.paused_externally) == (True, False, False)


async def a_domain_that_somebody_pauses_is_up_until_it_is_resumed(site: DriverSite) -> None:
    async with driven(site) as d:
        if not d.can(LIFE):
            return
        await site.pause("n1")
        found = await d.reading("n1")
        assert (found.up, found.paused_externally) == (True, True)
        for _ in range(2):
            await d.driver.resume("n1")
            assert not (await d.reading("n1")).paused_externally


Case = Callable[[DriverSite], Coroutine[Any, Any, None]]

CASES: tuple[Case, ...] = (
    its_start_reports_each_domain,
    all_configured_domains_are_read_and_no_others,
    domains_that_start_and_end_are_reported_and_read,
    nothing_is_reported_after_its_end,
    a_cap_is_set_read_back_and_removed,
    a_cap_stays_when_the_driver_ends,
    memory_comes_to_the_amount_that_was_set,
    impossible_figures_are_refused,
    a_domain_that_nobody_configured_is_refused,
    calls_that_it_cannot_do_are_refused_and_noted,
    calls_for_running_domains_are_refused_if_the_domain_is_down,
    a_domain_is_destroyed_as_often_as_one_likes,
    a_domain_is_booted_and_asked_to_shut_down,
    a_domain_that_is_asked_to_shut_down_ends,
    a_domain_is_saved_to_disk_and_restored,
    a_domain_that_somebody_pauses_is_up_until_it_is_resumed,
)
