"""Domains saved to disk: whether a domain can be saved at all, where libvirt writes its image, how much room is there,
whether an image is whole; saving and restoring. Blocking calls.

libvirt tells nobody where the folder is: it is built into each of its drivers. A libvirtd in a mount namespace of its
own has another file system there, so the folder is looked at as the process behind libvirt's socket sees it. A daemon
that may not do that (its unit lacks CAP_SYS_PTRACE) looks at its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from magrathea.core.refusals import RefusalCode

from ..base import DriverError, SaveNeeds
from .connection import Connection
from .movable import networks
from .pinning import PARTS, Network, pools_of_functions
from .translation import ERROR_CODES

MARGIN_MIB = 64
"""What an image takes beside the guest's memory: devices, its screen's memory, its definition."""
BYTES_OF_MIB = 1 << 20
CONNECT_S = 0.5
NO_IMAGE = "there is none"
UNREADABLE = "libvirt's message contains bytes that are no text, as of a damaged image; libvirtd's log has them"
"""In the place of QEMU's last words: libvirt's Python binding cannot hand these over."""

DEVICES = PARTS | {
    "devices/hostdev[@type='scsi_host']": "a passed-through SCSI controller",
    "devices/filesystem/driver[@type='virtiofs']": "a file system of its host (virtiofs)",
}
"""Parts of a domain's XML whose state cannot be saved: what uses its memory at fixed places, and more."""


def obstacle(xml: str, network: Network) -> str:
    """Which device keeps the domain from being saved, for people; empty if none does. `network`: libvirt's networks."""
    top = ET.fromstring(xml)
    for path, what in DEVICES.items():
        if top.find(path) is not None:
            return f"it has {what}, and what is in there cannot be saved"
    for name in pools_of_functions(top, network):
        return f"its interface has a device's function from the network {name!r}, and what is in there cannot be saved"
    return ""


def folder(kind: str, uri: str) -> Path | None:
    """Where libvirt writes the images of this hypervisor's domains; None if that is unknown or on another machine."""
    parts = urlsplit(uri)
    if parts.netloc:
        return None
    if kind.upper() == "XEN":
        return Path("/var/lib/libvirt/libxl/save")
    if kind.upper() != "QEMU":
        return None
    if parts.path == "/session":
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "libvirt" / "qemu" / "save"
    return Path("/var/lib/libvirt/qemu/save")


def server_pid(uri: str) -> int | None:
    """The process that offers libvirt's socket, which has the same file systems as libvirtd; None if it is not seen."""
    for path in _sockets(uri):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.settimeout(CONNECT_S)
            link.connect(path)
            pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return pid or None
    return None


def _sockets(uri: str) -> list[str]:
    parts = urlsplit(uri)
    if named := parse_qs(parts.query).get("socket"):
        return named
    kind = "virtxend" if parts.scheme == "xen" else "virtqemud"
    base = os.environ.get("XDG_RUNTIME_DIR", "/run") if parts.path == "/session" else "/run"
    return [f"{base}/libvirt/{kind}-sock", f"{base}/libvirt/libvirt-sock"]


def free_mib(place: Path, pid: int | None, proc: Path = Path("/proc")) -> int | None:
    """The room in the folder, as the process `pid` sees it, or else this one. None if it cannot be told."""
    roots = [proc / str(pid) / "root"] if pid is not None else []
    for root in (*roots, Path("/")):
        with contextlib.suppress(OSError):
            found = os.statvfs(root / str(place).lstrip("/"))
            return found.f_bavail * found.f_frsize // BYTES_OF_MIB
    return None


def fault(error: type[Exception], domain: Any) -> str:
    """Why the image of a domain that is down is not what was saved, as its head shows; empty if nothing is wrong.

    libvirt starts a domain anew, without a word, if its image is empty or was never finished.

    Whether all of the memory behind the head is there, only a restore shows. Raises libvirtError if libvirt is gone.
    """
    if domain.isActive():
        return ""
    if not domain.hasManagedSaveImage():
        return NO_IMAGE
    try:
        domain.managedSaveGetXMLDesc(0)
    except error as wrong:
        code = ERROR_CODES.get(wrong.get_error_code())  # type: ignore[attr-defined]
        return "" if code == RefusalCode.NOT_SUPPORTED else str(wrong)
    return ""


def needs(error: type[Exception], connection: Connection, kind: str, uri: str, domain: Any) -> SaveNeeds:
    """What saving the domain takes. Raises libvirtError."""
    place = folder(kind, uri)
    return SaveNeeds(
        mib=domain.info()[2] * 1024 // BYTES_OF_MIB + MARGIN_MIB,
        obstacle=obstacle(domain.XMLDesc(0), networks(error, connection)),
        place="" if place is None else str(place),
        free_mib=None if place is None else free_mib(place, server_pid(uri)),
    )


def save(error: type[Exception], domain: Any, name: str, flag: int) -> None:
    """Save the domain and end it. If that fails, no half image remains. Raises libvirtError, DriverError.

    libvirt refuses a save while another one goes on, which an earlier daemon has begun: its image stays.
    """
    if not domain.isPersistent():
        text = f"domain {name} is transient: libvirt would forget it once saved; `virsh define` it"
        raise DriverError(RefusalCode.NOT_SUPPORTED, text)
    try:
        domain.managedSave(flag)
    except error as wrong:
        busy = ERROR_CODES.get(wrong.get_error_code()) == RefusalCode.TIMEOUT  # type: ignore[attr-defined]
        if not busy and domain.isActive() and domain.hasManagedSaveImage():
            domain.managedSaveRemove()
        raise


def start(error: type[Exception], domain: Any, name: str, may_be_saved: bool) -> None:
    """Start the domain, from its image if it has one. Raises libvirtError, DriverError."""
    saved = may_be_saved and bool(domain.hasManagedSaveImage())
    try:
        domain.create()
    except (error, SystemError) as wrong:
        if domain.isActive():
            return  # somebody else has already started it
        if saved:
            why = UNREADABLE if isinstance(wrong, SystemError) else wrong
            text = f"domain {name} did not come back from its image, which is kept: {why}"
            raise DriverError(
                RefusalCode.RESTORE_FAILED, f"{text}; to give the image up: `virsh managedsave-remove`"
            ) from wrong
        raise
