"""What `magrathea doctor` checks of a host's libvirt domains: can their memory move, can their balloon do harm, and
does its channel lead to the daemon? It judges by the same functions as `magrathea host adopt` and the driver."""

from __future__ import annotations

import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from magrathea.core.model import Kind
from magrathea.doctor import Check, Status, unseen

from ..configuration import DomainTable, NodedConfiguration
from ..hypervisor.libvirt.movable import NO_BALLOON, networks, pinned_now, process_of
from ..hypervisor.libvirt.pinning import QemuProcesses
from ..hypervisor.libvirt.translation import has_balloon
from .domain_xml import CHANNEL, NotAdoptable, check_channel

HOST = "host"
LIBVIRT_S = 5.0
"""A libvirtd that hangs accepts connections and never answers."""


def domains(c: NodedConfiguration) -> Iterator[Check]:
    """Checks of each working domain that libvirt has."""
    found: list[Check] = []
    done = threading.Event()

    def look() -> None:
        found.extend(_look(c))
        done.set()

    threading.Thread(target=look, name="doctor-libvirt", daemon=True).start()
    if done.wait(LIBVIRT_S):
        yield from found
        return
    cause = f"libvirt at {c.host.uri} has not answered for {LIBVIRT_S:g} s"
    yield Check(HOST, "libvirt", Status.WARN, "the domains could not be looked at", cause, "systemctl status libvirtd")


def _look(c: NodedConfiguration) -> list[Check]:
    try:
        import libvirt
    except ImportError as error:
        fix = "pip install magrathea[libvirt], or Debian's python3-libvirt"
        return [Check(HOST, "libvirt", Status.FAIL, "libvirt's Python binding is missing", str(error), fix)]
    libvirt.registerErrorHandler(lambda context, error: None, None)  # its errors are raised, so do not print them too
    try:
        connection = libvirt.openReadOnly(c.host.uri)
    except libvirt.libvirtError as error:
        if os.geteuid() != 0:
            return [unseen(HOST, "libvirt", f"libvirt at {c.host.uri}")]
        fix = "is libvirtd running, is `uri` in [host] right, may you use it?"
        return [Check(HOST, "libvirt", Status.WARN, "the domains could not be looked at", str(error), fix)]
    processes, checks = QemuProcesses(), []
    try:
        for name, table in c.domain.items():
            if table.kind is not Kind.SERVICE:
                checks += _domain(c, name, table, libvirt.libvirtError, connection, processes)
    finally:
        connection.close()
    return checks


def _domain(
    c: NodedConfiguration,
    name: str,
    table: DomainTable,
    error: type[Exception],
    connection: Any,
    processes: QemuProcesses,
) -> list[Check]:
    own = c.libvirt_name(name)
    try:
        domain = connection.lookupByName(own)
        xml, kind = domain.XMLDesc(0), connection.getType()
        why = pinned_now(xml, networks(error, connection), domain, process_of(domain, processes))
        autostart = c.sleeps_at_shutdown(name) and bool(domain.autostart())
    except error as problem:
        fix = f"`virsh list --all` shows what libvirt has; `libvirt.name` in [domain.{name}] names it"
        return [Check(HOST, f"libvirt-{name}", Status.FAIL, f"{name} could not be looked at", str(problem), fix)]
    return [
        _memory(name, table, kind, xml, why),
        *_channel(c, name, xml),
        *(_autostart(name, own) if autostart else ()),
    ]


def _autostart(name: str, libvirt_name: str) -> Iterator[Check]:
    text = f"libvirt restores {name} before its turn when the machine has booted"
    cause = "it is to sleep when the machine shuts down, and has `autostart`"
    yield Check(HOST, f"autostart-{name}", Status.WARN, text, cause, f"virsh autostart --disable {libvirt_name}")


def _memory(name: str, table: DomainTable, kind: str, xml: str, why: str) -> Check:
    where = f"movable-{name}"
    if not has_balloon(kind, xml):
        why = NO_BALLOON
    if why and table.memory_mib and table.floor_mib < table.memory_mib:
        fix = f"that, or set `floor_mib` in [domain.{name}] to {table.memory_mib}: then nobody counts on its memory"
        return Check(HOST, where, Status.FAIL, f"the memory of {name} cannot be moved", why, fix)
    if why:
        return Check(HOST, where, Status.OK, f"the memory of {name} stays where it is, and is not counted on")
    balloon = ET.fromstring(xml).find("devices/memballoon")
    if kind.upper() == "QEMU" and balloon is not None and balloon.get("autodeflate") != "on":
        text = f"the balloon of {name} may kill its jobs"
        fix = "magrathea host adopt --apply, then shut the domain down and start it"
        return Check(HOST, where, Status.FAIL, text, "it has no autodeflate='on'", fix)
    return Check(HOST, where, Status.OK, f"nothing pins the memory of {name}")


def _channel(c: NodedConfiguration, name: str, xml: str) -> Iterator[Check]:
    top = ET.fromstring(xml)
    if top.get("type") == "lxc":
        return
    where, socket = f"channel-{name}", str(c.guest_socket(name))
    try:
        there = check_channel(top, top.get("type", ""), socket)
    except NotAdoptable as error:
        fix = "correct it with `virsh edit`, then shut the domain down and start it"
        yield Check(HOST, where, Status.FAIL, f"the agent of {name} cannot reach the daemon", str(error), fix)
        return
    if there:
        yield Check(HOST, where, Status.OK, f"the channel of {name} leads to {socket}")
    else:
        fix = "magrathea host adopt --apply, then shut the domain down and start it"
        cause = f"its XML has no channel {CHANNEL}"
        yield Check(HOST, where, Status.FAIL, f"the agent of {name} cannot reach the daemon", cause, fix)
