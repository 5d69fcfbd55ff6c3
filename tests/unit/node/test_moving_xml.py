"""What a domain's XML says about a move (node_daemon/hypervisor/libvirt/moving/departing.py)."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from node_daemon.hypervisor.libvirt.moving.departing import XmlFindings, departure, look, with_paths
from node_daemon.hypervisor.moving import CopiedDisk, Terms

NOTHING_PERMITTED = Terms()
CHANNEL = """<channel type='unix'><source mode='connect' path='/run/magrathea/guest/n1.sock'/>
  <target type='virtio' name='org.magrathea.0'/></channel>"""
OVERLAY = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vm/n1.qcow2'/>
  <backingStore type='file'><format type='qcow2'/><source file='/golden/d12.qcow2'/>
    <backingStore type='file'><format type='raw'/><source file='/golden/d11.img'/><backingStore/></backingStore>
  </backingStore><target dev='vda' bus='virtio'/></disk>"""


def domain(*devices: str, others: str = "") -> str:
    return f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>n1</name>{others}
      <devices>{CHANNEL}{"".join(devices)}</devices></domain>"""


def found(*devices: str, others: str = "", terms: Terms = NOTHING_PERMITTED) -> XmlFindings:
    return look(domain(*devices, others=others), terms)


def test_a_plain_domain_may_move_and_needs_only_its_channel() -> None:
    assert found() == XmlFindings((), (), (), (), (), "/run/magrathea/guest/n1.sock")


@pytest.mark.parametrize(
    ("device", "word"),
    [
        ("<hostdev mode='subsystem' type='pci'/>", "passed through"),
        ("<interface type='hostdev'/>", "bridge"),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "bridge"),
        ("<filesystem type='mount'><source dir='/home'/><target dir='home'/></filesystem>", "/home"),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", "/dev/ttyS0"),
        ("<shmem name='fast'/>", "shmem"),
        ("<memory model='nvdimm'/>", "nvdimm"),
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "TPM"),
        ("<disk type='file'><source file='/vm/n1.img'/><target dev='vda'/><transient/></disk>", "transient"),
        ("<disk type='block' device='disk'><source dev='/dev/vg/n1'/><target dev='vda'/></disk>", "/dev/vg/n1"),
    ],
)
def test_what_is_bound_to_the_host_is_a_reason(device: str, word: str) -> None:
    (reason,) = found(device, terms=Terms(copy_disks=True)).reasons
    assert word in reason


@pytest.mark.parametrize("mode", ["host-passthrough", "maximum"])
def test_the_hosts_own_cpu_moves_only_between_equal_hosts(mode: str) -> None:
    cpu = f"<cpu mode='{mode}'/>"
    assert mode in found(others=cpu).reasons[0]
    assert found(others=cpu, terms=Terms(same_cpus=True)).reasons == ()
    assert found(others="<cpu mode='custom'><model>qemu64</model></cpu>").reasons == ()


def test_encrypted_memory_is_a_reason() -> None:
    assert "launchSecurity" in found(others="<launchSecurity type='sev'/>").reasons[0]


def test_a_disk_moves_by_itself_only_if_all_hosts_see_it() -> None:
    assert "/vm/n1.qcow2" in found(OVERLAY).reasons[0]
    assert "/vm/n1.qcow2" in found(OVERLAY, terms=Terms(shared=("/v", "/vm/n"))).reasons[0]
    shared = found(OVERLAY, terms=Terms(shared=("/vm/",), copy_disks=True))
    assert (shared.reasons, shared.copied) == ((), ())
    assert shared.needs == ("/vm/n1.qcow2", "/golden/d12.qcow2", "/golden/d11.img")


def test_an_overlay_is_copied_and_its_images_must_be_there() -> None:
    copied = found(OVERLAY, terms=Terms(copy_disks=True))
    disk = CopiedDisk("vda", "/vm/n1.qcow2", "qcow2", 2**30, "/golden/d12.qcow2", "qcow2")
    assert departure("n1", "u", copied, {"vda": 2**30}).disks == (disk,)
    assert copied.needs == ("/golden/d12.qcow2", "/golden/d11.img")


def test_network_disks_need_nothing_and_drives_only_what_is_in_them() -> None:
    devices = (
        "<disk type='network' device='disk'><source protocol='rbd' name='p/n1'/><target dev='vda'/></disk>",
        "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>",
        "<disk type='file' device='cdrom'><source file='/iso/d12.iso'/><target dev='sdb'/><readonly/></disk>",
    )
    looked = found(*devices)
    assert (looked.reasons, looked.needs) == ((), ("/iso/d12.iso",))


def test_files_that_qemu_opens_or_writes_and_bridges_are_listed() -> None:
    os = "<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><loader type='pflash'>/fw/code.fd</loader></os>"
    serial = (
        "<serial type='file'><source path='/log/n1'/></serial><console type='file'><source path='/log/n1'/></console>"
    )
    other = "<channel type='unix'><source mode='bind' path='/run/other'/><target name='org.other'/></channel>"
    nic = "<interface type='bridge'><source bridge='br0'/></interface>"
    looked = found(serial, other, nic, others=os)
    assert looked.needs == ("/boot/vmlinuz", "/fw/code.fd")
    assert sorted(looked.writes) == ["/log/n1", "/run/other"]
    assert looked.bridges == ("br0",)


def test_paths_change_wherever_they_stand_and_nothing_else_does() -> None:
    os = "<os><type>hvm</type><kernel>/boot/vmlinuz</kernel></os><qemu:commandline><qemu:arg value='/vm/n1.qcow2'/>"
    xml = domain(OVERLAY, others=os + "</qemu:commandline>")
    paths = {"/boot/vmlinuz": "/b/k", "/vm/n1.qcow2": "/srv/n1", "/golden/d11.img": "/g/d11", "/run/magrathea": "/no"}
    changed = with_paths(xml, paths)
    top = ET.fromstring(changed)
    assert top.findtext("os/kernel") == "/b/k"
    assert [source.attrib for source in top.iter("source")] == [
        {"mode": "connect", "path": "/run/magrathea/guest/n1.sock"},
        *({"file": path} for path in ("/srv/n1", "/golden/d12.qcow2", "/g/d11")),
    ]
    assert '<qemu:arg value="/vm/n1.qcow2"' in changed, "no word for libvirt is changed, and prefixes stay"
    assert ET.canonicalize(with_paths(xml, {})) == ET.canonicalize(xml)


def test_emulated_processors_are_recognized() -> None:
    assert not look(domain(), NOTHING_PERMITTED).is_emulated
    assert look(domain().replace("type='kvm'", "type='qemu'"), NOTHING_PERMITTED).is_emulated
