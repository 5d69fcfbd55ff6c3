"""Has anything changed since the last look? Two cheap checks that make a look at all of /proc unnecessary."""

import os

from .procfs import STAT_BYTES, read_stat, stat_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional

    from .jobs import Proc

MAX_KEPT_FILES = 256  # of stopped processes; for further ones the file is opened each time


class Births:
    """Whether any process or thread was created in this pid namespace: each takes the next number."""

    PATH = "/proc/sys/kernel/ns_last_pid"

    def __init__(self) -> None:
        try:
            self.fd = os.open(self.PATH, os.O_RDONLY)
        except OSError:  # a kernel built without CONFIG_CHECKPOINT_RESTORE
            self.fd = -1

    def last(self) -> "Optional[bytes]":
        """The newest number; None if it cannot be read."""
        if self.fd < 0:
            return None
        try:
            return os.pread(self.fd, 32, 0) or None
        except OSError:
            return None


class StoppedProcesses:
    """Whether stopped processes are still stopped: one small read for each, from a file that is kept open.

    An open file belongs to its process for ever, even after another process has got the pid.
    """

    def __init__(self) -> None:
        self.files: "Dict[Proc, int]" = {}
        self.others: "List[Proc]" = []

    def watch(self, procs: "Iterable[Proc]") -> None:
        """Watch these processes from now on, and no others."""
        before, self.files, self.others = self.files, {}, []
        for proc in procs:
            fd = before.pop(proc, -1)
            if fd < 0 and len(self.files) < MAX_KEPT_FILES:
                fd = self._open(proc)
            if fd < 0:
                self.others.append(proc)
            else:
                self.files[proc] = fd
        for fd in before.values():
            os.close(fd)

    @staticmethod
    def _open(proc: "Proc") -> int:
        """A descriptor; -1 if the process has gone or the file cannot be kept open."""
        fd = -1
        try:
            fd = os.open("/proc/%d/stat" % proc.pid, os.O_RDONLY)
            same = int(stat_fields(os.pread(fd, STAT_BYTES, 0))[1][19]) == proc.start
        except OSError:
            same = False
        if fd >= 0 and not same:
            os.close(fd)
        return fd if same else -1

    def still(self) -> bool:
        """Whether all are stopped; False also if one has gone."""
        try:
            for fd in self.files.values():
                line = os.pread(fd, STAT_BYTES, 0)
                at = line.rfind(b")") + 2
                if line[at : at + 1] != b"T":
                    return False
            for proc in self.others:
                fields = read_stat("/proc/%d/stat" % proc.pid)[1]
                if fields[0] != b"T" or int(fields[19]) != proc.start:
                    return False
        except OSError:
            return False
        return True
