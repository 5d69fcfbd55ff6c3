"""Containers of LXC: the driver's abilities there, and agents that speak through a bound socket.

A container has the host's programs (its folders, bound read-only), a process namespace of its own, and its guest
channel's folder bound into it. Where the machine does not let one start, the tests are skipped and say what it said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, DriverError
from node_daemon.hypervisor.libvirt import LibvirtDriver
from scheduler_plugin.standin.guests.private_libvirtd import PrivateLibvirtd

from .guest import until
from .machine import ask

AGENT = Path(__file__).parents[2] / "node_daemon" / "agent.py"
PYTHON = "/usr/bin/python3"
SHARED = ("usr", "bin", "sbin", "lib", "lib64")
"""Of the host's root."""
START = """#!/bin/sh
while :; do PYTHON -S -E /agent.py --config /agent.json 2>> /agent.log; sleep 0.2; done
"""


class Containers:
    """Two containers under a private libvirtd; `start` raises libvirt.libvirtError where the machine forbids it."""

    def __init__(self) -> None:
        self.libvirtd = PrivateLibvirtd()
        self.host = self.libvirtd.folder / "host"
        self.names = {name: self.libvirtd.prefix + name for name in ("n1", "p1")}
        self.connection: Any = None
        self.daemon: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return self.libvirtd.uri("lxc")

    def start(self) -> None:
        self.libvirtd.start()
        self.connection = libvirt.open(self.uri)
        for name, own in self.names.items():
            self.connection.defineXML(self._xml(own, self._root(name), self.host / "run" / "guest" / name)).create()

    def _root(self, name: str) -> Path:
        root = self.host / name
        for folder in (*SHARED, "dev", "proc", "sys", "tmp", "run", "channel", "etc", "var/lib/magrathea"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (self.host / "run" / "guest" / name).mkdir(parents=True)
        (root / "init").write_text(START.replace("PYTHON", PYTHON))
        (root / "init").chmod(0o755)
        (root / "agent.py").write_bytes(AGENT.read_bytes())
        (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
        agent = {"socket": "/run/agent.sock", "channel": "unix:/channel/agent.sock", "state": "/run/agent-state.json"}
        (root / "agent.json").write_text(json.dumps({**agent, "scripts": "/scripts"}))
        return root

    def _xml(self, name: str, root: Path, channel: Path) -> str:
        shared = "".join(
            f"<filesystem type='mount'><source dir='/{one}'/><target dir='/{one}'/><readonly/></filesystem>"
            for one in SHARED
            if Path(f"/{one}").exists()
        )
        return f"""<domain type='lxc'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
          <os><type>exe</type><init>/init</init></os>
          <devices>
            <filesystem type='mount'><source dir='{root}'/><target dir='/'/></filesystem>{shared}
            <filesystem type='mount'><source dir='{channel}'/><target dir='/channel'/></filesystem>
            <console type='pty'/>
          </devices></domain>"""

    def start_daemon(self) -> None:
        text = f"""
[host]
name = "h1"
mode = "exclusive"
cpus = 2
memory_mib = 512
reserve_mib = 0
driver = "libvirt"
uri = "{self.uri}"
[limits]
min_run_s = 0.0
allow_short_min_run = true
[paths]
run_dir = "{self.host}/run"
state_dir = "{self.host}/state"
scripts = ""
"""
        for name, kind in (("n1", "normal"), ("p1", "priority")):
            text += f'[domain.{name}]\nkind = "{kind}"\nlibvirt.name = "{self.names[name]}"\n'
        config = self.host / "noded.toml"
        config.write_text(text)
        with (self.host / "noded.log").open("ab") as log:
            command = [sys.executable, "-m", "node_daemon.main", "--config", str(config)]
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log)

    def log(self) -> str:
        return (self.host / "noded.log").read_text()[-4000:] if (self.host / "noded.log").exists() else ""

    def domains(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            return {d["name"]: d for d in ask(self.host / "run" / "control.sock", {"op": "status"})["domains"]}
        return {}

    def agent(self, name: str, message: dict[str, Any]) -> dict[str, Any]:
        """As the container's MoM hook asks; the agent knows root by the socket."""
        here = os.open(self.host / name / "run", os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(4)
                link.connect(f"/proc/self/fd/{here}/agent.sock")
                link.sendall(json.dumps(message).encode() + b"\n")
                answer: dict[str, Any] = json.loads(link.makefile("rb").readline())
                return answer
        finally:
            os.close(here)

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            try:
                self.daemon.wait(10)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait(10)
        if self.connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self.connection.close()
        self.libvirtd.close()


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    made = Containers()
    try:
        if not Path(PYTHON).exists():
            pytest.skip(f"containers run the agent by the host's {PYTHON}, which is missing")
        try:
            made.start()
        except libvirt.libvirtError as error:
            pytest.skip(f"this machine does not let libvirt start a container: {error}")
        yield made
    finally:
        made.close()


def test_the_driver_caps_and_limits_containers_and_says_what_they_have_not(containers: Containers) -> None:
    async def work() -> None:
        driver = LibvirtDriver("h1", containers.uri, containers.names)
        try:
            await driver.start(lambda event: None)
            assert driver.capabilities == {CPU, MEMORY, LIFE}
            assert [note for note in driver.notes() if "does not save" in note]
            assert all(domain.up for domain in (await driver.actual()).values())
            await driver.set_cpu("n1", 10)
            assert (await driver.actual())["n1"].cpu_percent == 10
            await driver.set_cpu("n1", None)
            assert (await driver.actual())["n1"].cpu_percent is None
            await driver.set_memory("n1", 200)
            assert (await driver.actual())["n1"].memory_mib == 200
            await driver.set_memory("n1", 256)
            with pytest.raises(DriverError) as caught:
                await driver.save("n1")
            assert caught.value.code == "not-supported"
        finally:
            await driver.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_agents_in_containers_are_heard_and_an_ended_container_is_down(containers: Containers) -> None:
    containers.start_daemon()

    def state(name: str) -> str:
        return str(containers.domains().get(name, {}).get("state"))

    def heard() -> bool:
        found = containers.domains().values()
        return bool(found) and all(domain["agent"] and domain["state"] == "free" for domain in found)

    until(heard, 30, lambda: f"both free, their agents connected: {containers.log()}")
    job = {"id": "1", "run": 1, "class": "preemptible", "cpus": 1, "memory_mib": 0, "rerunnable": True, "owner": "root"}
    answer = containers.agent("n1", {"op": "claim", "job": job, "deadline_s": 1.8})
    assert answer["ok"], answer
    assert [j["id"] for j in containers.domains()["n1"]["jobs"]] == ["1"]
    assert containers.domains()["p1"]["jobs"] == []  # nobody can speak for another
    began = time.monotonic()
    containers.connection.lookupByName(containers.names["n1"]).destroy()
    until(lambda: state("n1") == "down", 10, lambda: f"n1 is down: {containers.log()}")
    # It is not started again here: libvirtd 9.0 has ended by itself, when a container came so soon after its end.
    assert containers.domains()["n1"]["jobs"] == []
    assert time.monotonic() - began < 10
