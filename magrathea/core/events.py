"""What can happen to a host. What the machine answers and notes: decisions.py, whose names are here, too.

Every event has its time `at`, in seconds on the host's clock; most concern one domain. An event that makes no sense (an
unknown domain, an impossible number) changes only the time; a claim is then refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from .decisions import Accepted as Accepted
from .decisions import Decision as Decision
from .decisions import JobGone as JobGone
from .decisions import Note as Note
from .decisions import Noted as Noted
from .decisions import Refused as Refused
from .decisions import is_question as is_question
from .model import JobClass, JobKey, Kind, Limits, Mode, Patience, SleepCause, StopWarning


@dataclass(frozen=True, slots=True)
class TimedEvent:
    at: float


@dataclass(frozen=True, slots=True)
class EventOfDomain(TimedEvent):
    domain: str


@dataclass(frozen=True, slots=True)
class EventOfJob(EventOfDomain):
    key: JobKey


@dataclass(frozen=True, slots=True)
class Claimed(EventOfJob):
    """A MoM hook asks, before a job starts, whether it may start here. Answered by `Accepted` or `Refused`.

    `given`: PBS has given this job to the domain, as a hub said. False: nobody has asked yet. Then a claim that would
    cost a sibling something is refused (`UNCONFIRMED`), and the caller asks a hub and claims again. `keeps`: see
    `model.Job`. `longest_warning_s`: the job cannot wait for jobs that are warned for longer; None if it can.
    """

    cls: JobClass
    cpus: int
    memory_mib: int = 0
    rerunnable: bool = True
    given: bool = True
    keeps: str = ""
    warning: StopWarning | None = None
    longest_warning_s: float | None = None


class Released(EventOfJob):
    """The job ended or was aborted."""


class JobLaunched(EventOfJob):
    """The agent sees a process of the job. The job is now confirmed and can be stopped."""


@dataclass(frozen=True, slots=True)
class JobsContinued(EventOfDomain):
    """Jobs stopped by us run again: their agent has lifted the stop and PBS no longer holds them.

    One event for all jobs of an order, because a domain may have thousands."""

    keys: tuple[JobKey, ...]


@dataclass(frozen=True, slots=True)
class ReportedJob:
    """One job of MoM's list. `suspended`: PBS holds it as suspended; `ending`: it is exiting."""

    key: JobKey
    cpus: int = 1
    memory_mib: int = 0
    suspended: bool = False
    ending: bool = False
    rerunnable: bool = True
    warning: StopWarning | None = None


@dataclass(frozen=True, slots=True)
class JobsReported(EventOfDomain):
    """MoM's own list of the domain's jobs. It overrules what we believe."""

    jobs: tuple[ReportedJob, ...]


@dataclass(frozen=True, slots=True)
class GivenJob:
    """A job that PBS has given to the domain. `cpus`, `memory_mib`: what PBS has given it there; None: unreadable."""

    key: JobKey
    cpus: int | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class JobsGiven(EventOfDomain):
    """PBS has given these jobs to the domain, as a hub said. What PBS says of their size overrules the guest.

    One event for many jobs, because each event is a write to disk, and a domain may have thousands."""

    jobs: tuple[GivenJob, ...]


@dataclass(frozen=True, slots=True)
class JobsDenied(EventOfDomain):
    """PBS does not have these jobs on the domain, as a hub said: it never gave them to it, or they have ended."""

    keys: tuple[JobKey, ...]


@dataclass(frozen=True, slots=True)
class Booking:
    """What the hub knows of one job. `booked`: PBS has it admin-suspended; `held`: another host wants it stopped."""

    key: JobKey
    booked: bool
    held: bool = False


@dataclass(frozen=True, slots=True)
class BooksReported(TimedEvent):
    """The hub's books about all jobs of this host. A job that is not named is neither booked nor held."""

    jobs: tuple[Booking, ...]


class HubLost(TimedEvent):
    """No hub answers: nothing new may be preempted."""


class HubFound(TimedEvent):
    """A hub answers again."""


@dataclass(frozen=True, slots=True)
class PauseRequested(TimedEvent):
    """Watch the host but stop acting: nothing is stopped, continued, saved, restored or moved."""

    reason: str


class PauseEnded(TimedEvent):
    """Act again, according to the facts of this moment."""


class DriverLost(TimedEvent):
    """The hypervisor no longer answers. After `agent_silent_s` its domains are `unknown`."""


class DriverFound(TimedEvent):
    """The hypervisor answers again."""


@dataclass(frozen=True, slots=True)
class OthersSeen(TimedEvent):
    """CPUs and memory of all running domains that are not configured, in total. They count as services."""

    cpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class ConfiguredDomain:
    """One domain of the configuration. Each field is the one with this name in `model.Domain`."""

    name: str
    kind: Kind
    cpus: int
    memory_mib: int = 0
    floor_mib: int = 0
    swap_mib: int = 0
    boot_limit_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Reconfigured(TimedEvent):
    """The configuration was read, at the daemon's start or later. It describes the host and all of its domains."""

    host: str
    mode: Mode
    cpus: int
    memory_mib: int
    limits: Limits
    domains: tuple[ConfiguredDomain, ...]


class DaemonStarted(TimedEvent):
    """The node daemon has just started. It has no contact to hub and agents yet; the agents get a time of grace."""


class AgentConnected(EventOfDomain):
    """The domain's agent is connected."""


class AgentLost(EventOfDomain):
    """The domain's agent is gone. After `agent_silent_s` the domain is `unknown`."""


@dataclass(frozen=True, slots=True)
class MemoryReported(EventOfDomain):
    """How much memory no swap can take (locked, huge pages), as the agent reports it, in MiB."""

    unreclaimable_mib: int


@dataclass(frozen=True, slots=True)
class DiskJudged(EventOfDomain):
    """Whether the domain can be put to sleep when its memory must give way, as the hypervisor says. `obstacle`: why
    not, for people; empty if it can."""

    obstacle: str


@dataclass(frozen=True, slots=True)
class DomainBooting(EventOfDomain):
    """The domain boots. After `until` that has failed. Its jobs stay until it is down or MoM's list lacks them."""

    until: float


class DomainStarted(EventOfDomain):
    """The domain is up. If it was frozen or asleep, its restore has succeeded, whoever began it."""


@dataclass(frozen=True, slots=True)
class DomainStopped(EventOfDomain):
    """The domain is gone, or its boot or restore has failed. A frozen domain stays frozen and a sleeping one asleep,
    and its image is kept.

    If a reboot was requested, the domain boots from now on.
    """

    reason: str = ""


class DomainHalted(EventOfDomain):
    """Somebody else has paused the domain: nothing in it runs, not even its agent."""


class DomainWentOn(EventOfDomain):
    """The paused domain runs again."""


class BootRequested(EventOfDomain):
    """An admin wants the domain up. Answered like a claim."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested(EventOfDomain):
    """An admin wants the domain down, and with `reboot` up again. Answered like a claim."""

    reboot: bool = False
    patience: Patience = Patience.DRAIN


class FreezeRequested(EventOfDomain):
    """Save a priority domain to disk. It drains first and is saved when its last job has ended."""


@dataclass(frozen=True, slots=True)
class SleepRequested(EventOfDomain):
    """Save the domain to disk with its jobs, when all of them are stopped and suspended in PBS. Answered like a claim.

    `book_within_s`: wait no longer than that for PBS; None: for ever.
    """

    reason: str
    cause: SleepCause
    book_within_s: float | None = None


class SleepEnded(EventOfDomain):
    """The domain, which was to come back before it was saved, has not been saved: its jobs go on. Or it has caught up
    after a move in which it stood still."""


@dataclass(frozen=True, slots=True)
class FreezeEnded(EventOfDomain):
    """The saving has ended: it is done, or has failed for the given reason. Its jobs, if any, are saved with it."""

    failed: str = ""


@dataclass(frozen=True, slots=True)
class DefrostRequested(EventOfDomain):
    """Restore a frozen domain by `until`, preempting the jobs that borrowed its CPUs. Answered like a claim.

    A domain that sleeps with its jobs comes back when its turn has come; it preempts nobody. One that was to be put to
    sleep stays awake.
    """

    until: float


class ImageLost(EventOfDomain):
    """A frozen or sleeping domain's image is gone, so the domain is down, and its jobs are released."""


@dataclass(frozen=True, slots=True)
class DrainRequested(EventOfDomain):
    """Take no more jobs; finish the present ones."""

    reason: str


class DrainEnded(EventOfDomain):
    """Take jobs again. A freeze, sleep or shutdown that has not begun is cancelled."""


@dataclass(frozen=True, slots=True)
class Faulted(EventOfDomain):
    """A step for this domain has failed, and all retries, too."""

    reason: str


class FaultCleared(EventOfDomain):
    """An admin has fixed the cause of the fault."""


class TimerFired(TimedEvent):
    """It is now `at`. Every deadline until then takes effect."""


HostEvent = (
    BooksReported
    | HubLost
    | HubFound
    | PauseRequested
    | PauseEnded
    | DriverLost
    | DriverFound
    | OthersSeen
    | Reconfigured
    | DaemonStarted
    | TimerFired
)

DomainEvent = (
    Claimed
    | Released
    | JobLaunched
    | JobsContinued
    | JobsReported
    | JobsGiven
    | JobsDenied
    | AgentConnected
    | AgentLost
    | MemoryReported
    | DiskJudged
    | DomainBooting
    | DomainStarted
    | DomainStopped
    | DomainHalted
    | DomainWentOn
    | BootRequested
    | ShutdownRequested
    | FreezeRequested
    | SleepRequested
    | SleepEnded
    | FreezeEnded
    | DefrostRequested
    | ImageLost
    | DrainRequested
    | DrainEnded
    | Faulted
    | FaultCleared
)

Event = HostEvent | DomainEvent
"""All events. Where events are matched, mypy reports one that is missing."""
