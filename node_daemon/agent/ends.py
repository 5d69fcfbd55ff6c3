"""The end of a job's part here, without a hook of PBS (law 7).

MoM looks only once a second whether a hook for `execjob_end` has ended, and each job would wait for that. With a hook
for `execjob_epilogue`, MoM no longer runs the site's own script. So the agent watches two other signs:

1. The job's top process has ended, and no process of the job lives. The top process is the one that MoM has started:
   the job's shell. PBS ends the job with it, and kills what is left. The site's epilogue runs after that, beside what
   the host does next. This says nothing about a part of a job that begins on another host: MoM may start a task
   there later.
2. MoM has deleted its file about the job, `mom_priv/jobs/ID.JB`. This is the end of every part, also of one that never
   had a process, or leaves processes behind.

A pidfd reports the first, a signal of the kernel for MoM's directory (dnotify) the second. Without pidfds (Python
before 3.9, Linux before 5.3) the same signal is the time to look: MoM writes a job's file when the job has ended. Where
PBS_HOME cannot be watched, the agent looks every POLL_S while there are jobs.
"""

import fcntl
import os
import selectors
import time

from .jobs import MOM_NAMES, Job, Proc
from .log import log
from .loop import Loop, Timer
from .procfs import read_stat
from .sweeper import Sweeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .values import Key

PAUSE_S = (0.01, 2.0)  # between two checks: the first pause, the longest one; each is twice the one before
LOOK_SHARE = 4  # a pause is also so many times as long as the last check took
POLL_S = 1.0
FILE_LOOK_S = 0.2  # between two looks for the files of jobs; MoM keeps a job's file for longer
FILE_NEW_S = 1.0  # at so new a job, each look at processes looks for its file, too
MAX_PIDFDS = 256  # for further jobs the agent looks instead
JOB_FILES = "mom_priv/jobs"
JOB_FILE = ".JB"
READ_FILE = ".BD"  # MoM renames the file to this while it reads it, as when it starts, and then back


class Ends:
    """Finds the end of jobs. `on_end` is called with each job that is over."""

    def __init__(self, loop: Loop, jobs: "Dict[Key, Job]", sweeper: Sweeper, on_end: "Callable[[Job], None]") -> None:
        self.loop = loop
        self.jobs = jobs
        self.sweeper = sweeper
        self.finder = sweeper.finder
        self.signaller = sweeper.stopper.signaller
        self.on_end = on_end
        self.signalled = False  # the process handles SIGIO, and calls `directory_changed`
        self.directory = ""
        self.directory_fd = -1  # open while the kernel reports changes
        self.pidfds: "Dict[Key, int]" = {}
        self.due_at = 0.0  # when files, and top processes without a pidfd, were last looked at
        self.pause = PAUSE_S[0]
        self.rest_until = 0.0
        self.timer: "Optional[Timer]" = None

    # MoM's directory of jobs

    def learn_home(self, home: str) -> None:
        """MoM's hook has named its PBS_HOME."""
        directory = os.path.join(home, JOB_FILES)
        if directory == self.directory and self._is_watched():
            return
        if self.directory_fd >= 0:
            os.close(self.directory_fd)
            self.directory_fd = -1
        known, self.directory = self.directory == directory, directory
        for job in self.jobs.values():
            job.filed = job.filed and known  # its file was in the former one
        if not self.signalled:
            return
        events = fcntl.DN_DELETE | fcntl.DN_MULTISHOT
        if not self.signaller.pidfd:
            events |= fcntl.DN_MODIFY | fcntl.DN_RENAME
        fd = -1
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.fcntl(fd, fcntl.F_NOTIFY, events)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if not known:
                log.info("%s: the kernel reports no changes: %s" % (directory, error.strerror))
            return
        self.directory_fd = fd

    def _is_watched(self) -> bool:
        """Whether the open directory is still the one with this name, or cannot be watched anyway."""
        if self.directory_fd < 0:
            return not os.path.isdir(self.directory)
        try:
            return os.path.samestat(os.fstat(self.directory_fd), os.stat(self.directory))
        except OSError:
            return False

    def directory_changed(self) -> None:
        """The kernel has sent SIGIO."""
        self._wake()

    def _has_file(self, job: Job) -> bool:
        return _is_there(os.path.join(self.directory, job.id + JOB_FILE))

    def _is_forgotten(self, job: Job) -> bool:
        """Whether MoM has deleted the file of the job. Twice the first name: MoM may have renamed it in between."""
        names = (job.id + suffix for suffix in (JOB_FILE, READ_FILE, JOB_FILE))
        return not any(_is_there(os.path.join(self.directory, name)) for name in names) and _is_there(self.directory)

    # top processes

    def looked(self) -> None:
        """The sweeper has looked at all processes: there may be new top processes, and new files."""
        now = time.monotonic()
        for key in [key for key in self.pidfds if key not in self.jobs]:
            self._unwatch(key)
        is_due = now - self.due_at >= FILE_LOOK_S
        if is_due:
            self.due_at = now
        for job in self.jobs.values():
            if self.directory and not job.filed and (is_due or now - job.known_at < FILE_NEW_S):
                job.filed = self._has_file(job)
            if job.sister or job.key in self.pidfds:
                continue
            is_new = job.top is None
            if is_new:
                job.top = self._top_of(job)
            watched = job.top is None or self._watch(job, *job.top)
            if not watched and (is_new or is_due) and job.top is not None and not _lives(*job.top):
                self._wake()
        self._poll()

    def _top_of(self, job: Job) -> "Optional[Tuple[int, int]]":
        """Pid and start time of the oldest process that MoM itself has started; None if there is none. A hook of MoM
        that runs as the job's owner is none."""
        procs = [proc for proc in job.procs.values() if proc.image is None or proc.image[1] not in MOM_NAMES]
        started = [proc for proc in procs if self._is_mom(self.finder.procs.get(proc.ppid))]
        found = min(started, key=lambda proc: proc.start) if started else None
        return (found.pid, found.start) if found is not None else None

    def _is_mom(self, proc: "Optional[Proc]") -> bool:
        if proc is None or proc.job is not None:
            return False
        is_ancestor_of_hook = self.finder.spared.get(proc.pid) == (proc.start, proc.image)
        return is_ancestor_of_hook or self.finder.is_mom(proc)

    def _watch(self, job: Job, pid: int, start: int) -> bool:
        """Let a pidfd report the end of this process. False if there is none for it."""
        key = job.key
        fd = self.signaller.open(pid, start) if len(self.pidfds) < MAX_PIDFDS and _lives(pid, start) else -1
        if fd < 0:
            return False
        self.pidfds[key] = fd
        self.loop.watch(fd, selectors.EVENT_READ, lambda _: self._process_ended(key))
        return True

    def _process_ended(self, key: "Key") -> None:
        self._unwatch(key)
        self._wake()

    def _unwatch(self, key: "Key") -> None:
        fd = self.pidfds.pop(key)
        self.loop.unwatch(fd)
        os.close(fd)

    # checks

    def _wake(self) -> None:
        """Check soon."""
        self.pause = PAUSE_S[0]
        self._check_at(self.rest_until)

    def _check_at(self, when: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.at(when, self._check)

    def _check(self) -> None:
        """Find the jobs that are over. Looks at all processes only if a top process has ended."""
        self.timer = None
        began = time.monotonic()
        ended = [job for job in self.jobs.values() if self._top_has_ended(job)]
        over = self._without_processes(ended) if ended else []
        for job in over:
            self._end(job, "its last process has ended")
        for job in list(self.jobs.values()):
            if job.filed and self._is_forgotten(job):
                self._end(job, "MoM has deleted its file")
        now = time.monotonic()
        self.rest_until = now + max(PAUSE_S[0], LOOK_SHARE * (now - began))
        unwatched = [job for job in ended if job.key in self.jobs and not self._watch_oldest(job)]
        if unwatched:
            self._check_at(max(self.rest_until, now + self.pause))
            self.pause = min(2 * self.pause, PAUSE_S[1])
        self._poll()

    def _poll(self) -> None:
        if self.jobs and self.directory and self.directory_fd < 0 and self.timer is None:
            self.timer = self.loop.after(POLL_S, self._check)

    def _top_has_ended(self, job: Job) -> bool:
        return not (job.sister or job.uid is None or job.top is None or job.key in self.pidfds or _lives(*job.top))

    def _without_processes(self, ended: "List[Job]") -> "List[Job]":
        """Those of the jobs that have no living process.

        A look may miss a process that is created meanwhile, if its parent has ended. Then a second look decides.
        """
        if self.sweeper.is_busy():
            return []  # its looks may leave out environments
        births = self.finder.births.last()
        over = self._empty(ended)
        if over and (births is None or births != self.finder.births.last()):
            over = self._empty(over)
        return over

    def _empty(self, jobs: "List[Job]") -> "List[Job]":
        self.sweeper.sweep(whole=True)
        return [job for job in jobs if not (job.procs or job.doubtful or self._may_live(job))]

    def _may_live(self, job: Job) -> bool:
        """Whether a process of this job may live that was not found: it was not read yet, or hangs when it is read."""
        unread = [self.finder.procs.get(pid) for pid in self.finder.environments.unread_of(job.uid)]
        return self.finder.may_miss(job) or any(p is not None and p.job is None and not p.dead for p in unread)

    def _watch_oldest(self, job: Job) -> bool:
        """Wait for the end of what is left of a job. False if no pidfd reports it."""
        oldest = min(job.procs.values(), key=lambda proc: proc.start) if job.procs else None
        return oldest is not None and self._watch(job, oldest.pid, oldest.start)

    def _end(self, job: Job, why: str) -> None:
        if job.key in self.pidfds:
            self._unwatch(job.key)
        log.info("job %s: over, %s" % (job, why))
        self.on_end(job)


def _is_there(path: str) -> bool:
    """Whether there is such a file. If the file system does not tell, as one whose server is away: yes."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _lives(pid: int, start: int) -> bool:
    """Whether this process still runs. A main thread that has ended may leave others."""
    try:
        fields = read_stat("/proc/%d/stat" % pid)[1]
    except OSError:
        return False
    return int(fields[19]) == start and (fields[0] not in (b"Z", b"X", b"x") or int(fields[17]) > 1)
