"""The state before the first install, kept beside the server's own files until uninstall has restored it.

Rule 1: it is on disk before anything is changed. A later install adds to it, and removes nothing.
Rule 2: of the attributes that the hub writes on vnodes (`RESTORED`) it keeps the values from before the hub came. If
the hub has already registered a vnode, there is nothing to keep.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE

from .install import RESOURCES
from .sched_config import InstallError, resources_lines
from .setup_model import InstallOptions, Present

NAME = "server_priv/magrathea-install.json"
RESTORED = ("resources_available.ncpus", "resources_available.mem", "Priority", "resv_enable")


class Record(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`sched_config`: the whole old file, one character a byte. `queues`: those that install created. `vnodes`: old
    attributes, by vnode. `at`: Unix seconds of the first install. The rest: see InstallOptions."""

    version: int = 1
    at: float
    sched_config: str
    queues: list[str] = []
    vnodes: dict[str, dict[str, str]] = {}
    priority: list[str] = []
    preemptible: list[str] = []
    managed: list[str] = []
    heartbeat: str = ""
    heartbeat_max_age_s: float = 30.0
    memory_moves: bool = False

    def options(self) -> InstallOptions:
        return InstallOptions(
            priority=tuple(self.priority),
            preemptible=tuple(self.preemptible),
            vnodes=tuple(self.managed),
            heartbeat=self.heartbeat,
            heartbeat_max_age_s=self.heartbeat_max_age_s,
            memory_moves=self.memory_moves,
        )


def merged(old: InstallOptions, new: InstallOptions, vnodes: set[str]) -> InstallOptions:
    """The old and the new options together. For a queue the newer option counts; vnodes not in `vnodes` no longer
    exist, and are dropped."""
    return InstallOptions(
        priority=tuple(dict.fromkeys([*(q for q in old.priority if q not in new.preemptible), *new.priority])),
        preemptible=tuple(dict.fromkeys([*(q for q in old.preemptible if q not in new.priority), *new.preemptible])),
        vnodes=tuple(dict.fromkeys([*(v for v in old.vnodes if v in vnodes), *new.vnodes])),
        heartbeat=new.heartbeat,
        heartbeat_max_age_s=new.heartbeat_max_age_s,
        memory_moves=new.memory_moves,
    )


def updated(old: Record | None, now: Present, options: InstallOptions) -> Record:
    """The record for an install that finds `now`. Raises InstallError if a file cannot be parsed."""
    ours = any(word.strip() in RESOURCES for line in resources_lines(now.sched_config) for word in line[2].split(","))
    wished = [*options.priority, *options.preemptible]
    vnodes = dict(old.vnodes) if old else {}
    for name, attributes in now.vnodes.items():
        if name not in vnodes and name not in now.managed:
            vnodes[name] = {key: attributes[key] for key in RESTORED if key in attributes}
    return Record(
        at=old.at if old else time.time(),
        sched_config=old.sched_config if old and ours else now.sched_config,
        queues=[*(old.queues if old else []), *(name for name in wished if name not in now.queues)],
        vnodes=vnodes,
        priority=list(options.priority),
        preemptible=list(options.preemptible),
        managed=list(options.vnodes),
        heartbeat=options.heartbeat,
        heartbeat_max_age_s=options.heartbeat_max_age_s,
        memory_moves=options.memory_moves,
    )


def load(home: Path) -> Record | None:
    """The record in this PBS_HOME; None if there is none. Raises InstallError."""
    path = home / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}; run this as root on the server's machine") from error
    except UNDECODABLE as error:
        raise InstallError(
            f"{path} is damaged ({error}); restore it from a backup, or remove it: then the values that vnodes had"
            " before Magrathea are lost"
        ) from error


def save(home: Path, record: Record) -> None:
    """Write the record. Raises InstallError."""
    path = home / NAME
    try:
        files.replace(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n", sync=True)
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}; run this as root on the server's machine") from error


def remove(home: Path) -> None:
    (home / NAME).unlink(missing_ok=True)
