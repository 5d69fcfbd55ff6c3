"""A preemption that moves memory, and its end: the order of steps, the waits, and refusals by numbers.

The core, switch, mover and claims are real; guests, agents and hypervisor are fakes in virtual time (tests/fakes).
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from magrathea.core import events as ev
from magrathea.core.model import JobKey, MemoryShort, Stage
from magrathea.core.readiness import UNHEARD_S, Unready
from magrathea.core.states import published
from node_daemon.guest_channel.messages import GuestMemory, Report
from node_daemon.snapshot import Beside, snapshot
from tests.fakes.guest import SESSION

from .switch_world import CAPACITY_MIB, FLOOR_MIB, HIGH, LOW, busy_guest, played, world


def test_memory_goes_over_and_comes_back_in_the_right_order() -> None:
    w = world(busy_guest())

    async def work() -> None:
        w.log.clear()
        assert (await w.claim(1000))["ok"]
        answer = await w.prepared()
        assert (answer["ok"], answer["ready"]) == (True, False), "1,192 MiB do not come at once"
        assert "waits for its memory: n1 gives" in answer["text"]
        assert "waits for its memory: n1 gives" in w.claims.waits()["p1", HIGH], "its comment says so"
        await w.until(lambda: w.has("p1") >= 1192)
        assert (await w.prepared())["ready"]
        assert w.claims.waits() == {}
        assert w.has("n1") > FLOOR_MIB + 10, "it starts with what it asked for; the rest follows"
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2 and w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        assert w.model.world.guests["n1"].swapped >= 1500
        assert [(name, mib >= 1500) for name, mib, _ in w.pushed] == [("n1", True)], "for the next estimate"
        assert w.pushed[0][1] / w.pushed[0][2] == pytest.approx(250, rel=0.2), "its swap takes 250 MiB a second"
        first = {what: w.log.index(what) for what in ("stop n1", "push n1", "memory n1", "memory p1")}
        assert first["stop n1"] < min(first["push n1"], first["memory n1"])
        assert first["stop n1"] < first["memory p1"]
        w.log.clear()
        w.model.world.guests["p1"].job = 0
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        for earlier, later in (("memory p1", "memory n1"), ("memory n1", "fetch n1"), ("fetch n1", "run n1")):
            assert w.log.index(earlier) < w.log.index(later), f"{earlier} before {later}: {w.log}"
        last_memory = max(i for i, what in enumerate(w.log) if what == "memory n1")
        assert last_memory < w.log.index("run n1"), "memory first, all of it"
        assert w.model.world.guests["n1"].swapped == 0

    played(w, work)


COMING = Unready(Stage.COMING, "h2: n2 gives 10 of 900 MiB")
SILENT = Unready(Stage.UNHEARD, "p2: its host h2 says nothing to the hub")


def test_a_job_of_several_hosts_waits_for_the_others_memory_and_its_comment_shows_the_progress() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        w.unready = (COMING,)
        assert (await w.prepared())["ready"], "a job of one host asks nobody"
        answer = await w.prepared(vnodes=("p1", "p2"))
        assert (answer["ok"], answer["ready"]) == (True, False)
        assert answer["text"] == w.claims.waits()["p1", HIGH] == f"waits for its memory: {COMING.text}"
        await asyncio.sleep(2 * UNHEARD_S)
        assert not (await w.prepared(vnodes=("p1", "p2")))["ready"], "memory on its way is waited for"
        w.unready = ()
        assert (await w.prepared(vnodes=("p1", "p2"))) == {"ok": True, "ready": True}
        assert w.claims.waits() == {}

    played(w, work)


def test_the_job_is_refused_with_numbers_if_memory_does_not_arrive_on_another_host() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        w.unready = (COMING, Unready(Stage.SHORT, "h3: p3 needs 1692 MiB and can have 768"))
        answer = await w.prepared(vnodes=("p1", "p2", "p3"))
        assert (answer["code"], answer["text"]) == ("memory-short", "h3: p3 needs 1692 MiB and can have 768")
        assert answer["retry_after_s"] >= 30
        assert w.refusals == [("p1", HIGH, "memory-short")], "its owner is told, too"

    played(w, work)


@pytest.mark.parametrize(("told", "code"), [(None, "hub-lost"), ((SILENT,), "domain-unknown")])
def test_unknown_parts_are_waited_for_a_while_and_then_refused(told: tuple[Unready, ...] | None, code: str) -> None:
    """A restarted hub or host is back before that; a restarted daemon counts from the beginning."""
    w = world(busy_guest())

    async def ask() -> dict[str, Any]:
        return await w.prepared(vnodes=("p1", "p2"))

    async def work() -> None:
        assert (await w.claim(100))["ok"]
        w.unready = told
        assert (await ask())["ready"] is False
        await asyncio.sleep(UNHEARD_S - 1)
        assert (await ask())["ready"] is False
        w.unready = (COMING,)
        assert (await ask())["ready"] is False, "something is known again"
        w.unready = told
        assert (await ask())["ready"] is False
        await asyncio.sleep(UNHEARD_S - 1)
        assert (await ask())["ready"] is False
        await asyncio.sleep(2)
        answer = await ask()
        assert (answer["ok"], answer.get("code")) == (False, code)
        assert "hub" in answer["text"]

    played(w, work)


def test_progress_is_published() -> None:
    w = world(busy_guest())

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("n1") < 1500)
        beside = Beside("b", read=w.switch.readings.domains, actual=w.switch.actual(), moves=w.switch.progress.moves())
        move = {d.name: d.move for d in snapshot(w.host, beside).domains}["n1"]
        assert move is not None and move.what == "gives"
        assert 500 < move.done_mib < move.of_mib == 2048 - FLOOR_MIB

    played(w, work)


def test_a_claim_that_needs_no_memory_waits_for_none() -> None:
    w = world(busy_guest())

    async def work() -> float:
        began = asyncio.get_running_loop().time()
        assert (await w.claim(100))["ok"]
        return asyncio.get_running_loop().time() - began

    assert played(w, work) < 0.1


def test_a_hopeless_claim_is_refused_with_the_numbers_and_the_preempted_job_continues() -> None:
    w = world(busy_guest(swap_mib=0))

    async def work() -> None:
        answer = await w.claim(1500)
        if answer["ok"]:  # the prologue is told

            def told() -> bool:
                return isinstance(w.switch.progress.lack("p1"), MemoryShort)

            await w.until(told)
            answer = await w.prepared()
            w.apply(ev.Released(w.now(), "p1", HIGH))
        assert not answer["ok"] and answer["code"] == "memory-short"
        assert "1692" in answer["text"] and "n1" in answer["text"], answer
        assert answer["retry_after_s"] >= 30
        assert ("p1", HIGH, "memory-short") in w.refusals, "the job's owner is told, too"
        await w.until(w.low_runs)
        await asyncio.sleep(70)  # old enough to be stopped again
        w.apply(ev.TimerFired(w.now()))
        # the figures of the first preemption answer the next claim: nobody is stopped in vain again
        stops = w.log.count("stop n1")
        again = await w.claim(1500, JobKey("9.srv", 2))
        assert again["code"] == "memory"
        assert w.log.count("stop n1") == stops
        assert published(w.host, w.domain("p1")).mib < 1500, "and PBS knows"
        assert (await w.claim(300, JobKey("9.srv", 3)))["ok"], "what there is can be had"

    played(w, work)


def test_memory_that_a_guest_did_not_give_counts_until_its_jobs_end() -> None:
    w = world(busy_guest(swap_mib=0))

    async def work() -> None:
        await w.claim(1500)
        await w.until(lambda: w.domain("n1").unreclaimable_mib > 1000)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        report = Report(2, SESSION, GuestMemory(total_mib=2000, available_mib=100, unreclaimable_mib=3))
        await w.claims.request("n1", report)
        assert w.domain("n1").unreclaimable_mib > 1000
        w.apply(ev.Released(w.now(), "n1", LOW))
        await w.claims.request("n1", report)
        assert w.domain("n1").unreclaimable_mib == 16

    played(w, work)


def test_without_swap_pbs_sees_only_the_memory_that_can_move() -> None:
    """By arithmetic alone, before any attempt: its jobs' requested memory stays, except the part that its swap
    takes."""
    w = world(busy_guest(swap_mib=0), swap_mib=0, low_mib=1500)

    async def work() -> None:
        assert published(w.host, w.domain("p1")).mib == CAPACITY_MIB - 2 * FLOOR_MIB - 1500
        answer = await w.claim(1000)
        assert answer["code"] == "memory"
        assert w.low_runs()

    played(w, work)


def test_a_guest_that_gives_nothing_back_does_not_keep_the_preempted_job_waiting_for_ever() -> None:
    """p1's job is gone and p1 gives nothing back: n1 continues with its present memory, if its job asked for no
    more."""
    w = world(busy_guest(), low_mib=700)

    async def work() -> None:
        assert (await w.claim(500))["ok"]
        await w.until(lambda: w.has("p1") >= 1500)
        w.model.world.guests["p1"].used = w.has("p1") - 200
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(w.low_runs)
        assert w.has("n1") >= FLOOR_MIB + 700
        assert any("p1" in note for note in w.switch.progress.notes()) or w.has("p1") > FLOOR_MIB

    played(w, work)


@pytest.mark.long
def test_a_claim_in_mid_return_turns_the_move_round() -> None:
    w = world(busy_guest(push_rate=100, rate=150))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        w.apply(ev.Released(w.now(), "p1", HIGH))
        await w.until(lambda: w.has("n1") > 600)
        assert not w.low_runs()
        assert (await w.claim(1000, JobKey("9.srv", 2)))["ok"]
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        assert not w.low_runs()
        w.apply(ev.Released(w.now(), "p1", JobKey("9.srv", 2)))
        await w.until(w.low_runs)
        assert w.model.world.guests["n1"].swapped == 0

    played(w, work)


def test_a_job_that_ends_while_it_is_pushed_out_ends_the_pushing() -> None:
    w = world(busy_guest(push_rate=20))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        await w.until(lambda: w.model.world.guests["n1"].swapped > 100)
        w.model.world.guests["n1"].job = w.model.world.guests["n1"].swapped = 0
        w.apply(ev.Released(w.now(), "n1", LOW))
        await w.until(lambda: w.has("n1") <= FLOOR_MIB + 2)
        asked = w.model.world.guests["n1"].asked.count("push-out")
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)
        await asyncio.sleep(30)
        assert w.model.world.guests["n1"].asked.count("push-out") <= asked + 1

    played(w, work)


def test_a_paused_host_moves_nothing_any_more() -> None:
    w = world(busy_guest(push_rate=50))

    async def work() -> None:
        assert (await w.claim(1000))["ok"]
        w.apply(ev.JobLaunched(w.now(), "p1", HIGH))
        await w.until(lambda: w.has("p1") > 500)
        w.apply(ev.PauseRequested(w.now(), "looked at"))
        await asyncio.sleep(10)
        one, other = w.has("n1"), w.has("p1")
        await asyncio.sleep(60)
        assert (w.has("n1"), w.has("p1")) == (one, other)
        w.apply(ev.PauseEnded(w.now()))
        await w.until(lambda: w.has("p1") >= CAPACITY_MIB - FLOOR_MIB - 2)

    played(w, work)
