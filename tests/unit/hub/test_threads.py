"""The publisher's thread and the pool's, with a PBS in memory that fails and hangs. Every wait has a bound."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from magrathea.budget import Budget
from magrathea_lab.waiting import BOUND_S, until
from scheduler_plugin.hub.call_pool import SPARE, CallPool
from scheduler_plugin.hub.publisher import Publisher, Read
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, OFFLINE, RANK
from scheduler_plugin.pbs.base import Code, Pbs, PbsError
from tests.fakes.pbs import FakePbs, nothing_breaks
from tests.fakes.reports import job, vnode


def wait(condition: Callable[[], bool], what: str) -> None:
    until(condition, what)


LONG_ENOUGH_S = 1.0
"""Bound for a call that does nothing, on a busy machine; a call that hangs is waited for this long."""


class Publishing:
    def __init__(
        self, pbs: FakePbs, budget: Budget | None = None, compare_s: float = 3600.0, offline: Collection[str] = ()
    ) -> None:
        self.pbs = pbs
        self.reads: list[Read] = []
        self.failed: list[Exception] = []
        budget = budget or Budget(1.0, 10.0, time.monotonic())
        self.publisher = Publisher(pbs.connect, self.reads.append, self.failed.append, budget, compare_s, offline)
        self.publisher.start()
        wait(lambda: bool(self.reads), "first comparison")

    def shown(self, name: str, attribute: str) -> str | None:
        return self.pbs.vnodes[name].attributes.get(attribute)


@pytest.fixture
def pbs() -> FakePbs:
    return FakePbs("n1", "n2", "n3")


@pytest.fixture
def publishing(pbs: FakePbs) -> Iterator[Publishing]:
    made = Publishing(pbs)
    yield made
    pbs.breaks = nothing_breaks
    made.publisher.close(BOUND_S)
    assert not made.failed


def test_only_differences_are_published_in_one_call_a_vnode(publishing: Publishing, pbs: FakePbs) -> None:
    pbs.vnodes["n2"] = vnode("n2", magrathea_accepts="priority")
    publishing.publisher.compare()
    publishing.publisher.want({"n1": {ACCEPTS: "none", RANK: "1"}, "n2": {ACCEPTS: "priority"}})
    wait(lambda: publishing.shown("n1", RANK) == "1", "publication")
    assert publishing.shown("n1", ACCEPTS) == "none"
    assert [name for what, name in pbs.calls if what == "set_vnode"] == ["n1"]


def test_a_batch_wakes_the_scheduler_once_and_only_if_it_opens_something(publishing: Publishing, pbs: FakePbs) -> None:
    publishing.publisher.want({name: {ACCEPTS: "priority"} for name in ("n1", "n2", "n3")})
    wait(lambda: pbs.count("wake_scheduler") == 1, "wake")
    assert pbs.count("set_vnode") == 3
    publishing.publisher.want({"n1": {ACCEPTS: "none"}})
    wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "closing")
    publishing.publisher.compare()
    wait(lambda: len(publishing.reads) >= 2, "comparison")
    assert pbs.count("wake_scheduler") == 1


def test_a_vnode_that_is_back_wakes_the_scheduler_if_it_accepts_something(publishing: Publishing, pbs: FakePbs) -> None:
    """PBS starts no cycle when a MoM comes back."""

    def seen(state: str, accepts: str) -> int:
        pbs.vnodes["n1"] = vnode("n1", state, magrathea_accepts=accepts)
        reads = len(publishing.reads)
        publishing.publisher.compare()
        wait(lambda: len(publishing.reads) > reads, "comparison")
        # once this is published, the work after a comparison is over
        publishing.publisher.want({"n2": {RANK: str(reads)}})
        wait(lambda: publishing.shown("n2", RANK) == str(reads), "publication")
        return pbs.count("wake_scheduler")

    assert [seen("down", "none"), seen("free", "none"), seen("down", "priority")] == [0, 0, 0]
    assert seen("free", "priority") + seen("free", "priority") >= 1
    assert seen("free", "priority") == 1


def test_each_comparison_wakes_the_scheduler_if_an_array_has_begun(publishing: Publishing, pbs: FakePbs) -> None:
    """A refused subjob is in state Q, and PBS starts no scheduling cycle for it."""
    pbs.begun_arrays = 2
    for times in (1, 2):
        publishing.publisher.compare()
        wait(lambda times=times: pbs.count("wake_scheduler") == times, "wake")  # type: ignore[misc]
    pbs.begun_arrays = 0
    reads = pbs.count("server")
    publishing.publisher.compare()
    wait(lambda: pbs.count("server") > reads, "another comparison")
    publishing.publisher.close(BOUND_S)
    assert pbs.count("wake_scheduler") == 2


def test_closing_attributes_are_published_before_opening_ones(publishing: Publishing, pbs: FakePbs) -> None:
    publishing.publisher.want({"n3": {ACCEPTS: "priority"}})
    wait(lambda: pbs.count("wake_scheduler") == 1, "wake")
    publishing.publisher.want({"n1": {ACCEPTS: "priority"}, "n3": {ACCEPTS: "none"}})
    wait(lambda: pbs.count("wake_scheduler") == 2, "second wake")
    assert [name for what, name in pbs.calls if what == "set_vnode"] == ["n3", "n3", "n1"]


def test_changes_that_come_faster_than_they_can_be_published_become_one(publishing: Publishing, pbs: FakePbs) -> None:
    held, go = threading.Event(), threading.Event()

    def slow(operation: str, subject: str) -> None:
        if operation == "set_vnode":
            held.set()
            assert go.wait(BOUND_S)

    pbs.breaks = slow
    publishing.publisher.want({"n1": {RANK: "0"}})
    assert held.wait(BOUND_S)
    for rank in range(1, 50):
        publishing.publisher.want({"n1": {RANK: str(rank)}})
    go.set()
    wait(lambda: publishing.shown("n1", RANK) == "49", "the last rank")
    assert pbs.count("set_vnode") <= 3


def test_a_manual_change_is_corrected_at_the_next_comparison_and_reported(
    publishing: Publishing, pbs: FakePbs, caplog: pytest.LogCaptureFixture
) -> None:
    publishing.publisher.want({"n1": {ACCEPTS: "none"}})
    wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "publication")
    pbs.connect().set_vnode("n1", {ACCEPTS: "priority"})
    with caplog.at_level(logging.WARNING):
        publishing.publisher.compare()
        wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "the repair")
    assert "n1" in caplog.text
    assert "set to none again" in caplog.text


FROZEN = "magrathea: p1 is saved to disk"


def offline(pbs: FakePbs, name: str = "n1") -> bool:
    return "offline" in pbs.vnodes[name].state


def test_a_frozen_vnode_is_put_offline_with_its_reason_and_taken_off_again(
    publishing: Publishing, pbs: FakePbs
) -> None:
    publishing.publisher.want({"n1": {ACCEPTS: "none", OFFLINE: FROZEN}})
    wait(lambda: offline(pbs) and publishing.shown("n1", "comment") == FROZEN, "offline")
    assert publishing.shown("n1", OFFLINE) is None, "which is no attribute of PBS"
    publishing.publisher.want({"n1": {ACCEPTS: "priority", OFFLINE: ""}})
    wait(lambda: not offline(pbs), "back")
    assert publishing.shown("n1", "comment") is None


@pytest.mark.parametrize("wish", [FROZEN, ""])
def test_an_admins_own_offline_always_stays(publishing: Publishing, pbs: FakePbs, wish: str) -> None:
    pbs.connect().set_offline("n1", "disk broken")  # after the comparison, so that the publisher does not know it yet
    publishing.publisher.want({"n1": {ACCEPTS: "none", OFFLINE: wish}})
    wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "publication")
    publishing.publisher.compare()
    wait(lambda: len(publishing.reads) >= 2, "comparison")
    assert offline(pbs) and publishing.shown("n1", "comment") == "disk broken"


def test_an_admin_who_makes_our_offline_his_own_keeps_it(publishing: Publishing, pbs: FakePbs) -> None:
    publishing.publisher.want({"n1": {OFFLINE: FROZEN}})
    wait(lambda: publishing.shown("n1", "comment") == FROZEN, "offline")
    pbs.connect().set_offline("n1", "disk broken")
    publishing.publisher.want({"n1": {ACCEPTS: "priority", OFFLINE: ""}})
    wait(lambda: publishing.shown("n1", ACCEPTS) == "priority", "publication")
    assert offline(pbs) and publishing.shown("n1", "comment") == "disk broken"


@pytest.mark.parametrize("instead", ["", "node down: cannot open TCP stream: No route to host (113)"])
@pytest.mark.parametrize("hub", ["same", "next"])
def test_our_offline_is_ours_also_after_pbs_has_forgotten_its_comment(
    publishing: Publishing, pbs: FakePbs, hub: str, instead: str
) -> None:
    """PBS's server may have noticed since that it cannot reach MoM, and writes that where it has no comment."""
    publishing.publisher.want({"n1": {OFFLINE: FROZEN}})
    wait(lambda: publishing.shown("n1", "comment") == FROZEN, "offline")
    wait(lambda: publishing.publisher.offline == {"n1"}, "remembered")
    pbs.lose_comment("n1", instead)
    if hub == "same":
        publishing.publisher.compare()
        wait(lambda: publishing.shown("n1", "comment") == FROZEN, "the comment is back")
        publishing.publisher.want({"n1": {OFFLINE: ""}})
        wait(lambda: not offline(pbs), "back")
        wait(lambda: not publishing.publisher.offline, "forgotten")
        return
    new = Publishing(pbs, offline=publishing.publisher.offline)
    new.publisher.want({"n1": {OFFLINE: ""}})
    wait(lambda: not offline(pbs), "back")
    new.publisher.close(BOUND_S)


def test_what_it_has_told_of_offline_vnodes_does_not_change_in_others_hands(
    publishing: Publishing, pbs: FakePbs
) -> None:
    """Its thread goes on while the hub's writes it to disk."""
    before = publishing.publisher.offline
    publishing.publisher.want({"n1": {OFFLINE: FROZEN}})
    wait(lambda: publishing.publisher.offline == {"n1"}, "remembered")
    assert before == frozenset()


def test_an_admins_offline_without_a_comment_stays_too(publishing: Publishing, pbs: FakePbs) -> None:
    pbs.connect().set_offline("n1", "soon gone")
    pbs.lose_comment("n1")
    publishing.publisher.compare()
    publishing.publisher.want({"n1": {ACCEPTS: "none", OFFLINE: ""}})
    wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "publication")
    assert offline(pbs)


def test_after_a_lost_connection_all_is_read_again_and_pending_changes_are_published(
    publishing: Publishing, pbs: FakePbs
) -> None:
    def away(operation: str, subject: str) -> None:
        raise PbsError(Code.NO_SERVER, "away", transient=True)

    pbs.breaks = away
    publishing.publisher.want({"n1": {ACCEPTS: "none"}})
    wait(lambda: not publishing.publisher.healthy(10), "the loss is noticed")
    pbs.breaks = nothing_breaks
    wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "publication after the loss")
    wait(lambda: len(publishing.reads) == 2, "all is read again")
    assert publishing.publisher.healthy(10)


def test_a_refused_vnode_does_not_delay_the_others(publishing: Publishing, pbs: FakePbs) -> None:
    def refuse(operation: str, subject: str) -> None:
        if (operation, subject) == ("set_vnode", "n1"):
            raise PbsError(Code.BAD_VALUE, "no")

    pbs.breaks = refuse
    publishing.publisher.want({"n1": {ACCEPTS: "none"}, "n2": {ACCEPTS: "none"}})
    wait(lambda: publishing.shown("n2", ACCEPTS) == "none", "the other one")
    pbs.breaks = nothing_breaks
    publishing.publisher.compare()
    wait(lambda: publishing.shown("n1", ACCEPTS) == "none", "the refused one, later")


def test_a_hanging_call_is_no_health(publishing: Publishing, pbs: FakePbs) -> None:
    go = threading.Event()
    pbs.breaks = lambda operation, subject: assert_set(go)
    publishing.publisher.want({"n1": {ACCEPTS: "none"}})
    wait(lambda: not publishing.publisher.healthy(0.01), "hanging")
    go.set()
    wait(lambda: publishing.publisher.healthy(0.01), "answering")


def assert_set(event: threading.Event) -> None:
    assert event.wait(BOUND_S)


@pytest.mark.parametrize("ending", [None, ZeroDivisionError("a mistake")], ids=["an answer", "a defect"])
def test_a_call_that_ends_after_the_hub_reports_to_nobody(
    pbs: FakePbs, caplog: pytest.LogCaptureFixture, ending: Exception | None
) -> None:
    """The hub's event loop is closed by then: to call it is an error."""
    made = Publishing(pbs)
    hangs, release = threading.Event(), threading.Event()

    def hang(what: str, name: str) -> None:
        if what == "vnodes":
            hangs.set()
            assert release.wait(BOUND_S)
            if ending is not None:
                raise ending

    pbs.breaks = hang
    reads = len(made.reads)
    made.publisher.compare()
    assert hangs.wait(BOUND_S)
    made.publisher.close(timeout_s=0)
    release.set()
    made.publisher.close(BOUND_S)
    assert len(made.reads) == reads and not made.failed
    assert ("ZeroDivisionError: a mistake" in caplog.text) is (ending is not None), "only logged, but that it is"


def test_a_budget_that_is_spent_lets_cosmetics_wait_and_then_everything() -> None:
    budget = Budget(share=0.1, burst=1.0, now=0.0)
    assert budget.wait_s(0.0) == budget.wait_s(0.0, reserve=0.5) == 0.0
    budget.spend(0.7)
    assert budget.wait_s(0.0) == 0.0
    assert budget.wait_s(0.0, reserve=0.5) == pytest.approx(2.0)
    budget.spend(0.5)
    assert budget.wait_s(0.0) == pytest.approx(2.0)
    assert budget.wait_s(2.0) == pytest.approx(0.0)
    assert budget.wait_s(1000.0, reserve=0.5) == 0.0


# The pool


def suspend(pbs: Pbs) -> str:
    pbs.job("1.srv")
    pbs.admin_suspend("1.srv")
    return "done"


def test_calls_run_side_by_side_each_on_its_own_connection(pbs: FakePbs) -> None:
    together = threading.Barrier(3)

    def meet(connection: Pbs) -> Pbs:
        together.wait(BOUND_S)
        return connection

    async def run() -> None:
        pool = CallPool(pbs.connect, 3, BOUND_S)
        found = await asyncio.gather(*(pool.run(meet) for _ in range(3)))
        assert len({id(one) for one in found}) == 3
        pool.close()

    asyncio.run(run())


def test_an_old_connection_is_replaced_without_a_word(pbs: FakePbs) -> None:
    pbs.put(job())

    async def run() -> None:
        pool = CallPool(pbs.connect, 1, BOUND_S)
        connections = [await pool.run(lambda c: c)]
        connections[0].close()  # as a restart of the server does
        assert await pool.run(suspend) == "done"
        assert pbs.connections == 2
        pool.close()

    asyncio.run(run())


def test_a_refusal_of_pbs_is_raised_and_not_repeated(pbs: FakePbs) -> None:
    async def run() -> None:
        pool = CallPool(pbs.connect, 1, BOUND_S)
        with pytest.raises(PbsError) as error:
            await pool.run(suspend)
        assert error.value.code == Code.UNKNOWN_JOB
        pool.close()

    asyncio.run(run())
    assert pbs.count("job") == 1


def test_a_defect_of_a_task_is_raised_where_it_is_awaited(pbs: FakePbs) -> None:
    def broken(connection: Pbs) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        pool = CallPool(pbs.connect, 1, BOUND_S)
        with pytest.raises(ZeroDivisionError):
            await pool.run(broken)
        assert await pool.run(lambda c: 1) == 1
        pool.close()

    asyncio.run(run())


def test_hanging_calls_are_given_up_and_replaced_up_to_a_bound(pbs: FakePbs) -> None:
    go = threading.Event()
    pbs.put(job())

    async def run() -> None:
        pool = CallPool(pbs.connect, 1, 0.05)
        for _ in range(SPARE + 1):
            with pytest.raises(PbsError) as error:
                await pool.run(lambda c: go.wait(BOUND_S))
            assert error.value.transient
        waiting = asyncio.ensure_future(pool.run(lambda c: 1))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done, "no thread is left"  # a fixed time: all threads hang, so nothing else happens
        waiting.cancel()
        pool.close()

    try:
        asyncio.run(run())
    finally:
        go.set()


def test_a_pool_is_closed_while_its_threads_end_one_after_another(
    pbs: FakePbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        pool = CallPool(pbs.connect, 3, BOUND_S)
        calls = pool._calls

        class UntilOneHasEnded:
            get = calls.get

            @staticmethod
            def put(call: None) -> None:
                before = len(pool._workers)
                calls.put(call)
                wait(lambda: len(pool._workers) < before, "a thread's end")

        monkeypatch.setattr(pool, "_calls", UntilOneHasEnded)
        pool.close()
        assert not pool._workers

    asyncio.run(run())


def test_a_pool_works_on_after_a_hanging_call(pbs: FakePbs) -> None:
    go = threading.Event()

    async def run() -> None:
        pool = CallPool(pbs.connect, 1, LONG_ENOUGH_S)
        with pytest.raises(PbsError):
            await pool.run(lambda c: go.wait(BOUND_S))
        assert await pool.run(lambda c: 1) == 1
        pool.close()

    try:
        asyncio.run(run())
    finally:
        go.set()


def test_a_host_whose_questions_hang_may_ask_again_until_the_pool_is_exhausted_and_after_that(pbs: FakePbs) -> None:
    go = threading.Event()

    async def run() -> None:
        pool = CallPool(pbs.connect, 1, 0.05, asks_server=True)
        for _ in range(SPARE + 1):
            assert not pool.exhausted
            with pytest.raises(PbsError):
                await asyncio.wait_for(pool.run(lambda c: go.wait(BOUND_S), ["h1"]), BOUND_S)
        assert pool.exhausted, "so the hub's heartbeat shows that PBS answers nothing"
        go.set()
        assert await asyncio.wait_for(pool.run(lambda c: 1, ["h1"]), BOUND_S) == 1
        assert not pool._places._places
        pool.close()

    try:
        asyncio.run(run())
    finally:
        go.set()


def test_a_host_whose_moms_hang_keeps_the_places_of_its_calls(pbs: FakePbs) -> None:
    go = threading.Event()

    async def run() -> None:
        pool = CallPool(pbs.connect, 2, LONG_ENOUGH_S)
        with pytest.raises(PbsError):
            await pool.run(lambda c: go.wait(BOUND_S), ["h1"])
        second = asyncio.ensure_future(pool.run(lambda c: 2, ["h1"]))
        assert await pool.run(lambda c: 1, ["h2"]) == 1
        assert not second.done()
        go.set()
        assert await asyncio.wait_for(second, BOUND_S) == 2
        pool.close()

    try:
        asyncio.run(run())
    finally:
        go.set()
