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

DELETE_S = 0.05  # so long after its hook MoM has sent its SIGTERM
LEADER_S = 2.0  # a session's leader waits so long for what else has got SIGTERM
KILL_ROUNDS = 10
KILL_PAUSE_S = 0.2


class Ender:
    """Lets stopped jobs end that PBS deletes, and kills what it stopped of jobs that have ended.

    `sweep`: the sweeper's, to look again soon.
    """

    def __init__(self, loop: Loop, stopper: Stopper, signaller: Signaller, sweep: "Callable[[], None]") -> None:
        self.loop = loop
        self.stopper = stopper
        self.signaller = signaller
        self.sweep = sweep

    def let_end(self, job: Job) -> None:
        """MoM's SIGTERM waits behind the stop: the sessions that it was sent to go on, and end as those of any deleted
        job. What has left them stays stopped until the job is over (`kill`), for no signal of MoM's gets there.

        A session's leader goes on last, when the others have ended, or have had their time: MoM that finds them alive
        when it has ended does not look again before the kill delay is over.
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
        """SIGKILL to these processes (pid -> start time) of an ended job: stopped as they are, nothing else would end
        them."""
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
            log.info("job %s has ended: killed %d of its processes that were stopped" % (name, killed))
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
