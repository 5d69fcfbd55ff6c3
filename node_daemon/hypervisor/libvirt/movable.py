"""Which domains' memory can be moved, as libvirt and the running QEMU show it. Blocking calls, for one thread.

Rule 1: an answer holds for one run of a domain, until libvirt reports a change of its devices, REREAD_S at most.
Rule 2: a domain without a balloon and one with pinned memory (pinning.py) are treated alike: they keep all they have.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

from .connection import Connection
from .pinning import CODE_CACHE_MIB, OWN_MIB, Network, QemuProcess, QemuProcesses, pinned
from .translation import has_balloon

REREAD_S = 30.0
AGAIN_S = 2.0
"""A domain whose QEMU runs and was not seen is judged again so soon."""

NO_BALLOON = "it has no balloon: let `magrathea host adopt` add one"
"""Why the memory of a domain without a balloon is not moved."""


@dataclass(frozen=True, slots=True)
class DomainMemory:
    """`why`: why the domain's memory is not moved; empty if it can be. `own_mib`: what its hypervisor may hold beside
    it."""

    why: str
    own_mib: int = OWN_MIB


def networks(error: type[Exception], connection: Connection) -> Network:
    """libvirt's networks, as pinning.py asks for them."""

    def network(name: str) -> str | None:
        try:
            return str(connection.networkLookupByName(name).XMLDesc(0))
        except error:
            return None  # another daemon's network, or none: what QEMU locks shows it

    return network


def process_of(domain: Any, processes: QemuProcesses) -> QemuProcess | None:
    """The domain's QEMU, if it runs and can be seen. Raises libvirtError."""
    return processes.of(domain.UUIDString()) if domain.isActive() else None


def pinned_now(xml: str, network: Network, domain: Any, process: QemuProcess | None) -> str:
    """Why the domain's memory is pinned, by its XML and its QEMU; empty if nothing shows it. Raises libvirtError."""
    if why := pinned(xml, network):
        return why
    return process.pins(domain.info()[1] // 1024) if process is not None else ""


class MovableMemory:
    """The answers for the domains of one driver, by their names. Only `of` calls libvirt."""

    def __init__(self) -> None:
        self._processes = QemuProcesses()
        self._known: dict[str, tuple[tuple[int, int], float, DomainMemory]] = {}
        self._changes: dict[str, int] = {}
        self._kept: dict[str, tuple[int, str]] = {}

    def of(self, error: type[Exception], connection: Connection, kind: str, name: str, domain: Any) -> DomainMemory:
        """The domain's memory now. Raises libvirtError."""
        run, now = domain.ID(), time.monotonic()
        version = (run, self._changes.get(name, 0))
        known = self._known.get(name)
        if known is None or known[0] != version or now >= known[1]:
            memory, is_whole = self._read(error, connection, kind, domain)
            known = self._known[name] = (version, now + (REREAD_S if is_whole else AGAIN_S), memory)
        return self.unless_kept(name, run, known[2])

    def _read(
        self, error: type[Exception], connection: Connection, kind: str, domain: Any
    ) -> tuple[DomainMemory, bool]:
        """The domain's memory, and whether its QEMU could be seen if it runs."""
        xml = domain.XMLDesc(0)
        if not has_balloon(kind, xml):
            return DomainMemory(NO_BALLOON), True
        is_qemu = kind.upper() == "QEMU"
        process = process_of(domain, self._processes) if is_qemu else None
        why = pinned_now(xml, networks(error, connection), domain, process)
        emulates = ET.fromstring(xml).get("type") == "qemu"
        own = process.own_mib if process is not None else OWN_MIB + (CODE_CACHE_MIB if emulates else 0)
        return DomainMemory(why, own), process is not None or not is_qemu or not domain.isActive()

    def changed(self, name: str) -> None:
        """The domain's devices have changed, or it has started or ended."""
        self._changes[name] = self._changes.get(name, 0) + 1

    def keeps(self, name: str, run: int, why: str) -> None:
        """In this run of the domain, its hypervisor has kept what the balloon took."""
        self._kept[name] = (run, why)

    def unless_kept(self, name: str, run: int, memory: DomainMemory) -> DomainMemory:
        """`memory`, unless the hypervisor has kept the domain's memory in this run (`keeps`)."""
        kept = self._kept.get(name)
        return DomainMemory(kept[1]) if kept is not None and kept[0] == run else memory
