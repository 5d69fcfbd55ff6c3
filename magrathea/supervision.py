"""Supervision of an asyncio program: any defect in any part ends the whole program, and systemd starts it again.

A task that dies unnoticed is worse than a crash, because the rest of the program keeps reporting that all is well. So:

Rule 1: no code calls `create_task` and forgets the task. `start` keeps the task and reports its defect. A task whose
result is awaited needs no `start`.
Rule 2: a defect is logged in full and ends the program with `DEFECT`, also in a callback or in a thread. The program
has END_S to close what it has open; then it is ended by force. A thread that hangs cannot keep it.
Rule 3: input from strangers is handled behind a door: it can cost only that message or that connection. A door catches
every exception and reports it with `at_the_door`.
Rule 4: every sign of life (a heartbeat, a lease, systemd's watchdog) is sent by the event loop that does the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFECT = 1
"""The exit code of a program that ended by a defect."""
END_S = 10.0
"""Time for a program with a defect to close what it has open."""

_tasks: set[asyncio.Task[Any]] = set()
"""Strong references: asyncio itself may let a running task be collected."""


class Defect(Exception):
    """The program ended by a defect, which is in its log."""


def start(work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
    """A task that nobody has to await: a defect in it ends the program."""
    task = asyncio.get_running_loop().create_task(work, name=name or getattr(work, "__qualname__", ""))
    _tasks.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        context = {"message": f"{task.get_name()} ended by a defect", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)


def run(program: Coroutine[Any, Any, None]) -> None:
    """Like `asyncio.run`. Also raises Defect; then the caller calls `end`."""
    by_force = threading.Timer(END_S, os._exit, (DEFECT,))
    by_force.daemon = True
    try:
        asyncio.run(_supervised(program, by_force))
    finally:
        by_force.cancel()


def end() -> NoReturn:
    """End the process at once after a defect; Python itself would wait for threads."""
    logging.shutdown()
    os._exit(DEFECT)


async def _supervised(program: Coroutine[Any, Any, None], by_force: threading.Timer) -> None:
    loop = asyncio.get_running_loop()
    failed = asyncio.Event()

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or _is_harmless(context):
            log.error("%s: %r", context["message"], error, exc_info=error)
            return
        log.critical("a defect: %s; this process ends", context["message"], exc_info=error)
        if not failed.is_set():
            failed.set()
            by_force.start()

    def in_thread(defect: threading.ExceptHookArgs) -> None:
        name = defect.thread.name if defect.thread is not None else "a thread"
        context = {"message": f"thread {name} ended by a defect", "exception": defect.exc_value}
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
            loop.call_soon_threadsafe(loop.call_exception_handler, context)

    before, threading.excepthook = threading.excepthook, in_thread
    loop.set_exception_handler(handle)
    watchdog = start(_watchdog())
    main, failure = loop.create_task(program), loop.create_task(failed.wait())
    try:
        await asyncio.wait([main, failure], return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            main.cancel()
            await asyncio.gather(main, return_exceptions=True)
        if failed.is_set():
            raise Defect
        main.result()
    finally:
        failure.cancel()
        watchdog.cancel()
        threading.excepthook = before


def _is_harmless(context: dict[str, Any]) -> bool:
    """True if asyncio has handled it: it closed the connection, will accept again soon, or nobody waited for the
    result."""
    if "protocol" in context or "transport" in context or "socket" in context:
        return True
    future = context.get("future")
    return future is not None and not isinstance(future, asyncio.Task)


# The service manager


async def _watchdog() -> None:
    """Report to systemd that this loop works, as often as the unit's WatchdogSec requires (sd_watchdog_enabled(3))."""
    given = os.environ.get("WATCHDOG_USEC", "0")
    limit_s = int(given) / 1e6 if given.isdecimal() and len(given) < 20 else 0.0
    while limit_s > 0:
        notify("WATCHDOG=1")
        await asyncio.sleep(limit_s / 3)


def notify(state: str) -> None:
    """Send the state to the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.sendto(state.encode(), name)
        except OSError as error:
            log.warning("the service manager at %s cannot be reached: %s", address, error)
