"""libvirt's driver passes the contract of drivers on libvirt's test hypervisor, also when that poses as another one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.base import Driver
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver

from ..fakes.libvirt import URI, faked, only_domains, xml
from .driver import CASES, Case


class LibvirtSite:
    """See DriverSite."""

    less_mib = 512

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._domain("p1").destroy()

    def _domain(self, name: str) -> Any:
        return self.connection.lookupByName(name)

    def driver(self) -> Driver:
        return LibvirtDriver("h1", URI, {"n1": "n1", "p1": "p1"})

    async def start(self, name: str) -> None:
        self._domain(name).create()

    async def end(self, name: str) -> None:
        self._domain(name).destroy()

    async def pause(self, name: str) -> None:
        self._domain(name).suspend()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(work, 2 * BOUND_S))


@pytest.fixture(params=["as it is", "as Xen", "as QEMU"])
def libvirt_site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LibvirtSite]:
    if request.param == "as Xen":
        faked(monkeypatch, "Xen", {"weight": 256, "cap": 0}, "n1", "p1")
    elif request.param == "as QEMU":
        faked(monkeypatch, "QEMU", {"global_quota": -1, "global_period": 100000}, "n1", "p1")
    with only_domains(xml("n1"), xml("p1")) as connection:
        yield LibvirtSite(connection)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_libvirts_driver(libvirt_site: LibvirtSite, case: Case) -> None:
    libvirt_site.run(case(libvirt_site))
