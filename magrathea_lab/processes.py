"""Processes that never outlive their starter, and the processes of a session. Linux only, no root needed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
KILLED_S = 60.0
"""A process ends at once after SIGKILL, unless the machine is starved."""
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def become_subreaper() -> None:
    """Orphaned descendants of this process become its children, so that none is lost."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Let the kernel send `sig` to this process when the thread that started it ends."""
    _prctl(PR_SET_PDEATHSIG, sig)


def stat_fields(pid: int) -> tuple[int, int, str] | None:
    """Parent, session and state letter of a process; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[3]), fields[0]


def start_ticks(pid: int) -> int | None:
    """A process's start, in kernel ticks since boot; None if it has ended, even if it is not reaped yet."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


UNREADABLE_S = 5.0
"""Of a process that lets nobody read its environment for so long nothing is known: others keep its memory locked."""


def with_environment(pair: str) -> list[int]:
    """Processes that have `NAME=value` in their environment: those that we may read, without zombies.

    A reader of a process whose memory does not answer hangs as long as that. Another one goes on behind it.
    """
    pids = deque(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    found: list[int] = []
    while pids:
        answers = SimpleQueue[bool]()
        Thread(target=_read_each, args=(tuple(pids), pair.encode(), answers), daemon=True).start()
        with suppress(Empty):
            while pids:
                found += [pids[0]] if answers.get(timeout=UNREADABLE_S) else []
                pids.popleft()
        if pids:
            pids.popleft()
    return found


def _read_each(pids: tuple[int, ...], pair: bytes, answers: SimpleQueue[bool]) -> None:
    for pid in pids:
        answers.put(has_in_environment(pid, pair))


def has_in_environment(pid: int, pair: bytes) -> bool:
    """False for another user's process, and for one that has gone."""
    with suppress(OSError):
        return pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and start_ticks(pid) is not None
    return False


def namespaces_refused(*kinds: str, trial: str = "true") -> str | None:
    """Why no shell can run `trial` in new namespaces (`net`, `pid`, ...) here; None if one can. Needs root."""
    argv = ["unshare", *(f"--{kind}" for kind in kinds), "--fork", "--mount-proc", "sh", "-c", trial]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    return f"namespaces ({', '.join(kinds)}) are not permitted here: {why}; a container needs --privileged"


def _all() -> dict[int, tuple[int, int, str]]:
    found = (
        (int(entry.name), stat_fields(int(entry.name))) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    )
    return {pid: fields for pid, fields in found if fields is not None}


def of_session(session: int) -> list[int]:
    """Processes of a session, without zombies."""
    return [pid for pid, (_, sid, state) in _all().items() if sid == session and state not in "ZX"]


def descendants(root: int) -> list[int]:
    """Descendants of `root`, nearest first, without zombies."""
    table = _all()
    found, wanted = [], [root]
    while wanted:
        parent = wanted.pop(0)
        children = [pid for pid, (ppid, _, _) in table.items() if ppid == parent]
        found += children
        wanted += children
    return [pid for pid in found if table[pid][2] not in "ZX"]


def send(pids: Iterable[int], sig: int) -> None:
    """Send `sig` to all `pids`; processes that have ended are ignored."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sig)


def end_descendants(patience_s: float = 2.0) -> None:
    """End all descendants: SIGTERM to the children, after `patience_s` SIGKILL to all that is left. Reaps them.

    This process must be a subreaper, else orphans are missed.
    """
    me = os.getpid()
    send((p for p in descendants(me) if (f := stat_fields(p)) and f[0] == me), signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline + KILLED_S:
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                return
        if time.monotonic() > deadline:
            send(descendants(me), signal.SIGKILL)
        time.sleep(0.02)
