"""The state file: what survives the agent."""

import os
import time

from .jobs import ORDERS, Job
from .lines import BadValue, encode, field, parse
from .log import log
from .owners import owner_of
from .private_files import open_regular
from .procfs import boot_id
from .values import job_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List

    from .lines import Doc

MAX_STATE_BYTES = 16 << 20


class StateFile:
    """What must survive the agent: its jobs, their owners, the orders, and the stopped processes. JSON, replaced whole.

    It is not synced to disk: after a crash of the machine there is nothing left to continue.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.written = b""
        self.boot = boot_id()

    def save(self, jobs: "Iterable[Job]") -> None:
        rows = []
        for job in jobs:
            row = job.name()
            row.update(
                owner=job.owner,
                uid=job.uid,
                order=job.order,
                stopped_at=job.stopped_at,
                seen=job.seen,
                sister=job.sister,
                top=job.top,
                deleted=job.deleted,
                listed=job.listed,
                sessions=sorted(job.sessions.items()),
                struck=sorted(job.struck.items()),
                groups=sorted(job.groups),
            )
            rows.append(row)
        data = encode({"version": 1, "boot": self.boot, "jobs": rows})
        if data == self.written:
            return
        try:
            new = self.path + ".new"
            if os.path.lexists(new):
                os.unlink(new)  # left by an agent that was killed, or by somebody else
            with open(open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(data)
            os.replace(new, self.path)
        except OSError as error:
            log.error(
                "%s: not written: %s; after a restart the agent would not know what it has stopped"
                % (self.path, error.strerror)
            )
            return
        self.written = data

    def load(self) -> "List[Job]":
        """The jobs of the earlier agent; none if there is no file. A file that cannot be read is put aside."""
        try:
            with open(open_regular(self.path, os.O_RDONLY), "rb") as file:
                data = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._put_aside("cannot be read: %s" % error.strerror)
            return []
        try:
            if len(data) > MAX_STATE_BYTES:
                raise BadValue("longer than %d bytes" % MAX_STATE_BYTES)
            doc = parse(data)
            if field(doc, "version", int) != 1:
                raise BadValue("version %r is not known" % doc["version"])
            same_boot = field(doc, "boot", str) == self.boot
            return [self._job(row, same_boot) for row in field(doc, "jobs", list)]
        except BadValue as error:
            self._put_aside(str(error))
            return []

    def _put_aside(self, why: str) -> None:
        bad = self.path + ".bad"
        log.error("%s: %s; put aside as %s, the agent starts without it" % (self.path, why, bad))
        try:
            if os.path.isdir(self.path) and os.path.lexists(bad):
                bad += ".%d" % time.time()  # a folder cannot replace anything
            os.rename(self.path, bad)
        except OSError as error:
            log.error("%s: cannot be put aside: %s" % (self.path, error.strerror))

    @staticmethod
    def _job(row: "Any", same_boot: bool) -> Job:
        if not isinstance(row, dict):
            raise BadValue("job %.60r is no object" % (row,))
        job = Job(job_key(row), time.monotonic())
        job.owner = owner_of(row)
        job.uid = None if row.get("uid") is None else _within("uid", row["uid"], 0, 1 << 32)
        job.listed = field(row, "listed", bool)
        order = row.get("order")
        if order is not None and order not in ORDERS:
            raise BadValue("order %.60r is not known" % (order,))
        if same_boot:
            job.order = order
            job.stopped_at = field(row, "stopped_at", float, None) if row.get("stopped_at") is not None else None
            job.seen = field(row, "seen", bool)
            job.sister = field(row, "sister", bool, True)  # older agents did not write it; MoM's next list tells
            if row.get("top") is not None:
                ((pid, start),) = _processes("top", {"top": [row["top"]]}).items()
                job.top = pid, start
            job.deleted = field(row, "deleted", bool, False)
            job.sessions = _processes("sessions", row)
            job.struck = _processes("struck", row)
            job.groups = {_pid("groups", number) for number in field(row, "groups", list)}
        return job


def _processes(name: str, row: "Doc") -> "Dict[int, int]":
    """The pids of this field, each with its start time. Raises BadValue."""
    pairs = field(row, name, list)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadValue("field %s is %.60r, it must hold pairs of numbers" % (name, pairs))
    return {_pid(name, pid): _within(name, start, 0, 1 << 63) for pid, start in pairs}


def _pid(name: str, value: "Any") -> int:
    return _within(name, value, 2, 1 << 31)  # 1 is never a job's; 0 and below would mean groups


def _within(name: str, value: "Any", low: int, end: int) -> int:
    if type(value) is not int or not low <= value < end:
        raise BadValue("field %s holds %.60r, it must be a number from %d to %d" % (name, value, low, end - 1))
    return int(value)
