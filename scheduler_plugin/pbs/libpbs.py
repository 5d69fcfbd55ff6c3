"""A connection to a PBS server through PBS's own library, libpbs.so, with ctypes.

From the library's source (lib/Libecl/pbs_client_thread.c, lib/Libifl): errno, buffers, time-outs and error texts are
thread-local, and each connection has a mutex. So several threads may work at the same time, each on its own connection.
Opening a connection is not safe (`load_auths` fills a global list without a lock), so only one is opened at a time.

The library waits at least 600 s for a reply, and no call can shorten that (int_rdrpy.c). So a Watchdog shuts down the
socket of a call that exceeds its deadline. The call then fails as `transient`; the server may still carry it out.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_void_p
from pathlib import Path
from typing import Any

from magrathea.job_ids import is_job_id
from magrathea.pbs_text.amounts import duration_s
from magrathea.pbs_text.conf import DEFAULT_CONF, read_conf
from magrathea.pbs_text.placement import vnodes_of
from magrathea.pbs_text.words import is_true, words
from magrathea.text import printable

from .base import Code, Connect, PbsError, PbsJob, Vnode
from .kinds import KindSettings

log = logging.getLogger(__name__)

_SET, _INCR, _DECR, _EQ = 0, 2, 3, 4  # enum batch_op
_COMMAND_SET = 2  # MGR_CMD_SET
_SERVER, _VNODE = 0, 3  # MGR_OBJ_*

_VNODE_ATTRIBUTES = ("state", "resources_available", "Priority", "maintenance_jobs", "resv_enable", "comment")
_JOB_ATTRIBUTES = (
    "job_state",
    "substate",
    "run_version",
    "queue",
    "exec_vnode",
    "Rerunable",
    "Resource_List.walltime",
    "comment",
    "stime",
)
_SERVER_ATTRIBUTES = ("scheduling", "node_fail_requeue", "state_count")

_TRANSIENT = frozenset(
    {
        Code.SYSTEM,
        Code.INTERNAL,
        Code.PROTOCOL,
        Code.NO_CONNECTION,
        Code.NO_SERVER,
        Code.MOM_REJECTED,
        Code.NO_MOM,
        Code.NO_CREDENTIAL,
        15020,  # the credential has expired
        15059,  # a sister MoM could not be reached
        15208,  # "try again"
    }
)
_DEAD = frozenset({Code.SYSTEM, Code.PROTOCOL, Code.NO_CONNECTION, Code.NO_SERVER, Code.NO_CREDENTIAL, 15020})
"""After these errors the connection itself is useless."""


class _Attribute(ctypes.Structure):
    """struct attrl and struct attropl (pbs_ifl.h), which have the same layout."""


_Attribute._fields_ = [
    ("next", POINTER(_Attribute)),
    ("name", c_char_p),
    ("resource", c_char_p),
    ("value", c_char_p),
    ("op", c_int),
]


class _Status(ctypes.Structure):
    """struct batch_status."""


_Status._fields_ = [
    ("next", POINTER(_Status)),
    ("name", c_char_p),
    ("attribs", POINTER(_Attribute)),
    ("text", c_char_p),
]

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "pbs_connect_noblk": (c_int, [c_char_p]),
    "pbs_disconnect": (c_int, [c_int]),
    "pbs_geterrmsg": (c_char_p, [c_int]),
    "__pbs_errno_location": (POINTER(c_int), []),
    "pbs_statfree": (None, [c_void_p]),
    "pbs_statvnode": (POINTER(_Status), [c_int, c_char_p, POINTER(_Attribute), c_char_p]),
    "pbs_statjob": (POINTER(_Status), [c_int, c_char_p, POINTER(_Attribute), c_char_p]),
    "pbs_selstat": (POINTER(_Status), [c_int, POINTER(_Attribute), POINTER(_Attribute), c_char_p]),
    "pbs_statserver": (POINTER(_Status), [c_int, POINTER(_Attribute), c_char_p]),
    "pbs_manager": (c_int, [c_int, c_int, c_int, c_char_p, POINTER(_Attribute), c_char_p]),
    "pbs_sigjob": (c_int, [c_int, c_char_p, c_char_p, c_char_p]),
    "pbs_rerunjob": (c_int, [c_int, c_char_p, c_char_p]),
    "pbs_alterjob": (c_int, [c_int, c_char_p, POINTER(_Attribute), c_char_p]),
}


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise PbsError(Code.SYSTEM, f"{path} cannot be loaded: {error}") from error
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Watchdog:
    """One thread that cuts a connection if its call exceeds the deadline. It checks every half second."""

    PERIOD_S = 0.5

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[LibPbs] = set()
        self._thread: threading.Thread | None = None

    def add(self, connection: LibPbs) -> None:
        with self._lock:
            self._watched.add(connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="libpbs-watchdog", daemon=True)
                self._thread.start()

    def remove(self, connection: LibPbs) -> None:
        with self._lock:
            self._watched.discard(connection)

    def _run(self) -> None:
        while True:
            time.sleep(self.PERIOD_S)
            with self._lock:
                late = [c for c in self._watched if c.until is not None and time.monotonic() > c.until]
            for connection in late:
                connection.cut()


_watchdog = Watchdog()
_opening = threading.Lock()


class LibPbs:
    """A connection; see base.Pbs. `until`: monotonic time by which the present call must be answered, or None."""

    def __init__(self, library: ctypes.CDLL, deadline_s: float) -> None:
        self._library = library
        self._deadline_s = deadline_s
        self._closing = threading.Lock()
        self._cut = False
        self.until: float | None = None
        if not _opening.acquire(timeout=deadline_s):
            raise PbsError(Code.NO_SERVER, "PBS server: another connection is still being opened", transient=True)
        try:
            self._fd: int = library.pbs_connect_noblk(None)
            code = self._errno().contents.value
        finally:
            _opening.release()
        if self._fd < 0:
            # a number below 15000 is the system's errno (for example connection refused)
            text = os.strerror(code) if 0 < code < 15000 else "no connection"
            raise PbsError(code if code > 15000 else Code.NO_SERVER, f"PBS server: {text}", transient=True)
        _watchdog.add(self)

    def _errno(self) -> Any:
        return getattr(self._library, "__pbs_errno_location")()

    def cut(self) -> None:
        """Shut the socket down, so that a waiting call gets an error. For the watchdog and `close`."""
        with self._closing:
            if self._fd < 0 or self._cut:
                return
            self._cut = True
            end = socket.socket(fileno=self._fd)  # wraps the same descriptor: no new one may be free
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno != 107:  # not connected any more: no call can wait on it
                    raise
            finally:
                end.detach()

    def close(self) -> None:
        _watchdog.remove(self)
        if self._fd < 0:
            return
        self.cut()  # pbs_disconnect would wait without a limit for the server's end of file
        with self._closing:
            self._library.pbs_disconnect(self._fd)
            self._fd = -1

    def _call(self, what: str, function: str, *arguments: Any) -> Any:
        """Call a library function on this connection; return its result. Raises PbsError if the library sets its
        errno."""
        if self._fd < 0 or self._cut:
            raise PbsError(Code.NO_CONNECTION, f"{what}: the connection is closed", transient=True)
        errno = self._errno()
        errno.contents.value = 0
        started = time.monotonic()
        self.until = started + self._deadline_s
        try:
            result = getattr(self._library, function)(self._fd, *arguments)
        finally:
            self.until = None
        code = errno.contents.value
        if not code and isinstance(result, int):
            code = result
        if not code:
            return result
        text = self._library.pbs_geterrmsg(self._fd)
        said = text.decode(errors="replace").strip() if text else "no explanation"
        if self._cut:
            said = f"no answer within {time.monotonic() - started:.0f} s"
            code = Code.PROTOCOL
        elif code in _DEAD:
            self.cut()
        raise PbsError(code, f"{what}: {said}", transient=code in _TRANSIENT or code < 15000)

    def _statuses(self, what: str, function: str, *arguments: Any) -> list[tuple[str, dict[str, str]]]:
        head = self._call(what, function, *arguments)
        try:
            return [(s.name.decode(errors="replace"), _attributes(s.attribs)) for s in _chain(head)]
        finally:
            if head:
                self._library.pbs_statfree(ctypes.cast(head, c_void_p))

    def vnodes(self) -> list[Vnode]:
        wanted = _chained([(name, None, None, _SET) for name in _VNODE_ATTRIBUTES])
        return [_vnode(*s) for s in self._statuses("vnodes", "pbs_statvnode", None, wanted, None)]

    def vnode(self, name: str) -> Vnode | None:
        wanted = _chained([(attribute, None, None, _SET) for attribute in _VNODE_ATTRIBUTES])
        try:
            found = self._statuses(f"vnode {name}", "pbs_statvnode", name.encode(), wanted, None)
        except PbsError as error:
            if error.code == Code.UNKNOWN_VNODE:
                return None
            raise
        return next((_vnode(*s) for s in found if s[0] == name), None)

    def jobs(self) -> list[PbsJob]:
        # S must come first: only then does the server include suspended jobs, which it counts as R (req_select.c)
        states = _chained([("job_state", None, "SRUE", _EQ)])
        found = self._statuses("jobs", "pbs_selstat", states, _job_attributes(), b"S")  # S: include running subjobs
        return [_job(*s) for s in found]

    def job(self, job: str) -> PbsJob | None:
        name = _job_name(job)
        try:
            found = self._statuses(f"job {job}", "pbs_statjob", name, _job_attributes(), None)
        except PbsError as error:
            if error.code in (Code.UNKNOWN_JOB, Code.FINISHED_JOB):
                return None
            raise
        # PBS also finds a job by other names, and more than one by some: those are not the job of this id
        return _job(*found[0]) if len(found) == 1 and found[0][0] == job else None

    def server(self) -> Mapping[str, str]:
        wanted = _chained([(name, None, None, _SET) for name in _SERVER_ATTRIBUTES])
        return dict(next((a for _, a in self._statuses("server", "pbs_statserver", wanted, None)), {}))

    def set_vnode(self, name: str, attributes: Mapping[str, str]) -> None:
        parts = [(*_split(attribute), value, _SET) for attribute, value in attributes.items()]
        self._call(f"vnode {name}", "pbs_manager", _COMMAND_SET, _VNODE, name.encode(), _chained(parts), None)

    def set_offline(self, name: str, comment: str) -> None:
        # As `pbsnodes -o` and `-r`: add the word to the state or remove it; other words stay.
        parts = [("state", None, "offline", _INCR if comment else _DECR), ("comment", None, comment, _SET)]
        self._call(f"vnode {name}", "pbs_manager", _COMMAND_SET, _VNODE, name.encode(), _chained(parts), None)

    def wake_scheduler(self) -> bool:
        if not is_true(self.server().get("scheduling", "False")):
            return False
        on = _chained([("scheduling", None, "true", _SET)])
        self._call("server's scheduling", "pbs_manager", _COMMAND_SET, _SERVER, b"", on, None)
        return True

    def _signal(self, job: str, signal: str) -> None:
        self._call(f"{signal} of job {job}", "pbs_sigjob", _job_name(job), signal.encode(), None)

    def admin_suspend(self, job: str) -> None:
        self._signal(job, "admin-suspend")

    def admin_resume(self, job: str) -> None:
        self._signal(job, "admin-resume")

    def resume(self, job: str) -> None:
        self._signal(job, "resume")

    def rerun(self, job: str, force: bool = False) -> None:
        self._call(f"rerun of job {job}", "pbs_rerunjob", _job_name(job), b"force" if force else None)

    def set_walltime(self, job: str, seconds: int) -> None:
        self._alter(job, "Resource_List", "walltime", str(seconds))

    def set_comment(self, job: str, text: str) -> None:
        self._alter(job, "comment", None, text)

    def _alter(self, job: str, attribute: str, resource: str | None, value: str) -> None:
        changed = _chained([(attribute, resource, value, _SET)])
        self._call(f"{resource or attribute} of job {job}", "pbs_alterjob", _job_name(job), changed, None)


def connector(conf: Path | None = None, deadline_s: float = 20.0) -> Connect:
    """A function that opens connections. `conf`: pbs.conf, by default $PBS_CONF_FILE or /etc/pbs.conf.

    The library reads one pbs.conf per process, given by that variable, so this function sets the variable.
    """
    path = conf or Path(os.environ.get("PBS_CONF_FILE", DEFAULT_CONF))
    try:
        settings = read_conf(path)
    except OSError as error:
        raise PbsError(Code.NO_SERVER, f"{path}: {error.strerror}; name the right pbs.conf in [pbs] conf") from error
    if "PBS_EXEC" not in settings:
        raise PbsError(Code.NO_SERVER, f"{path} does not set PBS_EXEC; name the right pbs.conf in [pbs] conf")
    os.environ["PBS_CONF_FILE"] = str(path)
    library = _load(Path(settings["PBS_EXEC"], "lib/libpbs.so"))
    return lambda: LibPbs(library, deadline_s)


def openpbs(settings: KindSettings) -> Connect:
    """The connector for `kind = "openpbs"` in [pbs]."""
    return connector(Path(settings.conf) if settings.conf else None, settings.call_deadline_s)


def _job_name(job: str) -> bytes:
    """The id for a call. PBS reads some other texts as several jobs, or as all. Raises PbsError for those."""
    if not is_job_id(job):
        raise PbsError(Code.UNKNOWN_JOB, f"{printable(job, 80)!r} is no id of a job, so PBS is not asked about it")
    return job.encode()


def _chained(parts: Sequence[tuple[str, str | None, str | None, int]]) -> Any:
    """A linked list of attributes. ctypes keeps all parts alive as long as the head exists."""
    head = None
    for name, resource, value, op in reversed(parts):
        resource_, value_ = (None if text is None else text.encode() for text in (resource, value))
        link = _Attribute(head, name.encode(), resource_, value_, op)
        head = ctypes.pointer(link)
    return head


def _chain(pointer: Any) -> Iterator[Any]:
    while pointer:
        yield pointer.contents
        pointer = pointer.contents.next


def _split(attribute: str) -> tuple[str, str | None]:
    name, _, resource = attribute.partition(".")
    return name, resource or None


def _attributes(first: Any) -> dict[str, str]:
    """Attributes by name; a resource as "Attribute.resource"; values in several parts are joined by commas."""
    found: dict[str, str] = {}
    for link in _chain(first):
        name = link.name.decode(errors="replace")
        if link.resource:
            name = f"{name}.{link.resource.decode(errors='replace')}"
        value = (link.value or b"").decode(errors="replace")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _job_attributes() -> Any:
    return _chained([(*_split(name), None, _SET) for name in _JOB_ATTRIBUTES])


def _vnode(name: str, attributes: dict[str, str]) -> Vnode:
    jobs = attributes.pop("maintenance_jobs", None)
    return Vnode(
        name=name,
        state=frozenset(words(attributes.pop("state", ""))),
        attributes=attributes,
        maintenance_jobs=None if jobs is None else tuple(words(jobs)),
    )


def _vnodes_of(id: str, exec_vnode: str) -> tuple[str, ...]:
    """The vnodes of a job; empty if it waits. If they cannot be read, an alert is logged, and other jobs are not
    affected."""
    try:
        return tuple(vnodes_of(exec_vnode)) if exec_vnode else ()
    except ValueError as error:
        log.error("ALERT job %s: the vnodes where it runs are unknown: %s", id, error)
        return ()


def _job(id: str, attributes: dict[str, str]) -> PbsJob:
    walltime = attributes.get("Resource_List.walltime")
    return PbsJob(
        id=id,
        state=attributes.get("job_state", ""),
        substate=int(attributes.get("substate", "0")),
        run_version=int(attributes.get("run_version", "0")),
        queue=attributes.get("queue", ""),
        vnodes=_vnodes_of(id, attributes.get("exec_vnode", "")),
        rerunnable=is_true(attributes.get("Rerunable", "True")),
        walltime_s=None if walltime is None else duration_s(walltime),
        comment=attributes.get("comment", ""),
        started_at=float(attributes.get("stime", "0")),
        exec_vnode=attributes.get("exec_vnode", ""),
    )
