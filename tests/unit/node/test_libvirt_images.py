"""Images of saved domains, as the libvirt driver judges them. On real ones: tests/libvirt/test_sleep.py."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_daemon.hypervisor.libvirt import images
from tests.fakes.libvirt import FakeLibvirt, failure, faked, libvirt, only_domains, xml
from tests.unit.node.test_libvirt_driver import QEMU, refused, run, started

DOMAIN = "<domain><devices>{}</devices>{}</domain>"
POOL = "<network><name>vfs</name><forward mode='hostdev'/></network>"
HOSTDEV = "<hostdev mode='subsystem' type='{}'/>"
INTERFACE = "<interface type='network'><source network='vfs'/></interface>"


@pytest.fixture
def connection() -> Iterator[Any]:
    with only_domains(xml("m1"), xml("m2")) as made:
        yield made


@pytest.fixture
def fake(connection: Any, monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    return faked(monkeypatch, "QEMU", QEMU)


@pytest.mark.parametrize(
    ("devices", "more", "word"),
    [
        (HOSTDEV.format("pci"), "", "PCI"),
        (HOSTDEV.format("mdev"), "", "mediated"),
        ("<interface type='hostdev'/>", "", "network device"),
        (HOSTDEV.format("scsi_host"), "", "SCSI controller"),
        ("<disk type='file'><backingStore type='nvme'/></disk>", "", "NVMe"),
        ("<filesystem type='mount'><driver type='virtiofs'/></filesystem>", "", "virtiofs"),
        ("", "<launchSecurity type='sev'/>", "encryption"),
        (INTERFACE, "", "'vfs'"),
        (HOSTDEV.format("usb"), "", ""),
        ("<filesystem type='mount'><driver type='path'/></filesystem>", "<memoryBacking><locked/></memoryBacking>", ""),
    ],
)
def test_a_device_whose_state_is_not_in_the_image_is_an_obstacle(devices: str, more: str, word: str) -> None:
    found = images.obstacle(DOMAIN.format(devices, more), {"vfs": POOL}.get)
    assert (word in found) if word else not found


@pytest.mark.parametrize(
    ("kind", "uri", "where"),
    [
        ("QEMU", "qemu:///system", "/var/lib/libvirt/qemu/save"),
        ("QEMU", "qemu:///system?socket=/run/other", "/var/lib/libvirt/qemu/save"),
        ("QEMU", "qemu:///session", "/home/one/.config/libvirt/qemu/save"),
        ("Xen", "xen:///system", "/var/lib/libvirt/libxl/save"),
        ("QEMU", "qemu+ssh://elsewhere/system", None),
        ("TEST", "test:///default", None),
    ],
)
def test_the_folder_is_the_one_that_libvirt_has_built_in(
    kind: str, uri: str, where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert images.folder(kind, uri) == (None if where is None else Path(where))


def test_the_room_is_looked_at_as_libvirtd_sees_it_and_else_from_here(tmp_path: Path) -> None:
    inside = tmp_path / "proc" / "7" / "root" / "var" / "save"
    assert images.free_mib(Path("/no/such/folder"), 7, tmp_path / "proc") is None
    inside.mkdir(parents=True)
    found = os.statvfs(inside)
    free = images.free_mib(Path("/var/save"), 7, tmp_path / "proc")
    assert free is not None and abs(free - (found.f_bavail * found.f_frsize >> 20)) < 1024
    assert images.free_mib(Path("/var/save"), None) is None, "there is none outside"
    assert images.free_mib(tmp_path, 8, tmp_path / "proc") is not None, "no such process: from here"


def test_libvirtd_is_found_by_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        assert images.server_pid(f"qemu:///system?socket={path}") == os.getpid()
    assert images.server_pid(f"qemu:///system?socket={tmp_path}/none") is None


def test_saving_takes_the_domains_memory_and_a_margin(fake: FakeLibvirt) -> None:
    async def work() -> None:
        async with started() as (driver, _):
            needs = await driver.save_needs("n1")
            assert needs.mib == 1024 + images.MARGIN_MIB and not needs.obstacle
            fake.plugged["m1"] = HOSTDEV.format("pci")
            assert "PCI" in (await driver.save_needs("n1")).obstacle

    run(work)


def test_an_image_that_libvirt_cannot_read_has_a_fault_and_one_that_it_cannot_judge_has_none(fake: FakeLibvirt) -> None:
    async def work() -> None:
        async with started() as (driver, _):
            assert await driver.image_fault("n1") == "", "it is up"
            await driver.save("n1")
            assert not (await driver.actual())["n1"].image_fault, "the test hypervisor cannot tell"
            fake.fails = {"m1.managedSaveGetXMLDesc": 9}
            assert "error 9" in await driver.image_fault("n1")
            assert "error 9" in (await driver.actual())["n1"].image_fault
            fake.fails = {}
            await driver.boot("n1")
            fake.plugged.clear()
            await driver.destroy("n1")
            assert await driver.image_fault("n1") == images.NO_IMAGE

    run(work)


def test_what_a_failed_save_leaves_behind_is_removed(fake: FakeLibvirt) -> None:
    class Half:
        """A domain that goes on after its save has failed, and half an image."""

        def __init__(self) -> None:
            self.has_image = True

        def isPersistent(self) -> bool:
            return True

        def isActive(self) -> bool:
            return True

        def managedSave(self, flag: int) -> None:
            raise failure(9)

        def hasManagedSaveImage(self) -> bool:
            return self.has_image

        def managedSaveRemove(self) -> None:
            self.has_image = False

    half = Half()
    with pytest.raises(libvirt.libvirtError):
        images.save(libvirt.libvirtError, half, "n1", 0)
    assert not half.has_image


def test_the_image_of_a_save_that_an_earlier_daemon_has_begun_stays(fake: FakeLibvirt) -> None:
    """libvirt goes on with it, and lets nobody else in meanwhile. Without its image all would be lost."""

    class BeingSaved:
        def isPersistent(self) -> bool:
            return True

        def isActive(self) -> bool:
            return True

        def managedSave(self, flag: int) -> None:
            raise failure(68)  # VIR_ERR_OPERATION_TIMEOUT: the other save has the domain

        def hasManagedSaveImage(self) -> bool:
            return True

        def managedSaveRemove(self) -> None:
            raise AssertionError("the other save's image")

    with pytest.raises(libvirt.libvirtError):
        images.save(libvirt.libvirtError, BeingSaved(), "n1", 0)


def test_a_message_of_libvirt_that_is_no_text_is_an_ordinary_failure(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's last words about a damaged image may contain bytes of it, which the binding cannot decode."""

    def unreadable(*_: object) -> None:
        raise SystemError("returned a result with an exception set")

    async def work() -> None:
        async with started() as (driver, _):
            await driver.save("n1")
            monkeypatch.setattr(libvirt.virDomain, "create", unreadable)
            assert await refused(driver.boot("n1")) == "restore-failed"
            assert (await driver.actual())["n1"].saved
            monkeypatch.setattr(libvirt.virDomain, "managedSaveRemove", unreadable)
            monkeypatch.setattr(libvirt.virDomain, "destroy", unreadable)
            assert await refused(driver.destroy("p1")) == "failed"

    run(work)
