"""A job and a process, as far as the agent knows them."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Set, Tuple

    from .lines import Doc
    from .values import Key

ORDERS = ("stop", "lift", "run")
MOM_NAMES = (b"pbs_mom", b"pbs_python")


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
