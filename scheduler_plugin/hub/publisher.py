"""The thread that publishes: one kept connection, only differences, one call per vnode with all its attributes.

A new wish for a vnode replaces the one before, so changes that come faster than they can be published become one. If
a batch lets a job start that could not start before, the publisher wakes the scheduler once at its end. Every
`compare_s`, and after each new connection, it reads what PBS really has and fixes it. No change that a host causes
makes it read more than one vnode: a comparison costs the server, and this hub, time for each vnode and job of the farm.

The calls cost the server's only thread 0.4 to 2.6 ms each (measured, up to 8,000 vnodes), so they have a budget: a
share of that thread's time. When it is short, changes that decide a placement go first, and the rest waits. Among
hosts, the one that has used least of it lately goes first: a host that changes all the time delays only itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from magrathea.budget import Budget
from magrathea.logs import RationedLog
from magrathea.pbs_text.states import DEAD_STATES
from scheduler_plugin.pbs.base import Attributes, Connect, Pbs, PbsError, Vnode

from .vnode_attributes import ACCEPTS, COSMETIC, HOST, NONE, OFFLINE, OURS, SOMEBODYS, differences, opens, same, shown

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_FIRST_S = 0.2
RETRY_MOST_S = 5.0
LATELY_S = 10.0
LEAST_PAUSE_S = 1.0
COMPARED_SHARE = 0.1
"""After each new connection there is a comparison. If connections break all the time, there is a pause between two
comparisons: LEAST_PAUSE_S, or longer, so that they take at most this share of the time."""
SERVERS = "node down: "
"""Prefix of the server's own comments on a vnode that has no other (`momptr_down` in node_manager.c)."""
COSMETIC_RESERVE = 0.5
"""Changes that decide no placement must leave half of the saved budget to those that do."""


@dataclass(frozen=True, slots=True)
class Read:
    """What PBS had at a comparison."""

    vnodes: tuple[Vnode, ...]
    server: Mapping[str, str]


def has_begun_arrays(server: Mapping[str, str]) -> bool:
    """True if subjobs of an array have run and others have not."""
    counts = dict(word.partition(":")[::2] for word in server.get("state_count", "").split())
    return counts.get("Begun", "0") != "0"


class Publisher:
    """Its thread calls `on_read` after each comparison, and `on_failed` if it ends because of a defect.

    Once `close` has been called, neither is called any more: a call to PBS may hang for longer than their event loop
    lives.
    """

    def __init__(
        self,
        connect: Connect,
        on_read: Callable[[Read], None],
        on_failed: Callable[[Exception], None],
        budget: Budget,
        compare_s: float,
        offline: Collection[str] = (),
    ) -> None:
        """`offline`: the vnodes that an earlier hub has set offline."""
        self._connect = connect
        self._on_read = on_read
        self._on_failed = on_failed
        self._budget = budget
        self._compare_s = compare_s
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._reporting = threading.Lock()
        """Held during each such call, and by `close` while it forbids them."""
        self._wake_due = False
        self._wanted: dict[str, Attributes] = {}
        self._pending: set[str] = set()
        self._shown: dict[str, dict[str, str]] = {}
        self._away: set[str] = set()
        self.offline = frozenset(offline)
        """The vnodes that this hub or an earlier one has set offline, as of the last look. PBS's server forgets their
        comments when it restarts; without this they would look like an admin's."""
        self._used: dict[str, float] = {}
        """Seconds of the server's thread that each host has used lately."""
        self._used_at = 0.0
        self._complaints = RationedLog(log, burst=10)
        self._pbs: Pbs | None = None
        self._compare_at = 0.0
        self._compare_after = 0.0
        """No comparison before this time, unless an admin asks for it."""
        self._calling_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def want(self, wanted: Mapping[str, Attributes]) -> None:
        """Set what these vnodes should show from now on. May be called from any thread."""
        with self._lock:
            self._wanted.update(wanted)
            self._pending |= wanted.keys()
        self._changed.set()

    def compare(self) -> None:
        """Let the thread read now what PBS has. May be called from any thread."""
        self._compare_at = 0.0
        self._changed.set()

    def healthy(self, within_s: float) -> bool:
        """True if PBS is connected and no call has waited for its answer longer than `within_s`."""
        since = self._calling_since
        return self._pbs is not None and (since is None or time.monotonic() - since < within_s)

    def close(self, timeout_s: float) -> None:
        """Let the thread publish what is pending and end. Stops waiting after `timeout_s`."""
        with self._reporting:
            self._stopped.set()
        self._changed.set()
        self._thread.join(timeout_s)

    # In its thread

    def _run(self) -> None:
        try:
            self._turns()
        except Exception as error:  # raised again in the hub's main task, which then ends
            if not self._report(self._on_failed, error):
                log.exception("the publisher failed at the hub's end")
        finally:
            self._drop()

    def _report(self, function: Callable[[T], None], what: T) -> bool:
        """Call `function(what)` unless `close` has been called. True if it was called."""
        with self._reporting:
            wanted = not self._stopped.is_set()
            if wanted:
                function(what)
        return wanted

    def _turns(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            try:
                if self._pbs is None:
                    self._pbs = self._connect()
                    log.info("connected to PBS")
                    self._compare_at = min(self._compare_at, self._compare_after)
                self._changed.clear()
                wait_s = self._turn(self._pbs)
                retry_s = RETRY_FIRST_S
                if not self._stopped.is_set():
                    self._changed.wait(wait_s)
            except PbsError as error:
                self._drop()
                if self._stopped.is_set():
                    break
                log.warning("PBS: %s; again in %g s", error, retry_s)
                self._stopped.wait(retry_s)
                retry_s = min(RETRY_MOST_S, retry_s * 2)
            if self._stopped.is_set() and not self._changed.is_set():
                break

    def _drop(self) -> None:
        pbs, self._pbs = self._pbs, None
        self._calling_since = None
        if pbs is not None:
            with contextlib.suppress(OSError):  # the other end is closed already
                pbs.close()

    def _turn(self, pbs: Pbs) -> float:
        """Do what is due. Returns the seconds until something is due again."""
        self._calling_since = time.monotonic()
        try:
            if time.monotonic() >= self._compare_at:
                self._read(pbs)
            wait_s = self._publish(pbs)
        finally:
            self._calling_since = None
        return min(wait_s, max(0.0, self._compare_at - time.monotonic()))

    def _read(self, pbs: Pbs) -> None:
        started = time.monotonic()
        try:
            vnodes, server = pbs.vnodes(), pbs.server()
        finally:
            now = time.monotonic()
            self._compare_after = now + max(LEAST_PAUSE_S, (now - started) / COMPARED_SHARE)
        self._compare_at = now + self._compare_s
        first = not self._shown
        found = {vnode.name: self._look(vnode) for vnode in vnodes}
        self.offline = self.offline.intersection(found)  # by `&` with the keys it would become a set that changes
        if not first:
            for name, before in self._shown.items():
                self._tell_fixed(name, before, found.get(name))
        self._shown = found
        away = {vnode.name for vnode in vnodes if vnode.state & DEAD_STATES}
        # PBS starts no scheduling cycle when a MoM comes back; its jobs would wait for up to 10 minutes
        self._wake_due |= any(found[name].get(ACCEPTS, NONE) != NONE for name in self._away - away if name in found)
        self._away = away
        # a refused subjob goes back to state Q without a scheduling cycle for it; other refused jobs wait in state W
        self._wake_due |= has_begun_arrays(server)
        with self._lock:
            for name in [name for name in self._wanted if name not in found]:
                del self._wanted[name]
            self._pending |= self._wanted.keys()
        self._report(self._on_read, Read(tuple(vnodes), server))

    def _look(self, vnode: Vnode) -> dict[str, str]:
        """What a vnode shows."""
        found = shown(vnode)
        comment = vnode.attributes.get("comment", "")
        nobodys = not comment or comment.startswith(SERVERS)
        if found[OFFLINE] == SOMEBODYS and nobodys and vnode.name in self.offline:
            found[OFFLINE] = OURS
        elif found[OFFLINE].startswith(OURS):
            self.offline |= {vnode.name}
        else:
            self.offline -= {vnode.name}
        return found

    def _tell_fixed(self, name: str, before: Attributes, found: Attributes | None) -> None:
        if found is None:
            log.warning("vnode %s is no longer in PBS", name)
            return
        for attribute, wanted in self._wanted.get(name, {}).items():
            have = found.get(attribute)
            if same(attribute, wanted, before.get(attribute)) and not same(attribute, wanted, have):
                log.warning("vnode %s: %s was changed to %s; set to %s again", name, attribute, have, wanted)

    def _publish(self, pbs: Pbs) -> float:
        with self._lock:
            pending, self._pending = self._pending, set()
            changes = {
                name: change
                for name in pending
                if name in self._shown and (change := differences(self._wanted[name], self._shown[name]))
            }
        wait_s = self._compare_s
        left = set(changes)
        self._forget_used(time.monotonic())
        try:
            for name in sorted(changes, key=lambda name: self._turn_of(name, changes[name])):
                reserve = COSMETIC_RESERVE if changes[name].keys() <= COSMETIC else 0.0
                if short_s := self._budget.wait_s(time.monotonic(), reserve):
                    wait_s = short_s
                    break
                self._wake_due |= opens(changes[name], self._shown[name])
                self._set(pbs, name, changes[name])
                left.discard(name)
        finally:
            with self._lock:
                self._pending |= left
        if self._wake_due:
            pbs.wake_scheduler()
            self._wake_due = False
        return wait_s

    def _turn_of(self, name: str, change: Attributes) -> tuple[bool, float, bool, str]:
        """Sort key. Closing comes before opening: no vnode may accept in between what it should not. Cosmetics last."""
        used_s = self._used.get(self._host_of(name), 0.0)
        return change.keys() <= COSMETIC, used_s, opens(change, self._shown[name]), name

    def _host_of(self, name: str) -> str:
        return self._wanted[name].get(HOST) or self._shown[name].get(HOST, "")

    def _forget_used(self, now: float) -> None:
        share = math.exp((self._used_at - now) / LATELY_S)
        self._used = {host: used * share for host, used in self._used.items() if used * share > 1e-6}
        self._used_at = now

    def _set_offline(self, pbs: Pbs, name: str, wanted: str) -> None:
        """Change `offline`, unless it is an admin's own by now; then read what the vnode shows."""
        vnode = pbs.vnode(name)
        if vnode is None:
            return  # the next comparison reports it
        if not same(OFFLINE, wanted, self._look(vnode)[OFFLINE]):
            pbs.set_offline(name, wanted)
            vnode = pbs.vnode(name) or vnode
        self._shown[name] = self._look(vnode)
        if not vnode.state & DEAD_STATES and name in self._away:
            self._away.discard(name)
            self._wake_due |= self._shown[name].get(ACCEPTS, NONE) != NONE

    def _set(self, pbs: Pbs, name: str, change: Attributes) -> None:
        started = time.monotonic()
        try:
            if attributes := {key: value for key, value in change.items() if key != OFFLINE}:
                pbs.set_vnode(name, attributes)
                self._shown[name].update(attributes)
            if OFFLINE in change:
                self._set_offline(pbs, name, change[OFFLINE])
        except PbsError as error:
            if error.transient:
                raise
            text = f"vnode {name}: {error}; tried again at the next comparison"
            self._complaints.say(self._host_of(name), text, level=logging.ERROR)
            return
        finally:
            took_s = time.monotonic() - started
            self._budget.spend(took_s)
            host = self._host_of(name)
            self._used[host] = self._used.get(host, 0.0) + took_s
        log.debug("vnode %s: %s", name, change)
