"""Requests of the node daemon: orders, memory, scripts, clock, MoM's connections and power."""

import re
import signal

from . import VERSION
from .jobs import ORDERS, Job
from .lines import BadValue, field
from .machine import Machine
from .mom_connections import MomConnections
from .pager import Pager
from .parts import MAX_JOBS
from .procfs import memory_report
from .refusals import NOT_STOPPED, SUPERSEDED, UNKNOWN_OP, refusal
from .scripts import Scripts
from .sweeper import ORDERS_S, Sweeper
from .values import count, is_text, job_key, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Tuple

    from .lines import Doc
    from .sweeper import Warned
    from .values import Key, Reply

SLICE_S = 5.0  # for one slice of memory, if the daemon names no time
MAX_ORDERED_WARN_S = 300.0  # the longest time between a job's warning and its stop that an order may name
WARN_SIGNALS = (
    *("SIGHUP", "SIGINT", "SIGTERM", "SIGTSTP"),
    *("SIGURG", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGXCPU"),
)
ENV_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")


class DaemonRequests:
    """Carries out what the node daemon asks."""

    def __init__(
        self,
        jobs: "Dict[Key, Job]",
        sweeper: Sweeper,
        pager: Pager,
        scripts: Scripts,
        machine: Machine,
        mom_connections: MomConnections,
    ) -> None:
        self.jobs = jobs
        self.sweeper = sweeper
        self.pager = pager
        self.scripts = scripts
        self.machine = machine
        self.mom_connections = mom_connections
        self.newest = "", 0  # session and id of the newest orders

    def serve(self, op: str, doc: "Doc", reply: "Reply") -> None:
        """Carry out one request. `reply` gets the answer, now or later. Raises BadValue."""
        if op == "orders":
            self._orders(doc, reply)
        elif op == "ping":
            reply({"ok": True})
        elif op == "script":
            self._script(doc, reply)
        elif op == "memory":
            self._memory(reply)
        elif op == "clock":
            reply(self.machine.set_clock(field(doc, "unix_s", float)))
        elif op == "reconnect":
            self.mom_connections.reconnect(reply)
        elif op == "power":
            self._power(doc, reply)
        elif op in ("push-out", "fetch"):
            self._page(op, doc, reply)
        else:
            reply(refusal(UNKNOWN_OP, "this agent (%s) does not know %.60s" % (VERSION, op)))

    def _orders(self, doc: "Doc", reply: "Reply") -> None:
        session, id = field(doc, "session", str), field(doc, "id", int)
        if session == self.newest[0] and id < self.newest[1]:  # a short message may overtake a long one
            reply(refusal(SUPERSEDED, "newer orders have come before these"))
            return
        wanted: "List[Tuple[Key, str]]" = []
        warnings: "Dict[Key, Warned]" = {}
        rows = field(doc, "orders", list)
        if len(rows) > MAX_JOBS:
            raise BadValue("%d orders; at most %d" % (len(rows), MAX_JOBS))
        for row in rows:
            if not isinstance(row, dict):
                raise BadValue("order %.60r is no object" % (row,))
            word = field(row, "order", str)
            if word not in ORDERS:
                raise BadValue("order %.60r is none of %s" % (word, ", ".join(ORDERS)))
            wanted.append((job_key(row), word))
            if "warn_signal" in row:
                name = field(row, "warn_signal", str)
                if name not in WARN_SIGNALS:
                    raise BadValue("warn_signal %.60r is none of %s" % (name, ", ".join(WARN_SIGNALS)))
                warn_s = seconds(row, "warn_s", 1.0, 0, MAX_ORDERED_WARN_S)
                first_only = field(row, "warn_first_only", bool, False)
                warnings[job_key(row)] = int(getattr(signal, name)), warn_s, first_only
        if len({key for key, _ in wanted}) != len(wanted):
            raise BadValue("a job is named twice")
        self.newest = session, id
        self.sweeper.order(wanted, seconds(doc, "deadline_s", ORDERS_S, 0.01, MAX_ORDERED_WARN_S + 30), reply, warnings)

    def _memory(self, reply: "Reply") -> None:
        rows = []
        for job in self.jobs.values():
            resident, swapped = self.pager.sum_of(job)
            row = job.name()
            row.update(resident_mib=resident, swapped_mib=swapped, stopped=self._is_stopped(job))
            rows.append(row)
        reply({"ok": True, "memory": memory_report(), "jobs": rows})

    @staticmethod
    def _is_stopped(job: Job) -> bool:
        return job.order == "stop" and job.settled and not job.running and not job.leaving

    def _page(self, op: str, doc: "Doc", reply: "Reply") -> None:
        rows = field(doc, "jobs", list)
        if len(rows) > MAX_JOBS or not all(isinstance(row, dict) for row in rows):
            raise BadValue("jobs must be a list of at most %d objects" % MAX_JOBS)
        keys = {job_key(row) for row in rows}
        known = [job for key, job in sorted(self.jobs.items()) if key in keys]
        mib = count(doc, "mib")
        if mib < 1:
            raise BadValue("field mib is %d, it must be 1 or more" % mib)
        running = [str(job) for job in known if op == "push-out" and not self._is_stopped(job)]
        if running or not known:
            what = ", ".join(running) or "none of these jobs is known here"
            reply(refusal(NOT_STOPPED, "%s: only the memory of stopped jobs is pushed out" % what))
            return
        self.pager.start(op, known, mib, seconds(doc, "deadline_s", SLICE_S, 0.05, 60), reply)

    def _script(self, doc: "Doc", reply: "Reply") -> None:
        given = field(doc, "env", dict, {})
        if len(given) > 64:
            raise BadValue("%d variables for a script; at most 64" % len(given))
        environment = {}
        for name, value in given.items():
            if not ENV_NAME.match(name) or not is_text(value) or len(value) > 4096:
                raise BadValue("variable %.60r of a script: a name in upper case and a text of 4096 at most" % name)
            environment[name if name.startswith("MAGRATHEA_") else "MAGRATHEA_" + name] = value
        if not field(doc, "wait", bool, False):
            reply({"ok": True, "scripts": self.scripts.run(field(doc, "name", str), environment)})
            return
        self.scripts.run(field(doc, "name", str), environment, lambda: reply({"ok": True}))

    def _power(self, doc: "Doc", reply: "Reply") -> None:
        what = field(doc, "what", str)
        if what != "off":
            raise BadValue("what is %.60r, it must be off; the daemon boots the guest again from outside" % what)
        reply(self.machine.power_off())
