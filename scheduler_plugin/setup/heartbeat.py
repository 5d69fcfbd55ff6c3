"""The heartbeat file: the hub touches it, and the server's hook refuses to preempt if it is old.

Rule 1: both must mean the same file. So install and check take its name from the hub's own configuration, and nobody
has to write it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from magrathea import files, places
from magrathea.configuration import ConfigurationError

from ..hub import configuration as hub_configuration
from .checks import DIFFERENT, FIX, OK, Item
from .sched_config import InstallError


def of_hub(hub_file: Path) -> str | None:
    """The file that the hub's configuration names; None without a configuration. Raises InstallError."""
    if not files.exists(hub_file):
        return None
    try:
        return hub_configuration.load_alone(hub_file).hub.heartbeat_file
    except ConfigurationError as error:
        raise InstallError(f"{error}; fix it: install takes the heartbeat file from there") from error


def chosen(given: str | None, hub_file: Path, remembered: str) -> str:
    """The file for the hook: the given one, else the hub's, else that of the last install, else the default.

    Raises InstallError if the hub touches another one than the given: then each preempting job would be refused.
    """
    touched = of_hub(hub_file)
    if given and touched and given != touched:
        raise InstallError(
            f"--heartbeat {given}: the hub touches {touched} (`heartbeat_file` in {hub_file}); leave the option out,"
            " change that file, or name the hub's own configuration with --hub-config"
        )
    return given or touched or remembered or places.HEARTBEAT


def check(hub_file: Path, read_by_hook: str) -> Iterator[Item]:
    """Whether hub and hook mean the same file. Nothing if this machine has no configuration of a hub."""
    try:
        touched = of_hub(hub_file)
    except InstallError as error:
        yield Item("heartbeat", DIFFERENT, str(error), f"magrathea-hub --check --config {hub_file}")
        return
    if touched is None:
        return
    if touched != read_by_hook:
        text = f"the hook reads {read_by_hook}, the hub touches {touched}: each job that would preempt is refused"
        yield Item("heartbeat", DIFFERENT, text, FIX)
    else:
        yield Item("heartbeat", OK)
