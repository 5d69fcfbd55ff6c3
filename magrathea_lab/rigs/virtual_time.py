"""An asyncio event loop with virtual time: when all tasks wait, time jumps to the next timer. An hour passes at once.

    result = run(work())

Rule 1: it uses nothing private of asyncio. A loop accepts a selector, and `loop.time()` may be any clock.
Rule 2: while a thread or process that the loop has started is working, time is real, because they know no other.
Rule 3: sockets are polled before time moves. So a message from one task to another in this process arrives first.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from node_daemon.clock import Clock

T = TypeVar("T")

SOME_DAY = 1_800_000_000.0
"""Unix time, in January 2027."""
DEADLOCK_S = 60.0
"""Real seconds without any event while no timer is set: after them nothing will ever happen."""


class _JumpingSelector(selectors.DefaultSelector):
    """Moves `now` instead of waiting. `outside`: returns True while something outside of the loop needs real time."""

    def __init__(self, outside: Callable[[], bool]) -> None:
        super().__init__()
        self.now = 0.0
        self._outside = outside

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is not None and not self._outside():
            self.now += timeout
            return []
        began = time.monotonic()
        ready = super().select(DEADLOCK_S if timeout is None else timeout)
        if timeout is None and not ready and not self._outside():
            raise RuntimeError("deadlock: every task waits for another one, and no timer is set")
        self.now += time.monotonic() - began
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module's docstring. Its time begins at 0."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector(self._works_outside)
        self._at_work: set[asyncio.Future[Any]] = set()
        self._starting = 0
        self._processes: list[asyncio.SubprocessTransport] = []
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def _works_outside(self) -> bool:
        self._processes = [transport for transport in self._processes if transport.get_returncode() is None]
        return bool(self._at_work or self._starting or self._processes)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._at_work.add(future)
        future.add_done_callback(self._at_work.discard)
        return future

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        self._starting += 1
        try:
            transport, protocol = await super().subprocess_exec(*args, **kwargs)
        finally:
            self._starting -= 1
        self._processes.append(transport)
        return transport, protocol


class LoopClock(Clock):
    """A host's clock that follows the loop's time, from a fixed day on."""

    def __init__(self, at_least: float = 0.0) -> None:
        self._offset = max(SOME_DAY, at_least) - asyncio.get_running_loop().time()

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self._offset


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in virtual time and return its result. Tasks that are left running are cancelled."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
