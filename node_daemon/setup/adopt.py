"""Which of a host's libvirt domains Magrathea can use, and what must change for that: pure, on XML text and figures.

Rule 1: a guess is shown with its reason. What the administrator says (`--kind`, or the configuration) overrides it.
Rule 2: a domain that Magrathea cannot handle is refused with the reason and the fix; as a service it is never touched.
Rule 3: in a domain's XML only one channel and the balloon's attributes are changed.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from magrathea.core.model import Kind

CHANNEL = "org.magrathea.0"
"""The port's name; in the guest it is /dev/virtio-ports/org.magrathea.0 (deploy/agent.json)."""

BALLOON = {"model": "virtio", "autodeflate": "on", "freePageReporting": "on"}
"""Without autodeflate a target that the guest cannot reach kills its jobs. Free page reporting returns the memory of
ended jobs to the host. Seen with libvirt 9.0 and QEMU 7.2: a guest of 2 GiB, balloon to 512 MiB."""

EMULATOR_MIB = 300
"""What QEMU itself uses besides its guest's memory: 257 to 283 MiB were seen (QEMU 7.2)."""
HOST_MIB = 512
"""For the host itself; the default of `reserve_mib`."""
FLOOR_MARGIN_MIB = 96
"""Added to what a guest uses. With 29 MiB used, MoM with a hook and the agent worked well in 112 MiB, but slowly in
96."""
LEAST_FLOOR_MIB = 128
UNKNOWN_FLOOR_MIB = 512
"""The floor proposed for a domain that does not run: nobody knows what it uses."""
STEP_MIB = 16

PINNING = {
    "devices/hostdev[@type='pci']": "a passed-through PCI device",
    "devices/hostdev[@type='mdev']": "a mediated device (a share of a GPU, say)",
    "devices/interface[@type='hostdev']": "a passed-through network device",
    "devices/interface[@type='vdpa']": "a vDPA network device",
    "launchSecurity": "encryption of its memory",
}
"""Parts of a domain's XML that let devices or the processor access its memory at fixed places. A balloon cannot take
it."""

QEMU_TYPES = ("kvm", "qemu", "test")
TYPES = (*QEMU_TYPES, "xen", "lxc")

ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
ET.register_namespace("xen", "http://libvirt.org/schemas/domain/xen/1.0")
ET.register_namespace("lxc", "http://libvirt.org/schemas/domain/lxc/1.0")

_PRIORITY = re.compile(r"(^|[^a-z])(prio|priority|high|express|urgent)([^a-z]|$)", re.IGNORECASE)
_SERVICE = re.compile(
    r"(^|[^a-z])(service|server|login|mgmt|dns|dhcp|ldap|nfs|db|web|mail|infra)([^a-z]|$)", re.IGNORECASE
)


class NotAdoptable(Exception):
    """Magrathea cannot handle this domain; the text says why, and how to fix it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A domain as libvirt has it. `memory_mib`: its maximum.

    `used_mib`: what the host and the guest use of that without any job; None if the domain does not run.
    """

    name: str
    type: str
    cpus: int
    memory_mib: int
    words: str
    xml: str
    persistent: bool = True
    used_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a domain should become. `why`: the reason for its kind. `refused`: why it cannot be adopted; empty if it
    can."""

    found: Found
    kind: Kind
    why: str
    cpus: int
    floor_mib: int = 0
    memory_mib: int = 0
    refused: str = ""


_UNITS = {
    "b": 2**-20,
    "bytes": 2**-20,
    "kb": 1000 / 2**20,
    "k": 2**-10,
    "kib": 2**-10,
    "mb": 1e6 / 2**20,
    "m": 1,
    "mib": 1,
}
_UNITS |= {"gb": 1e9 / 2**20, "g": 2**10, "gib": 2**10, "tb": 1e12 / 2**20, "t": 2**20, "tib": 2**20}


def parse(xml: str, *, persistent: bool = True, used_mib: int | None = None) -> Found:
    """The domain that `xml` describes. Raises NotAdoptable if it is not libvirt's XML of a domain."""
    try:
        top = ET.fromstring(xml)
        name, memory = top.findtext("name", ""), top.find("memory")
        cpus = int(top.findtext("vcpu", "1"))
        mib = float(memory.text or "") * _UNITS[memory.get("unit", "KiB").lower()] if memory is not None else 0.0
    except (ET.ParseError, ValueError, KeyError) as error:
        raise NotAdoptable(f"its XML cannot be understood ({error!r}); see `virsh dumpxml`") from error
    words = " ".join(filter(None, (name, top.findtext("title"), top.findtext("description"))))
    return Found(name, top.get("type", ""), cpus, int(mib), words, xml, persistent, used_mib)


def guess(found: Found, host_cpus: int) -> tuple[Kind, str]:
    """The domain's probable kind, and the reason for that guess."""
    if match := _PRIORITY.search(found.words):
        return Kind.PRIORITY, f"its name or description has {match.group(2)!r}"
    if match := _SERVICE.search(found.words):
        return Kind.SERVICE, f"its name or description has {match.group(2)!r}"
    if 2 * found.cpus >= host_cpus:
        return Kind.NORMAL, f"it has {found.cpus} of the host's {host_cpus} CPUs: a worker"
    return Kind.SERVICE, f"it has {found.cpus} of the host's {host_cpus} CPUs: less than half"


def floor_mib(found: Found) -> int:
    """Memory that keeps the guest, its MoM and its agent alive, in MiB."""
    if found.used_mib is None:
        return min(UNKNOWN_FLOOR_MIB, found.memory_mib)
    need = max(LEAST_FLOOR_MIB, found.used_mib + FLOOR_MARGIN_MIB)
    return min(-(-need // STEP_MIB) * STEP_MIB, found.memory_mib)


def obstacle(found: Found) -> str:
    """Why the domain cannot run jobs, with the fix; empty if it can."""
    top = ET.fromstring(found.xml)
    service = f"or keep it out: `--kind {found.name}=service`"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", found.name):
        return f"a domain's name has at most 64 letters, digits, `_`, `.`, `-`; `virsh domrename` it, {service}"
    if found.type not in TYPES:
        return f"domains of type {found.type!r} are not supported (known: {', '.join(TYPES)}); {service}"
    if not found.persistent:
        return f"it is transient, so libvirt would forget it once saved; `virsh define` it, {service}"
    for path, what in PINNING.items():
        if top.find(path) is not None:
            return f"{what} pins all its memory; remove the <{path.rpartition('/')[2].partition('[')[0]}>, {service}"
    if top.find("memoryBacking/locked") is not None:
        return f"its memory is locked, so it cannot move; remove <locked/> from <memoryBacking>, {service}"
    if top.find("memoryBacking/hugepages") is not None:
        return f"a balloon cannot take huge pages; remove <hugepages/> from <memoryBacking>, {service}"
    return ""


def propose(
    founds: Iterable[Found], host_cpus: int, host_mib: int, kinds: Mapping[str, tuple[Kind, str]]
) -> list[Proposal]:
    """What each domain should become. `kinds`: (kind, source) that the administrator has set, by the domain's name."""
    chosen = []
    for found in sorted(founds, key=lambda f: f.name):
        kind, why = kinds.get(found.name) or guess(found, host_cpus)
        cpus = min(found.cpus, host_cpus)  # a guest may have more virtual CPUs than the host has real ones
        if kind is Kind.SERVICE:
            chosen.append(Proposal(found, kind, why, cpus, 0, found.memory_mib))
        else:
            chosen.append(Proposal(found, kind, why, cpus, floor_mib(found), found.memory_mib, obstacle(found)))
    services = sum(p.memory_mib for p in chosen if p.kind is Kind.SERVICE)
    floors = sum(p.floor_mib for p in chosen if p.kind is not Kind.SERVICE and not p.refused)
    room = host_mib - reserve_mib(chosen) - services
    return [
        p
        if p.kind is Kind.SERVICE or p.refused
        else replace(p, memory_mib=max(p.floor_mib, min(p.memory_mib, room - floors + p.floor_mib)))
        for p in chosen
    ]


def reserve_mib(proposals: Iterable[Proposal]) -> int:
    """Memory that domains never get, in MiB: the host's own, and what each QEMU uses itself."""
    return HOST_MIB + EMULATOR_MIB * sum(1 for p in proposals if p.found.type in ("kvm", "qemu"))


def missing_mib(proposals: Iterable[Proposal], host_mib: int) -> int:
    """How many MiB reserve, services and floors together exceed the host's memory; 0 if they fit."""
    listed = [p for p in proposals if not p.refused]
    taken = sum(p.memory_mib if p.kind is Kind.SERVICE else p.floor_mib for p in listed)
    return max(0, reserve_mib(listed) + taken - host_mib)


# The XML


def adopted_xml(found: Found, socket: str) -> str:
    """The domain's XML with the channel to `socket` and the right balloon attributes. Raises NotAdoptable."""
    top = ET.fromstring(found.xml)
    devices = top.find("devices")
    if devices is None:
        devices = ET.SubElement(top, "devices")
    if found.type == "lxc":
        _add_directory(devices, socket)
        return xml_text(top)
    _add_channel(devices, found, socket)
    if found.type != "xen":  # Xen's balloon is the kernel's own driver, and has no attributes
        balloon = devices.find("memballoon")
        if balloon is None:
            balloon = ET.SubElement(devices, "memballoon")
        if balloon.get("model") != BALLOON["model"]:
            for child in list(balloon):  # the address belongs to the former model's bus
                balloon.remove(child)
        for key, value in BALLOON.items():
            balloon.set(key, value)
    return xml_text(top)


def _add_channel(devices: ET.Element, found: Found, socket: str) -> None:
    port = "xen" if found.type == "xen" else "virtio"
    for channel in devices.findall("channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is None or target.get("name") != CHANNEL:
            continue
        if source is not None and source.get("path") == socket and source.get("mode") == "connect":
            return
        path = source.get("path") if source is not None else None
        raise NotAdoptable(f"its channel {CHANNEL} goes to {path}, not {socket}; remove that <channel> first")
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    source = ET.SubElement(channel, "source", {"mode": "connect", "path": socket})
    ET.SubElement(source, "reconnect", {"enabled": "yes", "timeout": "1"})
    ET.SubElement(channel, "target", {"type": port, "name": CHANNEL})


GUEST_DIRECTORY = "/run/magrathea-host"
"""Where a container finds the directory of the host's socket."""


def _add_directory(devices: ET.Element, socket: str) -> None:
    directory = socket.rpartition("/")[0]
    for mount in devices.findall("filesystem"):
        target, source = mount.find("target"), mount.find("source")
        if target is not None and target.get("dir") == GUEST_DIRECTORY:
            if source is not None and source.get("dir") == directory:
                return
            raise NotAdoptable(f"something else is mounted on {GUEST_DIRECTORY}; remove that <filesystem> first")
    mount = ET.SubElement(devices, "filesystem", {"type": "mount", "accessmode": "passthrough"})
    ET.SubElement(mount, "source", {"dir": directory})
    ET.SubElement(mount, "target", {"dir": GUEST_DIRECTORY})


def xml_text(top: ET.Element) -> str:
    """XML as text, always in the same layout, so that two versions can be compared line by line."""
    ET.indent(top)
    return ET.tostring(top, encoding="unicode") + "\n"


def normalized(xml: str) -> str:
    """`xml` in that layout."""
    return xml_text(ET.fromstring(xml))


# The configuration


def table(proposal: Proposal) -> str:
    """The domain's table in noded.toml."""
    p, name = proposal, proposal.found.name
    lines = [f"[domain.{_key(name)}]", f'kind = "{p.kind.value}"' + f"  # {p.why}", f"cpus = {p.cpus}"]
    lines.append(f"memory_mib = {p.memory_mib}")
    if p.kind is not Kind.SERVICE:
        measured = "its idle use and a margin" if p.found.used_mib is not None else "a guess: it does not run"
        lines += [f"floor_mib = {p.floor_mib}  # {measured}"]
        lines += ["# swap_mib = 0  # the guest's swap, which takes the memory of its stopped jobs"]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def file(proposals: Iterable[Proposal], host: str, mode: str, uri: str) -> str:
    """A whole noded.toml for a host that has none."""
    listed = [p for p in proposals if not p.refused]
    head = [
        "# Magrathea's node daemon, as `magrathea host adopt` found this host; every key: deploy/noded.toml.",
        "",
        "[host]",
        f'name = "{host}"',
        f'mode = "{mode}"',
        'driver = "libvirt"',
        f'uri = "{uri}"',
        f"reserve_mib = {reserve_mib(listed)}  # the host's {HOST_MIB}, and {EMULATOR_MIB} for each QEMU itself",
        "",
        "[hub]",
        "endpoints = []  # no hub yet, so nothing is preempted; then: tcp://SERVER:17017 and the two key files",
        "",
    ]
    return "\n".join(head) + "".join("\n" + table(p) for p in listed)
