"""Which processes belong to a domain of the local driver: its root process and the descendants.

Rule 1: a process is a pid and a start time; a pid alone is not trusted for longer than one look.
Rule 2: nothing here changes anything.

Descent alone misses a process whose parent has ended: it becomes a child of init, unless the domain's root process is a
subreaper. So a process once seen stays a member while it lives, and so does a session if its leader was a member.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from magrathea import files

PROC = Path("/proc")
MAX_PID_FILE_BYTES = 100

PID_FILE_SLACK_S = 2.0
"""A root process may seem this much younger than its pid file.

Start times are counted in clock ticks since boot, and the wall clock is adjusted now and then.
"""


class Process(NamedTuple):
    """A process in /proc. `start`: in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    parent: int
    session: int
    start: int


def look(pid: int) -> Process | None:
    """The process; None if there is none or it is a zombie, which uses no CPU and can do nothing."""
    try:
        data = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command's name in brackets, and may contain anything: search the last bracket.
    fields = data[data.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]))


def everything() -> dict[int, Process]:
    """All living processes that can be seen; takes about 10 us each."""
    seen = (look(int(name)) for name in os.listdir(PROC) if name.isdigit())  # noqa: PTH208 - ten times quicker
    return {process.pid: process for process in seen if process is not None}


def threads(pid: int) -> list[int]:
    """Thread ids of a process; empty if it has ended."""
    try:
        return [int(name) for name in os.listdir(PROC / str(pid) / "task")]  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return []


def started_at(process: Process) -> float:
    """When the process started, in Unix seconds, to a clock tick."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def root_of(pid_file: Path) -> Process | None:
    """The living process that the pid file names; None if there is none, or if the file is empty because it is just
    written.

    A process that is younger than the file has got the pid of a dead one; it is not the domain. Raises ValueError if
    the file has anything but one pid.
    """
    try:
        written = pid_file.stat().st_mtime
        text = files.read_named(pid_file, MAX_PID_FILE_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not text:
        return None
    if not text.isdigit() or int(text) < 2:
        raise ValueError(f"{pid_file}: a process id is needed here, not {text[:40]!r}")
    process = look(int(text))
    if process is None or started_at(process) > written + PID_FILE_SLACK_S:
        return None
    return process


class Members:
    """The processes of one domain. Each `find` searches anew, and remembers those seen before."""

    def __init__(self, root: Process) -> None:
        self.root = root
        self._seen: dict[int, int] = {root.pid: root.start}
        self._sessions: set[int] = set()

    def known(self) -> list[int]:
        """The pids of the last `find` that still live; does not search for new ones."""
        return [pid for pid, start in self._seen.items() if (p := look(pid)) is not None and p.start == start]

    def find(self) -> list[int]:
        """Pids of all living members. The daemon itself and its children never belong to a domain."""
        every = everything()
        every.pop(os.getpid(), None)
        children: dict[int, list[Process]] = defaultdict(list)
        sessions: dict[int, list[Process]] = defaultdict(list)
        for process in every.values():
            children[process.parent].append(process)
            sessions[process.session].append(process)
        children.pop(os.getpid(), None)
        self._sessions = {leader for leader in self._sessions if leader in sessions}
        todo = [every[pid] for pid, start in self._seen.items() if pid in every and every[pid].start == start]
        todo += [process for leader in self._sessions for process in sessions[leader]]
        found: dict[int, int] = {}
        while todo:
            process = todo.pop()
            if process.pid in found:
                continue
            found[process.pid] = process.start
            todo += children[process.pid]
            if process.pid == process.session:
                self._sessions.add(process.pid)
                todo += sessions[process.pid]
        self._seen = found
        return list(found)
