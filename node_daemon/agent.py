#!/usr/bin/env python3
"""magrathea-agent: the one process of Magrathea inside a domain.

It stands between the domain's MoM (a unix socket for the MoM hook) and the host's node daemon (the guest channel: a
virtio-serial port or a unix socket). It relays claims and releases, finds the processes of jobs, stops and continues
them, reports memory, and runs the site's own scripts. One file, standard library only, Python >= 3.6, because a guest
is whatever its users need.

Laws of this file:

1. Only processes of the job are ever touched. A process is known by pid *and* start time; a signal goes through a
   pidfd whose process has been looked at after the pidfd was opened (before Python 3.9: looked at right before the
   signal). So a recycled pid is never hit.
2. A stop is a standing order: it is swept again every 0.5 s until the daemon lifts it. The agent decides nothing by
   itself: when it ends (SIGTERM too), what is stopped stays stopped, and the next agent goes on from the state file.
3. A job is found by PBS's job cgroup, and by session, descent and PBS_JOBID, of processes of the job's owner only.
   Once found, a process is the job's as long as it lives: none can leave its job.
4. A cgroup is frozen for some milliseconds only, as a barrier: freeze, SIGSTOP each process, thaw. What PBS sees are
   plainly stopped processes, as after its own suspend: its SIGCONT continues them, its SIGKILL kills them (which a
   process frozen by a v1 freezer would not notice), and nothing is left frozen that only the agent could thaw.
5. Everything from outside is bounded and checked by type before it is used. No shell, anywhere.
6. One thread. Nothing in here waits for anything but the selector (and a short freeze, bounded).

In this file, each under a headline of its name:

    logging, values from outside, configuration     Log, Config
    /proc, signals                                  Proc, Signaller
    jobs and their processes                        Job, Cgroups, Finder: which processes are a job's
    the event loop                                  Timer, Loop
    standing orders                                 Sweeper: stops, continues, and looks again
    memory of stopped jobs                          Pager: out to swap and back
    lines, the guest channel, MoM's side            Channel, MomServer
    the site's scripts, the guest as a machine      Scripts, Machine
    the state file                                  StateFile: what survives the agent
    the agent, start                                Agent: all of it together; main

Times are seconds, `now` is `time.monotonic()`. Memory is in MiB.
"""

import errno
import fcntl
import fnmatch
import gc
import heapq
import json
import os
import pwd
import re
import selectors
import signal
import socket
import stat
import struct
import sys
import time
from collections import OrderedDict, deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Deque, Dict, Iterable, List, NoReturn, Optional, Set, Tuple

    Doc = Dict[str, Any]
    Key = Tuple[str, int]
    Reply = Callable[[Doc], None]

VERSION = "0.1.0"
PROTOCOL = 1
DEFAULT_CONFIG = "/etc/magrathea/agent.json"
CONFIG_VARIABLE = "MAGRATHEA_AGENT_CONF"

MAX_LINE_BYTES = 65536  # of both sockets, newline included
MAX_OUT_BYTES = 1 << 20  # unsent bytes for a peer that does not read; then the connection is given up
MAX_BAD_LINES = 10  # in a row
MAX_LINES_PER_S = 200  # from the daemon, averaged over RATE_WINDOW_S
RATE_WINDOW_S = 5.0
MAX_CLIENTS = 32  # MoM hooks at the same moment
MAX_JOBS = 1024  # of one list or of the agent's table
MAX_PENDING = 256  # requests to the daemon at the same moment
MAX_ROWS = 400  # of one list to the daemon: what fits a line
MAX_PARTS = 200  # of a job, in one question of the prologue hook
MAX_STATE_BYTES = 16 << 20
MAX_ENVIRON_BYTES = 1 << 20
MAX_ANSWERS = 64
MAX_SCRIPTS = 8  # running at the same moment
SCRIPT_GRACE_S = 2.0  # from SIGTERM to SIGKILL
MAX_SCRIPT_OUTPUT_BYTES = 65536  # of each, in the log

REPEAT_S = 0.5  # a request is sent again after it
RECONNECT_S = (0.2, 2.0)
CLIENT_S = 10.0  # a hook must have sent its line by then
REPORT_S = 10.0
LAUNCH_POLL_S = 0.2
LAUNCH_PATIENCE_S = 60.0  # then a job that shows no process is looked for with the reports only
SWEEP_S = 0.5
ENVIRON_S = 0.05  # so long environments wait for what is known to be stopped
EXEC_S = 0.05  # so long a new process may show no environment because it is in the midst of an exec
ENVIRON_BUDGET_S = 0.02  # and the longest time that one look spends on them
PENDING_COUNTS_S = 1.0  # in uninterruptible sleep with the stop pending: counts as stopped after it
VFORK_COUNTS_S = 0.05  # the same where it waits for its vfork child: long enough for any plain fork to be over
FORK_WCHANS = (b"wait_for_vfork_done", b"kernel_clone", b"_do_fork", b"do_fork")  # by version of the kernel
PASSES_AT_ONCE = 4  # looks at /proc in a row before other work gets its turn
GIVE_WAY_S = (0.0002, 0.00002, 0.01)  # for processes to come to their stop: at least, for each, at most
STRIKE_AGAIN_S = 0.05  # a process that is not stopped so long after its SIGSTOP gets another
PASS_PAUSE_S = (0.001, 0.05)
BARRIER_S = 0.02  # longest time that a cgroup is waited for to freeze
SETTLED_S = 5.0  # a process seen as no job's for so long is read again only every REREAD_S
REREAD_S = 2.0
UNBORN_S = 0.3  # by then a process that has got its number is to be seen in /proc
WHOLE_LOOK_S = 5.0  # so old a whole look may be while nothing but the stopped processes is looked at
CALM_AFTER_S = 30.0  # a stop that has stood so long without anything to mend is looked after less often:
CALM_SWEEP_S = 1.0  # instead of SWEEP_S; an emulated guest pays 0.1 % of a core for each wake-up a second
CALM_LOOK_S = 15.0  # instead of WHOLE_LOOK_S
MAX_KEPT_FILES = 256  # of stopped processes; of others the file is opened each time
CLAIM_S = 1.8
ORDERS_S = 1.5
SLICE_S = 5.0  # for one slice of memory, where the daemon does not say
RELEASE_S = 60.0  # a release is offered to the daemon for so long
DELETE_S = 0.05  # so long after its hook MoM has sent its SIGTERM
LEADER_S = 2.0  # a session's leader waits so long for what else has got SIGTERM
MISSING_AGE_S = 20.0  # a list may have been made before the claim
MAX_WARN_S = 60.0  # the longest time between a job's warning and its stop
TELL_AGAIN_S = 10.0  # what happens again and again is told once in it
CLOCK_S = 0.5  # a clock less wrong than this is left alone: the message itself took time
MADE_UNIX_S = 1.7e9  # before this program was made
POWER_AGAIN_S = 10.0  # so long after a power-off that nobody heeds it is forced
KILL_ROUNDS = 10
KILL_PAUSE_S = 0.2

STAT_BYTES = 2048  # of /proc/PID/stat: always the whole line
SIGSTOP_BIT = 1 << (signal.SIGSTOP - 1)
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)
PF_KTHREAD = 0x00200000
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # Linux 6.9
GROUP_WORTH = 4  # a process group is signalled as a whole from this many unstopped members on

JOB_ID = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.@:+\-\[\]]{0,254}\Z")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z")
SCRIPT_NAME = re.compile(r"[a-z0-9][a-z0-9\-]{0,63}\Z")
SCRIPT_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\Z")
ENV_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
CLASSES = ("priority", "preemptible", "protected")
ORDERS = ("stop", "lift", "run")
WARN_SIGNALS = (
    *("SIGHUP", "SIGINT", "SIGTERM", "SIGTSTP"),
    *("SIGURG", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGXCPU"),
)
MOM_NAMES = (b"pbs_mom", b"pbs_python")
ENDING_SUBSTATE = 50  # PBS: from here on a job is exiting

DEFAULT_CGROUPS = (
    # OpenPBS's pbs_cgroups: <mount>/<cgroup_prefix>.service/jobid/<job id>, one mount per v1 controller, or v2.
    "/sys/fs/cgroup/pbs_jobs.service/jobid/{job}",
    "/sys/fs/cgroup/*/pbs_jobs.service/jobid/{job}",
)


class BadValue(Exception):
    """Something from outside is not what it must be; the text names the field, its value and what is allowed."""


class Unusable(Exception):
    """The agent cannot start like this; the text says what to mend."""


# --- logging ---------------------------------------------------------------------------------------------------------


class Log:
    """Lines on stderr, with journald's priority in front where journald reads them; at most some a second."""

    BURST = 40
    PER_S = 5.0

    def __init__(self) -> None:
        self.prefix = "JOURNAL_STREAM" in os.environ
        self.tokens = float(self.BURST)
        self.at = time.monotonic()
        self.suppressed = 0

    def _write(self, level: int, word: str, text: str) -> None:
        now = time.monotonic()
        self.tokens = min(float(self.BURST), self.tokens + (now - self.at) * self.PER_S)
        self.at = now
        if self.tokens < 1.0:
            self.suppressed += 1
            return
        self.tokens -= 1.0
        if self.suppressed:
            text += " (and %d more lines, suppressed)" % self.suppressed
            self.suppressed = 0
        printable = "".join(c if c.isprintable() else "?" for c in text[:2000])
        head = "<%d>" % level if self.prefix else "magrathea-agent: %s: " % word
        try:
            os.write(2, (head + printable + "\n").encode("utf-8", "replace"))
        except OSError:
            self.suppressed += 1  # stderr is full or gone: nobody to tell

    def error(self, text: str) -> None:
        self._write(3, "error", text)

    def warning(self, text: str) -> None:
        self._write(4, "warning", text)

    def info(self, text: str) -> None:
        self._write(6, "info", text)


log = Log()


# --- values from outside ---------------------------------------------------------------------------------------------


def field(doc: "Doc", name: str, kind: type, default: "Any" = None) -> "Any":
    """`doc[name]`, which must be of `kind` (bool is no int). Without a default it must be there. Raises BadValue."""
    value = doc.get(name, default)
    if value is None and default is None:
        raise BadValue("field %s is missing" % name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadValue("field %s is %.60r, it must be %s" % (name, value, kind.__name__))
    return value


def seconds(doc: "Doc", name: str, default: float, low: float, high: float) -> float:
    """A time within bounds; one outside them is brought to the nearest bound."""
    value = field(doc, name, float, default)
    return float(max(low, min(high, value)))


def job_key(doc: "Doc") -> "Key":
    """(job id, run version) of a message. Raises BadValue."""
    id = field(doc, "id", str)
    run = field(doc, "run", int)
    if not JOB_ID.match(id) or ".." in id:
        raise BadValue("job id %.80r is none of PBS's" % id)
    if not 0 <= run < 1 << 31:
        raise BadValue("run %r of job %s must be from 0 to 2^31-1" % (run, id))
    return id, run


def words(doc: "Doc", name: str, most: int) -> "List[str]":
    """A list of at most so many names; empty where there is none. Raises BadValue."""
    values = field(doc, name, list, [])
    if len(values) > most or not all(isinstance(value, str) and 0 < len(value) < 256 for value in values):
        raise BadValue("field %s must be a list of up to %d names" % (name, most))
    return list(values)


def count(doc: "Doc", name: str, default: "Optional[int]" = None) -> int:
    """An integer that fits a message; whether it makes sense is decided by the daemon's core. Raises BadValue."""
    value = field(doc, name, int, default)
    if not -(1 << 40) < value < 1 << 40:
        raise BadValue("field %s is %r, it must fit in 40 bits" % (name, value))
    return int(value)


def parse(line: bytes) -> "Doc":
    """A line of JSON as an object. Raises BadValue."""
    try:
        doc = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadValue("no JSON: %s" % error) from error
    if not isinstance(doc, dict):
        raise BadValue("no JSON object")
    return doc


def _no_constant(name: str) -> "NoReturn":
    raise ValueError("%s is no JSON number" % name)


def encode(doc: "Doc") -> bytes:
    return json.dumps(doc, separators=(",", ":")).encode("utf-8") + b"\n"


def refusal(code: str, text: str, retry_after_s: "Optional[float]" = None) -> "Doc":
    answer: "Doc" = {"ok": False, "code": code, "text": text}
    if retry_after_s is not None:
        answer["retry_after_s"] = retry_after_s
    return answer


# --- configuration ---------------------------------------------------------------------------------------------------


class Config:
    """The agent's configuration file: a JSON object; unknown keys are refused. Raises Unusable."""

    def __init__(self, path: str) -> None:
        self.path = path
        doc = self._read(path)
        self.socket = self._text(doc, "socket", "/run/magrathea/agent.sock")
        self.channel = self._text(doc, "channel", "port:/dev/virtio-ports/org.magrathea.0")
        self.state = self._text(doc, "state", "/var/lib/magrathea/agent-state.json")
        self.scripts = self._text(doc, "scripts", "/etc/magrathea/hooks.d/guest")
        limit = doc.pop("script_time_limit_s", 30)
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0.1 <= limit <= 3600:
            raise Unusable("%s: script_time_limit_s is %.60r; give seconds from 0.1 to 3600" % (path, limit))
        self.script_time_limit_s = float(limit)
        self.job_cgroups = self._cgroups(doc)
        self.environment = self._environment(doc)
        self.power_off = self._command(doc, "power_off")
        if doc:
            known = "socket, channel, state, scripts, script_time_limit_s, job_cgroups, environment, power_off"
            raise Unusable("%s: unknown key %s; known are %s" % (path, ", ".join(sorted(doc)), known))
        kind, _, where = self.channel.partition(":")
        if kind not in ("unix", "port") or not where.startswith("/"):
            raise Unusable(
                '%s: channel is %.100r; give "unix:/path/to/socket" or "port:/dev/virtio-ports/NAME"'
                % (path, self.channel)
            )
        self.channel_kind, self.channel_path = kind, where

    @staticmethod
    def _read(path: str) -> "Doc":
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_LINE_BYTES + 1)
        except OSError as error:
            raise Unusable(
                "%s: cannot be read: %s; give --config or set %s" % (path, error.strerror, CONFIG_VARIABLE)
            ) from error
        if len(text) > MAX_LINE_BYTES:
            raise Unusable("%s: longer than %d bytes" % (path, MAX_LINE_BYTES))
        try:
            return parse(text)
        except BadValue as error:
            raise Unusable("%s: %s" % (path, error)) from error

    def _text(self, doc: "Doc", name: str, default: str) -> str:
        value = doc.pop(name, default)
        if not isinstance(value, str) or "\0" in value or not 0 < len(value) < 4096:
            raise Unusable("%s: %s is %.60r; give a path" % (self.path, name, value))
        if name != "channel" and not value.startswith("/"):
            raise Unusable("%s: %s is %.60r; give an absolute path" % (self.path, name, value))
        return value

    def _cgroups(self, doc: "Doc") -> "Tuple[str, ...]":
        value = doc.pop("job_cgroups", list(DEFAULT_CGROUPS))
        if not isinstance(value, list) or len(value) > 16 or not all(isinstance(v, str) for v in value):
            raise Unusable("%s: job_cgroups must be a list of at most 16 path templates" % self.path)
        for template in value:
            if not template.startswith("/") or template.rpartition("/")[2].count("{job}") != 1:
                raise Unusable(
                    "%s: job_cgroups: %.100r must be absolute with {job} in its last part" % (self.path, template)
                )
        return tuple(value)

    def _command(self, doc: "Doc", name: str) -> "List[str]":
        value = doc.pop(name, [])
        if not isinstance(value, list) or len(value) > 16 or not all(isinstance(v, str) and v for v in value):
            raise Unusable("%s: %s must be a list of at most 16 words: a program and its arguments" % (self.path, name))
        if value and not value[0].startswith("/"):
            raise Unusable("%s: %s: %.100r is no absolute path" % (self.path, name, value[0]))
        return value

    def _environment(self, doc: "Doc") -> "Tuple[bytes, ...]":
        """Variables that a job's process must carry beside PBS_JOBID, as `NAME=value`.

        For several domains on one machine that do not hide their processes from each other: a job on two of them
        has the same PBS_JOBID in both.
        """
        value = doc.pop("environment", {})
        if not isinstance(value, dict) or len(value) > 8:
            raise Unusable("%s: environment must be an object of at most 8 variables" % self.path)
        for name, text in value.items():
            if not isinstance(text, str) or "\0" in text or "=" in name or "\0" in name or not name:
                raise Unusable("%s: environment: %.60r=%.60r is no variable" % (self.path, name, text))
        return tuple(("%s=%s" % item).encode() for item in sorted(value.items()))


# --- /proc -----------------------------------------------------------------------------------------------------------


class Proc:
    """A process as it was when last read.

    `start`: its start time in clock ticks since boot; with the pid its identity. `inode`: of its /proc directory: as
    long as that is the same, so is the process (procfs makes a new one for each). `image`: changes with each exec
    (where its stack begins, its name). `env_job`: PBS_JOBID of its environment, "" for none, None for not yet known.
    `job`: whose it is; `judged`: nobody's, unless it execs. `struck_at`: when SIGSTOP was first sent to it and no
    SIGCONT since, `hit_at`: when last. `pending_since`: seen in uninterruptible sleep with that SIGSTOP pending.
    """

    __slots__ = (
        "env_job",
        "first_seen",
        "hit_at",
        "image",
        "inode",
        "job",
        "judged",
        "kthread",
        "pending_since",
        "pgrp",
        "pid",
        "ppid",
        "read_at",
        "sid",
        "start",
        "state",
        "struck_at",
        "threads",
        "uids",
    )

    def __init__(self, pid: int, inode: int, start: int, now: float) -> None:
        self.pid = pid
        self.inode = inode
        self.start = start
        self.first_seen = now
        self.image: "Optional[Tuple[bytes, bytes]]" = None
        self.env_job: "Optional[str]" = None
        self.uids: "Optional[Tuple[int, ...]]" = None
        self.job: "Optional[Job]" = None
        self.struck_at: "Optional[float]" = None
        self.hit_at = 0.0
        self.pending_since: "Optional[float]" = None
        self.judged = False
        self.kthread = False
        self.ppid = self.pgrp = self.sid = self.threads = 0
        self.state = "R"
        self.read_at = now

    @property
    def dead(self) -> bool:
        return self.state in "ZXx"


def read_file(path: str, limit: int = 65536) -> bytes:
    """A file of /proc or /sys, at most `limit` bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while limit > 0:
            data = os.read(fd, min(65536, limit))  # many of these files come in pieces of a page, or less
            if not data:
                break
            pieces.append(data)
            limit -= len(data)
        return b"".join(pieces)
    finally:
        os.close(fd)


def read_stat(path: str) -> "Tuple[bytes, List[bytes]]":
    """(name, fields from the third on) of a /proc stat file. Raises OSError, also where the process has just gone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return stat_fields(os.read(fd, STAT_BYTES))  # this is the most frequent call of all
    finally:
        os.close(fd)


def stat_fields(line: bytes) -> "Tuple[bytes, List[bytes]]":
    """As `read_stat`, of what has been read."""
    end = line.rfind(b")")
    fields = line[end + 2 :].split(None, 26)
    if end < 0 or len(fields) < 26:
        raise OSError(errno.ESRCH, "the process has gone")
    return line[line.find(b"(") + 1 : end], fields


def start_of(pid: int) -> "Optional[int]":
    """Start time of a process (clock ticks since boot), or None where there is none."""
    try:
        return int(read_stat("/proc/%d/stat" % pid)[1][19])
    except OSError:
        return None


def status_of(pid: int, names: "Tuple[bytes, ...]") -> "Dict[bytes, List[bytes]]":
    """Lines of /proc/PID/status as words. Raises OSError."""
    found = {}
    for line in read_file("/proc/%d/status" % pid).split(b"\n"):
        name, _, rest = line.partition(b":")
        if name in names:
            found[name] = rest.split()
    return found


def uids_of(pid: int) -> "Tuple[int, ...]":
    """Real, effective and saved uid; empty where the process has gone."""
    try:
        return tuple(int(u) for u in status_of(pid, (b"Uid",)).get(b"Uid", [])[:3])
    except OSError:
        return ()


def read_environ(pid: int) -> bytes:
    """Environment of a process; empty where it has none (yet, in the midst of an exec). Raises PermissionError."""
    denied = None
    for place in ("", "task"):
        try:
            if place:  # the main thread may have ended: then a later one has the memory
                place = "task/%d/" % max(int(t) for t in os.listdir("/proc/%d/task" % pid))
            data = read_file("/proc/%d/%senviron" % (pid, place), MAX_ENVIRON_BYTES)
        except PermissionError as error:
            denied = error
        except (OSError, ValueError):
            continue
        else:
            if data:
                return data
    if denied is not None:
        raise denied
    return b""


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal and lets it through: else it might end by it."""
    bit = 1 << (number - 1)
    try:
        masks = {name: int(words[0], 16) for name, words in status_of(pid, (b"SigCgt", b"SigBlk")).items()}
    except (OSError, IndexError):
        return False  # it has just gone
    return bool(masks.get(b"SigCgt", 0) & bit and not masks.get(b"SigBlk", bit) & bit)


def is_pending(pid: int, signal_bit: int) -> bool:
    """Whether a signal waits to be delivered to the process."""
    try:
        lines = status_of(pid, (b"SigPnd", b"ShdPnd"))
    except OSError:
        return False
    return any(words and int(words[0], 16) & signal_bit for words in lines.values())


def waits_for_vfork(pid: int) -> bool:
    """Whether the process waits within fork or vfork: in the latter for a child that has its memory, and is stopped."""
    try:
        return read_file("/proc/%d/wchan" % pid) in FORK_WCHANS
    except OSError:
        return False


def thread_state(pid: int) -> str:
    """State of the first living thread of a process whose main thread has ended; "Z" if none lives."""
    try:
        for thread in os.listdir("/proc/%d/task" % pid):
            state = read_stat("/proc/%d/task/%s/stat" % (pid, thread))[1][0].decode()
            if state not in "ZXx":
                return state
    except OSError:
        return "Z"
    return "Z"


def boot_id() -> str:
    """This boot of this kernel: pids and start times mean nothing in another."""
    try:
        return read_file("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        return "unknown"


def memory_report() -> "Dict[str, int]":
    """Memory of the machine, in MiB. Unreclaimable: locked pages and huge pages. Swap cached: in memory still although
    it has been written to swap; free for the asking, and yet not counted as available by the kernel."""
    values = {}
    for line in read_file("/proc/meminfo").decode("ascii", "replace").split("\n"):
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[name] = int(words[0])
    huge_kib = max(values.get("Hugetlb", 0), values.get("HugePages_Total", 0) * values.get("Hugepagesize", 0))
    locked_kib = max(values.get("Unevictable", 0), values.get("Mlocked", 0))
    return {
        "total_mib": values.get("MemTotal", 0) >> 10,
        "available_mib": values.get("MemAvailable", 0) >> 10,
        "unreclaimable_mib": (huge_kib + locked_kib) >> 10,
        "swap_free_mib": values.get("SwapFree", 0) >> 10,
        "swap_total_mib": values.get("SwapTotal", 0) >> 10,
        "free_mib": values.get("MemFree", 0) >> 10,
        "swap_cached_mib": values.get("SwapCached", 0) >> 10,
    }


# --- signals ---------------------------------------------------------------------------------------------------------


class Signaller:
    """Sends signals to processes known by pid and start time."""

    def __init__(self) -> None:
        # by name, for these exist since Python 3.9 only
        self._open: "Optional[Callable[..., int]]" = getattr(os, "pidfd_open", None)
        self._send: "Optional[Callable[..., None]]" = getattr(signal, "pidfd_send_signal", None)
        self.pidfd = self._works()
        self.groups = self.pidfd

    def _works(self) -> bool:
        if self._open is None or self._send is None:
            return False
        try:
            fd = self._open(os.getpid())
        except OSError:  # a kernel before 5.3, or a container's filter
            return False
        try:
            self._send(fd, 0)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def send(self, pid: int, start: int, number: int) -> bool:
        """True: sent. False: that process no longer exists. Raises PermissionError."""
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
        """To a whole process group in one call, so that nothing forked in it is missed. False: could not."""
        if not self.groups or self._open is None or self._send is None:
            return False
        try:
            fd = self._open(leader)
        except OSError:
            return False
        try:
            if start_of(leader) != start:
                return False
            self._send(fd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a kernel before 6.9
                self.groups = False
            return False
        finally:
            os.close(fd)
        return True


def raise_priority() -> bool:
    """The real-time class, as far as it is permitted: a storm of a thousand processes would else leave the agent a
    thousandth of a CPU, and an order would wait for its turn. False: an ordinary process, where root is missing."""
    if os.geteuid() != 0:
        return False
    try:
        # children (the site's scripts) begin as ordinary processes again
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        return True
    except OSError as error:
        log.info("no real-time class (%s): stopping a fork storm may take longer" % error.strerror)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except OSError as error:
        log.info("no raised priority either: %s" % error.strerror)
    return False


# --- jobs and their processes ----------------------------------------------------------------------------------------


class Job:
    """A job of this domain's MoM.

    `uid`: of its owner, None while not known (then none of its processes is touched). `order`: what the daemon wants,
    None for nothing. `stopped_at`: when it was told to stop, as long as it is (Unix seconds, for people). `sessions`:
    session id -> start time of its leader. `struck`: pid -> start time of what the agent stopped, `groups`: process
    groups signalled as a whole. `seen`: a process of it has been seen (or it begins on another host, and may never have
    one here); `telling`, `told`: and the daemon is being told, or knows. `deleted`: MoM is about to kill it,
    `leaders_at`: when its shells get their SIGTERM at the latest; `ending`: MoM's list says so. `listed`: claimed, or
    in MoM's list; else it is known from the daemon's orders only. `missing`: from how many of MoM's lists in a row.
    `procs`: its living processes at the last look; `doubtful`: how many carry its id but cannot be judged, because its
    owner is not known. `stopped`, `pending` (in uninterruptible sleep with the stop pending), `running`: as of the last
    pass; `calm`: how many passes in a row found all stopped and none new; `settled`: the order is carried out.
    `barrier`: the next pass freezes first. `wake_all`: the next continues what others stopped, too. `warning`: the
    signal to send before the stop, 0 for none (left); `warned_until`: until then it is not stopped yet. `told_at`: when
    it was last told that others continue it.
    """

    def __init__(self, key: "Key", now: float) -> None:
        self.id, self.run = key
        self.owner = ""
        self.uid: "Optional[int]" = None
        self.known_at = now
        self.order: "Optional[str]" = None
        self.stopped_at: "Optional[float]" = None
        self.settled = True
        self.seen = False
        self.told = False
        self.telling = False
        self.ending = False
        self.deleted = False
        self.leaders_at: "Optional[float]" = None
        self.listed = False
        self.missing = 0
        self.sessions: "Dict[int, int]" = {}
        self.struck: "Dict[int, int]" = {}
        self.procs: "Dict[int, Proc]" = {}
        self.groups: "Set[int]" = set()
        self.doubtful = 0
        self.stopped = 0
        self.pending = 0
        self.running = 0
        self.calm = 0
        self.barrier = False
        self.wake_all = False
        self.warning = 0
        self.warned_until = 0.0
        self.told_at = 0.0

    @property
    def key(self) -> "Key":
        return self.id, self.run

    @property
    def leaving(self) -> bool:
        """It is neither stopped nor waited for: PBS is killing it."""
        return self.ending or self.deleted

    def name(self) -> "Doc":
        return {"id": self.id, "run": self.run}

    def __str__(self) -> str:
        return "%s (run %d)" % (self.id, self.run)


class Cgroups:
    """PBS's job cgroups: the directories of a job, its processes, and a short freeze as a barrier (law 4)."""

    REFRESH_S = 30.0
    ABSENT_S = 1.0  # the same where there is none: where PBS makes none, each look would search

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
        """Look again where PBS keeps its jobs: the directories come with the site's first job."""
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
        """Freeze the job, for a short time: the directories to give to `thaw`, only those frozen by this call."""
        frozen = []
        for path in self.directories(id):
            for name, word, done in (("cgroup.freeze", b"1", b"frozen 1"), ("freezer.state", b"FROZEN", b"FROZEN")):
                file = os.path.join(path, name)
                try:
                    if read_file(file).strip() in (b"1", b"FROZEN", b"FREEZING"):
                        break  # by somebody else: not ours to thaw
                    self._write(file, word)
                except OSError:
                    continue  # no freezer here, or not for us
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
        """An agent killed between freeze and thaw leaves the job frozen: the next one mends it at its start."""
        for path in self.directories(id):
            for name in ("cgroup.freeze", "freezer.state"):
                file = os.path.join(path, name)
                try:
                    frozen = read_file(file).strip() in (b"1", b"FROZEN", b"FREEZING")
                except OSError:
                    continue
                if frozen:
                    log.warning("%s: found frozen; thawed" % file)
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


class Births:
    """Whether any process or thread has been made: a number that each takes with it, in this pid namespace."""

    PATH = "/proc/sys/kernel/ns_last_pid"

    def __init__(self) -> None:
        try:
            self.fd = os.open(self.PATH, os.O_RDONLY)
        except OSError:  # a kernel built without CONFIG_CHECKPOINT_RESTORE
            self.fd = -1

    def last(self) -> "Optional[bytes]":
        """The newest number; None where that cannot be said."""
        if self.fd < 0:
            return None
        try:
            return os.pread(self.fd, 32, 0) or None
        except OSError:
            return None


class StoppedProcesses:
    """Whether what was stopped still is: one small read for each process, from a file that is kept open.

    Such a file is of that process for ever, also when its pid is somebody else's.
    """

    def __init__(self) -> None:
        self.files: "Dict[Proc, int]" = {}
        self.others: "List[Proc]" = []

    def watch(self, procs: "Iterable[Proc]") -> None:
        """These from now on, and no others."""
        before, self.files, self.others = self.files, {}, []
        for proc in procs:
            fd = before.pop(proc, -1)
            if fd < 0 and len(self.files) < MAX_KEPT_FILES:
                fd = self._open(proc)
            if fd < 0:
                self.others.append(proc)
            else:
                self.files[proc] = fd
        for fd in before.values():
            os.close(fd)

    @staticmethod
    def _open(proc: Proc) -> int:
        """-1: it has gone, or cannot be kept."""
        fd = -1
        try:
            fd = os.open("/proc/%d/stat" % proc.pid, os.O_RDONLY)
            same = int(stat_fields(os.pread(fd, STAT_BYTES, 0))[1][19]) == proc.start
        except OSError:
            same = False
        if fd >= 0 and not same:
            os.close(fd)
        return fd if same else -1

    def still(self) -> bool:
        """False: one is not, or has gone."""
        try:
            for fd in self.files.values():
                line = os.pread(fd, STAT_BYTES, 0)
                at = line.rfind(b")") + 2
                if line[at : at + 1] != b"T":
                    return False
            for proc in self.others:
                fields = read_stat("/proc/%d/stat" % proc.pid)[1]
                if fields[0] != b"T" or int(fields[19]) != proc.start:
                    return False
        except OSError:
            return False
        return True


class Finder:
    """Which process belongs to which job.

    `look` reads /proc once. What has been read stays in `procs`; a process whose /proc inode is unchanged is read
    again only where something about it can matter: a stranger can become a job's process only by an exec (MoM's
    child on its way to be the job's shell), so strangers are read again in a thorough look only.
    """

    def __init__(self, cgroups: Cgroups, marks: "Tuple[bytes, ...]") -> None:
        self.cgroups = cgroups
        self.marks = [b"\0" + m + b"\0" for m in marks]
        self.procs: "Dict[int, Proc]" = {}
        self.never = (0, 1, 2, os.getpid())
        self.spared: "Dict[int, Tuple[int, Optional[Tuple[bytes, bytes]]]]" = {}
        self.asked: "Set[Tuple[Key, Optional[int]]]" = set()
        self.unfinished = False  # the last look has not read all environments that it should
        self.births = Births()
        self.newest: "Optional[bytes]" = None  # number when the last whole look began; None: that was not whole
        self.newest_at = 0.0  # and when a whole look first began with it
        self.whole_at = 0.0  # when the last whole look began
        self.young_until = 0.0  # until then a process that it has seen may yet become a job's by an exec
        self.grouped: "Dict[Key, Set[int]]" = {}  # what it has found in the jobs' cgroups

    def spare(self, pid: int) -> None:
        """Never touch this process and its ancestors: MoM, as whose hook it has spoken to us.

        As long as they are what they are now: the prologue hook's parent is about to become the job by an exec.
        """
        for _ in range(64):
            if pid in self.never:
                return
            try:
                name, fields = read_stat("/proc/%d/stat" % pid)
            except OSError:
                return
            if len(self.spared) >= 4096:  # hooks that ended long ago
                self.spared.clear()
            start, image = int(fields[19]), (fields[25], name)
            self.spared[pid] = (start, image)
            known = self.procs.get(pid)
            if known is not None and known.start == start:
                known.image = image  # an exec may have been half done when it was read
                if known.job is not None:
                    known.job.procs.pop(pid, None)
                    known.job = None
            pid = int(fields[1])

    def _is_spared(self, proc: Proc) -> bool:
        return proc.pid in self.never or self.spared.get(proc.pid) == (proc.start, proc.image)

    def look(self, jobs: "List[Job]", thorough: bool, since: float, environ: bool = True) -> "Set[Proc]":
        """Read /proc and give each process to its job. Returns those newly found.

        `thorough`: strangers, too. Members seen stopped after the time `since` are not read again. `environ`: else no
        environments are read: that waits for a lock of its process, which in the midst of a fork waits for a CPU.
        """
        now = time.monotonic()
        newest = self.births.last()  # before anything is read: what is made from here on may be missed
        asked = {(job.key, job.uid) for job in jobs}
        if asked != self.asked:  # a stranger may be a job's process now
            self.asked = asked
            self.newest = None
            self.procs = {pid: p for pid, p in self.procs.items() if p.job is not None or p.kthread}
        fresh = self._read(now, thorough, since)
        by_id: "Dict[str, Job]" = {}
        for job in jobs:
            if job.id not in by_id or by_id[job.id].run < job.run:
                by_id[job.id] = job  # an earlier run has no processes any more
        current = set(by_id.values())
        members: "Dict[int, Proc]" = {}
        for proc in self.procs.values():
            if proc.job is not None:
                if proc.job in current:
                    members[proc.pid] = proc
                else:
                    proc.job = None
        found = self._by_cgroup(by_id, members, now) | self._by_descent(by_id, members, fresh)
        self.unfinished = not environ
        seeds = self._by_environment(by_id, members, fresh) if environ else None
        if seeds:
            found |= seeds | self._by_descent(by_id, members, fresh)
        for job in jobs:
            job.procs = {}
        for proc in members.values():
            if proc.job is not None and (not proc.dead or proc.threads > 1):
                proc.job.procs[proc.pid] = proc
        self._looked(None if self.unfinished or not thorough else newest, now)
        return found

    def _looked(self, newest: "Optional[bytes]", began: float) -> None:
        """A look is over. `newest`: the number of births when it began, None if it was not whole."""
        if newest is None:
            self.newest = None
            return
        if newest != self.newest:
            self.newest, self.newest_at = newest, began
        self.whole_at = began
        strangers = [p.first_seen for p in self.procs.values() if p.job is None and not p.kthread and not p.dead]
        self.young_until = max(strangers or [0.0]) + SETTLED_S

    def unchanged(self, jobs: "Iterable[Job]", patience_s: float) -> bool:
        """Whether a look would find of these jobs what the last one has found, and nothing more. Costs next to nothing.

        A process comes to a job by its birth, which is counted; by an exec (or a change of its user) soon after it; or
        by being put into the job's cgroup. A process has its number before /proc shows it: so the last look must have
        begun some time after the number was first seen. What comes in no such way (a process of old that execs; a
        number set by root, as for a restored process) is found by the next look that is whole, after `patience_s` in
        any case.
        """
        now = time.monotonic()
        return (
            self.newest is not None
            and self.whole_at - self.newest_at >= UNBORN_S
            and now - self.whole_at < patience_s
            and now >= self.young_until
            and self.births.last() == self.newest
            and (not self.cgroups.found or all(self.cgroups.pids(j.id) == self.grouped.get(j.key) for j in jobs))
        )

    def _read(self, now: float, thorough: bool, since: float) -> "List[Proc]":
        """Bring `procs` up to date; those (re)read, in order of pid."""
        before, after, fresh = self.procs, {}, []
        with os.scandir("/proc") as entries:
            for entry in entries:
                name = entry.name
                if not "0" <= name[0] <= "9":
                    continue
                pid, inode = int(name), entry.inode()
                old = before.get(pid)
                if old is not None and old.inode == inode:
                    if old.kthread:
                        skip = True
                    elif old.job is not None:
                        skip = old.state == "T" and old.read_at >= since
                    elif thorough:
                        skip = now - old.first_seen > SETTLED_S and now - old.read_at < REREAD_S
                    else:
                        skip = old.judged
                    if skip:
                        after[pid] = old
                        continue
                proc = self._update(pid, inode, old)
                if proc is not None:
                    after[pid] = proc
                    if not proc.kthread:
                        fresh.append(proc)
        self.procs = after
        return fresh

    def _update(self, pid: int, inode: int, old: "Optional[Proc]") -> "Optional[Proc]":
        try:
            name, fields = read_stat("/proc/%d/stat" % pid)
        except OSError:
            return None
        now = time.monotonic()
        start = int(fields[19])
        if old is not None and old.start == start:
            proc = old
            proc.inode = inode
        else:
            proc = Proc(pid, inode, start, now)
            proc.kthread = bool(int(fields[6]) & PF_KTHREAD)
        proc.ppid, proc.pgrp, proc.sid = int(fields[1]), int(fields[2]), int(fields[3])
        proc.threads = int(fields[17])
        proc.state = chr(fields[0][0])
        if proc.state in "ZX" and proc.threads > 1:
            proc.state = thread_state(pid)
        proc.read_at = now
        image = (fields[25], name)
        if proc.image != image:
            proc.image = image
            proc.env_job = None
            proc.uids = None
            proc.judged = False
        return proc

    def _owned(self, proc: Proc, job: Job) -> bool:
        return job.uid is not None and not self._is_spared(proc) and self._fits(proc, job, self._uids(proc))

    @staticmethod
    def _fits(proc: Proc, job: Job, uids: "Tuple[int, ...]") -> bool:
        """By its uids it can be the job's. A job of root's: MoM's own children run as root, too, and are not."""
        return job.uid in uids and (job.uid != 0 or proc.image is None or proc.image[1] not in MOM_NAMES)

    def _uids(self, proc: Proc) -> "Tuple[int, ...]":
        try:
            uid = os.stat("/proc/%d" % proc.pid).st_uid
        except OSError:
            return ()
        if uid != 0:
            return (uid,)
        if proc.uids is None:  # root, or it shows as root because nobody may read its memory
            proc.uids = uids_of(proc.pid)
        return proc.uids

    def _by_cgroup(self, by_id: "Dict[str, Job]", members: "Dict[int, Proc]", now: float) -> "Set[Proc]":
        found: "Set[Proc]" = set()
        self.cgroups.refresh(now)
        self.grouped = {}
        if not self.cgroups.found:
            return found
        for job in by_id.values():
            self.grouped[job.key] = self.cgroups.pids(job.id)
            for pid in self.grouped[job.key]:
                proc = self.procs.get(pid) or self._update(pid, 0, None)
                if proc is not None and proc.job is None and not self._is_spared(proc):
                    self._take(proc, job, members, found)
        return found

    def _by_environment(self, by_id: "Dict[str, Job]", members: "Dict[int, Proc]", fresh: "List[Proc]") -> "Set[Proc]":
        found: "Set[Proc]" = set()
        if not by_id:
            return found
        until = time.monotonic() + ENVIRON_BUDGET_S
        owners = {job.uid for job in by_id.values()}
        for job in by_id.values():
            job.doubtful = 0
        for proc in fresh:
            if proc.job is not None or proc.dead:
                continue
            uids = self._uids(proc)
            proc.judged = True
            if self._is_spared(proc) or not (any(uids) if None in owners else owners.intersection(uids)):
                continue
            if proc.env_job is None:
                if time.monotonic() > until:
                    self.unfinished = True  # the next look goes on
                    proc.judged = False
                    continue
                proc.env_job = self._job_of_environ(proc.pid)
                proc.judged = proc.env_job is not None
                if not proc.judged and time.monotonic() - proc.first_seen < EXEC_S:
                    self.unfinished = True  # in the midst of an exec: it has an environment soon, or really none
            owner = by_id.get(proc.env_job) if proc.env_job else None
            if owner is None:
                continue
            if owner.uid is None:
                owner.doubtful += 1
            elif self._fits(proc, owner, uids):
                self._take(proc, owner, members, found)
        return found

    def _job_of_environ(self, pid: int) -> "Optional[str]":
        """PBS_JOBID of a process; "" for none; None where that cannot be said yet (in the midst of an exec)."""
        try:
            data = read_environ(pid)
        except PermissionError:
            return ""
        if not data:
            return None
        data = b"\0" + data + b"\0"
        at = data.find(b"\0PBS_JOBID=")
        if at < 0 or not all(mark in data for mark in self.marks):
            return ""
        return data[at + 11 : data.index(b"\0", at + 11)].decode("utf-8", "replace")

    def _by_descent(self, by_id: "Dict[str, Job]", members: "Dict[int, Proc]", fresh: "List[Proc]") -> "Set[Proc]":
        """Children of a job's process, and processes of a session whose leader is (or was) the job's."""
        found: "Set[Proc]" = set()
        sessions: "Dict[int, Tuple[Job, int]]" = {}
        for job in by_id.values():
            for sid, start in list(job.sessions.items()):
                leader = self.procs.get(sid)
                if leader is not None and leader.start != start:
                    del job.sessions[sid]  # that session has ended, and its number is somebody else's
                else:
                    sessions[sid] = (job, start)
        for proc in members.values():
            if proc.pid == proc.sid and proc.job is not None:
                sessions[proc.sid] = (proc.job, proc.start)
        rest = [p for p in fresh if p.job is None and not p.dead]
        while rest:
            left = []
            for proc in rest:
                parent = members.get(proc.ppid)
                its = parent.job if parent is not None else None
                if its is None and proc.sid in sessions and proc.start >= sessions[proc.sid][1]:
                    its = sessions[proc.sid][0]
                if its is not None and self._owned(proc, its):
                    self._take(proc, its, members, found)
                    if proc.pid == proc.sid:
                        sessions[proc.sid] = (its, proc.start)
                else:
                    left.append(proc)
            if len(left) == len(rest):
                break
            rest = left
        return found

    def _take(self, proc: Proc, job: Job, members: "Dict[int, Proc]", found: "Set[Proc]") -> None:
        proc.job = job
        self.procs[proc.pid] = members[proc.pid] = proc
        found.add(proc)
        if job.struck.get(proc.pid) == proc.start and proc.struck_at is None:
            proc.struck_at = proc.read_at  # by this agent's predecessor
        if proc.pid == proc.sid:
            job.sessions[proc.sid] = proc.start

    def forget(self, job: Job) -> None:
        for proc in self.procs.values():
            if proc.job is job:
                proc.job = None
                proc.struck_at = None


# --- the event loop --------------------------------------------------------------------------------------------------


class Timer:
    """Something to do at a time, unless cancelled."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: "Callable[[], None]") -> None:
        self.when = when
        self.action: "Optional[Callable[[], None]]" = action

    def cancel(self) -> None:
        self.action = None


class Loop:
    """Files and times, in one thread. Sleeps until the next of them.

    An exception in a handler is a defect of the agent, but not a reason to give up standing orders: it is logged with
    its place; when that happens again and again the agent ends, and its service manager starts it anew.
    """

    MAX_FAULTS = 20  # within FAULT_WINDOW_S
    FAULT_WINDOW_S = 60.0

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: "List[Tuple[float, int, Timer]]" = []
        self.serial = 0
        self.stopping = False
        self.status = 0
        self.faults: "Deque[float]" = deque()

    def after(self, delay: float, action: "Callable[[], None]") -> Timer:
        timer = Timer(time.monotonic() + delay, action)
        self.serial += 1
        heapq.heappush(self.timers, (timer.when, self.serial, timer))
        return timer

    def watch(self, fd: int, events: int, action: "Callable[[int], None]") -> None:
        """Call `action` with the events that came, until `unwatch`."""
        try:
            self.selector.modify(fd, events, action)
        except KeyError:
            self.selector.register(fd, events, action)

    def unwatch(self, fd: int) -> None:
        if fd in self.selector.get_map():
            self.selector.unregister(fd)

    def stop(self, status: int = 0) -> None:
        self.stopping = True
        self.status = status

    def run(self) -> int:
        while not self.stopping:
            self.turn()
        return self.status

    def turn(self) -> None:
        while self.timers and self.timers[0][2].action is None:
            heapq.heappop(self.timers)
        timeout = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else None
        for key, events in self.selector.select(timeout):
            if key.fd in self.selector.get_map():  # not taken away by an earlier one
                self._guard(lambda key=key, events=events: key.data(events))  # type: ignore[misc]
        now = time.monotonic()
        due = []
        while self.timers and self.timers[0][0] <= now:
            due.append(heapq.heappop(self.timers)[2])
        for timer in due:
            if timer.action is not None:
                self._guard(timer.action)

    def _guard(self, action: "Callable[[], None]") -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (see above: a defect, logged, must not end standing orders)
            place = error.__traceback__
            where = []
            while place is not None:
                where.append("%s:%d" % (place.tb_frame.f_code.co_name, place.tb_lineno))
                place = place.tb_next
            log.error("defect: %s: %s at %s" % (type(error).__name__, error, " < ".join(reversed(where))))
            now = time.monotonic()
            self.faults.append(now)
            while self.faults and now - self.faults[0] > self.FAULT_WINDOW_S:
                self.faults.popleft()
            if len(self.faults) >= self.MAX_FAULTS:
                log.error("%d defects in %d s: ending, to be started anew" % (len(self.faults), self.FAULT_WINDOW_S))
                self.stop(1)


# --- standing orders -------------------------------------------------------------------------------------------------


class Effort:
    """One `orders` request being carried out: which jobs, until when, and who is to be told."""

    def __init__(self, keys: "List[Key]", began: float, deadline: float, reply: "Reply") -> None:
        self.keys = keys
        self.began = began
        self.deadline = deadline
        self.reply = reply


class Sweeper:
    """Carries out orders: looks, signals, looks again, until all is as ordered; and again while a stop stands.

    A stop is complete when two looks in a row have found every process of the job stopped and none new: what forked
    before it was stopped is in the second look's list.
    """

    def __init__(self, loop: Loop, jobs: "Dict[Key, Job]", finder: Finder, signaller: Signaller) -> None:
        self.loop = loop
        self.jobs = jobs
        self.finder = finder
        self.signaller = signaller
        self.on_seen: "Callable[[], None]" = lambda: None
        self.on_done: "Callable[[], None]" = lambda: None
        self.effort: "Optional[Effort]" = None
        self.since = 0.0  # when the present run of passes began
        self.until = 0.0  # and when it gives way to the slow sweeps
        self.pause = PASS_PAUSE_S[0]
        self.timer: "Optional[Timer]" = None
        self.denied: "Set[Tuple[int, int]]" = set()
        self.stopped = StoppedProcesses()
        self.watched_at: "Optional[float]" = None  # the look that it knows them from
        self.mended_at = 0.0  # when something was last to be stopped

    # orders

    def order(
        self,
        wanted: "List[Tuple[Key, str]]",
        deadline_s: float,
        reply: "Reply",
        warnings: "Optional[Dict[Key, Tuple[int, float]]]" = None,
    ) -> None:
        """The full set of orders; `reply` gets the answer when they are carried out, or at the deadline.

        `warnings`: signal and seconds that a job gets before its stop begins; a stop that stands has none again.
        """
        now = time.monotonic()
        self._unwatch()
        if self.effort is not None:
            self.effort.reply(refusal("superseded", "newer orders came before these were carried out"))
            self.effort = None
        named = dict(wanted)
        for key, job in list(self.jobs.items()):
            if key not in named:
                self._set(job, None)
                if not job.listed:
                    self.forget(job)
        for key, word in wanted:
            if key not in self.jobs:
                self.jobs[key] = Job(key, now)
            job = self.jobs[key]
            begins = word == "stop" and job.order != "stop"
            self._set(job, word)
            if begins and warnings and key in warnings:
                job.warning, warn_s = warnings[key]
                job.warned_until = now + warn_s
        self.effort = Effort([key for key, _ in wanted], now, now + deadline_s, reply)
        self._begin(now, now + deadline_s)

    @staticmethod
    def _set(job: Job, order: "Optional[str]") -> None:
        if job.order != order:
            log.info("job %s: %s" % (job, order or "no order"))
            job.warning, job.warned_until = 0, 0.0
        job.stopped_at = (job.stopped_at or time.time()) if order == "stop" else None
        job.wake_all = order == "run" and job.order != "run"
        job.order = order
        job.calm = 0
        job.settled = order not in ("stop", "run")
        job.barrier = order == "stop"

    def forget(self, job: Job) -> None:
        self._unwatch()
        self.finder.forget(job)
        self.jobs.pop(job.key, None)

    def _unwatch(self) -> None:
        self.stopped.watch(())
        self.watched_at = None

    def resume_standing(self) -> None:
        """At the agent's start: what stood before stands again."""
        now = time.monotonic()
        for job in self.jobs.values():
            self.finder.cgroups.refresh(now)
            self.finder.cgroups.thaw_leftover(job.id)
            self._set(job, job.order)
        self._begin(now, now + ORDERS_S)

    # the work

    def _begin(self, now: float, until: float) -> None:
        self.since = self.mended_at = now
        self.until = until
        self.pause = PASS_PAUSE_S[0]
        struck = 0
        for job in self.jobs.values():
            if job.order == "stop" and not job.leaving and not job.settled and now >= job.warned_until:
                # what the last look has shown, at once: looking for the rest takes longer while all that runs
                running = [p for p in job.procs.values() if p.state != "T"]
                self._strike(job, running, now)
                struck += len(running)
        self._give_way(struck, now)
        self._drive(first=True)

    @staticmethod
    def _give_way(running: int, since: float) -> None:
        """A process needs a CPU to come to its stop, and waits for ours if that is where it last ran: so the CPU is
        left alone for about as long as it was taken, since the time `since`."""
        if running:
            took = time.monotonic() - since
            time.sleep(min(max(took, GIVE_WAY_S[0] + running * GIVE_WAY_S[1]), GIVE_WAY_S[2]))

    def _drive(self, first: bool = False) -> None:
        """Some passes; then an answer, or a pause."""
        for _ in range(PASSES_AT_ONCE):
            # what is known is stopped before environments are read; within bounds, for it may hang in the kernel
            known = any(job.procs and not job.settled for job in self.jobs.values())
            running = sum(job.running for job in self.jobs.values())
            began = time.monotonic()
            environ = not known or (not running and not first) or began - self.since > ENVIRON_S
            self._pass(thorough=first or environ, environ=environ)
            first = False
            left = [job for job in self.jobs.values() if not job.settled]
            if all(time.monotonic() < job.warned_until for job in left):
                break
            self._give_way(sum(job.running for job in left), began)
        now = time.monotonic()
        left = [job for job in self.jobs.values() if not job.settled]
        busy = now < self.until and bool(left)
        if not busy:
            self._finish(now)
        warned_s = min([job.warned_until - now for job in left] or [0.0])
        self._schedule(max(self.pause, warned_s) if busy else None)
        self.pause = min(2 * self.pause, PASS_PAUSE_S[1])

    def _finish(self, now: float) -> None:
        for job in self.jobs.values():
            if job.order == "run":
                job.settled = True  # a continue is not standing: what is stopped again is somebody else's
        effort, self.effort = self.effort, None
        self.on_done()
        if effort is not None:
            rows = [self.row(self.jobs[key]) for key in effort.keys if key in self.jobs]
            effort.reply({"ok": True, "jobs": rows, "ms": round((now - effort.began) * 1000, 2)})

    def row(self, job: Job) -> "Doc":
        # Out of time with processes not looked at yet: one of them may be the job's, so not all are said to be stopped.
        unknown = int(job.order == "stop" and self.finder.unfinished and not job.settled)
        leaving = job.order == "stop" and job.leaving
        return {
            "id": job.id,
            "run": job.run,
            "order": job.order,
            "processes": job.stopped if leaving else len(job.procs) + job.doubtful + unknown,
            "stopped": job.stopped,
            "pending": job.pending,
        }

    def _schedule(self, delay: "Optional[float]" = None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if delay is not None:
            self.timer = self.loop.after(delay, self._drive)
            return
        now = time.monotonic()
        if any(not j.seen and j.listed and now - j.known_at < LAUNCH_PATIENCE_S for j in self.jobs.values()):
            self.timer = self.loop.after(LAUNCH_POLL_S, self.glance)
        elif any(job.order == "stop" for job in self.jobs.values()):
            self.timer = self.loop.after(CALM_SWEEP_S if self._calm(now) else SWEEP_S, self.glance)

    def _calm(self, now: float) -> bool:
        ends = any(job.leaving or job.pending for job in self.jobs.values())
        return now - self.mended_at > CALM_AFTER_S and not ends

    def glance(self) -> None:
        """As `sweep`, for one small read per stopped process where nothing can have come to the jobs since then."""
        if self.effort is None and self._stands():
            self._schedule()
        else:
            self.sweep()

    def _stands(self) -> bool:
        """Whether every stop is as the last look has left it."""
        jobs = self.jobs.values()
        stops = [job for job in jobs if job.order == "stop"]
        if any(j.leaving or j.pending or j.barrier or not j.settled for j in stops):
            return False
        patience_s = CALM_LOOK_S if self._calm(time.monotonic()) else WHOLE_LOOK_S
        if not all(job.seen or not job.listed for job in jobs):
            patience_s = REREAD_S
        if not self.finder.unchanged(jobs, patience_s):
            return False
        if self.watched_at != self.finder.whole_at:
            self.stopped.watch(proc for job in stops for proc in job.procs.values())
            self.watched_at = self.finder.whole_at
        return self.stopped.still()

    def sweep(self) -> None:
        """A thorough look, and whatever stands is made true again.

        Environments are read where they are needed: to find what hides while a stop stands, or a job's first process.
        Reading one may wait for a process that is just forking, and a job in full run is not worth that.
        """
        now = time.monotonic()
        if self.effort is not None:
            return  # its passes are under way
        self.since = now
        self._pass(thorough=True, environ=any(j.order == "stop" or not j.procs for j in self.jobs.values()))
        if any(j.order == "stop" and j.running for j in self.jobs.values()):
            self.until = now + SWEEP_S
            self.pause = PASS_PAUSE_S[0]
            self._schedule(self.pause)
        else:
            self._schedule()

    def _pass(self, thorough: bool, environ: bool = True) -> None:
        jobs = list(self.jobs.values())
        barriers = [j for j in jobs if j.barrier and not j.leaving and time.monotonic() >= j.warned_until]
        frozen: "List[str]" = []
        try:
            for job in barriers:
                job.barrier = False
                frozen += self.finder.cgroups.freeze(job.id)
            found = self.finder.look(jobs, thorough, self.since, environ)
            grown = {proc.job for proc in found}
            for job in jobs:
                if job.order == "stop" and not job.leaving and self._warned(job):
                    job.stopped = sum(p.state in "Tt" for p in job.procs.values())
                    job.pending, job.running, job.calm = 0, len(job.procs) - job.stopped, 0
                elif job.order == "stop":
                    self._stop(job, job in grown or self.finder.unfinished)
                elif job.order == "run" and not job.settled:
                    self._continue(job)
                else:
                    job.stopped = sum(p.state in "Tt" for p in job.procs.values())
                    job.pending = job.running = 0
        finally:
            self.finder.cgroups.thaw(frozen)
        if any(job.order == "stop" and (job.running or job in grown) for job in jobs):
            self.mended_at = time.monotonic()
        seen = False
        for job in jobs:
            if job.procs and not job.seen:
                job.seen = seen = True
        if seen:
            self.on_seen()

    # stopping

    def _warned(self, job: Job) -> bool:
        """Whether the job still has time before its stop; its warning is sent now, if it was not yet.

        To those that handle the signal only: its default might end the others. Who has no such process waits for
        nothing.
        """
        number, job.warning = job.warning, 0
        if number:
            running = [p for p in job.procs.values() if p.state not in "Tt"]
            told = sum(catches(p.pid, number) and self._signal(p, number) for p in running)
            log.info("job %s: %d of %d processes warned by signal %d" % (job, told, len(running), number))
            if not told:
                job.warned_until = 0.0
        return time.monotonic() < job.warned_until

    def _stop(self, job: Job, grown: bool) -> None:
        """One pass's part for a job; `grown`: there is, or may be, more of it than before."""
        if job.leaving:
            if job.deleted:
                self._let_end(job)
            job.stopped = sum(p.state in "Tt" for p in job.procs.values())
            job.pending, job.running, job.settled = 0, 0, True
            return
        now = time.monotonic()
        running = [p for p in job.procs.values() if not self._is_stopped(p, now)]
        again = sum(p.struck_at is not None and not p.hit_at for p in running)
        if again and now - job.told_at > TELL_AGAIN_S:
            job.told_at = now
            log.info("job %s: somebody has continued %d of its processes; stopped again" % (job, again))
        for proc in job.procs.values():
            if proc.state == "T" and proc.struck_at is None and proc.pgrp in job.groups:
                self._note(proc, job, now)  # forked while its group was signalled
        self._strike(job, running, now)
        asleep = sum(p.pending_since is not None for p in job.procs.values())
        job.pending = asleep - sum(p.pending_since is not None for p in running)
        job.stopped = len(job.procs) - len(running) - job.pending
        job.running = len(running) + job.doubtful
        job.calm = 0 if running or grown else job.calm + 1
        job.settled = job.calm >= 2 and not job.doubtful

    def _is_stopped(self, proc: Proc, now: float) -> bool:
        if proc.state == "T":
            proc.pending_since = None
            proc.hit_at = 0.0  # if it runs again, somebody has continued it
            return True
        if proc.struck_at is None:
            return False
        if proc.state == "t":
            return True  # its tracer holds it, and the stop is waiting
        if proc.state != "D" or not is_pending(proc.pid, SIGSTOP_BIT):
            proc.pending_since = None
            return False
        if proc.pending_since is None:
            proc.pending_since = now
        waited = now - proc.pending_since
        return waited >= PENDING_COUNTS_S or (waited >= VFORK_COUNTS_S and waits_for_vfork(proc.pid))

    @staticmethod
    def _note(proc: Proc, job: Job, now: float) -> None:
        if proc.struck_at is None:
            proc.struck_at = now
        proc.hit_at = now
        job.struck[proc.pid] = proc.start

    def _strike(self, job: Job, running: "List[Proc]", now: float) -> None:
        """SIGSTOP to each; to a whole process group at once where it pays. Parents first."""
        todo = [p for p in running if p.pending_since is None and now - p.hit_at > STRIKE_AGAIN_S]
        todo = self._strike_groups(job, todo, now)
        todo.sort(key=lambda p: (p.start, p.pid))
        for proc in todo:
            if self._signal(proc, signal.SIGSTOP):
                self._note(proc, job, now)

    def _strike_groups(self, job: Job, todo: "List[Proc]", now: float) -> "List[Proc]":
        """Signal the groups of sessions that are the job's; what is left to do.

        A group lies within one session. One in another session may hold others than the job's processes.
        """
        if len(todo) < GROUP_WORTH or not self.signaller.groups:
            return todo
        sizes: "Dict[int, int]" = {}
        for proc in todo:
            if proc.sid in job.sessions:
                sizes[proc.pgrp] = sizes.get(proc.pgrp, 0) + 1
        done = set()
        for pgrp, size in sizes.items():
            leader = self.finder.procs.get(pgrp)
            if size < GROUP_WORTH or leader is None or leader.job is not job or leader.pgrp != pgrp:
                continue
            if self.signaller.send_group(pgrp, leader.start, signal.SIGSTOP):
                done.add(pgrp)
        job.groups |= done
        for proc in todo:
            if proc.pgrp in done:
                self._note(proc, job, now)
        return [p for p in todo if p.pgrp not in done]

    def _signal(self, proc: Proc, number: int) -> bool:
        try:
            return self.signaller.send(proc.pid, proc.start, number)
        except PermissionError:
            if (proc.pid, proc.start) not in self.denied and len(self.denied) < 4096:
                self.denied.add((proc.pid, proc.start))
                log.warning(
                    "process %d of job %s may not be signalled by uid %d: run the agent as root"
                    % (proc.pid, proc.job, os.geteuid())
                )
            return False

    # continuing

    def _continue(self, job: Job) -> None:
        """SIGCONT to what the agent stopped, and, at the first time, to all that is stopped."""
        stopped = []
        for proc in job.procs.values():
            ours = proc.struck_at is not None or job.struck.get(proc.pid) == proc.start
            if ours or (proc.state == "T" and job.wake_all):
                stopped.append(proc)
        self._wake(job, stopped)
        job.stopped = sum(p.state == "T" for p in job.procs.values())
        job.pending = 0
        job.settled = not stopped
        if job.settled:
            job.wake_all = False
            job.struck.clear()
            job.groups.clear()

    def _wake(self, job: Job, stopped: "List[Proc]") -> None:
        """Children first."""
        for proc in sorted(stopped, key=lambda p: (-p.start, -p.pid)):
            if self._signal(proc, signal.SIGCONT):
                proc.struck_at = proc.pending_since = None
                proc.hit_at = 0.0
                proc.read_at = 0.0  # not as it was read: read again
                job.struck.pop(proc.pid, None)

    # the end of a job

    def _let_end(self, job: Job) -> None:
        """MoM's SIGTERM waits behind the stop: the sessions that it was sent to go on, and end as those of any deleted
        job. What has left them stays stopped until the job is over (`bury`), for no signal of MoM's gets there.

        A session's leader goes on last, when the others have ended, or have had their time: MoM that finds them alive
        when it has ended does not look again before the kill delay is over.
        """
        now = time.monotonic()
        stopped = [p for p in job.procs.values() if p.state == "T"]
        sessions = {p.sid for p in stopped if is_pending(p.pid, SIGTERM_BIT)}
        if not sessions:
            return
        if job.leaders_at is None:
            job.leaders_at = now + LEADER_S
        led = {p.sid for p in job.procs.values() if p.pid != p.sid} if now < job.leaders_at else set()
        self._wake(job, [p for p in stopped if p.sid in sessions and (p.pid != p.sid or p.sid not in led)])
        if led:
            self.loop.after(DELETE_S, self.sweep)

    def bury(self, job: Job) -> None:
        """SIGKILL to what the agent stopped of a job that has ended: stopped as it is, nothing else would end it."""
        left = dict(job.struck)
        self.forget(job)
        if left:
            self._kill(str(job), left, KILL_ROUNDS)

    def _kill(self, name: str, left: "Dict[int, int]", rounds: int) -> None:
        killed = 0
        for pid, start in list(left.items()):
            try:
                if self.signaller.send(pid, start, signal.SIGKILL) and self._lives(pid, start):
                    killed += 1
                    continue
            except PermissionError as error:
                log.warning("process %d of ended job %s cannot be killed: %s" % (pid, name, error.strerror))
            del left[pid]
        if rounds == KILL_ROUNDS and killed:
            log.info("job %s has ended: killed %d of its processes that were stopped" % (name, killed))
        if left and rounds > 0:
            self.loop.after(KILL_PAUSE_S, lambda: self._kill(name, left, rounds - 1))
        elif left:
            log.warning("job %s has ended, but processes %s do not" % (name, sorted(left)[:10]))

    @staticmethod
    def _lives(pid: int, start: int) -> bool:
        try:
            fields = read_stat("/proc/%d/stat" % pid)[1]
        except OSError:
            return False
        return int(fields[19]) == start and fields[0] not in (b"Z", b"X")


# --- memory of stopped jobs ------------------------------------------------------------------------------------------


class Advisor:
    """process_madvise(2), which Python does not have, by its number; the same on all these machines."""

    MACHINES = ("x86_64", "aarch64", "ppc64le")
    PIDFD_OPEN, PROCESS_MADVISE = 434, 440  # Linux 5.3, 5.10
    SINCE = (5, 10)
    WILLNEED, PAGEOUT = 3, 21
    MAX_RANGES = 1024  # of one call (IOV_MAX)
    PR_SET_PDEATHSIG = 1

    def __init__(self) -> None:
        import ctypes  # 1 MiB, and only where memory is moved

        self._c = ctypes
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    @classmethod
    def missing(cls) -> str:
        """What this machine lacks, for people; empty if the calls should be there."""
        found = os.uname()
        if found.machine not in cls.MACHINES or sys.maxsize < 1 << 32:
            return "memory is pushed out on %s, with a Python of 64 bits, only" % ", ".join(cls.MACHINES)
        numbers = re.match(r"(\d+)\.(\d+)", found.release)
        if numbers is None or (int(numbers.group(1)), int(numbers.group(2))) < cls.SINCE:
            return "Linux %s has no process_madvise(MADV_PAGEOUT): 5.10 or later does" % found.release
        return ""

    def die_with_parent(self) -> None:
        self._prctl(self.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def open(self, pid: int) -> int:
        """A pidfd. Raises OSError."""
        fd = self._call(self._c.c_long(self.PIDFD_OPEN), self._c.c_int(pid), self._c.c_uint(0))
        if fd < 0:
            raise OSError(self._c.get_errno(), os.strerror(self._c.get_errno()))
        return int(fd)

    def advise(self, fd: int, ranges: "List[Tuple[int, int]]", advice: int) -> None:
        """Give the advice for these (begin, end) of the process. What does not take it (locked, huge pages) is passed
        over. Raises OSError where the process has gone or the call is not permitted."""
        todo = ranges
        while todo:
            part = todo[: self.MAX_RANGES]
            flat = [word for begin, end in part for word in (begin, end - begin)]
            vector = (self._c.c_size_t * len(flat))(*flat)  # an array of struct iovec
            args = (self._c.c_int(fd), vector, self._c.c_size_t(len(part)), self._c.c_int(advice), self._c.c_uint(0))
            done = self._call(self._c.c_long(self.PROCESS_MADVISE), *args)
            if done < 0:
                number = self._c.get_errno()
                if number not in (errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EIO):
                    raise OSError(number, os.strerror(number))
                done = 0
            taken = 0
            for begin, end in part:
                if done < end - begin:
                    break
                done -= end - begin
                taken += 1
            todo = todo[taken + (taken < len(part)) :]


class Slice:
    """One slice of the jobs' memory: pushed out to swap, or brought back ahead of use. Runs in a child process.

    `procs`: (pid, start time) in the order of the walk. `cursor`: index among them and the address where to go on.
    """

    PAGE = os.sysconf("SC_PAGE_SIZE")
    WINDOW_PAGES = 4096
    BATCH_PAGES = 4096  # advised at once; time and amount are looked at between two
    TOP_BYTE = 7 if sys.byteorder == "little" else 0  # of an entry of pagemap: its flags
    PRESENT, SWAPPED, SHARED, EXCLUSIVE = 0x80, 0x40, 0x20, 0x01
    RUN = re.compile(b"1+")
    NO_MEMORY = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")

    def __init__(self, advisor: Advisor, advice: int, procs: "List[Tuple[int, int]]", pages: int, until: float) -> None:
        self.advisor = advisor
        self.advice = advice
        self.procs = procs
        self.pages = pages
        self.until = until
        self.moved = 0
        self.cursor = (0, 0)
        self.batch: "List[Tuple[int, int]]" = []
        self.windows: "List[Tuple[int, int, bool]]" = []
        self.batched = 0
        out = advice == Advisor.PAGEOUT
        # A page that others map, too, stays (the kernel passes it over); so does the page cache, which is free anyway.
        self.private = bytes(49 if self._counts(f, out) and not f & self.SHARED else 48 for f in range(256))
        self.common = bytes(49 if self._counts(f, out) else 48 for f in range(256))

    def _counts(self, flags: int, out: bool) -> bool:
        if out:
            return bool(flags & self.PRESENT and flags & self.EXCLUSIVE)
        return bool(flags & self.SWAPPED and not flags & self.PRESENT)

    def run(self, cursor: "Tuple[int, int]") -> None:
        """Move up to `pages` from the cursor on, which says afterwards where to go on: behind the last process at the
        end. Raises OSError where that is not permitted."""
        index, address = cursor
        while index < len(self.procs):
            pid, start = self.procs[index]
            self.cursor = (index, address)
            try:
                if not self._process(pid, start, address):
                    return
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
                    raise
                # else it has just gone
            self.batch, self.windows, self.batched = [], [], 0
            index, address = index + 1, 0
        self.cursor = (index, 0)

    def _process(self, pid: int, start: int, address: int) -> bool:
        """One process from the address on. False: the slice is full, or its time is over."""
        fd = self.advisor.open(pid)
        try:
            fields = read_stat("/proc/%d/stat" % pid)[1]
            if int(fields[19]) != start or (self.advice == Advisor.PAGEOUT and fields[0] not in (b"T", b"t")):
                return True
            pagemap = os.open("/proc/%d/pagemap" % pid, os.O_RDONLY)
            try:
                for begin, end, common in self._maps(pid):
                    for low in range(max(begin, address), end, self.WINDOW_PAGES * self.PAGE):
                        high = min(end, low + self.WINDOW_PAGES * self.PAGE)
                        self._window(pagemap, low, high, common)
                        if self.batched >= self.BATCH_PAGES or len(self.batch) >= Advisor.MAX_RANGES:
                            self._flush(fd, pagemap)
                        if self.moved + self.batched >= self.pages or time.monotonic() > self.until:
                            self._flush(fd, pagemap)
                            if self.moved >= self.pages or time.monotonic() > self.until:
                                self.cursor = (self.cursor[0], high)
                                return False
                self._flush(fd, pagemap)
            finally:
                os.close(pagemap)
        finally:
            os.close(fd)
        return True

    def _maps(self, pid: int) -> "Iterable[Tuple[int, int, bool]]":
        """(begin, end, whether it is memory shared by name) of what can have pages that go to swap."""
        for line in read_file("/proc/%d/maps" % pid, 64 << 20).decode("ascii", "replace").split("\n"):
            words = line.split(None, 5)
            if len(words) < 5 or (len(words) == 6 and words[5] in self.NO_MEMORY):
                continue
            common = words[1][3:] == "s"
            if common and not words[3].startswith("00:"):
                continue  # a file on a disk
            begin, _, end = words[0].partition("-")
            yield int(begin, 16), int(end, 16), common

    def _flags(self, pagemap: int, low: int, high: int, common: bool) -> bytes:
        """A "1" for each page that counts, a "0" for each other."""
        data = os.pread(pagemap, (high - low) // self.PAGE * 8, low // self.PAGE * 8)
        return data[self.TOP_BYTE :: 8].translate(self.common if common else self.private)

    def _window(self, pagemap: int, low: int, high: int, common: bool) -> None:
        if common and self.advice == Advisor.WILLNEED:  # what of it is in swap, pagemap does not say
            self.batch.append((low, high))
            return
        flags = self._flags(pagemap, low, high, common)
        if b"1" not in flags:
            return
        self.windows.append((low, high, common))
        for run in self.RUN.finditer(flags):
            self.batch.append((low + run.start() * self.PAGE, low + run.end() * self.PAGE))
            self.batched += run.end() - run.start()

    def _flush(self, fd: int, pagemap: int) -> None:
        self.advisor.advise(fd, self.batch, self.advice)
        left = 0
        if self.advice == Advisor.PAGEOUT:  # what was brought back stays marked as swapped until it is touched
            left = sum(self._flags(pagemap, *window).count(b"1") for window in self.windows)
        self.moved += max(0, self.batched - left)
        self.batch, self.windows, self.batched = [], [], 0


def reclaim(directories: "List[str]", wanted: int, until: float) -> int:
    """Bytes pushed out of v2 control groups by their own file; 0 where they have none. Runs in a child process."""
    done = 0
    for path in directories:
        try:
            before = int(read_file(os.path.join(path, "memory.current")))
            fd = os.open(os.path.join(path, "memory.reclaim"), os.O_WRONLY | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue  # version 1, or a kernel before 5.19
        try:
            left = wanted - done
            while left > 0 and time.monotonic() < until:
                piece = min(left, Pager.RECLAIM_BYTES)
                os.write(fd, b"%d" % piece)
                left -= piece
        except OSError:
            pass  # EAGAIN: it got less than was asked for; what it got is seen below
        finally:
            os.close(fd)
        try:
            done += max(0, before - int(read_file(os.path.join(path, "memory.current"))))
        except (OSError, ValueError):
            continue
    return done


class Pager:
    """Moves memory of stopped jobs out to swap and back, a slice at a time, each in a child process of its own.

    So the loop goes on answering while the kernel writes, what a slice needs is given back with its child, and a slice
    that takes too long is killed between two pages.
    """

    RECLAIM_BYTES = 16 << 20  # of one write, after which the time is looked at
    MAX_MIB = 4096
    SPARE_MIB = 4  # of swap
    KEEP_MIB = 32  # available memory that is never filled by bringing back
    LATE_S = 1.0  # after a slice's own time, until its child is killed

    def __init__(self, loop: Loop, cgroups: Cgroups) -> None:
        self.loop = loop
        self.cgroups = cgroups
        self.advisor: "Optional[Advisor]" = None
        self.child = 0
        self.reply: "Optional[Reply]" = None
        self.output = -1
        self.data = b""
        self.timer: "Optional[Timer]" = None
        self.walk: "Tuple[str, Tuple[Key, ...]]" = ("", ())  # whose cursor it is
        self.cursor = (0, 0)
        self.fetched = 0  # pages, in this walk
        self.sums: "Dict[Key, Tuple[float, int, int]]" = {}

    @staticmethod
    def can() -> "List[str]":
        return ["push-out", "fetch"] if os.geteuid() == 0 and not Advisor.missing() else []

    def sum_of(self, job: Job) -> "Tuple[int, int]":
        """MiB of the job's own memory in RAM and in swap, a second old at most. Shared memory counts for each."""
        now = time.monotonic()
        known = self.sums.get(job.key)
        if known is not None and now - known[0] < 1.0:
            return known[1], known[2]
        if len(self.sums) > MAX_JOBS:
            self.sums.clear()
        resident = swapped = 0
        for pid in job.procs:
            try:
                lines = status_of(pid, (b"RssAnon", b"RssShmem", b"VmSwap"))
            except OSError:
                continue  # it has gone
            for name, words in lines.items():
                kib = int(words[0]) if words and words[0].isdigit() else 0
                if name == b"VmSwap":
                    swapped += kib
                else:
                    resident += kib
        self.sums[job.key] = (now, resident >> 10, swapped >> 10)
        return resident >> 10, swapped >> 10

    def start(self, op: str, jobs: "List[Job]", mib: int, deadline_s: float, reply: "Reply") -> None:
        """One slice; `reply` gets the answer. One that is under way is given up: whoever asked it asks anew."""
        if os.geteuid() != 0:
            reply(refusal("not-permitted", "only root may move jobs' memory; this agent is uid %d" % os.geteuid()))
            return
        if self.child:
            self._kill()
            reply(refusal("busy", "the slice before is just being ended", 1))
            return
        walk = (op, tuple(sorted(job.key for job in jobs)))
        if walk != self.walk:
            self.walk, self.cursor, self.fetched = walk, (0, 0), 0
        memory = memory_report()
        if op == "push-out":
            mib = min(mib, memory["swap_free_mib"] - self.SPARE_MIB)
        else:
            mib = min(mib, memory["available_mib"] - self.KEEP_MIB)
        if mib <= 0:  # no swap, none left, or no room
            reply(self._answer(op, jobs, 0, False, True))
            return
        missing = Advisor.missing()
        if missing:
            reply(refusal("not-supported", missing))
            return
        if self.advisor is None:
            self.advisor = Advisor()
        self._fork(op, jobs, min(mib, self.MAX_MIB), deadline_s, reply)

    def _fork(self, op: str, jobs: "List[Job]", mib: int, deadline_s: float, reply: "Reply") -> None:
        procs = sorted((proc.start, proc.pid) for job in jobs for proc in job.procs.values())
        directories = [path for job in jobs for path in self.cgroups.directories(job.id)] if op == "push-out" else []
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        pid = os.fork()
        if pid == 0:
            self._become(op, [(pid, start) for start, pid in procs], directories, mib, deadline_s, writing)
        os.close(writing)
        self.child, self.output, self.data = pid, reading, b""
        self.timer = self.loop.after(deadline_s + self.LATE_S, self._kill)
        self.reply = lambda said: self._done(op, jobs, len(procs), said, reply)
        self.loop.watch(reading, selectors.EVENT_READ, lambda _: self._read())

    def _become(
        self, op: str, procs: "List[Tuple[int, int]]", directories: "List[str]", mib: int, limit_s: float, output: int
    ) -> "NoReturn":
        """In the child: move, tell, end. It holds nothing of the agent's, or a next agent could not have it."""
        said: "Doc" = refusal("failed", "the slice ended early")
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.closerange(3, output)
            os.closerange(output + 1, 4096)
            set_oom_score(0)
            if os.getpriority(os.PRIO_PROCESS, 0) < 0:
                os.setpriority(os.PRIO_PROCESS, 0, 0)
            said = self._move(op, procs, directories, mib << 20, time.monotonic() + limit_s)
        except OSError as error:
            code = "not-permitted" if error.errno in (errno.EPERM, errno.EACCES) else "failed"
            said = refusal("not-supported" if error.errno == errno.ENOSYS else code, "%s: %s" % (op, error.strerror))
        except Exception as error:  # noqa: BLE001 (told to the daemon; the child ends here in any case)
            said = refusal("failed", "%s: %s: %s" % (op, type(error).__name__, error))
        finally:
            try:
                os.write(output, encode(said))
            finally:
                os._exit(0)

    def _move(
        self, op: str, procs: "List[Tuple[int, int]]", directories: "List[str]", wanted: int, until: float
    ) -> "Doc":
        reclaimed = reclaim(directories, wanted, until)
        if reclaimed >= 1 << 20:
            return {"ok": True, "pages": reclaimed // Slice.PAGE, "cursor": self.cursor}
        assert self.advisor is not None
        self.advisor.die_with_parent()
        advice = Advisor.PAGEOUT if op == "push-out" else Advisor.WILLNEED
        work = Slice(self.advisor, advice, procs, wanted // Slice.PAGE, until)
        work.run(self.cursor)
        return {"ok": True, "pages": work.moved, "cursor": work.cursor}

    # in the agent

    def _read(self) -> None:
        try:
            data = os.read(self.output, 65536)
        except (BlockingIOError, InterruptedError):
            return
        self.data += data
        if data:
            return
        self.loop.unwatch(self.output)
        os.close(self.output)
        self.output = -1
        self._reap()

    def _reap(self) -> None:
        """Its pipe is closed, so it ends; in the midst of a write to a slow disk that takes a moment."""
        if not os.waitpid(self.child, os.WNOHANG)[0]:
            self.loop.after(0.005, self._reap)
            return
        self.child = 0
        if self.timer is not None:
            self.timer.cancel()
        reply, self.reply = self.reply, None
        if reply is not None:
            try:
                reply(parse(self.data))
            except BadValue:
                reply(refusal("timeout", "the slice did not end in time and was given up"))

    def _kill(self) -> None:
        if self.child:
            os.kill(self.child, signal.SIGKILL)  # not reaped yet, so certainly the child

    def _done(self, op: str, jobs: "List[Job]", procs: int, said: "Doc", reply: "Reply") -> None:
        self.sums.clear()
        if not said["ok"]:
            reply(said)
            return
        index, address = said["cursor"]
        self.cursor = (index, address) if index < procs else (0, 0)
        more = index < procs
        self.fetched = self.fetched + said["pages"] if more else 0
        reply(self._answer(op, jobs, said["pages"] * Slice.PAGE >> 20, more))

    def _answer(self, op: str, jobs: "List[Job]", moved_mib: int, more: bool, no_room: bool = False) -> "Doc":
        """`more`: the walk through their memory is not over, and goes on; `no_room`: it is not over, and cannot."""
        resident = swapped = 0
        for job in jobs:
            resident, swapped = resident + self.sum_of(job)[0], swapped + self.sum_of(job)[1]
        if op == "push-out":
            return {"ok": True, "pushed_mib": moved_mib, "left_mib": resident, "more": more, "memory": memory_report()}
        left = max(0, swapped - (self.fetched * Slice.PAGE >> 20)) if more or no_room else 0
        return {"ok": True, "fetched_mib": moved_mib, "left_mib": left, "more": more, "memory": memory_report()}

    def stop(self) -> None:
        self._kill()


# --- lines -----------------------------------------------------------------------------------------------------------


class LineReader:
    """Cuts a stream into lines. A line that is too long is dropped up to its newline and given as None."""

    def __init__(self, skip_first: bool) -> None:
        self.buffer = bytearray()
        self.searched = 0
        self.skipping = skip_first
        self.oversize = False

    def feed(self, data: bytes) -> "List[Optional[bytes]]":
        lines: "List[Optional[bytes]]" = []
        self.buffer += data
        while True:
            end = self.buffer.find(b"\n", self.searched)
            if end < 0:
                break
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 1]
            self.searched = 0
            if self.oversize or len(line) >= MAX_LINE_BYTES:
                lines.append(None)
            elif not self.skipping:
                lines.append(line)
            self.skipping = self.oversize = False
        self.searched = len(self.buffer)
        if self.searched >= MAX_LINE_BYTES:
            self.buffer.clear()
            self.searched = 0
            self.oversize = not self.skipping
        return lines


class LineWriter:
    """Bytes waiting to be written to a descriptor that may not take them now."""

    def __init__(self) -> None:
        self.pieces: "Deque[bytes]" = deque()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def flush(self, fd: int) -> bool:
        """True when nothing is left. Raises OSError where the peer has gone."""
        while self.pieces:
            piece = self.pieces[0]
            try:
                sent = os.write(fd, piece)
            except (BlockingIOError, InterruptedError):
                return False
            self.size -= sent
            if sent == len(piece):
                self.pieces.popleft()
            else:
                self.pieces[0] = piece[sent:]
        return True


# --- the guest channel -----------------------------------------------------------------------------------------------


class Request:
    """Something asked of the daemon: repeated unchanged until its answer or its deadline.

    `persists`: offered again after a reconnection; `on_answer` gets None when the deadline has passed.
    """

    def __init__(self, op: str, body: "Doc", deadline: float, on_answer: "Callable[[Optional[Doc]], object]") -> None:
        self.op = op
        self.body = body
        self.deadline = deadline
        self.on_answer = on_answer
        self.line = b""
        self.timer: "Optional[Timer]" = None


class Transport:
    """A byte stream to the host: `open` gives a descriptor, `read` b"" when the host has gone."""

    stays = False  # the same descriptor works again when the host is back

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
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(1.0)  # a unix connect waits only for a full backlog
            sock.connect(self.path)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock.detach()


class PortTransport(Transport):
    """A virtio-serial port: with the host away it reads as ended and polls as hung up, and works again later."""

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
        """Where it is a terminal (a serial line): no echo, no translation."""
        if os.isatty(fd):
            import tty

            tty.setraw(fd)


class Channel:
    """Requests to the daemon and from it, over a stream that may break, lose bytes, or carry stale ones."""

    def __init__(
        self, loop: Loop, transport: Transport, can: "List[str]", serve: "Callable[[str, Doc, Reply], None]"
    ) -> None:
        self.loop = loop
        self.transport = transport
        self.can = can
        self.serve = serve
        self.on_ready: "Callable[[], None]" = lambda: None
        self.fd: "Optional[int]" = None
        self.up = False  # bytes can flow
        self.session = ""
        self.peer = ""  # the daemon's session; empty until its hello
        self.host = self.domain = ""  # what it called them, last
        self.delay = RECONNECT_S[0]
        self.reader = LineReader(True)
        self.writer = LineWriter()
        self.bad_lines = 0
        self.bad_total = 0
        self.allowance = MAX_LINES_PER_S * RATE_WINDOW_S
        self.allowed_at = time.monotonic()
        self.paused = False
        self.ids = 0
        self.pending: "OrderedDict[int, Request]" = OrderedDict()
        self.answers: "OrderedDict[Tuple[str, int], Optional[Doc]]" = OrderedDict()
        self.complained = ""
        self.timer: "Optional[Timer]" = None

    @property
    def ready(self) -> bool:
        return self.up and bool(self.peer)

    # the connection

    def connect(self) -> None:
        """Open, or, where the descriptor stays, see whether the host is back. Tried again until it works."""
        try:
            if self.fd is None:
                self.fd = self.transport.open()
            data = self._drain(self.fd)
        except OSError as error:
            self._complain("%s: %s" % (self.transport.path, error.strerror or error))
            self._close()
            data = False
        if not data:
            self.timer = self.loop.after(self.delay, self.connect)
            self.delay = min(self.delay * 1.5, RECONNECT_S[1])
            return
        self.up = True
        self.delay = RECONNECT_S[0]
        self.reader = LineReader(True)
        self.writer = LineWriter()
        self.bad_lines = 0
        self.session = os.urandom(8).hex()
        self.peer = ""
        self._hello()
        self._watch()

    def _drain(self, fd: int) -> bool:
        """Throw away what was meant for whoever had the port before. False: the host is away."""
        if not self.transport.stays:
            return True
        for _ in range(1024):
            try:
                if not self.transport.read(fd):
                    return False
            except (BlockingIOError, InterruptedError):
                return True
        return True

    def _hello(self) -> None:
        hello = {"type": "hello", "protocol": PROTOCOL, "session": self.session, "agent": VERSION, "can": self.can}
        self._write(b"\n" + encode(hello))
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.after(RECONNECT_S[1], self._hello_again)

    def _hello_again(self) -> None:
        """No hello came back: ours may have been lost."""
        if self.up and not self.peer:
            self._hello()

    def _watch(self) -> None:
        if self.fd is None or not self.up:
            return
        reading = 0 if self.paused else selectors.EVENT_READ
        events = reading | (selectors.EVENT_WRITE if self.writer.pieces else 0)
        if events:
            self.loop.watch(self.fd, events, self._event)
        else:
            self.loop.unwatch(self.fd)

    def _close(self) -> None:
        if self.fd is not None:
            self.loop.unwatch(self.fd)
            self.transport.close(self.fd)
            self.fd = None

    def lost(self, why: str, close: bool = True) -> None:
        """The stream is broken: forget what was half done, and begin anew."""
        if self.fd is not None:
            self.loop.unwatch(self.fd)
        if close or not self.transport.stays:
            self._close()
        if self.up:
            self._complain(why)
        self.up = False
        self.peer = ""
        self.answers.clear()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.after(self.delay, self.connect)

    def _complain(self, why: str) -> None:
        if why != self.complained:
            self.complained = why
            log.warning("no node daemon: %s; trying again" % why)

    def shut(self) -> None:
        """The end: let out what can go out at once."""
        if self.fd is not None and self.up:
            try:
                self.writer.flush(self.fd)
            except OSError as error:
                log.info("channel: %s at the end" % error.strerror)
        self.up = False
        self._close()

    # bytes

    def _event(self, events: int) -> None:
        if self.fd is None:
            return
        try:
            if events & selectors.EVENT_WRITE:
                self.writer.flush(self.fd)
                self._watch()
            data = self.transport.read(self.fd) if events & selectors.EVENT_READ else None
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lost("%s: %s" % (self.transport.path, error.strerror))
            return
        if data is None:
            return
        if not data:
            self.lost("%s: closed by the host" % self.transport.path, close=False)
            return
        lines = self.reader.feed(data)
        self._limit(len(lines))
        for line in lines:
            if line == b"":
                continue  # the newline before a hello
            session = self.session
            self._line(line)
            if self.session != session or not self.up:
                return

    def _limit(self, lines: int) -> None:
        now = time.monotonic()
        most = MAX_LINES_PER_S * RATE_WINDOW_S
        self.allowance = min(most, self.allowance + (now - self.allowed_at) * MAX_LINES_PER_S) - lines
        self.allowed_at = now
        if self.allowance < 0 and not self.paused:
            log.warning("channel: more than %d lines a second: reading pauses" % MAX_LINES_PER_S)
            self.paused = True
            self._watch()
            self.loop.after(min(RATE_WINDOW_S, -self.allowance / MAX_LINES_PER_S), self._read_on)

    def _read_on(self) -> None:
        self.paused = False
        self._watch()

    def _write(self, data: bytes) -> None:
        if not self.up or self.fd is None:
            return
        self.writer.add(data)
        if self.writer.size > MAX_OUT_BYTES:
            self.lost("%s: the host does not read" % self.transport.path)
            return
        try:
            if not self.writer.flush(self.fd):
                self._watch()
        except OSError as error:
            self.lost("%s: %s" % (self.transport.path, error.strerror))

    # lines

    def _line(self, line: "Optional[bytes]") -> None:
        try:
            if line is None:
                raise BadValue("longer than %d bytes" % MAX_LINE_BYTES)
            self._message(parse(line))
            self.bad_lines = 0
        except BadValue as error:
            self.bad_lines += 1
            self.bad_total += 1
            log.warning("channel: bad line (%d so far): %s" % (self.bad_total, error))
            if self.bad_lines >= MAX_BAD_LINES:
                self.lost("%s: %d bad lines in a row" % (self.transport.path, self.bad_lines))

    def _message(self, doc: "Doc") -> None:
        kind = field(doc, "type", str)
        if kind == "hello":
            self._greeted(doc)
        elif kind == "answer":
            if doc.get("session") == self.session:
                self._answered(doc)
        elif kind == "request":
            session, id = field(doc, "session", str), field(doc, "id", int)
            if self.peer and session == self.peer:
                self._asked(session, id, field(doc, "op", str), doc)
        else:
            raise BadValue("type %.60r is none of hello, request, answer" % kind)

    def _greeted(self, doc: "Doc") -> None:
        if field(doc, "protocol", int) != PROTOCOL:
            raise BadValue("protocol %r; this agent speaks %d: update the older one" % (doc["protocol"], PROTOCOL))
        session = field(doc, "session", str)
        if not WORD.match(session):
            raise BadValue("session %.60r is no word" % session)
        host, domain = field(doc, "host", str, "")[:255], field(doc, "domain", str, "")[:255]
        if doc.get("peer", self.session) != self.session:
            return  # meant for an agent before this one
        if session == self.peer:
            return
        if self.peer and self.transport.stays:
            # The host side came back without a hang-up between: it waits for a hello, and what was out is void.
            self.session = os.urandom(8).hex()
            self._hello()
        self.peer = session
        self.answers.clear()
        self.complained = ""
        self.host, self.domain = host, domain
        log.info("connected to %.64s on %.64s" % (self.domain or "?", self.host or "?"))
        for request in list(self.pending.values()):
            self._renew(request)
        self.on_ready()

    # requests to the daemon

    def ask(self, op: str, body: "Doc", deadline_s: float, on_answer: "Callable[[Optional[Doc]], object]") -> bool:
        """Ask the daemon; `on_answer` is called later, never from within. False: too much is unanswered already."""
        if len(self.pending) >= MAX_PENDING:
            return False
        request = Request(op, body, time.monotonic() + deadline_s, on_answer)
        self._renew(request)
        return True

    def _renew(self, request: Request) -> None:
        """Give it an id of this connection, and send it."""
        for id, other in list(self.pending.items()):
            if other is request:
                del self.pending[id]
        self.ids += 1
        self.pending[self.ids] = request
        doc = {"type": "request", "id": self.ids, "session": self.session, "op": request.op}
        doc.update(request.body)
        request.line = encode(doc)
        if len(request.line) > MAX_LINE_BYTES:
            raise BadValue("%s of %d bytes does not fit a line" % (request.op, len(request.line)))
        self._send(self.ids)

    def _send(self, id: int) -> None:
        request = self.pending.get(id)
        if request is None:
            return
        if request.timer is not None:
            request.timer.cancel()
        left = request.deadline - time.monotonic()
        if left <= 0:
            del self.pending[id]
            request.on_answer(None)
            return
        request.timer = self.loop.after(min(REPEAT_S, left), lambda: self._send(id))
        if self.ready:
            self._write(request.line)

    def withdraw(self, op: str, body: "Doc") -> None:
        """No longer ask this."""
        for id, request in list(self.pending.items()):
            if request.op == op and request.body == body:
                del self.pending[id]
                if request.timer is not None:
                    request.timer.cancel()

    def _answered(self, doc: "Doc") -> None:
        id = field(doc, "id", int)
        field(doc, "ok", bool)
        request = self.pending.pop(id, None)
        if request is None:
            return  # answered before, or too late
        if request.timer is not None:
            request.timer.cancel()
        request.on_answer(doc)

    # requests of the daemon

    def _asked(self, session: str, id: int, op: str, doc: "Doc") -> None:
        key = (session, id)
        if key in self.answers:
            known = self.answers[key]
            if known is not None:
                self._write(encode(known))
            return  # else it is being worked on
        while len(self.answers) >= MAX_ANSWERS:
            self.answers.popitem(last=False)
        self.answers[key] = None

        def reply(answer: "Doc") -> None:
            if key not in self.answers:
                return  # the connection has changed, nobody waits
            full: "Doc" = {"type": "answer", "id": id, "session": session}
            full.update(answer)
            if len(encode(full)) > MAX_LINE_BYTES:
                full = {"type": "answer", "id": id, "session": session}
                full.update(refusal("too-large", "the answer does not fit a line; ask for fewer jobs at once"))
            self.answers[key] = full
            self._write(encode(full))

        try:
            self.serve(op, doc, reply)
        except BadValue as error:
            log.warning("channel: %s refused: %s" % (op, error))
            reply(refusal("bad-request", str(error)))


# --- MoM's side ------------------------------------------------------------------------------------------------------


class Client:
    """A MoM hook at the socket: one line in, one line out."""

    def __init__(self, loop: Loop, sock: socket.socket, on_end: "Callable[[Client], None]") -> None:
        self.loop = loop
        self.sock = sock
        self.on_end = on_end
        self.reader = LineReader(False)
        self.asked = False
        self.timer = loop.after(CLIENT_S, self._too_slow)

    def _too_slow(self) -> None:
        if not self.asked:
            self.answer(refusal("too-slow", "no request within %d s" % CLIENT_S))

    def answer(self, doc: "Doc") -> bool:
        """Send the answer and close. False: nobody is there to read it."""
        if self.sock.fileno() < 0:
            return False
        try:
            data = encode(doc)
            delivered = self.sock.send(data) == len(data)
        except OSError:
            delivered = False
        self.close()
        return delivered

    def close(self) -> None:
        self.timer.cancel()
        if self.sock.fileno() >= 0:
            self.loop.unwatch(self.sock.fileno())
            self.sock.close()
            self.on_end(self)


class MomServer:
    """The unix socket for MoM's hooks. Only root and the agent's own user get an answer."""

    def __init__(
        self, loop: Loop, path: str, serve: "Callable[[Doc, Client], None]", met: "Callable[[int], None]"
    ) -> None:
        self.loop = loop
        self.path = path
        self.serve = serve
        self.met = met
        self.clients: "Set[Client]" = set()
        self.lock = -1
        self.sock: "Optional[socket.socket]" = None

    def open(self) -> None:
        """Raises Unusable."""
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            self.lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unusable("%s: another agent serves this socket" % self.path) from error
            if os.path.lexists(self.path):
                if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                    raise Unusable("%s: is in the way and no socket; remove it or name another" % self.path)
                os.unlink(self.path)
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            before = os.umask(0o177)
            try:
                self.sock.bind(self.path)
            finally:
                os.umask(before)
            self.sock.listen(MAX_CLIENTS)
        except OSError as error:
            raise Unusable("%s: cannot be made: %s" % (self.path, error.strerror or error)) from error
        self._listen()

    def _listen(self) -> None:
        if self.sock is not None and self.sock.fileno() >= 0:
            self.loop.watch(self.sock.fileno(), selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for client in list(self.clients):
            client.close()
        if self.sock is not None:
            self.loop.unwatch(self.sock.fileno())
            self.sock.close()
            try:
                os.unlink(self.path)
            except OSError as error:
                log.info("%s: %s" % (self.path, error.strerror))
        if self.lock >= 0:
            os.close(self.lock)

    def _accept(self, events: int) -> None:
        for _ in range(MAX_CLIENTS):
            if self.sock is None:
                return
            try:
                sock, _ = self.sock.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    log.error("%s: %s" % (self.path, error.strerror))
                    self.loop.unwatch(self.sock.fileno())
                    self.loop.after(1.0, self._listen)
                return
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        client = Client(self.loop, sock, self.clients.discard)
        self.clients.add(client)
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            log.warning("%s: refused uid %d (pid %d)" % (self.path, uid, pid))
            client.answer(refusal("not-permitted", "only root and uid %d may ask this agent" % os.geteuid()))
            return
        if len(self.clients) > MAX_CLIENTS:
            client.answer(refusal("agent-busy", "more than %d hooks at once" % MAX_CLIENTS, 5))
            return
        self.met(pid)
        self.loop.watch(sock.fileno(), selectors.EVENT_READ, lambda _: self._readable(client))

    def _readable(self, client: Client) -> None:
        try:
            data = client.sock.recv(MAX_LINE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            if client.asked:  # it may have closed its writing side only
                self.loop.unwatch(client.sock.fileno())
            else:
                client.close()
            return
        if client.asked:
            return
        for line in client.reader.feed(data):
            client.asked = True
            self._line(line, client)
            return
        if client.reader.oversize:
            client.asked = True
            self._line(None, client)

    def _line(self, line: "Optional[bytes]", client: Client) -> None:
        try:
            if line is None:
                raise BadValue("the request is longer than %d bytes" % MAX_LINE_BYTES)
            self.serve(parse(line), client)
        except BadValue as error:
            log.warning("%s: bad request: %s" % (self.path, error))
            client.answer(refusal("bad-request", str(error)))


# --- the site's scripts ----------------------------------------------------------------------------------------------


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


# --- the guest as a machine -------------------------------------------------------------------------------------------


class Machine:
    """The guest as a machine: its clock, and its power.

    Only where it is certain that this is a guest: the channel is a virtio-serial port, or the configuration says how
    power goes off. On any other machine the agent would turn off the host.
    """

    WAYS = (["shutdown", "-h", "now"], ["poweroff"], ["halt", "-p"])
    FORCED = ["poweroff", "-f"]
    PLACES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

    def __init__(self, loop: Loop, is_guest: bool, power_off: "List[str]") -> None:
        self.loop = loop
        self.is_guest = is_guest
        self.configured = power_off

    def can(self) -> "List[str]":
        if os.geteuid() != 0:
            return ["power"] if self.configured else []
        return (["clock"] if self.is_guest else []) + (["power"] if self.is_guest or self.configured else [])

    def set_clock(self, unix_s: float) -> "Doc":
        """Make the clock right where it is clearly wrong: it stood still while the guest was saved to disk."""
        if not MADE_UNIX_S <= unix_s <= 2.0**33:
            raise BadValue("unix_s %.60r is no time of today" % unix_s)
        wrong_s = unix_s - time.time()
        if abs(wrong_s) <= CLOCK_S:
            return {"ok": True, "set": False}
        if not self.is_guest:
            return refusal("not-permitted", "this agent's clock is not a guest's own; it is left alone")
        try:
            time.clock_settime(time.CLOCK_REALTIME, unix_s)
        except PermissionError:
            return refusal("not-permitted", "the clock is %.1f s wrong and only root may set it" % wrong_s)
        log.info("the clock was %.1f s wrong and is set" % -wrong_s)
        return {"ok": True, "set": True}

    def power_off(self) -> "Doc":
        """Turn this guest off, soon after the answer."""
        command = self._command() if "power" in self.can() else []
        if not command:
            why = "the agent is not root, or not in a virtual machine; `power_off` in its configuration may say how"
            return refusal("not-supported", "power cannot be turned off from here: " + why)
        log.warning("power off: %s" % " ".join(command))
        self.loop.after(0.05, lambda: self._run(command))
        forced = [] if self.configured or self._systemd() else self._found(self.FORCED)
        if forced:
            self.loop.after(POWER_AGAIN_S, lambda: self._run(forced))
        return {"ok": True}

    @staticmethod
    def _systemd() -> bool:
        return os.path.isdir("/run/systemd/system")

    def _command(self) -> "List[str]":
        if self.configured:
            return self.configured
        ways = (["systemctl", "--no-block", "poweroff"],) if self._systemd() else self.WAYS
        return next((found for found in map(self._found, ways) if found), [])

    def _found(self, command: "List[str]") -> "List[str]":
        """The command with the whole path of its program; empty where there is none."""
        paths = (os.path.join(place, command[0]) for place in self.PLACES)
        path = next((p for p in paths if os.access(p, os.X_OK)), "")
        return [path, *command[1:]] if path else []

    def _run(self, command: "List[str]") -> None:
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                os.execve(command[0], command, {"PATH": ":".join(self.PLACES)})
            except OSError as error:
                os.write(2, ("%s: %s\n" % (command[0], error.strerror)).encode())
            finally:
                os._exit(127)
        self.loop.after(0.1, lambda: self._reap(pid, 0.1))

    def _reap(self, pid: int, pause: float) -> None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            self.loop.after(pause, lambda: self._reap(pid, min(2.0, pause * 2)))
        elif status:
            log.warning("power off: its command ended with status %d" % status)


def set_oom_score(value: int) -> bool:
    """Whether the kernel took it (root may lower it): the agent must survive when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("%d\n" % value)
    except OSError:
        return False
    return True


# --- the state file --------------------------------------------------------------------------------------------------


class StateFile:
    """What must survive the agent: its jobs, their owners, the orders, and what it has stopped. JSON, replaced whole.

    Not synced to disk: it has to survive the agent's end; the machine's end leaves nothing to be continued.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.written = b""
        self.boot = boot_id()

    def save(self, jobs: "Iterable[Job]") -> None:
        rows = []
        for job in jobs:
            row = job.name()
            row.update(
                owner=job.owner,
                uid=job.uid,
                order=job.order,
                stopped_at=job.stopped_at,
                seen=job.seen,
                deleted=job.deleted,
                listed=job.listed,
                sessions=sorted(job.sessions.items()),
                struck=sorted(job.struck.items()),
                groups=sorted(job.groups),
            )
            rows.append(row)
        data = encode({"version": 1, "boot": self.boot, "jobs": rows})
        if data == self.written:
            return
        try:
            fd = os.open(self.path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
            os.replace(self.path + ".new", self.path)
        except OSError as error:
            log.error("%s: not written: %s; a restart would forget what is stopped" % (self.path, error.strerror))
            return
        self.written = data

    def load(self) -> "List[Job]":
        """The jobs of the agent before; none where there is no file. A damaged one is put aside."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            log.error("%s: cannot be read: %s; beginning with nothing" % (self.path, error.strerror))
            return []
        try:
            if len(data) > MAX_STATE_BYTES:
                raise BadValue("longer than %d bytes" % MAX_STATE_BYTES)
            doc = parse(data)
            if field(doc, "version", int) != 1:
                raise BadValue("version %r is not known" % doc["version"])
            same_boot = field(doc, "boot", str) == self.boot
            return [self._job(row, same_boot) for row in field(doc, "jobs", list)]
        except BadValue as error:
            log.error("%s: %s; put aside as .bad, beginning with nothing" % (self.path, error))
            try:
                os.replace(self.path, self.path + ".bad")
            except OSError as trouble:
                log.error("%s: cannot be put aside: %s" % (self.path, trouble.strerror))
            return []

    @staticmethod
    def _job(row: "Any", same_boot: bool) -> Job:
        if not isinstance(row, dict):
            raise BadValue("job %.60r is no object" % (row,))
        job = Job(job_key(row), time.monotonic())
        job.owner = field(row, "owner", str)
        job.uid = None if row.get("uid") is None else count(row, "uid")
        job.listed = field(row, "listed", bool)
        order = row.get("order")
        if order is not None and order not in ORDERS:
            raise BadValue("order %.60r is not known" % (order,))
        if same_boot:
            job.order = order
            job.stopped_at = field(row, "stopped_at", float, None) if row.get("stopped_at") is not None else None
            job.seen = field(row, "seen", bool)
            job.deleted = field(row, "deleted", bool, False)
            job.sessions = dict(_pairs(field(row, "sessions", list)))
            job.struck = dict(_pairs(field(row, "struck", list)))
            job.groups = {g for g in field(row, "groups", list) if isinstance(g, int)}
        return job


def _pairs(rows: "List[Any]") -> "List[Tuple[int, int]]":
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and all(type(v) is int for v in row)):
            raise BadValue("%.60r is no pair of numbers" % (row,))
    return [(row[0], row[1]) for row in rows]


# --- the agent -------------------------------------------------------------------------------------------------------


class Agent:
    """All parts together: what MoM's hooks ask, what the daemon orders, and the table of jobs between them."""

    OWNERS_S = 600.0  # how long a user's uid is remembered: asking a directory server may take long

    def __init__(self, config: Config, loop: "Optional[Loop]" = None) -> None:
        self.config = config
        self.loop = loop or Loop()
        self.jobs: "Dict[Key, Job]" = {}
        self.owners: "Dict[str, Tuple[int, float]]" = {}
        self.state = StateFile(config.state)
        self.signaller = Signaller()
        self.cgroups = Cgroups(config.job_cgroups)
        self.finder = Finder(self.cgroups, config.environment)
        self.sweeper = Sweeper(self.loop, self.jobs, self.finder, self.signaller)
        self.sweeper.on_seen = self._tell_launched
        self.sweeper.on_done = self._save
        self.scripts = Scripts(self.loop, config.scripts, config.script_time_limit_s)
        self.pager = Pager(self.loop, self.cgroups)
        self.machine = Machine(self.loop, config.channel_kind == "port", config.power_off)
        self.mom = MomServer(self.loop, config.socket, self._mom_asks, self.finder.spare)
        transport = UnixTransport if config.channel_kind == "unix" else PortTransport
        self.channel = Channel(self.loop, transport(config.channel_path), self.can(), self._daemon_asks)
        self.channel.on_ready = self._greeted
        self.reporting = False

    def can(self) -> "List[str]":
        words = ["pidfd"] if self.signaller.pidfd else []
        if os.geteuid() == 0:
            words += ["all-users", "cgroup-freezer"]
        return words + self.pager.can() + self.machine.can()

    def start(self) -> None:
        """Raises Unusable."""
        try:
            os.makedirs(os.path.dirname(self.config.state), mode=0o755, exist_ok=True)
        except OSError as error:
            raise Unusable("%s: its directory cannot be made: %s" % (self.config.state, error.strerror)) from error
        self.mom.open()
        for job in self.state.load():
            self.jobs[job.key] = job
        self.sweeper.resume_standing()
        self.channel.connect()
        self.loop.after(REPORT_S, self._report_again)

    def stop(self) -> None:
        """Leave everything as it is: what is stopped stays stopped, the daemon decides."""
        self._save()
        self.pager.stop()
        self.mom.close()
        self.channel.shut()
        standing = sum(job.order == "stop" for job in self.jobs.values())
        log.info("ending%s" % (", %d stopped jobs stay stopped" % standing if standing else ""))

    def _save(self) -> None:
        self.state.save(self.jobs.values())

    # what MoM's hooks ask

    def _mom_asks(self, doc: "Doc", client: Client) -> None:
        op = field(doc, "op", str)
        if op == "ping":
            client.answer({"ok": True, "connected": self.channel.ready})
        elif op == "status":
            client.answer(self._status())
        elif op == "claim":
            self._claim(doc, client)
        elif op == "release":
            self._release(job_key(field(doc, "job", dict)), client)
        elif op == "ending":
            self._deleted(job_key(field(doc, "job", dict)), client)
        elif op == "jobs":
            self._list(doc, client)
        elif op == "prepared":
            key = job_key(field(doc, "job", dict))
            if key in self.jobs and self.jobs[key].deleted:
                client.answer(refusal("deleted", "job %s is being deleted" % key[0]))
                return
            self._relay(
                "prepared",
                {"job": {"id": key[0], "run": key[1]}, "vnodes": words(doc, "vnodes", MAX_PARTS)},
                seconds(doc, "deadline_s", CLAIM_S, 0.05, 30),
                client,
            )
        else:
            raise BadValue("op %.60r is none of claim, release, ending, jobs, prepared, status, ping" % op)

    def _status(self) -> "Doc":
        """What this guest knows of itself, for `magrathea status`. `since`: Unix seconds of a stop that stands."""
        rows = []
        for job in list(self.jobs.values())[:300]:  # what fits a line
            row = self.sweeper.row(job)
            row.update(owner=job.owner, since=job.stopped_at, listed=job.listed)
            rows.append(row)
        return {
            "ok": True,
            "agent": VERSION,
            "connected": self.channel.ready,
            "host": self.channel.host,
            "domain": self.channel.domain,
            "jobs": rows,
            "memory": memory_report(),
            "load1": round(os.getloadavg()[0], 2),
        }

    def _no_daemon(self, client: Client) -> None:
        client.answer(refusal("no-daemon", "the agent is not connected to its node daemon", 5))

    def _relay(self, op: str, body: "Doc", deadline_s: float, client: Client) -> None:
        if not self.channel.ready:
            self._no_daemon(client)
            return
        if not self.channel.ask(op, body, deadline_s, lambda answer: self._pass_on(op, answer, client)):
            client.answer(refusal("agent-busy", "too many requests wait for the node daemon", 5))

    @staticmethod
    def _pass_on(op: str, answer: "Optional[Doc]", client: Client) -> bool:
        """The daemon's answer to the hook, without the channel's own fields. False: the hook has gone."""
        if answer is None:
            return client.answer(refusal("timeout", "the node daemon did not answer the %s in time" % op, 5))
        names = ("ok", "ready", "text") if answer["ok"] else ("ok", "code", "text", "retry_after_s")
        return client.answer({name: answer[name] for name in names if name in answer})

    def _uid_of(self, owner: str) -> "Optional[int]":
        """uid of a job's owner. As an ordinary user the agent sees its own processes only: then all jobs are its."""
        if os.geteuid() != 0:
            return os.geteuid()
        known = self.owners.get(owner)
        now = time.monotonic()
        if known is not None and now - known[1] < self.OWNERS_S:
            return known[0]
        if len(self.owners) > 4096:
            self.owners.clear()
        try:
            uid = pwd.getpwnam(owner).pw_uid
        except (KeyError, ValueError, UnicodeError):
            return None
        self.owners[owner] = (uid, now)
        return uid

    @staticmethod
    def _owner(doc: "Doc") -> str:
        owner = field(doc, "owner", str, "")
        if len(owner) > 255 or "\0" in owner:
            raise BadValue("owner %.60r is no user" % owner)
        return str(owner)

    def _claim(self, doc: "Doc", client: Client) -> None:
        job = field(doc, "job", dict)
        key, owner = job_key(job), self._owner(job)
        uid = self._uid_of(owner)
        if uid is None:
            raise BadValue("owner %.60r of job %s is no user of this domain" % (owner, key[0]))
        cls = field(job, "class", str)
        if cls not in CLASSES:
            raise BadValue("class %.60r of job %s is none of %s" % (cls, key[0], ", ".join(CLASSES)))
        body = {
            "job": {
                "id": key[0],
                "run": key[1],
                "class": cls,
                "cpus": count(job, "cpus"),
                "memory_mib": count(job, "memory_mib"),
                "rerunnable": field(job, "rerunnable", bool),
            }
        }
        deadline_s = seconds(doc, "deadline_s", CLAIM_S, 0.05, 10)
        sister = field(job, "sister", bool, False)
        if len(self.jobs) >= MAX_JOBS:
            client.answer(refusal("agent-busy", "the agent knows %d jobs already" % len(self.jobs), 60))
            return
        if not self.channel.ready:
            self._no_daemon(client)
            return
        self.channel.withdraw("release", {"job": {"id": key[0], "run": key[1]}})

        def answered(answer: "Optional[Doc]") -> None:
            delivered = self._pass_on("claim", answer, client)
            if answer is not None and not answer["ok"]:
                return
            if answer is None or not delivered:
                self._tell_release(key)  # the hook does not know of a claim that may stand
                return
            self._know(key, owner, uid).seen |= sister
            self._tell_launched()
            self.sweeper.sweep()

        if not self.channel.ask("claim", body, deadline_s, answered):
            client.answer(refusal("agent-busy", "too many requests wait for the node daemon", 5))

    def _know(self, key: "Key", owner: str, uid: "Optional[int]") -> Job:
        """The job of this key in the table; an earlier run of it has ended."""
        for other in list(self.jobs.values()):
            if other.id == key[0] and other.run < key[1]:
                self._end(other)
        if key not in self.jobs:
            self.jobs[key] = Job(key, time.monotonic())
        job = self.jobs[key]
        job.listed = True
        job.missing = 0
        if owner:
            job.owner, job.uid = owner, uid
        return job

    def _release(self, key: "Key", client: Client) -> None:
        job = self.jobs.get(key)
        if job is not None:
            self._end(job)
            self._save()
        if self.channel.ready:
            client.answer({"ok": True})
        else:
            self._no_daemon(client)
        self._tell_release(key)

    def _deleted(self, key: "Key", client: Client) -> None:
        """A qdel: MoM sends SIGTERM when its hook has ended, and SIGKILL after the kill delay."""
        job = self.jobs.get(key)
        if job is not None and not job.deleted:
            log.info("job %s: is being deleted" % job)
            job.deleted = True
            self._save()
            self.loop.after(DELETE_S, self.sweeper.sweep)
        client.answer({"ok": True})

    def _tell_release(self, key: "Key") -> None:
        body = {"job": {"id": key[0], "run": key[1]}}
        self.channel.withdraw("release", body)
        if not self.channel.ask("release", body, RELEASE_S, lambda answer: None):
            log.warning("release of job %s not told: too many requests wait; MoM's list will tell it" % key[0])

    def _end(self, job: Job) -> None:
        """The job is over. Under a stop, what MoM's kill could not end is ended."""
        if job.order == "stop":
            self.sweeper.bury(job)
        else:
            self.sweeper.forget(job)

    def _list(self, doc: "Doc", client: Client) -> None:
        """MoM's own list, the truth about jobs: into the table, and on to the daemon."""
        rows = field(doc, "jobs", list)
        if len(rows) > MAX_JOBS:
            raise BadValue("a list of %d jobs; at most %d" % (len(rows), MAX_JOBS))
        clean = []
        entries = []
        for row in rows:
            if not isinstance(row, dict):
                raise BadValue("job %.60r is no object" % (row,))
            key, owner = job_key(row), self._owner(row)
            substate = count(row, "substate")
            session = count(row, "session_id", 0)
            clean.append(
                {
                    "id": key[0],
                    "run": key[1],
                    "cpus": count(row, "cpus"),
                    "memory_mib": count(row, "memory_mib"),
                    "substate": substate,
                    "rerunnable": field(row, "rerunnable", bool),
                }
            )
            entries.append((key, owner, substate, session, field(row, "sister", bool, False)))
        now = time.monotonic()
        for key, owner, substate, session, sister in entries:
            job = self._know(key, owner, self._uid_of(owner) if owner else None)
            job.seen |= sister
            job.ending = substate >= ENDING_SUBSTATE
            start = start_of(session) if 1 < session < 1 << 31 else None
            if start is not None:
                job.sessions.setdefault(session, start)
        self._miss({entry[0] for entry in entries}, now)
        self._tell_launched()
        self.sweeper.sweep()
        self._relay("jobs", {"jobs": clean}, CLAIM_S, client)

    def _miss(self, present: "Set[Key]", now: float) -> None:
        """What is missing from two lists of MoM's has ended; under an order the daemon must have let it go first."""
        for job in list(self.jobs.values()):
            if job.key in present or not job.listed:
                continue
            job.missing += 1
            if job.missing < 2 or now - job.known_at < MISSING_AGE_S or job.order is not None:
                continue
            log.info("job %s: not in MoM's list any more" % job)
            if job.struck:
                self.sweeper.bury(job)
            else:
                self.sweeper.forget(job)

    # what the daemon asks

    def _daemon_asks(self, op: str, doc: "Doc", reply: "Reply") -> None:
        if op == "orders":
            self._orders(doc, reply)
        elif op == "ping":
            reply({"ok": True})
        elif op == "script":
            self._script(doc, reply)
        elif op == "memory":
            self._memory(reply)
        elif op == "clock":
            reply(self.machine.set_clock(field(doc, "unix_s", float)))
        elif op == "power":
            self._power(doc, reply)
        elif op in ("push-out", "fetch"):
            self._page(op, doc, reply)
        else:
            reply(refusal("unknown-op", "this agent (%s) does not know %.60s" % (VERSION, op)))

    def _orders(self, doc: "Doc", reply: "Reply") -> None:
        wanted: "List[Tuple[Key, str]]" = []
        warnings: "Dict[Key, Tuple[int, float]]" = {}
        rows = field(doc, "orders", list)
        if len(rows) > MAX_JOBS:
            raise BadValue("%d orders; at most %d" % (len(rows), MAX_JOBS))
        for row in rows:
            if not isinstance(row, dict):
                raise BadValue("order %.60r is no object" % (row,))
            word = field(row, "order", str)
            if word not in ORDERS:
                raise BadValue("order %.60r is none of %s" % (word, ", ".join(ORDERS)))
            wanted.append((job_key(row), word))
            if "warn_signal" in row:
                name = field(row, "warn_signal", str)
                if name not in WARN_SIGNALS:
                    raise BadValue("warn_signal %.60r is none of %s" % (name, ", ".join(WARN_SIGNALS)))
                warnings[job_key(row)] = int(getattr(signal, name)), seconds(row, "warn_s", 1.0, 0, MAX_WARN_S)
        if len({key for key, _ in wanted}) != len(wanted):
            raise BadValue("a job is named twice")
        self.sweeper.order(wanted, seconds(doc, "deadline_s", ORDERS_S, 0.01, MAX_WARN_S + 30), reply, warnings)

    def _memory(self, reply: "Reply") -> None:
        rows = []
        for job in list(self.jobs.values())[:MAX_ROWS]:
            resident, swapped = self.pager.sum_of(job)
            row = job.name()
            row.update(resident_mib=resident, swapped_mib=swapped, stopped=self._is_stopped(job))
            rows.append(row)
        reply({"ok": True, "memory": memory_report(), "jobs": rows})

    @staticmethod
    def _is_stopped(job: Job) -> bool:
        return job.order == "stop" and job.settled and not job.running and not job.leaving

    def _page(self, op: str, doc: "Doc", reply: "Reply") -> None:
        rows = field(doc, "jobs", list)
        if len(rows) > MAX_JOBS or not all(isinstance(row, dict) for row in rows):
            raise BadValue("jobs must be a list of at most %d objects" % MAX_JOBS)
        keys = {job_key(row) for row in rows}
        known = [job for key, job in sorted(self.jobs.items()) if key in keys]
        mib = count(doc, "mib")
        if mib < 1:
            raise BadValue("field mib is %d, it must be 1 or more" % mib)
        running = [str(job) for job in known if op == "push-out" and not self._is_stopped(job)]
        if running or not known:
            what = ", ".join(running) or "none of these jobs is known here"
            reply(refusal("not-stopped", "%s: only the memory of stopped jobs is pushed out" % what))
            return
        self.pager.start(op, known, mib, seconds(doc, "deadline_s", SLICE_S, 0.05, 60), reply)

    def _script(self, doc: "Doc", reply: "Reply") -> None:
        given = field(doc, "env", dict, {})
        if len(given) > 64:
            raise BadValue("%d variables for a script; at most 64" % len(given))
        environment = {}
        for name, value in given.items():
            if not ENV_NAME.match(name) or not isinstance(value, str) or "\0" in value or len(value) > 4096:
                raise BadValue("variable %.60r of a script: a name in upper case and a text of 4096 at most" % name)
            environment[name if name.startswith("MAGRATHEA_") else "MAGRATHEA_" + name] = value
        if not field(doc, "wait", bool, False):
            reply({"ok": True, "scripts": self.scripts.run(field(doc, "name", str), environment)})
            return
        self.scripts.run(field(doc, "name", str), environment, lambda: reply({"ok": True}))

    def _power(self, doc: "Doc", reply: "Reply") -> None:
        what = field(doc, "what", str)
        if what != "off":
            raise BadValue("what is %.60r, it must be off: who wants it up again boots it from outside" % what)
        reply(self.machine.power_off())

    # what the agent says by itself

    def _greeted(self) -> None:
        for job in self.jobs.values():
            job.told = job.telling = False
        self._tell_launched()
        self._report()

    def _tell_launched(self) -> None:
        self._save()
        if not self.channel.ready:
            return
        for job in self.jobs.values():
            if job.seen and job.listed and not job.told and not job.telling:
                job.telling = self.channel.ask("launched", {"job": job.name()}, RELEASE_S, self._told(job))

    @staticmethod
    def _told(job: Job) -> "Callable[[Optional[Doc]], None]":
        def answered(answer: "Optional[Doc]") -> None:
            job.telling = False
            job.told = answer is not None

        return answered

    def _report_again(self) -> None:
        self.loop.after(REPORT_S, self._report_again)
        self._report()
        self._tell_launched()

    def _report(self) -> None:
        if not self.channel.ready or self.reporting:
            return
        if any(job.order != "stop" for job in self.jobs.values()):
            self.sweeper.sweep()  # what runs may have ended
        elif self.jobs:
            self.sweeper.glance()
        rows = []
        for job in list(self.jobs.values())[:MAX_ROWS]:
            row = job.name()
            row.update(processes=len(job.procs), stopped=job.stopped)
            rows.append(row)
        body = {"memory": memory_report(), "load1": round(os.getloadavg()[0], 2), "jobs": rows}
        self.reporting = self.channel.ask("report", body, REPORT_S / 2, self._reported)

    def _reported(self, answer: "Optional[Doc]") -> None:
        self.reporting = False


# --- start -----------------------------------------------------------------------------------------------------------

USAGE = """usage: magrathea-agent [--config FILE] [--check] [--version] [--help]

The agent of a domain: relays MoM's hooks to the host's node daemon, stops and continues the processes of jobs.

  --config FILE  configuration (JSON); else $%s, else %s
  --check        read the configuration, say what is wrong with it, and end
  --version      print the version and end

SIGTERM or SIGINT ends it. Jobs that it holds stopped stay stopped: the node daemon decides about them, and the next
agent goes on where this one left off.
""" % (CONFIG_VARIABLE, DEFAULT_CONFIG)


def options(arguments: "List[str]") -> "Tuple[str, str]":
    """(what to do: run, check, version or help; path of the configuration). Raises Unusable."""
    what = "run"
    path = os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--config":
            if not equals and not rest:
                raise Unusable("--config: needs a file")
            path = value if equals else rest.pop(0)
        elif word in ("--check", "--version", "--help", "-h"):
            what = "help" if word == "-h" else word[2:]
        else:
            raise Unusable("%s: no such option; see --help" % word)
    return what, path


def check(config: Config) -> "List[str]":
    """What would go wrong on this machine with a configuration that is right in itself."""
    found = []
    for name, path in (("socket", config.socket), ("state", config.state)):
        directory = os.path.dirname(path)
        while not os.path.exists(directory):
            directory = os.path.dirname(directory)
        if not os.access(directory, os.W_OK | os.X_OK):
            found.append("%s: %s cannot be written by uid %d" % (name, directory, os.geteuid()))
    if not os.path.exists(config.channel_path):
        found.append("channel: %s does not exist (yet): is the port in the domain's definition?" % config.channel_path)
    return found


def watch_signals(loop: Loop) -> None:
    """SIGTERM and SIGINT end the loop; SIGHUP changes nothing (a terminal that is closed does not end an agent)."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)

    def noted(number: int, frame: "Optional[FrameType]") -> None:
        """The byte in the pipe is what tells the loop."""

    def arrived(events: int) -> None:
        if set(os.read(reading, 64)) & {signal.SIGTERM, signal.SIGINT}:
            loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, noted)
    signal.set_wakeup_fd(writing)
    loop.watch(reading, selectors.EVENT_READ, arrived)


def main(arguments: "Optional[List[str]]" = None) -> int:
    """The command; its exit code: 0 for an orderly end, 1 for trouble while running, 2 for a wrong set-up."""
    try:
        what, path = options(sys.argv[1:] if arguments is None else arguments)
        if what == "help":
            sys.stdout.write(USAGE)
            return 0
        if what == "version":
            sys.stdout.write("magrathea-agent %s\n" % VERSION)
            return 0
        config = Config(path)
        if what == "check":
            found = check(config)
            sys.stdout.write("".join("%s: %s\n" % (path, line) for line in found) or "%s: ok\n" % path)
            return 1 if found else 0
        agent = Agent(config)
        watch_signals(agent.loop)
        if os.geteuid() == 0 and not set_oom_score(-1000):
            log.info("oom_score_adj may not be lowered here: without memory the kernel may end this agent first")
        raise_priority()
        agent.start()
    except Unusable as error:
        log.error(str(error))
        return 2
    gc.collect()
    freeze = getattr(gc, "freeze", None)  # since Python 3.7
    if freeze is not None:
        freeze()
    try:
        return agent.loop.run()
    finally:
        agent.stop()


if __name__ == "__main__":
    sys.exit(main())
