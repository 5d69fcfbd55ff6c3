"""A guest made from Debian's packages: a kernel and an initial RAM disk. The disk has busybox, Python, the agent, and a
MoM that the caller chooses. Only packages are downloaded; root is not needed.

The disk is two archives, one after the other; Linux unpacks both. The base archive is made of packages and cached
under a name that is derived from its content. The second holds this repository's few files and is always written anew.

Rule 1: what every guest has besides packages lies in root/, as plain files. Its init keeps `/sbin/service mom` and
`/sbin/service agent` running; the caller provides /sbin/service (`trees`).
Rule 2: an image in the cache is complete or absent: it is written under another name and then renamed.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from .cpio import Archive

HERE = Path(__file__).parent
AGENT = HERE.parents[1] / "node_daemon" / "agent"

KERNEL = "linux-image-cloud-amd64"
"""A package that depends on the newest kernel's package."""
PACKAGES = (
    "busybox-static",
    "libc6",
    "libexpat1",
    "libffi8",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",  # provides json, which python3.11-minimal lacks
    "python3.11-minimal",
    "zlib1g",
)
MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_balloon",
    "drivers/char/virtio_console",
    "drivers/block/virtio_blk",
    "crypto/lzo",
    "crypto/lzo-rle",
    "mm/zsmalloc",
    "drivers/block/zram/zram",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",  # also serves the ISA device
    "drivers/acpi/button",
    "drivers/input/evdev",
)
"""Loaded in this order."""
NETWORK_MODULES = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")

DROPPED = (
    *("usr/share", "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/ensurepip", "usr/lib/python3.11/idlelib"),
    *("usr/lib/python3.11/lib2to3", "usr/lib/python3.11/unittest", "usr/lib/python3.11/distutils"),
    *("usr/lib/python3.11/xmlrpc", "usr/lib/python3.11/wsgiref", "usr/lib/python3.11/turtle.py"),
    *("lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/audit"),
    *("etc", "lib/systemd", "usr/lib/systemd"),
)
"""Left out to save memory: a guest has little, and the disk takes its share."""

FORMAT = 1
"""Part of the base's cache name: raise it if the same packages now make a different base."""


class NoImage(Exception):
    """The image cannot be made; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Image:
    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True)
class Extra:
    """What a guest has beyond the plain one. `tree`: a directory to copy to the guest's root, last.

    `packages` and `modules` (paths below the kernel's directory, without `.ko`, loaded last) are part of the cached
    base.
    """

    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    tree: Path | None = None


NOTHING_MORE = Extra()


def missing() -> str | None:
    """What this machine lacks to make an image; None if it has everything."""
    absent = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if absent:
        return f"guests are built of Debian's packages, and this machine has no {', '.join(absent)}"
    if os.uname().machine != "x86_64":
        return f"guests are built for x86_64, this machine is {os.uname().machine}"
    return None


def cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "magrathea" / "guests"


def build(target: Path, trees: Sequence[Path], cache: Path | None = None, extra: Extra = NOTHING_MORE) -> Image:
    """Make an image in the directory `target`, with the files of `trees` at its root. Raises NoImage."""
    if (why := missing()) is not None:
        raise NoImage(why)
    kernel, base = _base(cache or cache_dir(), extra)
    initrd = target / "initrd"
    with base.open("rb") as source, initrd.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
        with Archive(file) as archive:
            for path, mode, content in own_files(trees, extra):
                archive.add(path, mode, content)
            if extra.tree is not None:
                archive.tree(extra.tree)
    copy = target / "vmlinuz"
    shutil.copyfile(kernel, copy)
    return Image(copy, initrd)


def own_files(trees: Sequence[Path], extra: Extra = NOTHING_MORE) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and content of each of this repository's files in an image."""
    for module in sorted(AGENT.glob("*.py")):
        yield f"usr/lib/magrathea-agent/{module.name}", 0o644, module.read_bytes()
    for tree in (HERE / "root", *trees):
        for file in sorted(tree.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                mode = 0o755 if file.stat().st_mode & 0o100 else 0o644
                yield str(file.relative_to(tree)), mode, file.read_bytes()
    names = [Path(module).name for module in (*MODULES, *extra.modules)]
    yield "etc/modules", 0o644, "".join(f"{name}\n" for name in names).encode()


# The base


def _base(cache: Path, extra: Extra) -> tuple[Path, Path]:
    """Kernel and base archive, from the cache or newly made. Raises NoImage."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at the same time make one image
        wanted = (KERNEL, *PACKAGES, *extra.packages)
        key = hashlib.sha256(json.dumps([FORMAT, wanted, extra.modules, MODULES]).encode()).hexdigest()[:12]
        versions = _versions(wanted)
        if versions is None:  # no package lists: use what was made before
            found = sorted(cache.glob(f"{key}-*"), key=lambda path: path.stat().st_mtime)
            if not found:
                raise NoImage("the package lists are missing or too old; run `apt-get update`, with a network")
            folder = found[-1]
        else:
            folder = cache / f"{key}-{hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:12]}"
        if not folder.exists():
            _make_base(folder, list(versions or ()), extra)
            for old in cache.glob(f"{key}-*"):
                if old != folder:
                    shutil.rmtree(old)
        return folder / "vmlinuz", folder / "base"


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=True)
    except subprocess.CalledProcessError as error:
        raise NoImage(f"{' '.join(command)}: {error.stderr.strip() or error.stdout.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoImage(f"{' '.join(command)}: {error}") from error
    return done.stdout


def _versions(wanted: Sequence[str]) -> list[str] | None:
    """`name=version` of each package; the kernel's own package replaces the one that depends on it."""
    try:
        depends = _run("apt-cache", "depends", KERNEL).split()
        kernel = next((word for word in depends if word.startswith("linux-image-") and word != KERNEL), None)
        if kernel is None:
            return None
        names = sorted({kernel, *wanted} - {KERNEL})
        shown = _run("apt-cache", "show", "--no-all-versions", *names)
    except NoImage:
        return None
    found: dict[str, str] = {}
    name = ""
    for line in shown.splitlines():
        key, _, value = line.partition(": ")
        if key == "Package":
            name = value
        elif key == "Version":
            found.setdefault(name, value)
    return [f"{one}={found[one]}" for one in names] if set(names) <= found.keys() else None


def _make_base(folder: Path, packages: list[str], extra: Extra) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as name:
        work = Path(name)
        for part in ("deb", "root", "kernel", "ready"):
            (work / part).mkdir()
        # apt warns that its own user cannot write here; it verifies the files nevertheless
        _run("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages, cwd=work / "deb")
        for deb in sorted((work / "deb").iterdir()):
            _run("dpkg-deb", "-x", str(deb), str(work / ("kernel" if deb.name.startswith("linux-image") else "root")))
        root = work / "root"
        for path in DROPPED:
            if (root / path).is_dir():
                shutil.rmtree(root / path)
            else:
                (root / path).unlink(missing_ok=True)
        _compile(root)
        with (work / "ready" / "base").open("wb") as file, Archive(file) as archive:
            archive.tree(root)
            for link in ("bin/sh", "init"):
                archive.link(link, "/bin/busybox")
            archive.link("usr/bin/python3", "python3.11")
            for folder_name in ("proc", "sys", "dev", "run", "tmp", "root", "var/lib/magrathea", "var/spool"):
                archive.folder(folder_name, 0o1777 if folder_name == "tmp" else 0o755)
            for module in (*MODULES, *extra.modules):
                found = next((work / "kernel").glob(f"**/kernel/{module}.ko"), None)
                if found is None:
                    raise NoImage(f"the kernel's package has no module {module}")
                archive.add(f"lib/modules/{found.name}", 0o644, found.read_bytes())
        shutil.copyfile(next((work / "kernel" / "boot").glob("vmlinuz-*")), work / "ready" / "vmlinuz")
        (work / "ready").rename(folder)


def _compile(root: Path) -> None:
    """Compile Python's own modules beforehand: an emulated processor needs seconds for it."""
    library = root / "usr/lib/python3.11"
    if sys.version_info[:2] == (3, 11):
        unchecked = PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(library, quiet=2, stripdir=str(root), invalidation_mode=unchecked)
    elif (python := shutil.which("python3.11")) is not None:
        _run(python, "-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash", str(library))
