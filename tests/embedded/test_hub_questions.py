"""A whole hub on a PBS in memory: its answers to hosts that ask whether PBS has given a job to a vnode of theirs."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from magrathea import __version__
from magrathea.messages import GivenAsked, GivenTold, Heartbeat, encode
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import farm
from scheduler_plugin.hub.configuration import PbsTable
from scheduler_plugin.hub.vnode_attributes import STATE
from scheduler_plugin.pbs.base import Code, PbsError
from tests.embedded.real_hub import RealHub, run
from tests.fakes.host import FakeHost
from tests.fakes.reports import domain, job, stopped

numbers = itertools.count(1)


async def given(host: FakeHost, id: str = "1.srv", vnode: str = "n1", run: int = 1) -> bool | None:
    number = next(numbers)
    await host.sends(encode(GivenAsked(sender=host.name, id=number, job=id, run=run, vnode=vnode)))
    told = await host.hears(lambda message: isinstance(message, GivenTold) and message.id == number)
    assert isinstance(told, GivenTold)
    return told.given


async def heard(world: RealHub, *names: str) -> list[FakeHost]:
    """Hosts h1 with n1, h2 with n2, and so on, as soon as the hub knows all of them."""
    hosts = [world.host(f"h{number}") for number, _ in enumerate(names, 1)]
    world.start()
    for host, name in zip(hosts, names, strict=True):
        await host.says(domain(name))
    await world.until(lambda: all(world.shown(name, STATE) for name in names), "all are published")
    return hosts


def test_the_hub_says_what_pbs_has_and_does_not_ask_twice_for_a_job_that_is_there(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(job(vnodes=("n1",)))
        world.pbs.put(job("2.srv", vnodes=("n2",)))
        world.pbs.put(job("3.srv", state="Q", vnodes=()))
        host, _ = await heard(world, "n1", "n2")
        assert await given(host) is True
        assert await given(host) is True
        assert world.pbs.calls.count(("job", "1.srv")) == 1
        for id in ("2.srv", "3.srv", "4.srv"):
            assert await given(host, id) is False
        world.pbs.put(job("4.srv", vnodes=("n1",)))
        assert await given(host, "4.srv") is True, "PBS starts it later: a no is not remembered"

    run(tmp_path, test, "n1", "n2")


def test_a_host_learns_nothing_about_vnodes_of_others_and_pbs_is_not_asked(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(job(vnodes=("n2",)))
        host, other = await heard(world, "n1", "n2")
        assert await given(host, vnode="n2") is None
        assert await given(host, vnode="nowhere") is None
        assert ("job", "1.srv") not in world.pbs.calls
        assert await given(other, vnode="n2") is True
        assert await given(host, vnode="n2") is None, "nor what the hub knows already"

    run(tmp_path, test, "n1", "n2")


def test_if_pbs_does_not_answer_it_is_unknown(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        (host,) = await heard(world, "n1")

        def breaks(operation: str, subject: str) -> None:
            if operation == "job":
                raise PbsError(Code.NO_SERVER, "away", transient=True)

        world.pbs.breaks = breaks
        assert await given(host) is None

    run(tmp_path, test, "n1")


def test_calls_that_hang_at_moms_delay_no_answer(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(job("9.srv", vnodes=("n1",)))
        host, other = await heard(world, "n1", "n2")
        waits, hanging = threading.Event(), []

        def breaks(operation: str, subject: str) -> None:
            if operation == "admin_suspend":
                hanging.append(subject)
                waits.wait(BOUND_S)

        world.pbs.breaks = breaks
        try:
            for each, vnode in ((host, "n1"), (other, "n2")):
                own = [f"{number}.{vnode}" for number in range(PbsTable().workers)]
                for id in own:
                    world.pbs.put(job(id, vnodes=(vnode,)))
                await each.says(domain(vnode, [stopped(id) for id in own]))
            await world.until(lambda: len(hanging) == PbsTable().workers, "all threads for MoMs hang")
            assert await given(host, "9.srv") is True
        finally:
            waits.set()

    run(tmp_path, test, "n1", "n2")


def test_a_host_that_asks_without_end_uses_up_its_own_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm, "QUESTIONS", (1e-9, 20.0, 0.0))

    async def test(world: RealHub) -> None:
        world.pbs.put(job("9.srv", vnodes=("n2",)))
        host, other = await heard(world, "n1", "n2")
        said = [await given(host, f"{number}.ghost") for number in range(25)]
        assert said == [False] * 20 + [None] * 5
        assert await given(other, "9.srv", vnode="n2") is True

    run(tmp_path, test, "n1", "n2")


def test_a_hubs_first_word_has_its_version_so_that_hosts_know_that_it_can_be_asked(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        host = world.host()
        world.start()
        await host.says(domain("n1"))
        first = await host.hears(lambda message: True)
        assert isinstance(first, Heartbeat) and first.version == __version__

    run(tmp_path, test, "n1")
