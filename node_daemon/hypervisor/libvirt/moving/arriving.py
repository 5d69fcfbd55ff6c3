"""The files that an arriving domain needs on this host, and what a failed arrival leaves behind. Blocking calls.

Rule 1: the other host is not trusted with this one's files. A disk is made only in a folder that this host permits for
it, after all links are resolved, and never over an existing file. Its image lies in such a folder, too: else the guest
could read any file. Nothing else but the channel's socket is made.
Rule 2: only what was made here is removed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...moving import Arrival, CopiedDisk, Departure, Premises

FORMATS = ("qcow2", "raw")
MAKE_S = 20.0
"""An empty disk is made in milliseconds; on busy network storage in seconds."""
NETWORK_DEVICES = Path("/sys/class/net")


class CannotMake(Exception):
    """A disk could not be made; the text shows the reason."""


def paths(departure: Departure, premises: Premises) -> dict[str, str]:
    """Each path of the departure that is another one on this host, with that one."""
    named = [*departure.needs, *departure.writes]
    for disk in departure.disks:
        named += [disk.path, disk.backing]
    found = {path: _renamed(path, premises) for path in named}
    if departure.channel:
        found[departure.channel] = premises.channel
    return {path: here for path, here in found.items() if path != here}


def _renamed(path: str, premises: Premises) -> str:
    for folder, here in sorted(premises.renamed.items(), key=lambda pair: -len(pair[0])):  # the innermost folder counts
        if path.startswith(f"{folder.rstrip('/')}/"):
            return here.rstrip("/") + path[len(folder.rstrip("/")) :]
    return path


def lacking(departure: Departure, premises: Premises) -> Iterator[str]:
    """What this host lacks to take the domain, a sentence each with its fix."""
    here = paths(departure, premises)
    for path in departure.needs:
        if not (found := Path(here.get(path, path))).exists():
            yield f"{found} is missing here; copy it from the host that the domain leaves, or share its folder"
    for path in departure.writes:
        if not (folder := Path(here.get(path, path)).parent).is_dir():
            yield f"the folder {folder} is missing here; make it"
    if departure.channel and not (folder := Path(premises.channel).parent).is_dir():
        yield f"the folder {folder} of the guest channel is missing here; is magrathea-noded running?"
    for bridge in departure.bridges:
        if "/" in bridge or not (NETWORK_DEVICES / bridge).exists():
            yield f"the bridge {bridge} is missing here; the domain would lose its network"
    for disk in departure.disks:
        yield from _disk_faults(disk, here.get(disk.path, disk.path), here.get(disk.backing, disk.backing), premises)


def _disk_faults(disk: CopiedDisk, path: str, backing: str, premises: Premises) -> Iterator[str]:
    if disk.format not in FORMATS or (disk.backing and disk.backing_format not in FORMATS):
        yield f"disk {disk.target} has the format {disk.format!r}; only {' and '.join(FORMATS)} are copied"
    if disk.size_bytes <= 0 or not re.fullmatch(r"[a-z0-9]{1,16}", disk.target):
        yield f"disk {disk.target!r} of {disk.size_bytes} bytes is none"
    if backing and not (_is_below(backing, (*premises.disks, *premises.images)) and Path(backing).is_file()):
        folders = ", ".join(premises.images) or "none"
        yield f"disk {disk.target} is an overlay of {backing}; folders for images are here: {folders}"
    if not _is_below(path, premises.disks):
        folders = ", ".join(premises.disks) or "none"
        yield f"disk {disk.target} would be made as {path}; folders for disks of others are here: {folders}"
    elif os.path.lexists(path):
        yield f"disk {disk.target} would be made as {path}, which exists here; remove it if nobody needs it"


def _is_below(path: str, folders: Iterable[str]) -> bool:
    """True if the path lies in one of the folders, after all links to it are resolved."""
    found = Path(path)
    if not found.is_absolute() or found.name in ("", "..") or path.endswith("/"):
        return False
    return any(found.parent.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def prepare(departure: Departure, premises: Premises) -> Arrival:
    """Make what `lacking` does not miss: empty disks, the channel's socket file. Raises CannotMake, OSError; then
    nothing is left behind."""
    here = paths(departure, premises)
    made: list[str] = []
    try:
        for disk in departure.disks:
            path = here.get(disk.path, disk.path)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
            made.append(path)
            _make(disk, path, here.get(disk.backing, disk.backing))
        if departure.channel and not os.path.lexists(premises.channel):
            Path(premises.channel).touch(0o600)  # libvirt requires it; the daemon replaces it when it listens
            made.append(premises.channel)
    except BaseException:
        clear(Arrival(here, tuple(made)))
        raise
    return Arrival(here, tuple(made))


def _make(disk: CopiedDisk, path: str, backing: str) -> None:
    if disk.format == "raw":
        os.truncate(path, disk.size_bytes)
        return
    below = ("-b", backing, "-F", disk.backing_format) if backing else ()
    command = ["qemu-img", "create", "-q", "-f", disk.format, *below, "--", path, str(disk.size_bytes)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=MAKE_S)
    except subprocess.CalledProcessError as error:
        raise CannotMake(f"qemu-img: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMake(f"qemu-img: {error}") from error


def clear(arrival: Arrival) -> None:
    """Remove what was made for the arrival. Raises OSError."""
    for path in arrival.made:
        Path(path).unlink(missing_ok=True)
