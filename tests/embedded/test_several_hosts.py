"""A job with parts on two hosts: the prologue on its first host waits until the memory on the other has arrived.

Real are the hook file as its own process, the agents, two node daemons, the hub, and their channels. PBS and the
hypervisors are in memory; a hypervisor moves memory when the test allows it.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from magrathea.core.refusals import RefusalCode
from magrathea_lab.pbs_standin import pbs_module
from magrathea_lab.rigs.agent_rig import MARK
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.configuration import read
from node_daemon.daemon import Daemon
from node_daemon.hypervisor.base import CPU, MEMORY
from node_daemon.switch import memory
from scheduler_plugin.hub import configuration
from scheduler_plugin.hub.hub import Hub
from scheduler_plugin.setup.hook_texts import written
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, FakeHypervisor
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import job

FLOOR_MIB, ASKED_MIB = 256, 1000
CONFIGURATION = """
[host]
name = "{host}"
mode = "exclusive"
cpus = 2
memory_mib = 4096
[hub]
endpoints = ["ipc://{folder}/hub.ipc"]
[paths]
run_dir = "{folder}/{host}/run"
state_dir = "{folder}/{host}/state"
scripts = ""
[domain.{domain}]
kind = "priority"
floor_mib = {floor_mib}
local.pid_file = "/none"
"""
JOB = {
    "id": "1.srv",
    "run_version": 1,
    "schedselect": "1:ncpus=1:mem=1000mb:magrathea_accepts=priority+1:ncpus=1:mem=1000mb:magrathea_accepts=priority",
    "exec_vnode": "(p1:ncpus=1:mem=1024000kb)+(p2:ncpus=1:mem=1024000kb)",
    "exec_host2": "p1:15002/0+p2:15002/0",
    "euser": getpass.getuser(),
    "queue": "high",
    "substate": 41,
}

HAS_MIB = FLOOR_MIB + 44
AT_ONCE = 1e6
"""MiB per second of a guest's balloon; 0: its memory does not come."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a test that wants it declares a balloon stuck; a busy machine does not."""
    monkeypatch.setattr(memory, "STALL_S", BOUND_S)


class Site:
    """Two hosts, h1 with p1 and h2 with p2, and the server's machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pbs = FakePbs("p1", "p2")
        self.pbs.put(job(substate=41, vnodes=("p1", "p2"), comment=""))
        self.hypervisors: dict[str, FakeHypervisor] = {}
        self.daemons: dict[str, Daemon] = {}
        self.agents: list[asyncio.subprocess.Process] = []
        self._stop = asyncio.Event()
        self._hub: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for host, domain in (("h1", "p1"), ("h2", "p2")):
            (self.folder / host).mkdir()
            path = self.folder / host / "noded.toml"
            text = CONFIGURATION.format(folder=self.folder, host=host, domain=domain, floor_mib=FLOOR_MIB)
            path.write_text(text)
            guest = FakeGuest(domain, HAS_MIB, rate=AT_ONCE)  # its agent is real
            self.hypervisors[host] = FakeHypervisor(guest, capabilities=frozenset({CPU, MEMORY}))
            await self.start_daemon(host)
            await self._start_agent(host, domain)
        await self.start_hub()
        await eventually(lambda: all(d.hub.connected for d in self.daemons.values()), "both hosts have found the hub")
        await eventually(lambda: all(d.agent_lost_at is None for d in self._domains()), "both agents are there")

    def _domains(self) -> list[Any]:
        return [domain for daemon in self.daemons.values() for domain in daemon.host.domains]

    async def start_daemon(self, host: str) -> None:
        path = self.folder / host / "noded.toml"
        self.daemons[host] = Daemon(read(path), path, lambda _: FakeDriver(self.hypervisors[host]))
        await self.daemons[host].start()

    async def _start_agent(self, host: str, domain: str) -> None:
        config = self.folder / f"{domain}.json"
        agent = {
            "socket": f"{self.folder}/{domain}.agent",
            "channel": f"unix:{self.folder}/{host}/run/guest/{domain}.sock",
            "state": f"{self.folder}/{domain}.state",
            "scripts": f"{self.folder}/{domain}.d",
            "environment": {MARK: str(self.folder)},  # tests that run in parallel have a job of the same id
        }
        config.write_text(json.dumps(agent))
        with (self.folder / f"{domain}.log").open("wb") as log:
            self.agents.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "node_daemon.agent", "--config", str(config)), stdout=log, stderr=log
                )
            )

    async def start_hub(self) -> None:
        (self.folder / "hub").mkdir(exist_ok=True)
        settings = configuration.HubConfiguration(
            hub=configuration.HubTable(
                listen=[f"ipc://{self.folder}/hub.ipc"],
                state_dir=f"{self.folder}/hub",
                heartbeat_file=f"{self.folder}/heartbeat",
                control_socket=f"{self.folder}/control.sock",
            )
        )
        self._stop.clear()
        self._hub = asyncio.create_task(Hub(settings, self.pbs.connect).run(self._stop))

    async def end_hub(self) -> None:
        self._stop.set()
        if self._hub is not None:
            async with asyncio.timeout(BOUND_S):
                await self._hub

    async def hook(self, event: str, vnode: str) -> dict[str, Any]:
        """Run MoM's hook in that domain, as a process like PBS's own."""
        about = {**JOB, "mother_superior": vnode == "p1"}
        hook = written("magrathea_mom", self.folder)
        given = {"hook": str(hook), "event": event, "server": "srv", "vnode": vnode, "job": about}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", pbs_module.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "MAGRATHEA_AGENT_CONF": f"{self.folder}/{vnode}.json"},
        )
        try:
            said, _ = await process.communicate(json.dumps(given).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        outcome: dict[str, Any] = json.loads(said)
        return outcome

    async def begin(self) -> asyncio.Task[dict[str, Any]]:
        """Claim the job on both hosts, as PBS does, and start its prologue on the first."""
        for vnode in ("p1", "p2"):
            claimed = await self.hook("execjob_begin", vnode)
            assert claimed["accepted"], claimed
        return asyncio.create_task(self.hook("execjob_prologue", "p1"))

    def comment(self) -> str:
        return self.pbs.jobs["1.srv"].comment

    async def until_it_waits(self, prologue: asyncio.Task[dict[str, Any]]) -> None:
        """Wait for the next answer; earlier ones do not count."""
        claims = self.daemons["h1"].claims
        claims._waiting.clear()
        await eventually(
            lambda: any("h2: p2" in told for told in claims.waits().values()),
            lambda: f"{claims.waits()} {prologue}",
        )
        assert not prologue.done()

    async def close(self) -> None:
        for agent in self.agents:
            agent.kill()
            await agent.wait()
        for daemon in self.daemons.values():
            await daemon.close()
        await self.end_hub()


def play(folder: Path, test: Callable[[Site], Awaitable[None]]) -> None:
    async def whole() -> None:
        site = Site(folder)
        try:
            await site.start()
            await test(site)
        finally:
            await site.close()

    asyncio.run(whole())


async def accepted(prologue: asyncio.Task[dict[str, Any]]) -> None:
    async with asyncio.timeout(BOUND_S):
        outcome = await prologue
    assert outcome["accepted"], outcome


def test_the_script_does_not_start_before_the_other_hosts_memory_is_there(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        late = site.hypervisors["h2"]["p2"]
        late.rate = 0
        prologue = await site.begin()
        await site.until_it_waits(prologue)
        await eventually(lambda: "waits for its memory: h2: p2" in site.comment(), lambda: repr(site.comment()))
        assert site.hypervisors["h1"]["p1"].actual >= FLOOR_MIB + ASKED_MIB, "its own has long been there"
        late.rate = AT_ONCE
        await accepted(prologue)
        assert late.actual >= FLOOR_MIB + ASKED_MIB
        await eventually(lambda: "its memory is there" in site.comment(), lambda: repr(site.comment()))

    play(tmp_path, test)


def test_if_all_memory_has_arrived_the_other_host_costs_no_waiting(tmp_path: Path) -> None:
    """The first question is also the last: the hook does not sleep."""

    async def test(site: Site) -> None:
        for vnode in ("p1", "p2"):
            assert (await site.hook("execjob_begin", vnode))["accepted"]
        guests = [guest for world in site.hypervisors.values() for guest in world.guests.values()]
        await eventually(lambda: all(guest.actual > ASKED_MIB for guest in guests), "all is there")
        waited = []
        for daemon in site.daemons.values():
            daemon.claims._note_waiting = lambda mark, text: waited.append(text)  # type: ignore[method-assign]
        await accepted(asyncio.create_task(site.hook("execjob_prologue", "p1")))
        assert waited == [""]

    play(tmp_path, test)


def test_the_job_is_refused_with_name_and_numbers_if_another_host_lacks_memory(
    tmp_path: Path,
) -> None:
    async def test(site: Site) -> None:
        late = site.hypervisors["h2"]["p2"]
        late.rate = 0
        prologue = await site.begin()
        await site.until_it_waits(prologue)
        await site.daemons["h2"].close()  # the next daemon asks its hypervisor again
        late.fails["memory"] = RefusalCode.MEMORY_SHORT
        await site.start_daemon("h2")
        async with asyncio.timeout(BOUND_S):
            outcome = await prologue
        assert not outcome["accepted"]
        assert "h2: " in outcome["message"] and "memory p2 3584 fails" in outcome["message"], outcome
        assert outcome["changes"]["Execution_Time"] > time.time() + 30

    play(tmp_path, test)


@pytest.mark.parametrize("who", ["hub", "h1", "h2"])
def test_whichever_part_is_restarted_the_job_waits_and_starts_when_the_memory_has_arrived(
    tmp_path: Path, who: str
) -> None:
    async def test(site: Site) -> None:
        late = site.hypervisors["h2"]["p2"]
        late.rate = 0
        prologue = await site.begin()
        await site.until_it_waits(prologue)
        if who == "hub":
            await site.end_hub()
            await site.start_hub()
        else:
            await site.daemons[who].close()
            await site.start_daemon(who)
        await site.until_it_waits(prologue)
        late.rate = AT_ONCE
        await accepted(prologue)
        assert late.actual >= FLOOR_MIB + ASKED_MIB

    play(tmp_path, test)
