"""The byte streams that can be a guest channel."""

import _socket  # importing `socket` costs 2 ms: it turns its constants into enumerations
import errno
import os
import stat

from .lines import MAX_LINE_BYTES


class Transport:
    """A byte stream to the host. `open` returns a descriptor; `read` returns b"" if the host has gone."""

    stays = False  # whether the same descriptor works again when the host is back

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> int:
        raise NotImplementedError

    def read(self, fd: int) -> bytes:
        return os.read(fd, MAX_LINE_BYTES)

    def close(self, fd: int) -> None:
        os.close(fd)


class UnixTransport(Transport):
    """The daemon's unix socket: the local driver's, or one bound into a container."""

    def open(self) -> int:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.settimeout(1.0)  # a unix connect waits only for a full backlog
            sock.connect(self.path)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock.detach()


class PortTransport(Transport):
    """A virtio-serial port. While the host is away, reads return nothing and polls report a hang-up."""

    stays = True

    def open(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISCHR(os.fstat(fd).st_mode):
                raise OSError(errno.ENOTTY, "is no character device", self.path)
            self._raw(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    @staticmethod
    def _raw(fd: int) -> None:
        """If it is a terminal, as a serial line is: switch echo and translation off."""
        if os.isatty(fd):
            import tty

            tty.setraw(fd)
