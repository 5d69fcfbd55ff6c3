"""Stop and continue the processes of a job."""

import os
import signal
import time

from .finder import Finder
from .jobs import Job, Proc
from .log import log
from .procfs import catches, is_pending, waits_for_vfork
from .signals import SIGSTOP_BIT, Signaller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Set, Tuple

PENDING_COUNTS_S = 1.0  # a process in uninterruptible sleep with the stop pending counts as stopped after this
VFORK_COUNTS_S = 0.05  # the same if it waits for its vfork child: any plain fork is over by then
STRIKE_AGAIN_S = 0.05  # a process that still runs so long after its SIGSTOP gets another
TELL_AGAIN_S = 10.0  # repeated events are logged once in this time
MOST_SHELLS = 8  # between a job's first process and its script
GROUP_WORTH = 4  # with so many unstopped members a process group is signalled as a whole


class Stopper:
    """Stops and continues the processes of one job that the last look has found."""

    def __init__(self, finder: Finder, signaller: Signaller) -> None:
        self.finder = finder
        self.signaller = signaller
        self.denied: "Set[Tuple[int, int]]" = set()

    # stopping

    def warned(self, job: Job) -> bool:
        """Whether the job still has time before its stop. Sends its warning if that was not done yet.

        Only processes that handle the signal get it: its default might end the others. A job without such a process
        is stopped at once.
        """
        number, job.warning = job.warning, 0
        if number:
            running = [p for p in job.procs.values() if p.state not in "Tt"]
            if job.warn_first_only:
                running = self._script(job, number)
            told = sum(catches(p.pid, number) and self._signal(p, number) for p in running)
            log.info("job %s: %d of %d processes warned by signal %d" % (job, told, len(running), number))
            if not told:
                job.warned_until = 0.0
        return time.monotonic() < job.warned_until

    @staticmethod
    def _script(job: Job, number: int) -> "List[Proc]":
        """The job's script, if it handles the signal. Its session's leader may be a login shell that waits for the
        script; the script's shell may wait for a program in its turn."""
        leaders = [p for p in job.procs.values() if p.pid == p.sid]
        some = sorted(leaders, key=lambda p: (p.start, p.pid))[:1]
        for _ in range(MOST_SHELLS):
            if len(some) != 1 or catches(some[0].pid, number):
                break
            some = [p for p in job.procs.values() if p.ppid == some[0].pid]
        return some if len(some) == 1 else []

    def stop(self, job: Job, grown: bool) -> None:
        """One pass for a job that is not leaving. `grown`: it has, or may have, more processes than before."""
        now = time.monotonic()
        running = [p for p in job.procs.values() if not self._is_stopped(p, now)]
        again = sum(p.struck_at is not None and not p.hit_at for p in running)
        if again and now - job.told_at > TELL_AGAIN_S:
            job.told_at = now
            log.info("job %s: somebody has continued %d of its processes; stopped again" % (job, again))
        for proc in job.procs.values():
            if proc.state == "T" and proc.struck_at is None and proc.pgrp in job.groups:
                self._note(proc, job, now)  # it was forked while its group was signalled
        self.strike(job, running, now)
        asleep = sum(p.pending_since is not None for p in job.procs.values())
        job.pending = asleep - sum(p.pending_since is not None for p in running)
        job.stopped = len(job.procs) - len(running) - job.pending
        job.running = len(running) + job.doubtful
        job.calm = 0 if running or grown else job.calm + 1
        job.settled = job.calm >= 2 and not job.doubtful

    def _is_stopped(self, proc: Proc, now: float) -> bool:
        if proc.state == "T":
            proc.pending_since = None
            proc.hit_at = 0.0  # if it runs later, somebody has continued it
            return True
        if proc.struck_at is None:
            return False
        if proc.state == "t":
            return True  # its tracer holds it, and the stop is pending
        if proc.state != "D" or not is_pending(proc.pid, SIGSTOP_BIT):
            proc.pending_since = None
            return False
        if proc.pending_since is None:
            proc.pending_since = now
        waited = now - proc.pending_since
        return waited >= PENDING_COUNTS_S or (waited >= VFORK_COUNTS_S and waits_for_vfork(proc.pid))

    @staticmethod
    def _note(proc: Proc, job: Job, now: float) -> None:
        if proc.struck_at is None:
            proc.struck_at = now
        proc.hit_at = now
        job.struck[proc.pid] = proc.start

    def strike(self, job: Job, running: "List[Proc]", now: float) -> None:
        """Send SIGSTOP to each, parents first. Large process groups get it at once."""
        todo = [p for p in running if p.pending_since is None and now - p.hit_at > STRIKE_AGAIN_S]
        todo = self._strike_groups(job, todo, now)
        todo.sort(key=lambda p: (p.start, p.pid))
        for proc in todo:
            if self._signal(proc, signal.SIGSTOP):
                self._note(proc, job, now)

    def _strike_groups(self, job: Job, todo: "List[Proc]", now: float) -> "List[Proc]":
        """Signal groups in sessions of the job. Returns the processes that were not signalled.

        A group lies within one session. In other sessions it may have processes that are not the job's.
        """
        if len(todo) < GROUP_WORTH or not self.signaller.groups:
            return todo
        sizes: "Dict[int, int]" = {}
        for proc in todo:
            if proc.sid in job.sessions:
                sizes[proc.pgrp] = sizes.get(proc.pgrp, 0) + 1
        done = set()
        for pgrp, size in sizes.items():
            leader = self.finder.procs.get(pgrp)
            if size < GROUP_WORTH or leader is None or leader.job is not job or leader.pgrp != pgrp:
                continue
            if self.signaller.send_group(pgrp, leader.start, signal.SIGSTOP):
                done.add(pgrp)
        job.groups |= done
        for proc in todo:
            if proc.pgrp in done:
                self._note(proc, job, now)
        return [p for p in todo if p.pgrp not in done]

    def _signal(self, proc: Proc, number: int) -> bool:
        try:
            return self.signaller.send(proc.pid, proc.start, number)
        except PermissionError:
            if (proc.pid, proc.start) not in self.denied and len(self.denied) < 4096:
                self.denied.add((proc.pid, proc.start))
                log.warning(
                    "process %d of job %s may not be signalled by uid %d: run the agent as root"
                    % (proc.pid, proc.job, os.geteuid())
                )
            return False

    # continuing

    def continue_job(self, job: Job) -> None:
        """Send SIGCONT to the processes that the agent stopped, and in the first pass to all that are stopped."""
        stopped = []
        for proc in job.procs.values():
            ours = proc.struck_at is not None or job.struck.get(proc.pid) == proc.start
            if ours or (proc.state == "T" and job.wake_all):
                stopped.append(proc)
        self.wake(job, stopped)
        job.stopped = sum(p.state == "T" for p in job.procs.values())
        job.pending = 0
        job.settled = not stopped
        if job.settled:
            job.wake_all = False
            job.struck.clear()
            job.groups.clear()

    def wake(self, job: Job, stopped: "List[Proc]") -> None:
        """Continue these processes, children first."""
        for proc in sorted(stopped, key=lambda p: (-p.start, -p.pid)):
            if self._signal(proc, signal.SIGCONT):
                proc.struck_at = proc.pending_since = None
                proc.hit_at = 0.0
                proc.read_at = 0.0  # its state has changed: read it again
                job.struck.pop(proc.pid, None)
