"""Vnodes whose suspended jobs PBS's server must be made to forget, and those that it has put into maintenance wrongly.

The server never takes the last name out of a vnode's `maintenance_jobs` in its database; after its restart such a
vnode is in maintenance for no job. The hook magrathea_vnodes fixes the database, told by the hub through a file,
because only the server may set that attribute. What has already come up in maintenance is emptied in the server's
memory by the same hook, and its state ends with the next admin-resume on it: so a job there is suspended and resumed.

No I/O and no clock: `look` is told what PBS has at each comparison, and when that is.

When the hook is asked: a suspension must not begin while the hook is half through (see Maintenance.named), and
preemptions come in bursts. So a vnode with a preemptible job is left alone until it has been quiet for QUIET_S; one
without, which nobody can preempt within the hook's two runs, is done at once. It is the latter that a restart of the
server would leave in maintenance with nothing to end it by. A request that has not been begun is withdrawn by a
preemption.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Literal

import msgspec

from scheduler_plugin.pbs.base import Vnode

MAINTENANCE = "maintenance"
STUCK_LOOKS = 2
"""Vnodes and jobs are read one after the other: what is seen once may only have been on its way."""
QUIET_S = 60.0
"""Half done, a request holds up the next preemption of its vnode. So it is not made while one may follow soon."""
ALERT_LOOKS = 6
"""The hook, two runs of it, and a job's suspend have had their time."""

FORGET, FORGOTTEN = ".forget", ".forgotten"
"""Files beside the heartbeat: the hub's and the hook's."""
NAMED, EMPTIED = 1, 2

When = Literal["free", "ours", "stuck"]
"""See the hook."""

Answers = dict[str, tuple[int, int]]
"""What the hook has done: by vnode, the request's number and how far it is."""

decode_answers = msgspec.json.Decoder(Answers).decode


class Maintenance:
    """`requests`: what the hook is to be told, by vnode: the number of the request, and when it may be carried out.

    `named`: vnodes that have the name of no job in the server's memory, too, until the hook's next run. A job that is
    suspended there now, and is over before that, would leave its vnode in maintenance for good.
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

    def mark(self, vnodes: Iterable[str]) -> None:
        """Something of ours is admin-suspended on them: when that is over, the database is to be fixed."""
        for name in vnodes:
            self._marked.add(name)
            self._quiet_since.pop(name, None)
            if name in self.requests and name not in self.named:
                del self.requests[name]
            elif name in self.requests and name not in self._others:
                self.requests[name] = (self.requests[name][0], "ours")

    def answered(self, answers: Answers) -> None:
        """Numbers go on from a former hub's, whose answers may still lie there."""
        self._number = max([self._number, *(number for number, _ in answers.values())])
        self.named = frozenset(vnode for vnode, (_, phase) in answers.items() if phase == NAMED)  # a former hub's, too
        for vnode, (number, phase) in answers.items():
            asked, when = self.requests.get(vnode, (0, "free"))
            if (number, phase) == (asked, EMPTIED):
                del self.requests[vnode]
                if when == "stuck":
                    self._emptied.add(vnode)
            elif phase == NAMED and vnode not in self.requests:
                # begun in the moment in which it was withdrawn: to be carried on, also under our own suspension
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
        """`ours`, `others`: vnodes with jobs suspended by the hub, and by somebody else. `preemptible`: those with
        jobs that may be. Returns alerts."""
        here = {name for name in vnodes if name in managed}
        busy = {name for name in here if MAINTENANCE in vnodes[name].state}
        self._marked |= (here - self._known) | busy  # a new one may have had a life before us
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
                else:  # one that is under way is carried on
                    self.requests[name] = (self.requests[name][0], "stuck")
        for name in [name for name in self.requests if name not in here]:
            del self.requests[name]
        return [
            f"ALERT vnode {name} is in maintenance, but no suspended job is on it (PBS has brought back old names when "
            f"it started), and it has no preemptible job with which to end it; once it has no jobs, a manager fixes it:"
            f" qmgr -c 'delete node {name}', then qmgr -c 'create node {name}' and what the site sets on it; the hub "
            f"sets the rest"
            for name, looks in sorted(self._stuck.items())
            if looks == ALERT_LOOKS
        ]

    def _ask(self, name: str, when: When) -> None:
        self._number += 1
        self.requests[name] = (self._number, when)

    @property
    def to_touch(self) -> list[str]:
        """Vnodes whose maintenance ends when a job of theirs is admin-suspended and resumed."""
        return sorted(self._emptied)
