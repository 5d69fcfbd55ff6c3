"""Calls that block, each with a deadline, away from the event loop: one thread per domain and one for reading.

Rule 1: a call that hangs holds up its own thread and nothing else: neither the loop, nor another domain, nor reading
(measured: a stopped QEMU holds up changes of its domain, not what is read of it).
Rule 2: what has not begun when its deadline passes never begins, so a call given up cannot overtake a later one.
Rule 3: the threads are daemons: a hanging libvirtd must not keep this process from ending.
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
    """`work`'s result or exception, whichever, goes to whoever waits for it, if anybody still does."""
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
            return  # given up meanwhile


class Worker:
    """One thread that works off calls in the order in which they were asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, seconds: float, what: str, work: Callable[[], T]) -> T:
        """`work()`'s result. Raises DriverError `timeout` after `seconds`, waiting for its turn included."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._queue.put((future, work))
        return await within(seconds, what, asyncio.wrap_future(future))

    def close(self) -> None:
        """End when what is being done is done; what waits is cancelled."""
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
    """`work()`'s result from a thread made for it alone; cancelled, it is left behind and its result thrown away."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(future, work), name=name, daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))
