"""The event loop: files and times, in one thread."""

import heapq
import selectors
import time
from collections import deque

from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, List, Optional, Tuple


class Timer:
    """An action for a time, unless cancelled."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: "Callable[[], None]") -> None:
        self.when = when
        self.action: "Optional[Callable[[], None]]" = action

    def cancel(self) -> None:
        self.action = None


class Loop:
    """Files and times, in one thread. Sleeps until the next of them.

    An exception in a handler is a defect of the agent, but no reason to give up standing orders. It is logged with its
    place. After too many of them the agent ends, and its service manager restarts it.
    """

    MAX_FAULTS = 20  # within FAULT_WINDOW_S
    FAULT_WINDOW_S = 60.0

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: "List[Tuple[float, int, Timer]]" = []
        self.serial = 0
        self.stopping = False
        self.status = 0
        self.faults: "Deque[float]" = deque()

    def after(self, delay: float, action: "Callable[[], None]") -> Timer:
        return self.at(time.monotonic() + delay, action)

    def at(self, when: float, action: "Callable[[], None]") -> Timer:
        timer = Timer(when, action)
        self.serial += 1
        heapq.heappush(self.timers, (timer.when, self.serial, timer))
        return timer

    def watch(self, fd: int, events: int, action: "Callable[[int], None]") -> None:
        """Call `action` with the events of this descriptor, until `unwatch`."""
        try:
            self.selector.modify(fd, events, action)
        except KeyError:
            self.selector.register(fd, events, action)

    def unwatch(self, fd: int) -> None:
        if fd in self.selector.get_map():
            self.selector.unregister(fd)

    def stop(self, status: int = 0) -> None:
        self.stopping = True
        self.status = status

    def run(self) -> int:
        while not self.stopping:
            self.turn()
        return self.status

    def turn(self) -> None:
        while self.timers and self.timers[0][2].action is None:
            heapq.heappop(self.timers)
        timeout = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else None
        for key, events in self.selector.select(timeout):
            if key.fd in self.selector.get_map():  # unless an earlier action has removed it
                self._guard(lambda key=key, events=events: key.data(events))  # type: ignore[misc]
        now = time.monotonic()
        due = []
        while self.timers and self.timers[0][0] <= now:
            due.append(heapq.heappop(self.timers)[2])
        for timer in due:
            if timer.action is not None:
                self._guard(timer.action)

    def _guard(self, action: "Callable[[], None]") -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (a defect must not end standing orders)
            self.defect(error)

    def defect(self, error: Exception) -> None:
        """Log a defect; end if there were too many."""
        place = error.__traceback__
        where = []
        while place is not None:
            where.append("%s:%d" % (place.tb_frame.f_code.co_name, place.tb_lineno))
            place = place.tb_next
        log.error("defect: %s: %s at %s" % (type(error).__name__, error, " < ".join(reversed(where))))
        now = time.monotonic()
        self.faults.append(now)
        while self.faults and now - self.faults[0] > self.FAULT_WINDOW_S:
            self.faults.popleft()
        if len(self.faults) >= self.MAX_FAULTS:
            log.error(
                "%d defects in %d s: ending; the service manager restarts the agent"
                % (len(self.faults), self.FAULT_WINDOW_S)
            )
            self.stop(1)
