"""Whether a domain's memory is pinned, so that a balloon takes none of it from the host. The driver, `magrathea host
adopt` and `magrathea doctor` all ask here.

What is pinned stays in the host's memory although the guest has given it up. QEMU even reports that the balloon has
taken it. If the host gave it to another domain, it would give the same memory twice.

Three sources, each for what the one before cannot tell:
- the XML: devices, backing, encryption, and QEMU's own arguments;
- libvirt's networks: an interface may get a device's function from a pool (`network`);
- the running QEMU: its command line, and what the kernel counts as locked or pinned (`QemuProcess`).
What none of them can tell is noticed when memory moves for the first time (balloons.py).

Not pinned, though it looks like it: USB and SCSI devices, `<allocation mode='immediate'/>`, memory shared with virtiofs
or vhost-user, a hard limit in <memtune>. QEMU gives such memory back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS = {
    "devices/hostdev[@type='pci']": "a passed-through PCI device",
    "devices/hostdev[@type='mdev']": "a mediated device (a share of a GPU, say)",
    "devices/interface[@type='hostdev']": "a passed-through network device",
    "devices/interface[@type='vdpa']": "a vDPA network device",
    "devices/disk[@type='nvme']": "an NVMe disk that QEMU drives itself",
    "devices/disk//backingStore[@type='nvme']": "an NVMe disk that QEMU drives itself",
    "devices/disk[@type='vhostvdpa']": "a vDPA disk",
    "launchSecurity": "encryption of its memory",
}
"""Parts of a domain's XML that let devices or the processor use its memory at fixed places."""
BACKING = {
    "memoryBacking/locked": "its memory is locked: remove <locked/> from <memoryBacking>",
    "memoryBacking/hugepages": "a balloon cannot take huge pages: remove <hugepages/> from <memoryBacking>",
    "devices/memory/source/pagesize": "a balloon cannot take huge pages: remove <pagesize> from the <memory> device",
}
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"

GUESTS = ("sev-guest", "sev-snp-guest", "tdx-guest", "s390-pv-guest", "pef-guest", "arm-rme-guest")
"""QEMU's objects that encrypt a guest's memory."""
DEVICES = ("vfio-", "vhost-vdpa-", "pvrdma", "pci-assign", "kvm-pci-assign")
"""How the names of QEMU's devices begin that pin its guest's memory."""
DISK = re.compile(
    r"""(^|["'.])driver["']?[=:]\s*["']?(nvme|virtio-blk-vhost-vdpa)\b|^(file|filename|file\.filename)=nvme://"""
)
"""A disk that QEMU drives itself, also below a format's driver: of `file.driver=nvme` and of JSON."""
LEAST_LOCKED_MIB = 64
"""A QEMU that locks nothing of its guest may still lock a few MiB, for io_uring say."""

OWN_MIB = 300
"""What QEMU itself uses besides its guest's memory: 257 to 283 MiB were seen (QEMU 7.2)."""
CODE_CACHE_MIB = 1500
"""An emulating QEMU without `tb-size` grows by its code cache as well: 1.4 GiB were seen."""

PROGRAMS = (b"qemu", b"kvm")
"""How the names of QEMU's programs begin."""
LOOK_WAIT_S = 0.3
"""Measured: 5 ms for 300 processes."""
LOOK_S = 1.0
"""A QEMU that starts meanwhile is found when its domain's memory is judged the next time."""

Network = Callable[[str], str | None]
"""The XML of the network with that name; None if it cannot be had."""


def pinned(xml: str, network: Network) -> str:
    """Why all of the domain's memory is pinned by its XML, with what removes it; empty if nothing there pins it."""
    return next(_by_xml(ET.fromstring(xml), network), "")


def _by_xml(top: ET.Element, network: Network) -> Iterator[str]:
    for path, what in PARTS.items():
        if top.find(path) is not None:
            tag = path.rpartition("/")[2].partition("[")[0]
            yield f"{what} pins all its memory: remove the <{tag}>"
    for path, what in BACKING.items():
        if top.find(path) is not None:
            yield what
    for name in pools_of_functions(top, network):
        what = f"its interface gets a device's function from the network {name!r}, which pins all its memory"
        yield f"{what}: use another network"
    arguments = [arg.get("value", "") for arg in top.findall(f"{QEMU}commandline/{QEMU}arg")]
    for what in by_arguments(arguments):
        yield f"an argument of its <qemu:commandline> pins its memory: {what}"


def pools_of_functions(top: ET.Element, network: Network) -> Iterator[str]:
    """The networks from which an interface of the domain gets a device's function."""
    for interface in top.findall("devices/interface[@type='network']"):
        source = interface.find("source")
        name = source.get("network", "") if source is not None else ""
        if (text := network(name) if name else None) is not None and _gives_functions(text):
            yield name


def _gives_functions(network_xml: str) -> bool:
    try:
        forward = ET.fromstring(network_xml).find("forward")
    except ET.ParseError:
        return False
    return forward is not None and forward.get("mode") == "hostdev"


# QEMU's arguments


def by_arguments(arguments: Iterable[str]) -> Iterator[str]:
    """Each of QEMU's arguments that pins the guest's memory, for people."""
    option = ""
    for word in arguments:
        if word.startswith("-"):
            option = "-" + word.lstrip("-")
            continue
        first, settings = _settings(word)
        if _pins(option, first, settings):
            yield f"{option} {word[:200]}"


def _pins(option: str, first: str, settings: dict[str, str]) -> bool:
    match option:
        case "-overcommit":
            return _is_on("mem-lock", first, settings)
        case "-realtime":
            return _is_on("mlock", first, settings)
        case "-device":
            return (settings.get("driver") or first).startswith(DEVICES)
        case "-netdev" | "-nic":
            return (settings.get("type") or first) == "vhost-vdpa"
        case "-drive" | "-blockdev":
            return any(DISK.search(f"{name}={value}") for name, value in settings.items())
        case "-object":
            kind = settings.get("qom-type") or first
            path = settings.get("mem-path", "")
            huge = _is_on("hugetlb", first, settings) or _is_huge(path)
            return kind in (*GUESTS, "iommufd") or (kind.startswith("memory-backend-") and huge)
        case "-machine" | "-M":
            return "memory-encryption" in settings or "confidential-guest-support" in settings
        case "-mem-path":
            return _is_huge(first)
        case _:
            return False


def _is_huge(path: str) -> bool:
    return "huge" in path


def _is_on(name: str, first: str, settings: dict[str, str]) -> bool:
    """QEMU takes a name without a value for `on`."""
    return settings.get(name, "on" if name == first else "off") not in ("off", "no", "false", "n")


def _settings(word: str) -> tuple[str, dict[str, str]]:
    """The first part of an argument's value, and its settings: of `a,b=c` and of JSON alike. A name without a value
    that is not the first is `on`."""
    if word.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(word)
            if isinstance(found, dict):
                return "", {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in found.items()}
    parts = [part.partition("=") for part in word.split(",")]
    settings = {name: value if equals else "on" for name, equals, value in parts[bool(not parts[0][1]) :]}
    return parts[0][0] if not parts[0][1] else "", settings


# The running QEMU


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A domain's QEMU. `locked_mib`: what of its memory the kernel counts as locked or pinned, or is huge pages."""

    arguments: tuple[str, ...]
    locked_mib: int

    def pins(self, memory_mib: int) -> str:
        """Why the guest's memory is pinned; empty if the process shows nothing of that."""
        for what in by_arguments(self.arguments):
            return f"an argument of its QEMU pins its memory: {what}"
        if self.locked_mib > max(LEAST_LOCKED_MIB, memory_mib // 8):
            what = f"{self.locked_mib} MiB locked or pinned, or in huge pages (VmLck, VmPin, HugetlbPages)"
            return f"its QEMU has {what}: find the device or option"
        return ""

    @property
    def own_mib(self) -> int:
        """What it may hold of the host's memory beside its guest's."""
        accel = next((b for a, b in itertools.pairwise(self.arguments) if a == "-accel"), "")
        first, settings = _settings(accel)
        if first != "tcg":
            return OWN_MIB
        cache = settings.get("tb-size", "")
        return OWN_MIB + (int(cache) if cache.isdecimal() and len(cache) < 6 else CODE_CACHE_MIB)


@dataclass(frozen=True, slots=True)
class _FoundQemu:
    pid: str
    start: bytes
    arguments: tuple[str, ...]


class QemuProcesses:
    """The QEMUs that run on this machine, by the uuid of their domain; looked for in /proc.

    Reading a process's command line waits for its memory map, and so for whatever it hangs in. So only QEMUs are read,
    in a thread of its own, and nobody waits for it longer than LOOK_WAIT_S.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._found: dict[str, list[_FoundQemu]] = {}
        self._looked: float | None = None
        self._search: threading.Thread | None = None

    def of(self, uuid: str) -> QemuProcess | None:
        """The QEMU of the domain; None if there is none here, or it cannot be seen.

        If several processes name the uuid, the one with the most locked memory counts: no other process hides it.
        """
        if not self._living(uuid):
            self._look()
        found = []
        for qemu in self._living(uuid):
            with contextlib.suppress(OSError):
                status = (self._proc / qemu.pid / "status").read_text("utf-8", "replace")
                found.append(QemuProcess(qemu.arguments, _locked_kib(status) // 1024))
        return max(found, key=lambda one: one.locked_mib, default=None)

    def _living(self, uuid: str) -> list[_FoundQemu]:
        return [qemu for qemu in self._found.get(uuid, ()) if self._start(qemu.pid) == qemu.start]

    def _start(self, pid: str) -> bytes | None:
        """When the process began, in clock ticks since boot. None if it has ended."""
        try:
            return (self._proc / pid / "stat").read_bytes().rpartition(b")")[2].split()[19]
        except (OSError, IndexError):
            return None

    def _look(self) -> None:
        """Look for all of them, once in LOOK_S at most, and never while an earlier look hangs."""
        now = time.monotonic()
        hangs = self._search is not None and self._search.is_alive()
        if hangs or (self._looked is not None and now - self._looked < LOOK_S):
            return
        self._looked = now
        self._search = threading.Thread(target=self._search_all, name="libvirt-qemus", daemon=True)
        self._search.start()
        self._search.join(LOOK_WAIT_S)

    def _search_all(self) -> None:
        now: dict[str, list[_FoundQemu]] = {}
        for entry in self._proc.iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if not (entry / "comm").read_bytes().startswith(PROGRAMS):
                    continue
                start = self._start(entry.name)
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                if start is not None and "-uuid" in words[:-1]:
                    uuid = words[words.index("-uuid") + 1]
                    now.setdefault(uuid, []).append(_FoundQemu(entry.name, start, tuple(words[1:])))
                    self._found[uuid] = list(now[uuid])
        for uuid in self._found.keys() - now.keys():
            del self._found[uuid]


def _locked_kib(status: str) -> int:
    """Locked, pinned and huge pages are counted apart by the kernel, and a page may be all of it.

    What a process holds (VmRSS) has no huge pages, so the first move of memory would not show them.
    """
    figures = dict(re.findall(r"(?m)^(VmLck|VmPin|HugetlbPages):\s*(\d+) kB$", status))
    return max((int(figure) for figure in figures.values()), default=0)
