"""What a private OpenPBS cluster needs on this machine, and where its files fit."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from ..processes import namespaces_refused

TOOLS = {
    "unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "ip": "iproute2", "hostname": "hostname",
    "su": "util-linux", "psql": "postgresql",
}  # fmt: skip
"""The Debian package of each program."""
ROOT = 0
SET_UID = ("sbin/pbs_iff", "sbin/pbs_rcp")
"""Programs that prove to the server which user calls. Without set-uid root every command fails with `Unauthorized
Request`."""
TRIAL = "ip link add cluster0 type bridge && ip link add v0 type veth peer name v1"
MEMORY = "/dev/shm"
ROOM_BYTES = 2 * 2**30
"""A cluster of nine machines uses some 200 MB."""


def missing(exec_dir: str = "/opt/pbs") -> str | None:
    """What this machine lacks for a private OpenPBS cluster; None if it has everything."""
    here = Path(exec_dir)
    if not (here / "sbin/pbs_server").exists():
        return f"OpenPBS is not installed in {exec_dir}"
    if os.geteuid() != 0:
        return "a private OpenPBS cluster needs root (network and mount namespaces)"
    if lacking := sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None}):
        return f"programs are missing; as root: apt-get install --no-install-recommends {' '.join(lacking)}"
    return broken(exec_dir) or namespaces_refused("net", "pid", "mount", "uts", "ipc", trial=TRIAL)


def broken(exec_dir: str = "/opt/pbs") -> str | None:
    """Why the installed OpenPBS cannot work at all; None if it can, or if none is installed."""
    here = Path(exec_dir)
    if not (here / "sbin/pbs_server").exists():
        return None
    return _without_rights(here) or _without_libraries(here)


def _without_rights(exec_dir: Path) -> str | None:
    if os.statvfs(exec_dir).f_flag & os.ST_NOSUID:
        return f"{exec_dir} is on a file system mounted with nosuid, but {' and '.join(SET_UID)} must be set-uid root"
    for name in SET_UID:
        found = (exec_dir / name).stat()
        if found.st_uid != ROOT or not found.st_mode & stat.S_ISUID:
            file = exec_dir / name
            return f"{file} is not set-uid root; as root: chown root {file} && chmod 4755 {file}"
    return None


def _without_libraries(exec_dir: Path) -> str | None:
    """Why PBS's server cannot be loaded: an upgrade of this machine may have removed a library that it needs."""
    servers = [file for name in ("pbs_server.bin", "pbs_mom") if (file := exec_dir / "sbin" / name).exists()]
    for server in servers:
        lines = subprocess.run(["ldd", str(server)], capture_output=True, text=True, check=False).stdout.splitlines()
        if lacking := [line.split()[0] for line in lines if line.endswith("not found")]:
            return f"{server} needs libraries that are not installed: {', '.join(lacking)}"
    return None


def in_memory() -> str | None:
    """A file system in memory with room for a cluster; None if there is none.

    A cluster is thousands of small files. Starting and removing one with four machines took 20.6 and 6.7 s on a disk
    mounted with `discard`, but 13.5 and 0.1 s in memory.
    """
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES and os.path.ismount(MEMORY)
    return MEMORY if roomy else None
