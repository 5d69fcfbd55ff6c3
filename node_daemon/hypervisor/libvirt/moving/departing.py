"""What a domain's XML says about a move: why it cannot be made, what the domain needs at its destination, and its XML
there. Pure.

Rule 1: what libvirt itself would refuse is refused before anything is prepared, with a fix that people can follow.
Rule 2: the XML of the running domain decides, with the disks' chains as libvirt has read them. Nothing is read from the
disks: their content belongs to the guest.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...moving import CopiedDisk, Departure, Terms

CHANNEL = "org.magrathea.0"
"""The name of Magrathea's port (node_daemon/setup/domain_xml.py)."""
OPENED = ("kernel", "initrd", "dtb", "loader")
"""Files below <os> that QEMU opens at its start, at the destination too."""
CHARACTER_DEVICES = ("serial", "console", "parallel", "channel")


@dataclass(frozen=True, slots=True)
class XmlFindings:
    """What the XML shows. `sizes` of disks to be copied are filled in by `departure`."""

    reasons: tuple[str, ...]
    copied: tuple[CopiedDisk, ...]
    needs: tuple[str, ...]
    writes: tuple[str, ...]
    bridges: tuple[str, ...]
    channel: str
    is_emulated: bool = False
    """QEMU emulates its processors, instead of KVM."""


def look(xml: str, terms: Terms) -> XmlFindings:
    """What a domain's live XML says about a move under these terms. Raises ET.ParseError."""
    top = ET.fromstring(xml)
    devices = top.find("devices")
    if devices is None:
        devices = ET.Element("devices")
    reasons = [*_device_reasons(devices), *_cpu_reasons(top, terms)]
    copied: list[CopiedDisk] = []
    needs = [text for name in OPENED if (text := (top.findtext(f"os/{name}") or "").strip())]
    for disk in devices.findall("disk"):
        reasons += _look_at_disk(disk, terms, copied, needs)
    writes, channel = [], ""
    for device in (one for kind in CHARACTER_DEVICES for one in devices.findall(kind)):
        path = _source(device, "path")
        target = device.find("target")
        if not path or device.get("type") not in ("unix", "file"):
            continue
        if target is not None and target.get("name") == CHANNEL:
            channel = path
        elif path not in writes:
            writes.append(path)
    bridges = {_source(interface, "bridge") for interface in devices.findall("interface")} - {""}
    lists = tuple(reasons), tuple(copied), tuple(needs), tuple(writes), tuple(sorted(bridges))
    return XmlFindings(*lists, channel, top.get("type") == "qemu")


def _device_reasons(devices: ET.Element) -> Iterator[str]:
    for hostdev in devices.findall("hostdev"):
        kind = hostdev.get("type", "")
        yield f"a {kind} device of the host is passed through to it; detach it: virsh detach-device"
    for interface in devices.findall("interface"):
        if interface.get("type") in ("hostdev", "vdpa", "vhostuser"):
            text = f"its network interface is the host's own hardware ({interface.get('type')})"
            yield f"{text}; give it one on a bridge"
    for folder in devices.findall("filesystem"):
        text = f"it sees the host's folder {_source(folder, 'dir')}, which QEMU cannot move"
        yield f"{text}; let it mount that from the network"
    for device in (one for kind in CHARACTER_DEVICES for one in devices.findall(kind)):
        if device.get("type") == "dev":
            yield f"its {device.tag} is the host's device {_source(device, 'path')}; remove it"
    if devices.find("shmem") is not None:
        yield "it shares memory with other processes of the host (shmem); remove that device"
    for memory in devices.findall("memory"):
        if memory.get("model") in ("nvdimm", "virtio-pmem"):
            yield f"its memory device {memory.get('model')} lies in a file of the host; remove it"
    if (backend := devices.find("tpm/backend")) is not None and backend.get("type") == "passthrough":
        yield "the host's TPM is passed through to it; give it an emulated one"


def _cpu_reasons(top: ET.Element, terms: Terms) -> Iterator[str]:
    if top.find("launchSecurity") is not None:
        yield "its memory is encrypted by the host (launchSecurity), and cannot be moved"
    cpu = top.find("cpu")
    mode = cpu.get("mode") if cpu is not None else None
    if mode in ("host-passthrough", "maximum") and not terms.same_cpus:
        text = f"its CPU is the host's own (mode {mode}): on another CPU its programs would crash"
        yield f"{text}; use a named CPU model, or permit it if the hosts have the same CPUs"


def _look_at_disk(disk: ET.Element, terms: Terms, copied: list[CopiedDisk], needs: list[str]) -> Iterator[str]:
    """Enter the disk in `copied` or `needs`, or yield why it cannot be moved."""
    target, kind, path = _attribute(disk, "target", "dev"), disk.get("type", ""), _disk_path(disk)
    if disk.find("transient") is not None:
        yield f"disk {target} is transient: what the guest has written would be lost; make it an ordinary one"
    if kind == "network" or not path:
        return  # every host reaches it by the same address; or an empty drive
    below = list(_chain(disk))
    if disk.find("readonly") is not None or _is_shared(path, terms) or disk.get("device") in ("cdrom", "floppy"):
        needs += [path, *(path for path, _ in below)]
    elif kind != "file":
        yield f"disk {target} is {path} of this host, which is not copied; put it on shared storage, or in a file"
    elif not terms.copy_disks:
        text = f"disk {target} is {path}, which is not in a folder that all hosts share"
        yield f"{text}; put it there, or permit that disks are copied"
    else:
        backing, backing_format = below[0] if below else ("", "")
        copied.append(CopiedDisk(target, path, _attribute(disk, "driver", "type"), 0, backing, backing_format))
        needs += [path for path, _ in below]


def _chain(disk: ET.Element) -> Iterator[tuple[str, str]]:
    """Path and format of each file below the disk, the next one first."""
    below = disk.find("backingStore")
    while below is not None and (path := _disk_path(below)):
        yield path, _attribute(below, "format", "type")
        below = below.find("backingStore")


def _disk_path(element: ET.Element) -> str:
    return _source(element, "file") or _source(element, "dev")


def _source(element: ET.Element, attribute: str) -> str:
    return _attribute(element, "source", attribute)


def _attribute(element: ET.Element, child: str, attribute: str) -> str:
    found = element.find(child)
    return (found.get(attribute) or "") if found is not None else ""


def _is_shared(path: str, terms: Terms) -> bool:
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in terms.shared)


def departure(name: str, uuid: str, found: XmlFindings, sizes: Mapping[str, int]) -> Departure:
    """What the domain needs. `sizes`: bytes of the disks to be copied, by target."""
    disks = tuple(
        CopiedDisk(one.target, one.path, one.format, sizes[one.target], one.backing, one.backing_format)
        for one in found.copied
    )
    return Departure(name, uuid, found.channel, disks, found.needs, found.writes, found.bridges)


def with_paths(xml: str, paths: Mapping[str, str]) -> str:
    """The XML with each of these files and sockets under its other path. Raises ET.ParseError."""
    for _, (prefix, uri) in ET.iterparse(io.StringIO(xml), events=["start-ns"]):
        if prefix and not re.fullmatch(r"ns\d+", prefix):
            ET.register_namespace(prefix, uri)  # else ElementTree invents prefixes
    top = ET.fromstring(xml)
    for element in top.iter():
        for attribute in ("path", "file"):
            if (value := element.get(attribute, "")) in paths:
                element.set(attribute, paths[value])
        if element.tag in (*OPENED, "nvram") and element.text and element.text.strip() in paths:
            element.text = paths[element.text.strip()]
    return ET.tostring(top, encoding="unicode")
