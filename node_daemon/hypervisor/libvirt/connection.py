"""The connection to libvirt: made, watched, lost, found again, without the event loop ever waiting for it.

Rule 1: libvirt's own events run in a thread of their own, one for the whole process, and only pass on that something
has happened.
Rule 2: a lost connection never recovers (measured: a killed libvirtd is told in 3 ms, a hanging one by keepalive in
6 s), so it is thrown away and a new one is made, again and again, with one attempt at a time.
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
"""Seconds between two questions, and how many unanswered ones mean that libvirtd hangs: known after 6 s."""
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
)
"""Events of domains that are worth a look. A hypervisor that does not know one refuses it; reading goes on."""

Connection = Any
"""libvirt.virConnect, whose binding has no types."""

_loop_lock = threading.Lock()
_loop_runs = False


def binding() -> Any:
    """libvirt's Python binding, its own events running. Raises DriverError where it is not installed."""
    global _loop_runs
    try:
        libvirt: Any = importlib.import_module("libvirt")
    except ImportError as error:
        text = "the libvirt driver needs libvirt's Python binding, which this Python does not find"
        fix = "install magrathea[libvirt], or Debian's python3-libvirt for the system's own Python"
        raise DriverError(RefusalCode.NOT_SUPPORTED, f"{text} ({error}); {fix}") from error
    with _loop_lock:
        if not _loop_runs:
            libvirt.registerErrorHandler(lambda context, error: None, None)  # what fails is raised, and not printed
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_events, args=(libvirt,), name="libvirt-events", daemon=True).start()
            _loop_runs = True
    return libvirt


def _events(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:  # nothing to be done about it, and keepalive notices what it breaks
            log.error("libvirt's events: %s", error)


def translated(error: Any, what: str) -> DriverError:
    """libvirt's error as the driver's."""
    return DriverError(error_code(error.get_error_code() or 0, error.get_error_domain() or 0), f"{what}: {error}")


class Link:
    """Keeps a connection to `uri`. All callbacks are called in the event loop.

    `on_found` is told of each new connection before anybody can use it, `on_lost` of its end; `on_event` gets the
    libvirt name of a domain, libvirt's word for the event and its detail (None but for LIFECYCLE).
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
        """What this hypervisor does not tell of."""
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
        """Begin, and wait that long for a first answer. Raises DriverError where no answer will ever come."""
        self._task = supervision.start(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._first.wait()
        if self._refused is not None:
            raise self._refused

    @property
    def connection(self) -> Connection:
        """The present one. Raises DriverError `lost`."""
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
            with contextlib.suppress(TimeoutError):  # a hanging libvirtd: the thread is left behind
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
            if not connection.isAlive():  # lost before anybody listened
                self._lost.set()
            await self._lost.wait()
            self._drop()
            self._on_lost()

    def open(self) -> Connection:
        """One more connection. Not in the event loop's thread: a hanging libvirtd accepts connections and says nothing.
        Raises libvirtError."""
        connection = self.libvirt.open(self.uri)
        with contextlib.suppress(self.libvirt.libvirtError):  # not known to libvirt's test driver
            connection.setKeepAlive(*KEEPALIVE)
        return connection

    def _open(self) -> Connection:
        """In a thread of its own."""
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
        """In libvirt's thread. The last of `details` is the event's word."""
        detail = details[0] if details[-1] == "LIFECYCLE" else None
        self._tell(self._on_event, domain.name(), details[-1], detail)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *arguments)

    def _is_closed(self, connection: Connection, reason: int) -> None:
        if connection is not self._connection:
            return
        reasons = {0: "an error", 1: "libvirtd has ended", 2: "libvirtd does not answer", 3: "closed from here"}
        self.why = reasons.get(reason, f"reason {reason}")
        log.warning("connection to libvirt at %s lost: %s", self.uri, self.why)
        self._lost.set()

    def _drop(self) -> None:
        """Close it; in a thread, since that may wait for a libvirtd that hangs."""
        connection, self._connection = self._connection, None
        if connection is not None:
            arguments = (connection, self._registered)
            threading.Thread(target=self._close, args=arguments, name="libvirt-close", daemon=True).start()

    def _close(self, connection: Connection, registered: tuple[int, ...]) -> None:
        """Whatever still refers to the connection keeps it open; on one that is broken nothing can be taken back."""
        steps = [lambda number=number: connection.domainEventDeregisterAny(number) for number in registered]
        for step in (*steps, connection.unregisterCloseCallback, connection.close):
            try:
                step()
            except self.libvirt.libvirtError as error:
                log.debug("closing the connection to %s: %s", self.uri, error)


class Line:
    """A connection of one thread's own, for calls that may hang.

    Where one thread waits for such a call, calls of others on the same connection are answered only when something
    else is said there (seen with libvirt 9.0: `state`, `info` and the like took as long as nobody asked again).
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._beside: Connection | None = None
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """In its thread. A new one whenever the link's is another. Raises libvirtError, or DriverError `lost`."""
        beside = self._link.connection
        if self._connection is None or self._beside is not beside or not self._connection.isAlive():
            self.drop()
            self._connection, self._beside = self._link.open(), beside
        return self._connection

    def drop(self) -> None:
        """Close it, without waiting for a libvirtd that hangs."""
        connection, self._connection = self._connection, None
        if connection is not None:
            threading.Thread(target=self._close, args=(connection,), name="libvirt-close", daemon=True).start()

    def _close(self, connection: Connection) -> None:
        try:
            connection.close()
        except self._link.libvirt.libvirtError as error:
            log.debug("closing a connection to %s: %s", self._link.uri, error)
