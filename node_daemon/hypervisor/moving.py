"""What the daemon needs of a hypervisor to move a running domain to another host: the contract, without I/O.

A move has two ends. The host that the domain leaves describes it (`Departure`); the other host makes what the domain
needs there (`Arrival`); then the first host moves it.

Rule 1: a mover decides nothing. Both ends report what is really so (`Whereabouts`); the core decides what that means.
Rule 2: until the switch-over the domain runs here, and a move that fails or is cancelled leaves it running here.
Rule 3: the domain runs while it is copied, unless its hypervisor would lose some of what it writes; then it is paused.
Rule 4: a move ends by itself (magrathea/core/passes.py). It never throttles the guest, and never runs it at the
destination before all its memory is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from magrathea.core.passes import Help


class Presence(StrEnum):
    """What a domain is on one host."""

    ABSENT = "absent"
    """It does not run here. Its definition may be here."""
    RUNNING = "running"
    PAUSED = "paused"
    """Somebody has paused it; no move has to do with it."""
    LEAVING = "leaving"
    """It runs here and is being copied to another host."""
    SWITCHING = "switching"
    """It is paused here by a move that is under way. It soon runs here or there; only the hypervisors may decide."""
    ARRIVING = "arriving"
    """An incomplete copy of it, which a move fills."""
    ARRIVED = "arrived"
    """A complete copy that has never run. It runs only if told to (`go_on_here`)."""
    HELD = "held"
    """Complete, but paused by a move that ended without knowing whether the other copy runs. It may go on here only if
    it runs nowhere else (`go_on_here`); otherwise it must be ended (`give_up`)."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A domain on one host, as its hypervisor reports it. `defined`: its definition is kept here. `uuid`: empty if this
    host does not know the domain. `cpus`, `memory_mib`: the most that it may have; 0 if that is not known."""

    presence: Presence
    defined: bool = False
    uuid: str = ""
    cpus: int = 0
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the host that a domain leaves permits. `shared`: folders that all hosts see under the same path.

    `copy_disks`: disks elsewhere may be copied with the domain. `same_cpus`: the destination has the same CPUs, so a
    domain that was given the host's own model may move, too.
    """

    shared: tuple[str, ...] = ()
    copy_disks: bool = False
    same_cpus: bool = False


@dataclass(frozen=True, slots=True)
class CopiedDisk:
    """A disk that is copied with its domain. `target`: its name in the guest. `backing`: the file that it is an overlay
    of, which is not copied; empty if there is none."""

    target: str
    path: str
    format: str
    size_bytes: int
    backing: str = ""
    backing_format: str = ""


@dataclass(frozen=True, slots=True)
class Departure:
    """What a domain needs at its destination. All paths are those of the host that it leaves.

    `channel`: its guest channel. `needs`: files that must be there. `writes`: files and sockets that the hypervisor
    makes there; their folders must be there. `bridges`: network devices of the host. `cpus`, `memory_mib`: the most
    that it may have; 0 from a host that does not say so.
    """

    name: str
    uuid: str
    channel: str
    disks: tuple[CopiedDisk, ...] = ()
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    cpus: int = 0
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Premises:
    """How the destination arranges its files. `channel`: where its daemon listens for the domain's guest channel.

    `disks`: folders in which it lets disks be made. `images`: folders with the images of which these may be overlays.
    `renamed`: folders that have other names here, by their names at the host that the domain leaves.
    """

    channel: str
    disks: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the destination has prepared. `paths`: its path for each path of the departure that differs. `made`: files
    that it has made, which a failed move leaves behind (`clear`)."""

    paths: Mapping[str, str]
    made: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Destination:
    """The way to the other host. `uri`: its libvirt, as this host's libvirtd reaches it.

    `memory_uri`, `disks_uri`: where the hypervisor there receives memory and disks; empty: the host of `uri`.
    `encrypted`: the hypervisors themselves encrypt what they send. `bandwidth_mib_s`: MiB per second at most. `waits`:
    the domain arrives paused, and runs there only when it is told to (`go_on_here`).
    """

    uri: str
    memory_uri: str = ""
    disks_uri: str = ""
    encrypted: bool = False
    bandwidth_mib_s: int | None = None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """How far a move is. `seconds`: since it began. `passes`: passes of the memory so far; 0 while only disks are
    copied. `written_bytes_per_s`: how fast the guest writes memory, as far as the hypervisor knows. `help`: what the
    copy needs to end. `is_still`: the domain is paused for the copy."""

    seconds: float = 0.0
    sent_bytes: int = 0
    left_bytes: int = 0
    passes: int = 0
    sent_bytes_per_s: float = 0.0
    written_bytes_per_s: float = 0.0
    help: Help = Help.NONE
    is_still: bool = False


class MoveOutcome(StrEnum):
    """What this end knows after a move."""

    GONE = "gone"
    """The domain is at the destination, and no longer here."""
    STAYED = "stayed"
    """The domain runs here."""
    UNKNOWN = "unknown"
    """Compare both ends' whereabouts."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that has ended. `why`: why the domain did not move, for people."""

    outcome: MoveOutcome
    progress: MoveProgress
    why: str = ""


class Watcher(Protocol):
    """Whoever ordered a move. Called in the event loop."""

    def progressed(self, progress: MoveProgress) -> None:
        """How far the move is, some times a second. It must not block."""

    async def stop_jobs(self, progress: MoveProgress) -> None:
        """Stop the domain's jobs for the rest of the move, and return when they are stopped. Called once at most.

        If it raises DriverError or takes longer than STOP_LIMIT_S, the move continues as if they were stopped, and the
        domain is paused if that does not suffice.
        """


STOP_LIMIT_S = 15.0
"""An agent that has not stopped the jobs by then does not help the copy to end."""


class DomainMover(Protocol):
    """What moves domains. Every call but `move` and `follow` ends within its deadline. All raise DriverError."""

    def know(self, domain: str, name: str) -> None:
        """From now on the hypervisor's name of `domain` is `name`."""

    def close(self) -> None:
        """Stop watching. Moves under way go on in the hypervisor."""

    async def why_not_movable(self, domain: str, terms: Terms) -> list[str]:
        """Why the domain cannot leave this host, a sentence each with its fix; empty if it can."""

    async def departure(self, domain: str, terms: Terms) -> Departure:
        """What the running domain needs at its destination. Raises DriverError with every reason if it cannot move."""

    async def why_not_welcome(self, domain: str, departure: Departure, premises: Premises) -> list[str]:
        """What this host lacks to take the domain, a sentence each with its fix; empty if it can take it."""

    async def prepare(self, domain: str, departure: Departure, premises: Premises) -> Arrival:
        """Make what the domain needs on this host. Raises DriverError with every reason if it is not welcome."""

    async def clear(self, domain: str, arrival: Arrival) -> None:
        """Remove what a failed move has left on this host. Refused while the domain is here in any form but a
        definition."""

    async def move(
        self, domain: str, departure: Departure, arrival: Arrival, destination: Destination, watcher: Watcher
    ) -> Moved:
        """Move the running domain. If the caller is cancelled, the move goes on; `follow` watches it again."""

    async def follow(self, domain: str, watcher: Watcher) -> Moved:
        """Watch a move that an earlier daemon began, until it has ended."""

    async def cancel(self, domain: str) -> bool:
        """Ask the hypervisor to give up the domain's move from here. Returns False if there is none.

        It may be too late: the move's own outcome tells.
        """

    async def where_is(self, domain: str, awaited: bool = False) -> Whereabouts:
        """What the domain is on this host.

        `awaited`: this host expects the domain by a move that `waits`, and has not let it run yet. The hypervisor shows
        such a copy like one that somebody has paused.
        """

    async def go_on_here(self, domain: str, awaited: bool = False) -> None:
        """Let a domain that has `arrived` or is `held` here run. Only if it certainly runs nowhere else."""

    async def give_up(self, domain: str, awaited: bool = False) -> None:
        """End and forget the copy that has `arrived` or is `held` here, or the definition of an absent domain. Its
        files stay. Only if the domain is certainly elsewhere."""

    async def standstill_s(self, domain: str) -> float | None:
        """How long the domain stood still in the move that has brought it here; None if the hypervisor has
        forgotten."""
