"""The connection to libvirt: it is made, watched, and made again when it is lost. The event loop never waits for it.

Rule 1: libvirt's own events run in one thread for the whole process. They only report that something has happened.
Rule 2: a lost connection never recovers, so it is thrown away and a new one is made, with one attempt at a time.
Measured: a killed libvirtd is noticed in 3 ms; one that hangs is noticed by keepalive in 6 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from magrathea import supervision
from magrathea.core.refusals import RefusalCode

from ..base import DriverError
from .translation import error_code
from .worker_threads import in_own_thread

log = logging.getLogger(__name__)

KEEPALIVE = (2, 2)
"""Seconds between two keepalive questions, and how many may stay unanswered. A hanging libvirtd is noticed after 6
s."""
CLOSE_S = 2.0
AGAIN_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses between attempts to connect."""
WATCHED = (
    "LIFECYCLE",
    "REBOOT",
    "BALLOON_CHANGE",
    "CONTROL_ERROR",
    "PMSUSPEND",
    "PMWAKEUP",
    "TUNABLE",
    "WATCHDOG",
    "IO_ERROR",
    "DEVICE_ADDED",
    "DEVICE_REMOVED",
)
"""The domain events after which the domain is read again. A hypervisor that does not know one refuses it; polling
remains."""

Connection = Any
"""libvirt.virConnect; libvirt's binding has no types."""

_loop_lock = threading.Lock()
_loop_runs = False


def binding_module() -> Any:
    """libvirt's Python binding. Raises DriverError if it is not installed."""
    try:
        return importlib.import_module("libvirt")
    except ImportError as error:
        text = "the libvirt driver needs libvirt's Python binding, which this Python does not find"
        fix = "install magrathea[libvirt], or Debian's python3-libvirt for the system's own Python"
        raise DriverError(RefusalCode.NOT_SUPPORTED, f"{text} ({error}); {fix}") from error


def binding() -> Any:
    """libvirt's Python binding, with its event thread running. Raises DriverError if it is not installed."""
    global _loop_runs
    libvirt = binding_module()
    with _loop_lock:
        if not _loop_runs:
            # errors are raised, so do not print them too
            libvirt.registerErrorHandler(lambda context, error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_events, args=(libvirt,), name="libvirt-events", daemon=True).start()
            _loop_runs = True
    return libvirt


def _events(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:  # nothing can be done here; keepalive notices a broken connection
            log.error("libvirt's events: %s", error)


def translated(error: Any, what: str) -> DriverError:
    """libvirt's error as a DriverError."""
    return DriverError(error_code(error.get_error_code() or 0, error.get_error_domain() or 0), f"{what}: {error}")


class Link:
    """Keeps a connection to `uri`. All callbacks are called in the event loop.

    `on_found` gets each new connection before anybody can use it; `on_lost` is called when it ends. `on_event` gets a
    domain's libvirt name, libvirt's word for the event, and its detail (None except for LIFECYCLE).
    """

    def __init__(
        self,
        uri: str,
        on_found: Callable[[Connection], None],
        on_lost: Callable[[], None],
        on_event: Callable[[str, str, int | None], None],
    ) -> None:
        self.uri = uri
        self.libvirt = binding()
        self.unwatched: tuple[str, ...] = ()
        """Events that this hypervisor does not report."""
        self.why = "not connected yet"
        """Why there is no connection, for people."""
        self._connection: Connection | None = None
        self._registered: tuple[int, ...] = ()
        self._on_found = on_found
        self._on_lost = on_lost
        self._on_event = on_event
        self._lost = asyncio.Event()
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._refused: DriverError | None = None

    async def start(self, seconds: float) -> None:
        """Begin to connect, and wait `seconds` for the first answer. Raises DriverError if trying again cannot help."""
        self._task = supervision.start(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._first.wait()
        if self._refused is not None:
            raise self._refused

    @property
    def connection(self) -> Connection:
        """The present connection. Raises DriverError `lost`."""
        if self._connection is None:
            raise DriverError(
                RefusalCode.LOST, f"libvirt at {self.uri} cannot be reached: {self.why}; is libvirtd running?"
            )
        return self._connection

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(TimeoutError):  # libvirtd hangs: leave the thread behind
                async with asyncio.timeout(CLOSE_S):
                    await in_own_thread("libvirt-close", lambda: self._close(connection, self._registered))

    async def _keep(self) -> None:
        attempts = 0
        while True:
            try:
                connection = await in_own_thread("libvirt-connect", self._open)
            except self.libvirt.libvirtError as error:
                self.why = str(error)
                if error.get_error_code() == self.libvirt.VIR_ERR_NO_CONNECT:
                    text = f"libvirt at {self.uri}: {error}; is the driver's package installed, is `uri` right?"
                    self._refused = DriverError(RefusalCode.NOT_SUPPORTED, text)
                self._first.set()
                if attempts == 0:
                    log.warning("libvirt at %s cannot be reached: %s", self.uri, error)
                await asyncio.sleep(AGAIN_S[min(attempts, len(AGAIN_S) - 1)])
                attempts += 1
                continue
            attempts = 0
            self._lost.clear()
            self._connection = connection
            log.info("connected to libvirt at %s", self.uri)
            self._on_found(connection)
            self._first.set()
            if not connection.isAlive():  # it was lost before anybody listened
                self._lost.set()
            await self._lost.wait()
            self._drop()
            self._on_lost()

    def open(self) -> Connection:
        """Open one more connection. Raises libvirtError.

        Do not call it in the event loop's thread: a hanging libvirtd accepts connections and never answers.
        """
        connection = self.libvirt.open(self.uri)
        with contextlib.suppress(self.libvirt.libvirtError):  # libvirt's test driver has no keepalive
            connection.setKeepAlive(*KEEPALIVE)
        return connection

    def _open(self) -> Connection:
        """Open and register the main connection; runs in a thread of its own."""
        connection = self.open()
        connection.registerCloseCallback(self._closed, connection)
        unwatched, registered = [], []
        for name in WATCHED:
            try:
                event = getattr(self.libvirt, f"VIR_DOMAIN_EVENT_ID_{name}")
                registered.append(connection.domainEventRegisterAny(None, event, self._happened, name))
            except self.libvirt.libvirtError:
                unwatched.append(name)
        self.unwatched = tuple(unwatched)
        self._registered = tuple(registered)
        return connection

    def _closed(self, connection: Connection, reason: int, opaque: Any) -> None:
        self._tell(self._is_closed, opaque, reason)

    def _happened(self, connection: Connection, domain: Any, *details: Any) -> None:
        """Runs in libvirt's thread. The last of `details` is the event's word."""
        detail = details[0] if details[-1] == "LIFECYCLE" else None
        self._tell(self._on_event, domain.name(), details[-1], detail)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *arguments)

    def _is_closed(self, connection: Connection, reason: int) -> None:
        if connection is not self._connection:
            return
        reasons = {0: "an error", 1: "libvirtd has ended", 2: "libvirtd does not answer", 3: "closed by the daemon"}
        self.why = reasons.get(reason, f"reason {reason}")
        log.warning("connection to libvirt at %s lost: %s", self.uri, self.why)
        self._lost.set()

    def _drop(self) -> None:
        """Close the connection in a thread, since closing may wait for a hanging libvirtd."""
        connection, self._connection = self._connection, None
        if connection is not None:
            arguments = (connection, self._registered)
            threading.Thread(target=self._close, args=arguments, name="libvirt-close", daemon=True).start()

    def _close(self, connection: Connection, registered: tuple[int, ...]) -> None:
        """Close the connection. First deregister all callbacks: they would keep it open. On a broken connection that
        fails."""
        steps = [lambda number=number: connection.domainEventDeregisterAny(number) for number in registered]
        for step in (*steps, connection.unregisterCloseCallback, connection.close):
            try:
                step()
            except self.libvirt.libvirtError as error:
                log.debug("closing the connection to %s: %s", self.uri, error)


class ThreadConnection:
    """A connection for one thread alone, for calls that may hang.

    While one thread waits for a hanging call, libvirt 9.0 answers other threads' calls on the same connection only when
    another message passes (seen with `state` and `info`).
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._link_connection: Connection | None = None
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The thread's connection, in its own thread; a new one whenever the link has a new one. Raises libvirtError,
        or DriverError `lost`."""
        current = self._link.connection
        if self._connection is None or self._link_connection is not current or not self._connection.isAlive():
            self.drop()
            self._connection, self._link_connection = self._link.open(), current
        return self._connection

    def drop(self) -> None:
        """Close the connection without waiting for a hanging libvirtd."""
        connection, self._connection = self._connection, None
        if connection is not None:
            threading.Thread(target=self._close, args=(connection,), name="libvirt-close", daemon=True).start()

    def _close(self, connection: Connection) -> None:
        try:
            connection.close()
        except self._link.libvirt.libvirtError as error:
            log.debug("closing a connection to %s: %s", self._link.uri, error)
