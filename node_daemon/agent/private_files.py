"""Open files that only the agent may use, without following links."""

import errno
import os
import stat


def open_regular(path: str, flags: int) -> int:
    """A descriptor of a regular file. A new file is private. Raises OSError, also for a link or a pipe."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", path) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return fd
