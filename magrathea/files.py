"""Files that daemons keep: private from their first moment on, and never followed through a link.

Rule 1: the mode is set when the file is made. A later chmod would leave a moment in which others can open it.
Rule 2: the last component of a path is no link, pipe or device. Otherwise whoever may write to the folder could have
another file overwritten, or make a daemon wait for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o600

NO_FILE = "is no regular file; remove it"


def open_regular(path: Path, flags: int, mode: int = PRIVATE) -> int:
    """A descriptor of a regular file. Raises OSError, also for a link and for anything that is not a regular file."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed; put the file there", path) from error
        if error.errno == errno.ENXIO:  # a pipe without a reader, or a socket
            raise OSError(errno.ENXIO, NO_FILE, path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NO_FILE, path)
    return descriptor


def exists(path: Path) -> bool:
    """True if the file is there and this user may look at it. Path.exists raises if a folder is closed to him."""
    try:
        return path.exists()
    except OSError:
        return False


def read_named(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file that people name; links are followed. Raises OSError.

    A pipe, a socket or a device is an error at once; nobody waits for its other end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "it is a socket or a device, not a file", path) from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "it is a directory, not a file", path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def read(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file. Raises OSError."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(most)


def replace(path: Path, data: bytes, mode: int = PRIVATE, *, sync: bool = False) -> None:
    """Replace a file's content atomically; with `sync` it is on disk afterwards. Raises OSError."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    new.replace(path)
    if sync:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def touch(path: Path, mode: int) -> None:
    """Set a file's time to now; make the file if it does not exist. Raises OSError."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT, mode)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> int:
    """Lock a file until the descriptor is closed. Raises OSError; BlockingIOError if another process has the lock."""
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def private_sockets() -> Iterator[None]:
    """Sockets bound inside the `with` are private to this user. No other code may run meanwhile: no `await` inside."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
