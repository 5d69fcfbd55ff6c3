"""Which steps have failed, and when they are tried again.

Rule 1: a step that failed is tried again after a pause. The pause grows from failure to failure.
Rule 2: a failure is forgotten when the step succeeds or is no longer due. Nothing here is a fact: after a restart
everything is tried at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

LOGGED_EVERY = 60
"""A failure that persists is logged the first time, when its pause has become the longest, and then each time after so
many."""

Slot = tuple[str, str]
"""(kind of step, domain): at most one step of a slot is under way."""


def loop_time() -> float:
    """The event loop's time in seconds. Failures and pauses are measured in it."""
    return asyncio.get_running_loop().time()


@dataclass
class Failure:
    """The last failure in a slot. `since`: when it first failed, without a success since then. `lasting_since`: since
    when all failures have been of a kind that does not pass by itself. `away`: the only reason is that the domain's
    agent is away, or was slow to answer."""

    since: float
    lasting_since: float
    times: int
    again_at: float
    code: str
    text: str
    away: bool


class Retries:
    """The failures of one part of the daemon. `pauses_s`: the pause after the first, second, ... failure; the last one
    is used for all later ones."""

    def __init__(self, pauses_s: Sequence[float]) -> None:
        self._pauses_s = pauses_s
        self._failures: dict[Slot, Failure] = {}

    def __contains__(self, slot: Slot) -> bool:
        return slot in self._failures

    def of(self, slot: Slot) -> Failure | None:
        return self._failures.get(slot)

    def wait_s(self, slot: Slot) -> float:
        """For how long the slot must still wait; 0 if it may be tried now."""
        failure = self._failures.get(slot)
        return max(0.0, failure.again_at - loop_time()) if failure is not None else 0.0

    def failed(self, slot: Slot, code: str, text: str, *, lasting: bool = True, away: bool = False) -> Failure:
        """Note and log a failure. `lasting`: it does not pass by itself."""
        at, before = loop_time(), self._failures.get(slot)
        times = before.times + 1 if before else 1
        pause_s = self._pauses_s[min(times, len(self._pauses_s)) - 1]
        since = before.since if before else at
        lasting_since = before.lasting_since if before and lasting else at
        failure = Failure(since, lasting_since, times, at + pause_s, code, text, away)
        self._failures[slot] = failure
        level = logging.WARNING if times in (1, len(self._pauses_s)) or times % LOGGED_EVERY == 0 else logging.DEBUG
        log.log(level, "%s of %s failed (%d times, again in %g s): %s", *slot, times, pause_s, text)
        return failure

    def succeeded(self, slot: Slot) -> None:
        self._failures.pop(slot, None)

    def forget(self, is_over: Callable[[Slot], bool]) -> None:
        """Forget the failures in slots for which that is true: their steps are no longer due."""
        for slot in [slot for slot in self._failures if is_over(slot)]:
            del self._failures[slot]

    def try_now(self, kind: str, codes: Collection[str]) -> None:
        """Steps of this kind that failed with one of these codes may succeed now: try them without a pause."""
        for (of_kind, _), failure in self._failures.items():
            if of_kind == kind and failure.code in codes:
                failure.again_at = loop_time()

    def items(self) -> Iterator[tuple[Slot, Failure]]:
        yield from self._failures.items()


def sentence(slot: Slot, failure: Failure) -> str:
    """A sentence for people."""
    kind, domain = slot
    return f"{kind} of {domain} fails: {failure.text}"
