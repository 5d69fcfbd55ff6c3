"""Blocking calls, each with a deadline, outside of the event loop: one thread per domain and one for reading.

Rule 1: a call that hangs blocks only its own thread, not the loop, not other domains, not reading. Measured: a stopped
QEMU blocks changes of its domain, but not reading.
Rule 2: a call that has not begun at its deadline never begins. So it cannot overtake a later call.
Rule 3: the threads are daemons, so a hanging libvirtd never keeps this process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from ..base import within

T = TypeVar("T")

Work = tuple[Future[Any], Callable[[], Any]]


def _run(future: Future[T], work: Callable[[], T]) -> None:
    """Run `work` and pass its result or exception to the waiter, if there still is one."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        future.set_exception(error)
    else:
        try:
            future.set_result(result)
        except InvalidStateError:
            return  # the waiter has given up


class Worker:
    """One thread that runs calls in the order in which they were requested."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, seconds: float, what: str, work: Callable[[], T]) -> T:
        """Run `work()` and return its result. Raises DriverError `timeout` after `seconds`; the wait for its turn
        counts."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._queue.put((future, work))
        return await within(seconds, what, asyncio.wrap_future(future))

    def close(self) -> None:
        """End after the present call; calls that wait are cancelled."""
        if self._thread is None:
            return
        while True:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        self._queue.put(None)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            _run(*item)


async def in_own_thread(name: str, work: Callable[[], T]) -> T:
    """Run `work()` in a new thread and return its result. If cancelled, the thread is left behind and its result
    dropped."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(future, work), name=name, daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))
