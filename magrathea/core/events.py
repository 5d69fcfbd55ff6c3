"""What can happen to a host, and what the machine says about it.

Every event has its time `at`, in seconds on the host's clock; most speak of one domain. An event that makes no
sense (an unknown domain, an impossible number) changes nothing but the time; a claim gets its refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

from .model import JobClass, JobKey, Kind, Limits, Mode, Patience
from .refusals import RefusalCode


@dataclass(frozen=True, slots=True)
class Event:
    at: float


@dataclass(frozen=True, slots=True)
class DomainEvent(Event):
    domain: str


@dataclass(frozen=True, slots=True)
class JobEvent(DomainEvent):
    key: JobKey


@dataclass(frozen=True, slots=True)
class Claimed(JobEvent):
    """A MoM hook asks, before a job starts, whether it may start here. Answered by `Accepted` or `Refused`."""

    cls: JobClass
    cpus: int
    memory_mib: int = 0
    rerunnable: bool = True


class Released(JobEvent):
    """The job ended or was aborted."""


class JobLaunched(JobEvent):
    """The agent sees a process of the job: it is confirmed, and can be stopped."""


class JobContinued(JobEvent):
    """A job stopped by us runs again: its agent has lifted the stop and PBS no longer holds it."""


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
class JobsReported(DomainEvent):
    """MoM's own list of the domain's jobs, which is the truth."""

    jobs: tuple[ReportedJob, ...]


@dataclass(frozen=True, slots=True)
class Booking:
    """What the hub knows of one job. `booked`: PBS has it admin-suspended; `held`: another host wants it stopped."""

    key: JobKey
    booked: bool
    held: bool = False


@dataclass(frozen=True, slots=True)
class BooksReported(Event):
    """The hub's books about this host's jobs, all of them: a job that is not named is neither booked nor held."""

    jobs: tuple[Booking, ...]


class HubLost(Event):
    """No hub answers: nothing new may be preempted."""


class HubFound(Event):
    """A hub answers again."""


@dataclass(frozen=True, slots=True)
class PauseRequested(Event):
    """Watch the host, and act no more: nobody is stopped, continued, saved or restored, and nothing is moved."""

    reason: str


class PauseEnded(Event):
    """Act again: what has to be done follows from the facts of this moment."""


class DriverLost(Event):
    """The hypervisor cannot be asked any more; after `agent_silent_s` its domains are `unknown`."""


class DriverFound(Event):
    """The hypervisor can be asked again."""


@dataclass(frozen=True, slots=True)
class OthersSeen(Event):
    """What domains that are not configured have by now, all together: they run, and are services."""

    cpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class ConfiguredDomain:
    """What the configuration says of one domain; each field is the one of the same name of `model.Domain`."""

    name: str
    kind: Kind
    cpus: int
    memory_mib: int = 0
    floor_mib: int = 0
    swap_mib: int = 0
    boot_limit_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Reconfigured(Event):
    """The configuration was read, at the daemon's start or later: all that it says of the host and its domains."""

    host: str
    mode: Mode
    cpus: int
    memory_mib: int
    limits: Limits
    domains: tuple[ConfiguredDomain, ...]


class DaemonStarted(Event):
    """The node daemon has just started: no contact to hub and agents yet, and a time of grace for the agents."""


class AgentConnected(DomainEvent):
    """The domain's agent is there."""


class AgentLost(DomainEvent):
    """The domain's agent is gone; after `agent_silent_s` the domain is `unknown`."""


@dataclass(frozen=True, slots=True)
class MemoryReported(DomainEvent):
    """The agent's figure of what no swap can take (locked, huge pages), in MiB."""

    unreclaimable_mib: int


@dataclass(frozen=True, slots=True)
class DomainBooting(DomainEvent):
    """The domain boots; after `until` that has failed. Its jobs stay until it is down or MoM's list lacks them."""

    until: float


class DomainStarted(DomainEvent):
    """The domain is up. If it was frozen its restore has succeeded."""


@dataclass(frozen=True, slots=True)
class DomainStopped(DomainEvent):
    """The domain is gone, or its boot or restore has failed; a frozen one stays frozen, its image is kept.

    One that was to be rebooted boots from here on.
    """

    reason: str = ""


class DomainHalted(DomainEvent):
    """Somebody else has paused the domain: nothing in it runs, its agent included."""


class DomainWentOn(DomainEvent):
    """The paused domain runs again."""


class BootRequested(DomainEvent):
    """An admin wants the domain up. Answered like a claim."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested(DomainEvent):
    """An admin wants the domain down, and with `reboot` up again. Answered like a claim."""

    reboot: bool = False
    patience: Patience = Patience.DRAIN


class FreezeRequested(DomainEvent):
    """Save a priority domain to disk: it drains, and is saved when its last job has ended."""


@dataclass(frozen=True, slots=True)
class FreezeEnded(DomainEvent):
    """The saving is over: done, or failed for the reason given."""

    failed: str = ""


@dataclass(frozen=True, slots=True)
class DefrostRequested(DomainEvent):
    """Restore a frozen domain until then, preempting what borrowed its CPUs. Answered like a claim."""

    until: float


class ImageLost(DomainEvent):
    """A frozen domain's image is gone: it is simply down."""


@dataclass(frozen=True, slots=True)
class DrainRequested(DomainEvent):
    """Take no more jobs; finish the present ones."""

    reason: str


class DrainEnded(DomainEvent):
    """Take jobs again; a freeze or shutdown that has not begun is given up."""


@dataclass(frozen=True, slots=True)
class Faulted(DomainEvent):
    """A step for this domain failed beyond retry."""

    reason: str


class FaultCleared(DomainEvent):
    """An admin has fixed what had failed."""


class TimerFired(Event):
    """Time has come to `at`: every deadline until then takes effect."""


# What the machine says. The daemon answers by the first two, writes all of them into the journal's history, and
# acts on none: what is to be done follows from the facts alone (plan.py).


@dataclass(frozen=True, slots=True)
class Accepted:
    """A claim or request is granted. `victims`: domains that are preempted for it."""

    domain: str
    key: JobKey | None = None
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not, and nothing has changed. `code` is for programs and never changes, `text` for people."""

    domain: str
    code: RefusalCode
    text: str
    key: JobKey | None = None


@dataclass(frozen=True, slots=True)
class Noted:
    """For the history. `what`: preempted, continued, adopted, boot-failed, freeze-failed, or how a job went: released,
    expired, missing, domain-down, newer-run, or what the configuration did not change or took away: kept, forgotten,
    renamed. `text`: for whom or why. `preempted_s`: how long it was stopped by us, as far as that ended now. `domain`
    is empty if it is about the host.
    """

    domain: str
    what: str
    key: JobKey | None = None
    text: str = ""
    preempted_s: float = 0.0


Decision = Accepted | Refused | Noted
