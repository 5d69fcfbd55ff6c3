"""Records what a run of the laboratory takes of this machine, so that the next run can remove what a killed run left.

    taken = take(Kind.DIRECTORY, "/dev/shm/mgpbs-x1y2")     # before it is made
    ...
    taken.undo()                                            # remove it, and forget it

    clear()                                                 # at the start of tests, demo and benchmarks

Rule 1: a thing is recorded before it is taken. So whenever a run is killed, everything that it leaves has a record.
Rule 2: only things of processes that have ended are removed, because other runs may be active on this machine.
Rule 3: a record names its owner by pid, start time and boot. So it never matches a later process with the same pid.
Rule 4: undoing works in the same way for an owner and for a later run, and may be repeated.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from node_daemon.hypervisor.local.cgroups import own_groups

from . import processes
from .waiting import NotInTime, until

RECORDS = Path("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()) / f"magrathea-lab-{os.getuid()}"
"""Not in TMPDIR if that can be avoided: the next run may have another one."""
SWAP_LOCK = Path("/tmp/magrathea-test-swap.lock")
OWNER = "MAGRATHEA_LAB_OWNER"
"""An environment variable of all processes that a run starts; it names the run's owner."""
CGROUPS = Path("/sys/fs/cgroup")
ENDING_S = 60.0
"""A keeper ends by itself within seconds of its owner's end. One that still runs after this time is stuck."""


class Kind(StrEnum):
    """What can be taken, in the order of undoing: the users of a thing end before the thing is removed."""

    PROCESS = "process"
    """`pid start`: a keeper and all its descendants."""
    MARKED = "marked"
    """`NAME=value`: all processes that have this in their environment."""
    GROUP = "group"
    """Control groups of the node daemon with this name, or those that match a pattern below /sys/fs/cgroup."""
    SWAP = "swap"
    """A zram device that is used as swap."""
    DIRECTORY = "directory"
    """A directory with all its content, or a symbolic link."""


class UntrustedRecords(Exception):
    """Another user can write to the folder of records, so none of them can be trusted."""


@dataclass(frozen=True)
class Owner:
    """A process. `boot` and `namespace` are part of its identity: a pid means nothing without them."""

    pid: int
    start: int
    boot: str
    namespace: str

    def has_ended(self) -> bool:
        """True if the process has ended; False if it runs or cannot be seen from here."""
        if self.boot != _boot():
            return True
        return self.namespace == _namespace() and processes.start_ticks(self.pid) != self.start


@dataclass(frozen=True)
class Taken:
    """A thing that was taken, with its record."""

    record: Path
    owner: Owner
    kind: Kind
    what: str

    def undo(self) -> None:
        """Give the thing back and remove its record. Raises OSError, subprocess.SubprocessError, NotInTime."""
        if self.owner.boot == _boot() or self.kind is Kind.DIRECTORY:  # a reboot has undone all other kinds
            UNDO[self.kind](self.what)
        self.record.unlink(missing_ok=True)
        with suppress(OSError):  # other records are in the folder
            RECORDS.rmdir()

    def __str__(self) -> str:
        return f"{self.kind} {self.what} of process {self.owner.pid}, which has ended"


def this_process() -> Owner:
    start = processes.start_ticks(os.getpid())
    assert start is not None
    return Owner(os.getpid(), start, _boot(), _namespace())


def take(kind: Kind, what: str) -> Taken:
    """Record that this process takes `what`. Raises UntrustedRecords."""
    owner = this_process()
    taken = Taken(RECORDS / f"{owner.pid}-{secrets.token_hex(6)}.json", owner, kind, what)
    new = taken.record.with_suffix(".new")
    while True:
        _require_ours()
        with suppress(FileNotFoundError):  # another process has just removed its last record and the folder
            new.write_text(json.dumps({"owner": asdict(owner), "kind": kind, "what": what}), encoding="utf-8")
            new.rename(taken.record)
            return taken


def take_process(pid: int) -> Taken:
    """Record a keeper. It ends by itself with its owner, so it may be recorded right after its start."""
    return take(Kind.PROCESS, f"{pid} {processes.start_ticks(pid) or 0}")


def take_directory(prefix: str, base: str | Path | None = None) -> tuple[Path, Taken]:
    """Make a new directory with a unique name, for this user only. Raises OSError, UntrustedRecords."""
    path = Path(base or tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(4)}"
    taken = take(Kind.DIRECTORY, str(path))
    path.mkdir(mode=0o700)
    return path, taken


def undo_all(taken: Iterable[Taken]) -> None:
    """Undo all in the right order. Raises OSError, subprocess.SubprocessError, NotInTime."""
    for one in sorted(taken, key=lambda one: list(Kind).index(one.kind)):
        one.undo()


def begin_run() -> tuple[Taken, list[str]]:
    """Remove what other runs left, and mark all processes that this one starts from now on. Raises UntrustedRecords.

    Returns what to undo at the end, and a line for each thing that was removed.
    """
    cleared = clear()
    owner = this_process()
    os.environ[OWNER] = f"{owner.pid}.{owner.start}"
    return take(Kind.MARKED, f"{OWNER}={os.environ[OWNER]}"), cleared


def mark() -> dict[str, str]:
    """The mark of this run as environment variables, for environments that are built by hand; {} if it has none."""
    return {name: value for name, value in os.environ.items() if name == OWNER}


def clear() -> list[str]:
    """Undo everything left by owners that have ended; return a line for each thing. Raises UntrustedRecords."""
    cleared = []
    with _alone() as records:
        left = [taken for taken in records if taken.owner.has_ended()]
        for taken in sorted(left, key=lambda one: list(Kind).index(one.kind)):
            try:
                with swap_alone() if taken.kind is Kind.SWAP else nullcontext():
                    taken.undo()
            except (OSError, subprocess.SubprocessError, NotInTime) as error:  # its record stays for the next run
                cleared.append(f"{taken}: cannot be cleared: {error}")
            else:
                cleared.append(str(taken))
    return cleared


@contextmanager
def swap_alone() -> Iterator[None]:
    """Inside the `with` no other run turns swap on or off, or relies on it."""
    with SWAP_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone() -> Iterator[list[Taken]]:
    """All records, under a lock: two runs that start at the same time clear one after the other."""
    try:
        folder = os.open(RECORDS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield []
        return
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _require_ours()
        yield list(_read())
    finally:
        os.close(folder)


def _read() -> Iterator[Taken]:
    for record in sorted(RECORDS.glob("*.json")):
        with suppress(FileNotFoundError):  # its owner has just undone it
            said = json.loads(record.read_text(encoding="utf-8"))
            yield Taken(record, Owner(**said["owner"]), Kind(said["kind"]), said["what"])


def _require_ours() -> None:
    """Raise UntrustedRecords if another user may write to the records: what they name is removed, perhaps by root."""
    RECORDS.mkdir(mode=0o700, exist_ok=True)
    found = RECORDS.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UntrustedRecords(
            f"{RECORDS} must be a directory of user {os.getuid()} that nobody else may use; remove it"
        )


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


# How each kind is undone


def _end_process(what: str) -> None:
    pid, start = map(int, what.split())
    with suppress(NotInTime):
        until(lambda: processes.start_ticks(pid) != start, "", ENDING_S)
        return
    processes.send([*processes.descendants(pid), pid], signal.SIGKILL)
    until(lambda: processes.start_ticks(pid) != start, f"process {pid} ends by SIGKILL")


def _end_marked(what: str) -> None:
    def there() -> list[int]:
        return [pid for pid in processes.with_environment(what) if pid != os.getpid()]

    processes.send(there(), signal.SIGSTOP)  # so that none forks while the others are killed

    def ended() -> bool:
        processes.send(found := there(), signal.SIGKILL)
        return not found

    until(ended, lambda: f"all processes with {what} end by SIGKILL; {there()}")


def _remove_groups(what: str) -> None:
    if "/" in what:
        groups = list(CGROUPS.glob(what))
    else:
        texts = [Path(f"/proc/self/{name}").read_text(encoding="utf-8") for name in ("mountinfo", "cgroup")]
        bases = {base for _, top, own in own_groups(*texts) for base in (own, own.parent, top)}
        groups = [base / "magrathea" / what for base in bases]
    for group in groups:
        _remove_group(group)


def _remove_group(group: Path) -> None:
    def removed() -> bool:
        for file in group.rglob("cgroup.procs"):
            with suppress(OSError):  # the group was removed meanwhile
                processes.send(map(int, file.read_text().split()), signal.SIGKILL)
        with suppress(OSError):  # its processes have not ended yet
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        return not group.exists()

    until(removed, f"{group} is empty and removed")


def _swap_off(what: str) -> None:
    used = [line.split()[0] for line in Path("/proc/swaps").read_text(encoding="utf-8").splitlines()]
    if what in used:
        subprocess.run(["swapoff", what], check=True, capture_output=True, timeout=120)
    (Path("/sys/block") / Path(what).name / "reset").write_text("1", encoding="ascii")


def _remove_directory(what: str) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in reversed([mount for mount in mounts if Path(mount).is_relative_to(what)]):
        subprocess.run(["umount", "--lazy", mount], check=True, capture_output=True, timeout=60)
    path = Path(what)
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


UNDO: dict[Kind, Callable[[str], None]] = {
    Kind.PROCESS: _end_process,
    Kind.MARKED: _end_marked,
    Kind.GROUP: _remove_groups,
    Kind.SWAP: _swap_off,
    Kind.DIRECTORY: _remove_directory,
}
