"""A whole hub on a PBS in memory: its answers to hosts that ask whether PBS has given a job to a vnode of theirs."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from magrathea.messages import KNOWS_MOVES, GivenAsked, GivenTold, Heartbeat, encode
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import placements
from scheduler_plugin.hub.configuration import PbsTable
from scheduler_plugin.hub.vnode_attributes import STATE
from scheduler_plugin.pbs.base import Code, PbsError
from tests.embedded.real_hub import RealHub, run
from tests.fakes.host import FakeHost
from tests.fakes.reports import domain, job, stopped

numbers = itertools.count(1)


async def answer(
    host: FakeHost, id: str = "1.srv", vnode: str = "n1", run: int = 1, *, claim: bool = True
) -> GivenTold:
    number = next(numbers)
    await host.sends(encode(GivenAsked(sender=host.name, id=number, job=id, run=run, vnode=vnode, claim=claim)))
    told = await host.hears(lambda message: isinstance(message, GivenTold) and message.id == number)
    assert isinstance(told, GivenTold)
    return told


async def given(host: FakeHost, id: str = "1.srv", vnode: str = "n1", run: int = 1) -> bool | None:
    return (await answer(host, id, vnode, run)).given


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


def test_about_a_vnode_that_this_pbs_does_not_have_nothing_is_known(tmp_path: Path) -> None:
    """`vnode` in the host's configuration may be wrong, or another PBS has it. A no would take real jobs away."""

    async def test(world: RealHub) -> None:
        world.pbs.put(job(vnodes=("n1",)))
        (host,) = await heard(world, "n1")
        await host.says(domain("n1"), domain("nowhere"))
        for claim in (True, False):
            assert (await answer(host, vnode="nowhere", claim=claim)).given is None
        assert await given(host) is True

    run(tmp_path, test, "n1")


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
    monkeypatch.setattr(placements, "QUESTIONS", (1e-9, 20.0, 0.0))

    async def test(world: RealHub) -> None:
        world.pbs.put(job("9.srv", vnodes=("n2",)))
        host, other = await heard(world, "n1", "n2")
        said = [await given(host, f"{number}.ghost") for number in range(25)]
        assert said == [False] * 20 + [None] * 5
        assert await given(other, "9.srv", vnode="n2") is True

    run(tmp_path, test, "n1", "n2")


def test_what_pbs_has_said_is_not_repeated_for_another_claim_when_the_job_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "MOMENT_S", 0.0)

    async def test(world: RealHub) -> None:
        world.pbs.put(job(vnodes=("n1",)))
        (host,) = await heard(world, "n1")
        await host.says(domain("n1", [stopped()]))
        await world.until(lambda: world.pbs.count("admin_suspend") > 0, "the hub knows the job")
        assert await given(host) is True
        world.pbs.end("1.srv")
        assert await given(host) is False

    run(tmp_path, test, "n1")


def test_a_host_that_asks_about_its_running_jobs_is_answered_without_pbs_until_one_is_missing(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(replace(job(vnodes=("n1",)), exec_vnode="(n1:ncpus=2:mem=5mb+n2:ncpus=1)+(n1:ncpus=1)"))
        (host,) = await heard(world, "n1")
        await world.until(lambda: world.hub is not None and world.hub.farm.knows_pbs, "it has read all jobs")
        told = await answer(host, claim=False)
        assert (told.given, told.cpus, told.memory_mib) == (True, 3, 5)
        assert ("job", "1.srv") not in world.pbs.calls, "it was among all jobs that the hub has read"
        assert (await answer(host, "2.srv", claim=False)).given is False
        world.pbs.put(job("2.srv", vnodes=("n1",)))
        assert (await answer(host, "2.srv", claim=False)).given is True, "it is younger than the reading"

    run(tmp_path, test, "n1")


def test_questions_without_a_claim_take_none_of_those_for_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "WITHOUT_HURRY", (1e-9, 3.0, 0.0))

    async def test(world: RealHub) -> None:
        (host,) = await heard(world, "n1")
        said = [(await answer(host, f"{number}.ghost", claim=False)).given for number in range(5)]
        assert said == [False] * 3 + [None] * 2
        assert await given(host, "9.ghost") is False

    run(tmp_path, test, "n1")


def test_a_hubs_first_word_has_its_version_so_that_hosts_know_that_it_can_be_asked(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        host = world.host()
        world.start()
        await host.says(domain("n1"))
        first = await host.hears(lambda message: True)
        assert isinstance(first, Heartbeat) and first.version == KNOWS_MOVES

    run(tmp_path, test, "n1")
