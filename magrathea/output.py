"""A program's standard input and outputs, and its end: it never ends in a traceback because one of them is unusable.

Rule 1: a full or closed output stops nothing. Whatever a command does, it does to its end. Its exit code is then LOST
instead of 0, because nobody could read the result.
Rule 2: descriptors 0 to 2 are always in use. Otherwise the next file that a daemon opens gets one of these numbers, and
what a library prints goes into that file.
Rule 3: letters that an output's character set does not have, and bytes that are not UTF-8, are escaped.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .text import printable

LOST = 74
"""Exit code if the output, or a file that no command expects to fail, cannot be written or read (EX_IOERR of
sysexits.h)."""
USAGE = 2
INTERRUPTED = 130
"""As a shell reports the end by SIGINT."""

_lost = False


def is_lost() -> bool:
    """True if something printed could not be written, so a command that repeats itself should end."""
    return _lost


class _Output(io.TextIOWrapper):
    """Standard output. If it cannot be written, that is noted and reported once."""

    program = ""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._note(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        global _lost
        before, _lost = _lost, True
        _occupy(1, os.O_WRONLY, over=True)  # what is still buffered has to go somewhere
        if not before and error.errno != errno.EPIPE:  # `| head` is no mistake
            print(f"{self.program}: the output cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201


class _Errors(io.TextIOWrapper):
    """Standard error. If it cannot be written, there is nobody to report that to."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            _occupy(2, os.O_WRONLY, over=True)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _occupy(2, os.O_WRONLY, over=True)


def _occupy(descriptor: int, flags: int, *, over: bool = False) -> None:
    """Let the descriptor be /dev/null if it is closed, or `over` what it is."""
    try:
        if not over:
            os.fstat(descriptor)
            return
    except OSError:
        pass
    try:
        null = os.open(os.devnull, flags)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
    except OSError:
        return


def _prepare(program: str) -> None:
    """See Rules 2 and 3. A closed standard output becomes one that cannot be written, so that the loss is noted."""
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _occupy(descriptor, flags)
    sys.stdin = open(0, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout = _Output(*_bytes_of(sys.stdout, 1), "backslashreplace", line_buffering=os.isatty(1))
    sys.stdout.program = program
    sys.stderr = _Errors(*_bytes_of(sys.stderr, 2), "backslashreplace", line_buffering=True)


def _bytes_of(stream: Any, descriptor: int) -> tuple[Any, str]:
    """The binary stream under a text stream, and its encoding. Python has no stream for a descriptor that was closed
    when it started."""
    if stream is None:
        return open(descriptor, "wb", closefd=False), "utf-8"
    encoding = stream.encoding
    return stream.detach(), encoding


def run(program: str, main: Callable[[], Any]) -> NoReturn:
    """Run a program with the command line's arguments, and end the process with its exit code."""
    _prepare(program)
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        code = LOST
    except UnicodeError:
        if all(_is_utf8(word) for word in sys.argv):
            raise
        print(f"{program}: an argument is not UTF-8; write it in UTF-8", file=sys.stderr)  # noqa: T201
        code = USAGE
    sys.stdout.flush()
    sys.exit(code or (LOST if is_lost() else 0))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
