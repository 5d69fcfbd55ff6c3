"""Requests of MoM's hooks."""

import os
import time

from . import VERSION
from .channel import Channel
from .ender import DELETE_S
from .ends import Ends
from .lines import BadValue, encode, field
from .log import log
from .loop import Loop
from .mom_server import Client
from .owners import Owners, owner_of
from .parts import MAX_JOBS
from .procfs import memory_report, start_of
from .refusals import (
    AGENT_BUSY,
    BAD_REQUEST,
    DELETED,
    FULL_RETRY_AFTER_S,
    NO_DAEMON,
    OWNER_RETRY_AFTER_S,
    TIMEOUT,
    refusal,
)
from .reports import Reports
from .sweeper import Sweeper
from .table import Table
from .values import count, directory, job_key, seconds, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional

    from .lines import Doc
    from .values import Key

MAX_KEEPS = 200  # letters: names of protected resources
MAX_PARTS = 200  # of a job, in one request of the prologue hook
CLASSES = ("priority", "preemptible", "protected")
ENDING_SUBSTATE = 50  # PBS: from this number on, a job is exiting
STATUS_BYTES = 100_000  # of jobs in one status: the kernel takes this much at once
WARNING_CHARS = 64  # of what a job asks for before its stop (magrathea/stop_warnings.py)
LIST_LOOK_UP_S = 0.5  # for all owners of a list; others are looked up with MoM's next list
HOOK_WAITS_S = 1.8  # MoM's hook waits this long for an answer (see magrathea/deadlines.py), if it names no time


class MomRequests:
    """Answers MoM's hooks, usually after asking the node daemon."""

    def __init__(
        self, loop: Loop, channel: Channel, table: Table, sweeper: Sweeper, reports: Reports, ends: Ends
    ) -> None:
        self.loop = loop
        self.channel = channel
        self.table = table
        self.jobs = table.jobs
        self.sweeper = sweeper
        self.reports = reports
        self.ends = ends
        self.owners = Owners()

    def serve(self, doc: "Doc", client: Client) -> None:
        """Answer one request, now or later. Raises BadValue."""
        op = field(doc, "op", str)
        if "home" in doc:
            self.ends.learn_home(directory(doc, "home"))
        if op == "ping":
            client.answer({"ok": True, "connected": self.channel.ready})
        elif op == "status":
            client.answer(self._status())
        elif op == "claim":
            self._claim(doc, client)
        elif op == "release":
            self._release(job_key(field(doc, "job", dict)), client)
        elif op == "ending":
            self._deleted(job_key(field(doc, "job", dict)), client)
        elif op == "jobs":
            self._list(doc, client)
        elif op == "prepared":
            key = job_key(field(doc, "job", dict))
            if key in self.jobs and self.jobs[key].deleted:
                client.answer(refusal(DELETED, "job %s is being deleted" % key[0]))
                return
            self._relay(
                "prepared",
                {"job": {"id": key[0], "run": key[1]}, "vnodes": words(doc, "vnodes", MAX_PARTS)},
                seconds(doc, "deadline_s", HOOK_WAITS_S, 0.05, 30),
                client,
            )
        else:
            raise BadValue("op %.60r is none of claim, release, ending, jobs, prepared, status, ping" % op)

    def _status(self) -> "Doc":
        """What this guest knows about itself, for `magrathea status`. `since`: when its stop began, in Unix seconds."""
        rows: "List[Doc]" = []
        room = STATUS_BYTES
        for job in self.jobs.values():
            row = self.sweeper.row(job)
            row.update(owner=job.owner, since=job.stopped_at, listed=job.listed)
            room -= len(encode(row))
            if room < 0:
                break
            rows.append(row)
        return {
            "ok": True,
            "agent": VERSION,
            "connected": self.channel.ready,
            "host": self.channel.host,
            "domain": self.channel.domain,
            "jobs": rows,
            "unread": self.sweeper.finder.environments.unreadable(),
            "memory": memory_report(),
            "load1": round(os.getloadavg()[0], 2),
        }

    def _no_daemon(self, client: Client) -> None:
        client.answer(refusal(NO_DAEMON, "the agent is not connected to its node daemon"))

    def _relay(self, op: str, body: "Doc", deadline_s: float, client: Client) -> None:
        if not self.channel.ready:
            self._no_daemon(client)
            return
        if not self.channel.ask(op, body, deadline_s, lambda answer: self._pass_on(op, answer, client)):
            client.answer(refusal(AGENT_BUSY, "too many requests wait for the node daemon"))

    @staticmethod
    def _pass_on(op: str, answer: "Optional[Doc]", client: Client) -> bool:
        """Pass the daemon's answer to the hook, without fields of the channel. False if the hook has gone."""
        if answer is None:
            return client.answer(refusal(TIMEOUT, "the node daemon did not answer the %s in time" % op))
        names = ("ok", "ready", "text") if answer["ok"] else ("ok", "code", "text", "retry_after_s")
        return client.answer({name: answer[name] for name in names if name in answer})

    def _claim(self, doc: "Doc", client: Client) -> None:
        job = field(doc, "job", dict)
        key, owner = job_key(job), owner_of(job)
        uid = self.owners.uid_of(owner, new=True)
        if uid is None:
            text = "owner %.60r of job %s is no user here, or the directory of users is silent" % (
                owner,
                key[0],
            )
            client.answer(refusal(BAD_REQUEST, text, OWNER_RETRY_AFTER_S))
            return
        cls = field(job, "class", str)
        if cls not in CLASSES:
            raise BadValue("class %.60r of job %s is none of %s" % (cls, key[0], ", ".join(CLASSES)))
        body = {
            "job": {
                "id": key[0],
                "run": key[1],
                "class": cls,
                "cpus": count(job, "cpus"),
                "memory_mib": count(job, "memory_mib"),
                "rerunnable": field(job, "rerunnable", bool),
                **_warning(job),
            }
        }
        if "keeps" in job:
            body["job"]["keeps"] = field(job, "keeps", str)[:MAX_KEEPS]
        deadline_s = seconds(doc, "deadline_s", HOOK_WAITS_S, 0.05, 10)
        sister = field(job, "sister", bool, False)
        if len(self.jobs) >= MAX_JOBS:
            client.answer(refusal(AGENT_BUSY, "the agent knows %d jobs already" % len(self.jobs), FULL_RETRY_AFTER_S))
            return
        if not self.channel.ready:
            self._no_daemon(client)
            return
        self.channel.withdraw("release", {"job": {"id": key[0], "run": key[1]}})

        def answered(answer: "Optional[Doc]") -> None:
            delivered = self._pass_on("claim", answer, client)
            if answer is not None and not answer["ok"]:
                return
            if answer is None or not delivered:
                self.reports.tell_release(key)  # the hook does not know that the claim may have been granted
                return
            entered = self.table.know(key, owner, uid)
            entered.sister = sister
            entered.seen |= sister
            self.reports.tell_launched()
            self.sweeper.sweep()

        if not self.channel.ask("claim", body, deadline_s, answered):
            client.answer(refusal(AGENT_BUSY, "too many requests wait for the node daemon"))

    def _release(self, key: "Key", client: Client) -> None:
        job = self.jobs.get(key)
        if job is not None:
            self.table.end(job)
            self.table.save()
        if self.channel.ready:
            client.answer({"ok": True})
        else:
            self._no_daemon(client)
        self.reports.tell_release(key)

    def _deleted(self, key: "Key", client: Client) -> None:
        """The job is being deleted: MoM sends SIGTERM after its hook has ended, and SIGKILL after the kill delay."""
        job = self.jobs.get(key)
        if job is not None and not job.deleted:
            log.info("job %s: is being deleted" % job)
            job.deleted = True
            self.table.save()
            self.loop.after(DELETE_S, self.sweeper.sweep)
        client.answer({"ok": True})

    def _list(self, doc: "Doc", client: Client) -> None:
        """Enter MoM's own list, the truth about jobs, into the table, and pass it on to the daemon."""
        rows = field(doc, "jobs", list)
        if len(rows) > MAX_JOBS:
            raise BadValue("a list of %d jobs; at most %d" % (len(rows), MAX_JOBS))
        now = time.monotonic()
        clean = []
        entries = []
        for row in rows:
            if not isinstance(row, dict):
                raise BadValue("job %.60r is no object" % (row,))
            key, owner = job_key(row), owner_of(row)
            substate = count(row, "substate")
            session = count(row, "session_id", 0)
            start = start_of(session) if 1 < session < 1 << 31 else None
            has_gone = substate >= ENDING_SUBSTATE or (session > 1 and start is None)
            over = key not in self.jobs and self.table.has_ended(key, has_gone, now)
            clean.append(
                {
                    "id": key[0],
                    "run": key[1],
                    "cpus": count(row, "cpus"),
                    "memory_mib": count(row, "memory_mib"),
                    "substate": max(substate, ENDING_SUBSTATE) if over else substate,
                    "rerunnable": field(row, "rerunnable", bool),
                    **_warning(row),
                }
            )
            entries.append((key, owner, substate, session, start, field(row, "sister", bool, False), over))
        self.table.end_earlier([entry[0] for entry in entries])
        until = now + LIST_LOOK_UP_S
        for key, owner, substate, session, start, sister, over in entries:
            if over:
                continue
            job = self.table.enter(key, owner, self.owners.uid_of(owner, until=until) if owner else None)
            job.sister = sister
            job.seen |= sister
            job.ending = substate >= ENDING_SUBSTATE
            if start is not None and not job.ending:  # else its session may be over, and another has the number
                job.sessions.setdefault(session, start)
                job.top = job.top or (session, start)
        self.table.miss({entry[0] for entry in entries}, now)
        self.reports.tell_launched()
        self.sweeper.sweep()
        self._relay("jobs", {"jobs": clean}, HOOK_WAITS_S, client)


def _warning(row: "Doc") -> "Doc":
    """What a job has asked for before its stop, and whether its MoM has the hook that waits for others' warnings. The
    daemon reads the text; one that is too long is none."""
    text = field(row, "warning", str, "")
    wants = {"warning": text} if text and len(text) <= WARNING_CHARS and text.isprintable() else {}
    return dict(wants, prologue=field(row, "prologue", bool)) if "prologue" in row else wants
