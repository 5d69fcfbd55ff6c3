"""The site's own scripts."""

import os
import re
import selectors
import signal
import stat
import time

from .log import log
from .loop import Loop
from .own_process import set_oom_score
from .values import BadValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, NoReturn, Set

MAX_SCRIPTS = 8  # running at the same moment
SCRIPT_GRACE_S = 2.0  # from SIGTERM to SIGKILL
MAX_SCRIPT_OUTPUT_BYTES = 65536  # of each, in the log
SCRIPT_NAME = re.compile(r"[a-z0-9][a-z0-9\-]{0,63}\Z")
SCRIPT_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\Z")


class Script:
    """One running script."""

    def __init__(self, path: str, pid: int, output: int, deadline: float) -> None:
        self.path = path
        self.pid = pid
        self.output = output
        self.rest = b""
        self.bytes_left = MAX_SCRIPT_OUTPUT_BYTES
        self.deadline = deadline
        self.terminated = False


class Scripts:
    """The site's own scripts: `<name>`, and what is in `<name>.d` in order, one after another.

    They run beside everything else, and can stop nothing.
    """

    def __init__(self, loop: Loop, directory: str, limit_s: float) -> None:
        self.loop = loop
        self.directory = directory
        self.limit_s = limit_s
        self.running: "Set[Script]" = set()

    def run(self, name: str, environment: "Dict[str, str]", over: "Callable[[], None]" = lambda: None) -> int:
        """Start the scripts of this name; how many there are. `over` is called after the last. Raises BadValue."""
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
            names = []  # there need be none
        return files + [os.path.join(top + ".d", n) for n in names if SCRIPT_FILE.match(n)]

    @staticmethod
    def _trusted(path: str) -> bool:
        """Executable, and nobody but root or the agent's own user can have written it."""
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
        path, rest = files[0], files[1:]
        reading, writing = os.pipe()  # both closed in the script by exec
        os.set_blocking(reading, False)
        pid = os.fork()
        if pid == 0:
            self._become(path, environment, writing)
        os.close(writing)
        script = Script(path, pid, reading, time.monotonic() + self.limit_s)
        self.running.add(script)
        self.loop.watch(reading, selectors.EVENT_READ, lambda _: self._output(script))
        self.loop.after(0.02, lambda: self._poll(script, 0.02, lambda: self._next(rest, environment, over)))

    def _become(self, path: str, environment: "Dict[str, str]", output: int) -> "NoReturn":
        """In the child: be the script, with nothing of the agent's."""
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir("/")
            set_oom_score(0)
            if os.getpriority(os.PRIO_PROCESS, 0) < 0:
                os.setpriority(os.PRIO_PROCESS, 0, 0)
            clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
            clean.update(environment)
            os.execve(path, [path], clean)
        except OSError as error:
            os.write(2, ("cannot be run: %s\n" % error.strerror).encode())
        finally:
            os._exit(127)

    def _output(self, script: Script) -> None:
        try:
            data = os.read(script.output, 4096)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            self._close(script)
            return
        if script.bytes_left <= 0:
            return
        script.bytes_left -= len(data)
        lines = (script.rest + data).split(b"\n")
        script.rest = lines.pop()[-1024:]
        for line in lines:
            self._say(script, line)
        if script.bytes_left <= 0:
            self._say(script, b"(more output is not logged)")

    def _say(self, script: Script, line: bytes) -> None:
        log.info("script %s: %s" % (script.path, line.decode("utf-8", "replace")))

    def _close(self, script: Script) -> None:
        if script.output >= 0:
            self.loop.unwatch(script.output)
            os.close(script.output)
            script.output = -1
            if script.rest:
                self._say(script, script.rest)
                script.rest = b""

    def _poll(self, script: Script, pause: float, then: "Callable[[], None]") -> None:
        pid, status = os.waitpid(script.pid, os.WNOHANG)
        if pid:
            while script.output >= 0 and script.bytes_left > 0:
                left = script.bytes_left
                self._output(script)
                if script.bytes_left == left:
                    break
            self._close(script)
            self.running.discard(script)
            if os.WIFSIGNALED(status):
                log.warning("script %s: ended by signal %d" % (script.path, os.WTERMSIG(status)))
            elif os.WEXITSTATUS(status):
                log.warning("script %s: exit code %d" % (script.path, os.WEXITSTATUS(status)))
            then()
            return
        now = time.monotonic()
        if now >= script.deadline:  # not reaped yet, so pid and session are certainly the script's
            number = signal.SIGKILL if script.terminated else signal.SIGTERM
            log.warning("script %s: over its %g s: signal %d" % (script.path, self.limit_s, number))
            try:
                os.killpg(script.pid, number)
            except ProcessLookupError:
                os.kill(script.pid, number)  # it has not come to lead its group yet
            script.terminated = True
            script.deadline = now + SCRIPT_GRACE_S
        self.loop.after(pause, lambda: self._poll(script, min(pause * 2, 0.5), then))
