"""Which host takes a domain that moves: the one function for all that look for a place, and its reasons. No I/O.

Rule 1: a host takes a domain if it takes visitors from its present host, and if the domain fits without stopping
anybody. `why_not` is that rule: whoever looks for a place asks it, and the target itself decides by it (arrivals.py).
Rule 2: of the hosts that take the domain, the one is chosen that has most CPUs left with it, then most memory. Equal
ones are chosen in the order in which they are named.
Rule 3: what has been promised counts: `after` is a room with one more domain in it.
Rule 4: what only the hypervisor there knows (its CPU model, bridges, folders) is not known here. The target refuses a
domain for such reasons before anything is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .model import Domain, Host, Kind, Mode
from .shares import unused
from .values import NOTHING, Amount


@dataclass(frozen=True, slots=True)
class HostRoom:
    """What a host has for one more domain. `free`: what nobody uses, less what it expects. `whole_cpus`: what it has
    for domains that take jobs. `with_jobs`: a domain that has jobs; empty if there is none. `welcome`: the hosts that
    it takes domains from. `closed`: why it takes nobody now; empty if it does.
    """

    host: str
    mode: Mode
    free: Amount
    whole_cpus: int
    with_jobs: str = ""
    welcome: frozenset[str] = frozenset()
    closed: str = ""


@dataclass(frozen=True, slots=True)
class Traveller:
    """A domain that looks for a place. `size`: CPUs and memory that it is configured with. `use`: what its jobs need
    there; nothing if they may wait there as they do here."""

    name: str
    kind: Kind
    size: Amount
    use: Amount
    floor_mib: int
    has_jobs: bool

    def need(self, mode: Mode) -> Amount:
        """What a host of this mode must have free. On an exclusive host nobody counts CPUs: one domain has them all."""
        if self.kind is Kind.SERVICE:
            return self.size
        return Amount(0 if mode is Mode.EXCLUSIVE else self.use.cpus, self.use.mib + self.floor_mib)


@dataclass(frozen=True, slots=True)
class Choice:
    """`host`: where the domain may go; empty if no host takes it. `refused`: by host, why not."""

    host: str
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return "; ".join(f"{host}: {why}" for host, why in self.refused)


def traveller(domain: Domain) -> Traveller:
    """The domain with what its jobs hold now. What is stopped there is stopped at its new host, too."""
    return Traveller(
        domain.name,
        domain.kind,
        Amount(domain.cpus, domain.memory_mib),
        domain.use,
        domain.floor_mib,
        bool(domain.jobs),
    )


def room(host: Host, welcome: frozenset[str], closed: str = "") -> HostRoom:
    """What moves keep counts already (`Host.coming`). The closing reasons that the host's own facts have are added."""
    busy = [d.name for d in host.workers if d.jobs] + [one.name for one in host.coming if one.busy]
    reasons = (
        (bool(closed), closed),
        (host.paused is not None, "it is paused"),
        (host.driver_lost_at is not None, "its hypervisor does not answer"),
    )
    why = next((text for holds, text in reasons if holds), "")
    return HostRoom(
        host.name, host.mode, unused(host), host.without_services.cpus, busy[0] if busy else "", welcome, why
    )


def unknown(host: str, source: str, why: str) -> HostRoom:
    """The room of a host of which nothing is known: it takes nobody."""
    return HostRoom(host, Mode.COUNTED, NOTHING, 0, "", frozenset({source}), why)


def why_not(room: HostRoom, domain: Traveller) -> str:
    """Why the domain does not fit there now, without stopping anybody; empty if it fits."""
    if domain.kind is not Kind.SERVICE and domain.size.cpus > room.whole_cpus:
        return f"it has {domain.size.cpus} CPUs, and {room.host} has {room.whole_cpus} for domains that take jobs"
    exclusive = room.mode is Mode.EXCLUSIVE and domain.kind is not Kind.SERVICE
    if exclusive and domain.has_jobs and room.with_jobs:
        return f"only one domain of {room.host} runs jobs at a time, and {room.with_jobs} has some"
    need, free = domain.need(room.mode), room.free
    if need.within(free):
        return ""
    return f"it needs {need.cpus} CPUs and {need.mib} MiB, and {max(0, free.cpus)} and {max(0, free.mib)} are free"


def choose(domain: Traveller, source: str, rooms: Iterable[HostRoom]) -> Choice:
    """The host that takes the domain, which is at `source` now. `rooms`: in the order in which they are named."""
    best: tuple[tuple[int, int], str] | None = None
    refused: list[tuple[str, str]] = []
    for one in rooms:
        if why := _closed(one, source) or why_not(one, domain):
            refused.append((one.host, why))
            continue
        left = one.free - domain.need(one.mode)
        if best is None or (left.cpus, left.mib) > best[0]:
            best = (left.cpus, left.mib), one.host
    return Choice(best[1] if best else "", tuple(refused))


def after(room: HostRoom, domain: Traveller) -> HostRoom:
    """The room when the domain is there."""
    with_jobs = room.with_jobs or (domain.name if domain.has_jobs and domain.kind is not Kind.SERVICE else "")
    free = room.free - domain.need(Mode.COUNTED)
    if domain.kind is Kind.SERVICE:
        return replace(room, free=free, whole_cpus=room.whole_cpus - domain.size.cpus)
    return replace(room, free=free, with_jobs=with_jobs)


def _closed(room: HostRoom, source: str) -> str:
    if room.host == source:
        return "it is there"
    if source not in room.welcome:
        return f"it takes no domains from {source}"
    return room.closed
