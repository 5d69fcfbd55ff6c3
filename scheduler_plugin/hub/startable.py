"""What the hub needs on its machine beside a good configuration file; see magrathea/surroundings.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from magrathea import files, places
from magrathea.surroundings import cannot_listen, no_directory, no_place_for_file, no_place_for_socket

from .configuration import HubConfiguration
from .ledger import NAME as BOOKS
from .owners import NAME as OWNERS
from .trips import NAME as TRIPS

LOCK = "lock"
FORMER_STATE_DIR = Path("/var/lib/magrathea/hub")
"""The default before; a hub that begins with empty books does not know which jobs it has suspended."""


def obstacles(c: HubConfiguration) -> list[str]:
    """Everything that would keep a hub with this configuration from starting: sentences with cause and fix."""
    return [one for one in _obstacles(c) if one]


def _obstacles(c: HubConfiguration) -> Iterator[str]:
    yield no_directory(c.state_dir, "`state_dir` in [hub]")
    yield _left_behind(c.state_dir)
    yield no_directory(Path(c.hub.control_socket).parent, "`control_socket` in [hub]")
    yield _no_place(c, c.hub.heartbeat_file, "`heartbeat_file` in [hub]")
    yield no_place_for_file(Path(c.hub.heartbeat_file), "`heartbeat_file` in [hub]")
    for name in (LOCK, BOOKS, OWNERS, TRIPS):
        yield no_place_for_file(c.state_dir / name, "`state_dir` in [hub]")
    yield no_place_for_socket(c.hub.control_socket, "`control_socket` in [hub]")
    for endpoint in c.ipc:
        path = endpoint.removeprefix("ipc://")
        yield no_place_for_socket(path, "`listen` in [hub]")
        yield _no_place(c, path, "`listen` in [hub]")
    if not runs(c.state_dir):  # the hub that runs has the ports
        for endpoint in c.tcp:
            yield cannot_listen(endpoint, "`listen` in [hub]")


def _left_behind(state_dir: Path) -> str:
    """Why the books of a hub that had the former default would be missed; empty if there are none, or new ones."""
    former = FORMER_STATE_DIR
    if state_dir != Path(places.HUB_STATE_DIR) or files.exists(state_dir / BOOKS) or not files.exists(former / BOOKS):
        return ""
    return (
        f"{former} holds the books of a hub, and {state_dir}, the default of `state_dir` in [hub] now, holds none; "
        f'write state_dir = "{former}" in [hub], or move {former / BOOKS} to {state_dir}'
    )


def _no_place(c: HubConfiguration, path: str, where: str) -> str:
    """Why there can be no file `path`. The hub makes directories for its state and its control socket, and no other."""
    made = {
        one for directory in (c.state_dir, Path(c.hub.control_socket).parent) for one in (directory, *directory.parents)
    }
    directory = Path(path).parent
    if directory not in made and not os.path.lexists(directory):
        return f"{directory} does not exist; install -d -o USER {directory}, or fix {where}"
    return no_directory(directory, where)


def runs(state_dir: Path) -> bool:
    """True if a hub with this state directory runs now."""
    if not files.exists(state_dir / LOCK):
        return False
    try:
        os.close(files.lock(state_dir / LOCK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
