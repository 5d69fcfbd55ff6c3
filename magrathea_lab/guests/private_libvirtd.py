"""A private libvirtd with its own directories, mount and process namespace. It leaves no trace (libvirtd_keeper.py).

Needs root and Debian's packages; needs.py reports what is missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import libvirt

from .. import leftovers
from .image import cache_dir

QEMU_USER = "nobody"
"""Not Debian's libvirt-qemu, which only libvirt-daemon-system makes. Any user but root reveals wrong file permissions.
"""

# errors are raised; do not print them to stderr as well
libvirt.registerErrorHandler(lambda context, error: None, None)


class NoLibvirt(Exception):
    """libvirtd does not work; the text shows its messages."""


class PrivateLibvirtd:
    """One libvirtd in its own folder. `prefix`: the names of all its domains begin with it.

    `enter`: a command that runs another one in the network namespace that has the bridges of its guests. `may_lock`:
    QEMU runs as root with all capabilities, so that it may lock its memory. `address`: other libvirtds reach it there
    by TCP, without a password.
    """

    def __init__(self, enter: Sequence[str] = (), may_lock: bool = False, address: str = "") -> None:
        self._enter = tuple(enter)
        self._may_lock = may_lock
        self._address = address
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder, taken = leftovers.take_directory("magrathea-libvirt-", base)
        self.folder.chmod(0o711)
        self.prefix = f"m{secrets.token_hex(3)}-"
        groups = (f"*/machine/*{self.prefix}*", f"machine*/*{self.prefix}*")
        self._taken = [taken, *(leftovers.take(leftovers.Kind.GROUP, pattern) for pattern in groups)]
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "libvirt-sock"

    def uri(self, kind: str = "qemu") -> str:
        path = "/system" if kind == "qemu" else "/"
        return f"{kind}://{path}?socket={self.socket}"

    def start(self) -> None:
        """Make its directories and configuration, and start it. Raises NoLibvirt."""
        for name in ("etc", "lib", "run", "log", "cache"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "etc" / "libvirtd.conf").write_text(
            'auth_unix_rw = "none"\nauth_unix_ro = "none"\nunix_sock_rw_perms = "0700"\nlog_level = 3\n'
            f'host_uuid = "{uuid.uuid4()}"\n'  # two libvirtds of one machine are two hosts
            f'listen_tls = 0\nlisten_tcp = 1\nlisten_addr = "{self._address}"\nauth_tcp = "none"\n'
        )
        user = "root" if self._may_lock else QEMU_USER
        (self.folder / "etc" / "qemu.conf").write_text(
            f'user = "{user}"\ngroup = "nogroup"\nstdio_handler = "file"\nsecurity_driver = "none"\n'
            f"dynamic_ownership = 1\nremember_owner = 0\nclear_emulator_capabilities = {int(not self._may_lock)}\n"
        )
        known = cache_dir() / "libvirt"
        if known.is_dir():
            shutil.copytree(known, self.folder / "cache", dirs_exist_ok=True)
        self._keeper = subprocess.Popen(
            [
                *self._enter,
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable),
                *(str(Path(__file__).with_name("libvirtd_keeper.py")), str(self.folder), self.prefix),
                *(("--listen",) if self._address else ()),
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        )
        self._taken.append(leftovers.take_process(self._keeper.pid))
        self.start_libvirtd()

    def start_libvirtd(self, within_s: float = 60.0) -> None:
        """Start it unless it runs; it answers afterwards. Raises NoLibvirt."""
        assert self._keeper is not None and self._keeper.stdin is not None
        self._keeper.stdin.write(b"start\n")
        self._keeper.stdin.flush()
        end = time.monotonic() + within_s
        while True:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt.open(self.uri()).close()
                break
            if time.monotonic() > end or self._keeper.poll() is not None:
                raise NoLibvirt(f"libvirtd does not answer within {within_s:g} s: {self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "log" / "libvirtd.log").read_text()[-3000:]
        return "(no log)"

    def processes(self, *words: str) -> list[int]:
        """Processes of this libvirtd's namespace that have these words in their command line; pids as seen from
        outside."""
        assert self._keeper is not None
        inside = _children(self._keeper.pid)
        found = []
        for pid in inside:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if all(word in line for word in words) and "libvirtd_keeper.py" not in line:
                    found.append(pid)
        return found

    def qemu(self, domain: str) -> int:
        """The pid of a domain's QEMU, as seen from outside. Raises NoLibvirt."""
        found = self.processes("qemu-system", f"guest={domain},")
        if not found:
            raise NoLibvirt(f"domain {domain} has no QEMU")
        return found[0]

    def kill_libvirtd(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the signal; after SIGKILL, wait for its end. Raises ProcessLookupError if it does not run."""
        found = self.processes("libvirtd", "-f")
        if not found:
            raise ProcessLookupError("no libvirtd runs")
        os.kill(found[0], number)
        end = time.monotonic() + 10
        while number == signal.SIGKILL and Path(f"/proc/{found[0]}").exists() and time.monotonic() < end:
            time.sleep(0.005)

    def close(self) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            # libvirtd needs seconds to find out QEMU's capabilities
            shutil.copytree(self.folder / "cache", cache_dir() / "libvirt", dirs_exist_ok=True)
            self._keeper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is killed below
                self._keeper.wait(leftovers.ENDING_S)
        leftovers.undo_all(self._taken)
        self._taken = []


def _children(root: int) -> list[int]:
    """All descendants of a process. Orphans belong to the keeper, so the list is complete."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found
