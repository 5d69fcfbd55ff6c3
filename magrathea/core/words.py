"""The words for what hosts, domains and jobs are: each is a closed list. docs/rules.md explains them.

The daemon and the hub import them from model.py, with the facts that use them. Messages and the commands that only show
a host import them from here: building the classes of the facts takes Python a fifth of `magrathea status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a domain is for. The admin configures it; it changes only while the domain is empty (reconfiguration.py)."""

    NORMAL = "normal"
    PRIORITY = "priority"
    SERVICE = "service"


class JobClass(StrEnum):
    """What may be done to a job. Its queue sets the class."""

    PRIORITY = "priority"
    PREEMPTIBLE = "preemptible"
    PROTECTED = "protected"


class Mode(StrEnum):
    """How the domains of a host share it: one at a time, or by counting CPUs."""

    EXCLUSIVE = "exclusive"
    COUNTED = "counted"


class Lifecycle(StrEnum):
    """Whether the domain exists as a running machine. A restore from disk also counts as `BOOTING`."""

    DOWN = "down"
    BOOTING = "booting"
    UP = "up"


class Patience(StrEnum):
    """What a shutdown waits for: `DRAIN` takes no more jobs and waits for the present ones; `IDLE` takes jobs until
    there are none, and then becomes `DRAIN`; `NOW` waits for nothing."""

    DRAIN = "drain"
    IDLE = "when-idle"
    NOW = "now"


class StoppedBy(StrEnum):
    """Who stopped a job: Magrathea, or PBS for its own reasons (then the job counts as running)."""

    US = "us"
    PBS = "pbs"


class SleepCause(StrEnum):
    """Why a domain sleeps on disk with its jobs: an admin asked for it, the host shuts down, its memory had nowhere
    else to go, or its host is evacuated. `MOVE`: its jobs stand still for the rest of a move; it is never saved. The
    words are in journals, so none of them ever changes."""

    ADMIN = "admin"
    SHUTDOWN = "shutdown"
    GIVE_WAY = "give-way"
    EVACUATION = "evacuation"
    MOVE = "move"


class GiveWay(StrEnum):
    """Where the memory of a preempted domain's jobs goes when others need it: to the swap of their guest; to disk with
    the whole domain, which is put to sleep; or to disk if its swap does not suffice."""

    SWAP = "swap"
    DISK = "disk"
    SWAP_THEN_DISK = "swap-then-disk"


class State(StrEnum):
    """What a domain is, in one word, for people and for PBS. Derived by `states.state_of`, never stored."""

    FROZEN = "frozen"
    ASLEEP = "asleep"
    DOWN = "down"
    BOOTING = "booting"
    UNKNOWN = "unknown"
    FAULT = "fault"
    PREEMPTED = "preempted"
    DRAINING = "draining"
    RUNNING_PRIORITY = "running-priority"
    RUNNING_PREEMPTIBLE = "running-preemptible"
    RUNNING = "running"
    FREE = "free"
    WOULD_PREEMPT = "occupied-would-preempt"
    OCCUPIED = "occupied"


class Stage(StrEnum):
    """Why a part of a job is not ready (readiness.py): its memory is being moved, will not come, or nobody reports the
    part."""

    COMING = "coming"
    SHORT = "short"
    UNHEARD = "unheard"


@dataclass(frozen=True, slots=True)
class MemoryComing:
    """The memory that a domain's jobs asked for is not there yet but may still come."""


@dataclass(frozen=True, slots=True)
class MemoryShort:
    """The memory will not come. `why`: for people, with the numbers."""

    why: str


MemoryLack = MemoryComing | MemoryShort


CLASSES_OF: dict[Kind, tuple[JobClass, ...]] = {
    Kind.NORMAL: (JobClass.PREEMPTIBLE, JobClass.PROTECTED),
    Kind.PRIORITY: (JobClass.PRIORITY,),
    Kind.SERVICE: (),
}
"""Which classes of jobs a domain of a kind takes (docs/rules.md)."""
