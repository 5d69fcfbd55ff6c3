"""Every code that a refusal or a failed call can have: what it means, how to fix it, when it is tried again.

Rule 1: a code is for programs. It never changes and never gets another meaning; the sentence beside it is for people.
Rule 2: whoever refuses names the member of `RefusalCode`. The tables of docs/admin-guide.md are written from `TABLE`
(tools/refusals_page.py), and a test finds a code without a row.
Rule 3: the agent and the hooks run on Pythons that cannot import this. Their codes stand in one table each, which a
test compares with this one: `node_daemon/agent/refusals.py`, and `CODES` of each hook.
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
    CONFIGURATION = "configuration"
    CPUS = "cpus"
    DELETED = "deleted"
    DOMAIN_BOOTING = "domain-booting"
    DOMAIN_CLOSING = "domain-closing"
    DOMAIN_DOWN = "domain-down"
    DOMAIN_DRAINING = "domain-draining"
    DOMAIN_FAULT = "domain-fault"
    DOMAIN_FROZEN = "domain-frozen"
    DOMAIN_PREEMPTED = "domain-preempted"
    DOMAIN_UNKNOWN = "domain-unknown"
    FAILED = "failed"
    HOST_BOOTING = "host-booting"
    HOST_BUSY = "host-busy"
    HOST_FAULT = "host-fault"
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
    NOT_FREEZABLE = "not-freezable"
    NOT_FROZEN = "not-frozen"
    NOT_PERMITTED = "not-permitted"
    NOT_SAVING = "not-saving"
    NOT_STOPPED = "not-stopped"
    NOT_SUPPORTED = "not-supported"
    OWN_CLASS = "own-class"
    PAUSED = "paused"
    RELEASED = "released"
    RESTORE_FAILED = "restore-failed"
    RUN_ENDED = "run-ended"
    STALE_RUN = "stale-run"
    STOP_TIMEOUT = "stop-timeout"
    SUPERSEDED = "superseded"
    TIMEOUT = "timeout"
    TOO_BIG = "too-big"
    TOO_LARGE = "too-large"
    TOO_MANY = "too-many"
    TOO_SLOW = "too-slow"
    TWO_DOMAINS = "two-domains"
    UNKNOWN_DOMAIN = "unknown-domain"
    UNKNOWN_JOB = "unknown-job"
    UNKNOWN_OP = "unknown-op"
    WANTED_STOPPED = "wanted-stopped"
    WRONG_CLASS = "wrong-class"
    WRONG_HOST = "wrong-host"
    WRONG_KIND = "wrong-kind"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. `text` names cause and fix, for people."""

    code: RefusalCode
    text: str


class Section(StrEnum):
    """What is refused, and by whom: a section of the guide each."""

    SERVER_HOOK = "server-hook"
    CLAIM = "claim"
    COMMAND = "command"
    STEP = "step"


_SOON_S, _UNTOLD_S, _LATER_S = 5, 10, 60
"""`_UNTOLD_S`: what MoM's hook takes where the refusal does not say it."""


class Again(Enum):
    """When it is tried again without anybody's help: in words, and for a claim the seconds until PBS does."""

    NEXT_CYCLE = "in PBS's next cycle", None
    SOON = f"after {_SOON_S} s", _SOON_S
    UNTOLD = f"after {_UNTOLD_S} s", _UNTOLD_S
    LATER = f"after {_LATER_S} s", _LATER_S
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
"""Code, cause, fix; a fourth value is an exception from its section's `Again`."""


def _rows(section: Section, again: Again, *rows: _Row) -> tuple[Meaning, ...]:
    return tuple(Meaning(section, row[0], row[1], row[2], row[3] if len(row) == 4 else again) for row in rows)


_C = RefusalCode

TABLE: tuple[Meaning, ...] = (
    *_rows(
        Section.SERVER_HOOK,
        Again.NEXT_CYCLE,
        (_C.HOST_BUSY, "a sibling domain has a job that may not be stopped for this one", "wait"),
        (_C.NO_CPUS, "its CPUs and those of the jobs there exceed the host's", "wait"),
        (_C.TOO_BIG, "its CPUs alone exceed the host's", "ask for fewer"),
        (
            _C.TWO_DOMAINS,
            "its chunks are in two domains of one exclusive host, which never run together",
            "`-l place=pack`, or one chunk",
        ),
        (
            _C.NO_CLASS,
            "the job has no class, and the vnode is a managed one",
            "give its queue a class (`magrathea pbs install`), then `qmove` the job to the same queue",
        ),
        (
            _C.OWN_CLASS,
            "a `qalter` names a resource of Magrathea's in the select; PBS itself would let it through",
            "leave it out; `qmove` the job to the queue of the class that is meant",
            Again.NOT,
        ),
        (
            _C.HUB_LOST,
            "it would preempt, and the hub's heartbeat file is old",
            "`systemctl start magrathea-hub`; see its journal",
        ),
    ),
    *_rows(
        Section.CLAIM,
        Again.SOON,
        (
            _C.HOST_BUSY,
            "a sibling has jobs in the way; the text says which, and why they may not be stopped",
            "wait, or drain what is in the way",
        ),
        (_C.HOST_LINGERS, "a priority domain keeps the host for its next job", "wait at most `linger_s`"),
        (
            _C.HOST_RESERVED,
            "a sibling is frozen: only preemptible jobs until it is back",
            "bring it back, or submit to a preemptible queue",
        ),
        (
            _C.HOST_BOOTING,
            "a domain of the host boots or is in fault",
            "wait for it, at most its `boot_time_limit_s`",
        ),
        (_C.HOST_FAULT, "another domain of the host is in fault", "fix it, then `magrathea clear DOMAIN`"),
        (
            _C.CPUS,
            "fewer CPUs are left for its class, even by stopping; what services have is never left",
            "wait, or ask for fewer",
        ),
        (_C.MEMORY, "less memory is left for its class; what services have is never left", "wait, or ask for less"),
        (
            _C.MEMORY_SHORT,
            "memory that it needs cannot be taken from a guest, here or on another of its hosts; the text has the "
            "numbers, and that host",
            "more swap in that guest (`swap_mib`), a lower `memory_mib`, or fewer locked pages",
            Again.LATER,
        ),
        (
            _C.HUB_LOST,
            "somebody would be preempted, or its parts on other hosts have to be asked for, and no hub answers",
            "start the hub; see `[hub]` in `noded.toml`",
        ),
        (_C.PAUSED, "the host is paused, and something would have to be stopped or moved", "`magrathea unpause`"),
        (
            _C.WRONG_CLASS,
            "a priority job in a normal domain, or the other way round",
            "look at the queue's default chunk; `magrathea pbs check`",
        ),
        (
            _C.BAD_REQUEST,
            "impossible numbers: no CPUs, negative or more than the host has",
            "look at the job's select; of a command: its own words",
        ),
        (_C.DOMAIN_DOWN, "the domain is down", "boot it"),
        (_C.DOMAIN_BOOTING, "the domain boots", "wait"),
        (_C.DOMAIN_CLOSING, "it is to go down or to be rebooted", "wait, or `magrathea undrain DOMAIN`"),
        (_C.DOMAIN_FROZEN, "it is saved to disk", "bring it back: `magrathea domain defrost DOMAIN`"),
        (_C.DOMAIN_DRAINING, "it finishes its jobs and takes no more", "`magrathea undrain DOMAIN`"),
        (_C.DOMAIN_PREEMPTED, "its jobs are stopped", "wait"),
        (
            _C.DOMAIN_UNKNOWN,
            "its agent is silent, or somebody has paused the domain; or a host of the job's other parts does not "
            "report them",
            "`systemctl status magrathea-agent` there; `magrathea doctor`",
        ),
        (
            _C.DOMAIN_FAULT,
            "a step failed beyond retry; the text says which",
            "fix it, then `magrathea clear DOMAIN`",
        ),
        (
            _C.STOP_TIMEOUT,
            "what had to be stopped did not stop in time; it goes on",
            "see the history; usually a process in uninterruptible sleep: storage",
        ),
        (_C.RELEASED, "the job ended while it was claimed", "nothing"),
        (_C.STALE_RUN, "a newer run of the same job is known here", "nothing; PBS was late"),
        (_C.RUN_ENDED, "this very run has ended already", "nothing; PBS was late"),
        (_C.DELETED, "the job was deleted while it waited for its memory", "nothing", Again.NOT),
        (_C.JOURNAL, "the host cannot write its journal (of a command: read it)", "room and rights in `state_dir`"),
        (_C.INTERNAL, "a defect of the node daemon", "its log has the trace; report it", Again.UNTOLD),
        (
            _C.NO_DAEMON,
            "the agent is not connected with the host",
            "`systemctl start magrathea-noded` there; check the domain's channel",
        ),
        (
            _C.TIMEOUT,
            "no answer within the deadline",
            "the machine is starved: see its load, `preempted_cpu_percent` and `floor_mib`",
        ),
        (_C.AGENT_BUSY, "too many requests at once", "wait; if it stays, something floods the agent's socket"),
        (_C.BUSY, "the same, between agent and host", "wait"),
    ),
    *_rows(
        Section.COMMAND,
        Again.NOT,
        (
            _C.NOT_PERMITTED,
            "it is for root, the daemon's user and the group in `[control]`; of a driver: it lacks a right",
            "ask as one of these; check the unit's capabilities",
        ),
        (_C.UNKNOWN_DOMAIN, "the host has no such domain", "`magrathea status` names them"),
        (_C.UNKNOWN_JOB, "the domain has no such job", "nothing, or look for the run version"),
        (_C.UNKNOWN_OP, "command and daemon are of different versions", "upgrade both"),
        (_C.WRONG_HOST, "the command names another host", "run it there"),
        (_C.WRONG_KIND, "a service takes no jobs anyway", "nothing"),
        (
            _C.CONFIGURATION,
            "the file cannot be used; the former one stays",
            "fix what the text names, then `magrathea reload`",
        ),
        (_C.NOT_FREEZABLE, "only a priority domain that is up is frozen", "boot it first"),
        (_C.NOT_FROZEN, "it is not saved to disk, or is to be back already", "nothing"),
        (_C.NOT_SAVING, "it is not being saved", "nothing"),
        (
            _C.NO_JOBS_HERE,
            "jobs were reported for a domain that can have none",
            "if it stays: is this agent in the right domain?",
        ),
        (_C.TOO_MANY, "too many hosts would have to be asked for their history", "name a host"),
        (
            _C.HOST_UNKNOWN,
            "of a preview: the hub has not heard from the host for three heartbeats",
            "`systemctl status magrathea-noded` there",
        ),
        (_C.TOO_LARGE, "an answer does not fit a message", "ask for fewer jobs at once"),
        (_C.TOO_SLOW, "a client of the agent's socket sent nothing", "nothing"),
    ),
    *_rows(
        Section.STEP,
        Again.BY_THE_DAEMON,
        (_C.NO_AGENT, "the domain's agent is not connected", "start it; `magrathea doctor` in the guest"),
        (
            _C.BAD_FIGURES,
            "a guest reports impossible figures of its memory",
            "look at the agent there; nothing is taken by such figures",
        ),
        (_C.NOT_STOPPED, "the agent has not stopped a job's processes", "its log names them"),
        (_C.WANTED_STOPPED, "a job was continued that must stand still; it is stopped again", "nothing"),
        (_C.SUPERSEDED, "newer orders came first", "nothing"),
        (_C.NO_DOMAIN, "the hypervisor has no such domain", "fix its name in `noded.toml`"),
        (_C.BAD_VALUE, "a value that the hypervisor does not take", "the text names it"),
        (
            _C.NOT_SUPPORTED,
            "the driver, or the guest's kernel, cannot do that",
            "another driver or kernel; a note in `magrathea status` says what is left out",
        ),
        (
            _C.RESTORE_FAILED,
            "a saved domain did not come back; its image is kept",
            "the text says why; `virsh managedsave-remove` gives the image up",
            Again.NOT,
        ),
        (_C.LOST, "the hypervisor's daemon does not answer", "start it"),
        (_C.FAILED, "anything else; the text has the words of whoever refused", "what the text says"),
    ),
)

_RETRY_AFTER_S = {m.code: m.again.seconds for m in TABLE if m.section is Section.CLAIM and m.again.seconds is not None}


def retry_after_s(code: RefusalCode) -> int:
    """When PBS is to try a refused job again. Not at once, because OpenPBS holds a job after 21 refusals; later if
    what is lacking does not change within seconds."""
    return _RETRY_AFTER_S.get(code, _SOON_S)
