"""One guest of a host causes as much work as it can: its siblings, and other hosts, still get what they need."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

from scheduler_plugin.hub.call_places import CallPlaces
from scheduler_plugin.hub.job_reports import BURST, OWN_BURST
from scheduler_plugin.hub.shares import OWN_PER_S, Shares
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, job, report, snapshot, stopped

from .simulated_hub import SimHub


def lies(number: int) -> list[str]:
    return [f"{number}{n}.none" for n in range(2500)]


@pytest.mark.long
def test_a_guest_that_lists_jobs_that_do_not_exist_does_not_keep_its_siblings_jobs_from_being_stopped() -> None:
    pbs = FakePbs("n1", "n2")
    pbs.put(job("99999.srv", vnodes=("n2",)))
    hub = SimHub(pbs)
    for number in range(4):
        hub.says("h1", domain("n1", [stopped(id) for id in lies(number)]), domain("n2", [report("99999.srv")]))
        hub.settle(0.1)
    hub.says("h1", domain("n1", [stopped(id) for id in lies(9)]), domain("n2", [stopped("99999.srv")]))
    hub.settle(1)
    assert hub.state("99999.srv") == "S"


@pytest.mark.long
def test_a_guest_whose_jobs_are_stopped_all_the_time_leaves_suspensions_for_its_siblings() -> None:
    pbs = FakePbs("n1", "n2")
    pbs.put(job("99999.srv", vnodes=("n2",)))
    ids = [f"{n}.own" for n in range(300)]
    for id in ids:
        pbs.put(job(id, vnodes=("n1",)))
    hub = SimHub(pbs)
    for _ in range(20):
        hub.says("h1", domain("n1", [stopped(id) for id in ids]), domain("n2", [report("99999.srv")]))
        hub.settle(0.3)
        hub.says("h1", domain("n1", [report(id) for id in ids]), domain("n2", [report("99999.srv")]))
        hub.settle(0.3)
    hub.says("h1", domain("n1", [stopped(id) for id in ids]), domain("n2", [stopped("99999.srv")]))
    hub.settle(0.5)
    assert hub.state("99999.srv") == "S"


def test_a_vnode_has_its_own_share_after_its_hosts_and_no_name_is_one() -> None:
    shares = Shares(per_s=1.0, burst=10.0, own_burst=3.0)
    assert [shares.take([("h1", "n1")], 0.0) for _ in range(14)] == [True] * 13 + [False]
    assert [shares.take([("h1", "n2")], 0.0) for _ in range(4)] == [True] * 3 + [False]
    assert not shares.take([("h1", "")], 0.0)
    assert shares.take([("h2", "")], 0.0) and shares.take([("h1", "n1"), ("h2", "n9")], 0.0)
    assert shares.take([("h1", "")], 1.5) and shares.take([("h1", "n1")], 1 / OWN_PER_S)


@pytest.mark.long
def test_names_of_vnodes_that_a_host_makes_up_fill_no_memory_and_are_no_shares() -> None:
    hub = SimHub(FakePbs("n1"))
    for number in range(50):
        waits = [structs.replace(stopped(f"{number}{n}.none"), waits="memory") for n in range(100)]
        made_up = [domain(f"x{number}-{n}", [job]) for n, job in enumerate(waits)]
        hub.says("h1", domain("n1"), *made_up)
        hub.settle(0.1)
    assert len(hub.farm._vnodes.owner) <= 101
    assert sum(map(len, hub.farm._publications._alerts.values())) <= 101
    assert not hub.farm._questions._shares._of_vnode
    assert not hub.farm.comments._shares._of_vnode


def test_jobs_that_a_host_names_and_then_forgets_fill_no_memory_while_pbs_is_away() -> None:
    hub = SimHub(FakePbs("n1"), read=False)
    for number in range(50):
        made = snapshot(domain("n1", [stopped(f"{number}{n}.none") for n in range(100)]), revision=number + 1)
        hub.farm.snapshot(made, hub.at, hub.at)
        hub.farm.actions(hub.at)
    assert len(hub.farm._dirty) <= 200


@pytest.mark.long
def test_alerts_that_a_host_causes_are_limited() -> None:
    pbs = FakePbs("n1")
    ids = [f"{n}.srv" for n in range(100)]
    for id in ids:
        pbs.put(job(id, rerunnable=False))
    hub = SimHub(pbs)
    lost = [report(id, stop=True, requeue=True, stopped_since=hub.at) for id in ids]
    for _ in range(100):
        hub.says("h1", domain("n1", lost))
        hub.actions()
        hub.says("h1", domain("n1"))
        hub.actions()
    assert 100 <= len(hub.notes) <= BURST + OWN_BURST + 10


def test_each_host_pays_for_the_jobs_that_it_reports() -> None:
    pbs = FakePbs("n1", "n2")
    pbs.put(job("7.srv", vnodes=("n1",)))
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [report(f"{n}.srv") for n in range(100)]))
    hub.says("h2", domain("n2", [report("200.srv")]))
    assert hub.farm.caused == {"h1": 101, "h2": 2}
    hub.farm.caused.clear()
    hub.says("h1", domain("n1"))
    assert hub.farm.caused == {"h1": 101}, "also for those that it reports no longer"
    hub.farm.caused.clear()
    hub.says("h1", domain("n1", [stopped("7.srv")]))
    hub.settle(1)
    assert set(hub.farm.caused) == {"h1"}, "and for what is done in PBS because of it"


class TestCallPlaces:
    def test_calls_of_one_host_that_hang_leave_room_for_another(self) -> None:
        async def test() -> None:
            places = CallPlaces(2)
            over = asyncio.Event()
            running = 0

            async def hang() -> None:
                nonlocal running
                host = await places.take(["h1"])
                running += 1
                await over.wait()
                places.give_back(host)

            calls = [asyncio.create_task(hang()) for _ in range(10)]
            await asyncio.sleep(0)
            assert [await places.take(["h2"]), await places.take(["h1", "h2"])] == ["h2", "h2"]
            calls.pop().cancel()
            assert running == 2
            over.set()
            await asyncio.gather(*calls)
            places.give_back("h2")
            places.give_back("h2")
            assert running == 9 and not places._places

        asyncio.run(test())
