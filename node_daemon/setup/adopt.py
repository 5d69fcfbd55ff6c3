"""Which of a host's libvirt domains Magrathea can use, and what must change for that: pure, on XML text and figures.

Rule 1: a guess is shown with its reason. What the administrator says (`--kind`, or the configuration) overrides it. A
guess is made of names and sizes; titles and descriptions are prose, and mean nothing here.
Rule 2: a domain that Magrathea cannot handle is refused with the reason and the fix; as a service it is never touched.
Rule 3: sizes are what the guest has now: processors that are plugged in, memory that is plugged in.
What changes in a domain's XML: domain_xml.py.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from magrathea.core.model import Kind

from ..hypervisor.libvirt.pinning import OWN_MIB
from .domain_xml import NotAdoptable

HOST_MIB = 512
"""For the host itself; the default of `reserve_mib`."""
FLOOR_MARGIN_MIB = 96
"""Added to what a guest uses. With 29 MiB used, MoM with a hook and the agent worked well in 112 MiB, but slowly in
96."""
LEAST_FLOOR_MIB = 128
UNKNOWN_FLOOR_MIB = 512
"""The floor proposed for a domain that does not run: nobody knows what it uses."""
STEP_MIB = 16

QEMU_TYPES = ("kvm", "qemu", "test")
TYPES = (*QEMU_TYPES, "xen", "lxc")

_PRIORITY = re.compile(r"(^|[^a-z])(prio|priority|high|express|urgent)([^a-z]|$)", re.IGNORECASE)
_SERVICE = re.compile(
    r"(^|[^a-z])(service|server|login|mgmt|dns|dhcp|ldap|nfs|db|web|mail|infra)([^a-z]|$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Found:
    """A domain as libvirt has it. `cpus`, `memory_mib`: what is plugged in now, or at its next start if it is down.

    `xml`: its definition. `used_mib`: what the host and the guest use of its memory without any job; None if the domain
    does not run. `pinned`: why its memory cannot be moved (hypervisor/libvirt/pinning.py); empty if it can.
    """

    name: str
    type: str
    cpus: int
    memory_mib: int
    xml: str
    persistent: bool = True
    used_mib: int | None = None
    pinned: str = ""


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


NO_RAM = ("nvdimm", "virtio-pmem", "sgx-epc")
"""Models of memory devices that are files or enclaves. libvirt counts them in the domain's memory."""

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


def parse(xml: str, *, persistent: bool = True, used_mib: int | None = None, live: str = "") -> Found:
    """The domain that `xml` defines, with the sizes that `live` has, its XML of now, if it runs. Raises NotAdoptable if
    it is not libvirt's XML of a domain."""
    try:
        top = ET.fromstring(xml)
        cpus, mib = sizes(ET.fromstring(live) if live else top)
    except (ET.ParseError, ValueError, KeyError) as error:
        raise NotAdoptable(f"its XML cannot be understood ({error!r}); see `virsh dumpxml`") from error
    return Found(top.findtext("name", ""), top.get("type", ""), cpus, mib, xml, persistent, used_mib)


def sizes(top: ET.Element) -> tuple[int, int]:
    """CPUs and MiB that are plugged in. Raises ValueError, KeyError."""
    vcpu = top.find("vcpu")
    cpus = int((vcpu.get("current") or vcpu.text or "") if vcpu is not None else "1")
    mib = _mib(top.find("memory"))
    for device in top.findall("devices/memory"):
        size = _mib(device.find("target/size"))
        if device.get("model") == "virtio-mem":  # it can have `size`, and has what `current` or `requested` says
            now = device.find("target/current")
            mib -= size - _mib(now if now is not None else device.find("target/requested"))
        elif device.get("model") in NO_RAM:
            mib -= size
    return cpus, int(mib)


def _mib(element: ET.Element | None) -> float:
    if element is None:
        return 0.0
    return float((element.text or "").strip()) * _UNITS[element.get("unit", "KiB").lower()]


def guess(found: Found, host_cpus: int) -> tuple[Kind, str]:
    """The domain's probable kind, and the reason for that guess."""
    if match := _PRIORITY.search(found.name):
        return Kind.PRIORITY, f"its name has {match.group(2)!r}"
    if match := _SERVICE.search(found.name):
        return Kind.SERVICE, f"its name has {match.group(2)!r}"
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
    service = f"or keep it out: `--kind {found.name}=service`"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", found.name):
        return f"a domain's name has at most 64 letters, digits, `_`, `.`, `-`; `virsh domrename` it, {service}"
    if found.type not in TYPES:
        return f"domains of type {found.type!r} are not supported (known: {', '.join(TYPES)}); {service}"
    if not found.persistent:
        return f"it is transient, so libvirt would forget it once saved; `virsh define` it, {service}"
    return f"{found.pinned}, {service}" if found.pinned else ""


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
    return HOST_MIB + OWN_MIB * sum(1 for p in proposals if p.found.type in ("kvm", "qemu"))


def missing_mib(proposals: Iterable[Proposal], host_mib: int) -> int:
    """How many MiB reserve, services and floors together exceed the host's memory; 0 if they fit."""
    listed = [p for p in proposals if not p.refused]
    taken = sum(p.memory_mib if p.kind is Kind.SERVICE else p.floor_mib for p in listed)
    return max(0, reserve_mib(listed) + taken - host_mib)


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
        f"reserve_mib = {reserve_mib(listed)}  # the host's {HOST_MIB}, and {OWN_MIB} for each QEMU itself",
        "",
        "[hub]",
        "endpoints = []  # no hub yet, so nothing is preempted; then: tcp://SERVER:17017 and the two key files",
        "",
    ]
    return "\n".join(head) + "".join("\n" + table(p) for p in listed)
