"""libvirt's XML of small guests."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from .image import Image

CODE_CACHE_MIB = 64
"""Without a bound an emulating QEMU grows by more than 1 GiB in half an hour."""


def guest_xml(
    name: str,
    image: Image,
    *,
    channel: Path,
    console: Path,
    hostname: str,
    memory_mib: int,
    current_mib: int | None = None,
    test_port: Path | None = None,
    mom_socket: Path | None = None,
    vcpus: int = 1,
    swap: Path | None = None,
    swap_iops: int = 0,
    zram_mib: int = 0,
    kind: str = "qemu",
    autodeflate: bool = True,
    arguments: str = "",
    devices: str = "",
) -> str:
    """XML of a guest's libvirt domain.

    `channel`: the node daemon's socket of the domain. `current_mib`: the guest's memory at first; None: all of it.
    `test_port`: the socket on which QEMU listens for users of the tests' stand-in for MoM.
    `mom_socket`: the socket to which QEMU connects for the PBS stand-in's MoM.
    `swap`: a raw disk for swap; `swap_iops`: its limit in operations per second. `zram_mib`: swap in compressed memory.
    """
    # The kernel counts ticks at boot and panics if too few come: under emulation on a busy machine that happens.
    command = f"console=ttyS0 quiet no_timer_check magrathea.name={hostname} {arguments}"
    command += f" magrathea.zram={zram_mib}" if zram_mib else ""
    features = f"<tcg><tb-cache unit='MiB'>{CODE_CACHE_MIB}</tb-cache></tcg>" if kind == "qemu" else ""
    cpu = "<cpu mode='host-passthrough'/>" if kind == "kvm" else ""
    limit = f"<iotune><total_iops_sec>{swap_iops}</total_iops_sec></iotune>" if swap_iops else ""
    disk = (
        f"""<disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='unsafe' discard='unmap'/>
      <source file='{escape(str(swap))}'/><target dev='vda' bus='virtio'/>{limit}
    </disk>"""
        if swap
        else ""
    )
    ports = ""
    if test_port is not None:
        ports += _port("test", f"<source mode='bind' path='{escape(str(test_port))}'/>")
    if mom_socket is not None:
        ports += _port("mom", _connected(mom_socket))
    return f"""<domain type='{kind}'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <currentMemory unit='MiB'>{current_mib or memory_mib}</currentMemory>
  <vcpu>{vcpus}</vcpu>
  {cpu}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(str(image.kernel))}</kernel>
    <initrd>{escape(str(image.initrd))}</initrd>
    <cmdline>{escape(command)}</cmdline>
  </os>
  <features><acpi/>{features}</features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>
    <serial type='file'><source path='{escape(str(console))}'/><target port='0'/></serial>
    {_port("0", _connected(channel))}
    {ports}
    <memballoon model='virtio' autodeflate='{"on" if autodeflate else "off"}' freePageReporting='on'>
      <stats period='1'/>
    </memballoon>
    <panic model='isa'/>
    {disk}
    {devices}
  </devices>
</domain>
"""


def _connected(socket: Path) -> str:
    return f"<source mode='connect' path='{escape(str(socket))}'><reconnect enabled='yes' timeout='1'/></source>"


def _port(name: str, source: str) -> str:
    return f"<channel type='unix'>{source}<target type='virtio' name='org.magrathea.{name}'/></channel>\n"
