"""What the hub needs on its machine beside a good configuration file; see magrathea/surroundings.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from magrathea import files
from magrathea.surroundings import cannot_listen, no_directory, no_socket_path

from .configuration import HubConfiguration

LOCK = "lock"


def obstacles(c: HubConfiguration) -> list[str]:
    """Everything that would keep a hub with this configuration from starting: sentences with cause and fix."""
    return [one for one in _obstacles(c) if one]


def _obstacles(c: HubConfiguration) -> Iterator[str]:
    yield no_directory(c.state_dir, "`state_dir` in [hub]")
    for key, path in (("control_socket", c.hub.control_socket), ("heartbeat_file", c.hub.heartbeat_file)):
        yield no_directory(Path(path).parent, f"`{key}` in [hub]")
    yield no_socket_path(c.hub.control_socket, "`control_socket` in [hub]")
    for endpoint in c.ipc:
        path = endpoint.removeprefix("ipc://")
        yield no_socket_path(path, "`listen` in [hub]")
        yield no_directory(Path(path).parent, "`listen` in [hub]")
    if not runs(c.state_dir):  # the hub that runs has the ports
        for endpoint in c.tcp:
            yield cannot_listen(endpoint, "`listen` in [hub]")


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
