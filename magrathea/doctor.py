"""Checks of a machine: the types, the places of the parts' files, and checks that several parts share.

The parts bring their own checks (entry-point group `magrathea.doctor`, objects of class `Part`). `magrathea doctor`
(cli/doctor.py) runs those that belong to this machine.

Rule 1: a check changes nothing, ends by a deadline, and never raises; a failure is a `Check` too.
Rule 2: whatever is not ok has a cause and a fix.
Rule 3: what only root may look at is `skip` for others, never a failure. What is so for good is a `note`, no warning.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from magrathea import places
from magrathea.pbs_text.conf import DEFAULT_CONF, read_conf

ENTRY_POINTS = "magrathea.doctor"
CONNECT_S = 2.0
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
TIMEX_BYTES = 208


class Status(StrEnum):
    """Only WARN and FAIL count for the exit code."""

    OK = "ok"
    NOTE = "note"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One result. `part`: server, host or guest. `name` is for programs and never changes; the texts are for people."""

    part: str
    name: str
    status: Status
    text: str
    cause: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Paths:
    """The parts' files on this machine."""

    pbs: Path = Path(DEFAULT_CONF)
    hub: Path = Path(places.HUB_CONFIGURATION)
    noded: Path = Path(places.NODED_CONFIGURATION)
    agent: Path = Path("/etc/magrathea/agent.json")


@dataclass(frozen=True, slots=True)
class Part:
    """A part that may be on this machine. `here`: the file that proves it, or "". `checks`: its checks."""

    name: str
    here: Callable[[Paths], str] = field(repr=False)
    checks: Callable[[Paths], Iterator[Check]] = field(repr=False)


def is_closed(error: OSError) -> bool:
    """True if root could have looked."""
    return isinstance(error, PermissionError) and os.geteuid() != 0


def unseen(part: str, name: str, what: object) -> Check:
    """The result of a check that this user may not make."""
    cause = f"only root and its owner may look at {what}; this is uid {os.geteuid()}"
    return Check(part, name, Status.SKIP, "not looked at", cause, "run this as root to see it, too")


def of_pbs_conf(path: Path) -> Mapping[str, str]:
    """This machine's PBS configuration; {} if there is none."""
    try:
        return read_conf(path)
    except OSError:
        return {}


def clock(part: str) -> Check:
    """Checks that the kernel reports a synchronised clock: deadlines and histories are compared between machines."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    if 0 <= state < TIME_ERROR:
        return Check(part, "clock", Status.OK, "the clock is synchronised")
    fix = "run chrony or systemd-timesyncd here, or on the machine whose clock this one shares"
    return Check(part, "clock", Status.WARN, "the clock is not synchronised", "the kernel reports it (adjtimex)", fix)


def endpoint(part: str, name: str, address: str, fix: str) -> Check:
    """Checks that somebody listens at a ZeroMQ address, `ipc:///path` or `tcp://host:port`."""
    try:
        _connect(address)
    except OSError as error:
        if is_closed(error):
            return unseen(part, name, address)
        cause = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return Check(part, name, Status.FAIL, f"nobody answers at {address}", cause, fix)
    return Check(part, name, Status.OK, f"{address} is open")


def _connect(address: str) -> None:
    if address.startswith("ipc://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_S)
            connection.connect(address.removeprefix("ipc://"))
        return
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
        pass


def private(part: str, name: str, path: Path) -> Check:
    """Checks that only its owner may read a file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if is_closed(error):
            return unseen(part, name, path)
        fix = "make keys with `magrathea keys`, and copy this one here"
        return Check(part, name, Status.FAIL, f"{path} cannot be used", error.strerror or str(error), fix)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        fix = f"chmod 600 {path}; if it is a key, consider it known and make another"
        return Check(
            part, name, Status.FAIL, f"other users may read {path}", f"its mode is {stat.S_IMODE(mode):04o}", fix
        )
    return Check(part, name, Status.OK, f"only its owner can read {path}")


def writable(part: str, name: str, directory: Path, least_mib: int = 100) -> Check:
    """Checks that a directory for state exists and has room. For root nothing can be said about permissions."""
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            return Check(
                part, name, Status.FAIL, f"{directory} cannot be used", "it is no directory", "remove the file"
            )
        room = os.statvfs(directory)
    except OSError as error:
        if is_closed(error):
            return unseen(part, name, directory)
        fix = f"install -d {directory}, for the daemon's user"
        return Check(part, name, Status.FAIL, f"{directory} cannot be used", error.strerror or str(error), fix)
    mib = room.f_bavail * room.f_frsize // 2**20
    if mib < least_mib:
        cause = f"{mib} MiB are free, less than {least_mib}"
        return Check(
            part, name, Status.FAIL, f"{directory} has too little room", cause, "make room on that file system"
        )
    return Check(part, name, Status.OK, f"{directory} has {mib} MiB free")
