"""The state file: what survives the agent."""

import os
import time

from .jobs import ORDERS, Job
from .lines import BadValue, encode, field, parse
from .log import log
from .procfs import boot_id
from .values import count, job_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, List, Tuple

MAX_STATE_BYTES = 16 << 20


class StateFile:
    """What must survive the agent: its jobs, their owners, the orders, and what it has stopped. JSON, replaced whole.

    Not synced to disk: it has to survive the agent's end; the machine's end leaves nothing to be continued.
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
            fd = os.open(self.path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
            os.replace(self.path + ".new", self.path)
        except OSError as error:
            log.error("%s: not written: %s; a restart would forget what is stopped" % (self.path, error.strerror))
            return
        self.written = data

    def load(self) -> "List[Job]":
        """The jobs of the agent before; none where there is no file. A damaged one is put aside."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            log.error("%s: cannot be read: %s; beginning with nothing" % (self.path, error.strerror))
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
            log.error("%s: %s; put aside as .bad, beginning with nothing" % (self.path, error))
            try:
                os.replace(self.path, self.path + ".bad")
            except OSError as trouble:
                log.error("%s: cannot be put aside: %s" % (self.path, trouble.strerror))
            return []

    @staticmethod
    def _job(row: "Any", same_boot: bool) -> Job:
        if not isinstance(row, dict):
            raise BadValue("job %.60r is no object" % (row,))
        job = Job(job_key(row), time.monotonic())
        job.owner = field(row, "owner", str)
        job.uid = None if row.get("uid") is None else count(row, "uid")
        job.listed = field(row, "listed", bool)
        order = row.get("order")
        if order is not None and order not in ORDERS:
            raise BadValue("order %.60r is not known" % (order,))
        if same_boot:
            job.order = order
            job.stopped_at = field(row, "stopped_at", float, None) if row.get("stopped_at") is not None else None
            job.seen = field(row, "seen", bool)
            job.deleted = field(row, "deleted", bool, False)
            job.sessions = dict(_pairs(field(row, "sessions", list)))
            job.struck = dict(_pairs(field(row, "struck", list)))
            job.groups = {g for g in field(row, "groups", list) if isinstance(g, int)}
        return job


def _pairs(rows: "List[Any]") -> "List[Tuple[int, int]]":
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and all(type(v) is int for v in row)):
            raise BadValue("%.60r is no pair of numbers" % (row,))
    return [(row[0], row[1]) for row in rows]
