"""A host is emptied and taken back as docs/maintenance.md says: its commands, its output, with real daemons, the real
hub and the real command. PBS, the hypervisors and what copies between them are in memory."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from magrathea.core.model import State
from magrathea.core.states import state_of
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.hypervisor.moving import Presence
from scheduler_plugin.hub.vnode_attributes import ACCEPTS
from tests.documents import ROOT, Block, blocks, says
from tests.embedded.moving_hosts import MovingHosts, ShownHypervisors
from tests.embedded.real_hub import real_hub
from tests.fakes import mover

PAGE = ROOT / "docs" / "maintenance.md"
BEGIN, END = "## Emptying a host", "\n## "
DOMAIN = '[domain.{name}]\nkind = "{kind}"\ncpus = {cpus}\nmemory_mib = {mib}\nfloor_mib = {floor_mib}\n'
HOSTS = {
    "host1": (16384, (("n1", "normal", 2, 4096, 512), ("n2", "normal", 4, 8192, 6000), ("s1", "service", 1, 1024, 0))),
    "host2": (4096, (("m2", "normal", 2, 4096, 512),)),
}


class Farm(MovingHosts):
    """host1 with n1 and n2, which take jobs, and the service s1; host2 with m2; and the hub."""

    async def start(self) -> None:
        self.hub.start()
        for host, (memory_mib, domains) in HOSTS.items():
            [other] = HOSTS.keys() - {host}
            text = ""
            for name, kind, cpus, mib, floor_mib in domains:
                text += DOMAIN.format(name=name, kind=kind, cpus=cpus, mib=mib, floor_mib=floor_mib)
            own = [name for name, *_ in domains]
            await self.start_host(
                host, other, text, own, "n1", memory_mib=memory_mib, capacity_mib=memory_mib, reserve_mib=0
            )
        self.world.files["host1"] = {mover.DISK}
        await eventually(lambda: self.daemons["host1"].place.moves.record("n1"), "host1 is told that n1 is its own")
        await self.told_of_room("host1", "host2", "")
        await eventually(lambda: all(self.state("host1", n) is State.FREE for n in ("n1", "n2")), "the guests are free")

    async def told_of_room(self, host: str, other: str, closed: str) -> None:
        """Wait until the hub tells the host of the other one's room, and why that is closed."""
        async with asyncio.timeout(BOUND_S):
            while not (rooms := await self.daemons[host].hub.rooms([other])) or rooms[0].closed != closed:
                await asyncio.sleep(0.1)

    async def restart(self, host: str) -> None:
        await self.daemons[host].close()
        await self.start_daemon(host)

    def state(self, host: str, name: str) -> State | None:
        daemon = self.daemons[host]
        domain = daemon.host.domain(name)
        return None if domain is None else state_of(daemon.host, domain)

    async def run(self, command: str) -> tuple[int, str]:
        """The command on host1, as root types it there: its exit code and its output."""
        control = self.daemons["host1"].configuration.control_socket
        process = await asyncio.create_subprocess_shell(
            command.replace("magrathea ", f"{sys.executable} -m magrathea.cli ", 1),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "MAGRATHEA_CONTROL": str(control), "COLUMNS": "200"},
        )
        async with asyncio.timeout(BOUND_S):
            printed, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, printed.decode()


def play(folder: Path, test: Callable[[Farm], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "COPY_S", 0.5)

    async def whole() -> None:
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(real_hub(folder, "n1", "n2", "m2"))
            farm = Farm(folder, hub, ShownHypervisors())
            stack.push_async_callback(farm.close)
            await farm.start()
            await test(farm)

    asyncio.run(whole())


def section() -> list[Block]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = lines.index(BEGIN) + 1
    rest = next((n for n, line in enumerate(lines[first:], first) if line.startswith("## ")), len(lines))
    return [block for block in blocks(PAGE) if first < block.line < rest]


def test_the_page_is_walked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(farm: Farm) -> None:
        found = section()
        ends = []
        for block, after in zip(found, [*found[1:], None], strict=True):
            if block.words != ("host",):
                continue
            code, printed = await farm.run(block.text.strip())
            ends.append(code)
            if after is not None and not after.language:
                assert says(after.text, printed), f"{block.place}:\n{printed}"
            if "evacuate" in block.text and "--dry-run" not in block.text:
                assert farm.world.running("n1") == ["host2"]
                assert farm.state("host1", "n2") is State.ASLEEP
                await eventually(lambda: farm.hub.shown("n2", ACCEPTS) == "none", "PBS starts nothing on host1")
        assert ends == [0, 4, 0], "the service is still up"
        await eventually(lambda: farm.state("host1", "n2") is State.FREE, "n2 is back and takes jobs")
        assert farm.state("host2", "n1") is State.FREE, "what has moved takes jobs at its new host"
        assert not (tmp_path / "host1" / "state" / "evacuation.json").exists()

    play(tmp_path, test, monkeypatch)


def test_a_daemon_that_dies_in_the_midst_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(farm: Farm) -> None:
        evacuation = asyncio.create_task(farm.run("magrathea host evacuate host1"))
        await eventually(lambda: farm.daemons["host1"].place.moves.leaving_of("n1"), "n1 is on its way")
        await farm.restart("host1")
        code, printed = await evacuation
        assert code == 4 and "n1: it is at host2" in printed, printed
        assert farm.world.running("n1") == ["host2"] and farm.state("host1", "n2") is State.ASLEEP
        await farm.restart("host1")
        assert "host1: 3 domains; evacuated" in (await farm.run("magrathea host evacuate host1"))[1]

    play(tmp_path, test, monkeypatch)


def test_a_host_that_is_evacuated_takes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(farm: Farm) -> None:
        await farm.run("magrathea host evacuate host1 --drain")
        code, printed = await farm.run("magrathea status")
        assert code == 0 and "evacuated for" in printed, printed
        await farm.told_of_room("host2", "host1", "it is being evacuated")

    play(tmp_path, test, monkeypatch)


def test_a_hub_that_is_restarted_in_the_midst_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(farm: Farm) -> None:
        evacuation = asyncio.create_task(farm.run("magrathea host evacuate host1"))
        await eventually(lambda: farm.daemons["host1"].place.moves.leaving_of("n1"), "n1 is on its way")
        await farm.hub.end()
        farm.hub.start()
        code, printed = await evacuation
        assert code == 4 and "n1: it is at host2" in printed, printed
        assert farm.world.running("n1") == ["host2"] and farm.state("host1", "n2") is State.ASLEEP

    play(tmp_path, test, monkeypatch)


def test_a_domain_that_is_not_taken_after_all_sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(farm: Farm) -> None:
        farm.world.unwelcome = "the bridge br7 is missing here"
        code, printed = await farm.run("magrathea host evacuate host1")
        assert code == 4 and "1. n1: moves to host2" in printed and "br7" in printed, printed
        assert farm.world.running("n1") == ["host1"], "as far as its mover knows"
        assert farm.state("host1", "n1") is farm.state("host1", "n2") is State.ASLEEP
        _, told = await farm.run("magrathea history n1")
        assert "its host is evacuated" in told and "br7" in told, told

    play(tmp_path, test, monkeypatch)


def test_a_move_that_is_not_complete_turns_back_on_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(farm: Farm) -> None:
        monkeypatch.setattr(mover, "COPY_S", 30.0)
        evacuation = asyncio.create_task(farm.run("magrathea host evacuate host1"))
        await eventually(lambda: farm.world.at("host2", "n1").presence is Presence.ARRIVING, "n1 is being copied")
        _, printed = await farm.run("magrathea host return host1")
        assert "n1 is called back, if it has not left yet" in printed, printed
        assert "the host has been taken back meanwhile" in (await evacuation)[1]
        await eventually(
            lambda: farm.state("host1", "n1") is farm.state("host1", "n2") is State.FREE, "both take jobs again"
        )
        assert farm.world.running("n1") == ["host1"] and not farm.daemons["host1"].place.moves.leaving

    play(tmp_path, test, monkeypatch)
