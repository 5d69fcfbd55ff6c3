"""Steps: which are under way, which have failed and are tried again later, and which have to wait for which.

Nothing here is a fact. A restart forgets it all, and the plan names the steps anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import assert_never

from magrathea.core.plan import Order, Orders, SetCpu, SetMemory, Step
from magrathea.core.refusals import RefusalCode

from ..retries import Retries, Slot, loop_time

RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after the first, second, ... failure of a step."""


def slot_of(step: Step) -> Slot:
    return type(step).__name__, step.domain


def described(step: Step) -> str:
    """For the log. The demo and the benchmarks read the parts of a switch there."""
    match step:
        case Orders():
            return f"{step.order.value} {', '.join(str(key) for key in step.keys) or 'nothing'}"
        case SetCpu(cap=cap):
            return f"cpu {'without a cap' if cap.percent is None else f'{cap.percent} %'}"
        case SetMemory():
            return f"memory {step.mib} MiB"
        case _:
            assert_never(step)


def waits(step: Step, other: Step, held: bool = False) -> bool:
    """Whether `step` must wait until `other`, which precedes it in the plan, is done.

    `held`: `other` has failed and is tried again later. Then a step waits only if it would do harm.
    """
    same = step.domain == other.domain
    match other:
        case Orders():
            if other.order is not Order.STOP:
                return same and isinstance(step, Orders)
            # Stop before memory and CPUs go. While a job is to be stopped, no domain is given or continued anything.
            return same or not held
        case SetCpu():
            if isinstance(step, SetMemory):
                return False
            return same if isinstance(step, Orders) or held else True
        case SetMemory():
            # A job is continued when its memory is back. Nothing else waits: the mover never gives more than there is.
            return same and isinstance(step, Orders)
        case _:
            assert_never(other)


def replaces(new: Step, old: Step) -> bool:
    """Whether `new` makes `old`, which is under way, pointless. Only a stop does that to other orders."""
    if not isinstance(new, Orders) or not isinstance(old, Orders) or new == old or not new.keys:
        return False
    return new.order is Order.STOP and (old.order is not Order.STOP or not set(new.keys) <= set(old.keys))


class Steps:
    """The steps under way, at most one per slot, and the failures of those that are tried again (`retries`)."""

    def __init__(self) -> None:
        self.retries = Retries(RETRY_S)
        self._under_way: dict[Slot, tuple[Step, asyncio.Task[None]]] = {}

    def under_way(self, slot: Slot) -> Step | None:
        found = self._under_way.get(slot)
        return found[0] if found is not None else None

    def moves(self) -> list[SetMemory]:
        return [step for step, _ in self._under_way.values() if isinstance(step, SetMemory)]

    def start(
        self, step: Step, work: Coroutine[None, None, None], ended: Callable[[Slot, asyncio.Task[None]], None]
    ) -> None:
        """Let `work` take the step; `ended` is called when it is no longer under way."""
        slot = slot_of(step)
        task = asyncio.get_running_loop().create_task(work)
        self._under_way[slot] = (step, task)

        def done(task: asyncio.Task[None]) -> None:
            if (now := self._under_way.get(slot)) is not None and now[1] is task:
                del self._under_way[slot]
            ended(slot, task)

        task.add_done_callback(done)

    def retarget(self, step: Step) -> None:
        """The task that is under way leads to this step from now on."""
        slot = slot_of(step)
        self._under_way[slot] = (step, self._under_way[slot][1])

    def cancel(self, slot: Slot) -> None:
        _, task = self._under_way.pop(slot)
        task.cancel()

    def forget_failures(self, due: Iterable[Step]) -> None:
        """A step that is no longer due does not fail any more. If it becomes due again, it starts afresh.

        Orders are exempt: their failures end with the agent's connection.
        """
        slots = {slot_of(step) for step in due} | set(self._under_way)
        self.retries.forget(lambda slot: slot[0] != "Orders" and slot not in slots)

    def forget_shortages(self) -> None:
        """There may be more memory now: what failed for want of it is tried anew, and is no shortage until then."""
        retries = self.retries
        retries.forget(lambda slot: (found := retries.of(slot)) is not None and found.code == RefusalCode.MEMORY_SHORT)

    def memory_shortage(self, domain: str, patience_s: float) -> str | None:
        """Why the domain's last move fell short; None while it may still give or take more.

        Any other failure counts as the end of it after `patience_s`: an agent may never answer.
        """
        slot = ("SetMemory", domain)
        failure = self.retries.of(slot)
        if failure is None:
            return None
        if failure.code in (RefusalCode.MEMORY_SHORT, RefusalCode.BAD_FIGURES):
            return None if slot in self._under_way else failure.text
        return failure.text if loop_time() - failure.since > patience_s else None

    async def close(self) -> None:
        tasks = [task for _, task in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
