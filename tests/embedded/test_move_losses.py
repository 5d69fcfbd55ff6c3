"""A host is lost while a domain moves, or after it: two real node daemons and the real hub; an admin says so, and the
lost host comes back. PBS and the hypervisors are in memory; these check that the domain never runs twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from magrathea import client
from magrathea.core.model import Lifecycle
from magrathea.core.moves import Ownership
from magrathea.move_reports import RUN_COPIES, LostAnswer, LostMove
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.hypervisor.moving import Presence
from scheduler_plugin.hub import farm
from scheduler_plugin.hub import hub as shell
from scheduler_plugin.hub.vnode_attributes import HOST
from tests.fakes.mover import Copy
from tests.fakes.reports import vnode

from .test_move_daemons import Site, play

OFF = Copy(Presence.ABSENT, True)


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(farm, "LEASE_S", BOUND_S)


async def begun(site: Site) -> None:
    """n1 is being copied from h1 to h2."""
    await site.published("h1", {"n1": "none", "m2": "none"})
    await eventually(lambda: site.daemons["h1"].place.moves.record("n1") is not None, "h1 is told what it owns")
    await site.migrate("h1", "h2")
    await eventually(lambda: any("arriving" in line for line in site.world.story), "it is copied")


def record(site: Site) -> Ownership:
    assert site.hub.hub is not None
    return site.hub.hub._movers._owners.written.records["n1"]


async def lose(site: Site, host: str, monkeypatch: pytest.MonkeyPatch, do: str = "") -> list[LostMove]:
    """The machine is off, and an admin says so when its lease is out."""
    site.world.put(host, "n1", OFF)
    with monkeypatch.context() as patch:
        patch.setattr(farm, "LEASE_S", 0.0)
        request = {"op": "lost", "about": host, **({"do": do} if do else {})}
        answer = await asyncio.to_thread(client.ask, site.hub.control, request)
    return msgspec.json.decode(answer, type=LostAnswer).moves


async def ends(site: Site, host: str) -> None:
    """The host's daemon ends, with its machine. A hypervisor ends nothing of what it copies."""
    await site.daemons.pop(host).close()


def test_the_source_is_lost_when_the_copy_is_complete_and_nobody_has_heard_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(site: Site) -> None:
        site.world.fails = lambda phase: "the power is gone" if phase == "finished" else ""
        await begun(site)
        await ends(site, "h1")
        await eventually(lambda: site.world.at("h2", "n1").presence is Presence.ARRIVED, "the copy is complete")
        await eventually(lambda: (task := site.world.jobs["n1"].task) is not None and task.done(), "it is over")
        assert (record(site).owner, record(site).number) == ("h1", 1)
        [move] = await lose(site, "h1", monkeypatch, RUN_COPIES)
        assert (move.domain, move.booked) == ("n1", True)
        await eventually(lambda: site.world.running("n1") == ["h2"], lambda: f"it runs: {site.world.story}")
        await site.start_daemon("h1")
        await site.published("h2", {"n1": "m2", "m2": "n1"})
        await eventually(lambda: not site.daemons["h1"].place.moves.leaving, "h1 is done with it")
        assert site.daemons["h1"].host.domain("n1") is None and site.world.running("n1") == ["h2"]

    play(tmp_path, test, monkeypatch)


def test_without_that_word_a_copy_that_may_be_old_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(site: Site) -> None:
        site.world.fails = lambda phase: "the power is gone" if phase == "finished" else ""
        await begun(site)
        await ends(site, "h1")
        await eventually(lambda: site.world.at("h2", "n1").presence is Presence.ARRIVED, "the copy is complete")
        await eventually(lambda: (task := site.world.jobs["n1"].task) is not None and task.done(), "it is over")
        await lose(site, "h1", monkeypatch)
        h2 = site.daemons["h2"]
        await eventually(lambda: not h2.place.moves.arriving, lambda: f"it is removed: {h2.place.moves}")
        assert (record(site).owner, record(site).number, record(site).transfer) == ("h1", 3, None)
        assert site.world.running("n1") == [] and h2.host.domain("n1") is None
        await site.start_daemon("h1")
        h1 = site.daemons["h1"]
        await eventually(lambda: not h1.place.moves.leaving and h1.host.domain("n1") is not None, "h1 has it again")
        assert site.world.running("n1") == []

    play(tmp_path, test, monkeypatch)


def test_the_target_is_lost_after_the_source_has_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(site: Site) -> None:
        await begun(site)
        await ends(site, "h2")
        await eventually(lambda: record(site).transfer and record(site).transfer.letting, "h1 has let go")  # type: ignore[union-attr]
        [move] = await lose(site, "h2", monkeypatch)
        assert (move.domain, move.booked) == ("n1", True)
        h1 = site.daemons["h1"]
        await eventually(lambda: not h1.place.moves.leaving and h1.host.domain("n1") is not None, "h1 has it again")
        assert (record(site).owner, record(site).number, record(site).transfer) == ("h1", 3, None)
        await site.start_daemon("h2")
        h2 = site.daemons["h2"]
        await eventually(lambda: not h2.place.moves.arriving, lambda: f"h2 gives it up: {h2.place.moves}")
        assert h2.host.domain("n1") is None and site.world.running("n1") == []

    play(tmp_path, test, monkeypatch)


def test_a_domain_that_rested_on_a_lost_host_is_given_up_and_taken_back_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(site: Site) -> None:
        await begun(site)
        await site.published("h2", {"n1": "m2", "m2": "n1"})
        h1, hub = site.daemons["h1"], site.hub.hub
        assert hub is not None and h1.host.domain("n1") is None
        await ends(site, "h2")
        site.world.put("h2", "n1", OFF)
        with monkeypatch.context() as patch:
            patch.setattr(farm, "LEASE_S", 0.0)
            await eventually(lambda: not hub.farm.hosts["h2"].live, "h2 is silent")
            site.hub.pbs.vnodes["n1"] = vnode("n1")
            hub.compare()
            await eventually(lambda: record(site).owner != "h2", "it is given up")
        await eventually(lambda: (record(site).owner, record(site).number) == ("h1", 4), "h1 takes it back")
        await eventually(lambda: site.hub.shown("n1", HOST) == "h1", "its vnode is h1's")
        domain = h1.host.domain("n1")
        assert domain is not None and domain.lifecycle is Lifecycle.DOWN and not domain.jobs
        await site.start_daemon("h2")
        h2 = site.daemons["h2"]
        await eventually(lambda: h2.host.domain("n1") is None, lambda: f"h2 forgets it: {h2.place}")
        assert site.hub.shown("n1", HOST) == "h1" and site.world.running("n1") == []

    play(tmp_path, test, monkeypatch)
