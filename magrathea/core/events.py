"""What can happen to a host, and what the machine says about it.

Every event has its time `at`, in seconds on the host's clock. Events that speak of one domain name it. An event
that makes no sense (an unknown domain, an impossible number) changes nothing; a claim gets its refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

from .model import JobClass, JobKey


@dataclass(frozen=True, slots=True)
class Claimed:
    """A MoM hook asks, before a job starts, whether it may start here. Answered by `Accepted` or `Refused`."""

    at: float
    domain: str
    key: JobKey
    cls: JobClass
    cpus: int
    memory_mib: int = 0
    rerunnable: bool = True


@dataclass(frozen=True, slots=True)
class Released:
    """The job ended or was aborted."""

    at: float
    domain: str
    key: JobKey


@dataclass(frozen=True, slots=True)
class JobLaunched:
    """The agent sees a process of the job: it is confirmed, and can be stopped."""

    at: float
    domain: str
    key: JobKey


@dataclass(frozen=True, slots=True)
class ReportedJob:
    """One job of MoM's list. `suspended`: PBS holds it as suspended; `ending`: it is exiting."""

    key: JobKey
    cpus: int = 1
    memory_mib: int = 0
    suspended: bool = False
    ending: bool = False
    rerunnable: bool = True


@dataclass(frozen=True, slots=True)
class JobsReported:
    """MoM's own list of the domain's jobs, which is the truth."""

    at: float
    domain: str
    jobs: tuple[ReportedJob, ...]


@dataclass(frozen=True, slots=True)
class JobContinued:
    """A job stopped by us runs again: its agent has lifted the stop and PBS no longer holds it."""

    at: float
    domain: str
    key: JobKey


@dataclass(frozen=True, slots=True)
class Booking:
    """What the hub knows of one job. `booked`: PBS has it admin-suspended; `held`: another host wants it stopped."""

    key: JobKey
    booked: bool
    held: bool = False


@dataclass(frozen=True, slots=True)
class BooksReported:
    """The hub's books about this host's jobs, all of them: a job that is not named is neither booked nor held."""

    at: float
    jobs: tuple[Booking, ...]


@dataclass(frozen=True, slots=True)
class HubLost:
    at: float


@dataclass(frozen=True, slots=True)
class HubFound:
    at: float


@dataclass(frozen=True, slots=True)
class AgentConnected:
    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class AgentLost:
    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class MemoryReported:
    """The agent's figure of what no swap can take (locked, huge pages), in MiB."""

    at: float
    domain: str
    unreclaimable_mib: int


@dataclass(frozen=True, slots=True)
class DomainBooting:
    """The domain boots, or is restored from disk; after `until` that has failed."""

    at: float
    domain: str
    until: float


@dataclass(frozen=True, slots=True)
class DomainStarted:
    """The domain is up. If it was frozen its restore has succeeded."""

    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class DomainStopped:
    """The domain is gone, or its boot or restore has failed; a frozen one stays frozen, its image is kept."""

    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class FreezeRequested:
    """Save a priority domain to disk: it drains, and is saved when its last job has ended."""

    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class FreezeEnded:
    """The saving is over: done, or failed for the reason given."""

    at: float
    domain: str
    failed: str = ""


@dataclass(frozen=True, slots=True)
class DefrostRequested:
    """Bring a frozen domain back, preempting what borrowed its CPUs. Answered like a claim."""

    at: float
    domain: str
    until: float


@dataclass(frozen=True, slots=True)
class ImageLost:
    """A frozen domain's image is gone: it is simply down."""

    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Take no more jobs; finish the present ones."""

    at: float
    domain: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrainEnded:
    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class Faulted:
    """A step for this domain failed beyond retry."""

    at: float
    domain: str
    reason: str


@dataclass(frozen=True, slots=True)
class FaultCleared:
    at: float
    domain: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """Time has come to `at`: every deadline until then takes effect."""

    at: float


Event = (
    Claimed
    | Released
    | JobLaunched
    | JobsReported
    | JobContinued
    | BooksReported
    | HubLost
    | HubFound
    | AgentConnected
    | AgentLost
    | MemoryReported
    | DomainBooting
    | DomainStarted
    | DomainStopped
    | FreezeRequested
    | FreezeEnded
    | DefrostRequested
    | ImageLost
    | DrainRequested
    | DrainEnded
    | Faulted
    | FaultCleared
    | TimerFired
)


# What the machine says. The daemon answers by the first two, writes all of them into the journal's history, and
# acts on none: what is to be done follows from the facts alone (plan.py).


@dataclass(frozen=True, slots=True)
class Accepted:
    """The claim or request is granted. `victims`: domains that are preempted for it."""

    domain: str
    key: JobKey | None = None
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not. `code` is for programs and never changes, `text` is for people and says what to do."""

    domain: str
    code: str
    text: str
    key: JobKey | None = None


@dataclass(frozen=True, slots=True)
class Preempted:
    """A job is to be stopped; `by` names what for."""

    domain: str
    key: JobKey
    by: str


@dataclass(frozen=True, slots=True)
class Continued:
    """A job runs again after `seconds` of being stopped by us."""

    domain: str
    key: JobKey
    seconds: float


@dataclass(frozen=True, slots=True)
class Adopted:
    """MoM's list has a job that nobody claimed; it is protected."""

    domain: str
    key: JobKey


@dataclass(frozen=True, slots=True)
class Gone:
    """A job is no longer here. `why`: `released`, `expired`, `missing`, `domain-down`, `newer-run`."""

    domain: str
    key: JobKey
    why: str
    preempted_s: float


@dataclass(frozen=True, slots=True)
class BootFailed:
    """A boot or restore took longer than its limit; the domain is down (or frozen) again."""

    domain: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """The event makes no sense here and has changed nothing."""

    domain: str
    code: str
    text: str


Decision = Accepted | Refused | Preempted | Continued | Adopted | Gone | BootFailed | Ignored
