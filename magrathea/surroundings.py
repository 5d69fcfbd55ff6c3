"""What a program needs around its configuration before it can start: directories, groups, addresses.

`--check` asks these questions, and so does each start, before anything is opened. So what `--check` calls good starts.

Rule 1: a question changes nothing and waits for nobody. Its answer is a sentence with cause and fix, or "".
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

SOCKET_PATH_BYTES = 107
"""Longest path of a unix socket on Linux (unix(7)), without its closing zero."""
PORTS = range(1, 65536)


def no_directory(path: Path, where: str) -> str:
    """Why this user cannot keep files in the directory, or make it. `where`: the key that names it."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{path} cannot be a directory: {there} is none; fix {where}"
    if not os.access(there, os.W_OK | os.X_OK):
        made = "it" if there == path else f"{there}, where it would be made,"
        cause = f"{path} cannot be used: uid {os.geteuid()} may not write to {made}"
        return f"{cause} or it is mounted read-only; install -d -o USER {path}, or fix {where}"
    return ""


def no_group(name: str, where: str) -> str:
    """Why members of the group cannot be known."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return f"there is no group {name!r}; groupadd {name}, or fix {where}"
    return ""


def no_socket_path(path: str, where: str) -> str:
    """Why no unix socket can have this path."""
    if (length := len(os.fsencode(path))) > SOCKET_PATH_BYTES:
        return f"the path of a socket has {length} bytes, {SOCKET_PATH_BYTES} are possible: {path}; shorten {where}"
    return ""


def no_place_for_socket(path: str, where: str) -> str:
    """Why no unix socket can be made with this path: its length, or something else there.

    Only an old socket is replaced, or an empty file: libvirt wants a file in the place of a guest's socket when it
    starts the guest before the daemon. Any other file has been named by mistake.
    """
    return no_socket_path(path, where) or _in_the_way(Path(path), _may_become_socket, "a socket", where)


def _may_become_socket(found: os.stat_result) -> bool:
    return stat.S_ISSOCK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_size == 0)


def no_place_for_file(path: Path, where: str) -> str:
    """Why a daemon cannot keep a file with this path: something else is there."""
    return _in_the_way(path, lambda found: stat.S_ISREG(found.st_mode), "a file", where)


def _in_the_way(path: Path, is_right: Callable[[os.stat_result], bool], wanted: str, where: str) -> str:
    try:
        found = path.lstat()
    except OSError:
        return ""  # nothing is there; no_directory knows the rest
    if is_right(found):
        return ""
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file")
    return f"{path} is {kind}, and {wanted} has to be there; remove it, or fix {where}"


_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Of `tcp://HOST:PORT`; IPv6 addresses without their brackets."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port[:9])


def no_port(endpoint: str, where: str) -> str:
    """Why the endpoint's port is none."""
    if host_and_port(endpoint)[1] not in PORTS:
        return f"{endpoint}: ports go from {PORTS.start} to {PORTS.stop - 1}; fix {where}"
    return ""


def cannot_listen(endpoint: str, where: str) -> str:
    """Why nobody can listen at `tcp://ADDRESS:PORT` now."""
    if wrong := no_port(endpoint, where):
        return wrong
    address, port = host_and_port(endpoint)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("" if address == "*" else address, port))
            one.listen(1)
    except socket.gaierror as error:
        if address in (name for _, name in socket.if_nameindex()):
            return ""
        what = f"{address} is no interface of this machine, and no address is known for it ({error.strerror})"
        return f"nobody can listen at {endpoint}: {what}; fix {where}"
    except OSError as error:
        fix = f"find out who has it: ss -ltnp 'sport = :{port}'" if error.errno == errno.EADDRINUSE else f"fix {where}"
        return f"nobody can listen at {endpoint}: {os.strerror(error.errno or 0)}; {fix}"
    return ""
