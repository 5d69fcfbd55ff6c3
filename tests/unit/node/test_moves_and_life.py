"""While a domain moves between hosts its daemon leaves its life alone, changes neither its CPU nor its memory, and
publishes that it takes no jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from magrathea.control import ControlRequest, Denied
from magrathea.core.model import JobClass, Lifecycle, Mode
from magrathea.core.moves import Leaving, Moves, MoveStage, Ownership
from magrathea.core.refusals import RefusalCode
from magrathea.doctor import Status
from magrathea.messages import Snapshot
from node_daemon.configuration import read
from node_daemon.moves.requests import why_nothing_moves
from node_daemon.setup.doctor import of_snapshot
from tests.unit.node.life_scene import Scene, play

FAR = 1e12


def leaves(stage: MoveStage = MoveStage.COPYING) -> Moves:
    return Moves(leaving=(Leaving("n1", 1, "h2", "h2", 0.0, FAR, stage=stage, granted=2),))


def test_a_domain_that_leaves_is_not_taken_for_one_that_went_down() -> None:
    async def test(s: Scene) -> None:
        s.daemon.facts.moves = leaves()
        s.world.end("n1")
        await asyncio.sleep(60)
        assert s.domain("n1").lifecycle is Lifecycle.UP
        s.daemon.facts.moves = Moves()
        s.daemon.life.look_soon()
        await s.until(lambda: s.domain("n1").lifecycle is Lifecycle.DOWN, "it is looked at again")

    play(test)


def test_a_domain_that_moves_is_published_as_one_that_takes_no_jobs() -> None:
    async def test(s: Scene) -> None:
        def report(name: str) -> object:
            return next(d for d in s.daemon.snapshot(1).domains if d.name == name)

        assert report("n1").accepts and report("n1").travel is msgspec.UNSET  # type: ignore[attr-defined]
        s.daemon.facts.moves = leaves(MoveStage.PREPARING)
        n1, p1 = report("n1"), report("p1")
        assert n1.accepts == [] and "on its way to h2" in n1.why  # type: ignore[attr-defined]
        assert (n1.travel.source, n1.travel.target, n1.travel.stage) == ("h1", "h2", "preparing")  # type: ignore[attr-defined]
        assert JobClass.PRIORITY in p1.accepts  # type: ignore[attr-defined]
        s.daemon.facts.moves = Moves(records=(Ownership("n1", 2, "h2", 3),))
        assert report("n1").accepts == [] and "h2 has it" in report("n1").why  # type: ignore[attr-defined]

    play(test)


def test_its_cpu_and_memory_stay_as_they_are() -> None:
    async def test(s: Scene) -> None:
        s.daemon.facts.moves = leaves()
        before = len(s.world.calls)
        await s.job("p1", JobClass.PRIORITY)
        await asyncio.sleep(30)
        assert not [call for call in s.world.calls[before:] if "n1" in call and ("cpu" in call or "memory" in call)]

    play(test)


def test_a_host_whose_driver_moves_nothing_says_so() -> None:
    async def test(s: Scene) -> None:
        request = ControlRequest(op="migrate", domain="n1", to="h2")
        with pytest.raises(Denied) as caught:
            await s.daemon.move_requests.migrate(request)
        assert caught.value.code is RefusalCode.NOT_SUPPORTED and "local driver" in str(caught.value)

    play(test)


def test_containers_do_not_move(tmp_path: Path) -> None:
    text = '[host]\nname = "h1"\nmode = "counted"\ndriver = "libvirt"\nuri = "lxc:///system"\n'
    text += '[domain.n1]\nkind = "normal"\n'
    (tmp_path / "noded.toml").write_text(text)
    assert "lxc:///system" in why_nothing_moves(read(tmp_path / "noded.toml"))


def test_a_domain_that_has_moved_away_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    text = '[host]\nname = "h1"\nmode = "counted"\n[domain.n1]\nkind = "normal"\nlocal.pid_file = "/p"\n'
    (tmp_path / "noded.toml").write_text(text)
    facts = {"host": "h1", "boot_id": "b", "revision": 1, "at": 0.0, "mode": Mode.COUNTED, "cpus": 1, "memory_mib": 1}
    for away, found in ((msgspec.UNSET, {"domains": Status.WARN}), (["n1"], {"away": Status.NOTE})):
        checks = of_snapshot(read(tmp_path / "noded.toml"), Snapshot(**facts, domains=[], away=away))  # type: ignore[arg-type]
        assert {one.name: one.status for one in checks if one.name in ("domains", "away")} == found
