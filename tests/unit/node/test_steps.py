"""Which steps wait for which, which replace which, and what is forgotten of those that failed."""

from __future__ import annotations

import asyncio

import pytest

from magrathea.core.caps import NO_CAP
from magrathea.core.model import JobKey
from magrathea.core.plan import Order, Orders, SetCpu, SetMemory, Step
from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.virtual_time import run
from node_daemon.switch.steps import Steps, replaces, slot_of, waits

ONE, TWO = JobKey("1.srv", 1), JobKey("2.srv", 1)
STOP, RUN, LIFT = (Orders("n1", order, (ONE,)) for order in (Order.STOP, Order.RUN, Order.LIFT))
CPU, MEMORY = SetCpu("n1", NO_CAP), SetMemory("n1", 512)
OTHERS = Orders("p1", Order.RUN, (TWO,)), SetCpu("p1", NO_CAP), SetMemory("p1", 512)


@pytest.mark.parametrize("step", [RUN, CPU, MEMORY, *OTHERS])
def test_everything_waits_for_a_stop(step: Step) -> None:
    assert waits(step, STOP)


@pytest.mark.parametrize("step", OTHERS)
def test_other_domains_do_not_wait_for_a_stop_that_has_failed(step: Step) -> None:
    assert not waits(step, STOP, held=True)
    assert waits(CPU, STOP, held=True), "its own domain does"


@pytest.mark.parametrize("step", [CPU, MEMORY, *OTHERS])
def test_only_a_domains_own_jobs_wait_for_its_memory(step: Step) -> None:
    assert not waits(step, MEMORY)
    assert waits(RUN, MEMORY) and waits(LIFT, MEMORY)


def test_cpu_is_given_after_it_was_taken_and_memory_does_not_wait_for_cpu() -> None:
    assert waits(SetCpu("p1", NO_CAP), CPU)
    assert not waits(SetCpu("p1", NO_CAP), CPU, held=True)
    assert not waits(MEMORY, CPU)
    assert waits(RUN, CPU) and not waits(OTHERS[0], CPU)


def test_only_a_stop_replaces_orders_under_way() -> None:
    assert replaces(STOP, RUN)
    assert replaces(Orders("n1", Order.STOP, (ONE, TWO)), STOP), "a larger stop"
    assert not replaces(STOP, Orders("n1", Order.STOP, (ONE, TWO))), "it is stopped already"
    assert not replaces(RUN, STOP)
    assert not replaces(MEMORY, SetMemory("n1", 256)), "the move gets another target"


def test_a_failure_is_forgotten_when_its_step_is_no_longer_due_but_orders_keep_theirs() -> None:
    async def work() -> None:
        steps = Steps()
        for step in (STOP, CPU, MEMORY):
            steps.retries.failed(slot_of(step), RefusalCode.FAILED, "it fails")
        steps.forget_failures([MEMORY])
        assert slot_of(CPU) not in steps.retries
        assert slot_of(MEMORY) in steps.retries and slot_of(STOP) in steps.retries

    run(work())


PATIENCE_S = 10.0


def test_a_failure_of_another_kind_counts_as_a_shortage_if_it_lasts() -> None:
    async def work() -> None:
        steps = Steps()
        for _ in range(6):
            steps.retries.failed(slot_of(MEMORY), RefusalCode.TIMEOUT, "no answer", lasting=False, away=True)
            assert steps.memory_shortage("n1", PATIENCE_S) is None
            await asyncio.sleep(PATIENCE_S / 6)
        await asyncio.sleep(1)
        assert steps.memory_shortage("n1", PATIENCE_S) == "no answer"

    run(work())


def test_a_shortage_of_memory_counts_when_the_move_has_ended() -> None:
    async def work() -> None:
        steps = Steps()
        steps.retries.failed(slot_of(MEMORY), RefusalCode.MEMORY_SHORT, "n1 keeps 900 MiB")
        assert steps.memory_shortage("n1", PATIENCE_S) == "n1 keeps 900 MiB"
        go = asyncio.Event()

        async def move() -> None:
            await go.wait()

        ended: list[str] = []
        steps.start(MEMORY, move(), lambda slot, task: ended.append(slot[1]))
        assert steps.memory_shortage("n1", PATIENCE_S) is None, "it is tried again, and may give more"
        assert steps.moves() == [MEMORY] and steps.under_way(slot_of(MEMORY)) == MEMORY
        go.set()
        await asyncio.sleep(1)
        assert ended == ["n1"] and steps.moves() == []
        await steps.close()

    run(work())
