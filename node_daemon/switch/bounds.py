"""How much memory each domain may have at most, and so how much another one may be given.

Rule 1: a domain's bound is what it has, or may yet take up to its balloon's target, whichever is more. The sum of all
bounds never exceeds the host's memory.
Rule 2: a bound falls only when the driver has said so, or guest and driver agree that memory was given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from magrathea.core.model import Host

from ..hypervisor.base import DomainReading

SLACK_MIB = 2
"""A target counts as reached if it is so near, and so small a change as none: hypervisors count in pages of their
own."""


def lockable_mib(host: Host, name: str, read: DomainReading | None) -> int | None:
    """The most that can be locked in a domain beyond its floor, whatever its guest says: a domain cannot hold more than
    it has. None if that is not known."""
    domain = host.domain(name)
    if domain is None or read is None or not read.up or not read.known or read.memory_mib is None:
        return None
    return max(0, read.memory_mib - domain.floor_mib)


def immovable_mib(host: Host, name: str, read: DomainReading | None, contested_mib: int) -> int:
    """What a domain beyond its floor has for good, because its memory cannot be moved (pinned, without a balloon, or
    contested): 0 if it can, or if that is not known."""
    domain = host.domain(name)
    if domain is None or read is None or not read.up or not read.known:
        return 0
    kept = contested_mib if read.memory_mib is not None else read.max_memory_mib or 0
    return max(0, kept - domain.floor_mib)


class Bounds:
    """The bounds of one host's domains; `host` returns its facts. `changed` is set whenever a bound changes."""

    def __init__(self, host: Callable[[], Host]) -> None:
        self._host = host
        self._bounds: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        """Balloons' targets that were set by us and are not reached yet."""
        self._content: dict[str, int] = {}
        """Targets that count as reached, because there is no more memory. Forgotten as soon as there may be more."""
        self.changed = asyncio.Event()

    def known(self) -> frozenset[str]:
        """The domains that have memory."""
        return frozenset(self._bounds)

    def of(self, domain: str) -> int:
        return self._bounds.get(domain, 0)

    def target(self, domain: str) -> int | None:
        """The balloon's target, if it is not reached yet."""
        return self._targets.get(domain)

    def note(
        self,
        read: Mapping[str, DomainReading],
        moves: Mapping[str, int | None],
        contested_mib: Callable[[str], int],
    ) -> None:
        """Take over what the driver says. `moves`: the domains whose memory is being moved; of each, what guest and
        driver agree that it has at most, or None if it gives nothing. `contested_mib`: see interference.py."""
        before = dict(self._bounds)
        self._bounds = {}
        for name, domain in read.items():
            if domain.up and not domain.known:
                self._bounds[name] = before.get(name, self._most(name))
                continue
            if not domain.up or domain.memory_mib is None:
                self._targets.pop(name, None)
                if domain.up and domain.max_memory_mib is not None:
                    self._bounds[name] = domain.max_memory_mib  # its memory cannot be moved: it has all that it may
                continue
            target = self._targets.get(name)
            if target is not None and abs(target - domain.memory_mib) <= SLACK_MIB and name not in moves:
                del self._targets[name]
            self._bounds[name] = max(domain.memory_mib, target or 0, moves.get(name) or 0, contested_mib(name))
        if any(self._bounds.get(name, 0) < mib for name, mib in before.items()):
            self._content.clear()
        if before != self._bounds:
            self.changed.set()

    def _most(self, domain: str) -> int:
        """What a domain may have that was never read."""
        host = self._host()
        found = host.domain(domain)
        return (found.memory_mib if found is not None else 0) or host.without_services.mib

    def will_set(self, domain: str, mib: int) -> None:
        """The balloon is about to get this target. Until it has, it may still move to an earlier one."""
        self._targets[domain] = max(self._targets.get(domain, 0), mib)
        self._bounds[domain] = max(self._bounds.get(domain, 0), mib)

    def was_set(self, domain: str, mib: int) -> None:
        self._targets[domain] = mib

    def given(self, domain: str, has_mib: int) -> None:
        """Guest and driver agree that the domain has no more than that."""
        bound = max(has_mib, self._targets.get(domain, 0))
        if bound < self._bounds.get(domain, 0):
            self._bounds[domain] = bound
            self._content.clear()
            self.changed.set()

    def room(self, domain: str) -> int:
        """What the domain may have: the host's memory without the other domains' bounds, and what moves keep."""
        host = self._host()
        others = sum(self._bounds.get(d.name, 0) for d in host.workers if d.name != domain)
        return host.for_workers.mib - others

    def others(self, domain: str) -> str:
        """What the other domains have, for people."""
        return ", ".join(f"{name} has {mib}" for name, mib in sorted(self._bounds.items()) if name != domain)

    def be_content(self, domain: str, target_mib: int) -> None:
        """The domain has all that can be had towards this target, and its jobs' needs are met."""
        self._content[domain] = target_mib

    def settled(self, domain: str, read: DomainReading, want_mib: int) -> bool:
        """Whether the domain has what it should have: exactly, or as much of it as can be had."""
        has = read.memory_mib
        if has is None:
            return True
        most = want_mib if read.max_memory_mib is None else min(want_mib, read.max_memory_mib)
        return abs(has - most) <= SLACK_MIB or (has < most and self._content.get(domain) == want_mib)
