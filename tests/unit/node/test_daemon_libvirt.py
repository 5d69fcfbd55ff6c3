"""The real daemon on libvirt's own test hypervisor: how it uses the driver's reports of services and abilities."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea.messages import DomainReport
from magrathea_lab.waiting import BOUND_S
from node_daemon.configuration import NodedConfiguration, read
from node_daemon.daemon import Daemon
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver
from tests.fakes.libvirt import libvirt, only_domains, xml

SERVICES, CPUS, MIB = 12, 16, 16384
SERVICE_MIB = 256
TEXT = """
[host]
name = "h1"
mode = "{mode}"
cpus = {cpus}
memory_mib = {mib}
reserve_mib = 0
driver = "libvirt"
uri = "test:///default"
[paths]
run_dir = "{folder}/run"
state_dir = "{folder}/state"
scripts = ""
[domain.n1]
kind = "normal"
floor_mib = 128
[domain.n2]
kind = "normal"
floor_mib = 128
[domain.service0]
kind = "service"
cpus = 1
memory_mib = 256
"""


@pytest.fixture
def connection() -> Iterator[Any]:
    """Two workers and twelve services; the configuration names one of the services."""
    workers = [xml(name, 1024, 4, balloon=False) for name in ("n1", "n2")]
    services = [xml(f"service{number}", SERVICE_MIB, 1, balloon=False) for number in range(SERVICES)]
    with only_domains(*workers, *services) as made:
        yield made


def driver_of(configuration: NodedConfiguration) -> LibvirtDriver:
    names = {name: name for name in configuration.domain}
    return LibvirtDriver("h1", configuration.host.uri, names, frozenset({"service0"}))


def play(mode: str, test: Callable[[Daemon], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        with tempfile.TemporaryDirectory(prefix="mdl-") as folder:
            path = Path(folder) / "noded.toml"
            path.write_text(TEXT.format(mode=mode, folder=folder, cpus=CPUS, mib=MIB))
            daemon = Daemon(read(path), path, driver_of)
            try:
                await daemon.start()
                await test(daemon)
            finally:
                await daemon.close()

    asyncio.run(all_of_it())


def report(daemon: Daemon, name: str) -> DomainReport:
    return next(d for d in daemon.snapshot(1).domains if d.name == name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_the_cpus_and_memory_of_twelve_services_are_not_offered_to_jobs(connection: Any, mode: str) -> None:
    async def test(daemon: Daemon) -> None:
        assert daemon.host.without_services.cpus == CPUS - SERVICES
        assert daemon.host.without_services.mib == MIB - SERVICES * SERVICE_MIB
        assert report(daemon, "n1").ncpus == CPUS - SERVICES
        assert report(daemon, "n1").mem_mib <= MIB - SERVICES * SERVICE_MIB
        assert daemon.snapshot(1).services_cpus == SERVICES
        connection.lookupByName("service7").destroy()
        await until(lambda: report(daemon, "n1").ncpus == CPUS - SERVICES + 1)
        connection.lookupByName("service7").create()
        await until(lambda: report(daemon, "n1").ncpus == CPUS - SERVICES)
        assert all(connection.lookupByName(f"service{n}").isActive() for n in range(SERVICES))

    play(mode, test)


def test_missing_abilities_of_the_hypervisor_are_shown_in_the_status_and_logged_once(
    connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(daemon: Daemon) -> None:
        [note] = [note for note in daemon.snapshot(1).notes if "CPU" in note]
        for _ in range(3):
            await daemon.switch.readings.refresh()
        assert caplog.text.count(note) == 1

    with caplog.at_level(logging.INFO):
        play("exclusive", test)


def test_missing_abilities_are_logged_as_soon_as_the_hypervisor_answers(
    connection: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(daemon: Daemon) -> None:
        assert "CPU" not in caplog.text
        monkeypatch.undo()
        await until(lambda: "CPU" in caplog.text)
        assert any("CPU" in note for note in daemon.snapshot(1).notes)

    real = libvirt.open
    monkeypatch.setattr(libvirt, "open", lambda uri: real(f"qemu:///system?socket={uri}/none"))
    with caplog.at_level(logging.INFO):
        play("exclusive", test)
