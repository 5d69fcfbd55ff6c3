"""What a private libvirtd and its guests need on this machine. Imports nothing of it, not even libvirt's binding."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..processes import namespaces_refused
from . import image as guest_image

PACKAGES = {
    "libvirtd": "libvirt-daemon",
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
}
"""The Debian package of each program."""
BINDING = "libvirt's Python binding is missing (`pip install magrathea[libvirt]`: libvirt-dev, gcc, pkg-config)"


def missing(drivers: Sequence[str] = ("qemu",)) -> str | None:
    """What this machine lacks for guests of these libvirt drivers (qemu, lxc); None if it has everything."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [package for tool, package in PACKAGES.items() if shutil.which(tool, path=path) is None]
    for driver in drivers:
        if not list(Path("/usr/lib").glob(f"*/libvirt/connection-driver/libvirt_driver_{driver}.so")):
            absent.append(f"libvirt-daemon-driver-{driver}")
    if absent:
        names = " ".join(absent)
        return f"Debian's packages {names} are missing (as root: apt-get install --no-install-recommends {names})"
    if importlib.util.find_spec("libvirt") is None:
        return BINDING
    if os.geteuid() != 0:
        return "a private libvirtd with control groups needs root"
    return namespaces_refused("mount", "pid") or guest_image.missing()
