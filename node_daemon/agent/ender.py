"""The end of jobs that are stopped."""

import signal
import time

from .jobs import Job
from .log import log
from .loop import Loop
from .procfs import is_pending, read_stat
from .signals import SIGTERM_BIT, Signaller
from .stopper import Stopper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict

DELETE_S = 0.05  # MoM sends SIGTERM within this time after its hook
LEADER_S = 2.0  # the longest wait of a session leader for the other processes that got SIGTERM
KILL_ROUNDS = 10
KILL_PAUSE_S = 0.2


class Ender:
    """Lets stopped jobs end if PBS deletes them, and kills stopped processes of jobs that have ended.

    `sweep`: the sweeper's, to look again soon.
    """

    def __init__(self, loop: Loop, stopper: Stopper, signaller: Signaller, sweep: "Callable[[], None]") -> None:
        self.loop = loop
        self.stopper = stopper
        self.signaller = signaller
        self.sweep = sweep

    def let_end(self, job: Job) -> None:
        """Continue the sessions to which MoM sent SIGTERM: the signal waits behind the stop. They end as in any deleted
        job. MoM's signals do not reach processes outside these sessions, so those stay stopped until the job is over
        (`kill`).

        Session leaders are continued last, after the others have ended or had their time. If MoM sees other processes
        alive when the leader exits, it waits for the whole kill delay.
        """
        now = time.monotonic()
        stopped = [p for p in job.procs.values() if p.state == "T"]
        sessions = {p.sid for p in stopped if is_pending(p.pid, SIGTERM_BIT)}
        if not sessions:
            return
        if job.leaders_at is None:
            job.leaders_at = now + LEADER_S
        led = {p.sid for p in job.procs.values() if p.pid != p.sid} if now < job.leaders_at else set()
        self.stopper.wake(job, [p for p in stopped if p.sid in sessions and (p.pid != p.sid or p.sid not in led)])
        if led:
            self.loop.after(DELETE_S, self.sweep)

    def kill(self, name: str, left: "Dict[int, int]", rounds: int = KILL_ROUNDS) -> None:
        """Kill these processes (pid -> start time) of an ended job. Nothing else would end them: they are stopped."""
        killed = 0
        for pid, start in list(left.items()):
            try:
                if self.signaller.send(pid, start, signal.SIGKILL) and self._lives(pid, start):
                    killed += 1
                    continue
            except PermissionError as error:
                log.warning("process %d of ended job %s cannot be killed: %s" % (pid, name, error.strerror))
            del left[pid]
        if rounds == KILL_ROUNDS and killed:
            log.info("job %s has ended: killed its %d stopped processes" % (name, killed))
        if left and rounds > 0:
            self.loop.after(KILL_PAUSE_S, lambda: self.kill(name, left, rounds - 1))
        elif left:
            log.warning("job %s has ended, but processes %s do not" % (name, sorted(left)[:10]))

    @staticmethod
    def _lives(pid: int, start: int) -> bool:
        try:
            fields = read_stat("/proc/%d/stat" % pid)[1]
        except OSError:
            return False
        return int(fields[19]) == start and fields[0] not in (b"Z", b"X")
