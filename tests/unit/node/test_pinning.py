"""Memory that is pinned, in whichever of the many ways: adopt, doctor and driver give one answer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.libvirt import pinning
from node_daemon.hypervisor.libvirt.balloons import QemuMemory
from node_daemon.hypervisor.libvirt.pinning import CODE_CACHE_MIB, OWN_MIB, QemuProcess, QemuProcesses, pinned

DATA = Path(__file__).parents[2] / "data" / "domains"
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def data(name: str) -> str:
    return (DATA / f"{name}.xml").read_text("utf-8")


def domain(inside: str = "", devices: str = "") -> str:
    return f"<domain type='kvm' {QEMU}><name>n1</name>{inside}<devices>{devices}</devices></domain>"


def with_arguments(*values: str) -> str:
    arguments = "".join("<qemu:arg value='{}'/>".format(value.replace("'", "&apos;")) for value in values)
    return domain(f"<qemu:commandline>{arguments}</qemu:commandline>")


def nothing(name: str) -> str | None:
    return None


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (domain(devices="<hostdev type='pci'/>"), "PCI device pins all its memory: remove the <hostdev>"),
        (domain(devices="<hostdev type='mdev' model='vfio-pci'/>"), "mediated device"),
        (domain(devices="<interface type='hostdev'/>"), "remove the <interface>"),
        (domain(devices="<interface type='vdpa'/>"), "vDPA"),
        (domain(devices="<disk type='nvme'/>"), "remove the <disk>"),
        (domain(devices="<disk type='vhostvdpa'/>"), "vDPA disk"),
        (domain(devices="<disk type='file'><backingStore type='nvme'/></disk>"), "remove the <backingStore>"),
        (domain(devices="<memory model='dimm'><source><pagesize>2048</pagesize></source></memory>"), "huge pages"),
        (domain("<launchSecurity type='sev'/>"), "remove the <launchSecurity>"),
        (domain("<launchSecurity type='tdx'/>"), "encryption"),
        (domain("<memoryBacking><locked/></memoryBacking>"), "<locked/>"),
        (domain("<memoryBacking><hugepages/></memoryBacking>"), "huge pages"),
        (with_arguments("-overcommit", "mem-lock=on"), "-overcommit mem-lock=on"),
        (with_arguments("-overcommit", "cpu-pm=on,mem-lock=on-fault"), "mem-lock=on-fault"),
        (with_arguments("-overcommit", "mem-lock"), "-overcommit mem-lock"),
        (with_arguments("-realtime", "mlock=on"), "mlock"),
        (with_arguments("-device", "vfio-pci,host=3b:00.1"), "-device vfio-pci"),
        (with_arguments("--device", "driver=vfio-pci-nohotplug,host=3b:00.1"), "vfio"),
        (with_arguments("-device", json.dumps({"driver": "vfio-pci", "host": "3b:00.1"})), "vfio"),
        (with_arguments("-device", "vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0"), "vdpa"),
        (with_arguments("-netdev", "vhost-vdpa,id=a,vhostdev=/dev/vhost-vdpa-0"), "vdpa"),
        (with_arguments("-netdev", "type=vhost-vdpa,id=a"), "vdpa"),
        (with_arguments("-nic", "vhost-vdpa,vhostdev=/dev/vhost-vdpa-0"), "vdpa"),
        (with_arguments("-blockdev", "driver=nvme,device=0000:01:00.0,namespace=1"), "nvme"),
        (with_arguments("-blockdev", "driver=raw,file.driver=nvme,file.device=0000:01:00.0"), "nvme"),
        (with_arguments("-blockdev", json.dumps({"driver": "raw", "file": {"driver": "nvme"}})), "nvme"),
        (with_arguments("-drive", "file=nvme://0000:01:00.0/1,if=none"), "nvme"),
        (with_arguments("-object", "memory-backend-file,id=a,mem-path=/dev/hugepages/a,size=4G"), "hugepages"),
        (with_arguments("-object", "memory-backend-memfd,id=a,hugetlb=on,size=4G"), "hugetlb"),
        (with_arguments("-object", json.dumps({"qom-type": "memory-backend-memfd", "hugetlb": True})), "hugetlb"),
        (with_arguments("-object", "memory-backend-memfd,id=a,size=4G,hugetlb"), "hugetlb"),
        (with_arguments("-object", "iommufd,id=a"), "iommufd"),
        (with_arguments("-object", "sev-guest,id=sev0"), "sev-guest"),
        (with_arguments("-object", json.dumps({"qom-type": "tdx-guest"})), "tdx"),
        (with_arguments("-machine", "q35,confidential-guest-support=sev0"), "confidential"),
        (with_arguments("-M", "memory-encryption=sev0"), "memory-encryption"),
        (with_arguments("-mem-path", "/dev/hugepages"), "hugepages"),
        (data("emulator-options"), "-overcommit mem-lock=on"),
    ],
)
def test_every_way_of_pinning_memory_in_the_xml_is_found(xml: str, says: str) -> None:
    assert says in pinned(xml, nothing)


@pytest.mark.parametrize(
    "xml",
    [
        domain(devices="<hostdev mode='subsystem' type='usb'/><interface type='network'/><hostdev type='scsi'/>"),
        domain("<memoryBacking><allocation mode='immediate'/><nosharepages/></memoryBacking>"),
        domain("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"),
        domain("<memtune><hard_limit unit='GiB'>4</hard_limit></memtune>", "<interface type='vhostuser'/>"),
        with_arguments("-overcommit", "mem-lock=off", "-device", "virtio-net-pci,netdev=vfio-pci"),
        with_arguments("-object", "memory-backend-ram,id=a,size=4G", "-machine", "q35,accel=tcg", "-accel"),
        with_arguments("-object", "memory-backend-memfd,id=a,size=4G,hugetlb=no", "-drive", "file=/nvme/a,driver=raw"),
        with_arguments("-device", "{", "-object", "[1]", "vfio-pci", "-name", "vfio-pci"),
        data("half-plugged"),
        data("own-quota"),
        data("listening-channel"),
    ],
)
def test_what_only_looks_like_it_pins_nothing(xml: str) -> None:
    assert pinned(xml, nothing) == ""


def test_a_function_of_a_networks_pool_is_found_by_the_network() -> None:
    networks = {"sriov-pool": data("pool-of-functions.net")}
    assert "the network 'sriov-pool'" in pinned(data("function-from-pool"), networks.get)
    assert pinned(data("function-from-pool"), nothing) == "", "what cannot be asked is not known here"
    bridge = "<network><name>sriov-pool</name><forward mode='bridge'/></network>"
    assert pinned(data("function-from-pool"), lambda name: bridge) == ""
    assert pinned(data("function-from-pool"), lambda name: "<network") == ""


UUID = "00000000-0000-4000-8000-000000000885"


def a_process(
    proc: Path, pid: int, *words: str, locked_kib: int = 0, pinned_kib: int = 0, huge_kib: int = 0, start: int = 5
) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "comm").write_text(words[0][:15] + "\n")
    (proc / str(pid) / "stat").write_text(f"{pid} (a )b) S {'0 ' * 18}{start} 0 0\n")
    (proc / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    status = f"Name:\tqemu\nVmLck:\t{locked_kib:8} kB\nVmPin:\t{pinned_kib:8} kB\nVmRSS:\t  900000 kB\n"
    status += f"HugetlbPages:\t{huge_kib:8} kB\n"
    (proc / str(pid) / "status").write_text(status)


@pytest.mark.parametrize("figure", ["locked_kib", "pinned_kib", "huge_kib"])
def test_a_running_qemu_shows_what_the_kernel_counts_as_locked_or_pinned(tmp_path: Path, figure: str) -> None:
    a_process(tmp_path, 7, "qemu-system-x86_64", "-uuid", UUID, **{figure: 4 << 20})
    a_process(tmp_path, 8, "bash")
    found = QemuProcesses(tmp_path).of(UUID)
    assert found is not None and found.locked_mib == 4096
    assert "4096 MiB locked or pinned, or in huge pages" in found.pins(4096)


def test_a_little_locked_memory_is_qemus_own(tmp_path: Path) -> None:
    a_process(tmp_path, 7, "qemu-system-x86_64", "-uuid", UUID, locked_kib=60 << 10)
    found = QemuProcesses(tmp_path).of(UUID)
    assert found is not None and found.pins(256) == ""


def test_a_running_qemu_shows_its_own_arguments(tmp_path: Path) -> None:
    device = json.dumps({"driver": "vfio-pci", "host": "0000:3b:00.1"})
    a_process(tmp_path, 7, "qemu-system-x86_64", "-uuid", UUID, "-device", device)
    found = QemuProcesses(tmp_path).of(UUID)
    assert found is not None and "vfio-pci" in found.pins(4096)


def test_another_process_that_names_the_uuid_hides_no_locked_memory(tmp_path: Path) -> None:
    a_process(tmp_path, 7, "qemu-system-x86_64", "-uuid", UUID, locked_kib=4 << 20)
    a_process(tmp_path, 6, "qemu-fake", "-uuid", UUID)
    a_process(tmp_path, 9, "sleep", "-uuid", UUID, locked_kib=5 << 20)
    found = QemuProcesses(tmp_path).of(UUID)
    assert found is not None and found.locked_mib == 4096


def test_a_qemu_that_starts_later_is_found_and_one_that_ended_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "LOOK_S", 0.0)
    processes = QemuProcesses(tmp_path)
    assert processes.of(UUID) is None
    a_process(tmp_path, 7, "qemu-system-x86_64", "-uuid", UUID)
    assert processes.of(UUID) is not None
    a_process(tmp_path, 7, "bash", start=6)
    assert processes.of(UUID) is None


def test_a_process_that_hangs_is_waited_for_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line cannot be read while it hangs with its memory map locked."""
    monkeypatch.setattr(pinning, "LOOK_WAIT_S", 0.0)
    monkeypatch.setattr(pinning, "LOOK_S", 0.0)
    hung = tmp_path / "7"
    a_process(tmp_path, 7, "qemu-system-x86_64")
    (hung / "cmdline").unlink()
    os.mkfifo(hung / "cmdline")  # reading it waits for a writer
    processes = QemuProcesses(tmp_path)
    assert processes.of(UUID) is None
    search = processes._search
    assert search is not None and search.is_alive()
    assert processes.of(UUID) is None and processes._search is search, "no second one beside it"
    (hung / "cmdline").write_bytes(b"qemu-system-x86_64\0-uuid\0" + UUID.encode() + b"\0")
    search.join(BOUND_S)
    assert processes.of(UUID) is not None


def test_what_a_qemu_needs_for_itself_includes_its_code_cache() -> None:
    assert QemuProcess(("-accel", "kvm"), 0).own_mib == OWN_MIB
    assert QemuProcess(("-accel", "tcg,tb-size=64"), 0).own_mib == OWN_MIB + 64
    assert QemuProcess(("-accel", "tcg"), 0).own_mib == OWN_MIB + CODE_CACHE_MIB


# What nothing shows: noticed at the first move


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        (QemuMemory(4096, 4300, OWN_MIB), QemuMemory(1024, 4300), True),  # a device pins all of it
        (QemuMemory(4096, 4300, OWN_MIB), QemuMemory(1024, 1230), False),
        (QemuMemory(4096, 900, OWN_MIB), QemuMemory(1024, 900), False),  # a guest that never used its memory
        (QemuMemory(4096, 4300, OWN_MIB), QemuMemory(4050, 4300), False),  # a small move proves nothing
        (QemuMemory(4096, 5500, OWN_MIB), QemuMemory(1024, 2430), False),  # a QEMU that uses much itself
        (QemuMemory(4096, 5500, OWN_MIB), QemuMemory(1024, 5500), True),
        (QemuMemory(4096, 3000, OWN_MIB + CODE_CACHE_MIB), QemuMemory(2048, 2900), False),  # half used, and emulated
        (QemuMemory(4096, 0, OWN_MIB), QemuMemory(1024, 4300), False),  # libvirt did not say
    ],
)
def test_a_qemu_that_keeps_what_its_balloon_took_is_noticed(before: QemuMemory, now: QemuMemory, kept: bool) -> None:
    assert bool(before.kept(now)) is kept
