"""Which domains sleep on disk with their jobs, by the last word of their hosts. Kept in the books (ledger.py).

Rule 1: no I/O and no clock.
Rule 2: only a host ends a sleep: its snapshot shows the domain awake, or no longer names it. A sleeper stays one while
its host, the hub or the server is off, for however long.
Rule 3: what a host says counts only for vnodes of which it may speak, and that PBS has (`keep`).
Rule 4: PBS needs a while after a wake before it knows that MoM is back. Until PBS has shown that, and for WAKING_S at
most, the vnode is `waking`: PBS is asked about it often, MoM is asked for nothing, and is not missed either.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from magrathea.core.model import Kind, State
from magrathea.messages import MOST_DOMAINS, DomainReport, Snapshot, Time
from magrathea.pbs_text.states import DEAD_STATES
from magrathea.text import one_line
from scheduler_plugin.pbs.base import Vnode

WAKING_S = 120.0
"""MoM notices by herself after some 40 s that her connection is dead (seen); her guest's agent is quicker. On a busy
host all of that may take longer."""
SETTLED_S = 4.0
"""What PBS shows of a vnode counts only so long after the wake: after a short sleep it has not noticed yet that MoM was
away, and her old connection leads nowhere."""
MOST_LOOKED_AT = 32
"""Waking vnodes that PBS is asked about at once; they take turns."""
ASLEEP = "asleep on "
"""Begins each such sentence."""
MOST_REASON = 60
MOST_NAME = 60
"""Longest texts in a comment, so that what brings the domain back fits in, too (PBS's vnodes and jobs: 250)."""


class Sleeper(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A domain that is saved with its jobs. `since`: Unix seconds on its host's clock. `wakes`: it waits for room."""

    host: str
    domain: str
    vnode: str
    since: Time
    reason: str
    wakes: bool = False

    @property
    def sentence(self) -> str:
        """Where it sleeps, since when and why; for people."""
        since = time.strftime("%b %d %H:%M:%S", time.localtime(self.since))
        because = f", because {one_line(self.reason, MOST_REASON)}" if self.reason else ""
        domain, host = one_line(self.domain, MOST_NAME), one_line(self.host, MOST_NAME)
        return f"{ASLEEP}{host} in {domain} since {since}{because}"

    @property
    def return_(self) -> str:
        """What brings it back."""
        if self.wakes:
            return "it comes back as soon as there is room"
        return f"`magrathea domain defrost {one_line(self.domain, MOST_NAME)}` brings it back"


def sleeps(domain: DomainReport) -> bool:
    """True if the domain is saved with its jobs, also while it is being restored."""
    return bool(domain.sleep) and domain.state in (State.ASLEEP, State.BOOTING)


class Sleepers:
    """`kept`: those of the books."""

    def __init__(self, kept: Iterable[Sleeper] = ()) -> None:
        self._by_vnode = {sleeper.vnode: sleeper for sleeper in kept}
        self._woken: dict[str, float] = {}
        """Vnodes that are waking, and since when; first those that PBS has been asked about longest ago."""

    def heard(self, snapshot: Snapshot, own: Iterable[str], now: float) -> set[str]:
        """Take a host's snapshot, which came at `now`, or was taken before and counts again: PBS has other vnodes or
        owners since. `own`: the vnodes of PBS of which it may speak. Returns the vnodes that now sleep, or do so no
        longer."""
        mine = frozenset(own)
        before = {name for name, sleeper in self._by_vnode.items() if sleeper.host == snapshot.host}
        found = {
            domain.vnode: Sleeper(
                host=snapshot.host,
                domain=domain.name,
                vnode=domain.vnode,
                since=domain.sleep.since,
                reason=one_line(domain.sleep.reason, MOST_REASON),
                wakes=domain.sleep.wakes,
            )
            for domain in snapshot.domains[:MOST_DOMAINS]
            if domain.sleep and domain.kind is not Kind.SERVICE and domain.vnode in mine and sleeps(domain)
        }
        awake = {domain.vnode for domain in snapshot.domains if domain.vnode in mine} - found.keys()
        for vnode in sorted(before - found.keys()):
            del self._by_vnode[vnode]
            if vnode in awake:
                self._woken[vnode] = now
        changed = {vnode for vnode, sleeper in found.items() if self._by_vnode.get(vnode) != sleeper}
        self._by_vnode.update(found)
        for vnode in found:
            self._woken.pop(vnode, None)
        return changed | (before - found.keys())

    def keep(self, owner: Mapping[str, str]) -> None:
        """Forget those that PBS no longer has, or has on record for another host. `owner`: its managed vnodes."""
        self._by_vnode = {v: sleeper for v, sleeper in self._by_vnode.items() if owner.get(v) == sleeper.host}
        self._woken = {v: at for v, at in self._woken.items() if v in owner}

    def of(self, vnodes: Iterable[str]) -> Sleeper | None:
        """The first of these vnodes that sleeps; None if all are awake."""
        return next((self._by_vnode[vnode] for vnode in vnodes if vnode in self._by_vnode), None)

    def waking(self, now: float) -> frozenset[str]:
        """The vnodes that have just come back."""
        self._woken = {vnode: at for vnode, at in self._woken.items() if now < at + WAKING_S}
        return frozenset(self._woken)

    def to_look_at(self, now: float) -> list[str]:
        """The waking vnodes that PBS should be asked about now."""
        waking = self.waking(now)
        names = [vnode for vnode, at in self._woken.items() if vnode in waking and now >= at + SETTLED_S]
        return names[:MOST_LOOKED_AT]

    def looked(self, vnodes: Iterable[Vnode], at: float) -> set[str]:
        """Take what PBS showed of vnodes at that time. Returns those that are not waking any more."""
        back = set()
        for vnode in vnodes:
            woken_at = self._woken.pop(vnode.name, None)
            if woken_at is None:
                continue
            if vnode.state & DEAD_STATES or at < woken_at + SETTLED_S:
                self._woken[vnode.name] = woken_at  # now the last one
            else:
                back.add(vnode.name)
        return back

    def __iter__(self) -> Iterator[Sleeper]:
        return iter(self._by_vnode.values())

    @property
    def kept(self) -> tuple[Sleeper, ...]:
        """What must survive a restart of the hub."""
        return tuple(sleeper for _, sleeper in sorted(self._by_vnode.items()))
