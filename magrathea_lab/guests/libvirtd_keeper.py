"""Keeps a private libvirtd and all that it starts, and leaves nothing behind. Run by private_libvirtd.py:

    unshare --mount --pid --fork --kill-child --mount-proc python3 libvirtd_keeper.py FOLDER PREFIX [OPTION...]

It is the first process of its own process namespace: when it ends, by whatever signal, the kernel ends libvirtd and all
guests. It ends when its standard input closes, so also when the test run is killed. Then it removes FOLDER and the
control groups of domains whose names begin with PREFIX. `start` on its standard input starts libvirtd (again), with
these options.

A libvirtd that crashes is started again at once, as systemd does it with Debian's unit. libvirtd 9.0 crashes if a
container ends during a query about it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

PLACES = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "run": "/run/libvirt", "log": "/var/log/libvirt"}
CACHE = "/var/cache/libvirt"
USERS = {"/etc/passwd": "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin", "/etc/group": "libvirt-qemu:x:64055:"}
"""Debian's libvirtd needs this user even if it uses another one; only the package libvirt-daemon-system makes it."""
KVM = Path("/dev/kvm")
CGROUPS = Path("/sys/fs/cgroup")
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
MOST_CRASHES = 5
"""After so many crashes libvirtd is not started any more."""


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def arrange(folder: Path) -> None:
    """Put FOLDER's files in libvirt's fixed places, within this mount namespace only."""
    for name, place in {**PLACES, "cache": CACHE}.items():
        Path(place).mkdir(parents=True, exist_ok=True)
        mount("--bind", str(folder / name), place)
    for file, entry in USERS.items():
        known = Path(file).read_text()
        if not any(line.startswith("libvirt-qemu:") for line in known.splitlines()):
            copy = folder / Path(file).name
            copy.write_text(f"{known}{entry}\n")
            mount("--bind", str(copy), file)
    if KVM.exists():
        # If libvirtd may use this device but QEMU's user may not, libvirtd asks QEMU for its capabilities with each
        # call.
        node = folder / "kvm"
        os.mknod(node, stat.S_IFCHR, KVM.stat().st_rdev)
        node.chmod(0o666)
        mount("--bind", str(node), str(KVM))
    if (CGROUPS / "cpu").exists() and (CGROUPS / "unified").exists():
        # libvirt's container driver fails if both versions are mounted.
        subprocess.run(["umount", str(CGROUPS / "unified")], check=True)


class Libvirtd:
    """The libvirtd of this namespace."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self._folder = folder
        self._options = options
        self._pid = 0
        self._crashes = 0

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._pid:
            return
        for left in ("libvirtd.pid", "libvirt-sock"):
            (self._folder / "run" / left).unlink(missing_ok=True)
        log = os.open(self._folder / "log" / "libvirtd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        command = ["libvirtd", "-f", "/etc/libvirt/libvirtd.conf", "-p", "/run/libvirt/libvirtd.pid", *self._options]
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            os.dup2(nothing, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.execvp(command[0], command)
        os.close(log)
        os.close(nothing)

    def reap(self, number: int, frame: FrameType | None) -> None:
        """Reap every orphan: libvirt notices a QEMU's end only then."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._pid = 0
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) in CRASHES and self._crashes < MOST_CRASHES:
                    self._crashes += 1
                    self.start()


def clean(folder: Path, prefix: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):  # no process is left
        os.kill(-1, signal.SIGKILL)
    groups = [group for group in CGROUPS.glob(f"*/machine/*{prefix}*") if group.is_dir()]
    groups += [group for group in CGROUPS.glob(f"machine*/*{prefix}*") if group.is_dir()]
    for _ in range(100):
        groups = [group for group in groups if not removed(group)]
        if not groups:
            break
        time.sleep(0.02)  # the last processes are about to end
    shutil.rmtree(folder, ignore_errors=True)


def removed(group: Path) -> bool:
    try:
        for inner, _, _ in os.walk(group, topdown=False):
            Path(inner).rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def main() -> int:
    folder, prefix, options = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ending: Callable[[int, FrameType | None], None] = lambda number, frame: sys.exit(0)  # noqa: E731
    signal.signal(signal.SIGTERM, ending)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the test run to handle
    try:
        arrange(folder)
        libvirtd = Libvirtd(folder, options)
        signal.signal(signal.SIGCHLD, libvirtd.reap)
        for line in sys.stdin:
            if line.strip() == "start":
                libvirtd.start()
    finally:
        clean(folder, prefix)
    return 0


if __name__ == "__main__":
    sys.exit(main())
