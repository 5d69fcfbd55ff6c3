"""The state before the first install, kept beside the server's own files until uninstall has restored it.

Rule 1: it is on disk before anything is changed (`begun`), with what is needed to undo all that may follow. The
wishes come last (`updated`). If an install fails, only those are remembered that it has reached (`failed`). So what
cannot be done never stands in the way of a later install. A later install adds to the record, and removes nothing.
Rule 2: of the attributes that the hub writes on vnodes (`RESTORED`) it keeps the values from before the hub came. If
the hub has already registered a vnode, there is nothing to keep.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE
from magrathea.pbs_text.words import words

from . import kept_resources, queue_names
from .install import DEFAULT_CHUNK, RESOURCES
from .sched_config import InstallError, resources_lines
from .setup_model import InstallOptions, Present

NAME = "server_priv/magrathea-install.json"
RESTORED = ("resources_available.ncpus", "resources_available.mem", "Priority", "resv_enable")


class Record(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`sched_config`: the whole old file, one character a byte. `queues`: those that install created. `vnodes`: old
    attributes, by vnode. `at`: Unix seconds of the first install. `release_before`: the server's attribute of
    kept_resources.py before we set it, empty if it was unset, None if we never set it; `release_ours`: our value.
    `unfinished`: what has failed in the last install; empty if it has ended well. The rest: see InstallOptions."""

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
    keep_consumables: bool = False
    released: list[str] = []
    protecting: list[str] = []
    release_before: str | None = None
    release_ours: str = ""
    unfinished: str = ""

    def options(self) -> InstallOptions:
        """The wishes of earlier installs, without queues that no install can have made (an older release kept them)."""
        return InstallOptions(
            priority=tuple(name for name in self.priority if not queue_names.fault(name)),
            preemptible=tuple(name for name in self.preemptible if not queue_names.fault(name)),
            vnodes=tuple(self.managed),
            heartbeat=self.heartbeat,
            heartbeat_max_age_s=self.heartbeat_max_age_s,
            memory_moves=self.memory_moves,
            keep_consumables=self.keep_consumables,
            released=tuple(self.released),
            protecting=tuple(self.protecting),
        )


def merged(old: InstallOptions, new: InstallOptions, vnodes: set[str], resources: set[str]) -> InstallOptions:
    """The old and the new options together. For a queue or resource the newer option counts. Old vnodes and resources
    that no longer exist (they are not in `vnodes`, `resources`) are dropped."""
    known = resources | kept_resources.BUILT_IN
    return InstallOptions(
        priority=tuple(dict.fromkeys([*(q for q in old.priority if q not in new.preemptible), *new.priority])),
        preemptible=tuple(dict.fromkeys([*(q for q in old.preemptible if q not in new.priority), *new.preemptible])),
        vnodes=tuple(dict.fromkeys([*(v for v in old.vnodes if v in vnodes), *new.vnodes])),
        heartbeat=new.heartbeat,
        heartbeat_max_age_s=new.heartbeat_max_age_s,
        memory_moves=new.memory_moves,
        keep_consumables=new.keep_consumables,
        released=_both(old.released, new.released, known - {*new.protecting}),
        protecting=_both(old.protecting, new.protecting, known - {*new.released}),
    )


def _both(old: tuple[str, ...], new: tuple[str, ...], stay: set[str] | frozenset[str]) -> tuple[str, ...]:
    """The old names that `stay`, and the new ones."""
    return tuple(dict.fromkeys([*(name for name in old if name in stay), *new]))


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
        queues=_created(old, now, wished),
        vnodes=vnodes,
        priority=list(options.priority),
        preemptible=list(options.preemptible),
        managed=list(options.vnodes),
        heartbeat=options.heartbeat,
        heartbeat_max_age_s=options.heartbeat_max_age_s,
        memory_moves=options.memory_moves,
        keep_consumables=options.keep_consumables,
        released=list(options.released),
        protecting=list(options.protecting),
        release_before=_release_before(old, now, options),
        release_ours=kept_resources.value(options) if options.keep_consumables else "",
    )


def _created(old: Record | None, now: Present, wished: list[str]) -> list[str]:
    """Queues that are ours to delete, without those that others have deleted."""
    ours = [name for name in (old.queues if old else []) if name in now.queues or name in wished]
    return list(dict.fromkeys([*ours, *(name for name in wished if name not in now.queues)]))


def _release_before(old: Record | None, now: Present, options: InstallOptions) -> str | None:
    if not options.keep_consumables:
        return None
    if old is not None and old.release_before is not None:
        return old.release_before
    return now.server.get(kept_resources.ATTRIBUTE, "")


INTERRUPTED = "the last install was interrupted"


def begun(old: Record | None, now: Present, options: InstallOptions) -> Record:
    """The record while an install is at work: all that is needed to undo it, and the wishes of the installs before.

    Of the new wishes it has only the vnodes: PBS has them, and uninstall restores those that it finds here.
    """
    record = updated(old, now, options)
    before = old.options() if old else InstallOptions()
    return msgspec.structs.replace(
        record,
        priority=list(before.priority),
        preemptible=list(before.preemptible),
        keep_consumables=before.keep_consumables,
        released=list(before.released),
        protecting=list(before.protecting),
        release_before=record.release_before if record.release_before is not None else old and old.release_before,
        release_ours=record.release_ours or (old.release_ours if old else ""),
        unfinished=INTERRUPTED,
    )


def failed(begun: Record, after: Present, options: InstallOptions, why: str) -> Record:
    """The record after a failure. `after`: what PBS has now. Wishes that were not reached are forgotten."""

    def reached(names: tuple[str, ...], cls: str, before: list[str]) -> list[str]:
        right = {name for name, queue in after.queues.items() if queue.get(DEFAULT_CHUNK) == cls or name in before}
        return [name for name in names if name in right]

    vnodes = [name for name in options.vnodes if after.vnodes.get(name, {}).get("resv_enable") == "False"]
    keeps = set(words(after.server.get(kept_resources.ATTRIBUTE, ""))) == set(words(kept_resources.value(options)))
    return msgspec.structs.replace(
        begun,
        queues=[name for name in begun.queues if name in after.queues],
        priority=reached(options.priority, "priority", begun.priority),
        preemptible=reached(options.preemptible, "preemptible", begun.preemptible),
        managed=vnodes,
        keep_consumables=options.keep_consumables and keeps,
        released=list(options.released) if options.keep_consumables and keeps else [],
        protecting=list(options.protecting) if kept_resources.KEEPS in after.resources else [],
        unfinished=f"the last install has failed: {why}",
    )


def without_queue(record: Record, name: str, now: Present) -> Record:
    """The record after a queue was taken out. If PBS still has it and install created it, it stays ours to delete."""
    return msgspec.structs.replace(
        record,
        priority=[known for known in record.priority if known != name],
        preemptible=[known for known in record.preemptible if known != name],
        queues=[known for known in record.queues if known != name or known in now.queues],
    )


def without_resource(record: Record, name: str) -> Record:
    """The record after a resource was taken out."""
    return msgspec.structs.replace(
        record,
        released=[known for known in record.released if known != name],
        protecting=[known for known in record.protecting if known != name],
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
    """Raises InstallError."""
    path = home / NAME
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}; remove it yourself: nothing else is left") from error
