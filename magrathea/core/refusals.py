"""Every code that a refusal or a failed call can have: what it means, how to fix it, when it is tried again.

Rule 1: a code is for programs. It never changes and never gets another meaning; the sentence beside it is for people.
Rule 2: every refusal uses a member of `RefusalCode`. The tables of docs/admin-guide.md are written from `TABLE`
(tools/refusals_page.py), and a test finds a code without a row.
Rule 3: the agent and the hooks run on Pythons that cannot import this. Their codes stand in one table each, and a
test compares each with this one: node_daemon/agent/refusals.py, and `CODES` of each hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class RefusalCode(StrEnum):
    """The words themselves."""

    AGENT_BUSY = "agent-busy"
    BAD_FIGURES = "bad-figures"
    BAD_REQUEST = "bad-request"
    BAD_VALUE = "bad-value"
    BUSY = "busy"
    CLASS_DIFFERS = "class-differs"
    CONFIGURATION = "configuration"
    CPUS = "cpus"
    DELETED = "deleted"
    DEVICES = "devices"
    DOMAIN_ASLEEP = "domain-asleep"
    DOMAIN_BOOTING = "domain-booting"
    DOMAIN_CLOSING = "domain-closing"
    DOMAIN_DOWN = "domain-down"
    DOMAIN_DRAINING = "domain-draining"
    DOMAIN_FAULT = "domain-fault"
    DOMAIN_FROZEN = "domain-frozen"
    DOMAIN_MOVING = "domain-moving"
    DOMAIN_PREEMPTED = "domain-preempted"
    DOMAIN_UNKNOWN = "domain-unknown"
    FAILED = "failed"
    HOST_BOOTING = "host-booting"
    HOST_BUSY = "host-busy"
    HOST_FAULT = "host-fault"
    HOST_HEARD = "host-heard"
    HOST_LINGERS = "host-lingers"
    HOST_RESERVED = "host-reserved"
    HOST_UNKNOWN = "host-unknown"
    HUB_LOST = "hub-lost"
    INTERNAL = "internal"
    JOURNAL = "journal"
    LOST = "lost"
    MEMORY = "memory"
    MEMORY_SHORT = "memory-short"
    NO_AGENT = "no-agent"
    NO_CLASS = "no-class"
    NO_CPUS = "no-cpus"
    NO_DAEMON = "no-daemon"
    NO_DOMAIN = "no-domain"
    NO_JOBS_HERE = "no-jobs-here"
    NO_RESERVATION = "no-reservation"
    NO_SPACE = "no-space"
    NO_VISITORS = "no-visitors"
    NOT_FREEZABLE = "not-freezable"
    NOT_FROZEN = "not-frozen"
    NOT_GIVEN = "not-given"
    NOT_MOVABLE = "not-movable"
    NOT_PERMITTED = "not-permitted"
    NOT_SAVING = "not-saving"
    NOT_STOPPED = "not-stopped"
    NOT_SUPPORTED = "not-supported"
    OWN_CLASS = "own-class"
    PAUSED = "paused"
    RELEASED = "released"
    RESTORE_FAILED = "restore-failed"
    RUN_ENDED = "run-ended"
    SELECT_UNCLEAR = "select-unclear"
    SENT_BACK = "sent-back"
    STALE_RUN = "stale-run"
    STOP_TIMEOUT = "stop-timeout"
    SUPERSEDED = "superseded"
    TIMEOUT = "timeout"
    TOO_BIG = "too-big"
    TOO_LARGE = "too-large"
    TOO_MANY = "too-many"
    TOO_SLOW = "too-slow"
    TWO_DOMAINS = "two-domains"
    UNCONFIRMED = "unconfirmed"
    UNKNOWN_DOMAIN = "unknown-domain"
    UNKNOWN_JOB = "unknown-job"
    UNKNOWN_OP = "unknown-op"
    VARIABLES_LOST = "variables-lost"
    WANTED_STOPPED = "wanted-stopped"
    WARNING_UNCLEAR = "warning-unclear"
    WRONG_CLASS = "wrong-class"
    WRONG_HOST = "wrong-host"
    WRONG_KIND = "wrong-kind"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused. `text` names cause and fix, for people."""

    code: RefusalCode
    text: str


class Section(StrEnum):
    """The parts of Magrathea that refuse. Each is a section of the guide."""

    SERVER_HOOK = "server-hook"
    CLAIM = "claim"
    COMMAND = "command"
    STEP = "step"


_SOON_S, _UNTOLD_S, _LATER_S, _RARELY_S = 5, 10, 60, 600
"""`_UNTOLD_S`: the time that MoM's hook uses if the refusal names none. `_RARELY_S`: somebody must fix it first. The
server's hook waits from the first to the last of these for what stays until it is fixed."""


class Again(Enum):
    """When the request is tried again without help, in words; for a claim also the seconds until PBS tries again."""

    NEXT_CYCLE = "in PBS's next cycle", None
    EVER_LATER = f"after {_SOON_S} s, then each time twice as long, up to {_RARELY_S // 60} min", None
    SOON = f"after {_SOON_S} s", _SOON_S
    UNTOLD = f"after {_UNTOLD_S} s", _UNTOLD_S
    LATER = f"after {_LATER_S} s", _LATER_S
    RARELY = f"after {_RARELY_S // 60} min", _RARELY_S
    BY_THE_DAEMON = "by the daemon, within 5 s", None
    NOT = "no", None

    def __init__(self, words: str, seconds: int | None) -> None:
        self.words = words
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code means in one section of the guide."""

    section: Section
    code: RefusalCode
    cause: str
    fix: str
    again: Again


_Row = tuple[RefusalCode, str, str] | tuple[RefusalCode, str, str, Again]
"""Code, cause, fix. A fourth value replaces the section's `Again`."""


def _rows(section: Section, again: Again, *rows: _Row) -> tuple[Meaning, ...]:
    return tuple(Meaning(section, row[0], row[1], row[2], row[3] if len(row) == 4 else again) for row in rows)


_C = RefusalCode

TABLE: tuple[Meaning, ...] = (
    *_rows(
        Section.SERVER_HOOK,
        Again.NEXT_CYCLE,
        (_C.HOST_BUSY, "a sibling domain has a job that may not be stopped for this one", "wait"),
        (_C.NO_CPUS, "the CPUs of this job and of the jobs there exceed the host's", "wait"),
        (_C.TOO_BIG, "the CPUs of this job alone exceed the host's", "ask for fewer", Again.EVER_LATER),
        (
            _C.TWO_DOMAINS,
            "its chunks are in two domains of one exclusive host, which never run together",
            "`-l place=pack`, or one chunk",
            Again.EVER_LATER,
        ),
        (
            _C.NO_CLASS,
            "the job has no class, and Magrathea manages the vnode",
            "give its queue a class (`magrathea pbs install`), then `qmove` the job to the same queue",
            Again.EVER_LATER,
        ),
        (
            _C.CLASS_DIFFERS,
            "the job's select names another class than its queue gives, or more than one",
            "`qalter -l select=...` without a class, or `qmove` to a queue of the intended class; submit an array anew",
            Again.EVER_LATER,
        ),
        (
            _C.NO_RESERVATION,
            "the job is in a user's reservation; or a reservation would be made from a job that runs in a domain",
            "use an ordinary queue; reserve only vnodes that Magrathea does not manage",
            Again.EVER_LATER,
        ),
        (
            _C.OWN_CLASS,
            "the select names a resource of Magrathea; PBS itself would accept that at `qalter`. Or the job has its"
            " variable `MAGRATHEA_REFUSED`",
            "leave it out; submit or `qmove` the job to a queue of the intended class",
            Again.NOT,
        ),
        (
            _C.SELECT_UNCLEAR,
            "the select cannot be read, is longer than 64 KiB, or a value in it has both kinds of quotes",
            "write it anew as the text says; one kind of quotes in a value",
            Again.NOT,
        ),
        (
            _C.WARNING_UNCLEAR,
            "`MAGRATHEA_SIGNAL` of the submitted job is wrong, so nobody would be warned",
            "write it as the text says: `[B:]SIGNAL[@SECONDS]`",
            Again.NOT,
        ),
        (
            _C.VARIABLES_LOST,
            "a variable of the submitted job has a byte that is not UTF-8, and PBS would drop all of its variables",
            "correct that variable, or submit without it (`qsub -v NAME,...`)",
            Again.NOT,
        ),
        (
            _C.SENT_BACK,
            "a host has refused this job on several hosts a moment ago; PBS would try it again without a pause",
            "wait; `magrathea explain` has the refusal",
        ),
        (
            _C.HUB_LOST,
            "the job would preempt, and the hub's heartbeat file is old",
            "`systemctl start magrathea-hub`; see its journal",
        ),
    ),
    *_rows(
        Section.CLAIM,
        Again.SOON,
        (
            _C.HOST_BUSY,
            "jobs of a sibling block it; the text names them, and why they may not be stopped",
            "wait, or drain the sibling",
        ),
        (_C.HOST_LINGERS, "a priority domain keeps the host for its next job", "wait at most `linger_s`"),
        (
            _C.HOST_RESERVED,
            "a sibling is frozen; until it is back, only preemptible jobs start",
            "bring it back, or submit to a preemptible queue",
        ),
        (
            _C.HOST_BOOTING,
            "a domain of the host boots or is in fault",
            "wait, at most for its `boot_time_limit_s`; clear a fault",
        ),
        (_C.HOST_FAULT, "another domain of the host is in fault", "fix it, then `magrathea clear DOMAIN`"),
        (
            _C.CPUS,
            "too few CPUs for its class, even if others are stopped; CPUs of services do not count",
            "wait, or ask for fewer",
        ),
        (_C.MEMORY, "too little memory for its class; memory of services does not count", "wait, or ask for less"),
        (
            _C.MEMORY_SHORT,
            "a guest cannot give the memory that the job needs, here or on another host of the job; the text has the "
            "figures and that host",
            "more swap in that guest (`swap_mib`), `give_way`, a lower `memory_mib`, or fewer locked pages",
            Again.LATER,
        ),
        (
            _C.HUB_LOST,
            "no hub answers, and the job would preempt or has parts on other hosts",
            "start the hub; see `[hub]` in `noded.toml`",
        ),
        (
            _C.UNCONFIRMED,
            "the job would preempt, or keep preempted jobs stopped, or the guest has named jobs that are not there, "
            "and no hub could ask PBS in time whether it has given the job to this domain",
            "see the hub's log: does PBS answer it?",
        ),
        (
            _C.NOT_GIVEN,
            "PBS has not given the job to this domain; it would preempt, or keep preempted jobs stopped, or the guest "
            "has named such jobs before",
            "nothing, if PBS took the job back; otherwise somebody in that guest claims jobs that are not there: look "
            "after the guest, and at the vnode of the domain in `noded.toml`",
            Again.LATER,
        ),
        (_C.PAUSED, "the host is paused, and the job needs something stopped or moved", "`magrathea unpause`"),
        (
            _C.WRONG_CLASS,
            "a priority job in a normal domain, or the reverse",
            "check the queue's default chunk: `magrathea pbs check`",
            Again.LATER,
        ),
        (
            _C.BAD_REQUEST,
            "impossible numbers: negative, or more than the host has; or the job's owner is no user of the domain",
            "ask for less (`qalter -l select=...`), or create the account; check the command's arguments",
            Again.RARELY,
        ),
        (_C.DOMAIN_DOWN, "the domain is down", "`magrathea domain boot DOMAIN`"),
        (_C.DOMAIN_BOOTING, "the domain is booting", "wait"),
        (_C.DOMAIN_CLOSING, "the domain is about to shut down or reboot", "wait, or `magrathea undrain DOMAIN`"),
        (_C.DOMAIN_FROZEN, "the domain is saved to disk", "`magrathea domain defrost DOMAIN`"),
        (_C.DOMAIN_ASLEEP, "the domain sleeps on disk with its jobs", "`magrathea domain defrost DOMAIN`, then wait"),
        (_C.DOMAIN_DRAINING, "the domain finishes its jobs and takes no more", "`magrathea undrain DOMAIN`"),
        (
            _C.DOMAIN_MOVING,
            "the domain is on its way to or from another host, or another host has it",
            "wait; `magrathea status` shows it. If another host has it, ask there",
        ),
        (_C.DOMAIN_PREEMPTED, "the domain's jobs are stopped", "wait"),
        (
            _C.DOMAIN_UNKNOWN,
            "the domain's agent is silent, or somebody has paused the domain; or the host of another part of the job "
            "does not report that part",
            "`systemctl status magrathea-agent` there; `magrathea doctor`",
        ),
        (
            _C.DOMAIN_FAULT,
            "a step failed beyond retry; the text names it",
            "fix it, then `magrathea clear DOMAIN`",
        ),
        (
            _C.STOP_TIMEOUT,
            "a job that had to stop did not stop in time, and continues",
            "see the history; often a process is in uninterruptible sleep: check the storage",
        ),
        (_C.RELEASED, "the job ended during its claim", "nothing"),
        (_C.STALE_RUN, "the host knows a newer run of the job", "nothing; PBS was late"),
        (_C.RUN_ENDED, "this run has already ended", "nothing; PBS was late"),
        (_C.DELETED, "the job was deleted while it waited for its memory", "nothing", Again.NOT),
        (
            _C.JOURNAL,
            "the host cannot write its journal (for a command: cannot read it)",
            "check space and rights in `state_dir`",
        ),
        (_C.INTERNAL, "a defect of the node daemon", "report it; the daemon's log has the trace", Again.UNTOLD),
        (
            _C.NO_DAEMON,
            "the agent is not connected to its host",
            "`systemctl start magrathea-noded` on the host; check the domain's channel",
        ),
        (
            _C.TIMEOUT,
            "no answer within the deadline",
            "the machine is starved: check its load, `preempted_cpu_percent` and `floor_mib`",
        ),
        (_C.AGENT_BUSY, "too many requests at once", "wait; if it persists, look for what floods the agent's socket"),
        (_C.BUSY, "too many requests at once, of a guest or of a user", "wait"),
    ),
    *_rows(
        Section.COMMAND,
        Again.NOT,
        (
            _C.NOT_PERMITTED,
            "only root, the daemon's user and the group in `[control]` may; of a driver: it lacks a right",
            "use one of these; for a driver check the unit's capabilities",
        ),
        (_C.UNKNOWN_DOMAIN, "the host has no such domain", "`magrathea status` names them"),
        (_C.UNKNOWN_JOB, "the domain has no such job", "check the id and run version"),
        (_C.UNKNOWN_OP, "command and daemon are of different versions", "upgrade both"),
        (_C.WRONG_HOST, "the command names another host", "run it on that host"),
        (_C.WRONG_KIND, "a service never takes jobs", "nothing"),
        (
            _C.CONFIGURATION,
            "the file cannot be used; the former one stays",
            "fix what the text names, then `magrathea reload`",
        ),
        (
            _C.NOT_FREEZABLE,
            "only a priority domain that is up can be frozen without jobs; none that is no longer configured with them",
            "boot it, or configure it again; `--with-jobs` freezes a domain of any kind",
        ),
        (
            _C.NOT_MOVABLE,
            "only a domain that is up, and whose vnode has its name, can be moved to another host",
            "boot or defrost it first; or give domain and vnode one name",
        ),
        (
            _C.NO_VISITORS,
            "the host does not take domains from that host",
            "name another host, or permit it in that host's configuration",
        ),
        (
            _C.HOST_HEARD,
            "the hub has heard the host lately, or may hear it yet; so it is not lost",
            "switch the machine off, and wait until its vnodes are `unknown`",
        ),
        (_C.NOT_FROZEN, "the domain is not saved to disk, or is on its way back", "nothing"),
        (_C.NOT_SAVING, "the domain is not being saved", "nothing"),
        (
            _C.NO_SPACE,
            "the folder for images of saved domains has no room for the domain's memory",
            "make room there, or mount a larger disk there; the text names the folder",
        ),
        (
            _C.DEVICES,
            "the domain has a device that cannot be saved to disk",
            "drain the domain instead, or remove the device from its definition",
        ),
        (
            _C.NO_JOBS_HERE,
            "a list of jobs came for a domain that can have none",
            "if it persists: is this agent in the right domain?",
        ),
        (_C.TOO_MANY, "the question would go to too many hosts", "name a host"),
        (
            _C.HOST_UNKNOWN,
            "for a preview: the hub has missed three heartbeats of the host",
            "`systemctl status magrathea-noded` on the host",
        ),
        (_C.TOO_LARGE, "the answer does not fit into one message", "ask for fewer jobs at once"),
        (_C.TOO_SLOW, "a client of the agent's socket sent nothing", "nothing"),
    ),
    *_rows(
        Section.STEP,
        Again.BY_THE_DAEMON,
        (_C.NO_AGENT, "the domain's agent is not connected", "start it; `magrathea doctor` in the guest"),
        (
            _C.BAD_FIGURES,
            "a guest reports impossible figures of its memory",
            "check the agent there; no memory moves by such figures",
        ),
        (_C.NOT_STOPPED, "the agent could not stop some processes of a job", "its log names them"),
        (_C.WANTED_STOPPED, "somebody continued a job that must stay stopped; it is stopped again", "nothing"),
        (_C.SUPERSEDED, "newer orders replaced these", "nothing"),
        (_C.NO_DOMAIN, "the hypervisor has no such domain", "fix its name in `noded.toml`"),
        (_C.BAD_VALUE, "the hypervisor does not accept a value", "the text names it"),
        (
            _C.NOT_SUPPORTED,
            "the driver, or the guest's kernel, cannot do that",
            "use another driver or kernel; a note in `magrathea status` says what is missing",
        ),
        (
            _C.RESTORE_FAILED,
            "a saved domain did not come back; its image is kept",
            "the text says why; `virsh managedsave-remove` deletes the image",
            Again.NOT,
        ),
        (_C.LOST, "the hypervisor's daemon does not answer", "start it, for example libvirtd"),
        (_C.FAILED, "anything else; the text has the original message", "see the text"),
    ),
)

_RETRY_AFTER_S = {m.code: m.again.seconds for m in TABLE if m.section is Section.CLAIM and m.again.seconds is not None}


def retry_after_s(code: RefusalCode) -> int:
    """Seconds until PBS tries a refused job again; longer if the cause does not change within seconds.

    Never 0, because OpenPBS holds a job after 21 refusals.
    """
    return _RETRY_AFTER_S.get(code, _SOON_S)
