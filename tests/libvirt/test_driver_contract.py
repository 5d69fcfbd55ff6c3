"""libvirt's driver passes the contract of drivers on a real QEMU, and on LXC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from magrathea_lab.rigs.guest_host import Hypervisor, Size
from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.base import Driver
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver

from ..contract.driver import CASES, Case, a_domain_that_is_asked_to_shut_down_ends
from .containers import AFTER_END_S, Containers

MOST_MIB, LESS_MIB = 256, 192


class LibvirtSite:
    """See DriverSite."""

    less_mib = LESS_MIB

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.guests = hypervisor.guests
        self.uri = hypervisor.uri
        self.guests["p1"].end()
        self.guests["n1"].boot()
        self.guests["n1"].wait()
        hypervisor.restore_size("n1", self.guests["n1"])

    def driver(self) -> Driver:
        return LibvirtDriver("h1", self.uri, {name: guest.libvirt_name for name, guest in self.guests.items()})

    async def start(self, name: str) -> None:
        self.guests[name].boot()

    async def end(self, name: str) -> None:
        self.guests[name].end()

    async def pause(self, name: str) -> None:
        self.guests[name].domain.suspend()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(work, 2 * BOUND_S))


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """Guests that power off on request."""
    size = Size(memory_mib=MOST_MIB, arguments="magrathea.acpi")
    with Hypervisor({"n1": size, "p1": size}) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_libvirts_driver(hypervisor: Hypervisor, case: Case) -> None:
    site = LibvirtSite(hypervisor)
    site.run(case(site))


CONTAINER_CASES = [case for case in CASES if case is not a_domain_that_is_asked_to_shut_down_ends]
"""libvirt 9.0 reports success for a plain request to shut down, but these containers never get one. A signal
(`VIR_DOMAIN_SHUTDOWN_SIGNAL`) does reach them."""


class ContainerSite(LibvirtSite):
    async def start(self, name: str) -> None:
        time.sleep(AFTER_END_S)
        await super().start(name)


@pytest.fixture(scope="module")
def lent(containers: Containers) -> Iterator[Containers]:
    """Other files use them, too, and need all of them up."""
    yield containers
    containers.restore()


@pytest.mark.parametrize("case", CONTAINER_CASES, ids=lambda case: case.__name__)
def test_libvirts_driver_of_containers(lent: Containers, case: Case) -> None:
    lent.guests["n1"].end()
    time.sleep(AFTER_END_S)
    site = ContainerSite(lent)
    site.run(case(site))
