"""What the agent knows about a job and about a process."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Set, Tuple

    from .lines import Doc
    from .values import Key

ORDERS = ("stop", "lift", "run")
MOM_NAMES = (b"pbs_mom", b"pbs_python")


class Proc:
    """A process as it was when last read.

    - `start`: start time in clock ticks since boot; together with the pid its identity.
    - `inode`: of its /proc directory. While this is the same, so is the process: procfs creates one for each.
    - `image`: where its stack begins, and its name; changes with each exec.
    - `env_job`: PBS_JOBID of its environment; "" for none, None if not known yet. `cookie`: PBS_JOBCOOKIE of it.
    - `job`: the job it belongs to. `judged`: it belongs to none, unless it execs.
    - `struck_at`: when we first sent SIGSTOP, if no SIGCONT followed. `hit_at`: when we last sent it.
    - `pending_since`: when it was first seen in uninterruptible sleep with that SIGSTOP pending.
    """

    __slots__ = (
        "cookie",
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
        self.cookie = b""
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


class Job:
    """A job of this domain's MoM.

    - `uid`: of its owner; None while not known, and then none of its processes is touched.
    - `order`: what the daemon wants; None for nothing. `stopped_at`: since when a stop stands, in Unix seconds.
    - `sessions`: session id -> start time of its leader. `cookie`: what PBS has put into the environment of the job's
      first processes, and nobody else knows; empty if not seen.
    - `struck`: pid -> start time of each process that the agent stopped. `groups`: groups signalled as a whole.
    - `top`: pid and start time of the process that MoM started, and whose end is the job's; None if not known.
    - `sister`: the job begins on another host, so that MoM may start tasks here at any time, or none.
    - `filed`: MoM's file about it has been seen.
    - `seen`: it has shown a process, or is a sister's part and may never have one.
    - `telling`, `told`: the daemon is being told of that, or knows it.
    - `deleted`: MoM is about to kill it. `leaders_at`: when its session leaders get SIGTERM at the latest.
    - `ending`: MoM's list shows it as ending. `listed`: it was claimed or is in MoM's list, not only in orders.
    - `missing`: how many of MoM's lists in a row did not have it.
    - `procs`: its living processes at the last look. `doubtful`: how many processes have its id, but cannot be
      assigned because its owner is not known.
    - `stopped`, `pending`, `running`: processes at the last pass; `pending` are in uninterruptible sleep with the stop
      pending. `calm`: how many passes in a row found all stopped and none new. `settled`: the order is carried out.
    - `barrier`: the next pass freezes first. `wake_all`: the next pass also continues what others stopped.
    - `warning`: the signal to send before the stop, 0 for none; with `warn_first_only` to the job's script only.
      `warned_until`: it is not stopped before that.
    - `told_at`: when the log last reported that somebody else continued it.
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
        self.sister = False
        self.filed = False
        self.top: "Optional[Tuple[int, int]]" = None
        self.told = False
        self.telling = False
        self.ending = False
        self.deleted = False
        self.leaders_at: "Optional[float]" = None
        self.listed = False
        self.missing = 0
        self.sessions: "Dict[int, int]" = {}
        self.cookie = b""
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
        self.warn_first_only = False
        self.warned_until = 0.0
        self.told_at = 0.0

    @property
    def key(self) -> "Key":
        return self.id, self.run

    @property
    def leaving(self) -> bool:
        """Whether PBS is killing it. Then it is neither stopped nor waited for."""
        return self.ending or self.deleted

    def name(self) -> "Doc":
        return {"id": self.id, "run": self.run}

    def __str__(self) -> str:
        return "%s (run %d)" % (self.id, self.run)
