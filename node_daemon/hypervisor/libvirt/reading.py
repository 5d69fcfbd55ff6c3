"""Reads from libvirt how its domains are and what their hypervisor can do. Blocking calls, for one thread.

Rule 1: a domain that vanishes while it is read is down. If a domain exists but cannot be read, only its own reading is
unknown (`DomainReading.known`). Every other failure is libvirt's, not a domain's state: it is raised.
Rule 2: domains that the configuration does not name are services, which are only counted (`Others`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from magrathea.core.refusals import RefusalCode

from ..base import DomainReading, Others
from . import images
from .connection import Connection
from .movable import DomainMemory, MovableMemory
from .own_caps import OwnCaps
from .translation import ERROR_CODES, NO_DOMAIN, CpuControl, cpu_control, is_paused, is_up

log = logging.getLogger(__name__)

KIB = 1024
XEN_HOST = 0
"""The id of Xen's first domain, which is the host's own system. The configured reserve covers what it needs."""


@dataclass(frozen=True, slots=True)
class LibvirtReading:
    """A domain's reading. `id`: libvirt's number of this run of the domain; a restart changes it."""

    actual: DomainReading
    id: int


DOWN = LibvirtReading(DomainReading(up=False), -1)
UNREAD = LibvirtReading(DomainReading(up=True, known=False), -1)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the hypervisor behind the connection can do.

    `undefined`: the configured domains that it does not have. `sure`: False if no domain could tell how CPU is capped,
    for reasons that may pass. For example, a libvirtd that has just started has not found its domains yet. `limits`:
    what nobody can fix; `said`: the rest.
    """

    kind: str
    cpu: CpuControl | None
    save: bool
    move: bool
    undefined: frozenset[str]
    said: tuple[str, ...]
    limits: tuple[str, ...]
    sure: bool = True


@dataclass(frozen=True, slots=True)
class AllReadings:
    """All readings. `others`: None if one of the services could not be read. `unread`: the reason, by the domain's
    name. `memory`: of each working domain that exists and could be read."""

    found: Mapping[str, LibvirtReading]
    others: Others | None
    unread: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, DomainMemory] = field(default_factory=dict)


class Reader:
    """`libvirt`: its binding. `names`: libvirt's name of each configured domain. `services`: domains that are never
    changed. `left_out`: libvirt's names of domains that are on their way to or from here, and no services."""

    def __init__(
        self,
        libvirt: Any,
        names: Mapping[str, str],
        services: frozenset[str],
        movable: MovableMemory,
        own_caps: OwnCaps,
        left_out: frozenset[str],
    ) -> None:
        self._left_out = left_out
        self._own_caps = own_caps
        self._movable = movable
        self._names = names
        self._ours = {own: name for name, own in names.items()}
        self._services = services
        self._error = libvirt.libvirtError
        self._live = int(libvirt.VIR_DOMAIN_AFFECT_LIVE)
        self._config = int(libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def read(self, connection: Connection, abilities: Abilities) -> AllReadings:
        """Read all domains. Raises libvirtError."""
        found = dict.fromkeys(self._names, DOWN)
        unread: dict[str, str] = {}
        memory: dict[str, DomainMemory] = {}
        all_counted = True
        count = cpus = mib = 0
        for domain in connection.listAllDomains(0):
            name = self._ours.get(domain.name())
            try:
                if name is not None:
                    if name not in self._services:
                        memory[name] = self._movable.of(self._error, connection, abilities.kind, name, domain)
                    found[name] = self._one(name, domain, abilities, memory.get(name))
                elif domain.name() in self._left_out:
                    continue
                elif is_up((info := domain.info())[0]) and not (abilities.kind == "Xen" and domain.ID() == XEN_HOST):
                    count, cpus, mib = count + 1, cpus + info[3], mib + info[1] // KIB
            except self._error as error:
                if self._is_gone(domain):
                    log.debug("%s has gone while it was read: %s", domain.name(), error)
                elif name is None:
                    log.debug("%s cannot be read: %s", domain.name(), error)
                    all_counted = False
                else:
                    found[name], unread[name] = UNREAD, str(error)
        return AllReadings(found, Others(count, cpus, mib) if all_counted else None, unread, memory)

    def _one(self, name: str, domain: Any, abilities: Abilities, memory: DomainMemory | None) -> LibvirtReading:
        state, reason = domain.state()
        info = domain.info()
        saved = abilities.save and bool(domain.hasManagedSaveImage())
        movable = memory is None or not memory.why
        up = is_up(state)
        image_fault = images.fault(self._error, domain) if saved and not up else ""
        percent = None
        if up and abilities.cpu is not None:
            own = self._own_caps.of(name, domain)
            percent = abilities.cpu.percent(domain.schedulerParametersFlags(self._live), info[3], own)
            if percent is None and abilities.cpu.percent(own, info[3]) is not None:
                percent = self._own_caps.covered.get(name)
        actual = DomainReading(
            up=up,
            cpu_percent=percent,
            memory_mib=self._memory_kib(abilities.kind, domain, info) // KIB if up and movable else None,
            saved=saved,
            paused_externally=is_paused(state, reason),
            max_memory_mib=info[1] // KIB,
            image_fault=image_fault,
        )
        return LibvirtReading(actual, domain.ID() if up else -1)

    def _memory_kib(self, kind: str, domain: Any, info: list[int]) -> int:
        """What the domain has. For a container this is its limit, since `info` reports what it uses."""
        if kind.upper() != "LXC":
            return info[2]
        return min(int(domain.memoryParameters(self._live)["hard_limit"]), info[1])

    def _is_gone(self, domain: Any) -> bool:
        """True if the domain is down or no longer exists.

        Raises libvirtError if libvirt cannot tell even that: domains survive a libvirtd that dies.
        """
        try:
            return not domain.isActive()
        except self._error as error:
            if error.get_error_code() == NO_DOMAIN:
                return True
            raise

    def ask(self, connection: Connection, silent: bool) -> Abilities:
        """Ask the domains themselves what this hypervisor can do. Raises libvirtError.

        `silent`: the hypervisor does not report when domains start or stop.
        """
        kind = str(connection.getType())
        present = {d.name(): d for d in connection.listAllDomains(0)}
        domains = {name: present[own] for name, own in self._names.items() if own in present}
        workers = {name: domain for name, domain in domains.items() if name not in self._services}
        undefined = frozenset(self._names.keys() - domains.keys())
        cpu, said, sure = self._ask_cpu(kind, workers)
        limits: list[str] = []
        save, why = bool(workers) and kind.upper() != "LXC", "libvirt's containers have none"
        for domain in workers.values() if save else ():
            try:
                domain.hasManagedSaveImage()
            except self._error as error:
                if ERROR_CODES.get(error.get_error_code()) == RefusalCode.NOT_SUPPORTED:
                    save, why = False, str(error)
        if workers and not save:
            limits.append(f"{kind} does not save domains to disk, so they cannot be frozen: {why}")
        if not (move := kind.upper() == "QEMU"):
            limits.append(f"running domains of {kind} are not moved to other hosts: only QEMU's can be")
        if silent:
            limits.append(f"{kind} does not report when its domains start or stop; Magrathea polls them")
        return Abilities(kind, cpu, save, move, undefined, tuple(said), tuple(limits), sure)

    def _ask_cpu(self, kind: str, domains: Mapping[str, Any]) -> tuple[CpuControl | None, list[str], bool]:
        """Returns how CPU is capped, notes for people, and whether the answer is final."""
        if not domains:
            return None, [], True
        why, sure = "its scheduler has neither quota nor cap nor weight", True
        live = [(domain, self._live) for domain in domains.values() if domain.isActive()]
        for domain, flags in (*live, *((domain, self._config) for domain in domains.values())):
            try:  # a booting domain may have no control group yet; its configuration has the same parameters
                control = cpu_control(kind, domain.schedulerParametersFlags(flags))
            except self._error as error:
                why = str(error)
                sure = sure and ERROR_CODES.get(error.get_error_code()) == RefusalCode.NOT_SUPPORTED
                continue
            if control is not None:
                weak = f"{kind} caps CPU only by weight ({control.name}): a preempted domain's stray processes use more"
                return control, [weak] if control.full else [], True
        return None, [f"{kind} cannot cap CPU: {why}"], sure
