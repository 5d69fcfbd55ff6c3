"""Supervision of a program of asyncio: whatever in it ends by a defect ends the program, and systemd starts it again.

A task that dies unnoticed is worse than a crash: the rest of the program goes on saying that all is well. So:

Rule 1: nobody calls `create_task` and forgets the task. `start` does it, keeps the task, and reports its defect. A task
whose result somebody awaits needs no `start`.
Rule 2: a defect is logged whole and ends the program with `DEFECT`, also one in a callback or in a thread. The program
is given END_S to close what it has open; then it is ended by force. No thread that hangs keeps it.
Rule 3: what a stranger sends is handled behind a door: whatever it does, it costs that message or that connection only.
A door catches every exception and reports it by `at_the_door`.
Rule 4: who says "alive" (a heartbeat, a lease, systemd's watchdog) does so in the event loop that does the work.
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
"""For a program with a defect to close what it has open."""

_tasks: set[asyncio.Task[Any]] = set()
"""asyncio itself keeps no task from being collected while it runs."""


class Defect(Exception):
    """The program ended by a defect, which is in its log."""


def start(work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
    """A task that nobody has to await: its defect ends the program."""
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
    """As `asyncio.run`. Raises Defect, too: then the caller calls `end`."""
    by_force = threading.Timer(END_S, os._exit, (DEFECT,))
    by_force.daemon = True
    try:
        asyncio.run(_supervised(program, by_force))
    finally:
        by_force.cancel()


def end() -> NoReturn:
    """End the process after a defect, at once: Python itself would wait for threads."""
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
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so does the process
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
    """True if asyncio itself has dealt with it: it closed the one connection, accepts again soon, or nobody waited."""
    if "protocol" in context or "transport" in context or "socket" in context:
        return True
    future = context.get("future")
    return future is not None and not isinstance(future, asyncio.Task)


# The service manager


async def _watchdog() -> None:
    """Tell systemd that this loop turns, as often as the unit's WatchdogSec asks for (sd_watchdog_enabled(3))."""
    limit_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while limit_s > 0:
        notify("WATCHDOG=1")
        await asyncio.sleep(limit_s / 3)


def notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.sendto(state.encode(), name)
        except OSError as error:
            log.warning("the service manager at %s cannot be told: %s", address, error)
