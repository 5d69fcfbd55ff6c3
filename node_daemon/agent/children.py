"""Child processes of the agent: forking one, making it an ordinary process, reading its output, reaping it."""

import os
import selectors
import signal

from .loop import Loop
from .own_process import set_oom_score

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn, Optional

POLL_S = (0.02, 0.5)  # between two checks of a child: the first pause, the longest one; each is twice the one before
ENDING_S = 0.005  # the first pause after it has closed its output
DRAIN_READS = 64  # of READ_BYTES: more than a pipe holds, so all output of the child itself is read
READ_BYTES = 4096


class Child:
    """A child process. Its memory is freed when it ends, and the loop continues meanwhile.

    `name` is for people. `become` runs in the child, with the writing end of its output (-1 without `on_output`), and
    may exec. `on_output` gets what the child and its own children write. `on_end` gets the wait status, after all
    output of the child.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        become: "Callable[[int], None]",
        on_end: "Callable[[int], None]",
        on_output: "Optional[Callable[[bytes], None]]" = None,
    ) -> None:
        self.loop = loop
        self.on_end = on_end
        self.on_output = on_output
        self.output, writing = os.pipe() if on_output is not None else (-1, -1)  # both closed by an exec
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (self.output, writing) if on_output is not None else ():
                os.close(fd)
            raise
        if self.pid == 0:
            live(name, become, writing)
        self.over = False
        if on_output is not None:
            os.close(writing)
            os.set_blocking(self.output, False)
            loop.watch(self.output, selectors.EVENT_READ, lambda _: self._readable())
        self.pause = POLL_S[0]
        self.timer = loop.after(self.pause, self._poll)

    def signal(self, number: int) -> None:
        """Signal the child and its process group. Until the child is reaped, nobody else can have these numbers."""
        if self.over:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            os.kill(self.pid, number)  # it does not lead its group yet

    def _readable(self) -> None:
        if not self._read():
            self.timer.cancel()
            self.pause = ENDING_S
            self._poll()

    def _read(self) -> bool:
        """Read once. False if the output is closed or has nothing more now."""
        try:
            data = os.read(self.output, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            self._close()
            return False
        if self.on_output is not None:
            self.on_output(data)
        return True

    def _close(self) -> None:
        if self.output >= 0:
            self.loop.unwatch(self.output)
            os.close(self.output)
            self.output = -1

    def _poll(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            self.timer = self.loop.after(self.pause, self._poll)
            self.pause = min(2 * self.pause, POLL_S[1])
            return
        self.over = True
        for _ in range(DRAIN_READS):
            if self.output < 0 or not self._read():
                break
        self._close()  # its own children may still have it open
        self.on_end(status)


def live(name: str, become: "Callable[[int], None]", output: int) -> "NoReturn":
    """In the child: become a process of a session of its own, with ordinary priority and OOM score."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
            signal.signal(number, signal.SIG_DFL)
        set_oom_score(0)
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        become(output)
        os._exit(0)
    except OSError as error:
        os.write(2, ("%s: %s\n" % (name, error.strerror)).encode())
    finally:
        os._exit(127)
