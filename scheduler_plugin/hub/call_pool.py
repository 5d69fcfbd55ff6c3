"""Threads for calls that may hang. Each thread has its own connection and opens it when it first needs it.

The pool gives up a call that is over its deadline: the caller gets a transient PbsError, and a new thread replaces the
one that hangs. At most `SPARE` times the size of the pool are replaced. The call may still take effect, so callers look
at what PBS has before they ask again. A lost thread ends as soon as its call returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scheduler_plugin.pbs.base import Code, Connect, Pbs, PbsError

from .call_places import CallPlaces

log = logging.getLogger(__name__)

T = TypeVar("T")

SPARE = 4


@dataclass
class _Call:
    task: Callable[[Pbs], Any]
    future: asyncio.Future[Any]
    host: str | None
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False)
class _Worker:
    thread: threading.Thread | None = None
    lost: bool = field(default=False)


class CallPool:
    """Create and use it in an event loop; each `task` runs in a thread. `deadline_s` counts from the task's start.

    A host whose calls hang keeps their places until they return, because its MoMs make them hang. `asks_server`: the
    server answers all calls of this pool by itself, so no host is to blame, and each gets its place back at the
    deadline. Otherwise one lost answer would silence a host for ever, and the pool would never count as exhausted.
    """

    def __init__(self, connect: Connect, size: int, deadline_s: float, asks_server: bool = False) -> None:
        self._connect = connect
        self._size = size
        self._deadline_s = deadline_s
        self._asks_server = asks_server
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._places = CallPlaces(max(1, size - 1))
        self._lost = 0
        self._serving = 0
        self._workers: set[_Worker] = set()
        self._fill()

    def _fill(self) -> None:
        """Start the threads that are missing, unless too many are lost."""
        while self._serving < self._size and self._lost <= SPARE * self._size:
            worker = _Worker()
            worker.thread = threading.Thread(target=self._work, args=(worker,), name="pbs-worker", daemon=True)
            self._workers.add(worker)
            self._serving += 1
            worker.thread.start()

    @property
    def exhausted(self) -> bool:
        """True if so many calls hang that no thread is left for the next one."""
        return self._serving == 0

    async def run(self, task: Callable[[Pbs], T], hosts: Collection[str] = ()) -> T:
        """The task's result. Raises PbsError: the task's own, the connection's, or a transient one at the deadline.

        `hosts`: it is done on behalf of one of these. The hub's own calls have no limit.

        A task that fails with a transient error may run a second time, on a new connection. That is safe, because
        each task begins with a look.
        """
        host = await self._places.take(hosts) if hosts else None
        call = _Call(task, self._loop.create_future(), host)
        self._calls.put(call)
        result: T = await call.future
        return result

    # In the event loop

    def _started(self, call: _Call, worker: _Worker) -> None:
        if not call.future.done():
            call.timer = self._loop.call_later(self._deadline_s, self._overdue, call, worker)

    def _overdue(self, call: _Call, worker: _Worker) -> None:
        if call.future.done():
            return
        call.future.set_exception(
            PbsError(Code.NO_CONNECTION, f"no answer from PBS within {self._deadline_s:g} s", transient=True)
        )
        if self._asks_server:
            self._give_back(call)
        worker.lost = True
        self._lost += 1
        self._serving -= 1
        self._fill()
        if self._serving < self._size:
            log.error("%d calls to PBS hang; no more threads are added: restart the PBS server or this hub", self._lost)

    def _finished(self, call: _Call, worker: _Worker, result: Any, error: BaseException | None) -> None:
        self._give_back(call)
        if call.timer is not None:
            call.timer.cancel()
        if worker.lost:
            self._lost -= 1
            self._fill()
            log.warning("a call to PBS that was given up has ended: %s", error or "done")
        if call.future.done():
            return
        if error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)

    def _give_back(self, call: _Call) -> None:
        """Give back its host's place, once."""
        host, call.host = call.host, None
        if host is not None:
            self._places.give_back(host)

    def close(self) -> None:
        """End the idle threads. The others end with the process."""
        for _ in range(len(self._workers)):  # each leaves the set when it ends
            self._calls.put(None)

    # In the threads

    def _work(self, worker: _Worker) -> None:
        pbs: Pbs | None = None
        while not worker.lost and (call := self._calls.get()) is not None:
            if not self._tell(self._started, call, worker):
                break
            result: Any = None
            error: Exception | None = None
            for attempt in (0, 1):
                kept = pbs is not None
                try:
                    pbs = pbs or self._connect()
                    result, error = call.task(pbs), None
                except PbsError as refusal:
                    error = refusal
                    if refusal.transient:
                        _close(pbs)
                        pbs = None
                        if kept and attempt == 0:  # perhaps only an old connection, after a restart of PBS
                            continue
                except Exception as mistake:  # noqa: BLE001  raised where the result is awaited
                    error = mistake
                break
            if not self._tell(self._finished, call, worker, result, error):
                break
        _close(pbs)
        self._workers.discard(worker)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> bool:
        """Call `function` in the event loop; False if the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True


def _close(pbs: Pbs | None) -> None:
    if pbs is not None:
        with contextlib.suppress(OSError):  # the other end is closed already
            pbs.close()
