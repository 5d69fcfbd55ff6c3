"""Memory of stopped jobs: out to swap and back."""

import errno
import mmap
import os
import signal
import time

from .advice import LOCKED_S, Advisor, Slice, reclaim
from .cgroups import Cgroups
from .children import Child
from .jobs import Job
from .lines import BadValue, encode, parse
from .log import log
from .loop import Loop, Timer
from .parts import MAX_JOBS
from .procfs import memory_report, status_of
from .refusals import BUSY, FAILED, NOT_PERMITTED, NOT_SUPPORTED, TIMEOUT, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Set, Tuple

    from .lines import Doc
    from .values import Key, Reply

INDEX_BYTES = 8


class Pager:
    """Moves memory of stopped jobs out to swap and back in slices. Each slice runs in a child process of its own.

    So the loop answers while the kernel writes, the memory that a slice needs is freed with its child, and a slice
    that takes too long can be killed between two pages.
    """

    MAX_MIB = 4096
    SPARE_MIB = 4  # of swap
    KEEP_MIB = 32  # available memory that fetching never fills
    LOCKED_REST_S = 60.0  # for so long a process whose address space is locked is left out
    IMMORTAL_S = 1.0  # a killed child that lives for so long waits in the kernel, and is left alone
    MOST_IMMORTAL = 4
    LATE_S = 1.0  # from the end of a slice's time until its child is killed

    def __init__(self, loop: Loop, cgroups: Cgroups) -> None:
        self.loop = loop
        self.cgroups = cgroups
        self.advisor: "Optional[Advisor]" = None
        self.child: "Optional[Child]" = None
        self.immortal: "Set[Child]" = set()
        self.said = b""  # output of the child so far
        self.timer: "Optional[Timer]" = None
        self.walk: "Tuple[str, Tuple[Key, ...]]" = ("", ())  # the operation and jobs that the cursor belongs to
        self.cursor = (0, 0)
        self.fetched = 0  # pages, in this walk
        self.locked: "Dict[Tuple[int, int], float]" = {}  # pid and start time: until when it is left out
        self.sums: "Dict[Key, Tuple[float, int, int]]" = {}

    @staticmethod
    def can() -> "List[str]":
        return ["push-out", "fetch"] if os.geteuid() == 0 and not Advisor.missing() else []

    def sum_of(self, job: Job) -> "Tuple[int, int]":
        """MiB of the job's own memory in RAM and in swap, at most a second old. Shared memory counts for each."""
        now = time.monotonic()
        known = self.sums.get(job.key)
        if known is not None and now - known[0] < 1.0:
            return known[1], known[2]
        if len(self.sums) > MAX_JOBS:
            self.sums.clear()
        resident = swapped = 0
        for pid in job.procs:
            try:
                lines = status_of(pid, (b"RssAnon", b"RssShmem", b"VmSwap"))
            except OSError:
                continue  # it has gone
            for name, words in lines.items():
                kib = int(words[0]) if words and words[0].isdigit() else 0
                if name == b"VmSwap":
                    swapped += kib
                else:
                    resident += kib
        self.sums[job.key] = (now, resident >> 10, swapped >> 10)
        return resident >> 10, swapped >> 10

    def start(self, op: str, jobs: "List[Job]", mib: int, deadline_s: float, reply: "Reply") -> None:
        """Begin one slice; `reply` gets the answer. A slice under way is ended: whoever asked for it asks again."""
        if os.geteuid() != 0:
            reply(refusal(NOT_PERMITTED, "only root may move jobs' memory; this agent is uid %d" % os.geteuid()))
            return
        if self.child is not None:
            self._kill()
            reply(refusal(BUSY, "the slice before is being ended; ask again"))
            return
        if len(self.immortal) >= self.MOST_IMMORTAL:
            reply(refusal(BUSY, "%d slices hang in the kernel and cannot be ended" % len(self.immortal)))
            return
        walk = (op, tuple(sorted(job.key for job in jobs)))
        if walk != self.walk:
            self.walk, self.cursor, self.fetched = walk, (0, 0), 0
        memory = memory_report()
        if op == "push-out":
            mib = min(mib, memory["swap_free_mib"] - self.SPARE_MIB)
        else:
            mib = min(mib, memory["available_mib"] - self.KEEP_MIB)
        if mib <= 0:  # no swap, none left, or no room
            reply(self._answer(op, jobs, 0, False, True))
            return
        missing = Advisor.missing()
        if missing:
            reply(refusal(NOT_SUPPORTED, missing))
            return
        if self.advisor is None:
            self.advisor = Advisor()
        self._fork(op, jobs, min(mib, self.MAX_MIB), deadline_s, reply)

    def _fork(self, op: str, jobs: "List[Job]", mib: int, deadline_s: float, reply: "Reply") -> None:
        pairs = sorted((proc.start, proc.pid) for job in jobs for proc in job.procs.values())
        now = time.monotonic()
        self.locked = {proc: until for proc, until in self.locked.items() if now < until}
        procs = [(pid, start) for start, pid in pairs if (pid, start) not in self.locked]
        directories = [path for job in jobs for path in self.cgroups.directories(job.id)] if op == "push-out" else []

        at = mmap.mmap(-1, INDEX_BYTES)  # shared with the child: the number of the process at hand, from 1

        def become(output: int) -> None:
            self._become(op, procs, directories, mib, deadline_s, output, at)

        def ended(status: int) -> None:
            index = int.from_bytes(at[:INDEX_BYTES], "little") - 1
            at.close()
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
                self._leave_out(procs[index])
                left_s = now + deadline_s - time.monotonic()
                self._stop_timer()
                self.child = None
                if left_s > LOCKED_S:
                    self._fork(op, jobs, mib, left_s, reply)
                else:
                    reply(self._answer(op, jobs, 0, True))
                return
            self._ended(op, jobs, len(procs), reply)

        def late() -> None:
            self._kill()
            self.timer = self.loop.after(self.IMMORTAL_S, leave)

        def leave() -> None:
            index = int.from_bytes(at[:INDEX_BYTES], "little") - 1
            if index >= 0:
                self._leave_out(procs[index])
            self.immortal.add(child)
            child.on_end = lambda status: self.immortal.discard(child)
            child.on_output = lambda data: None
            self.child = None
            reply(refusal(TIMEOUT, "the slice hangs in the kernel and was given up"))

        self.said = b""
        child = self.child = Child(self.loop, op, become, ended, self._output)
        self.timer = self.loop.after(deadline_s + self.LATE_S, late)

    def _become(
        self,
        op: str,
        procs: "List[Tuple[int, int]]",
        directories: "List[str]",
        mib: int,
        limit_s: float,
        output: int,
        at: "mmap.mmap",
    ) -> None:
        """In the child: move memory and report. An open descriptor would keep the lock from the next agent."""
        os.closerange(3, output)
        os.closerange(output + 1, 4096)
        try:
            said = self._move(op, procs, directories, mib << 20, time.monotonic() + limit_s, at)
        except OSError as error:
            code = NOT_PERMITTED if error.errno in (errno.EPERM, errno.EACCES) else FAILED
            said = refusal(NOT_SUPPORTED if error.errno == errno.ENOSYS else code, "%s: %s" % (op, error.strerror))
        except Exception as error:  # noqa: BLE001 (reported to the daemon; the child ends here in any case)
            said = refusal(FAILED, "%s: %s: %s" % (op, type(error).__name__, error))
        os.write(output, encode(said))

    def _move(
        self,
        op: str,
        procs: "List[Tuple[int, int]]",
        directories: "List[str]",
        wanted: int,
        until: float,
        at: "mmap.mmap",
    ) -> "Doc":
        reclaimed = reclaim(directories, wanted, until)
        if reclaimed >= 1 << 20:
            return {"ok": True, "pages": reclaimed // Slice.PAGE, "cursor": self.cursor}
        assert self.advisor is not None
        self.advisor.die_with_parent()
        advice = Advisor.PAGEOUT if op == "push-out" else Advisor.WILLNEED
        work = Slice(self.advisor, advice, procs, wanted // Slice.PAGE, until)

        def note(index: int) -> None:
            at[:INDEX_BYTES] = (index + 1).to_bytes(INDEX_BYTES, "little")

        work.on_process = note
        work.run(self.cursor)
        return {"ok": True, "pages": work.moved, "cursor": work.cursor}

    # in the agent

    def _output(self, data: bytes) -> None:
        self.said += data

    def _leave_out(self, proc: "Tuple[int, int]") -> None:
        self.locked[proc] = time.monotonic() + self.LOCKED_REST_S
        log.warning(
            "process %d: its memory cannot be moved, because one of its threads hangs and keeps the address space "
            "locked; a dead file server or a FUSE program? It is left out for %d s" % (proc[0], self.LOCKED_REST_S)
        )

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _ended(self, op: str, jobs: "List[Job]", procs: int, reply: "Reply") -> None:
        self.child = None
        self._stop_timer()
        self.sums.clear()
        try:
            said = parse(self.said)
        except BadValue:
            said = refusal(TIMEOUT, "the slice did not end in time and was given up")
        if not said["ok"]:
            reply(said)
            return
        index, address = said["cursor"]
        self.cursor = (index, address) if index < procs else (0, 0)
        more = index < procs
        self.fetched = self.fetched + said["pages"] if more else 0
        reply(self._answer(op, jobs, said["pages"] * Slice.PAGE >> 20, more))

    def _kill(self) -> None:
        if self.child is not None:
            self.child.signal(signal.SIGKILL)

    def _answer(self, op: str, jobs: "List[Job]", moved_mib: int, more: bool, no_room: bool = False) -> "Doc":
        """`more`: the walk through their memory continues. `no_room`: it is not done, but cannot continue."""
        resident = swapped = 0
        for job in jobs:
            resident, swapped = resident + self.sum_of(job)[0], swapped + self.sum_of(job)[1]
        if op == "push-out":
            return {"ok": True, "pushed_mib": moved_mib, "left_mib": resident, "more": more, "memory": memory_report()}
        left = max(0, swapped - (self.fetched * Slice.PAGE >> 20)) if more or no_room else 0
        return {"ok": True, "fetched_mib": moved_mib, "left_mib": left, "more": more, "memory": memory_report()}

    def stop(self) -> None:
        self._kill()
