"""Root in a priority guest claims jobs that PBS has not given to it: no sibling's job is stopped for them."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters.standin import StandInCluster
from magrathea_lab.fleet import COUNTED, EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LONG,
    finish,
    goes_on,
    stands_still,
    wait_domain,
    wait_running,
    wait_state,
    wait_stoppable,
)
from magrathea_lab.waiting import BOUND_S, eventually
from tests.embedded.rig import Job, Rig, ask, rig, running, states_of, stopped
from tests.embedded.test_crash import short


def claim(cluster: StandInCluster, domain: str, id: str, run: int = 1) -> dict[str, Any]:
    """What root in the domain gets if it plays MoM's hook."""
    job = {"id": id, "run": run, "class": "priority", "cpus": 1, "memory_mib": 0, "rerunnable": True}
    request = {"op": "claim", "job": {**job, "owner": getpass.getuser()}, "deadline_s": 1.8}
    return asyncio.run(ask(cluster.directory / domain / "agent.sock", request))


def test_no_job_is_stopped_for_one_that_pbs_has_not_given_to_the_guest_that_claims_it() -> None:
    with StandInCluster([EXCLUSIVE]) as cluster:
        low = cluster.submit("low", LONG, cpus=2)
        wait_running(cluster, low)
        wait_stoppable(cluster, "n1")
        wait_domain(cluster, "p1", "occupied-would-preempt")
        waiting = cluster.submit("low", LONG, cpus=2)
        server = low.partition(".")[2]
        for ghost in (f"999.{server}", f"999[3].{server}", low, waiting):
            answer = claim(cluster, "p1", ghost)
            assert (answer["ok"], answer["code"]) == (False, "not-given"), (ghost, answer)
            assert cluster.vnodes()["n1"].magrathea == "running-preemptible"
        goes_on(cluster, low, cluster.counter(low))
        assert cluster.jobs()[low].state == "R"
        high = cluster.submit("high", LONG)
        wait_running(cluster, high)
        wait_state(cluster, low, "S")
        stands_still(cluster, low)
        other = "p1" if cluster.jobs()[high].vnodes == ("p2",) else "p2"
        assert claim(cluster, other, high)["ok"] is False, "it is the sibling's"
        for job in (waiting, high):
            cluster.delete(job)
        finish(cluster, low)


def test_on_a_counted_host_either_no_job_is_stopped_for_one_that_pbs_has_not_given() -> None:
    with StandInCluster([COUNTED]) as cluster:
        lows = [cluster.submit("low", LONG, cpus=2) for _ in range(2)]
        for low in lows:
            wait_running(cluster, low)
        for name in ("n2", "n3"):
            wait_stoppable(cluster, name)
        wait_domain(cluster, "p3", "occupied-would-preempt")
        waiting = cluster.submit("low", LONG, cpus=2)
        server = waiting.partition(".")[2]
        for ghost in (f"999.{server}", f"999[3].{server}", lows[0], waiting):
            answer = claim(cluster, "p3", ghost)
            assert (answer["ok"], answer["code"]) == (False, "not-given"), (ghost, answer)
            assert {cluster.vnodes()[name].magrathea for name in ("n2", "n3")} == {"running-preemptible"}
        for low in lows:
            goes_on(cluster, low, cluster.counter(low))
        high = cluster.submit("high", LONG, cpus=3)
        wait_running(cluster, high)
        for low in lows:
            wait_state(cluster, low, "S")
        assert claim(cluster, "p3", f"888.{server}")["code"] == "not-given", "it would keep them stopped"
        for job in (waiting, high):
            cluster.delete(job)
        for low in lows:
            finish(cluster, low)


both = pytest.mark.parametrize("mode", ["exclusive", "counted"])


def play(folder: Path, test: Callable[[Rig], Awaitable[None]], mode: str = "exclusive") -> None:
    link = short(folder)

    async def all_of_it() -> None:
        async with rig(link, mode, {"n1": "normal", "p1": "priority", "p2": "priority"}) as r:
            await test(r)

    try:
        asyncio.run(asyncio.wait_for(all_of_it(), BOUND_S))
    finally:
        link.unlink()


async def restart(r: Rig) -> None:
    await r.stop_daemon()
    r.hub.snapshots.clear()
    await r.start_daemon()
    await eventually(r.settled, "the daemon up again, its agents and the hub connected")


@both
def test_what_is_confirmed_is_in_the_journal_and_what_is_not_stops_nobody_after_a_restart_either(
    tmp_path: Path, mode: str
) -> None:
    async def test(r: Rig) -> None:
        low, high, ghost = (
            Job("1.srv", 1, "preemptible", cpus=4),
            Job("2.srv", 1, "priority", cpus=2),
            Job("3.srv", 1, "priority"),
        )
        r.hub.given = lambda asked: asked.job != ghost.id
        await r.start_job("n1", low)
        await eventually(lambda: r.report("p1").state == "occupied-would-preempt", "the job can be stopped")
        assert (await r.claim("p1", ghost))["code"] == "not-given"
        assert running(states_of(low.session))
        await r.start_job("p1", high)
        assert stopped(states_of(low.session))
        await restart(r)
        r.hub.asked.clear()
        assert (await r.claim("p1", high))["ok"], "as an agent that has lost the answer repeats it"
        assert not [asked for asked in r.hub.asked if asked.job == high.id]
        assert (await r.claim("p1", ghost))["code"] == "not-given"

    play(tmp_path, test, mode)


@both
def test_a_hub_that_cannot_ask_pbs_leaves_every_job_as_it_is(tmp_path: Path, mode: str) -> None:
    async def test(r: Rig) -> None:
        low, high = Job("1.srv", 1, "preemptible", cpus=4), Job("2.srv", 1, "priority", cpus=4)
        await r.start_job("n1", low)
        await eventually(lambda: r.report("p1").state == "occupied-would-preempt", "the job can be stopped")
        r.hub.given = lambda asked: None
        assert (await r.claim("p1", high, if_unconfirmed=True))["code"] == "unconfirmed"
        assert running(states_of(low.session))
        r.hub.given = lambda asked: True
        await r.start_job("p1", high)
        assert stopped(states_of(low.session))

    play(tmp_path, test, mode)


@both
def test_with_a_hub_of_the_release_before_jobs_preempt_as_they_did_then(tmp_path: Path, mode: str) -> None:
    async def test(r: Rig) -> None:
        low, high = Job("1.srv", 1, "preemptible", cpus=4), Job("2.srv", 1, "priority", cpus=4)
        r.hub.version = ""
        await restart(r)
        await r.start_job("n1", low)
        await eventually(lambda: r.report("p1").state == "occupied-would-preempt", "the job can be stopped")
        assert (await r.claim("p1", high))["ok"]
        assert stopped(states_of(low.session)) and r.hub.asked == []

    play(tmp_path, test, mode)
