"""A real daemon with domains of a hypervisor in memory, for tests. Time is virtual."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from magrathea.core import events as ev
from magrathea.core.model import Domain, JobClass, JobKey, Patience, State
from magrathea.core.states import state_of, why
from magrathea_lab.rigs.virtual_time import LoopClock, run
from magrathea_lab.waiting import eventually
from node_daemon.configuration import NodedConfiguration, read
from node_daemon.daemon import Daemon
from node_daemon.hypervisor.base import CPU, LIFE, SAVE
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeDriver, FakeHypervisor

KEY = JobKey("1.srv", 1)


def guest(name: str) -> FakeGuest:
    """A guest without memory to move."""
    return FakeGuest(name, can=("power", "clock", "reconnect"))


class Scene:
    def __init__(
        self, folder: Path, configuration: NodedConfiguration, path: Path, capabilities: frozenset[str]
    ) -> None:
        self.folder = folder
        self.configuration = configuration
        self.path = path
        guests = [guest(name) for name in configuration.domain]
        self.world = FakeHypervisor(*guests, run_dir=configuration.run_dir, capabilities=capabilities)
        self.daemon = self._daemon()

    def _daemon(self) -> Daemon:
        return Daemon(self.configuration, self.path, lambda _: FakeDriver(self.world), make_clock=LoopClock)

    async def start(self) -> None:
        await self.daemon.start()

    async def restart(self) -> None:
        """Replace this daemon by another, as after a crash, without notice to anybody."""
        await self.daemon.close()
        self.daemon = self._daemon()
        await self.daemon.start()

    def domain(self, name: str) -> Domain:
        found = self.daemon.host.domain(name)
        assert found is not None
        return found

    def state(self, name: str) -> State:
        return state_of(self.daemon.host, self.domain(name))

    def why(self, name: str) -> str:
        return why(self.daemon.host, self.domain(name))

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        def picture() -> str:
            states = {d.name: (self.state(d.name).value, self.why(d.name)) for d in self.daemon.host.domains}
            return f"{what}; {states}; {self.world.calls}; {self.daemon.life.notes()}"

        await eventually(condition, picture)

    async def until_state(self, name: str, *states: State) -> None:
        await self.until(lambda: self.state(name) in states, f"{name} is {', '.join(states)}")

    def want(self, event: ev.DomainEvent) -> None:
        refused = [d for d in self.daemon.apply(event) if isinstance(d, ev.Refused)]
        assert not refused, refused

    def shutdown(self, name: str, *, reboot: bool = False, patience: Patience = Patience.DRAIN) -> None:
        self.want(ev.ShutdownRequested(self.daemon.now(), name, reboot, patience))

    def freeze(self, name: str) -> None:
        self.want(ev.FreezeRequested(self.daemon.now(), name))

    def defrost(self, name: str, within_s: float = 60.0) -> None:
        self.want(ev.DefrostRequested(self.daemon.now(), name, self.daemon.now() + within_s))

    def boot(self, name: str) -> None:
        self.want(ev.BootRequested(self.daemon.now(), name))

    async def job(self, name: str, cls: JobClass = JobClass.PREEMPTIBLE) -> None:
        self.want(ev.Claimed(self.daemon.now(), name, KEY, cls, 1))

    def release(self, name: str) -> None:
        self.want(ev.Released(self.daemon.now(), name, KEY))


TEXT = """
[host]
name = "h1"
mode = "{mode}"
cpus = 4
memory_mib = 4096
{host}
[limits]
min_run_s = 0.0
allow_short_min_run = true
[paths]
run_dir = "{folder}/run"
state_dir = "{folder}/state"
scripts = "{folder}/scripts"
script_time_limit_s = 2.0
"""
DOMAIN = """
[domain.{name}]
kind = "{kind}"
local.pid_file = "/none/{name}"
boot_time_limit_s = {boot_s}
shutdown_time_limit_s = {end_s}
"""


def play(
    test: Callable[[Scene], Awaitable[None]],
    *,
    mode: str = "exclusive",
    boot_s: float = 60.0,
    end_s: float = 60.0,
    capabilities: frozenset[str] = frozenset({CPU, LIFE, SAVE}),
    lines: str = "",
    prepare: Callable[[Scene], None] = lambda scene: None,
    host: str = "",
    tables: str = "",
    more: tuple[tuple[str, str], ...] = (),
) -> None:
    """With n1 (normal) and p1 (priority), both up and their agents connected, unless `prepare` says otherwise.

    `lines`: more of noded.toml for each domain. `host`: more lines for its [host]. `tables`: more tables. `more`: names
    and kinds of more domains.
    """

    async def all_of_it() -> None:
        with tempfile.TemporaryDirectory(prefix="mrl-") as name:
            folder = Path(name)
            text = TEXT.format(mode=mode, folder=folder, host=host) + tables
            for domain, kind in (("n1", "normal"), ("p1", "priority"), *more):
                text += DOMAIN.format(name=domain, kind=kind, boot_s=boot_s, end_s=end_s) + lines
                text += "cpus = 1\n" if kind == "service" else ""
            path = folder / "noded.toml"
            path.write_text(text)
            scene = Scene(folder, read(path), path, capabilities)
            prepare(scene)
            try:
                await scene.start()
                agents = [d.name for d in scene.world.guests.values() if d.up and d.registers]
                await scene.until(
                    lambda: all(scene.domain(name).agent_lost_at is None for name in agents), "agents connected"
                )
                await test(scene)
            finally:
                await scene.world.close()
                await scene.daemon.close()

    run(all_of_it())
