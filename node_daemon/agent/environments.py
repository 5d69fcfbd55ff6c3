"""Environments of processes, read beside the loop (law 6).

The kernel takes an environment from the memory of its process, and locks its address space for that. A thread of the
process may hold this lock while it waits for a page of a dead file server or of the user's own FUSE program; before
Linux 4.17 the environment itself may lie on such a page. Then whoever reads it waits, perhaps for ever, and perhaps no
signal ends that. So a child process of the agent reads. The agent waits for it only for as long as a look may take. A
child that hangs is killed and left alone, even if it does not die, and another one takes its place.
"""

import _socket  # as in `transports`
import fcntl
import os
import signal
import time
from collections import deque

from .children import live
from .jobs import Proc
from .log import log
from .procfs import read_environ, read_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Dict, List, Optional, Set, Tuple

LIMIT_S = 0.5  # a read that hangs for so long is given up. An order must be carried out in three times that
STARVED_S = 5.0  # the same if the reader waits for a CPU instead
# Until a process that hung is read again: the first time, the longest; each twice the one before.
REST_S = (10.0, 600.0)
MOST_OF_USER = 4  # processes of one user that hang; a further one is given up after QUICK_S, and his come last
QUICK_S = 0.01
MOST_LATE = 16  # readers at work for all users; only on a machine without free CPUs there are so many
MOST_IMMORTAL = 4  # readers for one user that do not even die; no further process of his is read meanwhile
DYING_S = 0.005  # the longest wait for the end of a killed reader
BATCH = 64  # processes of one request
TELL_AGAIN_S = 60.0  # a user's processes are logged once in this time
MAX_TOLD = 256
MAX_ID_BYTES = 1024  # no job has a longer id
MAX_COOKIE_BYTES = 128  # PBS's has 32
ANSWER_BYTES = 2 + MAX_ID_BYTES + MAX_COOKIE_BYTES
DESCRIPTORS = 4096  # more than the agent ever has open


class Hung:
    """A process that could not be read. `reader`: the killed child, until it has ended."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.rest_s = 0.0
        self.until = 0.0
        self.reader: "Optional[ReaderChild]" = None


class ReaderChild:
    """A child process that reads environments, one after the other.

    `asked`: the processes whose answers are missing, with their images, in the order of reading. `since`: when it began
    with the first of them.
    """

    def __init__(self, marks: "List[bytes]") -> None:
        """Raises OSError."""
        self.asked: "Deque[Tuple[Proc, Optional[Tuple[bytes, bytes]], int]]" = deque()
        self.since = 0.0
        policy, nice = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
        self.sock, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        life, self.life = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            self._close()
            raise
        finally:
            if getattr(self, "pid", 1):
                theirs.close()
                os.close(life)
        if self.pid == 0:
            live("reader of environments", lambda _: _serve(theirs, life, marks, policy, nice), -1)

    def ask(self, procs: "List[Tuple[Proc, int]]") -> None:
        """Raises OSError if it has ended."""
        if not self.asked:
            self.since = time.monotonic()
        self.sock.setblocking(True)
        self.sock.send(b" ".join(b"%d" % proc.pid for proc, _ in procs))
        self.asked.extend((proc, proc.image, uid) for proc, uid in procs)

    def take(self, wait_s: float) -> bool:
        """Take one answer, and note it at its process. False if none comes in this time. Raises OSError if the reader
        has ended."""
        self.sock.settimeout(max(0.0, wait_s))
        try:
            answer = self.sock.recv(ANSWER_BYTES)
        except (BlockingIOError, _socket.timeout):
            return False
        if not answer:
            raise OSError("it has ended")
        proc, image, _ = self.asked.popleft()
        self.since = time.monotonic()
        if proc.image == image and answer[:1] == b"=":
            name, _, proc.cookie = answer[1:].partition(b"\0")
            proc.env_job = name.decode("utf-8", "replace")
        return True

    def waits_for_memory(self) -> bool:
        """Whether it sleeps in the kernel. Otherwise it is only waiting for a CPU."""
        try:
            return read_stat("/proc/%d/stat" % self.pid)[1][0] == b"D"
        except OSError:
            return False

    def kill(self) -> None:
        self._close()
        os.kill(self.pid, signal.SIGKILL)  # nobody else has this pid before it is reaped

    def has_ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def _close(self) -> None:
        self.sock.close()
        os.close(self.life)


class Environments:
    """Which job the environment of a process names. `marks`: what it must contain beside PBS_JOBID."""

    def __init__(self, marks: "List[bytes]") -> None:
        self.marks = marks
        self.reader: "Optional[ReaderChild]" = None  # the one that is free
        self.late: "List[ReaderChild]" = []  # those whose read takes longer than a look
        self.ending: "List[ReaderChild]" = []  # killed, but not reaped yet
        self.pids: "Set[int]" = set()  # of all these
        self.hung: "Dict[Tuple[int, int], Hung]" = {}
        self.told: "Dict[int, float]" = {}  # when each user's process was last logged
        self.told_no_child = False
        self.used = False

    def tidy(self, procs: "Dict[int, Proc]") -> None:
        """Take what late readers have found. Give up those that hang. Forget what is not among `procs` any more."""
        now = time.monotonic()
        for reader in self.late[:]:
            try:
                while reader.asked and reader.take(0.0):
                    pass
            except OSError:
                self.late.remove(reader)
                self._end(reader)
                continue
            if not reader.asked:
                self.late.remove(reader)
                if self.reader is None:
                    self.reader = reader
                else:
                    self._end(reader)
            elif now - reader.since > STARVED_S or (now - reader.since > LIMIT_S and reader.waits_for_memory()):
                self.late.remove(reader)
                self._give_up(reader, now)
        self._reap()
        for key, hung in list(self.hung.items()):
            if hung.reader is not None and hung.reader not in self.ending:
                hung.reader = None
            known = procs.get(key[0])
            if hung.reader is None and (known is None or known.start != key[1]):
                del self.hung[key]

    def _reap(self) -> None:
        for reader in self.ending[:]:
            if reader.has_ended():
                self.ending.remove(reader)
                self.pids.discard(reader.pid)

    def _give_up(self, reader: ReaderChild, now: float) -> None:
        proc, _, uid = reader.asked[0]
        known = self.hung.get((proc.pid, proc.start))
        if known is None:
            known = self.hung[proc.pid, proc.start] = Hung(uid)
            self._tell(proc.pid, uid, now)
        known.rest_s = min(2 * known.rest_s, REST_S[1]) if known.rest_s else REST_S[0]
        known.until = now + known.rest_s
        self._end(reader)
        known.reader = reader if reader in self.ending else None

    def _tell(self, pid: int, uid: int, now: float) -> None:
        if now - self.told.get(uid, -TELL_AGAIN_S) < TELL_AGAIN_S:
            return
        if len(self.told) >= MAX_TOLD:
            self.told.clear()
        self.told[uid] = now
        log.warning(
            "process %d of uid %d: its environment cannot be read, because its memory does not answer; a dead file "
            "server or a FUSE program? Without it, the process belongs to a job only by its session, parent or "
            "control group. Others of this user may be like it" % (pid, uid)
        )

    def _end(self, reader: ReaderChild) -> None:
        reader.kill()
        until = time.monotonic() + DYING_S
        while not reader.has_ended():
            if time.monotonic() > until:
                self.ending.append(reader)
                return
            time.sleep(DYING_S / 10)
        self.pids.discard(reader.pid)

    def is_being_read(self, proc: Proc) -> bool:
        return any((r.asked[0][0].pid, r.asked[0][0].start) == (proc.pid, proc.start) for r in self.late)

    def unreadable(self) -> int:
        """How many processes are known whose environment could not be read."""
        return len(self.hung)

    def unread_of(self, uid: "Optional[int]") -> "List[int]":
        """The pids of this user's processes that could not be read."""
        return [pid for (pid, _), hung in self.hung.items() if hung.uid == uid]

    def rests(self, proc: Proc, uid: int) -> bool:
        """Whether the process is not to be read now, because it hung, or because its user's readers do not die."""
        if not self.hung:
            return False
        known = self.hung.get((proc.pid, proc.start))
        if known is not None and (known.reader is not None or time.monotonic() < known.until):
            return True
        return sum(h.uid == uid and h.reader is not None for h in self.hung.values()) >= MOST_IMMORTAL

    def _hangs(self, uid: int) -> bool:
        """Whether so many of this user's processes hang that he comes last."""
        hanging = sum(reader.asked[0][2] == uid for reader in self.late)
        if self.hung:
            now = time.monotonic()
            hanging += sum(h.uid == uid and (h.reader is not None or now < h.until) for h in self.hung.values())
        return hanging >= MOST_OF_USER

    def read(self, procs: "List[Tuple[Proc, int]]", until: float) -> bool:
        """Set `env_job` and `cookie` of these processes, each with its user. Users of whom many processes hang come
        last. False if there was no time for all of them."""
        last = []
        if len(self.late) >= MOST_LATE:
            return False
        if self.late or self.hung:
            hanging = {uid for uid in {uid for _, uid in procs} if self._hangs(uid)}
            last = [(proc, uid) for proc, uid in procs if uid in hanging]
            procs = [(proc, uid) for proc, uid in procs if uid not in hanging]
        for at in range(0, len(procs), BATCH):
            if time.monotonic() > until or not self._read(procs[at : at + BATCH], until):
                return False
        while last and time.monotonic() < until:
            late = len(self.late)
            if self._read(last[:BATCH], min(until, time.monotonic() + QUICK_S)):
                last = last[BATCH:]
            elif len(self.late) == late or not self.late[-1].waits_for_memory():
                return False
            else:
                reader = self.late.pop()
                last = last[len(last[:BATCH]) - len(reader.asked) + 1 :]
                self._give_up(reader, time.monotonic())
        return not last

    def _read(self, procs: "List[Tuple[Proc, int]]", until: float) -> bool:
        """Read these. False if that takes too long, and then their reader is the last of those that are late; also if
        there is no reader."""
        reader = self.reader
        self.used = True
        try:
            if reader is None:
                reader = self.reader = ReaderChild(self.marks)
                self.pids.add(reader.pid)
            reader.ask(procs)
            while reader.asked and reader.take(until - time.monotonic()):
                pass
        except OSError as error:
            if reader is not None:
                self.reader = None
                self._end(reader)
            elif not self.told_no_child:
                self.told_no_child = True
                log.warning("no process can be made that reads environments: %s; trying again" % error)
            return False
        if reader.asked:
            self.reader = None
            self.late.append(reader)
        return not reader.asked

    def relax(self) -> None:
        """End the reader if nothing was read since the last call: it costs memory."""
        if self.reader is not None and not self.used:
            self._end(self.reader)
            self.reader = None
        self.used = False
        self._reap()

    def rest(self) -> None:
        """End all readers: there are no jobs."""
        self.used = False
        for reader in self.late:
            self._end(reader)
        self.late = []
        self.relax()


def _serve(sock: _socket.socket, life: int, marks: "List[bytes]", policy: int, nice: int) -> None:
    """In the child: answer until the agent has closed its end."""
    kept = sorted((sock.fileno(), life))
    os.closerange(3, kept[0])
    os.closerange(kept[0] + 1, kept[1])
    os.closerange(kept[1] + 1, DESCRIPTORS)
    # When the agent ends, the kernel sends SIGIO, which ends a read that hangs, too.
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    try:  # as urgent as the agent, which waits for it
        if policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR:
            os.sched_setscheduler(0, policy, os.sched_param(1))
        elif nice < 0:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError:
        pass
    while True:
        request = sock.recv(BATCH * 16)
        if not request:
            return
        for pid in request.split():
            found = job_of_environ(int(pid), marks)
            sock.send(b"?" if found is None else b"=" + b"\0".join(found))


def job_of_environ(pid: int, marks: "List[bytes]") -> "Optional[Tuple[bytes, bytes]]":
    """PBS_JOBID and PBS_JOBCOOKIE of a process, empty for none; None if it is not known yet (during an exec)."""
    try:
        data = read_environ(pid)
    except PermissionError:
        return b"", b""
    if not data:
        return None
    data = b"\0" + data + b"\0"
    if not all(mark in data for mark in marks):
        return b"", b""
    return _value(data, b"PBS_JOBID", MAX_ID_BYTES - 1), _value(data, b"PBS_JOBCOOKIE", MAX_COOKIE_BYTES)


def _value(data: bytes, name: bytes, most: int) -> bytes:
    """A variable of an environment that begins and ends with a NUL; empty if it is not there, or too long."""
    begins = b"\0" + name + b"="
    at = data.find(begins)
    if at < 0:
        return b""
    at += len(begins)
    value = data[at : data.index(b"\0", at)]
    return value if len(value) <= most else b""
