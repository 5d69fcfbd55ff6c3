"""A whole Debian with systemd, under QEMU: it boots, does what a folder says, and tells it on its console.

The disk is made of Debian's packages by mmdebstrap, and cached. A run never changes it. The folder comes on a second
disk; its `run.sh` is started when systemd has reached multi-user.target.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .image import NoImage, cache_dir
from .xml import CODE_CACHE_MIB

SUITE = "bookworm"
PACKAGES = ("systemd-sysv", "python3-minimal", "libpython3-stdlib", "linux-image-cloud-amd64")
DISK_MIB = 1024
MEMORY_MIB = 768
BUILD_S = 600
NO_GETTY = "systemd.mask=serial-getty@ttyS0.service"
"""A getty hangs the console up when it starts, and what run.sh prints from then on is lost."""
SERVICE = """[Unit]
Description=What this run is for
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mount /dev/vdb /mnt && exec sh /mnt/run.sh >/dev/ttyS0 2>&1'
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""
FORMAT = 1
"""Part of the cache's name: raise it if the same packages now make a different disk."""


def missing() -> str | None:
    """What this machine lacks; None if it has everything but perhaps a network."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [tool for tool in ("mmdebstrap", "mke2fs", "qemu-system-x86_64") if shutil.which(tool, path=path) is None]
    if absent:
        return (
            f"a whole Debian needs {', '.join(absent)} (as root: apt-get install mmdebstrap e2fsprogs qemu-system-x86)"
        )
    if os.uname().machine != "x86_64":
        return f"it is built for x86_64, this machine is {os.uname().machine}"
    return None if os.geteuid() == 0 else "a whole Debian is built as root"


@dataclass(frozen=True, slots=True)
class Disk:
    kernel: Path
    initrd: Path
    root: Path


def build(cache: Path | None = None) -> Disk:
    """The disk, from the cache or newly made in a minute. Raises NoImage."""
    if (why := missing()) is not None:
        raise NoImage(why)
    cache = cache or cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps([FORMAT, SUITE, PACKAGES, SERVICE, DISK_MIB]).encode()).hexdigest()[:12]
    folder = cache / f"debian-{key}"
    with (cache / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at the same time make one disk
        if not folder.exists():
            _make(folder)
    return Disk(folder / "vmlinuz", folder / "initrd", folder / "root")


def _run(*command: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_S, check=True, env={**os.environ, "PATH": path}
        )
    except subprocess.CalledProcessError as error:
        raise NoImage(f"{command[0]}: {error.stderr.strip()[-600:]}") from error
    except subprocess.TimeoutExpired as error:
        raise NoImage(f"{command[0]} did not end within {BUILD_S} s") from error


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as name:
        root, ready = Path(name) / "root", Path(name) / "ready"
        ready.mkdir()
        _run("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root))
        units = root / "etc" / "systemd" / "system"
        (units / "run.service").write_text(SERVICE)
        (units / "multi-user.target.wants").mkdir(exist_ok=True)
        (units / "multi-user.target.wants" / "run.service").symlink_to("../run.service")
        (root / "etc" / "hostname").write_text("guest\n")
        shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), ready / "vmlinuz")
        shutil.copyfile(next((root / "boot").glob("initrd.img-*")), ready / "initrd")
        make_disk(ready / "root", root, DISK_MIB)
        ready.rename(folder)


def make_disk(target: Path, content: Path, mib: int) -> None:
    """Make a disk with a file system that has these files. Raises NoImage."""
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(content), str(target), f"{mib}M")


def boot(disk: Disk, folder: Path, content: Path, mib: int, *, reboots: bool = False) -> subprocess.Popen[bytes]:
    """Start a guest with `content` on its second disk. In `folder` are then its `console` and the socket of its
    channel, `channel`, on which QEMU listens. Its clock is wrong by years. The process ends when it powers off, and at
    a reboot unless it `reboots`: then it boots again with what it has written to its disk."""
    make_disk(folder / "second", content, mib)
    command = [
        *("qemu-system-x86_64", "-accel", f"tcg,tb-size={CODE_CACHE_MIB}", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-display", "none", "-rtc", "base=2026-01-01T00:00:00"),
        *(() if reboots else ("-no-reboot",)),
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd)),
        *("-append", f"root=/dev/vda rw console=ttyS0 quiet no_timer_check systemd.show_status=0 {NO_GETTY}"),
        *("-serial", f"file:{folder / 'console'}"),
        *("-drive", f"file={disk.root},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={folder / 'second'},format=raw,if=virtio"),
        *("-chardev", f"socket,path={folder / 'channel'},server=on,wait=off,id=channel"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=org.magrathea.0"),
    ]
    with (folder / "qemu.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
