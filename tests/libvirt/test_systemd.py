"""The units of deploy/systemd under a real systemd: a whole Debian 12 is booted once, and each test looks at what it
told.

In it the agent is installed as the pages say. It serves a job of an ordinary user, as its host asks through a real
virtio-serial port. Node daemon and hub start under their units.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.guests import debian
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.agent.wire import HostEnd
from node_daemon.setup.guest_installer import script

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
GUEST = Path(__file__).parent / "systemd_guest"
JOB = {"id": "1.srv", "run": 1}
PYTHON = (3, 11)
"""The guest's Python. Node daemon and hub are copied into it from this one, so this must be of the same version."""
PACKAGES = ("click", "msgspec", "psutil", "pyzmq", "rich", "markdown-it-py", "mdurl", "pygments")
OURS = ("magrathea", "node_daemon", "scheduler_plugin", "magrathea_lab")
COMPILED = ("magrathea", "node_daemon", "scheduler_plugin", "click", "msgspec", "psutil", "rich", "zmq")
NODED = """
[host]
name = "guest"
mode = "exclusive"
[hub]
endpoints = ["ipc:///run/magrathea-hub/hub.ipc"]
[domain.n1]
kind = "normal"
local.pid_file = "/run/n1.pid"
"""
HUB = """
[hub]
listen = ["ipc:///run/magrathea-hub/hub.ipc"]
state_dir = "/var/lib/magrathea-hub"
heartbeat_file = "/run/magrathea-hub/heartbeat"
[pbs]
kind = "standin"
socket = "/run/no-pbs.sock"
"""


@dataclass
class Told:
    """What came of it: the sections of the console, and what the agent answered its host."""

    console: str = ""
    can: list[str] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    clock_wrong_s: float = 0.0
    code: int | None = None

    def section(self, name: str) -> str:
        found = re.search(rf"^== {re.escape(name)}\r?\n(.*?)(?=^== )", self.console, flags=re.MULTILINE | re.DOTALL)
        assert found, f"no section {name} in:\n{self.console[-3000:]}"
        return found[1].replace("\r", "")


class Host:
    """The node daemon's end of the channel, for one agent."""

    def __init__(self, path: Path, told: Told) -> None:
        self._path = path
        self._told = told
        self._end = HostEnd({"daemon": "test"})
        self.listed = asyncio.Event()

    async def __aenter__(self) -> Host:
        self._reader, self._writer = await self._connected()
        self._end.on_asked = self._asked
        self._end.on_greeted = self._greeted
        self._end.opened(time.monotonic())
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._tick()))
        return self

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        end = time.monotonic() + BOUND_S
        while True:
            try:
                return await asyncio.open_unix_connection(self._path)
            except OSError:  # QEMU does not listen yet
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.1)

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    def _greeted(self, hello: dict[str, Any]) -> None:
        self._told.can = list(hello.get("can", []))

    def _asked(self, mark: Any, op: str, doc: dict[str, Any]) -> None:
        self._end.answer(mark, {"ok": True}, time.monotonic())
        if op == "jobs":
            self.listed.set()

    async def _read(self) -> None:
        while data := await self._reader.read(65536):
            self._end.receive(data, time.monotonic())
            self._writer.write(self._end.take_output())

    async def _tick(self) -> None:
        """Repeat what is due to be repeated."""
        while True:
            self._end.tick(time.monotonic())
            self._writer.write(self._end.take_output())
            await asyncio.sleep(0.2)

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        self._end.ask(op, fields, now + BOUND_S, answer.set_result, now)
        self._writer.write(self._end.take_output())
        found = await asyncio.wait_for(answer, BOUND_S) or {}
        self._told.answers[op if "orders" not in fields else fields["orders"][0]["order"]] = found
        return found


async def served(folder: Path, told: Told) -> None:
    """Do with the guest's job what a node daemon does, and turn the guest off when it has told everything."""
    async with Host(folder / "channel", told) as host:
        await asyncio.wait_for(host.listed.wait(), 4 * BOUND_S)
        await host.ask("orders", orders=[{**JOB, "order": "stop"}])
        await host.ask("push-out", jobs=[JOB], mib=64, deadline_s=20.0)
        await host.ask("memory")
        await host.ask("fetch", jobs=[JOB], mib=64, deadline_s=20.0)
        await host.ask("clock", unix_s=time.time())
        await host.ask("reconnect")
        await host.ask("orders", orders=[{**JOB, "order": "run"}])
        console = folder / "console"
        end = "== end"
        await eventually(lambda: end in console.read_text(errors="replace"), "all that the guest tells", 4 * BOUND_S)
        await host.ask("power", what="off")


def content(folder: Path) -> Path:
    """What the guest gets: the installer, the units, and node daemon and hub if this Python fits."""
    shutil.copytree(GUEST, folder)
    (folder / "install-agent.sh").write_text(script())
    if sys.version_info[:2] == PYTHON:
        for name in ("noded", "hub"):
            shutil.copy(UNITS / f"magrathea-{name}.service", folder)
        (folder / "noded.toml").write_text(NODED)
        (folder / "hub.toml").write_text(HUB)
        environment(folder / "opt")
    return folder


def environment(folder: Path) -> None:
    """A virtual environment, as /opt/magrathea is one."""
    library = folder / "lib" / "python3.11" / "site-packages"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for name in PACKAGES:
        for file in metadata.files(name) or ():
            if ".." not in file.parts:
                target = library / str(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in OURS:
        shutil.copytree(ROOT / name, library / name, ignore=ignored)
    ours = metadata.distribution("magrathea")
    for file in ours.files or ():
        if file.name == "entry_points.txt":
            shutil.copytree(Path(str(file.locate())).parent, library / file.parent)
    for entry in ours.entry_points.select(group="console_scripts"):
        program = folder / "bin" / entry.name
        module, _, function = entry.value.partition(":")
        program.write_text(
            f"#!/opt/magrathea/bin/python\nfrom {module} import {function}\nraise SystemExit({function}())\n"
        )
        program.chmod(0o755)
    # their units may write nothing there, so each start would compile everything anew
    compiler = (sys.executable, "-W", "ignore", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
    subprocess.run([*compiler, *(str(library / name) for name in COMPILED)], check=True)


@pytest.fixture(scope="module")
def told(debian_disk: debian.Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("debian")
    found = Told()
    guest = debian.boot(debian_disk, folder, content(folder / "content"), mib=256)
    try:
        asyncio.run(asyncio.wait_for(served(folder, found), 7 * BOUND_S))
        found.code = guest.wait(BOUND_S)
    finally:
        guest.kill()
        guest.wait()
        found.console = (folder / "console").read_text(errors="replace") if (folder / "console").exists() else ""
    yield found


REFUSED = re.compile(r"no real-time class|no raised priority|not permitted|Permission denied|Read-only file system")
"""What the parts log when their unit forbids something."""


def properties(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Za-z]+=", line))


def test_the_agent_runs_as_installed_and_its_unit_refuses_nothing(told: Told) -> None:
    said = told.section("agent")
    assert properties(said)["ActiveState"] == "active" and properties(said)["NRestarts"] == "0", said
    assert not REFUSED.search(said), said
    assert "enabled" in told.section("install").lower() or "Created symlink" in told.section("install")


def test_the_agent_announces_all_that_it_can_do_as_root_in_a_guest(told: Told) -> None:
    assert {"clock", "fetch", "power", "push-out", "reconnect"} <= set(told.can)


def test_the_agent_is_in_the_real_time_class_and_safe_from_the_oom_killer(told: Told) -> None:
    said = told.section("agent")
    assert "policy 2\n" in said, "SCHED_RR"
    assert "oom_score_adj -1000\n" in said


def test_the_agent_sets_the_clock(told: Told) -> None:
    assert told.answers["clock"] == {**told.answers["clock"], "ok": True, "set": True}
    assert "the clock was" in told.section("agent")


def test_the_agent_ends_moms_connection_to_pbs(told: Told) -> None:
    answer = told.answers["reconnect"]
    assert answer == {**answer, "ok": True, "found": 1, "ended": 1}
    assert "connection ended" in told.section("mom")


def test_the_agent_stops_moves_and_continues_the_job_of_another_user(told: Told) -> None:
    (stopped,) = told.answers["stop"]["jobs"]
    assert stopped["processes"] >= 1 and stopped["stopped"] + stopped["pending"] == stopped["processes"]
    assert told.answers["push-out"]["ok"] and told.answers["push-out"]["pushed_mib"] >= 30, told.answers["push-out"]
    assert told.answers["fetch"]["ok"] and told.answers["fetch"]["fetched_mib"] >= 30, told.answers["fetch"]
    assert told.answers["run"]["ok"]
    assert re.findall("job is (.*)", told.section("mom")) == ["stopped", "running"]


def test_the_agent_powers_the_guest_off(told: Told) -> None:
    assert told.answers["power"]["ok"] and told.code == 0


@pytest.mark.skipif(sys.version_info[:2] != PYTHON, reason="node daemon and hub need the guest's own Python, 3.11")
@pytest.mark.parametrize("part", ["noded", "hub"])
def test_node_daemon_and_hub_start_under_their_units(told: Told, part: str) -> None:
    said = told.section(part)
    assert properties(said)["ActiveState"] == "active" and properties(said)["NRestarts"] == "0", said
    assert not REFUSED.search(said), said


@pytest.mark.skipif(sys.version_info[:2] != PYTHON, reason="node daemon and hub need the guest's own Python, 3.11")
def test_the_node_daemon_reloads_its_configuration(told: Told) -> None:
    said = told.section("reload")
    assert "reload 0\n" in said and properties(said)["ActiveState"] == "active", said


def test_systemd_finds_nothing_wrong_with_the_units(told: Told) -> None:
    """Debian 12 has systemd 252. It ignores a key of 254, without which the node daemon finds its place by itself."""
    about_us = [line for line in told.section("verify").splitlines() if "magrathea" in line]
    known = ("Unknown key 'DelegateSubgroup'", "Command 'man ")  # the guest has no manual pages
    assert [line for line in about_us if not any(words in line for words in known)] == []


EXPOSURE = {"agent": 4.0, "noded": 3.0, "hub": 7.0}
"""At most so exposed, by `systemd-analyze security` (0: not at all, 10: without any limit)."""


@pytest.mark.parametrize("part", EXPOSURE)
def test_the_units_are_no_more_exposed_than_they_were(told: Told, part: str) -> None:
    if part != "agent" and sys.version_info[:2] != PYTHON:
        pytest.skip("only the agent's unit is in the guest")
    found = re.search(r"Overall exposure level for .*?: ([0-9.]+)", told.section(f"security magrathea-{part}"))
    assert found and float(found[1]) <= EXPOSURE[part], found
