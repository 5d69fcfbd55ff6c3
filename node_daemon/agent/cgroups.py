"""PBS's job cgroups."""

import fnmatch
import os
import time

from .log import log
from .procfs import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, List, Optional, Set, Tuple

BARRIER_S = 0.02  # the longest wait for a cgroup to freeze


class Cgroups:
    """PBS's job cgroups: the directories of a job, its processes, and a short freeze as a barrier (law 4)."""

    REFRESH_S = 30.0
    ABSENT_S = 1.0  # the same if there is none: else each look would search where PBS creates none

    def __init__(self, templates: "Tuple[str, ...]") -> None:
        self.templates = [(t.rpartition("/")[0], t.rpartition("/")[2]) for t in templates]
        self.found: "List[Tuple[str, str]]" = []
        self.found_at: "Optional[float]" = None

    def _expand(self, pattern: str) -> "List[str]":
        paths = ["/"]
        for part in pattern.split("/"):
            if not part:
                continue
            if not any(c in part for c in "*?["):
                paths = [os.path.join(p, part) for p in paths]
                continue
            longer = []
            for path in paths:
                try:
                    names = os.listdir(path)
                except OSError:
                    continue
                longer += [os.path.join(path, n) for n in sorted(names) if fnmatch.fnmatchcase(n, part)]
            paths = longer[:64]
        return [p for p in paths if os.path.isdir(p)]

    def refresh(self, now: float) -> None:
        """Search again for PBS's directories of jobs: PBS creates them with the first job."""
        if self.found_at is not None and now - self.found_at < (self.REFRESH_S if self.found else self.ABSENT_S):
            return
        self.found = [(parent, last) for pattern, last in self.templates for parent in self._expand(pattern)]
        self.found_at = now

    def directories(self, id: str) -> "List[str]":
        paths = [os.path.join(parent, last.replace("{job}", id)) for parent, last in self.found]
        return [p for p in paths if os.path.isdir(p)]

    def pids(self, id: str) -> "Set[int]":
        found: "Set[int]" = set()
        for top in self.directories(id):
            todo = [top]
            for _ in range(1000):  # a job may make cgroups below its own
                if not todo:
                    break
                path = todo.pop()
                found.update(self._pids_of(path))
                try:
                    if os.stat(path).st_nlink > 2:
                        todo += [e.path for e in os.scandir(path) if e.is_dir(follow_symlinks=False)]
                except OSError:
                    continue  # it has just been removed
        found.discard(0)  # a process outside of our pid namespace
        return found

    @staticmethod
    def _pids_of(path: str) -> "Set[int]":
        for name in ("cgroup.procs", "cgroup.threads"):  # a threaded v2 cgroup has the latter only
            try:
                return {int(p) for p in read_file(os.path.join(path, name), 1 << 22).split()}
            except (OSError, ValueError):
                continue
        return set()

    def freeze(self, id: str) -> "List[str]":
        """Freeze the job for a short time. Returns the files for `thaw`: only those that this call has frozen."""
        frozen = []
        for path in self.directories(id):
            for name, word, done in (("cgroup.freeze", b"1", b"frozen 1"), ("freezer.state", b"FROZEN", b"FROZEN")):
                file = os.path.join(path, name)
                try:
                    if read_file(file).strip() in (b"1", b"FROZEN", b"FREEZING"):
                        break  # somebody else has frozen it and will thaw it
                    self._write(file, word)
                except OSError:
                    continue  # it has no freezer, or we may not use it
                frozen.append(file)
                events = os.path.join(path, "cgroup.events") if name == "cgroup.freeze" else file
                self._await(events, done)
                break
        return frozen

    def thaw(self, files: "Iterable[str]") -> None:
        for file in files:
            try:
                self._write(file, b"0" if file.endswith("cgroup.freeze") else b"THAWED")
            except FileNotFoundError:
                continue  # the job has gone
            except OSError as error:
                log.error("%s: cannot be thawed: %s; write 0 or THAWED into it" % (file, error.strerror))

    def thaw_leftover(self, id: str) -> None:
        """Thaw a job that an agent left frozen because it was killed between freeze and thaw."""
        for path in self.directories(id):
            for name in ("cgroup.freeze", "freezer.state"):
                file = os.path.join(path, name)
                try:
                    frozen = read_file(file).strip() in (b"1", b"FROZEN", b"FREEZING")
                except OSError:
                    continue
                if frozen:
                    log.warning("%s: was left frozen by an earlier agent; thawed" % file)
                    self.thaw([file])

    @staticmethod
    def _write(path: str, data: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    @staticmethod
    def _await(path: str, word: bytes) -> None:
        until = time.monotonic() + BARRIER_S
        while time.monotonic() < until:
            try:
                if word in read_file(path):
                    return
            except OSError:
                return
            time.sleep(0.0005)
