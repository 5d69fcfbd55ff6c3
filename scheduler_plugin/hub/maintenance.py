"""Works round two faults of PBS's server: it does not forget suspended jobs, and starts vnodes in needless maintenance.

The server never removes the last name from a vnode's `maintenance_jobs` in its database. After the server's restart
such a vnode is in maintenance for no job. Only the server may set that attribute, so the hook magrathea_vnodes fixes
the database; the hub asks it through a file. If a vnode has already come up in maintenance, the hook empties the
attribute in the server's memory, and the state ends with the next admin-resume on that vnode. So the hub suspends and
resumes a job there.

Rule 1: no I/O and no clock. `look` takes what PBS has at each comparison, and the time of the comparison.
Rule 2: no suspension begins while the hook is half way through (see Maintenance.named). Preemptions come in bursts, so
a vnode with a preemptible job waits until it has been quiet for QUIET_S. A vnode without one cannot be preempted within
the hook's two runs, so the hub asks at once; after a restart of the server nothing could end its maintenance.
Rule 3: a preemption withdraws a request that the hook has not begun.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import Literal

import msgspec

from magrathea.core.model import JobKey
from scheduler_plugin.pbs.base import Vnode

MAINTENANCE = "maintenance"
STUCK_LOOKS = 2
"""The hub reads vnodes and jobs one after the other. What it sees only once may have been changing."""
QUIET_S = 60.0
"""A request that is half done delays the next preemption of its vnode. So the hub waits until none is likely."""
PUT_OFF_MOST_S = 90.0
"""Three runs of the vnodes hook at its lowest frequency."""
ALERT_LOOKS = 6
"""Two runs of the hook and a job's suspend take fewer looks than this."""

FORGET, FORGOTTEN = ".forget", ".forgotten"
"""Suffixes of files beside the heartbeat: the hub's requests and the hook's answers."""
NAMED, EMPTIED = 1, 2

When = Literal["free", "ours", "stuck"]
"""See the hook."""

Answers = dict[str, tuple[int, int]]
"""What the hook has done, by vnode: the request's number, and its phase."""

decode_answers = msgspec.json.Decoder(Answers).decode


class Maintenance:
    """Decides what to ask the hook for. `requests`, by vnode: the request's number, and when it may be carried out.

    `named`: until the hook's next run, the attribute of these vnodes names no job, even in memory. If a job were
    suspended there now and ended before that run, its vnode would stay in maintenance for good.
    """

    def __init__(self) -> None:
        self.requests: dict[str, tuple[int, When]] = {}
        self.named: frozenset[str] = frozenset()
        self._marked: set[str] = set()
        self._quiet_since: dict[str, float] = {}
        self._others: set[str] = set()
        self._known: set[str] = set()
        self._stuck: dict[str, int] = {}
        self._emptied: set[str] = set()
        self._number = 0
        self._put_off: dict[JobKey, float] = {}

    def mark(self, vnodes: Iterable[str]) -> None:
        """Note that the hub admin-suspends a job on these vnodes. Afterwards the database needs the fix."""
        for name in vnodes:
            self._marked.add(name)
            self._quiet_since.pop(name, None)
            if name in self.requests and name not in self.named:
                del self.requests[name]
            elif name in self.requests and name not in self._others:
                self.requests[name] = (self.requests[name][0], "ours")

    def puts_off(self, key: JobKey, vnodes: Collection[str], now: float) -> bool:
        """True while the vnodes hook is half way through with one of the job's vnodes.

        A suspend waits for the hook. So does a resume, if the hook began at the very moment of the suspend. The wait is
        limited, because a hook that was removed half way would never end it.
        """
        if not self.named.intersection(vnodes):
            self._put_off.pop(key, None)
            return False
        return now < self._put_off.setdefault(key, now) + PUT_OFF_MOST_S

    def keep(self, keys: Container[JobKey]) -> None:
        """Forget since when other jobs than these were put off."""
        self._put_off = {key: at for key, at in self._put_off.items() if key in keys}

    def answered(self, answers: Answers) -> None:
        """Take the hook's answers. New numbers continue those of a former hub, whose answers may still be there."""
        self._number = max([self._number, *(number for number, _ in answers.values())])
        self.named = frozenset(vnode for vnode, (_, phase) in answers.items() if phase == NAMED)  # also a former hub's
        for vnode, (number, phase) in answers.items():
            asked, when = self.requests.get(vnode, (0, "free"))
            if (number, phase) == (asked, EMPTIED):
                del self.requests[vnode]
                if when == "stuck":
                    self._emptied.add(vnode)
            elif phase == NAMED and vnode not in self.requests:
                # the hook began when the hub withdrew the request: complete it, even during our own suspension
                self.requests[vnode] = (number, "free" if vnode in self._others else "ours")

    def look(
        self,
        vnodes: Mapping[str, Vnode],
        managed: Container[str],
        ours: set[str],
        others: set[str],
        preemptible: set[str],
        at: float,
    ) -> list[str]:
        """Update the requests after a comparison. Returns alerts.

        `ours`, `others`: vnodes with jobs suspended by the hub, and by somebody else. `preemptible`: vnodes with jobs
        that may be suspended.
        """
        here = {name for name in vnodes if name in managed}
        busy = {name for name in here if MAINTENANCE in vnodes[name].state}
        self._marked |= (here - self._known) | busy  # a new vnode may have been used before this hub started
        self._known = here
        self._others = others
        resting = here - busy - ours - others
        self._quiet_since = {name: self._quiet_since.get(name, at) for name in resting}
        self._stuck = {name: self._stuck.get(name, 0) + 1 for name in busy - ours - others}
        self._emptied &= self._stuck.keys()
        for name in sorted((self._marked & resting) - self.requests.keys()):
            if name not in preemptible or at - self._quiet_since[name] >= QUIET_S:
                self._ask(name, "free")
                self._marked.discard(name)
        for name, (number, when) in self.requests.items():
            if when != "stuck":
                self.requests[name] = (number, "ours" if name in ours - others else "free")
        for name, looks in self._stuck.items():
            if looks >= STUCK_LOOKS and name not in self._emptied:
                if name not in self.requests:
                    self._ask(name, "stuck")
                else:  # a request that is under way continues
                    self.requests[name] = (self.requests[name][0], "stuck")
        for name in [name for name in self.requests if name not in here]:
            del self.requests[name]
        return [
            f"ALERT vnode {name} is in maintenance, but no suspended job is on it (PBS has brought back old names when "
            f"it started), and it has no preemptible job with which to end it; once it has no jobs, a manager fixes it:"
            f" qmgr -c 'delete node {name}', then qmgr -c 'create node {name}' and what the site sets on it, then "
            f"`magrathea pbs install`, so that it takes no reservations; the hub sets the rest"
            for name, looks in sorted(self._stuck.items())
            if looks == ALERT_LOOKS
        ]

    def _ask(self, name: str, when: When) -> None:
        self._number += 1
        self.requests[name] = (self._number, when)

    @property
    def to_touch(self) -> list[str]:
        """The vnodes on which admin-suspending and resuming a job would end the maintenance."""
        return sorted(self._emptied)
