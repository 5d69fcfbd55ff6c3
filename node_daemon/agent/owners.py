"""Owners of jobs: their names in messages, and their uids in this guest."""

import os
import pwd
import select
import signal
import time

from .children import live
from .lines import BadValue, field
from .log import log
from .parts import MAX_JOBS
from .procfs import read_file
from .values import is_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Tuple

    from .lines import Doc

MAX_PASSWD_BYTES = 1 << 22
DYING_S = 0.05  # the longest wait for the end of a killed look-up: it may hang in the kernel, so that no signal ends it
MOST_DYING = 4  # with so many of them nobody is looked up


def owner_of(doc: "Doc") -> str:
    """The user that a message names; empty if it names none. Raises BadValue."""
    owner = field(doc, "owner", str, "")
    if len(owner) > 255 or not is_text(owner):
        raise BadValue("field owner is %.60r, it must be the name of a user" % owner)
    return str(owner)


def local_uid(owner: str, path: str = "/etc/passwd") -> "Optional[int]":
    """The uid of a user of this machine's own file; None if he is not in it."""
    try:
        lines = read_file(path, MAX_PASSWD_BYTES).split(b"\n")
        begins = owner.encode() + b":"
        fields = next((line.split(b":") for line in lines if line.startswith(begins)), [])
        return int(fields[2]) if len(fields) > 2 else None
    except (OSError, ValueError):
        return None


class Silence(Exception):
    """The directory of users did not answer in time."""


def looked_up(owner: str, wait_s: float) -> "Optional[int]":
    """The uid of a user as the system knows it; None if there is no such user. Raises Silence, OSError.

    A child process asks, because a directory server that is away may keep it waiting for minutes.
    """
    _reap()
    if len(dying) >= MOST_DYING:
        raise Silence
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid == 0:
        live("look-up of a user", lambda _: _tell_uid(owner, writing), -1)
    os.close(writing)
    try:
        if not select.select([reading], [], [], wait_s)[0]:
            raise Silence
        answer = os.read(reading, 32)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        dying.append(pid)
        until = time.monotonic() + DYING_S
        while _reap() and time.monotonic() < until:
            time.sleep(DYING_S / 50)
    if not answer:
        raise Silence
    return int(answer) if answer != b"-" else None


dying: "List[int]" = []  # killed look-ups that have not ended yet


def _reap() -> bool:
    """Whether the last one that was killed has not ended yet."""
    last = dying[-1:]
    dying[:] = [pid for pid in dying if not os.waitpid(pid, os.WNOHANG)[0]]
    return bool(last) and dying[-1:] == last


def _tell_uid(owner: str, writing: int) -> None:
    try:
        answer = b"%d" % pwd.getpwnam(owner).pw_uid
    except (KeyError, ValueError):
        answer = b"-"  # no such user here, or no valid name
    os.write(writing, answer)


class Owners:
    """The uids of jobs' owners."""

    LOOK_UP_S = 0.5  # the longest wait for the directory of users: a claim has 1.6 s
    SILENT_S = 10.0  # after it was silent it is not asked for so long
    KNOWN_S = 600.0  # how long a user's uid is remembered: asking a directory server may take long
    UNKNOWN_S = 60.0  # the same for a name without a user
    MOST = 2 * MAX_JOBS

    def __init__(self) -> None:
        self.known: "Dict[str, Tuple[Optional[int], float]]" = {}  # uid, and until when it counts
        self.silent_until = 0.0

    def uid_of(self, owner: str, new: bool = False, until: "Optional[float]" = None) -> "Optional[int]":
        """The uid of a job's owner; None if there is no such user. `new`: the user may have been created just now.
        `until`: the directory of users is not asked after this.

        An agent of an ordinary user sees only its own processes, so it takes all jobs for that user's.
        """
        if os.geteuid() != 0:
            return os.geteuid()
        known = self.known.get(owner)
        now = time.monotonic()
        if known is not None and now < known[1] and not (new and known[0] is None):
            return known[0]
        if len(self.known) >= self.MOST:
            self.known.clear()
        uid = local_uid(owner)
        if uid is None:
            wait_s = self.LOOK_UP_S if until is None else min(self.LOOK_UP_S, until - now)
            if now < self.silent_until or wait_s <= 0:
                return None if known is None else known[0]
            try:
                uid = looked_up(owner, wait_s)
            except (Silence, OSError):
                self.silent_until = time.monotonic() + self.SILENT_S
                log.warning(
                    "the directory of users does not answer about %.60r: asked again in %g s" % (owner, self.SILENT_S)
                )
                return None if known is None else known[0]
        self.known[owner] = uid, now + (self.UNKNOWN_S if uid is None else self.KNOWN_S)
        return uid
