"""process_madvise(2), and how it moves one slice of memory. All of it runs in a child process of the pager."""

import errno
import os
import re
import signal
import sys
import time

from .procfs import read_file, read_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, List, Tuple


class Advisor:
    """process_madvise(2), which Python lacks, called by its number. The number is the same on all of MACHINES."""

    MACHINES = ("x86_64", "aarch64", "ppc64le")
    PIDFD_OPEN, PROCESS_MADVISE = 434, 440  # Linux 5.3, 5.10
    SINCE = (5, 10)
    WILLNEED, PAGEOUT = 3, 21
    MAX_RANGES = 1024  # of one call (IOV_MAX)
    PR_SET_PDEATHSIG = 1

    def __init__(self) -> None:
        import ctypes  # takes 1 MiB, so only if memory is moved

        self._c = ctypes
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    @classmethod
    def missing(cls) -> str:
        """What this machine lacks, for people; empty if it should have the calls."""
        found = os.uname()
        if found.machine not in cls.MACHINES or sys.maxsize < 1 << 32:
            return "memory is pushed out on %s, with a Python of 64 bits, only" % ", ".join(cls.MACHINES)
        numbers = re.match(r"(\d+)\.(\d+)", found.release)
        if numbers is None or (int(numbers.group(1)), int(numbers.group(2))) < cls.SINCE:
            return "Linux %s has no process_madvise(MADV_PAGEOUT): 5.10 or later does" % found.release
        return ""

    def die_with_parent(self) -> None:
        self._prctl(self.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def open(self, pid: int) -> int:
        """A pidfd. Raises OSError."""
        fd = self._call(self._c.c_long(self.PIDFD_OPEN), self._c.c_int(pid), self._c.c_uint(0))
        if fd < 0:
            raise OSError(self._c.get_errno(), os.strerror(self._c.get_errno()))
        return int(fd)

    def advise(self, fd: int, ranges: "List[Tuple[int, int]]", advice: int) -> None:
        """Give the advice for these ranges (begin, end) of the process. Locked and huge pages are skipped.

        Raises OSError if the process has gone or the call is not permitted.
        """
        todo = ranges
        while todo:
            part = todo[: self.MAX_RANGES]
            flat = [word for begin, end in part for word in (begin, end - begin)]
            vector = (self._c.c_size_t * len(flat))(*flat)  # an array of struct iovec
            args = (self._c.c_int(fd), vector, self._c.c_size_t(len(part)), self._c.c_int(advice), self._c.c_uint(0))
            done = self._call(self._c.c_long(self.PROCESS_MADVISE), *args)
            if done < 0:
                number = self._c.get_errno()
                if number not in (errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EIO):
                    raise OSError(number, os.strerror(number))
                done = 0
            taken = 0
            for begin, end in part:
                if done < end - begin:
                    break
                done -= end - begin
                taken += 1
            todo = todo[taken + (taken < len(part)) :]


LOCKED_S = 2.0  # a process keeps its address space locked for so long only if one of its threads hangs


class Slice:
    """One slice of the jobs' memory: pushed out to swap, or brought back ahead of use. Runs in a child process.

    `procs`: (pid, start time) in the order of the walk. `cursor`: index among them, and where to continue.
    `on_process`: called with the index of each process before its memory is looked at. If this look hangs, SIGALRM ends
    this child.
    """

    PAGE = os.sysconf("SC_PAGE_SIZE")
    WINDOW_PAGES = 4096
    BATCH_PAGES = 4096  # advised at once; time and amount are checked after each
    TOP_BYTE = 7 if sys.byteorder == "little" else 0  # of an entry of pagemap: its flags
    PRESENT, SWAPPED, SHARED, EXCLUSIVE = 0x80, 0x40, 0x20, 0x01
    RUN = re.compile(b"1+")
    NO_MEMORY = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")

    def __init__(self, advisor: Advisor, advice: int, procs: "List[Tuple[int, int]]", pages: int, until: float) -> None:
        self.advisor = advisor
        self.advice = advice
        self.procs = procs
        self.pages = pages
        self.until = until
        self.moved = 0
        self.cursor = (0, 0)
        self.on_process: "Callable[[int], None]" = lambda index: None
        self.batch: "List[Tuple[int, int]]" = []
        self.windows: "List[Tuple[int, int, bool]]" = []
        self.batched = 0
        out = advice == Advisor.PAGEOUT
        # The kernel skips pages that others map, too. The page cache stays: it is free anyway.
        self.private = bytes(49 if self._counts(f, out) and not f & self.SHARED else 48 for f in range(256))
        self.common = bytes(49 if self._counts(f, out) else 48 for f in range(256))

    def _counts(self, flags: int, out: bool) -> bool:
        if out:
            return bool(flags & self.PRESENT and flags & self.EXCLUSIVE)
        return bool(flags & self.SWAPPED and not flags & self.PRESENT)

    def run(self, cursor: "Tuple[int, int]") -> None:
        """Move up to `pages` from the cursor on. Afterwards the cursor is where to continue: behind the last process if
        all is done. Raises OSError if it is not permitted."""
        index, address = cursor
        while index < len(self.procs):
            pid, start = self.procs[index]
            self.cursor = (index, address)
            try:
                if not self._process(pid, start, address):
                    return
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
                    raise
                # else it has just gone
            self.batch, self.windows, self.batched = [], [], 0
            index, address = index + 1, 0
        self.cursor = (index, 0)

    def _process(self, pid: int, start: int, address: int) -> bool:
        """Move one process from the address on. False if the slice is full or its time is over."""
        fd = self.advisor.open(pid)
        try:
            fields = read_stat("/proc/%d/stat" % pid)[1]
            if int(fields[19]) != start or (self.advice == Advisor.PAGEOUT and fields[0] not in (b"T", b"t")):
                return True
            self.on_process(self.cursor[0])
            signal.setitimer(signal.ITIMER_REAL, LOCKED_S)
            pagemap = os.open("/proc/%d/pagemap" % pid, os.O_RDONLY)
            try:
                maps = read_file("/proc/%d/maps" % pid, 64 << 20)
                signal.setitimer(signal.ITIMER_REAL, 0)
                for begin, end, common in self._ranges(maps):
                    for low in range(max(begin, address), end, self.WINDOW_PAGES * self.PAGE):
                        high = min(end, low + self.WINDOW_PAGES * self.PAGE)
                        self._window(pagemap, low, high, common)
                        if self.batched >= self.BATCH_PAGES or len(self.batch) >= Advisor.MAX_RANGES:
                            self._flush(fd, pagemap)
                        if self.moved + self.batched >= self.pages or time.monotonic() > self.until:
                            self._flush(fd, pagemap)
                            if self.moved >= self.pages or time.monotonic() > self.until:
                                self.cursor = (self.cursor[0], high)
                                return False
                self._flush(fd, pagemap)
            finally:
                os.close(pagemap)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.close(fd)
        return True

    def _ranges(self, maps: bytes) -> "Iterable[Tuple[int, int, bool]]":
        """The mappings whose pages can go to swap: begin, end, and whether it is shared memory with a name."""
        for line in maps.decode("ascii", "replace").split("\n"):
            words = line.split(None, 5)
            if len(words) < 5 or (len(words) == 6 and words[5] in self.NO_MEMORY):
                continue
            common = words[1][3:] == "s"
            if common and not words[3].startswith("00:"):
                continue  # a file on a disk
            begin, _, end = words[0].partition("-")
            yield int(begin, 16), int(end, 16), common

    def _flags(self, pagemap: int, low: int, high: int, common: bool) -> bytes:
        """A "1" for each page that counts, a "0" for each other."""
        signal.setitimer(signal.ITIMER_REAL, LOCKED_S)
        data = os.pread(pagemap, (high - low) // self.PAGE * 8, low // self.PAGE * 8)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return data[self.TOP_BYTE :: 8].translate(self.common if common else self.private)

    def _window(self, pagemap: int, low: int, high: int, common: bool) -> None:
        if common and self.advice == Advisor.WILLNEED:  # pagemap does not show which of it is in swap
            self.batch.append((low, high))
            return
        flags = self._flags(pagemap, low, high, common)
        if b"1" not in flags:
            return
        self.windows.append((low, high, common))
        for run in self.RUN.finditer(flags):
            self.batch.append((low + run.start() * self.PAGE, low + run.end() * self.PAGE))
            self.batched += run.end() - run.start()

    def _flush(self, fd: int, pagemap: int) -> None:
        self.advisor.advise(fd, self.batch, self.advice)
        left = 0
        if (
            self.advice == Advisor.PAGEOUT
        ):  # pages that were brought back stay marked as swapped until somebody touches them
            left = sum(self._flags(pagemap, *window).count(b"1") for window in self.windows)
        self.moved += max(0, self.batched - left)
        self.batch, self.windows, self.batched = [], [], 0


RECLAIM_BYTES = 16 << 20  # of one write; the time is checked after it


def reclaim(directories: "List[str]", wanted: int, until: float) -> int:
    """Push memory of v2 control groups out by their own file; returns the bytes. Runs in a child process."""
    done = 0
    for path in directories:
        try:
            before = int(read_file(os.path.join(path, "memory.current")))
            fd = os.open(os.path.join(path, "memory.reclaim"), os.O_WRONLY | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue  # version 1, or a kernel before 5.19
        try:
            left = wanted - done
            while left > 0 and time.monotonic() < until:
                piece = min(left, RECLAIM_BYTES)
                os.write(fd, b"%d" % piece)
                left -= piece
        except OSError:
            pass  # EAGAIN: it got less than was asked for; how much is seen below
        finally:
            os.close(fd)
        try:
            done += max(0, before - int(read_file(os.path.join(path, "memory.current"))))
        except (OSError, ValueError):
            continue
    return done
