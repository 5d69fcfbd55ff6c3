"""The site's own scripts."""

import os
import re
import signal
import stat

from .children import Child
from .lines import BadValue
from .log import log
from .loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Set

MAX_SCRIPTS = 8  # running at the same time
SCRIPT_GRACE_S = 2.0  # from SIGTERM to SIGKILL
MAX_SCRIPT_OUTPUT_BYTES = 65536  # of each, in the log
SCRIPT_NAME = re.compile(r"[a-z0-9][a-z0-9\-]{0,63}\Z")
SCRIPT_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\Z")


class Script:
    """One running script. Its output goes to the log. It is ended if it takes too long."""

    def __init__(
        self, loop: Loop, path: str, environment: "Dict[str, str]", limit_s: float, on_end: "Callable[[Script], None]"
    ) -> None:
        self.loop = loop
        self.path = path
        self.environment = environment
        self.limit_s = limit_s
        self.on_end = on_end
        self.rest = b""
        self.bytes_left = MAX_SCRIPT_OUTPUT_BYTES
        self.child = Child(loop, path, self._become, self._ended, self._output)
        self.timer = loop.after(limit_s, lambda: self._over_time(signal.SIGTERM))

    def _become(self, output: int) -> None:
        """In the child: exec the script, with a clean environment."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir("/")
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        clean.update(self.environment)
        os.execve(self.path, [self.path], clean)

    def _output(self, data: bytes) -> None:
        if self.bytes_left <= 0:
            return
        self.bytes_left -= len(data)
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()[-1024:]
        for line in lines:
            self._log(line)
        if self.bytes_left <= 0:
            self._log(b"(more output is not logged)")

    def _log(self, line: bytes) -> None:
        log.info("script %s: %s" % (self.path, line.decode("utf-8", "replace")))

    def _over_time(self, number: int) -> None:
        log.warning("script %s: took longer than %g s: signal %d" % (self.path, self.limit_s, number))
        self.timer = self.loop.after(SCRIPT_GRACE_S, lambda: self._over_time(signal.SIGKILL))
        self.child.signal(number)

    def _ended(self, status: int) -> None:
        self.timer.cancel()
        if self.rest:
            self._log(self.rest)
        if os.WIFSIGNALED(status):
            log.warning("script %s: ended by signal %d" % (self.path, os.WTERMSIG(status)))
        elif os.WEXITSTATUS(status):
            log.warning("script %s: exit code %d" % (self.path, os.WEXITSTATUS(status)))
        self.on_end(self)


class Scripts:
    """The site's own scripts: `<name>`, then the files of `<name>.d` in order, one after another.

    They run beside everything else, and cannot hold up the agent.
    """

    def __init__(self, loop: Loop, directory: str, limit_s: float) -> None:
        self.loop = loop
        self.directory = directory
        self.limit_s = limit_s
        self.running: "Set[Script]" = set()

    def run(self, name: str, environment: "Dict[str, str]", over: "Callable[[], None]" = lambda: None) -> int:
        """Start the scripts of this name, and return their number. `over` is called after the last. Raises BadValue."""
        if not SCRIPT_NAME.match(name):
            raise BadValue("script name %.80r must be lower case letters, digits and hyphens" % name)
        files = [f for f in self._files(name) if self._trusted(f)]
        if len(self.running) >= MAX_SCRIPTS:
            log.warning("script %s not run: %d are running already" % (name, len(self.running)))
            files = []
        self._next(files, environment, over)
        return len(files)

    def _files(self, name: str) -> "List[str]":
        top = os.path.join(self.directory, name)
        files = [top] if os.path.lexists(top) else []
        try:
            names = sorted(os.listdir(top + ".d"))
        except OSError:
            names = []  # the folder is optional
        return files + [os.path.join(top + ".d", n) for n in names if SCRIPT_FILE.match(n)]

    @staticmethod
    def _trusted(path: str) -> bool:
        """Whether it is executable, and only root or the agent's own user could write it."""
        try:
            for where in (os.path.dirname(path), path):
                found = os.stat(where)
                if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    log.warning("%s not run: %s can be written by others; chown and chmod it" % (path, where))
                    return False
        except OSError as error:
            log.warning("%s not run: %s" % (path, error.strerror))
            return False
        return stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK)

    def _next(self, files: "List[str]", environment: "Dict[str, str]", over: "Callable[[], None]") -> None:
        if not files:
            over()
            return

        def ended(script: Script) -> None:
            self.running.discard(script)
            self._next(files[1:], environment, over)

        self.running.add(Script(self.loop, files[0], environment, self.limit_s, ended))
