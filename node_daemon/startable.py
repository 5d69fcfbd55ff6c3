"""What the node daemon needs on its machine beside a good configuration file; see magrathea/surroundings.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from magrathea.surroundings import (
    no_directory,
    no_group,
    no_place_for_file,
    no_place_for_socket,
    no_port,
    no_socket_path,
)

from .configuration import NodedConfiguration
from .guest_channel.channel import qemu_user
from .hub_keys import HubError, load_pair
from .hypervisor.base import DriverError

LOCK = "noded.lock"


def obstacles(c: NodedConfiguration) -> list[str]:
    """Everything that would keep a daemon with this configuration from starting: sentences with cause and fix."""
    return [one for one in _obstacles(c) if one]


def _obstacles(c: NodedConfiguration) -> Iterator[str]:
    yield no_directory(Path(c.paths.state_dir), "`state_dir` in [paths]")
    yield no_directory(c.run_dir / "guest", "`run_dir` in [paths]")
    yield no_place_for_file(Path(c.paths.state_dir) / LOCK, "`state_dir` in [paths]")
    if c.run_dir.is_dir():
        yield no_directory(c.run_dir, "`run_dir` in [paths]")
    for path in (c.control_socket, *map(c.guest_socket, c.domain)):
        yield no_place_for_socket(str(path), "`run_dir` in [paths]")
    if c.control.group:
        yield no_group(c.control.group, "`group` in [control]")
    for endpoint in c.hub.endpoints:
        if endpoint.startswith("ipc://"):
            yield no_socket_path(endpoint.removeprefix("ipc://"), "`endpoints` in [hub]")
    tcp = [endpoint for endpoint in c.hub.endpoints if endpoint.startswith("tcp://")]
    for endpoint in tcp:
        yield no_port(endpoint, "`endpoints` in [hub]")
    if tcp:
        try:
            load_pair(c.hub.key_file, c.hub.hub_key_file)
        except HubError as error:
            yield str(error)
    if c.host.driver == "libvirt":
        yield from _libvirt(c)


def _libvirt(c: NodedConfiguration) -> Iterator[str]:
    from .hypervisor.libvirt.connection import binding_module

    try:
        binding_module()
    except DriverError as error:
        yield str(error)
    try:
        if os.geteuid() == 0:
            qemu_user(c.host.qemu_user)
    except OSError as error:
        yield str(error)
