"""A real node daemon on each of two hosts (two_hosts.py), with one hub for both. The guests move between them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from magrathea.core.refusals import RefusalCode

from ..guests.private_libvirtd import QEMU_USER
from ..opened import Opened
from ..waiting import BOUND_S, until
from .guest import Guest
from .guest_host import Hypervisor, ask
from .two_hosts import TwoHosts

T = TypeVar("T")


class TwoDaemons(Opened):
    """`h1` has the guests in the beginning. `endpoint`: the hub's. `own`: the domain that each host's configuration
    names; h2's exists only there."""

    def __init__(self, hosts: TwoHosts, endpoint: str, own: Mapping[str, str]) -> None:
        self.hosts = hosts
        self.endpoint = endpoint
        self.own = dict(own)
        self.at: dict[str, Hypervisor] = {"h1": hosts.first, "h2": hosts.second}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    # Starting and ending

    def start(self) -> None:
        for name, host in self.at.items():
            for old in (host.folder / "state").glob("*"):
                old.unlink()
            (host.folder / "noded.toml").write_text(self._configuration(name, host))
            self.start_daemon(name)

    def _configuration(self, name: str, host: Hypervisor) -> str:
        (other,) = self.at.keys() - {name}
        here, there = host.libvirtd.folder, self.at[other].libvirtd.folder
        domain = self.own[name]
        return f"""
[host]
name = "{name}"
mode = "counted"
cpus = 4
memory_mib = 1024
reserve_mib = 0
driver = "libvirt"
uri = "{host.uri}"
qemu_user = "{QEMU_USER}"
[limits]
min_run_s = 0.0
allow_short_min_run = true
[hub]
endpoints = ["{self.endpoint}"]
[paths]
run_dir = "{host.run_dir}"
state_dir = "{host.folder}/state"
scripts = ""
[visitors]
hosts = ["{other}"]
address = "qemu+unix:///system?socket={host.libvirtd.socket}"
memory_address = "unix://{here}/sockets/memory"
disks_address = "unix://{here}/sockets/disks"
disks = ["{here}/disks"]
renamed = ["{there}={here}"]
[moves]
hosts = ["{other}"]
copy_disks = true
transports = ["unix"]
[domain.{domain}]
kind = "normal"
cpus = 2
libvirt.name = "{self.hosts.names.get(domain, domain)}"
"""

    def start_daemon(self, name: str, **environment: str) -> None:
        folder = self.at[name].folder
        with (folder / "noded.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-m", "node_daemon.main", "--config", f"{folder}/noded.toml", "--log-level", "debug"],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def kill(self, name: str) -> None:
        self.daemons[name].kill()
        self.daemons[name].wait(BOUND_S)

    def close(self) -> None:
        for daemon in self.daemons.values():
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(BOUND_S)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait(BOUND_S)

    # What is so

    def control(self, name: str) -> Path:
        return self.at[name].run_dir / "control.sock"

    def ask(self, name: str, **message: Any) -> dict[str, Any]:
        return ask(self.control(name), message)

    def report(self, name: str, domain: str) -> dict[str, Any] | None:
        """What the daemon reports of the domain; None if it does not have it, or does not answer."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found = self.ask(name, op="status").get("domains", [])
            return next((one for one in found if one["name"] == domain), None)
        return None

    def guest(self, name: str, domain: str) -> Guest:
        return self.hosts.at(self.at[name], domain)

    def migrate(self, name: str, domain: str, to: str) -> None:
        """Ask until the hub has confirmed that the domain is the host's, and it may move."""

        def accepted() -> bool:
            answer = self.ask(name, op="migrate", domain=domain, to=to)
            assert answer["ok"] or answer["code"] in (RefusalCode.HUB_LOST, RefusalCode.NOT_MOVABLE), answer
            return bool(answer["ok"])

        self.until(accepted, f"{domain} may move from {name} to {to}")

    def until(self, condition: Callable[[], T | None], what: str | Callable[[], str]) -> T:
        """As `waiting.until`; a failure also shows the daemons' logs."""

        def trouble() -> str:
            logs = [(host.folder / "noded.log").read_text(errors="replace")[-4000:] for host in self.at.values()]
            return "\n".join([what if isinstance(what, str) else what(), *logs])

        return until(condition, trouble)
