"""The driver whose domains are groups of processes on this machine: for the demo, for tests, for a first try.

A domain is up while the process in its pid file lives. CPU is capped by control groups if possible (cgroups.py), else
by affinity: without root affinity can be changed back, but a raised nice value cannot. Memory is never moved, because
all processes share the machine's. The driver can end a domain; whoever started it must start it again.

Rule 1: everything that can block runs in one worker thread, in the order of the requests. So a call that timed out
cannot overtake a later one.
Rule 2: what the driver cannot do is reported once, in `notes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from magrathea import supervision
from magrathea.core.refusals import RefusalCode

from ..base import CALL_DEADLINE_S, CPU, DomainChange, DomainReading, DriverError, OnChange, Others, SaveNeeds, within
from . import cgroups, processes
from .processes import Members

T = TypeVar("T")

log = logging.getLogger(__name__)

POLL_S = 0.25
"""Interval of reading the pid files of domains that are down. A new domain must be noticed within 0.5 s."""

ROUNDS = 20
"""New processes may appear while others are moved. If they still do after so many rounds, a fork storm is faster than
us."""

KILL_PAUSE_S = 0.02
"""Pause between two rounds of killing: a killed process needs a moment to end."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Capper(Protocol):
    """A way to cap CPU. Its methods block; they raise OSError and DriverError."""

    notes: list[str]

    def adopt(self, domain: str, members: Members) -> None:
        """The domain has come up: prepare its processes for capping."""
        ...

    def cap(self, domain: str, members: Members, percent: int | None) -> None: ...

    def read(self, domain: str, members: Members) -> int | None: ...

    def nearest(self, percent: int | None) -> int | None: ...

    def close(self) -> None: ...


def _escaping(domain: str, what: str) -> DriverError:
    return DriverError(
        RefusalCode.FAILED,
        f"domain {domain}: new processes still appeared after {ROUNDS} rounds of {what}; it is tried again",
    )


class GroupCapper:
    """Caps by the quota of a control group. New processes start in the group of their parent."""

    def __init__(self, groups: cgroups.Groups) -> None:
        self._groups = groups
        self._held: dict[str, Members] = {}
        self.notes: list[str] = []

    def adopt(self, domain: str, members: Members) -> None:
        for _ in range(ROUNDS):
            if not self._groups.adopt(domain, members.find()):
                self._held[domain] = members
                return
        raise _escaping(domain, "moving them into the domain's control group")

    def cap(self, domain: str, members: Members, percent: int | None) -> None:
        cgroups.set_cap(self._groups.version, self._groups.of[domain], percent)
        # retry only if the adoption at the domain's start failed: a claim waits for this call
        if self._held.get(domain) is not members:
            self.adopt(domain, members)

    def read(self, domain: str, members: Members) -> int | None:
        return cgroups.get_cap(self._groups.version, self._groups.of[domain])

    def nearest(self, percent: int | None) -> int | None:
        return percent

    def close(self) -> None:
        self._groups.remove()


class AffinityCapper:
    """Caps by whole CPUs: a capped domain's processes may use the first few of `cpus`, an uncapped domain's all."""

    def __init__(self, cpus: list[int], why: str) -> None:
        self._cpus = cpus
        self.notes = [f"CPU is capped by affinity, that is by whole CPUs, because control groups cannot be used: {why}"]
        if len(cpus) == 1:
            self.notes = [f"CPU cannot be capped: there is one CPU only, and control groups cannot be used: {why}"]

    def adopt(self, domain: str, members: Members) -> None:
        members.find()

    def _wanted(self, percent: int | None) -> set[int]:
        count = len(self._cpus) if percent is None else max(1, -(-percent // 100))
        return set(self._cpus[:count])

    def cap(self, domain: str, members: Members, percent: int | None) -> None:
        wanted = self._wanted(percent)
        for _ in range(ROUNDS):
            changed = False
            for pid in members.find():
                for thread in processes.threads(pid):
                    changed |= self._bind(domain, thread, wanted)
            if not changed:
                return
        raise _escaping(domain, "setting their affinity")

    def _bind(self, domain: str, thread: int, wanted: set[int]) -> bool:
        """Set the thread's affinity. Returns False if it was right already or the thread has ended."""
        try:
            if os.sched_getaffinity(thread) == wanted:
                return False
            os.sched_setaffinity(thread, wanted)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise DriverError(
                RefusalCode.NOT_PERMITTED,
                f"domain {domain}: process {thread} belongs to another user, its CPUs cannot be set; run the daemon as "
                "root or as the user of the domain's processes",
            ) from error
        return True

    def read(self, domain: str, members: Members) -> int | None:
        usable: set[int] = set()
        for pid in members.known():
            for thread in processes.threads(pid):
                with contextlib.suppress(ProcessLookupError):
                    usable |= os.sched_getaffinity(thread)
        return None if usable.issuperset(self._cpus) else 100 * len(usable)

    def nearest(self, percent: int | None) -> int | None:
        wanted = self._wanted(percent)
        return None if len(wanted) == len(self._cpus) else 100 * len(wanted)

    def close(self) -> None:
        return


def choose_capper(host: str, domains: list[str]) -> Capper:
    """Control groups if permitted, else affinity. Blocks."""
    cpus = sorted(os.sched_getaffinity(0))
    mountinfo = Path("/proc/self/mountinfo").read_text()
    own = Path("/proc/self/cgroup").read_text()
    try:
        return GroupCapper(cgroups.make(host, domains, len(cpus), mountinfo, own))
    except cgroups.NoGroups as error:
        return AffinityCapper(cpus, str(error))


def _kill(domain: str, members: Members) -> None:
    """Kill all processes of the domain. Blocks; raises OSError, DriverError."""
    for _ in range(ROUNDS):
        pids = members.find()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_PAUSE_S)
    raise _escaping(domain, "killing them")


def _pidfd_of(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None if there is no such process or no such system
    call."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno != errno.ENOSYS:  # Linux older than 5.3: the watcher polls the process instead
            raise
        return None


LIMITS = (
    "memory is not moved: the domains of the local driver share the machine's",
    "domains are not booted, shut down or saved: whoever starts their processes ends them",
    "domains are not moved to other hosts: a process cannot leave its machine",
)


class LocalDriver:
    """See `base.Driver`. `pid_files`: by domain. Only tests replace `choose`."""

    def __init__(
        self,
        host: str,
        pid_files: Mapping[str, Path],
        choose: Callable[[str, list[str]], Capper] = choose_capper,
    ) -> None:
        for name in (host, *pid_files):
            if not NAME.fullmatch(name):
                raise DriverError(
                    RefusalCode.BAD_VALUE, f"{name!r}: the local driver needs names of letters, digits, '_', '.', '-'"
                )
        self._host = host
        self._pid_files = dict(pid_files)
        self._choose = choose
        self._capper: Capper | None = None
        self._members: dict[str, Members] = {}
        self._pidfds: dict[str, int] = {}
        self._bad_pid_files: set[str] = set()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-driver")
        self._watcher: asyncio.Task[None] | None = None
        self._something_down = asyncio.Event()
        self._on_event: OnChange | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset() if self._capper is None or self._capper.nearest(1) is None else frozenset({CPU})

    def notes(self) -> list[str]:
        said = [] if self._capper is None else self._capper.notes
        return [*said, *LIMITS]

    def limits(self) -> list[str]:
        return list(LIMITS)

    def others(self) -> Others:
        return Others()

    def leave_out(self, away: Collection[str], moving: Collection[str]) -> None:
        """Nothing moves here, and nothing else is counted."""

    async def start(self, on_event: OnChange) -> None:
        self._on_event = on_event
        self._capper = await self._call("preparing to cap CPU", lambda: self._choose(self._host, list(self._pid_files)))
        for name in self._pid_files:
            if not self._notice(name):
                on_event(DomainChange(name, up=False))
        self._watcher = supervision.start(self._watch())

    async def actual(self) -> dict[str, DomainReading]:
        capper = self._started()
        up = dict(self._members)

        def read() -> dict[str, int | None]:
            return {name: capper.read(name, members) for name, members in up.items()}

        percents = await self._call("reading the domains' CPU caps", read)
        return {name: DomainReading(name in up, percents.get(name)) for name in self._pid_files}

    async def set_cpu(self, domain: str, percent: int | None) -> None:
        capper = self._started()
        self._check(domain)
        if percent is not None and percent < 1:
            raise DriverError(
                RefusalCode.BAD_VALUE, f"domain {domain}: a CPU cap of {percent} % would stop it; the least is 1"
            )
        members = self._members.get(domain)
        if members is None:
            raise DriverError(
                RefusalCode.DOMAIN_DOWN, f"domain {domain} on {self._host} is down, its CPU cannot be capped"
            )
        await self._call(f"capping the CPU of domain {domain}", lambda: capper.cap(domain, members, percent))

    def nearest_cpu(self, percent: int | None) -> int | None:
        return self._started().nearest(percent)

    async def set_memory(self, domain: str, mib: int) -> None:
        self._check(domain)
        raise DriverError(
            RefusalCode.NOT_SUPPORTED, f"domain {domain}: the local driver does not move memory ({mib} MiB asked)"
        )

    async def boot(self, domain: str) -> None:
        self._unable(domain, "boot", "start its root process and write its pid file")

    async def shutdown(self, domain: str) -> None:
        self._unable(domain, "shut down", "end its root process")

    async def save(self, domain: str) -> None:
        self._unable(domain, "save", "use a driver that can, such as libvirt")

    async def save_needs(self, domain: str) -> SaveNeeds:
        self._unable(domain, "save", "use a driver that can, such as libvirt")

    async def image_fault(self, domain: str) -> str:
        self._unable(domain, "save", "use a driver that can, such as libvirt")

    async def resume(self, domain: str) -> None:
        self._unable(
            domain, "resume", "it never pauses a domain: send SIGCONT to processes that somebody else has stopped"
        )

    async def destroy(self, domain: str) -> None:
        self._started()
        self._check(domain)
        members = self._members.get(domain)
        if members is not None:
            await self._call(f"ending domain {domain}", lambda: _kill(domain, members))

    def _unable(self, domain: str, what: str, fix: str) -> NoReturn:
        self._check(domain)
        raise DriverError(RefusalCode.NOT_SUPPORTED, f"domain {domain}: the local driver cannot {what} it; {fix}")

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        for name in list(self._pidfds):
            self._forget(name)
        self._members.clear()
        capper, self._capper = self._capper, None
        try:
            if capper is not None:
                await self._call("removing empty control groups", capper.close)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def _started(self) -> Capper:
        if self._capper is None:
            raise DriverError(RefusalCode.FAILED, f"the local driver of {self._host} is not started, or is closed")
        return self._capper

    def _check(self, domain: str) -> None:
        if domain not in self._pid_files:
            raise DriverError(RefusalCode.NO_DOMAIN, f"host {self._host} has no domain {domain}")

    async def _call(self, what: str, work: Callable[[], T]) -> T:
        """Run `work` in the worker thread, with the deadline. Raises DriverError only."""
        loop = asyncio.get_running_loop()
        try:
            return await within(CALL_DEADLINE_S, what, loop.run_in_executor(self._worker, work))
        except OSError as error:
            code = (
                RefusalCode.NOT_PERMITTED
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
                else RefusalCode.FAILED
            )
            raise DriverError(code, f"{what}: {error}") from error

    # Events

    async def _watch(self) -> None:
        """Look for the root processes of domains that are down, for ever. Without pidfds also look for the end of
        others."""
        while True:
            if self._pidfds.keys() == self._pid_files.keys():
                await self._something_down.wait()  # nothing to look for: the pidfds report the end of the others
            self._something_down.clear()
            await asyncio.sleep(POLL_S)
            for name in self._pid_files:
                if name not in self._members:
                    self._notice(name)
                elif name not in self._pidfds and not self._lives(name):
                    self._gone(name)

    def _lives(self, name: str) -> bool:
        root = self._members[name].root
        now = processes.look(root.pid)
        return now is not None and now.start == root.start

    def _notice(self, name: str) -> bool:
        """Read a domain's pid file; return True if the domain is up."""
        try:
            root = processes.root_of(self._pid_files[name])
            pidfd = None if root is None else _pidfd_of(root.pid)
        except (OSError, ValueError) as error:
            if name not in self._bad_pid_files:  # log it once until the file is right again
                log.warning("domain %s cannot be found and counts as down: %s", name, error)
                self._bad_pid_files.add(name)
            return False
        self._bad_pid_files.discard(name)
        if root is None:
            return False
        loop = asyncio.get_running_loop()
        if pidfd is not None:
            self._pidfds[name] = pidfd
            loop.add_reader(pidfd, self._gone, name)
        members = Members(root)
        self._members[name] = members
        if not self._lives(name):  # when its descriptor was opened, the pid already belonged to another process
            self._forget(name)
            del self._members[name]
            return False
        loop.run_in_executor(self._worker, self._adopt, name, members)
        self._tell(name, up=True)
        return True

    def _adopt(self, name: str, members: Members) -> None:
        """Runs in the worker thread. Failures are only logged, because `set_cpu` tries again, and raises."""
        try:
            self._started().adopt(name, members)
        except (OSError, DriverError) as error:
            log.warning("domain %s: its processes cannot be prepared for CPU caps: %s", name, error)

    def _forget(self, name: str) -> None:
        pidfd = self._pidfds.pop(name, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _gone(self, name: str) -> None:
        """The domain's root process has ended."""
        self._forget(name)
        del self._members[name]
        self._something_down.set()
        self._tell(name, up=False)

    def _tell(self, name: str, up: bool) -> None:
        assert self._on_event is not None  # `start` sets it before anything is watched
        self._on_event(DomainChange(name, up))
