"""Signals that never hit another process with the same pid (law 1)."""

import errno
import os
import signal

from .procfs import start_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

SIGSTOP_BIT = 1 << (signal.SIGSTOP - 1)
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # Linux 6.9


class Signaller:
    """Sends signals to processes known by pid and start time."""

    def __init__(self) -> None:
        # by name, because they exist only since Python 3.9
        self._open: "Optional[Callable[..., int]]" = getattr(os, "pidfd_open", None)
        self._send: "Optional[Callable[..., None]]" = getattr(signal, "pidfd_send_signal", None)
        self.pidfd = self._works()
        self.groups = self.pidfd

    def _works(self) -> bool:
        if self._open is None or self._send is None:
            return False
        try:
            fd = self._open(os.getpid())
        except OSError:  # a kernel before 5.3, or a filter of a container
            return False
        try:
            self._send(fd, 0)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def open(self, pid: int, start: int) -> int:
        """A pidfd of this process, which becomes readable when the process ends; -1 if there is none."""
        if not self.pidfd or self._open is None:
            return -1
        try:
            fd = self._open(pid)
        except OSError:
            return -1
        if start_of(pid) != start:
            os.close(fd)
            return -1
        return fd

    def send(self, pid: int, start: int, number: int) -> bool:
        """Send it. False if that process no longer exists. Raises PermissionError."""
        if not self.pidfd or self._open is None or self._send is None:
            if start_of(pid) != start:
                return False
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return False
            return True
        try:
            fd = self._open(pid)
        except ProcessLookupError:
            return False
        try:
            if start_of(pid) != start:
                return False
            self._send(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def send_group(self, leader: int, start: int, number: int) -> bool:
        """Signal a whole process group in one call, so that no fork escapes. False if that is not possible."""
        if not self.groups or self._send is None:
            return False
        fd = self.open(leader, start)
        if fd < 0:
            return False
        try:
            self._send(fd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a kernel before 6.9
                self.groups = False
            return False
        finally:
            os.close(fd)
        return True
